"""Sketches: what VMs' pages have in common, from a small part of their contents' names.

A content is named by its family and its place in the family's range. A sketch holds the names that
a hash chooses, one in `one_in`, the same in every VM: Broder's MOD_m sketch (On the resemblance and
containment of documents, SEQUENCES 1997). Of a set that VMs have in common, each holds the same
names; so sketches of a host's VMs add up to the host's, one name at a time, and lose a VM again,
and sets of very different sizes compare, which neither the bottom-k sketch (whose error is that of
the larger set) nor Memory Buddies' Bloom filter (which fills up) allows. A count of c contents is
estimated without bias, with a standard error of sqrt(c (one_in - 1)): names are independent.

Contents are those of a miniature's slots, which are the same slots in every VM. Nothing is written.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hostsim import rng
from hostsim.composition import Composition, class_base, class_slots, compose
from hostsim.contents import APPLICATION_RANGE, IMAGE_RANGE, Key, Range
from hostsim.load import sections
from hostsim.replay import READ
from hostsim.spec import VmSpec
from hostsim.state import (
    APPLICATION,
    IMAGE,
    IN_GROWTH,
    INDEX,
    POOL,
    RESIDENT,
    SHARED,
    STATE,
    UNIQUE,
    Array,
    HostState,
)
from hostsim.units import VmId, slots

NAMES = 256
"""Names of the largest sketch, or down to half as many, but for chance: 2 KiB at most. What VMs
have in common is then known to 1 / sqrt(128) = 9 % of what the largest holds, or better."""
PLACE_BITS = 32
BLOCK = 1 << 20
"""Places or slots that are looked at in one go: what that takes must not grow with a host."""
NOTHING = -1
"""The name in the one row of a VM whose sketch is empty."""
SKETCH = np.dtype([("vm", np.int64), ("name", np.int64)])
_WEYL, _MIX_1, _MIX_2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_30, _27, _31, _32 = map(np.uint64, (30, 27, 31, 32))


class Extent(NamedTuple):
    """Contents [first, end) of a family's range."""

    family: int
    first: int
    end: int


class Holdings(NamedTuple):
    """Contents that a VM can have in common with others: extents, and places drawn one by one."""

    extents: tuple[Extent, ...]
    family: int
    """Of what is drawn."""
    drawn: Array
    """(n,) int64, rising: places of the pool that the VM draws, or of what it replays."""

    @property
    def n_contents(self) -> int:
        """Distinct contents."""
        return sum(extent.end - extent.first for extent in self.extents) + len(self.drawn)


def words(key: np.uint64, indices: Array) -> Array:
    """(n,) uint64: `rng.word` of each index."""
    value = key + indices.astype(np.uint64) * _WEYL
    value = (value ^ (value >> _30)) * _MIX_1
    value = (value ^ (value >> _27)) * _MIX_2
    return value ^ (value >> _31)


def rarity(largest: int) -> int:
    """Of how many contents one is chosen, a power of two, where the largest VM has so many."""
    return 1 << (max(-(-largest // NAMES), 1) - 1).bit_length()


def _owner(family: int) -> int:
    """A family's id from 0 on: those of images without an application group are negative."""
    return 2 * family if family >= 0 else -2 * family - 1


def are_chosen(seed: int, family: int, places: Array, one_in: int) -> Array:
    """(n,) bool: which places of a family's range the seed chose, one in `one_in`."""
    key = np.uint64(rng.stream(seed, rng.SKETCH, _owner(family), 0))
    return (words(key, places) & np.uint64(one_in - 1)) == 0


@functools.lru_cache(maxsize=256)
def chosen(seed: int, family: int, length: int, one_in: int) -> Array:
    """(n,) int64, rising: chosen places of a range of that length. Not to be written to."""
    found = [np.zeros(0, np.int64)]
    for first in range(0, length, BLOCK):
        places = np.arange(first, min(first + BLOCK, length))
        found.append(places[are_chosen(seed, family, places, one_in)])
    return np.concatenate(found)


def names(family: int, places: Array) -> Array:
    """(n,) int64 names of a family's contents, in order of place."""
    return (np.int64(_owner(family)) << PLACE_BITS) | places


def planned(spec: VmSpec, peak_pages: int, seed: int, sample: int) -> Holdings:
    """What a VM can have in common with others once it uses `peak_pages`, as far as its image, or
    the boot that it replays, says; no page of it rewritten."""
    family, none = spec.image_range, np.zeros(0, np.int64)
    if not spec.config.sharing:
        return Holdings((), family, none)
    if spec.replay is not None:
        boot = spec.replay.events["word"][: spec.replay.pages].astype(np.int64) & READ
        return Holdings((), family, np.unique(boot[boot > 0]) - 1)
    layout = compose(spec.image, seed, sample)
    counts = _counts(layout, spec, peak_pages, sample)
    pool = max(slots(spec.image.pool, sample), 1) if spec.image.pool > 0 else 0
    application = spec.application_range or -1 - family  # as its host names the range
    extents = (
        Extent(family, pool, pool + int(counts[IMAGE])),
        Extent(application, 0, int(counts[APPLICATION])),
    )
    drawn = none
    if counts[POOL]:
        key = np.uint64(rng.stream(seed, rng.POOL, spec.vm, 0))
        high = words(key, np.arange(counts[POOL])) >> _32
        drawn = np.unique((high * np.uint64(pool)) >> _32).astype(np.int64)
    return Holdings(extents, family, drawn)


def _counts(layout: Composition, spec: VmSpec, peak_pages: int, sample: int) -> Array:
    """(6,) slots of each content class among those that a VM uses."""
    size = max(slots(spec.config.memory, sample), 1)
    kernel, footprint = sections(layout, size, sample)
    peak = (2 * peak_pages + sample) // (2 * sample)
    grown = min(max(peak, footprint), size) - footprint
    base: Array = class_base(layout, kernel, footprint)[IN_GROWTH]
    return base + class_slots(layout, IN_GROWTH, grown)


def of_holdings(held: Holdings, lengths: Mapping[int, int], seed: int, one_in: int) -> Array:
    """(n,) int64, rising: the sketch. lengths: of each family's range, the longest of all VMs'."""
    parts = [names(held.family, held.drawn[are_chosen(seed, held.family, held.drawn, one_in)])]
    for family, first, end in held.extents:
        places = chosen(seed, family, lengths[family], one_in)
        here = np.searchsorted(places, (first, end))
        parts.append(names(family, places[here[0] : here[1]]))
    return np.sort(np.concatenate(parts))


def running(
    st: HostState, ranges: Mapping[Key, Range], specs: Mapping[VmId, VmSpec], one_in: int
) -> Array:
    """(n,) SKETCH, by VM and name: sketches of a host's booted VMs, of what is in memory now.

    A VM that may share nothing, or has nothing to share, has one row, of NOTHING. ranges, specs:
    the host's.
    """
    vms = np.flatnonzero((st.vms["vm"] >= 0) & (st.vms["booted"] == 1))
    ids = st.vms["vm"][vms].astype(np.int64)
    indices, named = _chosen_of(st, ranges, one_in)
    held = _held(st, indices)
    first = st.vms["base_slot"][vms]
    starts, ends = np.searchsorted(held, (first, first + st.vms["size_slots"][vms]))
    may_share = np.array([specs[vm].config.sharing for vm in ids.tolist()], np.bool_)
    lengths = np.where(may_share, ends - starts, 0)
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    slots_of = held[np.repeat(starts, lengths) + within]
    rows = np.zeros(len(vms) + len(slots_of), SKETCH)
    rows["vm"] = np.concatenate([ids, np.repeat(ids, lengths)])
    rows["name"][: len(vms)] = NOTHING
    rows["name"][len(vms) :] = named[np.searchsorted(indices, _indices(st.content[slots_of]))]
    return without_needless(rows)


def _indices(content: Array) -> Array:
    """Content words without their flags."""
    return content & np.uint32(INDEX)


def _chosen_of(st: HostState, ranges: Mapping[Key, Range], one_in: int) -> tuple[Array, Array]:
    """(n,), (n,) int64: a host's indices of chosen contents, rising, and their names."""
    seed = int(st.host["seed"][0])
    indices, named = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for key, at in ranges.items():
        if key.kind in (IMAGE_RANGE, APPLICATION_RANGE):
            places = chosen(seed, key.family, at.length, one_in)
            indices.append(at.base + places)
            named.append(names(key.family, places))
    return np.concatenate(indices), np.concatenate(named)


def _held(st: HostState, indices: Array) -> Array:
    """(n,) int64, rising: slots in memory that hold one of these contents."""
    is_chosen = np.zeros(max(len(st.indexed), 1), np.bool_)
    is_chosen[indices] = True
    found = [np.zeros(0, np.int64)]
    for first in range(0, len(st.page), BLOCK):
        page, content = st.page[first : first + BLOCK], st.content[first : first + BLOCK]
        state = page & np.uint8(STATE)
        is_held = (state == RESIDENT) | (state == SHARED)
        slots_of = np.flatnonzero(is_held & (content & np.uint32(UNIQUE) == 0))
        found.append(first + slots_of[is_chosen[_indices(content[slots_of])]])
    return np.concatenate(found)


def without_needless(rows: Array) -> Array:
    """Rows by VM and name, each once, with NOTHING only where a VM has no other name."""
    rows = rows[np.lexsort((rows["name"], rows["vm"]))]
    is_same_vm = rows["vm"][1:] == rows["vm"][:-1]
    repeats = is_same_vm & (rows["name"][1:] == rows["name"][:-1])
    needless = is_same_vm & (rows["name"][:-1] == NOTHING)
    keep = np.ones(len(rows), np.bool_)
    keep[1:] &= ~repeats
    keep[:-1] &= ~needless
    return rows[keep]
