"""Load balancing: demand, imbalance, the best move against all moves, and whole runs."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_builders import PRESSED, arrays_of, cluster, json_lines, packed, pressed, simulate
from hypothesis import given
from hypothesis import strategies as some
from scenario_files import write

from cluster import rules
from cluster.policy import balancing, demand, flights
from cluster.policy.decisions import Sight
from cluster.policy.state import ON, ClusterState
from cluster.population import HostSpec, Population, populate
from cluster.scenario_file import load
from hostsim.config import HostConfig
from hostsim.units import GIB, MIB, PAGE_SIZE, HostId, VmId

EPOCH_MS = 60_000
NOBODY = Population((), ())


def sight(epoch: int = 5, network: str = "1192 MiB/s", **values: Any) -> Sight:
    """What a plan looks at; values: of `balancing`."""
    options = {"level": 5, "interval": "5 min"} | values
    data = PRESSED | {"balancing": options, "migration": {"bandwidth": network}}
    with tempfile.TemporaryDirectory() as folder:
        scenario = load(write(Path(folder), data, "s.yaml")).scenario
    return Sight(NOBODY, scenario, epoch)


def hosts_with(*vms: list[int], memory: int = 100, **columns: Any) -> ClusterState:
    """Hosts of `memory` GiB whose VMs are active in so many GiB, and hold no more."""
    sizes = [size for host in vms for size in host]
    on = [at for at, host in enumerate(vms) for _ in host]
    used = [size * GIB for size in sizes]
    return cluster(
        memory=[memory * GIB] * len(vms),
        size=used,
        on=on,
        consumed=used,
        active=used,
        allocated=[size // PAGE_SIZE for size in used],
        **columns,
    )


def test_demand_is_active_memory_a_part_of_the_idle_and_overhead() -> None:
    """PercentIdleMBInMemDemand = 25: active + 25 % of idle consumed + overhead."""
    state = cluster(
        memory=[GIB, GIB],
        size=[600 * MIB],
        on=[1],
        consumed=[500 * MIB],
        active=[100 * MIB],
        overhead=[32 * MIB],
        cpu_ms=[30_000],
        cpus=[2, 4],
    )
    load = demand.measure(state, sight())
    assert load.demand.tolist() == [[100 * MIB + 100 * MIB + 32 * MIB], [30_000]]
    assert load.on_host.tolist() == [[0, 232 * MIB], [0, 30_000]]
    assert load.loads[1].tolist() == [0, 30_000 / (4 * EPOCH_MS)]


def test_imbalance_is_the_standard_deviation_of_loads() -> None:
    loads = np.array([[0.2, 0.4, 0.9], [0.5, 0.1, 0.1]])
    expected = np.sqrt(np.var(loads[0]) + np.var(loads[1]))
    assert demand.imbalance(loads) == pytest.approx(expected)
    assert demand.imbalance(loads[:, :1]) == 0


@pytest.mark.parametrize(
    ("level", "hosts", "tolerated"), [(5, 4, 0), (4, 4, 0.05), (3, 4, 0.1), (2, 100, 0.03)]
)
def test_levels_tolerate_what_their_scale_says(level: int, hosts: int, tolerated: float) -> None:
    assert balancing.tolerated(level, hosts) == pytest.approx(tolerated)


def moved(state: ClusterState, at: Sight) -> list[tuple[int, int, int]]:
    """(VM, from, to) of what is ordered."""
    before = copy.deepcopy(arrays_of(state))
    plan = balancing.plan(state, at)
    assert arrays_of(state) == before, "a policy wrote to the state"
    return [(f.vm, f.source, f.target) for f in plan.after.flights]


def names(count: int) -> Population:
    return Population(tuple(HostSpec(HostId(i), f"h{i}", HostConfig()) for i in range(count)), ())


def looking(count: int, **values: Any) -> Sight:
    found = sight(**values)
    return Sight(names(count), found.scenario, found.epoch)


def test_load_goes_from_the_fullest_to_the_emptiest() -> None:
    state = hosts_with([10, 20, 30], [10], [])
    first = balancing.best_move(state, demand.measure(state, looking(3)), set())
    assert first is not None and (first.vm, first.target) == (2, 2)
    assert moved(state, looking(3)) == [(0, 0, 1), (2, 0, 2)]


@pytest.mark.parametrize(
    ("level", "expected"), [(1, []), (2, []), (3, [(0, 0, 1)]), (5, [(0, 0, 1)])]
)
def test_a_level_leaves_an_imbalance_that_it_tolerates(level: int, expected: list[Any]) -> None:
    """Loads of 0.4 and 0: a standard deviation of 0.2, between levels 2 and 3 of two hosts."""
    state = hosts_with([20, 20], [])
    assert moved(state, looking(2, level=level)) == expected


def test_balanced_hosts_are_left_alone() -> None:
    assert moved(hosts_with([10, 10], [20], [5, 15]), looking(3)) == []


def test_a_move_that_costs_more_than_it_gains_is_not_made() -> None:
    """An imbalance of 0.1 for 300 s is worth 30; 10 GiB, a tenth of a host, take 340 s at 30 MiB a
    second, which costs 34, and half as long at twice that."""
    state = hosts_with([10, 20], [10])
    assert moved(state, looking(2, network="60 MiB/s")) == [(0, 0, 1)]
    assert moved(state, looking(2, network="30 MiB/s")) == []


def test_balancing_looks_at_its_interval() -> None:
    at = [epoch for epoch in range(12) if balancing.is_due(sight(epoch))]
    assert at == [5, 10]
    at = [epoch for epoch in range(12) if balancing.is_due(sight(epoch, interval="90 s"))]
    assert at == [2, 4, 6, 8, 10]
    assert not any(balancing.is_due(sight(epoch, level=0)) for epoch in range(12))
    assert balancing.next_after(sight(5)) == 10 and balancing.next_after(sight(6)) == 10


def test_hosts_that_are_not_open_take_nothing() -> None:
    state = hosts_with([20, 20], [10, 10], [], power=[ON, ON, 1])
    assert all(target != 2 for _, _, target in moved(state, looking(3)))


@some.composite
def clusters(draw: some.DrawFn) -> ClusterState:
    hosts, vms = draw(some.integers(2, 5)), draw(some.integers(1, 9))

    def column(n: int, low: int, high: int) -> list[int]:
        return draw(some.lists(some.integers(low, high), min_size=n, max_size=n))

    active = [size * GIB for size in column(vms, 0, 9)]
    pairs = draw(some.lists(some.tuples(some.integers(0, vms - 1), some.integers(0, vms - 1))))
    apart = [rules.Rule(rules.APART, tuple(sorted({VmId(a), VmId(b)}))) for a, b in pairs[:3]]
    return cluster(
        memory=[size * GIB for size in column(hosts, 10, 40)],
        size=[10 * GIB] * vms,
        on=column(vms, -1, hosts - 1),
        reservation=[size * GIB for size in column(vms, 0, 9)],
        power=[draw(some.sampled_from((ON, ON, ON, 1, 2))) for _ in range(hosts)],
        spare=[size * GIB // PAGE_SIZE for size in column(hosts, 0, 20)],
        active=active,
        consumed=active,
        allocated=[size // PAGE_SIZE for size in active],
        cpus=column(hosts, 1, 8),
        cpu_ms=column(vms, 0, 3 * EPOCH_MS),
        rules=rules.of(tuple(apart)),
    )


def naive_best(state: ClusterState, at: Sight) -> tuple[float, list[tuple[int, int]]]:
    """The least imbalance that one allowed move leads to, and the moves that do: all are tried."""
    load = demand.measure(state, at)
    open_hosts = [h for h in range(len(state.power)) if state.power[h] == ON]
    found: dict[tuple[int, int], float] = {}
    for vm, source in enumerate(state.host_of.tolist()):
        for target in open_hosts:
            if source not in open_hosts:
                continue
            if flights.why_not(state, at, VmId(vm), HostId(target)) is not None:
                continue
            if not state.rules.allowed(state.host_of, VmId(vm), len(state.power))[target]:
                continue
            on_host = load.on_host.copy()
            on_host[:, source] -= load.demand[:, vm]
            on_host[:, target] += load.demand[:, vm]
            found[vm, target] = demand.imbalance((on_host / load.capacity)[:, open_hosts])
    least = min(found.values(), default=np.inf)
    return least, [move for move, value in found.items() if value <= least + 1e-9]


@given(state=clusters())
def test_the_best_move_is_the_one_that_trying_all_finds(state: ClusterState) -> None:
    """With no more hosts than candidates, all moves are looked at."""
    at = looking(len(state.power))
    load = demand.measure(state, at)
    open_hosts = np.flatnonzero(state.power == ON)
    if len(open_hosts) < 2:
        return
    now = demand.imbalance(load.loads[:, open_hosts])
    least, moves = naive_best(state, at)
    move = balancing.best_move(state, load, set())
    if move is None:
        assert least >= now - 1e-9
    else:
        assert (move.vm, move.target) in moves
        assert move.imbalance == pytest.approx(least, abs=1e-9)


@given(state=clusters())
def test_balancing_never_breaks_what_admission_promises(state: ClusterState) -> None:
    at = looking(len(state.power))
    plan = balancing.plan(state, at)
    after = plan.after
    for flight in after.flights:
        assert after.power[flight.target] == ON
        assert after.spare[flight.target] >= 0
        allowed = after.rules.allowed(after.whereabouts(), flight.vm, len(after.power))
        assert allowed[flight.target]
    grown = after.promised(after.reservation) > np.maximum(
        state.per_host(state.reservation), after.hosts.reservable
    )
    assert not grown.any()
    assert len(plan.orders) <= 2 * len(after.power) + len(after.rules.of_vm)


def test_broken_rules_are_mended_at_any_level() -> None:
    apart = rules.of((rules.Rule(rules.APART, (VmId(0), VmId(1))),))
    state = hosts_with([1, 1], [30], rules=apart)
    assert moved(state, looking(2, level=1)) == [(0, 0, 1)]
    only = rules.of((rules.Rule(rules.HOSTS, (VmId(1),), (HostId(2),)),))
    state = hosts_with([1, 1], [30], [50], rules=only)
    assert moved(state, looking(3, level=1)) == [(1, 0, 2)]
    together = rules.of((rules.Rule(rules.TOGETHER, (VmId(0), VmId(2), VmId(3))),))
    state = hosts_with([1], [30, 2, 3], rules=together)
    assert moved(state, looking(2, level=1)) == [(0, 0, 1)]


UNEVEN: dict[str, Any] = {
    "hosts": [{"name": "esx", "count": 3, "memory": "640 MiB", "reserve": "16 MiB", "cpus": 4}],
    "placement": {"policy": "first-fit", "overcommit": 1.5},
    "events": [],
}
"""First-fit fills one host after the other."""


def balanced(folder: Path, level: int) -> Any:
    return pressed(folder, **UNEVEN, balancing={"level": level, "interval": "2 min"})


def test_a_run_that_balances_is_even_and_the_same_however_hosts_are_packed(tmp_path: Path) -> None:
    loaded = balanced(tmp_path, 5)
    first = simulate(loaded, tmp_path / "one", check=True).report
    assert first["migrations"]["count"] > 0
    why = {one["why"] for one in json_lines(tmp_path / "one") if one["kind"] == flights.MIGRATE}
    assert why == {balancing.WHY}
    for number, packs in enumerate(([[0], [1], [2]], [[2, 0], [1]])):
        fleet = lambda loaded, population, packs=packs: packed(loaded, population, packs)  # noqa: E731
        again = simulate(loaded, tmp_path / f"packed-{number}", fleet=fleet).report
        assert again["digest"] == first["digest"]
    off = simulate(balanced(tmp_path, 0), tmp_path / "off").report
    assert off["migrations"]["count"] == 0
    assert off["cost"]["slowdown"]["mean"] > first["cost"]["slowdown"]["mean"]


def test_rules_of_a_scenario_hold_in_its_run(tmp_path: Path) -> None:
    values: dict[str, Any] = {"rules": [{"kind": "apart", "vms": ["web-1", "web-2", "web-3"]}]}
    values["rules"] += [{"kind": "hosts", "vms": ["batch"], "hosts": ["esx-2"]}]
    loaded = pressed(tmp_path, **UNEVEN, **values)
    simulate(loaded, tmp_path / "run")
    placed = {
        one["vm"]: one["host"] for one in json_lines(tmp_path / "run") if one["kind"] == "power_on"
    }
    assert len({placed[f"web-{number}"] for number in (1, 2, 3)}) == 3
    assert {placed.get(f"batch-{number}", "esx-2") for number in (1, 2, 3)} == {"esx-2"}
    assert len(populate(loaded).rules.of_vm) == 6
