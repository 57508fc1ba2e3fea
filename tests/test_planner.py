"""The planner: what is due when, in which order, and the orders and refusals that follow."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from cluster_builders import Plans, arrays_of
from scenario_files import VM

from cluster.messages import Order, PowerOn, SetVm
from cluster.policy import agenda
from cluster.policy.agenda import Due
from cluster.policy.placement import FILTERS
from cluster.policy.state import NOWHERE
from hostsim.units import GIB, MIB, HostId, VmId


def group(name: str, **values: Any) -> dict[str, Any]:
    return VM | {"name": name, "count": 1} | values


def event(at: str, target: str, action: str, **values: Any) -> dict[str, Any]:
    given = {"values": values} if values else {}
    return {"at": at, "target": target, "action": action} | given


def words(orders: tuple[Order, ...]) -> list[str]:
    return [type(order).__name__ for order in orders]


def test_what_falls_inside_an_epoch_acts_at_the_start_of_the_next(tmp_path: Path) -> None:
    starts = {"a": "0 s", "b": "1 ms", "c": "60 s", "d": "60001 ms", "e": "119 s"}
    found = Plans(tmp_path, vms=[group(name, start=at) for name, at in starts.items()])
    assert found.due() == [
        (0, "power_on", "a"),
        (1, "power_on", "b"),
        (1, "power_on", "c"),
        (2, "power_on", "d"),
        (2, "power_on", "e"),
    ]


def test_departures_of_an_epoch_come_before_its_arrivals(tmp_path: Path) -> None:
    vms = [
        group("a", start="9 min"),
        group("z", stop="570 s"),
        group("b", start="541 s"),
    ]
    found = Plans(tmp_path, vms=vms)
    assert found.due() == [
        (0, "power_on", "z"),
        (9, "power_on", "a"),
        (10, "power_off", "z"),
        (10, "power_on", "b"),
    ]


def test_arrivals_go_by_time_and_then_by_vm_id(tmp_path: Path) -> None:
    starts = {"c": "10 s", "b": "20 s", "a": "20 s", "d": "5 s"}
    found = Plans(tmp_path, vms=[group(name, start=at) for name, at in starts.items()])
    assert [name for _, _, name in found.due()] == ["d", "c", "a", "b"]


def test_the_agenda_says_how_long_nothing_is_due(tmp_path: Path) -> None:
    vms = [group("a"), group("b", start="7 min", stop="20 min")]
    agenda = Plans(tmp_path, vms=vms).agenda
    spans = {0: 7, 1: 7, 6: 7, 7: 20, 19: 20, 20: 60, 59: 60}
    assert {epoch: agenda.next_after(epoch, 60) for epoch in spans} == spans
    assert agenda.next_after(7, 12) == 12
    assert [one.action for one in agenda.at(7)] == ["power_on"]
    assert agenda.at(8) == ()


def test_an_empty_agenda_lasts_to_the_end(tmp_path: Path) -> None:
    agenda = Plans(tmp_path, vms=[group("a", start="never")]).agenda
    assert agenda.due == () and agenda.at(0) == ()
    assert agenda.next_after(0, 60) == 60


def test_a_stay_within_one_epoch_lasts_an_epoch(tmp_path: Path) -> None:
    found = Plans(tmp_path, vms=[group("a", start="70 s", stop="80 s")])
    assert found.due() == [(2, "power_on", "a"), (3, "power_off", "a")]


def test_what_follows_a_departure_that_was_put_off_follows_it_still(tmp_path: Path) -> None:
    events = [event("75 s", "a", "reset"), event("90 s", "a", "power_on")]
    found = Plans(tmp_path, vms=[group("a", start="70 s", stop="80 s")], events=events)
    assert [one[:2] for one in found.due()] == [
        (2, "power_on"),
        (2, "reset"),
        (3, "power_off"),
        (3, "power_on"),
    ]
    assert found.all()[-1].after.host_of.tolist() == [0]


def test_what_would_act_at_the_end_of_the_run_is_left_out(tmp_path: Path) -> None:
    vms = [group("a", stop="1 h"), group("b", start="3541 s"), group("c", stop="3541 s")]
    found = Plans(tmp_path, vms=vms)
    assert found.due() == [(0, "power_on", "a"), (0, "power_on", "c")]


def test_events_of_one_epoch_keep_their_order_for_a_vm(tmp_path: Path) -> None:
    events = [
        event("70 s", "a", "power_off"),
        event("80 s", "a", "power_on"),
        event("90 s", "a", "reset"),
        event("100 s", "a", "power_off"),
    ]
    found = Plans(tmp_path, vms=[group("a")], events=events)
    first, second = found.all()
    assert words(first.orders) == ["PowerOn"]
    assert words(second.orders) == ["PowerOff", "PowerOn", "Reset", "PowerOff"]
    assert second.after.host_of.tolist() == [NOWHERE]
    assert {one.at_ms for one in second.decisions} == {120_000}


def test_a_vm_that_comes_and_goes_in_one_epoch_does_both(tmp_path: Path) -> None:
    events = [event("70 s", "a", "power_on"), event("80 s", "a", "power_off")]
    (plan,) = Plans(tmp_path, vms=[group("a", start="never")], events=events).all()
    assert words(plan.orders) == ["PowerOn", "PowerOff"]
    assert [one.kind for one in plan.decisions] == ["power_on", "power_off"]


@pytest.mark.parametrize("at", ["0 s", "10 min", "601 s"])
def test_an_event_at_the_time_of_an_arrival_finds_the_vm_there(tmp_path: Path, at: str) -> None:
    events = [event(at, "a", "set", shares=5), event(at, "a", "reset")]
    found = Plans(tmp_path, vms=[group("a", start=at)], events=events)
    assert found.told() == [("power_on", "a", None), ("set", "a", None), ("reset", "a", None)]


def test_events_of_one_time_happen_in_the_order_of_the_file(tmp_path: Path) -> None:
    events = [
        event("10 min", "a", "power_on"),
        event("10 min", "a", "set", shares=5),
        event("10 min", "b", "power_off"),
        event("10 min", "b", "power_on"),
    ]
    found = Plans(tmp_path, vms=[group("a", start="never"), group("b")], events=events)
    _, plan = found.all()
    assert words(plan.orders) == ["PowerOff", "PowerOn", "SetVm", "PowerOn"]


def test_a_planned_arrival_carries_the_spec_and_the_numbers_that_decided(tmp_path: Path) -> None:
    found = Plans(tmp_path, placement={"policy": "worst-fit", "overcommit": 2})
    (plan,) = found.all()
    assert [order.host for order in plan.orders] == [0, 1, 0]
    assert [order.vm for order in plan.orders if isinstance(order, PowerOn)] == [
        vm.spec for vm in found.population.vms
    ]
    third = plan.decisions[2]
    assert (third.kind, third.host, third.reason) == ("power_on", 0, None)
    assert third.facts == {
        "memory_bytes": GIB,
        "requested_s": 0.0,
        "hosts_left": dict.fromkeys(FILTERS, 2),
        "policy": "worst-fit",
        "by": "configured",
        "taken_bytes": 2 * GIB,
        "host_bytes": 8 * GIB,
    }


def test_a_vm_as_large_as_its_host_is_valid_and_finds_a_place(tmp_path: Path) -> None:
    # Validation and placement both count all memory of the host, the hypervisor's reserve too.
    found = Plans(tmp_path, vms=[group("all", memory="8 GiB")], placement={"overcommit": 1.0})
    assert found.told() == [("power_on", "all", None)]


def test_each_decision_sees_what_the_one_before_it_did(tmp_path: Path) -> None:
    # One host of 8 GiB: two of 3 GiB fit, the third does not until one leaves.
    hosts = [{"name": "esx", "memory": "8 GiB"}]
    vms = [
        group("big", count=3, memory="3 GiB", stop="10 min"),
        group("next", memory="3 GiB", start="10 min"),
    ]
    found = Plans(tmp_path, hosts=hosts, vms=vms, placement={"overcommit": 1.0})
    reason = "no host is within the memory overcommit limit"
    first, second = found.all()
    assert [(one.kind, one.reason) for one in first.decisions] == [
        ("power_on", None),
        ("power_on", None),
        ("refused", reason),
    ]
    assert first.decisions[2].facts["hosts_left"] == {
        **dict.fromkeys(list(FILTERS)[: list(FILTERS).index(reason)], 1),
        reason: 0,
    }
    # The departure of who never came is no decision.
    assert [(one.kind, one.reason) for one in second.decisions] == [
        ("power_off", None),
        ("power_off", None),
        ("power_on", None),
    ]
    assert words(second.orders) == ["PowerOff", "PowerOff", "PowerOn"]
    assert second.after.host_of.tolist() == [NOWHERE, NOWHERE, NOWHERE, 0]


def test_events_about_a_vm_that_was_refused_are_told_and_ignored(tmp_path: Path) -> None:
    events = [event(f"{at} min", "a", what) for at, what in ((1, "reset"), (2, "power_off"))]
    events.insert(0, event("30 s", "a", "set", shares=1))
    vms = [group("a", reservation="1 GiB", overhead="5 GiB")]
    found = Plans(tmp_path, vms=vms, events=events, placement={"overcommit": 0.1})
    assert found.told() == [
        ("refused", "a", "no host is within the memory overcommit limit"),
        ("ignored", "a", "set: the VM is not on"),
        ("ignored", "a", "reset: the VM is not on"),
        ("ignored", "a", "power_off: the VM is not on"),
    ]


def test_a_second_power_on_is_ignored(tmp_path: Path) -> None:
    found = Plans(tmp_path, vms=[group("a")])
    found.all()
    plan = found.plan([Due(3, 180_000, agenda.POWER_ON, VmId(0), planned=False)], 3)
    assert plan.orders == ()
    assert plan.decisions[0].kind == "ignored"
    assert plan.decisions[0].reason == "power_on: the VM is on already"


def test_set_orders_what_was_given_and_shares_as_a_number(tmp_path: Path) -> None:
    events = [
        event("1 min", "a", "set", shares="high"),
        event("2 min", "a", "set", reservation="512 MiB", limit="768 MiB", shares=77),
    ]
    found = Plans(tmp_path, vms=[group("a")], events=events)
    _, first, second = found.all()
    assert first.orders == (SetVm(HostId(0), VmId(0), shares=20 * 1024),)
    assert second.orders == (SetVm(HostId(0), VmId(0), 512 * MIB, 768 * MIB, 77),)
    facts = {"reservation_bytes": 512 * MIB, "limit_bytes": 768 * MIB, "shares": 77}
    assert second.decisions[0].facts == facts
    assert second.after.reservation.tolist() == [512 * MIB]


def one_host(folder: Path, vms: list[dict[str, Any]], events: list[dict[str, Any]]) -> Plans:
    """On one host with 7 GiB for VMs and as much swap space."""
    hosts = [{"name": "esx", "memory": "8 GiB", "swap_space": "7 GiB"}]
    return Plans(folder, hosts=hosts, vms=vms, events=events, placement={"overcommit": None})


def test_a_reservation_that_the_host_lacks_is_refused(tmp_path: Path) -> None:
    vms = [
        group("a", memory="4 GiB", reservation="1 GiB", overhead="512 MiB"),
        group("b", memory="4 GiB", reservation="3 GiB", overhead="512 MiB"),
    ]
    events = [
        event("1 min", "a", "set", reservation="3073 MiB"),
        event("2 min", "a", "set", reservation="3 GiB", shares=5),
    ]
    found = one_host(tmp_path, vms, events)
    _, refused, done = found.all()
    (told,) = refused.decisions
    assert (told.kind, told.reason) == ("refused_set", "the host has not the memory reserved")
    assert refused.orders == () and refused.after.reservation.tolist() == [GIB, 3 * GIB]
    assert done.after.reservation.tolist() == [3 * GIB, 3 * GIB]


def test_a_lower_reservation_needs_swap_space(tmp_path: Path) -> None:
    vms = [group(name, memory="5 GiB", reservation="2 GiB") for name in "ab"]
    events = [
        event("1 min", "a", "set", reservation="1 GiB"),
        event("2 min", "b", "set", reservation="1023 MiB"),
    ]
    found = one_host(tmp_path, vms, events)
    _, done, refused = found.all()
    assert done.after.reservation.tolist() == [GIB, 2 * GIB]
    (told,) = refused.decisions
    assert (told.kind, told.reason) == ("refused_set", "the host has not the swap space")


def test_a_reservation_above_the_limit_that_stayed_is_refused(tmp_path: Path) -> None:
    # The scenario is sound if the first set is carried out; the host has no memory for it.
    vms = [
        group("a", memory="4 GiB", limit="1 GiB", reservation="1 GiB"),
        group("b", memory="4 GiB", reservation="4 GiB"),
    ]
    events = [
        event("1 min", "a", "set", reservation="3 GiB", limit="4 GiB"),
        event("2 min", "a", "set", reservation="2 GiB"),
    ]
    _, first, second = one_host(tmp_path, vms, events).all()
    assert [one.kind for one in first.decisions] == ["refused_set"]
    (told,) = second.decisions
    assert (told.kind, told.reason) == ("refused_set", "the reservation would exceed the limit")


def test_what_was_set_outlives_a_power_off(tmp_path: Path) -> None:
    events = [
        event("1 min", "a", "set", reservation="512 MiB", limit="768 MiB", shares="low"),
        event("2 min", "a", "power_off"),
        event("3 min", "a", "power_on"),
    ]
    found = Plans(tmp_path, vms=[group("a"), group("b")], events=events)
    *_, last = found.all()
    (order,) = last.orders
    assert isinstance(order, PowerOn)
    before = found.population.vms[0].spec
    given = {"reservation": 512 * MIB, "limit": 768 * MIB, "shares": 5 * 1024}
    assert order.vm.config == before.config.model_copy(update=given)
    assert order.vm.program is before.program
    assert last.after.reservation.tolist() == [512 * MIB, 0]


def test_planning_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    found = Plans(tmp_path, events=[event("1 min", "web-1", "set", reservation="1 MiB")])
    before = copy.deepcopy(arrays_of(found.now))
    now = found.now
    found.all()
    assert arrays_of(now) == before
    assert arrays_of(found.now) != before
