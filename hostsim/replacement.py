"""The guest's page replacement: what it gives up when its balloon, or a page-in, needs a page.

Free pages first; then what it can best do without: clean cache is dropped, an anonymous page is
written to the guest's own disk. The balloon driver pins what it is given and returns it later.
Nothing here decides how many pages the balloon takes.
"""

from __future__ import annotations

import numpy as np

from hostsim import compress, fault, rng
from hostsim.jit import i64, kernel, small
from hostsim.program import ZIPF
from hostsim.ranks import BLOCK, place_of, used_as
from hostsim.state import (
    ACCESSED,
    ANON,
    BALLOONED,
    CACHE,
    COMPRESSED,
    FREE,
    RESIDENT,
    SHARED,
    STATE,
    SWAPPED,
    UNTOUCHED,
    USE_SHIFT,
    Array,
    HostState,
    set_state,
    state_of,
    use_of,
)

LOOKS = 64
"""Random pages the guest looks at before it settles for a worse one: its LRU is approximate."""
_STATE, _IN_USE = np.uint8(STATE), np.uint8(1 << USE_SHIFT)
_UNTOUCHED, _BALLOONED = np.uint8(UNTOUCHED), np.uint8(BALLOONED)


@small
def in_guest_memory(state: int) -> bool:
    """Whether a page in use has its data in guest memory (the host may have paged it out)."""
    return state != UNTOUCHED and state != BALLOONED


@small
def is_guest_free(st: HostState, slot: int) -> bool:
    """Whether the guest may hand this page out: nothing of it is in use, and no balloon pins it."""
    state = state_of(st, slot)
    return state != BALLOONED and (state == UNTOUCHED or use_of(st, slot) == FREE)


@kernel
def count_use(st: HostState, v: int, use: int, change: int) -> None:
    """Pages of one use in guest memory: +1 or -1."""
    if use == CACHE:
        st.vms[v].cache += change
    elif use == ANON:
        st.vms[v].anon += change


@kernel
def _is_any_free(block: Array) -> bool:
    """Whether `is_guest_free` holds for any of these state bytes. In bytes, for vector code."""
    found = np.uint8(0)
    for i in range(block.size):
        state = block[i] & _STATE
        is_unused = (block[i] < _IN_USE) & (state != _BALLOONED)
        found = np.uint8(found | np.uint8((state == _UNTOUCHED) | is_unused))
    return found != np.uint8(0)


@kernel
def _find_free(st: HostState, v: int) -> int:
    """A guest-free page: downwards from where the last one was found. There must be one."""
    vm = st.vms[v]
    page = st.page[vm.base_slot : vm.base_slot + vm.size_slots]
    ppn = vm.free_cursor
    while not is_guest_free(st, vm.base_slot + ppn):
        ends_block = ppn % BLOCK == BLOCK - 1
        if ends_block and not _is_any_free(page[ppn + 1 - BLOCK : ppn + 1]):
            ppn -= BLOCK
        else:
            ppn -= 1
        if ppn < 0:
            ppn = vm.size_slots - 1
    vm.free_cursor = ppn
    return ppn


@small
def _holds(st: HostState, slot: int, use: int) -> bool:
    return use_of(st, slot) == use and in_guest_memory(state_of(st, slot))


@small
def _is_ranked(st: HostState, v: int) -> bool:
    """Whether the workload prefers some pages of its active window to others."""
    vm = st.vms[v]
    return st.programs[vm.program + vm.row].locality >= ZIPF


@kernel
def find_coldest(st: HostState, v: int, key: np.uint64) -> int:
    """The coldest page of cache or anonymous memory among LOOKS random ones of the active window,
    or -1. The window's first page has the lowest rank, see `touch`.
    """
    vm = st.vms[v]
    coldest, window, span = vm.active, vm.window % vm.span, vm.span
    for look in range(LOOKS):
        # Looks do not wait for each other: to ask for them ahead gained nothing, a division each
        # cost most of their time.
        offset = rng.below(key, look, vm.active)
        place = window + offset
        slot = vm.base_slot + vm.kernel + (place if place < span else place - span)
        if offset < coldest and (_holds(st, slot, CACHE) or _holds(st, slot, ANON)):
            coldest = offset
    return -1 if coldest == vm.active else vm.kernel + (vm.window + coldest) % vm.span


@kernel
def _find_use(st: HostState, v: int, use: int, key: np.uint64) -> int:
    """A random page of this use, CACHE or ANON, in guest memory. The caller saw that there is one.

    LOOKS random pages; then a draw among all that there are.
    """
    vm = st.vms[v]
    for look in range(LOOKS):
        ppn = rng.below(key, look, vm.size_slots)
        if _holds(st, vm.base_slot + ppn, use):
            return ppn
    rank = rng.below(key, 2 * LOOKS, vm.cache if use == CACHE else vm.anon)
    page = st.page[vm.base_slot : vm.base_slot + vm.size_slots]
    return place_of(page, used_as(use), rank)


@kernel
def _find_idle(st: HostState, v: int, key: np.uint64) -> int:
    """A random page in guest memory outside the active window, or -1 when LOOKS tries find none.

    The first clean cache page seen, otherwise the first anonymous one.
    """
    vm = st.vms[v]
    idle = vm.span - vm.active
    if idle <= 0:
        return -1
    anon = i64(-1)
    for look in range(LOOKS):
        offset = vm.window + vm.active + rng.below(key, LOOKS + look, idle)
        ppn = vm.kernel + offset % vm.span
        slot = vm.base_slot + ppn
        if in_guest_memory(state_of(st, slot)):
            if use_of(st, slot) == CACHE:
                return ppn
            if use_of(st, slot) == ANON and anon < 0:
                anon = ppn
    return anon


@kernel
def pin(st: HostState, v: int, ppn: int) -> int:
    """The balloon takes a page that the guest gave up. Returns the frames the host got, 0 or 1."""
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    state = state_of(st, slot)
    freed = 0
    if state == RESIDENT or state == SHARED:
        freed = fault.leave_memory(st, v, ppn, BALLOONED)
    elif state == SWAPPED:
        fault.free_swap_slot(st, slot)
        set_state(st, slot, BALLOONED)
        vm.swapped -= 1
        vm.ballooned += 1
    elif state == COMPRESSED:
        freed = compress.take_out(st, v, ppn)
        set_state(st, slot, BALLOONED)
        vm.ballooned += 1
    else:
        set_state(st, slot, BALLOONED)
        vm.untouched -= 1
        vm.ballooned += 1
    if state != UNTOUCHED:
        st.page[slot] = i64(st.page[slot]) | ACCESSED
        vm.backed += 1
    vm.gave += freed
    return freed


@kernel
def write_out(st: HostState, v: int, ppn: int) -> int:
    """The guest writes a dirty page to its own disk. Returns the cost, or why it cannot.

    When the host had swapped the page it must first read it back: double paging [P 3.1]. One that
    the host had compressed is decompressed first.
    """
    host = st.host[0]
    vm = st.vms[v]
    if vm.disk_io_left <= 0:
        return fault.NO_GUEST_IO
    cost = 0
    state = state_of(st, vm.base_slot + ppn)
    if state == SWAPPED or state == COMPRESSED:
        cost = fault.bring_in(st, v, ppn)
        if cost < 0:
            return cost
        host.double_pagings += i64(state == SWAPPED)
    vm.disk_io_left -= 1
    host.guest_page_outs += 1
    return cost


@kernel
def _page_out(st: HostState, v: int, ppn: int) -> int:
    """The guest pages an anonymous page out. Returns the cost, or why it refuses."""
    vm = st.vms[v]
    if vm.guest_swapped >= vm.guest_swap:
        return fault.NO_GUEST_MEMORY
    cost = write_out(st, v, ppn)
    if cost >= 0:
        vm.guest_swapped += 1
    return cost


@kernel
def choose_victim(st: HostState, v: int) -> int:
    """The page that the guest can best do without, or -1 when all it has is unmovable.

    Clean cache, then anonymous pages, outside the active window; then a cold page inside it where
    the workload ranks them, else cache, then anonymous pages. (Cache before all anonymous pages
    would be simpler, and wrong: a guest with idle anonymous memory then re-reads its active cache
    for ever.)
    """
    vm = st.vms[v]
    key = rng.stream(st.host[0].seed, rng.GUEST, vm.vm, vm.gifts)
    vm.gifts += 1
    ppn = _find_idle(st, v, key)
    if ppn < 0 and _is_ranked(st, v):
        ppn = find_coldest(st, v, key)
    if ppn < 0 and vm.cache > 0:
        ppn = _find_use(st, v, CACHE, key)
    if ppn < 0 and vm.anon > 0:
        ppn = _find_use(st, v, ANON, key)
    return ppn


@kernel
def give_page(st: HostState, v: int) -> int:
    """The guest gives its balloon one page. Returns the cost in ns of one page, or why not.

    Free pages first, whether the host ever backed them or not; then its own choice, dropped if it
    is clean cache and paged out to the guest's disk if it is anonymous. A guest whose swap space is
    full refuses.
    """
    vm = st.vms[v]
    if vm.guest_free > 0:
        ppn = _find_free(st, v)
        vm.guest_free -= 1
        vm.given = ppn
        pin(st, v, ppn)
        return 0
    ppn = choose_victim(st, v)
    if ppn < 0:
        st.host[0].guest_refusals += 1
        return fault.NO_GUEST_MEMORY
    use = use_of(st, vm.base_slot + ppn)
    cost = i64(0)
    if use == ANON:
        cost = _page_out(st, v, ppn)
        if cost < 0:
            st.host[0].guest_refusals += 1
            return cost
    count_use(st, v, use, -1)
    vm.given = ppn
    pin(st, v, ppn)
    return cost


@kernel
def take_back(st: HostState, v: int, ppn: int) -> None:
    """The balloon returns a page: UNTOUCHED for the host, free for the guest."""
    vm = st.vms[v]
    fault.pop(st, v, ppn)
    vm.guest_free += 1
    vm.free_cursor = ppn
