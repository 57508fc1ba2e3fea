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
    return PARTS if content == zero or content == zero + 1 else PARTS - PARTS // refs_of(st, content)


@kernel
def _add_step(
    found: Array, d_saved: int, d_allocated: int, d_swapped: int, signs: np.uint64
) -> None:
    """Add a slot's differences to the contrasts."""
    if d_saved == 0 and d_allocated == 0 and d_swapped == 0:
        return
    for i in range(CONTRASTS):
        sign = 1 - 2 * i64((signs >> np.uint64(i)) & np.uint64(1))
        found[SAVED, i] += sign * d_saved
        found[ALLOCATED, i] += sign * d_allocated
        found[OUT, i] += sign * d_swapped


@kernel
def _add_section(
    st: HostState, v: int, section: int, first: int, end: int, last: Array, found: Array
) -> None:
    """Add a section of a VM, pages [first, end), to the contrasts.

    last: (N_KINDS + 1, 2) int64, working space: what of the slot before of each kind was saved and
    swapped; then, what of the slot before of any kind was in memory. Zeros but for that.

    What is in memory is compared in the order of pages: how many slots are in use is known to a
    slot, while of each kind it is a slot more or less.
    """
    vm = st.vms[v]
    period = st.periods[vm.pattern, section]
    key = rng.stream(st.host[0].seed, rng.SPREAD, vm.image_family, section)
    for offset in range(end - first):
        slot = vm.base_slot + first + offset
        state = state_of(st, slot)
        saved = saved_parts(st, v, slot) if state == SHARED else i64(0)
        allocated = PARTS if state == RESIDENT or state == SHARED else i64(0)
        swapped = PARTS if state == SWAPPED else i64(0)
        found[SAVED, TOTAL] += saved
        found[ALLOCATED, TOTAL] += allocated
        found[OUT, TOTAL] += swapped
        of_kind = last[st.kinds[vm.pattern, section, offset % period]]
        d_saved, d_swapped = saved - of_kind[0], swapped - of_kind[1]
        _add_step(found, d_saved, allocated - last[N_KINDS, 0], d_swapped, rng.word(key, offset))
        of_kind[0], of_kind[1], last[N_KINDS, 0] = saved, swapped, allocated
    for kind in range(N_KINDS):  # with the section each kind ends
        signs = rng.word(key, end - first + kind)
        _add_step(found, -last[kind, 0], i64(0), -last[kind, 1], signs)
        last[kind, :] = 0


@kernel
def _add_host(st: HostState, last: Array, found: Array) -> None:
    """`add_to`, with the working space of `_add_section`."""
    for i in range(count_vms(st)):
        v = st.order[i]
        vm = st.vms[v]
        state = state_of(st, vm.base_slot)
        last[N_KINDS, 0] = PARTS if state == RESIDENT or state == SHARED else i64(0)
        _add_section(st, v, IN_KERNEL, 0, vm.kernel, last, found)
        _add_section(st, v, IN_FOOTPRINT, vm.kernel, vm.footprint, last, found)
        _add_section(st, v, IN_GROWTH, vm.footprint, vm.size_slots, last, found)


def add_to(found: Array, st: HostState) -> None:
    """Add a host's contrasts and totals, in PARTS of a slot, to a table of them."""
    _add_host(st, np.zeros((N_KINDS + 1, 2), np.int64), found)
