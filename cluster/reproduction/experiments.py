"""All experiments, in the order of the paper."""

from __future__ import annotations

from cluster.reproduction import (
    active_memory,
    ballooning,
    identical_vms,
    idle_tax,
    production,
    real_machines,
    reallocation,
    remapping,
)
from cluster.reproduction.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    ballooning.EXPERIMENT,
    identical_vms.EXPERIMENT,
    production.EXPERIMENT,
    active_memory.EXPERIMENT,
    idle_tax.EXPERIMENT,
    reallocation.EXPERIMENT,
    remapping.EXPERIMENT,
    *real_machines.EXPERIMENTS,
)
