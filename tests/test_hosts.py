"""Hosts that fail, are maintained or sleep: what becomes of their VMs, and of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_builders import PRESSED, Plans, json_lines, packed, pressed, simulate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from scenario_files import VM

from cluster.policy import hosts, placement, restarts
from cluster.policy.agenda import FAIL, MAINTENANCE, MIGRATE, POWER_OFF, POWER_ON, Due, HostDue
from cluster.policy.state import FAILED, NOWHERE, OFF, ON, RUNS, STANDBY
from cluster.population import populate
from cluster.scenario import EventValues
from hostsim.units import GIB, PAGE_SIZE, HostId, VmId

ROOMY = {
    "hosts": [{"name": "esx", "count": 3, "memory": "640 MiB", "reserve": "16 MiB", "cpus": 4}],
    "vms": PRESSED["vms"][:1],
}


def event(at: str, target: str, action: str, **values: Any) -> dict[str, Any]:
    return {"at": at, "target": target, "action": action} | ({"values": values} if values else {})


def run(folder: Path, events: list[dict[str, Any]], **values: Any) -> tuple[Any, Any]:
    """Report and decisions; the same however hosts are packed."""
    loaded = pressed(folder, **(ROOMY | {"events": events} | values))
    report = simulate(loaded, folder / "run", check=True).report
    fleet = lambda loaded, population: packed(loaded, population, [[2], [0], [1]])  # noqa: E731
    assert simulate(loaded, folder / "packed", fleet=fleet).report == report
    return report, json_lines(folder / "run")


def test_vms_of_a_host_that_fails_start_again_elsewhere(tmp_path: Path) -> None:
    report, events = run(tmp_path, [event("6 min", "esx-2", "fail", repair="5 min")])
    gone = {one["vm"] for one in events if one["kind"] == hosts.VM_FAILED}
    again = {one["vm"]: one for one in events if one["kind"] == restarts.RESTART}
    assert gone and set(again) == gone
    assert all(one["host"] != "esx-2" and one["at_s"] == 420 for one in again.values())
    found = report["failures"]
    assert (found["hosts"], found["vms_restarted"], found["vms_lost"]) == (1, len(gone), 0)
    assert found["downtime_s"] == 60 * len(gone)
    assert found["steady_s"] is None or found["steady_s"] >= 60
    assert [one["host"] for one in events if one["kind"] == hosts.HOST_ON] == ["esx-2"]
    assert report["hosts"]["powered_on_mean"] == pytest.approx((3 * 10 + 2 * 5) / 15)
    assert report["vms"]["placed"] == 8


def test_without_restarts_they_are_lost(tmp_path: Path) -> None:
    report, events = run(
        tmp_path, [event("6 min", "esx-2", "fail")], availability={"restart": False}
    )
    gone = [one["vm"] for one in events if one["kind"] == hosts.VM_FAILED]
    found = report["failures"]
    assert (found["vms_restarted"], found["vms_lost"]) == (0, len(gone))
    assert found["downtime_s"] == 9 * 60 * len(gone)


def test_who_finds_no_host_waits_until_one_is_repaired(tmp_path: Path) -> None:
    events = [event("6 min", f"esx-{n}", "fail", repair="4 min") for n in (1, 2, 3)]
    report, told = run(tmp_path, events)
    assert report["failures"]["hosts"] == 3 and report["failures"]["vms_lost"] == 0
    waits = [one for one in told if one["kind"] == "waits"]
    assert {one["reason"] for one in waits} == {"no host is on"}
    assert len(waits) == 8, "told once, not every epoch"
    assert {one["at_s"] for one in told if one["kind"] == restarts.RESTART} == {600}
    rows = report["hosts"]["powered_on_mean"]
    assert rows == pytest.approx(3 * 11 / 15)


def test_a_host_in_maintenance_is_emptied_without_a_failure(tmp_path: Path) -> None:
    report, events = run(tmp_path, [event("6 min", "esx-1", "maintenance", repair="5 min")])
    moved = [one for one in events if one["kind"] == "migrated"]
    assert moved and {one["host"] for one in moved} == {"esx-1"}
    assert {one["why"] for one in moved} == {"maintenance"}
    off = [one for one in events if one["kind"] == hosts.HOST_OFF]
    assert [(one["host"], one["reason"]) for one in off] == [("esx-1", "maintenance")]
    assert off[0]["at_s"] >= moved[-1]["at_s"]
    none = {"hosts": 0, "vms_restarted": 0, "vms_lost": 0, "downtime_s": 0.0}
    unknown = dict.fromkeys(("steady_s", "sharing_broken_gib", "storm_host_s"))
    assert report["failures"] == none | unknown


def test_energy_is_linear_in_load_and_nothing_when_off(tmp_path: Path) -> None:
    watts = {"watts": {"idle": "100 W", "peak": "300 W"}}
    host = ROOMY["hosts"][0] | watts
    busy, _ = run(tmp_path, [], hosts=[host])
    spans = 15 / 60 * 3
    load = busy["hosts"]["cpu_demand_mean"]
    expected = spans * (100 + 200 * load) / 1000
    assert busy["energy"]["kwh"] == pytest.approx(expected, rel=0.02)
    events = [event("0 s", f"esx-{n}", "maintenance") for n in (1, 2, 3)]
    off, _ = run(tmp_path, events, hosts=[host], vms=[PRESSED["vms"][0] | {"start": "1 min"}])
    assert off["energy"]["kwh"] == 0 and off["vms"]["refused"] == 8


def test_power_saving_empties_hosts_at_night_and_wakes_them_for_arrivals(tmp_path: Path) -> None:
    """A VM that needs all of a host comes at 12 min: what sleeps by then wakes for it."""
    saving = {"saving": True, "interval": "1 min", "off_after": "2 min", "boot": "90 s"}
    vms = [PRESSED["vms"][0] | {"count": 2, "interval": "0 s"}]
    vms += [PRESSED["vms"][3] | {"memory": "600 MiB", "start": "12 min"}]
    rules = {"policy": "worst-fit", "overcommit": 1.0}
    report, events = run(tmp_path, [], vms=vms, power=saving, placement=rules, duration="18 min")
    off = [one for one in events if one["kind"] == hosts.HOST_OFF]
    assert off and {one["reason"] for one in off} == {"power saving"}
    wakes = [one for one in events if one["kind"] == "host_wakes"]
    assert [one["reason"] for one in wakes] == ["a VM waits"]
    late = next(one for one in events if one.get("vm") == "wide" and one["kind"] == "power_on")
    assert late["at_s"] == 720 + 120, "booted after 90 s, the epoch after"
    assert report["vms"]["refused"] == 0
    assert report["hosts"]["powered_on_mean"] < 2.9


@pytest.mark.parametrize(("tolerate", "placed"), [(0, 6), (1, 4), (2, 2), (3, 0)])
def test_admission_keeps_room_for_the_failures_to_tolerate(
    tmp_path: Path, tolerate: int, placed: int
) -> None:
    """Three hosts of 8 GiB for VMs of 4 GiB, all reserved: two a host."""
    vms = [VM | {"name": "vm", "count": 9, "memory": "4000 MiB", "reservation": "4000 MiB"}]
    groups = [{"name": "esx", "count": 3, "memory": "9 GiB"}]
    rules = {"tolerate": tolerate, "overcommit": None}
    found = Plans(tmp_path, hosts=groups, vms=vms, placement=rules)
    told = found.told()
    assert sum(kind == "power_on" for kind, _, _ in told) == placed
    reasons = {reason for kind, _, reason in told if kind == "refused"}
    expected = "the room for host failures would be taken" if tolerate else None
    assert expected is None or reasons == {expected}


ACTS = some.one_of(
    some.tuples(some.just(FAIL), some.integers(0, 2)),
    some.tuples(some.just(MAINTENANCE), some.integers(0, 2)),
    some.tuples(some.just("host_on"), some.integers(0, 2)),
    some.tuples(some.sampled_from([POWER_ON, POWER_ON, POWER_OFF]), some.integers(0, 6)),
    some.tuples(some.sampled_from([f"to-{n}" for n in range(3)]), some.integers(0, 6)),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    vms = [VM | {"name": "vm", "count": 7, "memory": "2 GiB", "reservation": "1 GiB"}]
    groups = [{"name": "esx", "count": 3, "memory": "6 GiB"}]
    options = {
        "placement": {"overcommit": 2.0},
        "balancing": {"level": 5, "interval": "2 min"},
        "power": {"saving": True, "interval": "1 min", "off_after": "1 min", "boot": "1 min"},
        "migration": {"bandwidth": "20 MiB/s", "concurrent": 2},
        "rules": [{"kind": "apart", "vms": ["vm-1", "vm-2"]}],
        "availability": {"delay": "0 s"},
    }
    folder = tmp_path_factory.mktemp("small")
    return Plans(folder, hosts=groups, vms=vms, duration="600 min", **options)


@given(
    epochs=some.lists(some.tuples(some.lists(ACTS, max_size=3), some.randoms()), max_size=15),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_vm_is_lost_and_no_reservation_broken_whatever_happens(
    small: Plans, epochs: list[Any]
) -> None:
    from cluster.policy.state import copy, initial

    now = initial(small.population)
    alive: set[int] = set()
    for epoch, (acts, luck) in enumerate(epochs):
        due: list[Any] = []
        for action, number in acts:
            if action in (FAIL, MAINTENANCE, "host_on"):
                what = POWER_ON if action == "host_on" else action
                due.append(HostDue(epoch, 0, what, HostId(number)))
            elif action.startswith("to-"):
                values = EventValues(host=f"esx-{int(action[3:]) + 1}")
                due.append(Due(epoch, 0, MIGRATE, VmId(number), values, planned=False))
            else:
                due.append(Due(epoch, 0, action, VmId(number), planned=False))
        small.now = now
        plan = small.plan(due, epoch)
        for one in plan.decisions:
            if (one.kind == POWER_ON and one.host is not None) or one.kind == "waits":
                alive.add(one.vm)
            if one.kind == POWER_OFF:
                alive.discard(one.vm)
        after = plan.after
        on = set(np.flatnonzero(after.host_of != NOWHERE).tolist())
        waiting = {one.vm for one in after.queue}
        assert on | waiting == alive and not on & waiting
        assert (after.power[after.host_of[sorted(on)]] <= RUNS).all()
        assert (after.promised(after.reservation + after.vms.overhead) <= 6 * GIB).all()
        assert (after.spare >= 0).all() and (after.held >= 0).all()
        for flight in after.flights:
            assert after.host_of[flight.vm] == flight.source != flight.target
            assert after.power[flight.target] == ON
        for host in np.flatnonzero(np.isin(after.power, (OFF, FAILED, STANDBY))):
            assert after.held[host] == 0 and (after.host_of != host).all()
        # What hosts would measure.
        now = copy(after)
        for vm in sorted(on):
            now.allocated[vm] = luck.randrange(GIB // PAGE_SIZE)
            now.active[vm] = now.consumed[vm] = int(now.allocated[vm]) * PAGE_SIZE
            now.writes[vm] = luck.randrange(100_000)
            now.cpu_ms[vm] = luck.randrange(60_000)
        used = now.per_host(now.allocated) + now.held
        now.spare[:] = np.maximum(6 * GIB // PAGE_SIZE - used, 0)


def test_room_after_failures_is_that_of_the_smallest() -> None:
    from cluster_builders import cluster

    state = cluster(memory=[10, 30, 20, 40], size=[1], power=[ON, ON, ON, OFF])
    assert placement.reservable_after_failures(state, 0) == 60
    assert placement.reservable_after_failures(state, 1) == 30
    assert placement.reservable_after_failures(state, 1, without=HostId(0)) == 20
    assert placement.reservable_after_failures(state, 9) == 0


def test_events_of_hosts_and_vms_do_not_mix(tmp_path: Path) -> None:
    from cluster.scenario_file import ScenarioError

    for target, action in (("web-1", "fail"), ("web-1", "maintenance"), ("esx-1", "reset")):
        with pytest.raises(ScenarioError, match="allowed for"):
            pressed(tmp_path, events=[event("1 min", target, action)])
    assert populate(pressed(tmp_path, events=[event("1 min", "esx-1", "fail")]))
