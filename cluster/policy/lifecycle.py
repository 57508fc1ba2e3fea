"""PURE: what is due about VMs and hosts -> orders: power on and off, reset, new values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.messages import Order, PowerOff, PowerOn, Reset, SetVm
from cluster.policy import flights, hosts, placement, state
from cluster.policy.agenda import MIGRATE, POWER_OFF, POWER_ON, RESET, Due, HostDue
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.placement import Choice, Taken
from cluster.policy.state import BOOTING, NOWHERE, ON, STANDBY, ClusterState, Waiting
from cluster.scenario import EventValues
from cluster.scenario_policies import Placement
from hostsim.spec import VmSpec
from hostsim.units import MIB, HostId, VmId

WAITS = "waits"
"""Kind of the decision about a VM that no host takes yet."""


def plan(now: ClusterState, due: Sequence[Due | HostDue], sight: Sight) -> Plan:
    """Turn what is due into orders, one after the other, each seeing what the last one did."""
    orders: list[Order] = []
    decisions: list[Decision] = []
    now = state.copy(now)
    taken: Taken | None = None
    for one in due:
        order: Order | None
        if isinstance(one, HostDue) or one.action == MIGRATE or _waits(now, one):
            made = _of_many(now, one, sight)
            orders += made.orders
            decisions += made.decisions
            now, taken = made.after, None
            continue
        if one.planned and one.action == POWER_OFF and now.host_of[one.vm] == NOWHERE:
            continue  # it was refused, or an event switched it off: nothing is left to decide
        if taken is None and one.action == POWER_ON:
            taken = placement.taken(now, sight.scenario.placement)
        order, decision = _decide(now, taken, one, sight)
        decisions.append(decision)
        if decision.kind == WAITS:
            waiting = Waiting(one.vm, sight.at_ms, sight.at_ms, restart=False)
            now = replace(now, queue=(*now.queue, waiting))
        if order is not None:
            orders.append(order)
            state.carry_out(now, order)
            if isinstance(order, PowerOn) and taken is not None:  # many come at one time
                taken = taken.with_one(now, sight.scenario.placement, order.vm.vm)
            else:
                taken = None
    return Plan(tuple(orders), now, tuple(decisions))


def _waits(now: ClusterState, due: Due) -> bool:
    """Whether a VM that is to leave, or to come, waits for a host."""
    waits = any(one.vm == due.vm for one in now.queue)
    return waits and due.action in (POWER_OFF, POWER_ON)


def _of_many(now: ClusterState, due: Due | HostDue, sight: Sight) -> Plan:
    """What changes more than one VM's place."""
    if isinstance(due, HostDue):
        return hosts.plan(now, due, sight)
    if due.action == MIGRATE:
        return _migrate(now, due, sight)
    told = Decision(sight.at_ms, due.action, due.vm, facts={"planned": due.planned})
    if due.action == POWER_ON:
        return Plan((), now, (replace(told, kind="ignored", reason="power_on: the VM waits"),))
    left = tuple(one for one in now.queue if one.vm != due.vm)
    return Plan((), replace(now, queue=left), (told,))


def _migrate(now: ClusterState, due: Due, sight: Sight) -> Plan:
    """A migration that an event asks for."""
    asked = None if due.values is None else due.values.host
    found = [host.host for host in sight.population.hosts if host.name == asked]
    assert found, "checked on loading"
    reason = flights.why_not(now, sight, due.vm, found[0])
    if reason is None:
        return flights.set_out(now, sight, due.vm, found[0], "event")
    source = HostId(int(now.host_of[due.vm]))
    host = None if source == NOWHERE else source
    told = Decision(sight.at_ms, "refused_migrate", due.vm, host, found[0], reason)
    return Plan((), now, (told,))


def _decide(
    now: ClusterState, taken: Taken | None, due: Due, sight: Sight
) -> tuple[Order | None, Decision]:
    host = HostId(int(now.host_of[due.vm]))
    told = Decision(sight.at_ms, due.action, due.vm, None if host == NOWHERE else host)
    if due.action == POWER_ON:
        return _power_on(now, taken, due, sight, told)
    if host == NOWHERE:
        return None, replace(told, kind="ignored", reason=f"{due.action}: the VM is not on")
    if due.action == POWER_OFF:
        return PowerOff(host, due.vm), replace(told, facts={"planned": due.planned})
    if due.action == RESET:
        return Reset(host, due.vm), told
    return _set(now, due, host, told)


def _power_on(
    now: ClusterState, taken: Taken | None, due: Due, sight: Sight, told: Decision
) -> tuple[Order | None, Decision]:
    if told.host is not None:
        return None, replace(told, kind="ignored", reason="power_on: the VM is on already")
    policy = sight.scenario.placement
    choice = placement.place(now, policy, due.vm, taken)
    facts: dict[str, Any] = {
        "memory_bytes": int(now.vms.size[due.vm]),
        "requested_s": due.at_ms / 1000,
        "hosts_left": {reason: n for reason, n in choice.left.items()},
    }
    if choice.host is None:
        kind = WAITS if _could_wake(now, due, policy) else "refused"
        return None, replace(told, kind=kind, reason=choice.reason, facts=facts)
    load = placement.load(now, policy, due.vm, taken)[choice.host]
    facts |= {"policy": policy.policy, "by": policy.by}
    facts |= {"taken_bytes": int(load), "host_bytes": int(now.hosts.memory[choice.host])}
    facts |= of_content(choice, sight)
    order = PowerOn(choice.host, as_set(now, sight.population.vms[due.vm].spec))
    return order, replace(told, host=choice.host, facts=facts)


def of_content(choice: Choice, sight: Sight) -> dict[str, Any]:
    """What a VM would share where it goes, and at the best host whatever VMs hold."""
    if choice.blind is None:
        return {}
    return {
        "content_permille": sight.scenario.placement.content,
        "common_bytes": choice.common,
        "blind_host": sight.population.hosts[choice.blind].name,
        "blind_common_bytes": choice.blind_common,
    }


def _could_wake(now: ClusterState, due: Due, policy: Placement) -> bool:
    """Whether a host on standby, or one that boots, would take the VM."""
    asleep = np.isin(now.power, (STANDBY, BOOTING))
    awake = replace(now, power=np.where(asleep, ON, now.power))
    return bool(asleep.any()) and placement.place(awake, policy, due.vm).host is not None


def as_set(now: ClusterState, vm: VmSpec) -> VmSpec:
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
