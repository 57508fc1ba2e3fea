"""PURE: VMs that wait for a host: restarts after a failure, and arrivals that a host must wake for.

Each epoch in which something may have changed they are tried again, in the order in which they have
waited. The room that admission control keeps free for failures is theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.messages import Order, PowerOn
from cluster.policy import placement, state
from cluster.policy.agenda import POWER_ON
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.lifecycle import WAITS, as_set, of_content
from cluster.policy.state import NOWHERE, ClusterState, Waiting

RESTART = "restart"
"""Kind of the decision about a VM that starts again."""


def plan(now: ClusterState, sight: Sight) -> Plan:
    """Start who finds a host; tell once why another one does not."""
    if not now.queue:
        return Plan((), now, ())
    orders: list[Order] = []
    decisions: list[Decision] = []
    left: list[Waiting] = []
    now = state.copy(now)
    rules = sight.scenario.placement.model_copy(update={"tolerate": 0})
    taken = placement.taken(now, rules)
    for one in sorted(now.queue, key=lambda one: (one.since_ms, one.vm)):
        if now.host_of[one.vm] != NOWHERE:
            continue
        if one.not_before_ms > sight.at_ms:
            left.append(one)
            continue
        choice = placement.place(now, rules, one.vm, taken)
        if choice.host is None:
            if choice.reason != one.reason:
                told = Decision(sight.at_ms, WAITS, one.vm, reason=choice.reason)
                decisions.append(replace(told, facts={"hosts_left": dict(choice.left)}))
            left.append(replace(one, reason=choice.reason))
            continue
        order = PowerOn(choice.host, as_set(now, sight.population.vms[one.vm].spec))
        kind = RESTART if one.restart else POWER_ON
        facts: dict[str, Any] = {"waited_s": (sight.at_ms - one.since_ms) / 1000}
        facts |= of_content(choice, sight)
        decisions.append(Decision(sight.at_ms, kind, one.vm, choice.host, facts=facts))
        orders.append(order)
        state.carry_out(now, order)
        taken = taken.with_one(now, rules, one.vm)
    return Plan(tuple(orders), replace(now, queue=tuple(left)), tuple(decisions))
