"""PURE: what is due about hosts -> orders: failures, maintenance, service again, new values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cluster.messages import Order, SetHost, SwitchOff, SwitchOn
from cluster.policy import state
from cluster.policy.agenda import FAIL, MAINTENANCE, POWER_ON, HostDue
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.state import CLEARING, EVACUATING, FAILED, ON, RUNS, ClusterState, Waiting
from hostsim.units import PAGE_SIZE, VmId

HOST_FAILED, VM_FAILED, HOST_ON, HOST_OFF = "host_failed", "vm_failed", "host_on", "host_off"
"""Kinds of decisions."""


def plan(now: ClusterState, due: HostDue, sight: Sight) -> Plan:
    """One thing that happens to a host."""
    if due.action == FAIL:
        return _fail(now, due, sight)
    if due.action == MAINTENANCE:
        return _maintain(now, due, sight)
    if due.action == POWER_ON:
        return _power_on(now, due, sight)
    assert due.values is not None and due.values.idle_tax is not None, "checked on loading"
    facts = {"idle_tax_permille": due.values.idle_tax}
    told = Decision(sight.at_ms, due.action, None, due.host, facts=facts)
    return Plan((SetHost(due.host, due.values.idle_tax),), now, (told,))


def _ignored(now: ClusterState, due: HostDue, sight: Sight, why: str) -> Plan:
    reason = f"{due.action}: the host is {why}"
    return Plan((), now, (Decision(sight.at_ms, "ignored", None, due.host, reason=reason),))


def _fail(now: ClusterState, due: HostDue, sight: Sight) -> Plan:
    """The host is off at once; its VMs are gone, and wait for another host if they may."""
    host, at_ms = due.host, sight.at_ms
    if now.power[host] > RUNS:
        return _ignored(now, due, sight, "off already")
    vms = [VmId(vm) for vm in np.flatnonzero(now.host_of == host).tolist()]
    order: Order = SwitchOff(host)
    after = state.obey(now, [order])
    state.set_power(after, host, FAILED)
    facts = {
        "vms": len(vms),
        "memory_bytes": int(now.hosts.memory[host]),
        "consumed_bytes": int(now.consumed[vms].sum()),
        "allocated_bytes": int(now.allocated[vms].sum()) * PAGE_SIZE,
    }
    told = [Decision(at_ms, HOST_FAILED, None, host, facts=facts)]
    told += [Decision(at_ms, VM_FAILED, vm, host) for vm in vms]
    options = sight.scenario.availability
    if options.restart:
        waiting = [Waiting(vm, at_ms, at_ms + options.delay, restart=True) for vm in vms]
        after = replace(after, queue=(*after.queue, *waiting))
    return Plan((order,), after, tuple(told))


def _maintain(now: ClusterState, due: HostDue, sight: Sight) -> Plan:
    """No VM comes any more, and those that are there leave: see `evacuation`."""
    if now.power[due.host] not in (ON, CLEARING):
        return _ignored(now, due, sight, "not open")
    after = state.copy(now)
    state.set_power(after, due.host, EVACUATING)
    facts = {"vms": int((now.host_of == due.host).sum())}
    told = Decision(sight.at_ms, MAINTENANCE, None, due.host, facts=facts)
    return Plan((), after, (told,))


def _power_on(now: ClusterState, due: HostDue, sight: Sight) -> Plan:
    """Repaired, or maintained: open to VMs again."""
    if now.power[due.host] in (ON, CLEARING):
        return _ignored(now, due, sight, "on already")
    orders: tuple[Order, ...] = () if now.power[due.host] <= RUNS else (SwitchOn(due.host),)
    after = state.obey(now, orders)
    state.set_power(after, due.host, ON)
    return Plan(orders, after, (Decision(sight.at_ms, HOST_ON, None, due.host),))
