"""All experiments: the paper's figures in its order, then studies."""

from __future__ import annotations

from cluster.reproduction import (
    active_memory,
    ballooning,
    driverless,
    idle_tax,
    overcommit,
    reallocation,
    sharing_scope,
)
from cluster.reproduction.experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    ballooning.EXPERIMENT,
    active_memory.EXPERIMENT,
    idle_tax.EXPERIMENT,
    reallocation.EXPERIMENT,
    overcommit.EXPERIMENT,
    driverless.EXPERIMENT,
    sharing_scope.EXPERIMENT,
    sharing_scope.MEASURED,
)
