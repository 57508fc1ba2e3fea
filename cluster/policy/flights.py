"""PURE: VMs on their way between hosts: who may set out, how far they come, where they land.

A flight holds frames at its target for all that its VM has in memory; should the VM grow beyond
what is free there, it is given up. The numbers are exact: hosts report free frames at the end of an
epoch, and orders act before anything else happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.messages import Delay, Hold, MoveIn, MoveOut, Order
from cluster.policy import migration, placement, state
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.migration import Flight, Terms, Writing
from cluster.policy.placement import Taken
from cluster.policy.state import NOWHERE, ON, ClusterState
from cluster.scenario_policies import Migration
from hostsim.units import PAGE_SIZE, HostId, VmId

MIGRATE, MIGRATED, FAILED = "migrate", "migrated", "migration_failed"
"""Kinds of decisions."""
OUTGROWN = "the VM has outgrown the target's free frames"


def why_not(
    now: ClusterState, sight: Sight, vm: VmId, target: HostId, taken: Taken | None = None
) -> str | None:
    """Why `vm` cannot set out for `target` now, or None. taken: from those who kept count."""
    source = HostId(int(now.host_of[vm]))
    if source == NOWHERE:
        return "the VM is not on"
    if source == target:
        return "the VM is there already"
    if now.flight_of(vm) is not None:
        return "the VM is on its way already"
    if now.power[target] != ON:
        return "the target is not open to VMs"
    busy = _busy(now)
    for what, host in (("source", source), ("target", target)):
        if busy[host] >= sight.scenario.migration.concurrent:
            return f"the {what} has as many migrations as it may"
    known = taken
    if known is None:
        known = placement.taken(now, sight.scenario.placement, contents=False)
    if not placement.has_memory_reservation(now, known, sight.scenario.placement, vm)[target]:
        return "the target has not the memory reserved"
    if not placement.has_swap_space(now, known, sight.scenario.placement, vm)[target]:
        return "the target has not the swap space"
    if now.spare[target] < now.allocated[vm]:
        return "the target has too few free frames"
    return None


def set_out(
    now: ClusterState,
    sight: Sight,
    vm: VmId,
    target: HostId,
    why: str,
    numbers: Mapping[str, Any] | None = None,
) -> Plan:
    """`vm` begins to move; the caller saw that nothing is in the way. numbers: that decided it."""
    source, pages = HostId(int(now.host_of[vm])), int(now.allocated[vm])
    flight = migration.order(vm, source, target, at_ms=sight.at_ms, memory_pages=pages, why=why)
    order = Hold(target, int(now.held[target]) + pages)
    after = replace(state.obey(now, [order]), flights=_by_vm([*now.flights, flight]))
    facts: dict[str, Any] = {"why": why, "memory_bytes": pages * PAGE_SIZE}
    facts |= {"spare_bytes": int(now.spare[target]) * PAGE_SIZE, **(numbers or {})}
    told = Decision(sight.at_ms, MIGRATE, vm, source, target, facts=facts)
    return Plan((order,), after, (told,))


def is_busy(now: ClusterState, sight: Sight, host: HostId) -> bool:
    """Whether a host has part in as many migrations as it may."""
    return _busy(now)[host] >= sight.scenario.migration.concurrent


def come_on(now: ClusterState, sight: Sight) -> Plan:
    """Flights come as far as the last epoch takes them."""
    if not now.flights:
        return Plan((), now, ())
    span_ns, busy = sight.scenario.epoch * 1_000_000, _busy(now)
    flying = tuple(
        migration.copy(
            flight,
            terms(sight.scenario.migration, busy, flight),
            _writing(now, flight, span_ns),
            span_ns,
        )
        for flight in now.flights
    )
    return Plan((), replace(now, flights=flying), ())


def terms(options: Migration, busy: Counter[HostId], flight: Flight) -> Terms:
    """Flights of a host share its network evenly."""
    sharing = max(busy[flight.source], busy[flight.target])
    return Terms(
        bytes_per_s=max(options.bandwidth // sharing, 1),
        downtime_ns=options.downtime * 1_000_000,
        slow=options.stalled == "slow",
    )


def land(now: ClusterState, sight: Sight) -> Plan:
    """Who is ready goes on at the target; who has stalled, or finds no room there, stays."""
    orders: list[Order] = []
    decisions: list[Decision] = []
    left: list[Flight] = []
    now = state.copy(now)
    for flight in _oldest_first(now.flights):
        reason = flight.stalled
        if flight.downtime_ns is None and reason is None:
            left.append(flight)
            continue
        if now.allocated[flight.vm] > now.spare[flight.target] + now.held[flight.target]:
            reason = OUTGROWN
        if reason is not None:
            made, told = _give_up(sight, flight, reason)
        else:
            lost_ns = flight.slowed_ns + (flight.downtime_ns or 0)
            made = [
                MoveOut(flight.source, flight.vm),
                MoveIn(flight.target, flight.vm, flight.source),
                Delay(flight.target, flight.vm, lost_ns),
            ]
            told = _told(sight, MIGRATED, flight, lost_ns)
        decisions.append(told)
        for order in made:
            orders.append(order)
            state.carry_out(now, order)
    return Plan(tuple(orders), replace(now, flights=_by_vm(left)), tuple(decisions))


def hold(now: ClusterState, sight: Sight) -> Plan:
    """Targets keep as many frames as the VMs on their way there have pages by now."""
    if not now.flights and not now.held.any():
        return Plan((), now, ())
    orders: list[Order] = []
    decisions: list[Decision] = []
    left: list[Flight] = []
    wanted: Counter[HostId] = Counter()
    there_are = now.spare + now.held
    for flight in _oldest_first(now.flights):
        pages = int(now.allocated[flight.vm])
        reason = _why_over(now, flight)
        if reason is None and wanted[flight.target] + pages > there_are[flight.target]:
            reason = OUTGROWN
        if reason is None:
            wanted[flight.target] += pages
            left.append(flight)
            continue
        made, told = _give_up(sight, flight, reason)
        decisions.append(told)
        if now.host_of[flight.vm] == flight.source:  # or nobody is left to feel it
            orders += made
    for host in np.flatnonzero(now.held != [wanted[HostId(h)] for h in range(len(now.held))]):
        orders.append(Hold(HostId(int(host)), wanted[HostId(int(host))]))
    after = replace(state.obey(now, orders), flights=_by_vm(left))
    return Plan(tuple(orders), after, tuple(decisions))


def _oldest_first(flights: Sequence[Flight]) -> list[Flight]:
    """Those that set out first, then the lower VM id."""
    return sorted(flights, key=lambda flight: (flight.ordered_ms, flight.vm))


def _by_vm(flights: Sequence[Flight]) -> tuple[Flight, ...]:
    return tuple(sorted(flights, key=lambda flight: flight.vm))


def _give_up(sight: Sight, flight: Flight, reason: str) -> tuple[list[Order], Decision]:
    """The VM stays, and has been slowed for nothing."""
    lost_ns = flight.slowed_ns
    made: list[Order] = [Delay(flight.source, flight.vm, lost_ns)] if lost_ns else []
    return made, _told(sight, FAILED, flight, lost_ns, reason)


def _busy(now: ClusterState) -> Counter[HostId]:
    """How many flights each host has part in."""
    ends = [host for flight in now.flights for host in (flight.source, flight.target)]
    return Counter(ends)


def _writing(now: ClusterState, flight: Flight, span_ns: int) -> Writing:
    active = max(int(now.active[flight.vm]) // PAGE_SIZE, 1)
    return Writing(int(now.writes[flight.vm]), span_ns, active)


def _why_over(now: ClusterState, flight: Flight) -> str | None:
    """Why a flight cannot go on, or None."""
    if now.host_of[flight.vm] != flight.source:
        return "the VM left its host"
    if now.power[flight.target] != ON:
        return "the target is not open to VMs any more"
    return None


def _told(
    sight: Sight, kind: str, flight: Flight, lost_ns: int, reason: str | None = None
) -> Decision:
    """How a flight ended, with its numbers."""
    facts: dict[str, Any] = {
        "why": flight.why,
        "rounds": flight.rounds,
        "sent_bytes": flight.sent_bytes,
        "duration_s": (flight.elapsed_ns + (flight.downtime_ns or 0)) / 1e9,
        "downtime_s": (flight.downtime_ns or 0) / 1e9,
        "slowed_s": flight.slowed_ns / 1e9,
        "lost_s": lost_ns / 1e9,
    }
    return Decision(sight.at_ms, kind, flight.vm, flight.source, flight.target, reason, facts)
