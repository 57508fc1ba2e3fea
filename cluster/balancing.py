"""PURE: load balancing in the manner of DRS: greedy single moves, while they pay.

At each interval the move that lowers the imbalance most is ordered, then the next best, until the
imbalance is below what the level tolerates, no move pays, or as many were ordered as there are
hosts. What a move gains counts for one interval, until the next look; it costs the VM's load on two
hosts while it is copied. Rules that are broken are mended first, whatever it costs.

Candidates are VMs of the hosts with most load, and the hosts with least: a better move would have
to be between hosts nearer to the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster import demand, flights, placement
from cluster.decisions import Plan, Sight
from cluster.demand import Floats, Load
from cluster.state import NOWHERE, ON, ClusterState
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
    """A VM to another host, and the imbalance once it is there."""

    vm: VmId
    target: HostId
    imbalance: float


def next_after(sight: Sight) -> int:
    """The next epoch at which balancing looks, if it is on; intervals are rounded up to epochs."""
    options = sight.scenario.balancing
    if options.level == 0:
        return sight.scenario.duration // sight.scenario.epoch
    return next_look(sight)


def next_look(sight: Sight) -> int:
    """The next epoch that begins an interval."""
    every = -(-sight.scenario.balancing.interval // sight.scenario.epoch)
    return sight.epoch - sight.epoch % every + every


def is_due(sight: Sight) -> bool:
    """Whether balancing looks at the start of this epoch."""
    before = Sight(sight.population, sight.scenario, sight.epoch - 1)
    return sight.epoch > 0 and next_after(before) == sight.epoch


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
    refused: set[VmId] = set()
    limit = tolerated(level, len(open_hosts))
    for _ in range(len(open_hosts)):
        load = demand.measure(made.after, sight)
        before = demand.imbalance(load.loads[:, open_hosts])
        move = None if before <= limit else best_move(made.after, load, refused)
        if move is None or not pays(made.after, sight, load, move, before):
            break
        if flights.why_not(made.after, sight, move.vm, move.target) is not None:
            refused.add(move.vm)
            continue
        numbers = {"imbalance": before, "imbalance_after": move.imbalance, "tolerated": limit}
        out = flights.set_out(made.after, sight, move.vm, move.target, WHY, numbers)
        made = made.then(out)
    return made


def best_move(now: ClusterState, load: Load, refused: set[VmId]) -> Move | None:
    """The move between the most and the least loaded hosts that lowers the imbalance most.

    Ties go to the lower VM id, then to the lower host id. None where none lowers it.
    """
    open_hosts = np.flatnonzero(now.power == ON)
    sources, targets = _ends(load.loads, open_hosts)
    where = now.whereabouts()
    flying = [flight.vm for flight in now.flights]
    vms = np.flatnonzero(np.isin(where, sources))
    vms = vms[~np.isin(vms, [*flying, *refused])]
    if not len(vms):
        return None
    spread = _after(load, open_hosts, where, vms, targets)
    spread[~_possible(now, where, vms, targets)] = np.inf
    at = int(np.argmin(spread))
    vm, target = vms[at // len(targets)], targets[at % len(targets)]
    found = Move(VmId(int(vm)), HostId(int(target)), float(np.sqrt(max(spread.flat[at], 0.0))))
    before = demand.imbalance(load.loads[:, open_hosts])
    return found if found.imbalance < before else None


def _ends(loads: Floats, open_hosts: Any) -> tuple[Any, Any]:
    """Open hosts with most load and with least, of both resources together, in id order."""
    beyond = np.sum(loads[:, open_hosts], axis=0)
    order = open_hosts[np.argsort(-beyond, kind="stable")]
    return np.sort(order[:CANDIDATES]), np.sort(order[-CANDIDATES:])


def _after(load: Load, open_hosts: Any, where: Any, vms: Any, targets: Any) -> Floats:
    """(n_vms, n_targets) sum of variances with each VM at each target."""
    loads, n = load.loads, len(open_hosts)
    squares = np.sum(loads[:, open_hosts] ** 2)
    sums = np.sum(loads[:, open_hosts], axis=1)
    source = where[vms]
    off = load.demand[:, vms] / load.capacity[:, source]
    to = load.demand[:, vms, None] / load.capacity[:, None, targets]
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


def pays(now: ClusterState, sight: Sight, load: Load, move: Move, before: float) -> bool:
    """Whether the imbalance that a move takes away, for an interval, outweighs its cost: the VM's
    load on two hosts while it is sent once."""
    source = int(now.whereabouts()[move.vm])
    copying_s = int(now.allocated[move.vm]) * PAGE_SIZE / sight.scenario.migration.bandwidth
    part = float(np.max(load.demand[:, move.vm] / load.capacity[:, source]))
    gain = (before - move.imbalance) * sight.scenario.balancing.interval / 1000
    return gain > copying_s * part


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
