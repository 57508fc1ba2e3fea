"""PURE: which host a VM is powered on at. Filters first (can it?), then a score (how well?).

Filters run in the order of FILTERS; the one that leaves no host is the reason of a refusal. The
score weighs what the policy goes by with what the VM would have in common with those on the host.
Ties go to the host that the policy prefers, then to the lower id. Nothing here looks beyond its
parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster import sketches
from cluster.policy.state import NOWHERE, ON, ClusterState, Ints
from cluster.scenario_policies import Placement
from hostsim.units import HostId, VmId

Bools = Any
"""(n_hosts,) bool: NumPy types comparisons no closer."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What the VMs that are on, or on their way there, take of each host, (n_hosts,) each.

    promised: bytes of reservations and overhead. swappable: bytes of swap space. load: bytes of
    what the placement goes by. vcpus: a number. is_held: (n_atoms, n_hosts) bool, which parts of
    what VMs may have in common are there; of no use unless the placement goes by content.
    """

    promised: Ints
    swappable: Ints
    load: Ints
    vcpus: Ints
    is_held: Bools

    def with_one(self, state: ClusterState, placement: Placement, vm: VmId) -> Taken:
        """The same with one VM more, that has just been powered on in `state`."""
        here, reservation = state.host_of[vm], state.reservation[vm]

        def plus(taken: Ints, more: int) -> Ints:
            found = taken.copy()
            found[here] += more
            return found

        is_held = self.is_held
        if placement.content:
            row = int(state.holds[vm])
            is_held = sketches.with_row(state.sketches, row, is_held, int(here))
        return Taken(
            promised=plus(self.promised, reservation + state.vms.overhead[vm]),
            swappable=plus(self.swappable, state.vms.size[vm] - reservation),
            load=plus(self.load, _of_newcomers(state, placement)[vm]),
            vcpus=plus(self.vcpus, state.vms.vcpus[vm]),
            is_held=is_held,
        )


Filter = Callable[[ClusterState, Taken, Placement, VmId], Bools]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a VM goes, or why nowhere, with the numbers that decided."""

    host: HostId | None
    reason: str | None
    """Name of the filter that left no host; None when one was found."""
    left: dict[str, int]
    """Hosts that each filter left, in the order of filtering."""
    common: int = 0
    """Bytes that the VM would have in common with those on the host."""
    blind: HostId | None = None
    """The host that the policy prefers, whatever VMs hold; None unless placement goes by content"""
    blind_common: int = 0
    """Bytes that it would have in common with those there."""


def taken(state: ClusterState, placement: Placement, contents: bool = True) -> Taken:
    """What is taken of each host now. contents: whether to tell what VMs there hold, too."""
    is_held = np.zeros((len(state.sketches.weights), len(state.power)), np.bool_)
    if placement.content and contents:
        where = state.whereabouts()
        is_held = sketches.held(state.sketches, state.holds, where, len(state.power)) > 0
    by = {"configured": state.vms.size, "consumed": state.consumed, "active": state.active}
    return Taken(
        promised=state.promised(state.reservation + state.vms.overhead),
        swappable=state.promised(state.vms.size - state.reservation),
        load=state.promised(by[placement.by]),
        vcpus=state.promised(state.vms.vcpus),
        is_held=is_held,
    )


def _of_newcomers(state: ClusterState, placement: Placement) -> Ints:
    """(n_vms,) bytes that a VM counts with when it comes."""
    return state.vms.size if placement.by == "configured" else state.vms.footprint


def is_open(state: ClusterState, taken: Taken, placement: Placement, vm: VmId) -> Bools:
    """The host is on, and not about to be emptied."""
    return np.equal(state.power, ON)


def fits_at_all(state: ClusterState, taken: Taken, placement: Placement, vm: VmId) -> Bools:
    """The VM is no larger than the host's memory, all of it: what validation allows can run."""
    return np.greater_equal(state.hosts.memory, state.vms.size[vm])


def has_memory_reservation(
    state: ClusterState, taken: Taken, placement: Placement, vm: VmId
) -> Bools:
    """Admission control [P 6.2]: unreserved machine memory >= reservation + overhead."""
    needed = state.reservation[vm] + state.vms.overhead[vm]
    return np.less_equal(taken.promised + needed, state.hosts.reservable)


def has_swap_space(state: ClusterState, taken: Taken, placement: Placement, vm: VmId) -> Bools:
    """Admission control [P 6.2]: unreserved swap space >= size - reservation."""
    needed = state.vms.size[vm] - state.reservation[vm]
    return np.less_equal(taken.swappable + needed, state.hosts.swap_space)


def reservable_after_failures(
    state: ClusterState, tolerate: int, without: HostId | None = None
) -> int:
    """Bytes that open hosts can be promised once the `tolerate` largest of them have failed."""
    is_left = state.power == ON
    if without is not None:
        is_left = is_left & (np.arange(len(state.power)) != without)
    room = np.sort(state.hosts.reservable[is_left])
    return int(room[: max(len(room) - tolerate, 0)].sum())


def keeps_failover_capacity(
    state: ClusterState, taken: Taken, placement: Placement, vm: VmId
) -> Bools:
    """All reservations still fit once the hosts to tolerate have failed, the largest first."""
    if placement.tolerate == 0:
        return np.True_
    promised = int(taken.promised[state.power == ON].sum())
    promised += int(state.reservation[vm] + state.vms.overhead[vm])
    return np.bool_(promised <= reservable_after_failures(state, placement.tolerate))


def within_overcommit(state: ClusterState, taken: Taken, placement: Placement, vm: VmId) -> Bools:
    """Memory taken, the VM's included, stays within the overcommit limit."""
    if placement.overcommit is None:
        return np.True_
    return np.less_equal(
        load(state, placement, vm, taken), state.hosts.memory * placement.overcommit
    )


def within_cpu_overcommit(
    state: ClusterState, taken: Taken, placement: Placement, vm: VmId
) -> Bools:
    """vCPUs, the VM's included, stay within the limit per CPU."""
    if placement.cpu_overcommit is None:
        return np.True_
    vcpus = taken.vcpus + state.vms.vcpus[vm]
    return np.less_equal(vcpus, state.hosts.cpus * placement.cpu_overcommit)


def keeps_rules(state: ClusterState, taken: Taken, placement: Placement, vm: VmId) -> Bools:
    """No rule is broken there, with the other VMs where they are or go."""
    if vm not in state.rules.of_vm:
        return np.True_
    return state.rules.allowed(state.whereabouts(), vm, len(state.power))


def fits_pool(state: ClusterState, taken: Taken, placement: Placement, vm: VmId) -> Bools:
    """The VM's resource pool has the memory unreserved, or may take it from the pool above."""
    if not state.pools.pools:
        return np.True_
    needs = state.reservation + state.vms.overhead
    promised = np.where(state.host_of != NOWHERE, needs, 0)
    room = int(state.hosts.reservable[state.power == ON].sum())
    return np.bool_(state.pools.admits(promised, vm, int(needs[vm]), room))


FILTERS: dict[str, Filter] = {
    "no host is on": is_open,
    "no host keeps the rules": keeps_rules,
    "its pool has not the memory reserved": fits_pool,
    "larger than any host": fits_at_all,
    "no host has the memory reserved": has_memory_reservation,
    "no host has the swap space": has_swap_space,
    "the room for host failures would be taken": keeps_failover_capacity,
    "no host is within the memory overcommit limit": within_overcommit,
    "no host is within the CPU overcommit limit": within_cpu_overcommit,
}
"""Reason of a refusal -> the filter that it stands for."""


def load(state: ClusterState, placement: Placement, vm: VmId, known: Taken | None = None) -> Ints:
    """(n_hosts,) bytes that count as taken on each host once the VM is there; see `place`."""
    now = taken(state, placement) if known is None else known
    total: Ints = now.load + _of_newcomers(state, placement)[vm]
    return total


def place(
    state: ClusterState, placement: Placement, vm: VmId, known: Taken | None = None
) -> Choice:
    """Choose a host for `vm`. known: what is taken, from those who kept count."""
    now = taken(state, placement) if known is None else known
    possible = np.ones(len(state.hosts.memory), np.bool_)
    left: dict[str, int] = {}
    for reason, passes in FILTERS.items():
        possible &= passes(state, now, placement, vm)
        left[reason] = int(np.count_nonzero(possible))
        if left[reason] == 0:
            return Choice(None, reason, left)
    hosts = np.flatnonzero(possible)
    blind = _blind(state, placement, vm, now)[hosts]
    preferred = HostId(int(hosts[np.argmax(blind)]))
    if not placement.content:
        return Choice(preferred, None, left)
    common = in_common(state, now, vm)
    part = common[hosts] / state.vms.size[vm]
    score = (blind * (1000 - placement.content) + part * placement.content) / 1000
    among = np.flatnonzero(score == score.max())
    host = HostId(int(hosts[among[np.argmax(blind[among])]]))
    return Choice(host, None, left, int(common[host]), preferred, int(common[preferred]))


def _blind(state: ClusterState, placement: Placement, vm: VmId, now: Taken) -> Any:
    """(n_hosts,) how much the policy likes each host, whatever VMs hold: of first-fit its place in
    the list, else how full it is, each as a part."""
    if placement.policy == "first-fit":
        return -np.arange(len(state.power)) / len(state.power)
    fullness = load(state, placement, vm, now) / state.hosts.memory
    return fullness if placement.policy == "best-fit" else -fullness


def in_common(state: ClusterState, now: Taken, vm: VmId) -> Ints:
    """(n_hosts,) bytes that `vm` would have in common with the VMs there: none where no VM may
    share with another."""
    common = sketches.in_common(state.sketches, int(state.holds[vm]), now.is_held)
    return np.where(state.hosts.mixes, common, 0)
