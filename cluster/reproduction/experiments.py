"""All experiments, in the order of the paper."""

from __future__ import annotations

from cluster.reproduction import ballooning, identical_vms, production
from cluster.reproduction.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    ballooning.EXPERIMENT,
    identical_vms.EXPERIMENT,
    production.EXPERIMENT,
)
