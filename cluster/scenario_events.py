"""Events checked against the VMs and hosts they name, in the order in which they will happen.

Each VM's planned life is played through: it arrives and leaves as its group or the trace says, and
events switch it in between. Whether it finds a host is the run's matter; that the plan itself makes
sense is checked here. Events at equal times happen in the file's order, after arrivals at that
time and after departures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from pydantic import ValidationError

from cluster.scenario import Event, VmGroup
from cluster.scenario_checks import Parts
from cluster.scenario_problems import closest, from_validation, listed
from cluster.scenario_text import ms_text
from cluster.yaml_input import Problem, shown
from hostsim.config import VmConfig

_HOST_KEYS = ("idle_tax",)
_VM_KEYS = ("reservation", "limit", "shares")
"""Which values are whose."""
_HOST_ACTIONS = ("set", "fail", "maintenance", "power_on")
_VM_ACTIONS = ("power_on", "power_off", "reset", "set", "migrate")


@dataclass(slots=True)
class _Life:
    """A VM as planned; `start_ms` is None when only events start it.

    switched: on or off as the last event left it, None before any; switched_ms: when.
    """

    config: VmConfig
    start_ms: int | None
    stop_ms: int | None
    switched: bool | None = None
    switched_ms: int = -1

    def is_on(self, at_ms: int) -> bool:
        """Whether the plan has it powered on at `at_ms`, before the events of that time."""
        on, since_ms = False, -1
        if self.start_ms is not None and self.start_ms <= at_ms:
            on, since_ms = True, self.start_ms
        if self.stop_ms is not None and self.stop_ms <= at_ms:
            on, since_ms = False, self.stop_ms
        return on if self.switched is None or self.switched_ms < since_ms else self.switched


def check(parts: Parts) -> Iterator[Problem]:
    """Problems of `events`."""
    lives: dict[str, _Life | None] = {}
    complete = parts.whole("vms", "trace", "hosts") and (
        parts.scenario.trace is None or parts.trace_vms is not None
    )
    for at, event in sorted(parts.items("events"), key=lambda item: (item[1].at, item[0])):
        if parts.whole("duration") and event.at >= parts.scenario.duration:
            why = f"must come before the end of the run ({ms_text(parts.scenario.duration)})"
            yield parts.problem("events", at, "at", why=why)
        is_vm, is_host = event.target in parts.vm_names, event.target in parts.host_names
        if is_vm and is_host:
            why = f"is a VM ({parts.vm_names[event.target]}) and a host "
            why += f"({parts.host_names[event.target]}): an event needs a name of one thing only"
            yield parts.problem("events", at, "target", why=why)
        elif is_host:
            yield from _check_host(parts, at, event)
        elif is_vm:
            if event.action not in _VM_ACTIONS:
                why = f"{shown(event.target)} is a VM: allowed for VMs: {listed(_VM_ACTIONS)}"
                yield parts.problem("events", at, "action", why=why)
                continue
            if event.action == "migrate":
                yield from _check_target(parts, at, event)
            else:
                yield from _of_others(parts, at, event, "VM", _VM_KEYS)
            if event.target not in lives:
                lives[event.target] = _life(parts, event.target)
            life = lives[event.target]
            if life is not None:
                yield from _play(parts, at, event, life)
        elif complete:
            known = [*islice(parts.vm_names, 10_000), *islice(parts.host_names, 10_000)]
            why = f"is no VM and no host: {closest(event.target, known)}targets are names of VMs "
            why += "and hosts, such as web, or web-3 of a group with a count"
            yield parts.problem("events", at, "target", why=why)


def _check_target(parts: Parts, at: int, event: Event) -> Iterator[Problem]:
    """A VM migrates to a host that there is."""
    assert event.values is not None and event.values.host is not None
    host = event.values.host
    if host not in parts.host_names and parts.whole("hosts"):
        known = list(islice(parts.host_names, 10_000))
        why = f"is no host: {closest(host, known)}known: {listed(known)}"
        yield parts.problem("events", at, "values", "host", why=why)


def _check_host(parts: Parts, at: int, event: Event) -> Iterator[Problem]:
    if event.action not in _HOST_ACTIONS:
        why = f"{shown(event.target)} is a host: allowed for hosts: {listed(_HOST_ACTIONS)}"
        yield parts.problem("events", at, "action", why=why)
    elif event.action == "set":
        yield from _of_others(parts, at, event, "host", _HOST_KEYS)


def _of_others(
    parts: Parts, at: int, event: Event, what: str, allowed: tuple[str, ...]
) -> Iterator[Problem]:
    """Values that a target of this kind does not have."""
    values = {} if event.values is None else event.values.model_dump(exclude_none=True)
    for key in values:
        if key not in allowed:
            why = f"{shown(event.target)} is a {what}: allowed for {what}s: {listed(allowed)}"
            yield parts.problem("events", at, "values", key, why=why)


def _play(parts: Parts, at: int, event: Event, life: _Life) -> Iterator[Problem]:
    on = life.is_on(event.at)
    name, when = shown(event.target), ms_text(event.at)
    if event.action == "power_on":
        if on:
            yield parts.problem("events", at, "action", why=f"{name} is on already at {when}")
        elif life.start_ms is not None and event.at < life.start_ms:
            why = f"{name} starts by itself at {ms_text(life.start_ms)}: use `start: never`"
            yield parts.problem("events", at, "action", why=why)
        life.switched, life.switched_ms = True, event.at
        return
    if not on:
        yield parts.problem("events", at, "action", why=f"{name} is off at {when}")
    elif event.action == "power_off":
        life.switched, life.switched_ms = False, event.at
    elif event.action == "set" and event.values is not None:
        changes = event.values.model_dump(exclude_none=True, include=set(_VM_KEYS))
        try:
            life.config = VmConfig.model_validate({**life.config.model_dump(), **changes})
        except ValidationError as error:
            yield from (
                parts.problem("events", at, "values", why=found.message)
                for found in from_validation(error, VmConfig, parts.document, ("events", at))
            )


def _life(parts: Parts, name: str) -> _Life | None:
    source = parts.scenario.trace
    if parts.vm_names[name] == "the trace":
        assert parts.trace is not None and parts.trace_vms is not None and source is not None
        at = int(np.searchsorted(parts.trace.names[parts.trace_vms.index], name))
        memory = int(parts.trace.memory_bytes[parts.trace_vms.index[at]])
        config = VmConfig(memory=memory, reservation=memory * source.reservation // 1000)
        stop_ms = int(parts.trace_vms.stop_ms[at])
        return _Life(config, int(parts.trace_vms.start_ms[at]), None if stop_ms < 0 else stop_ms)
    for at, group in parts.items("vms"):
        if parts.vm_names[name] == f"vms[{at}]":
            return _life_of_member(group, name)
    return None


def _life_of_member(group: VmGroup, name: str) -> _Life:
    fields = {key: getattr(group, key) for key in VmConfig.model_fields}
    config = VmConfig.model_validate(fields)
    if isinstance(group.start, str):
        return _Life(config, None, None)
    number = 1 if group.count == 1 else int(name.rpartition("-")[2])
    later = (number - 1) * group.interval
    return _Life(config, group.start + later, None if group.stop is None else group.stop + later)
