"""PURE: plan(state, what is due, sight) -> orders; the order of its lines is the policy.

Each part sees what those before it did. Flights come first, on what hosts have just measured, so
that what is asked of a VM afterwards is asked where it is; departures make room before arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.policy import (
    balancing,
    entitling,
    evacuation,
    flights,
    lifecycle,
    power_saving,
    restarts,
)
from cluster.policy.agenda import Agenda, Due, HostDue
from cluster.policy.decisions import Plan, Sight
from cluster.policy.state import BOOTING, ClusterState


def plan(now: ClusterState, due: Sequence[Due | HostDue], sight: Sight) -> Plan:
    """The orders of an epoch, and why."""
    made = Plan((), now, ())
    made = made.then(flights.come_on(made.after, sight))
    made = made.then(flights.land(made.after, sight))
    made = made.then(power_saving.open_booted(made.after, sight))
    made = made.then(lifecycle.plan(made.after, due, sight))
    made = made.then(restarts.plan(made.after, sight))
    made = made.then(power_saving.plan(made.after, sight))
    made = made.then(evacuation.plan(made.after, sight))
    made = made.then(balancing.plan(made.after, sight))
    made = made.then(entitling.plan(made.after, sight))
    return made.then(flights.hold(made.after, sight))


def next_due(after: ClusterState, agenda: Agenda, sight: Sight, last: int) -> int:
    """The next epoch in which anything may have to be decided, `last` at most."""
    if after.flights or after.queue or evacuation.is_any(after) or (after.power == BOOTING).any():
        return min(sight.epoch + 1, last)
    looks = [balancing.next_after(sight), power_saving.next_after(sight)]
    looks += [entitling.next_after(after, sight), agenda.next_after(sight.epoch, last)]
    return min(looks)
