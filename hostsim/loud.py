"""Which pages of a guest's active window a touch would change anything of: the loud ones.

Nearly all pages are quiet, so a step looks at every page of the window once, in order, which is
cheap, and keeps the loud ones in two lists: those that any touch changes, and those that only a
write does. Touching draws from the lists alone. Nothing here changes what a page is.
"""

from __future__ import annotations

import numpy as np

from hostsim.jit import i64, kernel, small
from hostsim.ranks import BLOCK
from hostsim.state import (
    ACCESSED,
    ANON,
    HINT,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    UNIQUE,
    USE_SHIFT,
    Array,
    HostState,
)

QUIET, LOUD = i64(0), 2
"""Loudness from which any touch may change something; 1: only a write may."""
ANY, WRITE = map(i64, range(2))
"""The lists in `heard`: of pages that any touch changes, and that only a write changes."""


@small
def loudness(byte: int, word: int) -> int:
    """Whether a touch of a page with this state byte and content word changes anything.

    Not (0) where the page is in memory and marked as accessed already, and not written, or written
    over content that is unique already, with no hint or a stale one. 1: a write may; 2 or 3: any
    touch. Without branches, so that compilers turn a loop over pages into vector code.
    """
    state = byte & STATE
    is_known = (byte & ACCESSED != 0) & (byte >= 1 << USE_SHIFT)  # the lowest use is FREE
    in_memory = (state == RESIDENT) | (state == SHARED)
    is_told = (byte & HINT == 0) | (word & STALE != 0)
    is_own = (state == RESIDENT) & (word & UNIQUE != 0) & is_told
    keeps_writes = (byte >> USE_SHIFT != ANON) | is_own
    return 3 - 2 * i64(is_known & in_memory) - i64(keeps_writes)


@small
def slot_of(st: HostState, which: int, i: int) -> int:
    """Where entry `i` of a list lies in `heard`: one list begins at each end, as pages are in one
    of them at most."""
    return i if which == ANY else st.heard.size - 1 - i


@small
def _add(st: HostState, offset: int, volume: int) -> None:
    """Put an offset at the end of its list, if it is loud."""
    if volume == QUIET:
        return
    which = ANY if volume >= LOUD else WRITE
    at = slot_of(st, which, st.n_heard[which])
    st.heard[at] = offset
    st.heard_at[offset] = at
    st.n_heard[which] += 1


@small
def _remove(st: HostState, offset: int, volume: int) -> None:
    """Take an offset from the list that it is in; the last one of the list fills its place."""
    if volume == QUIET:
        return
    which = ANY if volume >= LOUD else WRITE
    st.n_heard[which] -= 1
    last = st.heard[slot_of(st, which, st.n_heard[which])]
    at = st.heard_at[offset]
    st.heard[at] = last
    st.heard_at[last] = at


@small
def _add_all(st: HostState, first: int, volumes: Array) -> None:
    """`_add` offsets from `first` on. Without branches: each is written behind both lists, and the
    one that it belongs to grows. Between the lists there is room for an offset that is in neither.
    """
    heard, heard_at, last = st.heard, st.heard_at, st.heard.size - 1
    n_any, n_write = st.n_heard[ANY], st.n_heard[WRITE]
    for i in range(volumes.size):
        volume = i64(volumes[i])
        heard[n_any] = first + i
        heard[last - n_write] = first + i
        heard_at[first + i] = n_any if volume >= LOUD else last - n_write
        n_any += i64(volume >= LOUD)
        n_write += i64(volume == 1)
    st.n_heard[ANY], st.n_heard[WRITE] = n_any, n_write


@kernel
def listen(st: HostState, v: int) -> None:
    """Note the loudness of every page of the active window, and list the loud ones in order."""
    vm = st.vms[v]
    loud, first, active = st.loud, vm.base_slot + vm.kernel, vm.active
    done = min(active, vm.span - vm.window)
    start = first + vm.window
    page, content = st.page[start : start + done], st.content[start : start + done]
    for i in range(done):
        loud[i] = loudness(i64(page[i]), i64(content[i]))
    rest = active - done
    page, content = st.page[first : first + rest], st.content[first : first + rest]
    for i in range(rest):
        loud[done + i] = loudness(i64(page[i]), i64(content[i]))
    # A touch beyond the memory in use extends it, whatever it finds there.
    for i in range(max(vm.brk - vm.kernel - vm.window, 0), done):
        loud[i] = LOUD
    for i in range(max(vm.brk - vm.kernel, 0), rest):
        loud[done + i] = LOUD
    st.n_heard[ANY], st.n_heard[WRITE] = 0, 0
    for block in range(0, active, BLOCK):
        part = loud[block : min(block + BLOCK, active)]
        heard = np.uint8(0)
        for i in range(part.size):
            heard = np.uint8(heard | part[i])
        if heard != np.uint8(QUIET):
            _add_all(st, block, part)


@kernel
def listen_again(st: HostState, v: int, ppn: int) -> None:
    """Note the loudness of one page, if it lies in the active window."""
    vm = st.vms[v]
    if not vm.kernel <= ppn < vm.kernel + vm.span:
        return
    offset = ppn - vm.kernel - vm.window
    if offset < 0:
        offset += vm.span
    if offset >= vm.active:
        return
    slot = vm.base_slot + ppn
    _remove(st, offset, i64(st.loud[offset]))
    now = loudness(i64(st.page[slot]), i64(st.content[slot]))
    st.loud[offset] = now
    _add(st, offset, now)
