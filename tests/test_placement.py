"""Placement: which host a VM goes to, or the reason why to none, against a twin that tries all."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from cluster_builders import arrays_of, cluster
from hypothesis import given
from hypothesis import strategies as st

from cluster import pools, rules
from cluster.policy.placement import FILTERS, Choice, load, place, taken
from cluster.policy.state import EVACUATING, FAILED, NOWHERE, OFF, ON, ClusterState
from cluster.policy.state import copy as copy_of
from cluster.scenario_policies import Placement
from hostsim.units import VmId

NEWCOMER = VmId(3)
POLICIES = ("first-fit", "best-fit", "worst-fit")


def policy(name: str, **values: Any) -> Placement:
    return Placement.model_validate({"policy": name, "overcommit": None} | values)


def three_hosts(**columns: Any) -> ClusterState:
    """Hosts of 100 with one VM of 50, 80 and 20; VM 3 is nowhere and needs 10."""
    columns = {"size": [50, 80, 20, 10], "on": [0, 1, 2, NOWHERE]} | columns
    return cluster(memory=[100, 100, 100], **columns)


@pytest.mark.parametrize(("name", "host"), [("first-fit", 0), ("best-fit", 1), ("worst-fit", 2)])
def test_each_policy_takes_its_host(name: str, host: int) -> None:
    choice = place(three_hosts(), policy(name), NEWCOMER)
    assert choice == Choice(host, None, dict.fromkeys(FILTERS, 3))


@pytest.mark.parametrize(
    ("by", "best", "worst"), [("configured", 1, 2), ("consumed", 0, 1), ("active", 2, 0)]
)
def test_what_counts_as_taken_decides(by: str, best: int, worst: int) -> None:
    state = three_hosts(consumed=[40, 10, 20, 10], active=[5, 6, 7, 10])
    assert place(state, policy("best-fit", by=by), NEWCOMER).host == best
    assert place(state, policy("worst-fit", by=by), NEWCOMER).host == worst


def test_a_newcomer_counts_with_its_footprint_where_use_is_measured() -> None:
    # What it used when it was last on (consumed, active) says nothing about its next life.
    columns = {"footprint": [50, 80, 20, 4], "consumed": [40, 10, 20, 99], "active": [5, 6, 7, 99]}
    state = three_hosts(**columns)
    assert load(state, policy("first-fit"), NEWCOMER).tolist() == [60, 90, 30]
    assert load(state, policy("first-fit", by="consumed"), NEWCOMER).tolist() == [44, 14, 24]
    assert load(state, policy("first-fit", by="active"), NEWCOMER).tolist() == [9, 10, 11]


def test_fullness_is_relative_to_the_size_of_the_host() -> None:
    state = cluster(memory=[1000, 100], size=[300, 50, 10], on=[0, 1, NOWHERE])
    assert place(state, policy("best-fit"), VmId(2)).host == 1
    assert place(state, policy("worst-fit"), VmId(2)).host == 0


@pytest.mark.parametrize("name", POLICIES)
def test_ties_go_to_the_lower_host_id(name: str) -> None:
    # Hosts of 200 and 100 are equally full as well: 2 x (30 + 10) = 70 + 10.
    columns = {"size": [30, 30, 70, 10], "on": [2, 1, 3, NOWHERE]}
    state = cluster(memory=[10, 100, 100, 200], footprint=[30, 30, 70, 10], **columns)
    fits = policy(name, overcommit=0.5)
    assert place(state, fits, NEWCOMER).host == 1


SMALL = pools.Pools((pools.Pool("p", pools.ROOT, 2, False, 9, 1),), np.zeros(4, np.int64))
NEVER_TOGETHER = rules.of((rules.Rule(rules.APART, (VmId(0), VmId(1), VmId(2), VmId(3))),))
REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("no host is on", {"power": [EVACUATING, OFF, FAILED]}, {}),
    ("no host keeps the rules", {"rules": NEVER_TOGETHER}, {}),
    ("larger than any host", {"size": [50, 80, 20, 101]}, {}),
    ("no host has the memory reserved", {"reservation": [50, 80, 20, 81]}, {}),
    ("no host has the memory reserved", {"overhead": [0, 0, 0, 101]}, {}),
    ("no host has the memory reserved", {"overhead": [91, 91, 91, 10]}, {}),
    ("no host has the swap space", {"swap_space": [59, 89, 29]}, {}),
    ("its pool has not the memory reserved", {"reservation": [1, 0, 0, 2], "pools": SMALL}, {}),
    (
        "the room for host failures would be taken",
        {"reservation": [50, 80, 20, 0], "overhead": [0, 0, 0, 51]},
        {"tolerate": 1},
    ),
    ("no host is within the memory overcommit limit", {}, {"overcommit": 0.29}),
    (
        "no host is within the memory overcommit limit",
        {"active": [96, 96, 96, 0], "footprint": [1, 1, 1, 5]},
        {"by": "active", "overcommit": 1.0},
    ),
    (
        "no host is within the CPU overcommit limit",
        {"cpus": [4, 4, 4], "vcpus": [5, 5, 5, 4]},
        {"cpu_overcommit": 2},
    ),
]


@pytest.mark.parametrize(("reason", "columns", "values"), REFUSALS)
@pytest.mark.parametrize("name", POLICIES)
def test_every_refusal_says_its_reason(
    name: str, reason: str, columns: dict[str, Any], values: dict[str, Any]
) -> None:
    choice = place(three_hosts(**columns), policy(name, **values), NEWCOMER)
    assert (choice.host, choice.reason) == (None, reason)
    # What came before it left hosts, it left none, and what comes after was not asked.
    *before, last = choice.left.values()
    assert all(before) and last == 0
    assert list(choice.left) == list(FILTERS)[: len(choice.left)]


def test_every_reason_can_be_reached() -> None:
    assert {reason for reason, _, _ in REFUSALS} == set(FILTERS)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ({"size": [50, 80, 20, 100]}, {}),
        ({"power": [OFF, EVACUATING, ON]}, {}),
        ({"reservation": [50, 80, 20, 80], "size": [50, 80, 20, 90]}, {}),
        ({"overhead": [0, 0, 90, 10]}, {"overcommit": 0.3}),
        ({"swap_space": [59, 89, 30]}, {}),
        ({}, {"overcommit": 0.3}),
        ({"cpus": [4, 4, 4], "vcpus": [5, 5, 4, 4]}, {"cpu_overcommit": 2}),
    ],
)
def test_every_limit_may_be_reached_exactly(
    columns: dict[str, Any], values: dict[str, Any]
) -> None:
    assert place(three_hosts(**columns), policy("worst-fit", **values), NEWCOMER).host == 2


def test_a_reservation_takes_no_swap_space_and_overhead_no_overcommit() -> None:
    state = three_hosts(reservation=[50, 80, 20, 10], swap_space=[0, 0, 0], overhead=[70] * 4)
    choice = place(state, policy("first-fit"), NEWCOMER)
    assert choice.reason == "no host has the memory reserved"
    state = three_hosts(reservation=[50, 80, 20, 10], swap_space=[0, 0, 0], overhead=[20] * 4)
    assert place(state, policy("first-fit", overcommit=0.6), NEWCOMER).host == 0


def test_a_reserve_bounds_what_is_promised_and_nothing_else() -> None:
    """Hosts of 100 of which 20 are the hypervisor's: sizes, loads and fullness are over 100."""
    state = three_hosts(size=[50, 80, 20, 100], reservable=[80] * 3)
    assert place(state, policy("worst-fit", overcommit=1.2), NEWCOMER).host == 2
    state = cluster(memory=[100, 200], reservable=[99, 100], size=[40, 79, 10], on=[0, 1, NOWHERE])
    assert place(state, policy("best-fit"), VmId(2)).host == 0
    state = three_hosts(reservation=[50, 80, 20, 61], reservable=[80] * 3)
    assert place(state, policy("first-fit"), NEWCOMER).reason == "no host has the memory reserved"
    state = three_hosts(reservation=[50, 80, 20, 60], reservable=[80] * 3)
    assert place(state, policy("first-fit"), NEWCOMER).host == 2


def test_vms_that_are_off_take_nothing() -> None:
    nobody = three_hosts(on=[NOWHERE] * 4, reservation=[90] * 4, vcpus=[9] * 4, cpus=[9] * 3)
    choice = place(nobody, policy("best-fit", cpu_overcommit=1, overcommit=1), NEWCOMER)
    assert choice == Choice(0, None, dict.fromkeys(FILTERS, 3))


# The twin: one host after the other, one VM after the other, exact fractions.


def naive_place(state: ClusterState, placement: Placement, vm: int) -> tuple[int | None, str]:
    """(host, "") or (None, reason): every host judged by itself."""
    failed: dict[int, int] = {}
    fullness: dict[int, Fraction] = {}
    for host in range(len(state.hosts.memory)):
        there = [v for v in range(len(state.host_of)) if state.host_of[v] == host]
        memory = int(state.hosts.memory[host])
        promised = swap = taken = vcpus = 0
        columns = {"configured": state.vms.size, "consumed": state.consumed, "active": state.active}
        for v in [*there, vm]:
            promised += int(state.reservation[v] + state.vms.overhead[v])
            swap += int(state.vms.size[v] - state.reservation[v])
            vcpus += int(state.vms.vcpus[v])
            if v != vm:
                taken += int(columns[placement.by][v])
        mine = state.vms.size if placement.by == "configured" else state.vms.footprint
        taken += int(mine[vm])
        memory_limit = None if placement.overcommit is None else memory * placement.overcommit
        cpus = int(state.hosts.cpus[host])
        cpu_limit = None if placement.cpu_overcommit is None else cpus * placement.cpu_overcommit
        passes = [
            state.power[host] == ON,
            True,  # no rules and no pools: they have tests of their own
            True,
            int(state.vms.size[vm]) <= memory,
            promised <= int(state.hosts.reservable[host]),
            swap <= int(state.hosts.swap_space[host]),
            True,  # no failures to tolerate
            memory_limit is None or taken <= memory_limit,
            cpu_limit is None or vcpus <= cpu_limit,
        ]
        if all(passes):
            fullness[host] = Fraction(taken, memory)
        else:
            failed[host] = passes.index(False)
    if not fullness:  # the last filter that any host came to
        return None, list(FILTERS)[max(failed.values())]
    if placement.policy == "first-fit":
        return min(fullness), ""
    full = max if placement.policy == "best-fit" else min
    extreme = full(fullness.values())
    return min(host for host in fullness if fullness[host] == extreme), ""


@st.composite
def clusters(draw: st.DrawFn) -> ClusterState:
    """Few small numbers, so that limits are met exactly and ties are common."""
    hosts, vms = draw(st.integers(1, 5)), draw(st.integers(1, 8))

    def column(n: int, low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    size, memory = column(vms, 1, 12), column(hosts, 4, 24)
    reservation = [draw(st.integers(0, most)) for most in size]
    return cluster(
        memory=memory,
        reservable=[draw(st.integers(0, most)) for most in memory],
        size=size,
        power=[draw(st.sampled_from((ON, ON, ON, EVACUATING, OFF))) for _ in memory],
        on=column(vms, -1, hosts - 1),
        reservation=reservation,
        swap_space=column(hosts, 0, 30),
        cpus=column(hosts, 1, 4),
        overhead=column(vms, 0, 2),
        vcpus=column(vms, 1, 3),
        footprint=[draw(st.integers(1, most)) for most in size],
        consumed=column(vms, 0, 12),
        active=column(vms, 0, 12),
    )


RULES = st.builds(
    Placement,
    policy=st.sampled_from(POLICIES),
    by=st.sampled_from(("configured", "consumed", "active")),
    overcommit=st.sampled_from((None, 0.5, 1.0, 1.5, 3.0)),
    cpu_overcommit=st.sampled_from((None, 1.0, 2.5)),
)


@given(state=clusters(), rules=RULES)
def test_the_choice_is_the_one_that_trying_every_host_finds(
    state: ClusterState, rules: Placement
) -> None:
    before = copy.deepcopy(arrays_of(state))
    for vm in range(len(state.host_of)):
        if state.host_of[vm] == NOWHERE:
            choice = place(state, rules, VmId(vm))
            assert (choice.host, choice.reason or "") == naive_place(state, rules, vm)
    assert arrays_of(state) == before


@given(state=clusters(), rules=RULES)
def test_what_is_taken_with_one_vm_more_is_as_if_counted_anew(
    state: ClusterState, rules: Placement
) -> None:
    for vm in range(len(state.host_of)):
        choice = place(state, rules, VmId(vm))
        if state.host_of[vm] == NOWHERE and choice.host is not None:
            after = copy_of(state)
            after.host_of[vm] = choice.host
            after.consumed[vm] = after.active[vm] = state.vms.footprint[vm]
            found = taken(state, rules).with_one(after, rules, VmId(vm))
            anew = taken(after, rules)
            for name in ("promised", "swappable", "load", "vcpus"):
                assert getattr(found, name).tolist() == getattr(anew, name).tolist()
