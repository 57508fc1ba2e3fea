"""Resource pools: division down the tree, admission, and what hosts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_builders import PRESSED, json_lines, packed, pressed, simulate
from hypothesis import given
from hypothesis import strategies as some

from cluster import pools
from cluster.pools import ROOT, UNLIMITED, Pool, Pools, Wants, entitlements
from cluster.scenario_file import ScenarioError
from hostsim.units import MIB, VmId


def tree(*given: tuple[int, dict[str, Any]], of_vm: list[int]) -> Pools:
    """Pools as (parent, what differs from a plain one)."""
    plain = {"reservation": 0, "expandable": True, "limit": UNLIMITED, "shares": 1000}
    made = tuple(
        Pool(f"p{at}", parent, **(plain | more)) for at, (parent, more) in enumerate(given)
    )
    return Pools(made, np.array(of_vm, np.int64))


def divided(found: Pools, total: int, **columns: list[int]) -> list[int]:
    n = len(found.of_vm)
    plain = {"reservation": [0] * n, "limit": [1000] * n, "shares": [10] * n, "demand": [1000] * n}
    wants = Wants(**{k: np.array(v, np.int64) for k, v in (plain | columns).items()})
    return entitlements(found, wants, np.ones(n, np.bool_), total).tolist()


def test_siblings_share_by_shares_and_their_vms_what_they_get() -> None:
    """Two pools 2 : 1; three VMs in the first, one in the second."""
    found = tree((ROOT, {"shares": 2000}), (ROOT, {"shares": 1000}), of_vm=[0, 0, 0, 1])
    assert divided(found, 900) == [200, 200, 200, 300]


def test_a_vm_beside_pools_is_a_sibling_of_theirs() -> None:
    found = tree((ROOT, {"shares": 10}), of_vm=[ROOT, 0, 0])
    assert divided(found, 800) == [400, 200, 200]


def test_what_one_does_not_demand_goes_to_the_others() -> None:
    found = tree((ROOT, {}), (ROOT, {}), of_vm=[0, 1])
    assert divided(found, 800, demand=[100, 1000]) == [100, 700]
    # Nobody wants the rest: it is theirs by shares.
    assert divided(found, 800, demand=[100, 300]) == [400, 400]


def test_reservations_and_limits_bound_a_pool() -> None:
    found = tree((ROOT, {"reservation": 600}), (ROOT, {}), of_vm=[0, 1])
    assert divided(found, 800) == [600, 200]
    found = tree((ROOT, {"limit": 100}), (ROOT, {}), of_vm=[0, 1])
    assert divided(found, 800) == [100, 700]


def test_pools_in_pools() -> None:
    """A half for p0, of which a third for p1 (a limit) and the rest for the VM beside it."""
    found = tree((ROOT, {}), (0, {"limit": 100}), (ROOT, {}), of_vm=[1, 0, 2])
    assert divided(found, 600) == [100, 200, 300]


@some.composite
def forests(draw: some.DrawFn) -> tuple[Pools, dict[str, list[int]], int]:
    n_pools, n_vms = draw(some.integers(0, 4)), draw(some.integers(1, 7))
    made = []
    for at in range(n_pools):
        limit = draw(some.sampled_from([UNLIMITED, 50, 300]))
        parent = draw(some.integers(-1, at - 1))
        held = draw(some.sampled_from([0, 0, 40, 200])) if parent == ROOT else 0
        made.append(
            (
                parent,
                {
                    "reservation": min(held, limit),
                    "limit": limit,
                    "shares": draw(some.integers(1, 50)),
                    "expandable": draw(some.booleans()),
                },
            )
        )

    def column(low: int, high: int) -> list[int]:
        return draw(some.lists(some.integers(low, high), min_size=n_vms, max_size=n_vms))

    limit = column(1, 200)
    limited = any(more["limit"] < UNLIMITED for _, more in made)
    columns = {
        "limit": limit,
        # Admission lets VMs reserve no more than their pool's limit: here none.
        "reservation": [0 if limited else draw(some.integers(0, most // 2)) for most in limit],
        "shares": column(1, 30),
        "demand": column(0, 250),
    }
    found = tree(*made, of_vm=column(-1, n_pools - 1))
    return found, columns, draw(some.integers(0, 1500))


@given(forests())
def test_bounds_hold_and_nothing_is_wasted(given_: tuple[Pools, dict[str, list[int]], int]) -> None:
    found, columns, total = given_
    got = np.array(divided(found, total, **columns))
    reservation, limit = np.array(columns["reservation"]), np.array(columns["limit"])
    assert (got <= limit).all()
    _, _, cap = pools._summed(found, wants_of(columns), np.ones(len(got), np.bool_))
    for at, pool in enumerate(found.pools):
        mine = got[is_below(found, at)]
        held = reservation[is_below(found, at)].sum()
        assert mine.sum() <= max(pool.limit, held)
        assert mine.sum() <= max(cap[at], held)
    assert got.sum() <= max(total, reserved(found, columns))
    unlimited = all(not pool.is_limited for pool in found.pools)
    if unlimited and reserved(found, columns) <= total:
        assert got.sum() == min(total, limit.sum())
        assert (got >= reservation).all()


def wants_of(columns: dict[str, list[int]]) -> Wants:
    return Wants(**{name: np.array(values, np.int64) for name, values in columns.items()})


def is_below(found: Pools, pool: int) -> Any:
    """(n_vms,) whether each VM is in a pool or in one below it."""

    def inside(at: int) -> bool:
        return at == pool or (at != ROOT and inside(found.pools[at].parent))

    return np.array([inside(at) for at in found.of_vm.tolist()])


def reserved(found: Pools, columns: dict[str, list[int]]) -> int:
    low, _, _ = pools._summed(found, wants_of(columns), np.ones(len(found.of_vm), np.bool_))
    at_root = sum(low[at] for at, pool in enumerate(found.pools) if pool.parent == ROOT)
    mine = np.array(columns["reservation"])[found.of_vm == ROOT]
    return at_root + int(mine.sum())


def admits(found: Pools, promised: list[int], vm: int, needed: int, room: int = 1000) -> bool:
    return found.admits(np.array(promised, np.int64), VmId(vm), needed, room)


def test_admission_takes_from_the_pool_then_from_above_if_it_may() -> None:
    fixed = tree((ROOT, {"reservation": 100, "expandable": False}), of_vm=[0, 0])
    assert admits(fixed, [60, 0], 1, 40) and not admits(fixed, [60, 0], 1, 41)
    grows = tree((ROOT, {"reservation": 100}), of_vm=[0, 0])
    assert admits(grows, [60, 0], 1, 41)
    assert admits(grows, [60, 0], 1, 940) and not admits(grows, [60, 0], 1, 941)
    limited = tree((ROOT, {"limit": 100}), of_vm=[0, 0])
    assert admits(limited, [60, 0], 1, 40) and not admits(limited, [60, 0], 1, 41)
    # What a child has reserved is taken of its parent, used or not.
    nested = tree(
        (ROOT, {"reservation": 100, "expandable": False}), (0, {"reservation": 70}), of_vm=[0, 1]
    )
    assert admits(nested, [0, 0], 0, 30) and not admits(nested, [0, 0], 0, 31)
    assert admits(nested, [0, 0], 1, 100) and not admits(nested, [0, 0], 1, 101)


POOLS: list[dict[str, Any]] = [
    {"name": "gold", "shares": "high", "reservation": "128 MiB"},
    {"name": "lead", "shares": "low"},
    {"name": "cellar", "parent": "lead", "limit": "64 MiB"},
]


BIG = {"reservation": "2 GiB"}


def pooled(folder: Path, **values: Any) -> Any:
    groups = PRESSED["vms"]
    vms = [groups[0] | {"pool": "gold", "count": 4, "interval": "0 s"}]
    vms += [groups[0] | {"name": "low", "pool": "lead", "count": 4, "interval": "0 s"}]
    vms += [groups[0] | {"name": "limited", "pool": "cellar", "count": 1}]
    options = {"balancing": {"interval": "1 min"}, "events": [], "pools": POOLS} | values
    return pressed(folder, vms=vms, **options)


def test_hosts_divide_memory_as_the_tree_does(tmp_path: Path) -> None:
    """Nine VMs that want more than there is: gold ones get more than those of lead, and a limited
    one no more than its pool's limit. Without pools, all are alike."""

    def mean_allocated(folder: Path) -> dict[str, float]:
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "vms.parquet").to_pydict()
        found: dict[str, list[float]] = {}
        for name, held in zip(table["name"], table["allocated_mean_bytes"], strict=True):
            found.setdefault(name.rpartition("-")[0] or name, []).append(held / MIB)
        return {name: sum(values) / len(values) for name, values in found.items()}

    loaded = pooled(tmp_path)
    first = simulate(loaded, tmp_path / "run", check=True).report
    fleet = lambda loaded, population: packed(loaded, population, [[2], [0, 1]])  # noqa: E731
    assert simulate(loaded, tmp_path / "packed", fleet=fleet).report == first
    found = mean_allocated(tmp_path / "run")
    simulate(pooled(tmp_path, pools=[{"name": n["name"]} for n in POOLS]), tmp_path / "equal")
    equal = mean_allocated(tmp_path / "equal")
    assert found["web"] > 1.1 * found["low"]
    assert equal["web"] == pytest.approx(equal["low"], rel=0.1)
    assert found["limited"] < 0.9 * equal["limited"]


def test_who_finds_no_room_in_its_pool_is_refused(tmp_path: Path) -> None:
    small = [POOLS[0] | {"reservation": "50 MiB", "expandable": False}, *POOLS[1:]]
    simulate(pooled(tmp_path, pools=small), tmp_path / "run")
    refused = [one for one in json_lines(tmp_path / "run") if one["kind"] == "refused"]
    assert {one["vm"] for one in refused} == {"web-3", "web-4"}
    assert {one["reason"] for one in refused} == {"its pool has not the memory reserved"}


@pytest.mark.parametrize(
    ("given_", "path", "words"),
    [
        ([{"name": "a", "parent": "b"}], "pools[0].parent", "is no pool"),
        ([{"name": "gold"}, {"name": "gold"}], "pools[1].name", "is also the name of"),
        (
            [{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}],
            "pools[0].parent",
            "leads back to the pool itself",
        ),
        ([{"name": "a", "reservation": "2 GiB", "limit": "1 GiB"}], "pools[0]", "must not exceed"),
        ([], "vms[0].pool", "is no pool"),
        (
            [POOLS[0] | {"limit": "1 GiB"}, *POOLS[1:], {"name": "x", "parent": "gold"} | BIG],
            "pools[0].limit",
            "is less than pools in it reserve together, 2 GiB",
        ),
        (
            [POOLS[0] | {"expandable": False}, *POOLS[1:], {"name": "x", "parent": "gold"} | BIG],
            "pools[0].reservation",
            "is less than pools in it reserve together, 2 GiB",
        ),
    ],
)
def test_wrong_pools_are_refused(
    tmp_path: Path, given_: list[dict[str, Any]], path: str, words: str
) -> None:
    with pytest.raises(ScenarioError) as refused:
        pooled(tmp_path, pools=given_)
    assert any(one.path == path and words in one.message for one in refused.value.problems)
