"""VMs on their way: what is in the way, frames held, landings, and whole runs with migrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cluster_builders import (
    PRESSED,
    Plans,
    host_set,
    json_lines,
    packed,
    pressed,
    restless,
    simulate,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from cluster.messages import MoveOut, PowerOff, Reset, SwitchOff
from cluster.policy import conservation, flights
from cluster.policy.agenda import (
    FAIL,
    MAINTENANCE,
    MIGRATE,
    POWER_OFF,
    POWER_ON,
    RESET,
    Due,
    HostDue,
)
from cluster.policy.decisions import Sight
from cluster.policy.state import initial, learn
from cluster.scenario import EventValues
from hostsim import image
from hostsim.units import HostId, VmId

SLOW = {"bandwidth": "1 MiB/s"}
"""A VM of these is on its way for minutes."""


@pytest.mark.parametrize("network", [{}, SLOW])
def test_a_run_with_migrations_is_the_same_however_hosts_are_packed(
    tmp_path: Path, network: dict[str, Any]
) -> None:
    loaded = restless(tmp_path, migration=network)
    first = simulate(loaded, tmp_path / "one", check=True).report
    assert first["migrations"]["count"] >= (1 if network else 3)
    for number, packs in enumerate(([[0, 1, 2]], [[0], [1], [2]], [[2, 0], [1]])):
        fleet = lambda loaded, population, packs=packs: packed(loaded, population, packs)  # noqa: E731
        again = simulate(loaded, tmp_path / f"packed-{number}", fleet=fleet).report
        assert again["digest"] == first["digest"]


def test_what_is_told_of_a_migration(tmp_path: Path) -> None:
    loaded = restless(tmp_path)
    report = simulate(loaded, tmp_path / "run").report
    events = json_lines(tmp_path / "run")
    begun = [one for one in events if one["kind"] == flights.MIGRATE]
    ended = [one for one in events if one["kind"] == flights.MIGRATED]
    failed = [one for one in events if one["kind"] == flights.FAILED]
    assert len(begun) == len(ended) + len(failed)
    assert len(ended) == report["migrations"]["count"]
    assert report["migrations"]["failed"] == len(failed)
    for one in ended:
        assert one["to"] != one["host"] and one["sent_bytes"] > 0 and one["rounds"] >= 1
        assert 0 <= one["downtime_s"] <= 0.5 and one["duration_s"] < 60
    sent = sum(one["sent_bytes"] for one in ended) / 2**30
    assert report["migrations"]["gib"] == pytest.approx(sent)
    lost = report["cost"]["migration_downtime_s"]
    felt = [one["lost_s"] for one in ended if one["vm"] != "web-1"]  # it is reset as it lands
    assert lost == pytest.approx(sum(felt), abs=1e-6) and lost > 0
    assert json.dumps(report)


def test_a_long_migration_carries_over_and_holds_frames_at_its_target(tmp_path: Path) -> None:
    loaded = restless(tmp_path, migration=SLOW)
    simulate(loaded, tmp_path / "run")
    events = json_lines(tmp_path / "run")
    ended = [one for one in events if one["kind"] == flights.MIGRATED]
    assert any(one["duration_s"] > 60 for one in ended)
    hosts = pq.read_table(tmp_path / "run" / "hosts.parquet").to_pydict()
    by_epoch: dict[int, int] = {}
    for epoch, held in zip(hosts["epoch"], hosts["held_bytes"], strict=True):
        by_epoch[epoch] = by_epoch.get(epoch, 0) + held
    changes = {flights.MIGRATE: 1, flights.MIGRATED: -1, flights.FAILED: -1}
    for epoch, held in by_epoch.items():
        past = [one["kind"] for one in events if one["at_s"] <= 60 * epoch]
        assert (held > 0) == (sum(changes.get(kind, 0) for kind in past) > 0)
    assert len(set(by_epoch.values())) > 3


TWO = {
    "hosts": [
        {"name": "a", "memory": "4 GiB"},
        {"name": "b", "memory": "4 GiB"},
    ]
}


def plans(folder: Path, **values: Any) -> Plans:
    found = Plans(folder, **(TWO | values))
    found.all()
    return found


def sight(found: Plans, epoch: int = 1) -> Sight:
    return Sight(found.population, found.scenario, epoch)


def to(host: str, epoch: int = 1) -> Due:
    return Due(epoch, 0, MIGRATE, VmId(0), EventValues(host=host), planned=False)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, None),
        ({"host_of": -1}, "the VM is not on"),
        ({"host_of": 1}, "the VM is there already"),
        ({"power": 1}, "the target is not open to VMs"),
        ({"reservation": 1 << 40}, "the target has not the memory reserved"),
        ({"allocated": 1 << 40}, "the target has too few free frames"),
    ],
)
def test_what_is_in_the_way(tmp_path: Path, columns: dict[str, int], reason: str | None) -> None:
    found = plans(tmp_path)
    for name, value in columns.items():
        getattr(found.now, name)[0 if name != "power" else 1] = value
    assert flights.why_not(found.now, sight(found), VmId(0), HostId(1)) == reason


def test_hosts_take_part_in_so_many_migrations_at_a_time(tmp_path: Path) -> None:
    group = {"name": "vm", "count": 3, "memory": "512 MiB"}
    rules = {"policy": "first-fit"}
    vms = [dict(plans(tmp_path).scenario.vms[0].model_dump(include={"image", "workload"})) | group]
    found = plans(tmp_path, vms=vms, placement=rules, migration={"concurrent": 2})
    assert found.now.host_of.tolist() == [0, 0, 0]
    for vm in (0, 1):
        assert flights.why_not(found.now, sight(found), VmId(vm), HostId(1)) is None
        found.now = flights.set_out(found.now, sight(found), VmId(vm), HostId(1), "test").after
    reason = flights.why_not(found.now, sight(found), VmId(2), HostId(1))
    assert reason == "the source has as many migrations as it may"
    assert flights.why_not(found.now, sight(found), VmId(1), HostId(1)) == (
        "the VM is on its way already"
    )


def test_who_leaves_meanwhile_never_lands(tmp_path: Path) -> None:
    found = plans(tmp_path, migration={"bandwidth": "1 KiB/s"})
    found.now.allocated[0] = 1000
    assert [o.__class__.__name__ for o in found.plan([to("b")], 1).orders] == ["Hold"]
    plan = found.plan([Due(2, 0, "power_off", VmId(0), planned=False)], 2)
    kinds = [one.kind for one in plan.decisions]
    assert kinds == ["power_off", flights.FAILED]
    assert plan.decisions[1].reason == "the VM left its host"
    assert plan.after.flights == () and plan.after.held.tolist() == [0, 0]


def test_a_vm_that_outgrows_the_target_stays(tmp_path: Path) -> None:
    found = plans(tmp_path)
    found.now.allocated[0] = 1000
    found.plan([to("b")], 1)
    found.now.allocated[0] = found.now.spare[1] + found.now.held[1] + 1
    plan = found.plan([], 2)
    assert [one.kind for one in plan.decisions] == [flights.FAILED]
    assert plan.decisions[0].reason == flights.OUTGROWN
    assert plan.after.host_of[0] == 0 and plan.after.held.tolist() == [0, 0]


ACTS = some.one_of(
    some.tuples(some.sampled_from([POWER_ON, POWER_ON, POWER_OFF, RESET]), some.integers(0, 5)),
    some.tuples(some.sampled_from(["esx-1", "esx-2", "esx-3"]), some.integers(0, 5)),
    some.tuples(some.sampled_from([FAIL, MAINTENANCE, "repair"]), some.integers(0, 2)),
)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    """Six VMs on three hosts that are short of memory, every policy on."""
    vms = [PRESSED["vms"][0] | {"count": 6, "start": "never"}]
    del vms[0]["interval"]
    folder = tmp_path_factory.mktemp("lively")
    options: dict[str, Any] = {
        "balancing": {"level": 5, "interval": "2 min"},
        "availability": {"delay": "0 s"},
        "migration": {"bandwidth": "1 MiB/s", "concurrent": 2},
        "events": [],
    }
    found = Plans.__new__(Plans)
    found.take_in(pressed(folder, vms=vms, duration="600 min", **options))
    return found


@given(epochs=some.lists(some.lists(ACTS, max_size=3), max_size=10))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_hosts_do_what_is_planned_and_guests_read_the_same_after_a_move(
    lively: Plans, epochs: list[list[tuple[str, int]]]
) -> None:
    """Nothing is refused on a host that was planned, whoever fails, moves or comes meanwhile; all
    invariants of hosts and cluster hold after each epoch."""
    fleet = host_set(lively.loaded, lively.population.hosts, check=True)
    lively.now = initial(lively.population)
    for epoch, acts in enumerate(epochs):
        due: list[Any] = []
        for action, number in acts:
            if action in (FAIL, MAINTENANCE, "repair"):
                what = POWER_ON if action == "repair" else action
                due.append(HostDue(epoch, 0, what, HostId(number)))
            elif action.startswith("esx"):
                to = EventValues(host=action)
                due.append(Due(epoch, 0, MIGRATE, VmId(number), to, planned=False))
            else:
                due.append(Due(epoch, 0, action, VmId(number), planned=False))
        plan = lively.plan(due, epoch)
        images = fleet.take([one for one in plan.orders if isinstance(one, MoveOut)])
        stays = [one for one in plan.orders if not isinstance(one, PowerOff | SwitchOff | Reset)]
        if len(stays) == len(plan.orders):
            fleet.run(plan.orders, epoch, 0, images)
            for vm, before in images.items():
                host = fleet._hosts[HostId(int(plan.after.host_of[vm]))]
                after = image.export_vm(host, vm)
                assert after.content.tolist() == before.content.tolist()
                assert after.page.tolist() == before.page.tolist()
            report = fleet.run([], epoch, 1)
        else:
            report = fleet.run(plan.orders, epoch, 1, images)
        conservation.check(plan.after, plan.orders, report)
        lively.now = learn(plan.after, report)
