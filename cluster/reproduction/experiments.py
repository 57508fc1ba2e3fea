"""All experiments, in the order of the paper."""

from __future__ import annotations

from cluster.reproduction import active_memory, ballooning, idle_tax
from cluster.reproduction.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    ballooning.EXPERIMENT,
    active_memory.EXPERIMENT,
    idle_tax.EXPERIMENT,
)
