"""What VMs of a host have in common, against sets of names."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster import sketches
from cluster.population import populate
from cluster.scenario_file import load
from cluster.sketches import Sketches
from hostsim.sketch import NOTHING, SKETCH

SCALE = Path(__file__).parents[1] / "scenarios" / "scale-1000.yaml"
UNIT = 3 * 4096

Names = list[set[int]]


def table_of(rows: Names, expected: list[int], merged: bool = True) -> Sketches:
    """A table whose rows hold these names."""
    flat = np.array([name for row in rows for name in sorted(row)], np.int64)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    if merged:
        atom_starts, atoms, sizes = sketches._merged(starts, flat)
    else:
        atom_starts, atoms = starts, flat
        sizes = np.ones(int(flat.max(initial=-1)) + 1, np.int64)
    return Sketches(
        atom_starts, atoms, sizes * UNIT, np.array(expected), flat, starts, UNIT, one_in=1
    )


@some.composite
def clusters(draw: some.DrawFn) -> tuple[Names, list[int], list[int], int]:
    """(rows, row of each VM, host of each VM, hosts); few names, so that much is in common."""
    rows = draw(some.lists(some.sets(some.integers(0, 12)), min_size=1, max_size=5))
    n_hosts, n_vms = draw(some.integers(1, 4)), draw(some.integers(1, 9))
    holds = draw(some.lists(some.integers(0, len(rows) - 1), min_size=n_vms, max_size=n_vms))
    where = draw(some.lists(some.integers(-1, n_hosts - 1), min_size=n_vms, max_size=n_vms))
    return rows, holds, where, n_hosts


def there(rows: Names, holds: list[int], where: list[int], host: int) -> Counter[int]:
    """How many VMs of a host hold each name."""
    counts: Counter[int] = Counter()
    for row, at in zip(holds, where, strict=True):
        if at == host:
            counts.update(rows[row])
    return counts


@given(case=clusters(), merged=some.booleans())
def test_sums_are_those_of_sets(
    case: tuple[Names, list[int], list[int], int], merged: bool
) -> None:
    rows, holds, where, n_hosts = case
    table = table_of(rows, holds, merged)
    column, at = np.array(holds), np.array(where)
    counts = sketches.held(table, column, at, n_hosts)
    names = [there(rows, holds, where, host) for host in range(n_hosts)]
    for row, its in enumerate(rows):
        found = sketches.in_common(table, row, counts > 0)
        assert found.tolist() == [UNIT * len(its & set(names[h])) for h in range(n_hosts)]
        for host in range(n_hosts):
            more = sketches.with_row(table, row, counts > 0, host)
            after = sketches.held(table, np.append(column, row), np.append(at, host), n_hosts)
            assert np.array_equal(more, after > 0)
    saved = [UNIT * sum(n - 1 for n in some_names.values()) for some_names in names]
    assert sketches.saved(table, counts).tolist() == saved
    parts = sketches.saved_of(table, column, at, counts)
    for vm, (row, host) in enumerate(zip(holds, where, strict=True)):
        if host < 0:
            assert parts[vm] == 0
            continue
        fair = [Fraction(UNIT * (names[host][name] - 1), names[host][name]) for name in rows[row]]
        assert float(sum(fair)) == pytest.approx(parts[vm], abs=len(rows[row]))


@given(case=clusters(), merged=some.booleans())
def test_a_move_loses_and_wins_what_counting_anew_finds(
    case: tuple[Names, list[int], list[int], int], merged: bool
) -> None:
    rows, holds, where, n_hosts = case
    table = table_of(rows, holds, merged)
    column, at = np.array(holds), np.array(where)
    vms, targets = np.flatnonzero(at >= 0), np.arange(n_hosts)
    counts = sketches.held(table, column, at, n_hosts)
    before = sketches.saved(table, counts)
    lost, won = sketches.exchanged(table, column, at, counts, vms, targets)
    for place, vm in enumerate(vms.tolist()):
        for target in range(n_hosts):
            if target == at[vm]:
                continue
            moved = at.copy()
            moved[vm] = target
            anew = sketches.saved(table, sketches.held(table, column, moved, n_hosts))
            assert before[at[vm]] - anew[at[vm]] == lost[place]
            assert anew[target] - before[target] == won[place, target]


@given(case=clusters())
def test_names_that_the_same_rows_hold_are_one(
    case: tuple[Names, list[int], list[int], int],
) -> None:
    rows, holds, _, _ = case
    table = table_of(rows, holds)
    holders = {tuple(name in row for row in rows) for name in set().union(*rows)}
    assert len(table.weights) == len(holders)
    for row, its in enumerate(rows):
        atoms = sketches.atoms_of(table, row)
        assert len(set(atoms.tolist())) == len(atoms)
        assert table.weights[atoms].sum() == UNIT * len(its)


@given(case=clusters(), found=some.lists(some.tuples(some.integers(0, 8), some.integers(0, 20))))
def test_what_is_found_takes_the_place_of_what_was_expected(
    case: tuple[Names, list[int], list[int], int], found: list[tuple[int, int]]
) -> None:
    """In rows of its own: what is expected of VMs that come again is still known."""
    rows, holds, _, _ = case
    names: dict[int, set[int]] = {vm: set() for vm in sorted({vm for vm, _ in found})}
    for vm, name in found:
        names[vm].add(name - 5)  # what is below 0 stands for nothing found
    its = {vm: {name for name in some_names if name >= 0} for vm, some_names in names.items()}
    told = [(vm, name) for vm in its for name in sorted(its[vm]) or [NOTHING]]
    before = table_of(rows, holds)
    told_rows = np.array(told, SKETCH)
    for table in (before.learned(told_rows), before.learned(told_rows).learned(told_rows)):
        vms, places = table.rows_of(told_rows)
        assert vms.tolist() == list(its)
        everything = [*rows, *its.values()]
        assert places.tolist() == list(range(len(rows), len(everything)))
        assert table.expected is before.expected
        for a, left in enumerate(everything):
            hold = np.zeros((len(table.weights), 1), np.bool_)
            hold[sketches.atoms_of(table, a)] = True
            common = [int(sketches.in_common(table, b, hold)[0]) for b in range(len(everything))]
            assert common == [UNIT * len(left & right) for right in everything]


def test_a_large_cluster_of_few_kinds_has_few_parts() -> None:
    """What placing 10,000 VMs costs goes by the parts: one of each of five images, not a name."""
    changes = {f"vms.{at}.count": 3 for at in range(5)} | {"placement.content": "50 %"}
    population = populate(load(SCALE, changes=changes))
    table = population.sketches
    assert table is not None
    assert len(table.weights) == len(table.name_starts) - 1 == 5
    largest = np.diff(table.name_starts).max()
    assert 64 < largest < 512, "names of the largest"


def test_without_content_nothing_is_sketched() -> None:
    assert populate(load(SCALE, changes={f"vms.{at}.count": 1 for at in range(5)})).sketches is None
    table = sketches.nothing(3)
    assert sketches.held(table, table.expected, np.zeros(3, np.int64), 2).shape == (0, 2)
    assert sketches.in_common(table, 0, np.zeros((0, 2), np.bool_)).tolist() == [0, 0]
