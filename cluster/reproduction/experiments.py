"""All experiments, in the order of the paper."""

from __future__ import annotations

from cluster.reproduction import ballooning
from cluster.reproduction.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (ballooning.EXPERIMENT,)
