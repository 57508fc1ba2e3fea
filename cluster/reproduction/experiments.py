"""All experiments: the paper's figures in its order, then studies."""

from __future__ import annotations

from cluster.reproduction import (
    active_memory,
    ballooning,
    driverless,
    identical_vms,
    idle_tax,
    overcommit,
    production,
    real_machines,
    reallocation,
    remapping,
    sharing_scope,
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
    overcommit.EXPERIMENT,
    driverless.EXPERIMENT,
    sharing_scope.EXPERIMENT,
    sharing_scope.MEASURED,
)
