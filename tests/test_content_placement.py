"""Placement and balancing by what VMs would share: against a twin, in runs, and what they gain."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_builders import cluster, json_lines, packed, pressed, simulate
from hypothesis import given
from hypothesis import strategies as some
from test_balancing import UNEVEN, looking
from test_placement import POLICIES, policy
from test_sketches import UNIT, Names, table_of, there
from test_sketches import clusters as sketched

from cluster import sketches, why
from cluster.coordinator import barriers
from cluster.host_set import sketching
from cluster.messages import HOST_ROW, VM_ROW, EpochReport, PowerOff, PowerOn
from cluster.policy import balancing, demand, flights
from cluster.policy.placement import place, taken
from cluster.policy.state import NOWHERE, ON, ClusterState, initial, learn, obey
from cluster.policy.state import copy as copy_of
from cluster.population import populate
from cluster.scenario_file import load
from hostsim.sketch import NOTHING, SKETCH
from hostsim.units import PAGE_SIZE, HostId, VmId

STUDY = Path(__file__).parents[1] / "scenarios" / "studies" / "content-placement.yaml"
WEIGHTS = (0, 1, 300, 1000)
Case = tuple[Names, list[int], list[int], int]


def state_of(case: Case, **columns: Any) -> ClusterState:
    """Hosts of a hundred units, VMs of forty, that are there and hold what a case says."""
    rows, holds, where, n_hosts = case
    size = [40 * UNIT] * len(holds)
    return cluster(
        memory=[100 * UNIT] * n_hosts,
        size=size,
        on=where,
        sketches=table_of(rows, holds),
        **({"holds": holds} | columns),
    )


# Placement


def naive_host(state: ClusterState, case: Case, vm: int, rule: Any) -> int:
    """The host with the best score, then the best for the policy, then the first: one by one."""
    rows, holds, where, n_hosts = case
    ranked = []
    for host in range(n_hosts):
        size, memory = int(state.vms.size[vm]), int(state.hosts.memory[host])
        full = Fraction(size * (1 + where.count(host)), memory)
        blind = {
            "first-fit": Fraction(-host, n_hosts),
            "best-fit": full,
            "worst-fit": -full,
        }[rule.policy]
        common = UNIT * len(rows[holds[vm]] & set(there(rows, holds, where, host)))
        part = Fraction(common if state.hosts.mixes[host] else 0, size)
        score = blind * (1000 - rule.content) + part * rule.content
        # What floats cannot tell apart is alike.
        ranked.append((round(float(score), 6), round(float(blind), 6), -host))
    return -max(ranked)[2]


@given(
    case=sketched(),
    name=some.sampled_from(POLICIES),
    weight=some.sampled_from(WEIGHTS),
    mixes=some.lists(some.integers(0, 1), min_size=4, max_size=4),
)
def test_the_choice_is_the_one_that_scoring_every_host_finds(
    case: Case, name: str, weight: int, mixes: list[int]
) -> None:
    state, rule = state_of(case, mixes=mixes[: case[3]]), policy(name, content=weight)
    for vm, host in enumerate(case[2]):
        if host == NOWHERE:
            choice = place(state, rule, VmId(vm))
            assert choice.host == naive_host(state, case, vm, rule)
            blind = place(state, policy(name), VmId(vm))
            assert (choice.blind, choice.left) == (blind.host if weight else None, blind.left)


@given(case=sketched(), name=some.sampled_from(POLICIES), weight=some.sampled_from(WEIGHTS))
def test_where_no_vm_may_share_content_decides_nothing(case: Case, name: str, weight: int) -> None:
    state = state_of(case, mixes=[0] * case[3])
    for vm, host in enumerate(case[2]):
        if host == NOWHERE:
            choice = place(state, policy(name, content=weight), VmId(vm))
            assert choice.host == place(state, policy(name), VmId(vm)).host
            assert choice.common == choice.blind_common == 0


@given(case=sketched())
def test_what_is_held_with_one_vm_more_is_as_if_looked_at_anew(case: Case) -> None:
    state, rule = state_of(case), policy("worst-fit", content=500)
    for vm, host in enumerate(case[2]):
        if host == NOWHERE:
            after = copy_of(state)
            after.host_of[vm] = case[3] - 1
            found = taken(state, rule).with_one(after, rule, VmId(vm))
            assert np.array_equal(found.is_held, taken(after, rule).is_held)


def two_alike(**columns: Any) -> ClusterState:
    """VM 2 holds what VM 1 does, on the fuller host; VM 0 has nothing of it."""
    case: Case = ([set(range(10)), {20}], [1, 0, 0, 1], [0, 1, NOWHERE, 1], 2)
    return state_of(case, **columns)


def test_content_outweighs_load_from_a_weight_on() -> None:
    """10 of 40 units in common, at a host that is fuller by 40 of 100 units."""
    assert place(two_alike(), policy("worst-fit"), VmId(2)).host == 0
    choice = place(two_alike(), policy("worst-fit", content=700), VmId(2))
    assert (choice.host, choice.common) == (1, 10 * UNIT)
    assert (choice.blind, choice.blind_common) == (0, 0)
    # 0.25 w = 0.4 (1 - w) at w = 0.4 / 0.65
    assert place(two_alike(), policy("worst-fit", content=615), VmId(2)).host == 0
    assert place(two_alike(), policy("worst-fit", content=616), VmId(2)).host == 1


def test_a_host_without_room_takes_no_vm_however_alike() -> None:
    state = two_alike(power=[ON, 1])
    assert place(state, policy("worst-fit", content=1000), VmId(2)).host == 0


# Balancing


def memory_load(state: ClusterState, case: Case, alone: Any, where: Any) -> Any:
    """(n_hosts,) what VMs demand together, idle memory a quarter, each host from sets of names."""
    rows, holds, _, n_hosts = case
    found = []
    for host in range(n_hosts):
        its = [vm for vm in range(len(holds)) if where[vm] == host]
        total = sum(state.active[vm] + (alone[vm] - state.active[vm]) // 4 for vm in its)
        counts = there(rows, holds, list(where), host)
        total -= UNIT / 4 * sum(n - 1 for n in counts.values())
        found.append(total / state.hosts.reservable[host])
    return np.array(found, np.float64)


@given(case=sketched(), weight=some.sampled_from((200, 1000)))
def test_the_best_move_is_the_one_that_counting_all_anew_finds(case: Case, weight: int) -> None:
    n_vms, n_hosts = len(case[1]), case[3]
    held = [20 * UNIT] * n_vms
    columns = {"active": [4 * UNIT] * n_vms, "consumed": held}
    state = state_of(case, **columns, allocated=[30 * UNIT // PAGE_SIZE] * n_vms)
    shared = balancing._shared(state)
    at = looking(n_hosts)
    load = demand.measure(state, at, shared)
    where = np.array(case[2])
    before = memory_load(state, case, shared.alone, where)
    assert load.loads[0] == pytest.approx(before, abs=1e-9)
    gains: dict[tuple[int, int], float] = {}
    for vm in np.flatnonzero(where >= 0).tolist():
        for target in range(n_hosts):
            moved = where.copy()
            moved[vm] = target
            after = memory_load(state, case, shared.alone, moved)
            if np.std(after) <= np.std(before) + 1e-9 and target != where[vm]:
                less = np.std(before) - np.std(after), np.mean(before) - np.mean(after)
                gains[vm, target] = ((1000 - weight) * less[0] + weight * less[1]) / 1000
    terms = balancing.Terms(limit=0.0, idle=0.25, weight=weight / 1000)
    move = balancing.best_move(state, load, set(), terms) if n_hosts > 1 else None
    best = max(gains.values(), default=0.0)
    if move is None:
        assert best <= 1e-9
    elif abs(np.std(before) - move.imbalance) > 1e-8:  # else a hair decides what is allowed
        assert move.gain == pytest.approx(best, abs=1e-9)
        assert gains[move.vm, move.target] == pytest.approx(best, abs=1e-9)


def alike_apart(**columns: Any) -> ClusterState:
    """Two hosts with as much load; of their four VMs two and two are alike, and apart."""
    case: Case = ([set(range(9)), set(range(20, 29))], [0, 1, 0, 1], [0, 0, 1, 1], 2)
    sizes = [12 * UNIT] * 4
    values: dict[str, Any] = {"active": [0] * 4, "consumed": sizes, "footprint": sizes}
    values["allocated"] = [12 * UNIT // PAGE_SIZE] * 4
    return state_of(case, **(values | columns))


def content_sight(weight: int, level: int = 3) -> Any:
    at = looking(2, level=level)
    changed = {"content": weight}
    scenario = at.scenario.model_copy(
        update={"placement": at.scenario.placement.model_copy(update=changed)}
    )
    return type(at)(at.population, scenario, at.epoch)


def test_balancing_brings_together_what_is_alike_as_far_as_imbalance_is_tolerated() -> None:
    plan = balancing.plan(alike_apart(), content_sight(1000))
    assert [(f.vm, f.source, f.target) for f in plan.after.flights] == [(0, 0, 1), (1, 0, 1)]
    told = plan.decisions[0]
    assert told.facts["common_bytes"] == 9 * UNIT and told.facts["common_before_bytes"] == 0
    text = why.sentence({"kind": told.kind, "host": "a", "to": "b"} | told.facts)
    assert "it may share" in text and "where it was" in text
    for other in (content_sight(0), content_sight(1000, level=5)):
        assert balancing.plan(alike_apart(), other).after.flights == (), "nothing is tolerated"
    salted = alike_apart(mixes=[0, 0])
    assert balancing.plan(salted, content_sight(1000)).after.flights == ()


def test_what_vms_would_consume_alone_is_bounded_by_what_they_have_in_memory() -> None:
    """Measured: 12 units each, of which 9 are in common: half of them would be missed apart."""
    case: Case = ([set(range(9))], [0, 0], [0, 0], 1)
    sizes = [12 * UNIT] * 2
    its_part = 9 * (UNIT // 2)
    for allocated, alone in ((14, 14 * UNIT), (40, 12 * UNIT + its_part), (0, 12 * UNIT)):
        pages = [allocated * UNIT // PAGE_SIZE] * 2
        shared = balancing._shared(state_of(case, consumed=sizes, allocated=pages))
        assert shared.alone.tolist() == [alone] * 2
        assert shared.saved.tolist() == [9 * UNIT]


# Whole runs

MIXED: dict[str, Any] = UNEVEN | {
    "images": [
        {
            "name": name,
            "footprint": "48 MiB",
            "content": {
                "kernel": {"image": "20 %", "unique": "10 %"},
                "cache": {"image": "30 %"},
                "anon": {"zero": "5 %", "image": "10 %", "unique": "25 %"},
            },
        }
        for name in ("linux", "other")
    ],
    "fidelity": {"sample": 4},
}


def mixed(folder: Path, weight: str, **values: Any) -> Any:
    """Eight VMs of two images, whose growth is unshared, on three hosts."""
    like = {"count": 4, "memory": "128 MiB", "overhead": "4 MiB", "workload": "hungry"}
    like["interval"] = "30 s"
    groups = [like | {"name": "web", "image": "linux"}, like | {"name": "batch", "image": "other"}]
    placing = {"policy": "worst-fit", "overcommit": 2, "content": weight}
    balancing = {"level": 4, "interval": "2 min"}
    changes = {"vms": groups, "placement": placing, "balancing": balancing}
    return pressed(folder, **(MIXED | changes | values))


def test_a_run_that_goes_by_content_is_the_same_however_hosts_are_packed(tmp_path: Path) -> None:
    """Hosts sketch what VMs hold at each look of balancing, whatever barriers there are."""
    loaded = mixed(tmp_path, "60 %")
    first = simulate(loaded, tmp_path / "one", check=True).report
    told = json_lines(tmp_path / "one")
    moves = [one for one in told if one["kind"] == flights.MIGRATE]
    assert moves and all("common_before_bytes" in one for one in moves)
    for number, packs in enumerate(([[0], [1], [2]], [[2, 0], [1]])):
        fleet = lambda loaded, population, packs=packs: packed(loaded, population, packs)  # noqa: E731
        again = simulate(loaded, tmp_path / f"packed-{number}", fleet=fleet).report
        assert again["digest"] == first["digest"]
        assert json_lines(tmp_path / f"packed-{number}") == told


def test_decisions_tell_what_content_did(tmp_path: Path) -> None:
    simulate(mixed(tmp_path, "100 %"), tmp_path / "run")
    placed = [one for one in json_lines(tmp_path / "run") if one["kind"] == "power_on"]
    assert len(placed) == 8
    for one in placed:
        assert one["content_permille"] == 1000
        assert one["common_bytes"] >= one["blind_common_bytes"]
        assert "it may share" in why.sentence(one)
    elsewhere = [one for one in placed if one["blind_host"] != one["host"]]
    assert elsewhere and all(f"on {one['blind_host']}" in why.sentence(one) for one in elsewhere)
    of = {image: {o["host"] for o in placed if o["vm"].startswith(image)} for image in ("web", "b")}
    assert not of["web"] & of["b"], "like went to like"


def test_hosts_sketch_at_each_look_and_the_state_learns_it(tmp_path: Path) -> None:
    """Guests that write what they have hold less in common than their image promised."""
    loaded = mixed(tmp_path, "60 %")
    population, scenario = populate(loaded), loaded.scenario
    fleet = packed(loaded, population, [[0, 2], [1]])
    looks = 0
    for barrier in barriers(population, scenario, fleet):
        sketch, now = barrier.report.sketches, barrier.now
        assert (sketch is not None) == (barrier.epoch % 2 == 0)
        if sketch is None:
            continue
        looks += 1
        n_expected = len(now.sketches.name_starts) - 1
        for vm in np.flatnonzero(now.host_of != NOWHERE).tolist():
            row, promised = int(now.holds[vm]), int(now.sketches.expected[vm])
            assert (row >= n_expected) == (vm in sketch["vm"])
            found, image = (set(sketches.atoms_of(now.sketches, r)) for r in (row, promised))
            assert found <= image
    assert looks > 5 and found and found < image


@pytest.mark.parametrize("level", [0, 1])
def test_hosts_sketch_nothing_where_nobody_would_look(tmp_path: Path, level: int) -> None:
    loaded = mixed(tmp_path, "60 %", balancing={"level": level, "interval": "2 min"})
    population = populate(loaded)
    assert population.sketches is not None
    assert sketching(loaded.scenario, population) is None
    blind = mixed(tmp_path, "0 %")
    assert sketching(blind.scenario, populate(blind)) is None


def test_a_vm_that_comes_again_is_expected_to_hold_what_it_did_at_first(tmp_path: Path) -> None:
    population = populate(mixed(tmp_path, "60 %"))
    now = initial(population)
    spec = population.vms[0].spec
    rows = np.array([(0, NOTHING)], SKETCH)
    on = obey(now, [PowerOn(HostId(0), spec)])
    vm_rows = np.zeros(1, VM_ROW)
    found = learn(on, EpochReport(np.zeros(1, HOST_ROW), vm_rows, (), 0.0, sketches=rows))
    assert len(sketches.atoms_of(found.sketches, int(found.holds[0]))) == 0
    again = obey(found, [PowerOff(HostId(0), VmId(0)), PowerOn(HostId(1), spec)])
    assert len(sketches.atoms_of(again.sketches, int(again.holds[0]))) > 0


# What it gains


@cache
def _fitted(seed: int, changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    loaded = load(STUDY, changes={"seed": seed, "sweep": None} | dict(changes))
    with tempfile.TemporaryDirectory() as folder:
        report = simulate(loaded, Path(folder) / "run").report
    assert report["vms"]["refused"] > 0, "more VMs than fit"
    memory = report["memory_gib"]
    assert memory["ballooned"]["max"] == memory["swapped"]["max"] == 0, "none is squeezed to fit"
    return {"vms": report["vms"]["placed"], "memory": memory}


def fitted(seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """How many VMs of the study fit, and what becomes of memory."""
    return _fitted(seed, tuple(changes.items()))


SEEDS = (1, 2, 3)
BLIND = {"placement.content": "0 %"}
FIRST_FIT = BLIND | {"placement.policy": "first-fit"}
ONE_IMAGE = {f"vms.{at}.image": "debian-web" for at in range(5)}
SALTED = {"hosts.0.sharing.salting": "vm"}
LARGER = {"hosts.0.count": 8, "hosts.0.memory": "4 GiB", "hosts.0.reserve": "256 MiB"}


def gain(changes: dict[str, Any], before: dict[str, Any]) -> float:
    """How many more VMs fit, in %: mean over seeds."""
    more = [fitted(seed, changes)["vms"] / fitted(seed, before)["vms"] for seed in SEEDS]
    return float(100 * np.mean(more) - 100)


def test_placement_by_content_gains_what_the_literature_says() -> None:
    """Five kinds of measured Debian guest come in turns at 16 hosts with room for nine each.

    Expected: 17 % more VMs (Memory Buddies, VEE 2009) to 30 % (its technical report TR36-07) than
    placed at random. Simulated: 16 % more than with worst-fit, which deals the kinds out evenly,
    26 % more than with first-fit. Tolerance: 2 points, of whole VMs on sixteen hosts."""
    assert 17 - 2 <= gain({}, BLIND) <= 30 + 2
    assert 17 - 2 <= gain({}, FIRST_FIT) <= 30 + 2
    saved = [
        fitted(seed, changes)["memory"]["shared_saved"]["max"]
        for changes in ({}, BLIND)
        for seed in SEEDS
    ]
    assert min(saved[:3]) > 1.4 * max(saved[3:])


def test_a_host_with_room_for_more_kinds_gains_less() -> None:
    """With 21 VMs a host, four of each kind: the k - 1 kinds' common pages that content does not
    hold at a host are a smaller part of it. Simulated: 9 %."""
    assert 5 <= gain(LARGER, LARGER | BLIND) < gain({}, BLIND)


def test_where_all_vms_are_alike_there_is_nothing_to_gain() -> None:
    """Expected: nothing, as all hosts are equally good. Simulated: 3 % less, since hosts that fill
    one by one do so faster than pages are scanned, and one of nine VMs may find no room. Tolerance:
    4 %, half a VM a host."""
    assert abs(gain(ONE_IMAGE, ONE_IMAGE | BLIND)) <= 4


def test_where_no_vm_may_share_placement_by_content_is_placement_by_load() -> None:
    """Salting, the default since ESXi 5.0 U3d. Expected: no gain, and no loss, exactly."""
    assert fitted(1, SALTED) == fitted(1, SALTED | BLIND)
