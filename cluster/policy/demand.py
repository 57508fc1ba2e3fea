"""PURE: what VMs demand of hosts, and how evenly it lies on them.

Memory demand is active memory, a part of the idle memory that a VM holds, and its overhead; CPU
demand is the time that it would use. A host's load is demand over capacity, by resource.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.policy.decisions import Sight
from cluster.policy.state import NOWHERE, ClusterState, Ints

Floats = npt.NDArray[np.float64]
MEMORY, CPU = 0, 1
"""Resources: rows of demands, capacities and loads."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What VMs have in common, in bytes. alone (n_vms,): what a VM would consume by itself. saved
    (n_hosts,): what those who are on a host, or on their way there, consume less together."""

    alone: Ints
    saved: Ints


@dataclass(frozen=True, slots=True)
class Load:
    """demand (2, n_vms), capacity (2, n_hosts), on_host (2, n_hosts): demand of the VMs that are
    there or on their way there. Memory in bytes, CPU in core-milliseconds an epoch."""

    demand: Floats
    capacity: Floats
    on_host: Floats

    @property
    def loads(self) -> Floats:
        """(2, n_hosts) demand over capacity."""
        return self.on_host / self.capacity


def measure(now: ClusterState, sight: Sight, shared: Shared | None = None) -> Load:
    """Demand and capacity as last measured. shared: what VMs have in common, if that is known
    better; its VMs demand what they would alone, and hosts less by what is saved there."""
    idle = sight.scenario.balancing.idle
    consumed = now.consumed if shared is None else shared.alone
    held = np.maximum(consumed - now.active, 0)
    memory = now.active + held * idle // 1000 + now.vms.overhead
    demand = np.stack([memory, now.cpu_ms]).astype(np.float64)
    capacity = np.stack([now.hosts.reservable, now.hosts.cpus * sight.scenario.epoch])
    where = now.whereabouts()
    on, n = where != NOWHERE, len(now.hosts.memory)
    # Sums of whole numbers below 2 ** 53: exact in any order.
    on_host = [np.bincount(where[on], weights=row[on], minlength=n) for row in demand]
    if shared is not None:
        on_host[MEMORY] = on_host[MEMORY] - shared.saved * (idle / 1000)
    return Load(demand, np.maximum(capacity, 1).astype(np.float64), np.stack(on_host))


def imbalance(loads: Floats) -> float:
    """Standard deviation of loads over hosts, both resources together: the root of the sum of their
    variances. loads: (2, n), of the hosts that are open."""
    n = loads.shape[1]
    return float(np.sqrt(max(spread_of(np.sum(loads * loads), np.sum(loads, axis=1), n), 0.0)))


def spread_of(squares: Any, sums: Any, n: int) -> Any:
    """Sum of the resources' variances from sums of squares, over all, and sums, (..., 2)."""
    return squares / n - np.sum(sums * sums, axis=-1) / (n * n)
