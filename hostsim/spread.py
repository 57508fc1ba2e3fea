"""How what a host holds differs from slot to slot: contrasts, for the error of miniatures.

A sample has as many slots of each kind (guest use and content class) as are due, to a slot. So its
error comes from how slots of one kind differ from their neighbours of the same kind. A contrast
adds up those differences with random signs; its square is in the mean the sum of the squares. The
signs are equal for a slot of an image in all VMs, as all VMs keep the same slots of it: contrasts
of several VMs and hosts are simply added. See `cluster.sampling_error`.
"""

from __future__ import annotations

import numpy as np

from hostsim import rng
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    IN_FOOTPRINT,
    IN_GROWTH,
    IN_KERNEL,
    INDEX,
    RESIDENT,
    SHARED,
    SWAPPED,
    Array,
    HostState,
    count_vms,
    refs_of,
    state_of,
)

SAVED, ALLOCATED, OUT = map(i64, range(3))
"""Rows of a table of contrasts: shared_saved; pages in memory; swapped."""
CONTRASTS = 32
"""Sets of signs: the standard error that they give is itself known to 1 / sqrt(2 * 32) = 13 %."""
TOTAL = CONTRASTS
"""Column of a table of contrasts that holds the quantity itself."""
PARTS = i64(1 << 20)
"""A slot, in the integers that contrasts add: a page of a shared frame has but a part of it."""
EDGE, EDGE_UNIT = map(i64, (418, 1024))
"""sqrt(1/6), to a thousandth: where a section ends is known but for rounding to whole slots, whose
variance is 1/6 of what two steps from and to nothing say. A kind of one slot is a count of rare
things: for that they are right."""
N_KINDS = 32
"""Kinds: guest use * 8 + content class."""


def no_contrasts() -> Array:
    """(3, CONTRASTS + 1) int64: a table of contrasts, and of totals, with nothing in it."""
    return np.zeros((3, CONTRASTS + 1), np.int64)


@small
def saved_parts(st: HostState, v: int, slot: int) -> int:
    """Parts of a frame that sharing saves on a page in state SHARED.

    All of it where the frame is the zero page's, which is one page, not a slot, or one that pages
    outside the sample have.
    """
    content = i64(st.content[slot]) & INDEX
    zero = st.vms[v].zero
    if content == zero or content == zero + 1:
        return PARTS
    return PARTS - PARTS // refs_of(st, content)


@small
def _add(found: Array, row: int, difference: int, signs: np.uint64) -> None:
    """Add one quantity's difference to its contrasts: mostly there is none."""
    if difference != 0:
        for i in range(CONTRASTS):
            sign = 1 - 2 * i64((signs >> np.uint64(i)) & np.uint64(1))
            found[row, i] += sign * difference


@small
def _add_step(
    found: Array, d_saved: int, d_allocated: int, d_swapped: int, key: np.uint64, at: int
) -> None:
    """Add a slot's differences to the contrasts, with signs of its own."""
    if (d_saved | d_allocated | d_swapped) != 0:
        signs = rng.word(key, at)
        _add(found, SAVED, d_saved, signs)
        _add(found, ALLOCATED, d_allocated, signs)
        _add(found, OUT, d_swapped, signs)


@kernel
def _add_section(
    st: HostState, v: int, section: int, first: int, end: int, kinds: Array, found: Array
) -> None:
    """Add a section of a VM, pages [first, end), to the contrasts.

    kinds: (N_KINDS + 1, 6) int64, working space: for each kind how many slots there were, what of
    the last one was saved and swapped, where the first one lies, and what of it was. Then, what of
    the slot before of any kind was in memory. Zeros but for that.

    What is in memory is compared in the order of pages: how many slots are in use is known to a
    slot, while of each kind it is a slot more or less.
    """
    vm = st.vms[v]
    period = st.periods[vm.pattern, section]
    key = rng.stream(st.host[0].seed, rng.SPREAD, vm.image_family, section)
    place = i64(0)  # in the pattern: offset % period, which would take as long as all else
    for offset in range(end - first):
        slot = vm.base_slot + first + offset
        state = state_of(st, slot)
        saved = saved_parts(st, v, slot) if state == SHARED else i64(0)
        allocated = PARTS if state == RESIDENT or state == SHARED else i64(0)
        swapped = PARTS if state == SWAPPED else i64(0)
        found[SAVED, TOTAL] += saved
        found[ALLOCATED, TOTAL] += allocated
        found[OUT, TOTAL] += swapped
        kind = kinds[st.kinds[vm.pattern, section, place]]
        place = place + 1 if place + 1 < period else i64(0)
        d_saved, d_swapped = saved - kind[1], swapped - kind[2]
        if kind[0] == 0:
            kind[3], kind[4], kind[5] = offset, saved, swapped
            d_saved, d_swapped = i64(0), i64(0)
        d_allocated = allocated - kinds[N_KINDS, 0]
        _add_step(found, d_saved, d_allocated, d_swapped, key, offset)
        kind[0], kind[1], kind[2], kinds[N_KINDS, 0] = kind[0] + 1, saved, swapped, allocated
    for i in range(N_KINDS):
        kind = kinds[i]
        part = EDGE if kind[0] > 1 else EDGE_UNIT
        begins, ends = kind[3], end - first + i
        _add_step(found, _edge(kind[4], part), i64(0), _edge(kind[5], part), key, begins)
        _add_step(found, -_edge(kind[1], part), i64(0), -_edge(kind[2], part), key, ends)
        kind[:] = 0


@small
def _edge(value: int, part: int) -> int:
    """What a section's first or last slot of a kind counts for: see EDGE."""
    return value * part // EDGE_UNIT


@kernel
def _add_host(st: HostState, kinds: Array, found: Array) -> None:
    """`add_to`, with the working space of `_add_section`."""
    for i in range(count_vms(st)):
        v = st.order[i]
        vm = st.vms[v]
        state = state_of(st, vm.base_slot)
        kinds[N_KINDS, 0] = PARTS if state == RESIDENT or state == SHARED else i64(0)
        _add_section(st, v, IN_KERNEL, 0, vm.kernel, kinds, found)
        _add_section(st, v, IN_FOOTPRINT, vm.kernel, vm.footprint, kinds, found)
        _add_section(st, v, IN_GROWTH, vm.footprint, vm.size_slots, kinds, found)


def add_to(found: Array, st: HostState) -> None:
    """Add a host's contrasts and totals, in PARTS of a slot, to a table of them."""
    _add_host(st, np.zeros((N_KINDS + 1, 6), np.int64), found)
