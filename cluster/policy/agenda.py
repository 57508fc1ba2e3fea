"""PURE: what is due at the start of which epoch, known before a run begins.

The agenda is the scenario in order of time: planned arrivals and departures, and events. Whatever
falls inside an epoch acts at the start of the next one. Departures come first, so that arrivals
find the room; then the rest in order of time, ties to VMs before hosts and to the lower id. What
one VM does keeps its order: arrivals and departures before events of the same time, and those as in
the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.policy import state
from cluster.population import Population
from cluster.scenario import Event, EventValues, Scenario
from hostsim.units import HostId, VmId

POWER_OFF, SET, RESET, POWER_ON, MIGRATE = "power_off", "set", "reset", "power_on", "migrate"
FAIL, MAINTENANCE = "fail", "maintenance"
"""What happens to VMs and hosts: the actions of events."""


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
    """Something that is due about a host."""

    epoch: int
    at_ms: int
    action: str
    host: HostId
    values: EventValues | None = None


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
            due += _of_host_event(event, hosts[event.target], scenario.epoch)
    for fault in population.outages:
        due += _outage(fault.host, fault.at_ms, fault.repair_ms, scenario.epoch)
    due.sort(key=_place)
    due = _departures_first([one for one in due if one.epoch < last])
    return Agenda(tuple(due), np.array([one.epoch for one in due], np.int64))


def _of_event(event: Event, vm: VmId, stops: Mapping[VmId, Due], epoch_ms: int) -> Due:
    epoch = -(-event.at // epoch_ms)
    if vm in stops and event.at >= stops[vm].at_ms:  # not before a departure that was put off
        epoch = max(epoch, stops[vm].epoch)
    return Due(epoch, event.at, event.action, vm, event.values, planned=False)


def _of_host_event(event: Event, host: HostId, epoch_ms: int) -> list[HostDue]:
    epoch = -(-event.at // epoch_ms)
    if event.action == FAIL:
        repair_ms = None if event.values is None else event.values.repair
        return _outage(host, event.at, repair_ms, epoch_ms)
    found = [HostDue(epoch, event.at, event.action, host, event.values)]
    if event.values is not None and event.values.repair is not None:
        found += _again(host, event.at, event.values.repair, epoch_ms)
    return found


def _outage(host: HostId, at_ms: int, repair_ms: int | None, epoch_ms: int) -> list[HostDue]:
    """A host fails, and is repaired unless that never happens."""
    found = [HostDue(-(-at_ms // epoch_ms), at_ms, FAIL, host)]
    return found if repair_ms is None else found + _again(host, at_ms, repair_ms, epoch_ms)


def _again(host: HostId, at_ms: int, after_ms: int, epoch_ms: int) -> list[HostDue]:
    """A host is on again: an epoch later at least than it went."""
    epoch = max(-(-(at_ms + after_ms) // epoch_ms), -(-at_ms // epoch_ms) + 1)
    return [HostDue(epoch, at_ms + after_ms, POWER_ON, host)]


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
