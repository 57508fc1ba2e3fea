"""PURE: load balancing in the manner of DRS: greedy single moves, while they pay.

At each interval the move that lowers the imbalance most is ordered, then the next best, until the
imbalance is below what the level tolerates, no move pays, or as many were ordered as there are
hosts. What a move gains counts for one interval, until the next look; it costs the VM's load on two
hosts while it is copied. Rules that are broken are mended first, whatever it costs.

Where placement goes by content, loads are those of what VMs consume together, at each host that
they may go to. A move gains the imbalance that it takes away and the mean load that it saves, by
the weight of placement; it must not leave more imbalance than there was, or than is tolerated.

Candidates are VMs of the hosts with most load, and the hosts with least: a better move would have
to be between hosts nearer to the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cluster import sketches
from cluster.policy import demand, flights, placement
from cluster.policy.decisions import Plan, Sight
from cluster.policy.demand import MEMORY, Floats, Load, Shared
from cluster.policy.state import NOWHERE, ON, ClusterState
from hostsim.units import PAGE_SIZE, HostId, VmId

CANDIDATES = 8
"""Hosts at either end that are looked at."""
TOLERATED = 0.1
"""DRS's scale: level 5 tolerates no imbalance, each level below this much more over the square root
of the number of hosts (VMware KB 1007485: priority = 6 - ceil(imbalance / 0.1 x sqrt(hosts)))."""
MANDATORY = 1
"""The level that only keeps rules."""
WHY, WHY_RULE = "balancing", "rule"


@dataclass(frozen=True, slots=True)
class Move:
    """A VM to another host, the imbalance once it is there, and what that is worth.

    lost, won: bytes that it has in common with the VMs of its host, and of the target.
    """

    vm: VmId
    target: HostId
    imbalance: float
    gain: float
    lost: int = 0
    won: int = 0


class Terms(NamedTuple):
    """By what moves are judged: the imbalance that is tolerated, the part of idle memory that is
    demand, and the weight of content."""

    limit: float
    idle: float
    weight: float


BLIND = Terms(limit=0.0, idle=0.0, weight=0.0)
"""Only imbalance counts."""


def next_after(sight: Sight) -> int:
    """The next epoch at which balancing looks, if it is on."""
    options = sight.scenario.balancing
    if options.level == 0:
        return sight.scenario.duration // sight.scenario.epoch
    return sight.next_look(options.interval)


def is_due(sight: Sight) -> bool:
    """Whether balancing looks at the start of this epoch."""
    options = sight.scenario.balancing
    return options.level > 0 and sight.looks(options.interval)


def tolerated(level: int, n_hosts: int) -> float:
    """The imbalance that a level leaves alone."""
    return float((5 - level) * TOLERATED / np.sqrt(n_hosts))


def plan(now: ClusterState, sight: Sight) -> Plan:
    """Moves that mend rules, then those that balance."""
    made = Plan((), now, ())
    if not is_due(sight):
        return made
    made = made.then(_mend(now, sight))
    open_hosts = np.flatnonzero(now.power == ON)
    level = sight.scenario.balancing.level
    if level == MANDATORY or len(open_hosts) < 2:
        return made
    return made.then(_balance(made.after, sight, tolerated(level, len(open_hosts))))


def _balance(now: ClusterState, sight: Sight, limit: float) -> Plan:
    """One move after the other, as long as they are worth it."""
    made = Plan((), now, ())
    open_hosts = np.flatnonzero(now.power == ON)
    refused: set[VmId] = set()
    weight = sight.scenario.placement.content / 1000
    shared = _shared(now) if weight else None
    terms = Terms(limit, sight.scenario.balancing.idle / 1000, weight)
    for _ in range(len(open_hosts)):
        load = demand.measure(made.after, sight, shared)
        before = demand.imbalance(load.loads[:, open_hosts])
        is_enough = before <= limit and shared is None
        move = None if is_enough else best_move(made.after, load, refused, terms)
        if move is None or not pays(made.after, sight, load, move):
            break
        if flights.why_not(made.after, sight, move.vm, move.target) is not None:
            refused.add(move.vm)
            continue
        numbers = {"imbalance": before, "imbalance_after": move.imbalance, "tolerated": limit}
        if shared is not None:
            numbers |= {"common_before_bytes": move.lost, "common_bytes": move.won}
            source = int(made.after.host_of[move.vm])
            shared = _moved(shared, source, move)
        out = flights.set_out(made.after, sight, move.vm, move.target, WHY, numbers)
        made = made.then(out)
    return made


def _shared(now: ClusterState) -> Shared:
    """What VMs have in common where they are, or go. By itself a VM would consume what it does, and
    its part of what is saved where it was measured, but no more than it has in memory."""
    table, n_hosts = now.sketches, len(now.power)
    there = np.where(now.hosts.mixes[now.host_of], now.host_of, NOWHERE)
    counts = sketches.held(table, now.holds, there, n_hosts)
    its_part = sketches.saved_of(table, now.holds, there, counts)
    most = np.maximum(now.allocated * PAGE_SIZE, now.consumed)
    counts = sketches.held(table, now.holds, now.whereabouts(), n_hosts)
    saved = np.where(now.hosts.mixes, sketches.saved(table, counts), 0)
    return Shared(np.minimum(now.consumed + its_part, most), saved)


def _moved(shared: Shared, source: int, move: Move) -> Shared:
    """The same once a VM has gone."""
    saved = shared.saved.copy()
    saved[source] -= move.lost
    saved[move.target] += move.won
    return Shared(shared.alone, saved)


def best_move(
    now: ClusterState, load: Load, refused: set[VmId], terms: Terms = BLIND
) -> Move | None:
    """The move between the most and the least loaded hosts that gains most.

    Ties go to the lower VM id, then to the lower host id. None where none gains anything.
    """
    open_hosts = np.flatnonzero(now.power == ON)
    sources, targets = _ends(load.loads, open_hosts)
    where = now.whereabouts()
    flying = [flight.vm for flight in now.flights]
    vms = np.flatnonzero(np.isin(where, sources))
    vms = vms[~np.isin(vms, [*flying, *refused])]
    if not len(vms):
        return None
    lost, won = np.zeros(len(vms), np.int64), np.zeros((len(vms), len(targets)), np.int64)
    if terms.weight:
        lost, won = _exchanged(now, where, vms, targets)
    capacity, demanded = load.capacity, load.demand
    off = demanded[:, vms].copy()
    off[MEMORY] -= lost * terms.idle
    to = np.repeat(demanded[:, vms, None], len(targets), axis=2)
    to[MEMORY] -= won * terms.idle
    off, to = off / capacity[:, where[vms]], to / capacity[:, None, targets]
    spread = _after(load, open_hosts, where[vms], targets, off, to)
    imbalance = np.sqrt(np.maximum(spread, 0.0))
    before = demand.imbalance(load.loads[:, open_hosts])
    saves = (off[MEMORY][:, None] - to[MEMORY]) / len(open_hosts)
    gain = (1 - terms.weight) * (before - imbalance) + terms.weight * saves
    is_wanted = imbalance <= max(before, terms.limit)
    gain[~(is_wanted & _possible(now, where, vms, targets))] = -np.inf
    at = int(np.argmax(gain))
    if gain.flat[at] <= 0:
        return None
    row, column = divmod(at, len(targets))
    numbers = float(imbalance.flat[at]), float(gain.flat[at]), int(lost[row]), int(won.flat[at])
    return Move(VmId(int(vms[row])), HostId(int(targets[column])), *numbers)


def _exchanged(now: ClusterState, where: Any, vms: Any, targets: Any) -> tuple[Any, Any]:
    """(n_vms,), (n_vms, n_targets) bytes that VMs have in common with those where they are, and
    with those of each target: none where no VM may share with another."""
    ends = np.union1d(where[vms], targets)
    place = np.full(len(now.power), NOWHERE)
    place[ends] = np.arange(len(ends))
    here = np.where(where >= 0, place[where], NOWHERE)
    counts = sketches.held(now.sketches, now.holds, here, len(ends))
    lost, won = sketches.exchanged(now.sketches, now.holds, here, counts, vms, place[targets])
    return lost * now.hosts.mixes[where[vms]], won * now.hosts.mixes[targets]


def _ends(loads: Floats, open_hosts: Any) -> tuple[Any, Any]:
    """Open hosts with most load and with least, of both resources together, in id order."""
    beyond = np.sum(loads[:, open_hosts], axis=0)
    order = open_hosts[np.argsort(-beyond, kind="stable")]
    return np.sort(order[:CANDIDATES]), np.sort(order[-CANDIDATES:])


def _after(load: Load, open_hosts: Any, source: Any, targets: Any, off: Any, to: Any) -> Floats:
    """(n_vms, n_targets) sum of variances with each VM at each target. source (n_vms,): its host.
    off (2, n_vms), to (2, n_vms, n_targets): the load that it takes from the one to the other."""
    loads, n = load.loads, len(open_hosts)
    squares = np.sum(loads[:, open_hosts] ** 2)
    sums = np.sum(loads[:, open_hosts], axis=1)
    at_source, at_target = loads[:, source], loads[:, None, targets]
    squares = (
        squares
        + np.sum((at_source - off) ** 2 - at_source**2, axis=0)[:, None]
        + np.sum((at_target + to) ** 2 - at_target**2, axis=0)
    )
    changed = np.moveaxis(sums[:, None, None] - off[:, :, None] + to, 0, -1)
    spread: Floats = demand.spread_of(squares, changed, n)
    return spread


def _possible(now: ClusterState, where: Any, vms: Any, targets: Any) -> Any:
    """(n_vms, n_targets) whether admission, free frames and rules let a VM go there."""
    promised = now.promised(now.reservation + now.vms.overhead)[targets]
    swappable = now.promised(now.vms.size - now.reservation)[targets]
    needs = (now.reservation + now.vms.overhead)[vms, None]
    swap_needs = (now.vms.size - now.reservation)[vms, None]
    possible = where[vms, None] != targets
    possible &= promised + needs <= now.hosts.reservable[targets]
    possible &= swappable + swap_needs <= now.hosts.swap_space[targets]
    possible &= now.allocated[vms, None] <= now.spare[targets]
    for at, vm in enumerate(vms.tolist()):
        if vm in now.rules.of_vm:
            possible[at] &= now.rules.allowed(where, VmId(vm), len(now.power))[targets]
    return possible


def pays(now: ClusterState, sight: Sight, load: Load, move: Move) -> bool:
    """Whether what a move gains, for an interval, outweighs its cost: the VM's load on two hosts
    while it is sent once."""
    source = int(now.whereabouts()[move.vm])
    copying_s = int(now.allocated[move.vm]) * PAGE_SIZE / sight.scenario.migration.bandwidth
    part = float(np.max(load.demand[:, move.vm] / load.capacity[:, source]))
    return move.gain * sight.scenario.balancing.interval / 1000 > copying_s * part


def _mend(now: ClusterState, sight: Sight) -> Plan:
    """VMs that break a rule where they are go where they break none, to the least load there."""
    made = Plan((), now, ())
    for vm in sorted(now.rules.of_vm):
        where = made.after.whereabouts()
        if where[vm] == NOWHERE:
            continue
        allowed = now.rules.allowed(where, vm, len(now.power))
        if allowed[where[vm]] or not allowed.any():
            continue
        made = made.then(send(made.after, sight, vm, allowed, WHY_RULE))
    return made


def send(now: ClusterState, sight: Sight, vm: VmId, allowed: Any, why: str) -> Plan:
    """`vm` sets out for the host with least load of those allowed and possible, if there is one."""
    load = demand.measure(now, sight)
    taken = placement.taken(now, sight.scenario.placement)
    beyond = np.max(load.loads, axis=0)
    for host in np.argsort(beyond, kind="stable").tolist():
        target = HostId(host)
        if allowed[host] and flights.why_not(now, sight, vm, target, taken) is None:
            return flights.set_out(now, sight, vm, target, why, {"load": float(beyond[host])})
    return Plan((), now, ())
