"""PURE: what VMs of a host have in common, from sketches of their pages' contents.

Every VM has one: before it runs, of what its image and workload lead one to expect of it; while
balancing looks at contents, of what its host found in its memory. Names that the same VMs hold are
one here, with a weight: a cluster of few kinds of VM has few of them, however large its images.
Bytes are estimates: see `hostsim.sketch` for their error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hostsim.program import KEEP
from hostsim.rows import Rows
from hostsim.sketch import NOTHING, Holdings, of_holdings, planned, rarity
from hostsim.spec import VmSpec
from hostsim.units import PAGE_SIZE

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
NOBODY = -1
"""Row of a VM's sketch in a table without any; host of a VM that is on none."""


@dataclass(frozen=True, slots=True)
class Sketches:
    """Sketches, row by row, and what each VM is expected to hold.

    starts (n_rows + 1,), atoms (n,): row r holds atoms[starts[r] : starts[r + 1]], each once.
    weights (n_atoms,): bytes that an atom stands for.
    expected (n_vms,): row of what a VM will hold, as far as is known before it runs.
    names (n_names,): of the expected rows, which come first, name by name; name_starts their
    starts. unit: bytes that a name stands for. one_in: of how many contents one is chosen.
    """

    starts: Ints
    atoms: Ints
    weights: Ints
    expected: Ints
    names: Ints
    name_starts: Ints
    unit: int
    one_in: int

    def learned(self, found: Rows) -> Sketches:
        """With what hosts found, SKETCH by VM and name, in rows of its own after the expected ones,
        in order of VM; what was found before is gone."""
        first = np.unique(found["vm"], return_index=True)[1]
        lengths = np.diff(np.append(first, len(found)))
        lengths[found["name"][first] == NOTHING] = 0
        names = np.concatenate([self.names, found["name"][found["name"] != NOTHING]])
        _, atoms = np.unique(names, return_inverse=True)
        return replace(
            self,
            starts=np.concatenate([self.name_starts, self.name_starts[-1] + np.cumsum(lengths)]),
            atoms=atoms.astype(np.int64),
            weights=np.full(int(atoms.max(initial=-1)) + 1, self.unit, np.int64),
        )

    def rows_of(self, found: Rows) -> tuple[Ints, Ints]:
        """(VMs, rows): where `learned` has put what was found of each VM."""
        vms = np.unique(found["vm"])
        return vms, len(self.name_starts) - 1 + np.arange(len(vms))


def nothing(n_vms: int) -> Sketches:
    """No VM is known to hold anything."""
    none, row = np.zeros(0, np.int64), np.zeros(2, np.int64)
    return Sketches(row, none, none, np.zeros(n_vms, np.int64), none, row, 0, 1)


def expected(vms: Sequence[VmSpec], seed: int, sample: int) -> Sketches:
    """Sketches of VMs, by id, of what each holds once it uses as much as its program ever asks for.

    VMs alike have one row.
    """
    holdings, rows = _kinds(vms, seed, sample)
    lengths: dict[int, int] = {}
    for held in holdings:
        for family, _, end in held.extents:
            lengths[family] = max(lengths.get(family, 0), end)
    one_in = rarity(max((held.n_contents for held in holdings), default=0))
    names = [of_holdings(held, lengths, seed, one_in) for held in holdings]
    starts = np.concatenate([[0], np.cumsum([len(some) for some in names], dtype=np.int64)])
    flat = np.concatenate([np.zeros(0, np.int64), *names])
    unit = PAGE_SIZE * sample * one_in
    atom_starts, atoms, sizes = _merged(starts, flat)
    return Sketches(atom_starts, atoms, sizes * unit, rows, flat, starts, unit, one_in)


def _kinds(vms: Sequence[VmSpec], seed: int, sample: int) -> tuple[list[Holdings], Ints]:
    """What kinds of VM hold, and (n_vms,) which kind each one is."""
    kinds: dict[tuple[int, ...], int] = {}
    peaks: dict[int, int] = {}
    holdings: list[Holdings] = []
    rows = np.zeros(len(vms), np.int64)
    for at, spec in enumerate(vms):
        program = id(spec.program)  # programs and images are made once and shared
        if program not in peaks:
            peaks[program] = int(spec.program["memory_pages"].max(initial=KEEP))
        is_alone = spec.replay is not None or spec.image.pool > 0
        key = (
            *(id(spec.image), spec.image_range, spec.application_range),
            *(spec.config.memory, spec.config.sharing, peaks[program]),
            at if is_alone else NOBODY,
        )
        if key not in kinds:
            kinds[key] = len(holdings)
            holdings.append(planned(spec, max(peaks[program], 0), seed, sample))
        rows[at] = kinds[key]
    return holdings, rows


def _merged(starts: Ints, names: Ints) -> tuple[Ints, Ints, Ints]:
    """(starts, atoms, sizes): rows of atoms, and of how many names each one is made."""
    holders = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((holders, names))
    ends = np.flatnonzero(np.diff(names[order], append=NOTHING))
    atoms: dict[bytes, int] = {}
    sizes: list[int] = []
    rows: list[Ints] = []
    first = 0
    for end in (ends + 1).tolist():
        who = holders[order[first:end]]
        first, key = end, who.tobytes()
        if key not in atoms:
            atoms[key] = len(sizes)
            sizes.append(0)
            rows.append(who)
        sizes[atoms[key]] += 1
    flat = np.concatenate([np.zeros(0, np.int64), *rows])
    atom_of = np.repeat(np.arange(len(rows)), [len(who) for who in rows])
    by_row = np.argsort(flat, kind="stable")
    lengths = np.bincount(flat, minlength=len(starts) - 1)
    merged_starts = np.concatenate([[0], np.cumsum(lengths)])
    return merged_starts, atom_of[by_row], np.array(sizes, np.int64)


def spread_out(table: Sketches, rows: Ints) -> tuple[Ints, Ints]:
    """(atoms, ends): the atoms of some rows one after the other, and where each row's end."""
    lengths = table.starts[rows + 1] - table.starts[rows]
    ends = np.cumsum(lengths)
    within = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
    return table.atoms[np.repeat(table.starts[rows], lengths) + within], ends


def held(table: Sketches, holds: Ints, where: Ints, n_hosts: int) -> Ints:
    """(n_atoms, n_hosts) how many VMs of each host hold an atom. holds (n_vms,): each VM's row.
    where (n_vms,): its host, negative where it has none."""
    on = np.flatnonzero(where >= 0)
    atoms, ends = spread_out(table, holds[on])
    hosts = np.repeat(where[on], np.diff(ends, prepend=0))
    n_atoms = len(table.weights)
    counts = np.bincount(atoms * n_hosts + hosts, minlength=n_atoms * n_hosts)
    return counts.reshape(n_atoms, n_hosts)


def atoms_of(table: Sketches, row: int) -> Ints:
    """(n,) what a row holds."""
    return table.atoms[table.starts[row] : table.starts[row + 1]]


def with_row(table: Sketches, row: int, is_held: Bools, host: int) -> Bools:
    """`is_held` once a VM of that row has come to a host."""
    found = is_held.copy()
    found[atoms_of(table, row), host] = True
    return found


def in_common(table: Sketches, row: int, is_held: Bools) -> Ints:
    """(n_hosts,) bytes of what a row holds that each host holds, too. is_held (n_atoms, n_hosts)"""
    atoms = atoms_of(table, row)
    return np.asarray(table.weights[atoms] @ is_held[atoms], np.int64)


def saved(table: Sketches, counts: Ints) -> Ints:
    """(n_hosts,) bytes that VMs save by what they hold in common: all copies of it but one."""
    return np.asarray(table.weights @ np.maximum(counts - 1, 0), np.int64)


def saved_of(table: Sketches, holds: Ints, where: Ints, counts: Ints) -> Ints:
    """(n_vms,) each VM's part of what is saved at its host: those who hold a content have parts of
    it alike, rounded down."""
    on = np.flatnonzero(where >= 0)
    atoms, ends = spread_out(table, holds[on])
    lengths = np.diff(ends, prepend=0)
    n = counts[atoms, np.repeat(where[on], lengths)]
    parts = table.weights[atoms] * (n - 1) // n
    found = np.zeros(len(where), np.int64)
    found[on] = np.diff(np.concatenate([[0], np.cumsum(parts)])[ends], prepend=0)
    return found


def exchanged(
    table: Sketches, holds: Ints, where: Ints, counts: Ints, vms: Ints, targets: Ints
) -> tuple[Ints, Ints]:
    """(n_vms,), (n_vms, n_targets) bytes: what each VM has in common with the others of its host,
    and with those of each target. A move loses the one, and wins the other."""
    atoms, ends = spread_out(table, holds[vms])
    lengths = np.diff(ends, prepend=0)
    weights = table.weights[atoms]
    at_source = weights * (counts[atoms, np.repeat(where[vms], lengths)] > 1)
    at_target = weights[:, None] * (counts[np.ix_(atoms, targets)] > 0)
    sums = [
        np.concatenate([part[:0].sum(axis=0)[None], np.cumsum(part, axis=0)])
        for part in (at_source, at_target)
    ]
    lost, won = (np.diff(total[ends], axis=0, prepend=total[:1]) for total in sums)
    return lost, won
