"""PURE: what is due at the start of an epoch, and the orders that follow from it.

The agenda is the scenario in order of time: planned arrivals and departures, and events. Whatever
falls inside an epoch acts at the start of the next one. Departures come first, so that arrivals
find the room; then the rest in order of time, ties to VMs before hosts and to the lower id. What
one VM does keeps its order: arrivals and departures before events of the same time, and those as in
the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cluster import placement, state
from cluster.messages import Order, PowerOff, PowerOn, Reset, SetHost, SetVm
from cluster.placement import Taken
from cluster.population import Population
from cluster.scenario import Event, EventValues, Scenario
from cluster.state import NOWHERE, ClusterState
from hostsim.spec import VmSpec
from hostsim.units import MIB, HostId, VmId

POWER_OFF, SET, RESET, POWER_ON = "power_off", "set", "reset", "power_on"


@dataclass(frozen=True, slots=True)
class Due:
    """Something that is due about a VM."""

    epoch: int
    at_ms: int
    action: str
    vm: VmId
    values: EventValues | None = None
    planned: bool = True
    """The VM's own start or stop, not an event."""


@dataclass(frozen=True, slots=True)
class HostDue:
    """A host's new idle-memory tax, in permille, that is due."""

    epoch: int
    at_ms: int
    host: HostId
    idle_tax: int


@dataclass(frozen=True, slots=True)
class Agenda:
    """Everything due in a run, in order; `epochs` are those of `due`, for look-ups."""

    due: tuple[Due | HostDue, ...]
    epochs: state.Ints

    def at(self, epoch: int) -> Sequence[Due | HostDue]:
        """What is due at the start of `epoch`."""
        first, last = np.searchsorted(self.epochs, [epoch, epoch + 1])
        return self.due[first:last]

    def next_after(self, epoch: int, last: int) -> int:
        """The next epoch after `epoch` at which something is due, `last` at most."""
        at = int(np.searchsorted(self.epochs, epoch, side="right"))
        return min(last, int(self.epochs[at])) if at < len(self.epochs) else last


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the run's history: what was decided, about which VM, on which numbers."""

    at_ms: int
    kind: str
    vm: VmId | None
    """None: it is about `host` itself."""
    host: HostId | None = None
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders of an epoch, the state that they lead to, and why."""

    orders: tuple[Order, ...]
    after: ClusterState
    decisions: tuple[Decision, ...]


def agenda(population: Population, scenario: Scenario) -> Agenda:
    """Arrivals, departures and events of a scenario in the order in which they act."""
    last = scenario.duration // scenario.epoch
    due: list[Due | HostDue] = []
    stops: dict[VmId, Due] = {}
    for vm in population.vms:
        if vm.start_ms is None:
            continue
        starts = -(-vm.start_ms // scenario.epoch)
        due.append(Due(starts, vm.start_ms, POWER_ON, vm.spec.vm))
        if vm.stop_ms is not None:  # who comes stays for an epoch at least
            at = max(-(-vm.stop_ms // scenario.epoch), starts + 1)
            stops[vm.spec.vm] = Due(at, vm.stop_ms, POWER_OFF, vm.spec.vm)
    due += stops.values()
    vms = {vm.spec.name: vm.spec.vm for vm in population.vms}
    hosts = {host.name: host.host for host in population.hosts}
    for event in scenario.events:
        if event.target in vms:
            due.append(_of_event(event, vms[event.target], stops, scenario.epoch))
        else:
            due.append(_of_host_event(event, hosts[event.target], scenario.epoch))
    due.sort(key=_place)
    due = _departures_first([one for one in due if one.epoch < last])
    return Agenda(tuple(due), np.array([one.epoch for one in due], np.int64))


def _of_event(event: Event, vm: VmId, stops: Mapping[VmId, Due], epoch_ms: int) -> Due:
    epoch = -(-event.at // epoch_ms)
    if vm in stops and event.at >= stops[vm].at_ms:  # not before a departure that was put off
        epoch = max(epoch, stops[vm].epoch)
    return Due(epoch, event.at, event.action, vm, event.values, planned=False)


def _of_host_event(event: Event, host: HostId, epoch_ms: int) -> HostDue:
    assert event.values is not None and event.values.idle_tax is not None, "checked on loading"
    return HostDue(-(-event.at // epoch_ms), event.at, host, event.values.idle_tax)


def _place(due: Due | HostDue) -> tuple[int, ...]:
    """By time; then VMs, then hosts; by id; what a VM planned before its events."""
    if isinstance(due, HostDue):
        return due.epoch, due.at_ms, 1, due.host
    return due.epoch, due.at_ms, 0, due.vm, not due.planned


def _departures_first(due: list[Due | HostDue]) -> list[Due | HostDue]:
    """Within an epoch, a VM's first act goes before others' if it is to leave."""
    seen: set[tuple[int, VmId]] = set()
    keys = []
    for one in due:
        leaves = False
        if isinstance(one, Due):
            leaves = one.action == POWER_OFF and (one.epoch, one.vm) not in seen
            seen.add((one.epoch, one.vm))
        keys.append((one.epoch, 0 if leaves else 1))
    order = sorted(range(len(due)), key=lambda at: keys[at])
    return [due[at] for at in order]


def plan(
    now: ClusterState,
    due: Sequence[Due | HostDue],
    population: Population,
    scenario: Scenario,
    epoch: int,
) -> Plan:
    """Turn what is due into orders, one after the other, each seeing what the last one did."""
    at_ms = epoch * scenario.epoch
    orders: list[Order] = []
    decisions: list[Decision] = []
    now = state.copy(now)
    taken: Taken | None = None
    for one in due:
        order: Order | None
        if isinstance(one, HostDue):
            order, decision = _set_host(one, at_ms)
        elif one.planned and one.action == POWER_OFF and now.host_of[one.vm] == NOWHERE:
            continue  # it was refused, or an event switched it off: nothing is left to decide
        else:
            if taken is None and one.action == POWER_ON:
                taken = placement.taken(now, scenario.placement)
            order, decision = _decide(now, taken, one, population, scenario, at_ms)
        decisions.append(decision)
        if order is not None:
            orders.append(order)
            state.carry_out(now, order)
            if isinstance(order, PowerOn) and taken is not None:  # many come at one time
                taken = taken.with_one(now, scenario.placement, order.vm.vm)
            else:
                taken = None
    return Plan(tuple(orders), now, tuple(decisions))


def _set_host(due: HostDue, at_ms: int) -> tuple[Order, Decision]:
    facts = {"idle_tax_permille": due.idle_tax}
    return SetHost(due.host, due.idle_tax), Decision(at_ms, SET, None, due.host, facts=facts)


def _decide(
    now: ClusterState,
    taken: Taken | None,
    due: Due,
    population: Population,
    scenario: Scenario,
    at_ms: int,
) -> tuple[Order | None, Decision]:
    host = HostId(int(now.host_of[due.vm]))
    told = Decision(at_ms, due.action, due.vm, None if host == NOWHERE else host)
    if due.action == POWER_ON:
        return _power_on(now, taken, due, population, scenario, told)
    if host == NOWHERE:
        return None, replace(told, kind="ignored", reason=f"{due.action}: the VM is not on")
    if due.action == POWER_OFF:
        return PowerOff(host, due.vm), replace(told, facts={"planned": due.planned})
    if due.action == RESET:
        return Reset(host, due.vm), told
    return _set(now, due, host, told)


def _power_on(
    now: ClusterState,
    taken: Taken | None,
    due: Due,
    population: Population,
    scenario: Scenario,
    told: Decision,
) -> tuple[Order | None, Decision]:
    if told.host is not None:
        return None, replace(told, kind="ignored", reason="power_on: the VM is on already")
    choice = placement.place(now, scenario.placement, due.vm, taken)
    facts: dict[str, Any] = {
        "memory_bytes": int(now.vms.size[due.vm]),
        "requested_s": due.at_ms / 1000,
        "hosts_left": {reason: n for reason, n in choice.left.items()},
    }
    if choice.host is None:
        return None, replace(told, kind="refused", reason=choice.reason, facts=facts)
    load = placement.load(now, scenario.placement, due.vm, taken)[choice.host]
    facts |= {"policy": scenario.placement.policy, "by": scenario.placement.by}
    facts |= {"taken_bytes": int(load), "host_bytes": int(now.hosts.memory[choice.host])}
    order = PowerOn(choice.host, _as_set(now, population.vms[due.vm].spec))
    return order, replace(told, host=choice.host, facts=facts)


def _as_set(now: ClusterState, vm: VmSpec) -> VmSpec:
    """The VM with what events have changed about it."""
    asked = {name: int(getattr(now, name)[vm.vm]) for name in state.SETTINGS}
    config = vm.config
    if asked == {
        "reservation": config.reservation,
        "limit": config.limit or config.memory,
        "shares": config.share_count,
    }:
        return vm
    return replace(vm, config=config.model_copy(update=asked))


def _set(
    now: ClusterState, due: Due, host: HostId, told: Decision
) -> tuple[Order | None, Decision]:
    values = due.values or EventValues()
    facts = {
        f"{name}_bytes" if name != "shares" else name: value
        for name, value in values.model_dump(exclude_none=True).items()
    }
    told = replace(told, facts=facts)
    refused = _why_not_set(now, due.vm, host, values)
    if refused is not None:
        return None, replace(told, kind="refused_set", reason=refused)
    shares = values.shares
    if isinstance(shares, str):
        per_mib = {"low": 5, "normal": 10, "high": 20}[shares]
        shares = per_mib * (int(now.vms.size[due.vm]) // MIB)
    return SetVm(host, due.vm, values.reservation, values.limit, shares), told


def _why_not_set(now: ClusterState, vm: VmId, host: HostId, values: EventValues) -> str | None:
    """Admission control for a running VM. Scenarios are sound only if all that they set is done."""
    limit = int(now.limit[vm]) if values.limit is None else values.limit
    before = int(now.reservation[vm])
    reservation = before if values.reservation is None else values.reservation
    if reservation > limit:
        return "the reservation would exceed the limit"
    promised = now.per_host(now.reservation + now.vms.overhead)[host] + reservation - before
    if promised > now.hosts.reservable[host]:
        return "the host has not the memory reserved"
    swappable = now.per_host(now.vms.size - now.reservation)[host] + before - reservation
    if swappable > now.hosts.swap_space[host]:
        return "the host has not the swap space"
    return None
