"""PURE: resource pools: a tree of reservation, limit and shares, down which memory flows to VMs.

At each node the amount that it has is divided among its children, pools and VMs: each gets its
reservation, then in proportion to shares up to what it demands, and what nobody demands in
proportion to shares up to its limit (`allocate.divide` without the idle tax, twice). What a VM is
entitled to becomes its shares, and under a limit its limit, wherever it runs: so its host divides
memory as the tree does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hostsim.allocate import divide
from hostsim.units import VmId

Ints = npt.NDArray[np.int64]
ROOT = -1
UNLIMITED = 1 << 50
"""Bytes: more than any cluster has."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool; memory in bytes. parent: its place among the pools, which is before its own."""

    name: str
    parent: int
    reservation: int
    expandable: bool
    limit: int
    shares: int

    @property
    def is_limited(self) -> bool:
        """Whether the limit was given."""
        return self.limit < UNLIMITED


@dataclass(frozen=True, slots=True)
class Pools:
    """All pools, parents before children. of_vm: (n_vms,) place of each VM's pool, or ROOT."""

    pools: tuple[Pool, ...] = ()
    of_vm: Any = field(default_factory=lambda: np.zeros(0, np.int64))

    def admits(self, promised: Ints, vm: VmId, needed: int, room: int) -> bool:
        """Whether `needed` bytes are unreserved in a VM's pool, or above it where that expands,
        within the limits on the way.

        promised: (n_vms,) bytes reserved by each VM that is on, 0 by others. room: what all hosts
        together may promise.
        """
        used = self._used(promised)
        at = int(self.of_vm[vm])
        while at != ROOT:
            pool = self.pools[at]
            if used[at] + needed > pool.limit:
                return False
            free = max(pool.reservation - used[at], 0)
            if needed <= free:
                return True
            if not pool.expandable:
                return False
            needed -= free
            at = pool.parent
        return used[ROOT] + needed <= room

    def _used(self, promised: Ints) -> dict[int, int]:
        """Bytes reserved in each pool by its VMs and its child pools, and in the root."""
        used = {at: int(promised[self.of_vm == at].sum()) for at in range(len(self.pools))}
        used[ROOT] = int(promised[self.of_vm == ROOT].sum())
        for at in range(len(self.pools) - 1, -1, -1):
            pool = self.pools[at]
            used[pool.parent] += max(pool.reservation, used[at])
        return used


@dataclass(frozen=True, slots=True)
class Wants:
    """What VMs bring to the division, (n_vms,) each, bytes; of those that are off, zeros."""

    reservation: Ints
    limit: Ints
    shares: Ints
    demand: Ints


def entitlements(pools: Pools, wants: Wants, is_on: Any, total: int) -> Ints:
    """(n_vms,) bytes that each VM is entitled to of the `total` that the cluster has."""
    n_pools, n_vms = len(pools.pools), len(wants.shares)
    low, demand, cap = _summed(pools, wants, is_on)
    amounts = {ROOT: total}
    found = np.zeros(n_vms, np.int64)
    for at in range(ROOT, n_pools):
        vms = np.flatnonzero(is_on & (pools.of_vm == at))
        children = [child for child in range(n_pools) if pools.pools[child].parent == at]
        shares = _joined(wants.shares[vms], [pools.pools[child].shares for child in children])
        parts = _in_two_steps(
            amounts[at],
            shares,
            _joined(wants.reservation[vms], [low[child] for child in children]),
            _joined(wants.demand[vms], [demand[child] for child in children]),
            _joined(wants.limit[vms], [cap[child] for child in children]),
        )
        found[vms] = parts[: len(vms)]
        amounts |= dict(zip(children, parts[len(vms) :].tolist(), strict=True))
    return found


def _summed(pools: Pools, wants: Wants, is_on: Any) -> tuple[list[int], list[int], list[int]]:
    """What each pool must have, would use, and may have: its own bounds over its children's."""
    n = len(pools.pools)
    low, demand, cap = [0] * n, [0] * n, [0] * n
    for at in range(n - 1, -1, -1):
        pool, mine = pools.pools[at], is_on & (pools.of_vm == at)
        children = [child for child in range(n) if pools.pools[child].parent == at]
        below = int(wants.limit[mine].sum()) + sum(cap[child] for child in children)
        held = int(wants.reservation[mine].sum()) + sum(low[child] for child in children)
        used = int(np.maximum(wants.demand, wants.reservation)[mine].sum())
        used += sum(demand[child] for child in children)
        cap[at] = min(pool.limit, below)
        low[at] = min(max(pool.reservation, held), cap[at])
        demand[at] = min(max(used, low[at]), cap[at])
    return low, demand, cap


def _joined(of_vms: Ints, of_pools: Sequence[int]) -> Ints:
    return np.concatenate([of_vms, np.array(of_pools, np.int64)])


def _in_two_steps(total: int, shares: Ints, low: Ints, demand: Ints, cap: Ints) -> Ints:
    """Shares up to demand first; what is left over, up to the caps."""
    idle = np.zeros(len(shares))
    first, both = np.zeros(len(shares), np.int64), np.zeros(len(shares), np.int64)
    divide(total, 1.0, shares, idle, low, np.clip(demand, low, cap), first)
    divide(total, 1.0, shares, idle, first, cap, both)
    return both
