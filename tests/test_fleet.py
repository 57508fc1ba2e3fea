"""Hosts behind one interface: what a set of hosts does, and that it does not matter how they lie.

The planner's orders are held against real hosts too: admission control, checked by both, agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cluster_builders import Plans, host_set, packed, pressed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario_files import VM

from cluster.fleet import LocalFleet, merge
from cluster.host_set import HostSet, census_epochs
from cluster.messages import (
    HOST_ROW,
    VM_ROW,
    EpochReport,
    LevelChange,
    Order,
    PowerOff,
    PowerOn,
    Reset,
    SetHost,
    SetVm,
)
from cluster.policy import agenda
from cluster.policy.agenda import Due
from cluster.policy.state import NOWHERE, initial
from cluster.population import Population, populate
from cluster.scenario import EventValues
from cluster.scenario_file import Loaded
from hostsim import host as host_module
from hostsim.invariants import BrokenInvariantError
from hostsim.units import GIB, MIB, HostId, VmId

EPOCHS = 4
EPOCH_MS = 60_000


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Population]:
    found = pressed(tmp_path_factory.mktemp("fleet"))
    return found, populate(found)


def orders_of(population: Population) -> list[list[Order]]:
    """Orders of each epoch: nine VMs over three hosts, then a change for each host."""
    specs = [vm.spec for vm in population.vms]
    first: list[Order] = [PowerOn(HostId(at % 3), specs[at]) for at in range(9)]
    # Names sort as batch-1 to 3, late, web-1 to 8, wide.
    second: list[Order] = [
        PowerOff(HostId(0), VmId(0)),
        Reset(HostId(1), VmId(4)),
        SetVm(HostId(2), VmId(5), reservation=32 * MIB, shares=1),
    ]
    return [first, second, [PowerOn(HostId(2), specs[0]), SetHost(HostId(1), 0)], []]


def run_all(fleet: Any, population: Population) -> list[EpochReport]:
    orders = orders_of(population)
    return [fleet.run(orders[epoch], epoch, 1) for epoch in range(EPOCHS)]


def same(one: EpochReport, two: EpochReport) -> None:
    assert one.hosts.tobytes() == two.hosts.tobytes()
    assert one.vms.tobytes() == two.vms.tobytes()
    assert one.level_changes == two.level_changes
    assert one.contrasts.tolist() == two.contrasts.tolist()


def test_a_report_has_a_row_per_epoch_and_host_and_per_epoch_and_vm(
    scene: tuple[Loaded, Population],
) -> None:
    loaded, population = scene
    hosts = host_set(loaded, population.hosts)
    first, second, *_ = run_all(hosts, population)
    more = hosts.run([], EPOCHS, 2)
    assert first.hosts[["epoch", "host"]].tolist() == [(0, 0), (0, 1), (0, 2)]
    assert more.hosts[["epoch", "host"]].tolist() == [(e, h) for e in (4, 5) for h in range(3)]
    there = [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    rows = [(0, host, vm) for host in range(3) for vm in there[host]]
    assert first.vms[["epoch", "host", "vm"]].tolist() == rows
    there = [[3, 6], [1, 4, 7], [0, 2, 5, 8]]
    rows = [(e, host, vm) for e in (4, 5) for host in range(3) for vm in there[host]]
    assert more.vms[["epoch", "host", "vm"]].tolist() == rows
    assert second.hosts["vms"].tolist() == [2, 3, 3]
    times = sum(more.hosts[f"{level}_ms"] for level in ("high", "soft", "hard", "low"))
    assert times.tolist() == [EPOCH_MS] * 6
    assert set(more.vms["on_ns"]) == {EPOCH_MS * 1_000_000}


def test_orders_reach_the_vm_that_they_name(scene: tuple[Loaded, Population]) -> None:
    loaded, population = scene
    changed, left = (host_set(loaded, population.hosts) for _ in range(2))
    orders = orders_of(population)
    for hosts in (changed, left):
        hosts.run(orders[0], 0, 1)
    told, rest = changed.run(orders[1], 1, 1), left.run([], 1, 1)
    # VM 0 is gone; VM 4 boots again, so it touches less; VM 5 lost its shares, and its target sank.
    assert 0 not in told.vms["vm"] and 0 in rest.vms["vm"]
    touches = [report.vms["touches"][report.vms["vm"] == 4][0] for report in (told, rest)]
    assert touches[0] < touches[1]
    targets = [report.vms["target_pages"][report.vms["vm"] == 5][0] for report in (told, rest)]
    assert targets[0] < targets[1]


def test_an_order_to_a_host_reaches_that_host_alone(scene: tuple[Loaded, Population]) -> None:
    loaded, population = scene
    changed, left = (host_set(loaded, population.hosts) for _ in range(2))
    for hosts in (changed, left):
        hosts.run(orders_of(population)[0], 0, 2)
    told, rest = changed.run([SetHost(HostId(1), 990)], 2, 2), left.run([], 2, 2)
    differ = [
        told.vms[told.vms["host"] == host].tobytes() != rest.vms[rest.vms["host"] == host].tobytes()
        for host in range(3)
    ]
    assert differ == [False, True, False]
    assert population.hosts[1].config.allocation.idle_tax == 750


@pytest.mark.parametrize(
    "packs", [[[0], [1], [2]], [[0, 1], [2]], [[2], [0, 1]], [[1], [0, 2]], [[2], [1], [0]]]
)
def test_how_hosts_are_packed_does_not_show(
    scene: tuple[Loaded, Population], packs: Sequence[Sequence[int]]
) -> None:
    loaded, population = scene
    together = LocalFleet(host_set(loaded, population.hosts))
    apart = packed(loaded, population, packs)
    reports = zip(run_all(together, population), run_all(apart, population), strict=True)
    for one, two in reports:
        same(one, two)
    assert together.digests() == apart.digests()
    assert list(together.digests()) == [0, 1, 2]


def test_epochs_in_one_call_are_those_of_several(scene: tuple[Loaded, Population]) -> None:
    loaded, population = scene
    step, leap = (host_set(loaded, population.hosts) for _ in range(2))
    orders = orders_of(population)[0]
    steps = [step.run(orders if epoch == 0 else [], epoch, 1) for epoch in range(6)]
    whole = leap.run(orders, 0, 6)
    assert whole.hosts.tobytes() == b"".join(report.hosts.tobytes() for report in steps)
    assert whole.vms.tobytes() == b"".join(report.vms.tobytes() for report in steps)
    assert list(whole.level_changes) == [one for report in steps for one in report.level_changes]
    assert whole.contrasts.any()
    assert whole.contrasts.tolist() == sum(report.contrasts for report in steps).tolist()
    assert step.digests() == leap.digests()


@pytest.mark.parametrize("most", [1, 2])
def test_level_changes_that_one_call_has_no_room_for_come_with_the_next(
    scene: tuple[Loaded, Population], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A call then ends within an epoch of some host: the next one goes on there."""
    loaded, population = scene
    orders = orders_of(population)[0]
    whole = host_set(loaded, population.hosts).run(orders, 0, 6)
    assert len(whole.level_changes) > 2 * most
    monkeypatch.setattr(host_module, "CHANGES", most)
    same(whole, host_set(loaded, population.hosts).run(orders, 0, 6))


def test_slots_are_compared_some_times_a_run(scene: tuple[Loaded, Population]) -> None:
    scenario = scene[0].scenario

    def told(epochs: int, sample: int = 16) -> int:
        fidelity = scenario.fidelity.model_copy(update={"sample": sample})
        times = {"duration": epochs * scenario.epoch, "fidelity": fidelity}
        return census_epochs(scenario.model_copy(update=times))

    assert [told(epochs) for epochs in (1, 8, 15, 16, 288)] == [1, 2, 3, 4, 72]
    assert told(288, sample=1) == 0


def test_level_changes_carry_epoch_host_and_free_memory(scene: tuple[Loaded, Population]) -> None:
    loaded, population = scene
    found = [change for r in run_all(host_set(loaded, population.hosts), population)
             for change in r.level_changes]  # fmt: skip
    assert len(found) > 3
    minfree = {host: 256 * MIB * 60 // 1000 // 4096 for host in range(3)}  # 6 % of 256 MiB
    for change in found:
        # A change falls within its epoch or at its start.
        assert change.epoch * EPOCH_MS <= change.at_ms < (change.epoch + 1) * EPOCH_MS
        assert change.before != change.after
        assert change.free_pages % 16 == 0
        if change.after > change.before:
            assert change.free_pages < minfree[change.host]


def rows(pairs: Sequence[tuple[int, int]], dtype: np.dtype[Any]) -> Any:
    found = np.zeros(len(pairs), dtype)
    found["epoch"], found["host"] = zip(*pairs, strict=True)
    return found


def test_merging_sorts_rows_by_epoch_host_and_vm_and_adds_busy_time() -> None:
    def part(hosts: Sequence[int], vms: Sequence[tuple[int, int]], busy_s: float) -> EpochReport:
        of_vms = rows([(e, h) for e in (0, 1) for h, _ in vms], VM_ROW)
        of_vms["vm"] = [v for _ in (0, 1) for _, v in vms]
        changes = tuple(LevelChange(1, at, HostId(hosts[0]), 0, 1, 16) for at in (70, 90))
        of_hosts = rows([(e, h) for e in (0, 1) for h in hosts], HOST_ROW)
        return EpochReport(of_hosts, of_vms, changes, busy_s)

    parts = [part([1, 3], [(1, 5), (1, 9), (3, 0)], 0.5), part([0, 2], [(0, 7), (2, 1)], 0.25)]
    vms = [(0, 7), (1, 5), (1, 9), (2, 1), (3, 0)]
    for whole in (merge(parts), merge(parts[::-1])):
        pairs = [(e, h) for e in (0, 1) for h in range(4)]
        assert whole.hosts[["epoch", "host"]].tolist() == pairs
        triples = [(e, h, v) for e in (0, 1) for h, v in vms]
        assert whole.vms[["epoch", "host", "vm"]].tolist() == triples
        times = [(change.host, change.at_ms) for change in whole.level_changes]
        assert times == [(0, 70), (0, 90), (1, 70), (1, 90)]
        assert whole.busy_s == 0.75


def test_no_vm_at_all_is_a_report_too(scene: tuple[Loaded, Population]) -> None:
    loaded, population = scene
    report = packed(loaded, population, [[0, 1], [2]]).run([], 0, 1)
    assert report.hosts["vms"].tolist() == [0, 0, 0]
    assert report.vms.dtype == VM_ROW and len(report.vms) == 0
    assert report.level_changes == ()


def test_a_broken_invariant_ends_the_run_and_says_where(scene: tuple[Loaded, Population]) -> None:
    loaded, population = scene
    first = orders_of(population)[0]
    checked = host_set(loaded, population.hosts, check=True)
    unchecked = host_set(loaded, population.hosts)
    for hosts in (checked, unchecked):
        hosts.run(first, 0, 1)
        hosts._hosts[HostId(1)].state.host[0].free -= 1
    with pytest.raises(BrokenInvariantError, match=r"^host 1, epoch 1: frames: \d+ used"):
        checked.run([], 1, 1)
    unchecked.run([], 1, 1)


def test_an_order_that_a_host_must_refuse_is_a_bug_that_shows(
    scene: tuple[Loaded, Population],
) -> None:
    loaded, population = scene
    hosts = host_set(loaded, population.hosts)
    spec = population.vms[0].spec
    large = replace(spec, config=spec.config.model_copy(update={"overhead": GIB}))
    with pytest.raises(ValueError, match="host 0 refuses VM 0: memory-reservation"):
        hosts.run([PowerOn(HostId(0), large)], 0, 1)
    with pytest.raises(ValueError, match="VM 3 is not on host 1"):
        hosts.run([PowerOff(HostId(1), VmId(3))], 0, 1)


# Whatever is due: real hosts accept every order, and everything due is told once.


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    """VMs of 4 and 2 GiB on two hosts with room for some of them."""

    def group(number: int, **values: Any) -> dict[str, Any]:
        return VM | {"name": f"vm-{number}", "count": 1, "memory": "4 GiB"} | values

    hosts = [{"name": "esx", "count": 2, "memory": "8 GiB", "swap_space": "7 GiB"}]
    vms = [group(n, reservation=f"{n} GiB") for n in range(4)]
    vms += [group(n, memory="2 GiB", limit="1 GiB") for n in (4, 5)]
    rules = {"policy": "best-fit", "overcommit": 2.0}
    folder = tmp_path_factory.mktemp("crowded")
    return Plans(folder, hosts=hosts, vms=vms, placement=rules, fidelity={"sample": 1024})


AMOUNTS = st.none() | st.sampled_from([MIB, GIB, 2 * GIB, 3 * GIB, 4 * GIB])
VALUES = st.builds(
    EventValues, reservation=AMOUNTS, limit=AMOUNTS, shares=st.sampled_from([None, 0, 9, "high"])
)
ACTIONS = st.sampled_from([agenda.POWER_ON, agenda.POWER_ON, agenda.POWER_OFF, agenda.SET])
ACTS = st.tuples(ACTIONS | st.just(agenda.RESET), st.integers(0, 5).map(VmId), VALUES)
NOT_DONE = {"ignored", "refused", "refused_set"}


@given(epochs=st.lists(st.lists(ACTS, max_size=6), max_size=6))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_hosts_accept_every_order_and_everything_due_is_told(
    crowded: Plans, epochs: list[list[tuple[str, VmId, EventValues]]]
) -> None:
    crowded.now = initial(crowded.population)
    hosts = host_set(crowded.loaded, crowded.population.hosts)
    specs = [vm.spec for vm in crowded.population.vms]
    for epoch, acts in enumerate(epochs):
        due = []
        for action, vm, values in acts:
            fits = (values.limit or 0) <= specs[vm].config.memory
            values = values if fits else EventValues(shares=1)  # refused with the scenario
            due.append(Due(epoch, 0, action, vm, values, planned=False))
        plan = crowded.plan(due, epoch)
        hosts.run(plan.orders, epoch, 0)
        done = [one for one in plan.decisions if one.kind not in NOT_DONE]
        assert [one.vm for one in plan.decisions] == [vm for _, vm, _ in acts]
        assert len(done) == len(plan.orders)
        assert all((one.reason is None) == (one.kind not in NOT_DONE) for one in plan.decisions)
        _agree(crowded, hosts)


def _agree(crowded: Plans, hosts: HostSet) -> None:
    """Cluster state and hosts tell the same of who is where and what is promised."""
    now = crowded.now
    where = [NOWHERE] * 6
    for host_id, host in hosts._hosts.items():
        configs = {vm: spec.config for vm, spec in host.specs.items()}
        for vm, config in configs.items():
            where[vm] = host_id
            assert config.reservation == now.reservation[vm]
        promised = sum(one.reservation + one.overhead for one in configs.values())
        assert promised <= host.config.memory - host.config.reserve
        assert sum(one.memory - one.reservation for one in configs.values()) <= 7 * GIB
        for row in host.state.vms[host.state.vms["vm"] >= 0]:
            vm = int(row["vm"])
            assert row["limit"] == now.limit[vm] // (4096 * 1024)
            assert row["shares"] == now.shares[vm]
    assert now.host_of.tolist() == where
