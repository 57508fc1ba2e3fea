"""PURE: hosts that are being emptied send their VMs elsewhere, and are off once none is left.

As many at a time as the network allows; each to the host with least load that takes it.
"""

from __future__ import annotations

import numpy as np

from cluster.messages import Order, SwitchOff
from cluster.policy import balancing, flights, state
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.hosts import HOST_OFF
from cluster.policy.state import CLEARING, EVACUATING, ON, STANDBY, ClusterState
from hostsim.units import HostId, VmId

WHY = {EVACUATING: "maintenance", CLEARING: "power saving"}


def plan(now: ClusterState, sight: Sight) -> Plan:
    """One epoch of emptying, host after host in id order."""
    made = Plan((), now, ())
    for host in np.flatnonzero(np.isin(now.power, list(WHY))).tolist():
        why = WHY[int(now.power[host])]
        for vm in np.flatnonzero(now.host_of == host).tolist():
            if flights.is_busy(made.after, sight, HostId(host)):
                break
            if made.after.flight_of(VmId(vm)) is None:
                where = made.after.whereabouts()
                allowed = now.rules.allowed(where, VmId(vm), len(now.power))
                made = made.then(balancing.send(made.after, sight, VmId(vm), allowed, why))
        made = made.then(_switch_off(made.after, sight, HostId(host), why))
    return made


def _switch_off(now: ClusterState, sight: Sight, host: HostId, why: str) -> Plan:
    """Off, if no VM is left."""
    if (now.host_of == host).any():
        return Plan((), now, ())
    order: Order = SwitchOff(host)
    after = state.obey(now, [order])
    if now.power[host] == CLEARING:
        state.set_power(after, host, STANDBY)
    told = Decision(sight.at_ms, HOST_OFF, None, host, reason=why)
    return Plan((order,), after, (told,))


def is_any(now: ClusterState) -> bool:
    """Whether a host is being emptied."""
    return bool(np.isin(now.power, list(WHY)).any()) and bool((now.power == ON).any())
