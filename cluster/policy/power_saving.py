"""PURE: hosts are emptied and put on standby while others carry their load, in the manner of DPM.

A host's load is that of its fuller resource. A host that has been low for long is emptied if the
others, with its load, stay at the target on average and keep all reservations; one is woken when
another has been high for a while, or a VM waits. The asymmetry is DPM's: power is saved slowly, and
given back fast.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cluster.messages import Order, SwitchOn
from cluster.policy import demand, placement, state
from cluster.policy.decisions import Decision, Plan, Sight, whole_epochs
from cluster.policy.demand import Load
from cluster.policy.hosts import HOST_ON
from cluster.policy.state import BOOTING, CLEARING, ON, STANDBY, ClusterState, Ints
from hostsim.units import HostId

WAKE, CLEAR = "host_wakes", "host_clears"
"""Kinds of decisions."""


def next_after(sight: Sight) -> int:
    """The next epoch at which power saving looks, if it is on."""
    options = sight.scenario.power
    if not options.saving:
        return sight.scenario.duration // sight.scenario.epoch
    return sight.next_look(options.interval)


def plan(now: ClusterState, sight: Sight) -> Plan:
    """At each interval one more host is woken, or one is emptied; woken at once for who waits."""
    made = Plan((), now, ())
    options = sight.scenario.power
    if not options.saving:
        return made
    if any(not one.restart or one.reason is not None for one in now.queue):
        return made.then(_wake(now, sight, "a VM waits"))
    if not sight.looks(options.interval):
        return made
    load = demand.measure(now, sight)
    busiest = np.max(load.loads, axis=0)
    low_ms, high_ms = _for_how_long(now, sight, busiest)
    now = replace(now, low_ms=low_ms, high_ms=high_ms)
    made = replace(made, after=now)
    if (high_ms >= options.on_after)[now.power == ON].any():
        return made.then(_wake(now, sight, f"a host is above {options.target / 1000:.0%}"))
    return made.then(_clear(now, sight, load, busiest))


def open_booted(now: ClusterState, sight: Sight) -> Plan:
    """Hosts that have booted take VMs."""
    ready = np.flatnonzero((now.power == BOOTING) & (now.ready_ms <= sight.at_ms)).tolist()
    orders: tuple[Order, ...] = tuple(SwitchOn(HostId(host)) for host in ready)
    told = tuple(Decision(sight.at_ms, HOST_ON, None, HostId(host)) for host in ready)
    return Plan(orders, state.obey(now, orders) if orders else now, told)


def _for_how_long(now: ClusterState, sight: Sight, busiest: demand.Floats) -> tuple[Ints, Ints]:
    """How long each host has been low, and high, by now."""
    options = sight.scenario.power
    interval_ms = whole_epochs(sight.scenario, options.interval) * sight.scenario.epoch
    low = busiest < (options.target - options.tolerance) / 1000
    high = busiest > (options.target + options.tolerance) / 1000
    is_on = now.power == ON
    return (
        np.where(low & is_on, now.low_ms + interval_ms, 0),
        np.where(high & is_on, now.high_ms + interval_ms, 0),
    )


def _wake(now: ClusterState, sight: Sight, why: str) -> Plan:
    """A host that was being emptied stays; else one on standby boots, if none does already."""
    after = state.copy(now)
    clearing = np.flatnonzero(now.power == CLEARING)
    if len(clearing):
        host = HostId(int(clearing[0]))
        state.set_power(after, host, ON)
        return Plan((), after, (Decision(sight.at_ms, HOST_ON, None, host, reason=why),))
    standby = np.flatnonzero(now.power == STANDBY)
    if not len(standby) or (now.power == BOOTING).any():
        return Plan((), now, ())
    host = HostId(int(standby[0]))
    ready_ms = sight.at_ms + sight.scenario.power.boot
    state.boot(after, host, ready_ms)
    facts = {"ready_s": ready_ms / 1000}
    return Plan((), after, (Decision(sight.at_ms, WAKE, None, host, reason=why, facts=facts),))


def _clear(now: ClusterState, sight: Sight, load: Load, busiest: demand.Floats) -> Plan:
    """Begin to empty the least loaded host that has been low for long; ties: the higher id."""
    options = sight.scenario.power
    open_hosts = np.flatnonzero(now.power == ON)
    long_low = open_hosts[now.low_ms[open_hosts] >= options.off_after]
    if not len(long_low) or len(open_hosts) < 2 or (now.power == CLEARING).any():
        return Plan((), now, ())
    host = HostId(int(min(long_low, key=lambda one: (busiest[one], -one))))
    others = open_hosts[open_hosts != host]
    after_load = load.on_host[:, open_hosts].sum(axis=1) / load.capacity[:, others].sum(axis=1)
    promised = now.promised(now.reservation + now.vms.overhead)[open_hosts].sum()
    room = placement.reservable_after_failures(now, sight.scenario.placement.tolerate, without=host)
    if np.max(after_load) > options.target / 1000 or promised > room:
        return Plan((), now, ())
    after = state.copy(now)
    state.set_power(after, host, CLEARING)
    facts = {
        "load": float(busiest[host]),
        "load_of_others_after": float(np.max(after_load)),
        "low_for_s": int(now.low_ms[host]) / 1000,
        "vms": int((now.host_of == host).sum()),
    }
    return Plan((), after, (Decision(sight.at_ms, CLEAR, None, host, facts=facts),))
