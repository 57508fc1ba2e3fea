"""Which pages of a guest's active window a touch would change anything of: the loud ones.

Nearly all pages are quiet, so a step looks at every page of the window once, in order, which is
cheap, and keeps the loud ones in two lists: those that any touch changes, and those that only a
write does. Touching draws from the lists alone. Nothing here changes what a page is.
"""

from __future__ import annotations

import numpy as np

from hostsim.frames import kind_of
from hostsim.jit import i64, kernel, small
from hostsim.ranks import BLOCK
from hostsim.state import (
    ACCESSED,
    ANON,
    HINT,
    KIND,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    UNIQUE,
    USE_SHIFT,
    Array,
    HostState,
)

_STATE, _ACCESSED, _HINT = np.uint8(STATE), np.uint8(ACCESSED), np.uint8(HINT)
_RESIDENT, _SHARED = np.uint8(RESIDENT), np.uint8(SHARED)
_LOWEST_USE = np.uint8(1 << USE_SHIFT)  # the lowest use is FREE
_ANON_FROM, _ANON_UPTO = np.uint8(ANON << USE_SHIFT), np.uint8(ANON + 1 << USE_SHIFT)
_NONE, _MARKS_SHIFT = np.uint8(0), np.uint32(24)
_UNIQUE_MARK, _STALE_MARK = np.uint8(UNIQUE >> 24), np.uint8(STALE >> 24)

QUIET, LOUD = i64(0), 2
"""Loudness from which any touch may change something; 1: only a write may."""
GROUP, FEW = 8, 16
"""Pages that are looked at together for a loud one; loud ones of a block that are few."""
ANY, WRITE = map(i64, range(2))
"""The lists in `heard`: of pages that any touch changes, and that only a write changes."""


@small
def marks_of(word: np.uint32) -> np.uint8:
    """The highest byte of a content word, with its marks."""
    return np.uint8(word >> _MARKS_SHIFT)


@small
def loudness(byte: np.uint8, marks: np.uint8) -> np.uint8:
    """Whether a touch of a page with this state byte and content word changes anything.

    Not (0) where the page is in memory and marked as accessed already, and not written, or written
    over content that is unique already, with no hint or a stale one. 1: a write may; 2 or 3: any
    touch. Compares bytes with bytes, and goes on with integers: only so is a loop over pages
    compiled to vector code (with Booleans, or with the word itself, it takes four times as long).
    """
    state = byte & _STATE
    is_known = i64(byte & _ACCESSED != _NONE) & i64(byte >= _LOWEST_USE)
    is_resident = i64(state == _RESIDENT)
    in_memory = is_resident | i64(state == _SHARED)
    is_told = i64(byte & _HINT == _NONE) | i64(marks & _STALE_MARK != _NONE)
    is_own = is_resident & i64(marks & _UNIQUE_MARK != _NONE) & is_told
    keeps_writes = i64(byte < _ANON_FROM) | i64(byte >= _ANON_UPTO) | is_own
    return np.uint8(3 - 2 * (is_known & in_memory) - keeps_writes)


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
def _any(loud: Array, start: int) -> bool:
    """Whether one of GROUP pages is loud. Written out: as a loop it takes three times as long."""
    low = loud[start] | loud[start + 1] | loud[start + 2] | loud[start + 3]
    high = loud[start + 4] | loud[start + 5] | loud[start + 6] | loud[start + 7]
    return (low | high) != _NONE


@small
def _count(volumes: Array) -> int:
    """How many of at most BLOCK pages are loud. In bytes throughout, for vector code."""
    found = np.uint8(0)
    for i in range(volumes.size):
        found = np.uint8(found + np.uint8(volumes[i] != _NONE))
    return i64(found)


@small
def _add_few(st: HostState, first: int, volumes: Array) -> None:
    """As `_add_all`, where most groups of pages have no loud one."""
    whole = volumes.size - volumes.size % GROUP
    for start in range(0, whole, GROUP):
        if _any(volumes, start):
            for i in range(start, start + GROUP):
                _add(st, first + i, i64(volumes[i]))
    for i in range(whole, volumes.size):
        _add(st, first + i, i64(volumes[i]))


@kernel
def _note(loud: Array, page: Array, content: Array) -> None:
    """Loudness of pages one after the other. In two passes, bytes from words and bytes from bytes,
    each of which is vector code."""
    for i in range(loud.size):
        loud[i] = marks_of(content[i])
    for i in range(loud.size):
        loud[i] = loudness(page[i], loud[i])


@kernel
def _note_far(st: HostState, start: int, loud: Array) -> None:
    """Any touch of a page on NVMe is loud: it takes time, and may bring the page up."""
    for i in range(loud.size):
        if kind_of(st, start + i) != KIND:
            loud[i] = LOUD


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
    _note(loud[:done], page, content)
    rest = active - done
    page, content = st.page[first : first + rest], st.content[first : first + rest]
    _note(loud[done:active], page, content)
    # A touch beyond the memory in use extends it, whatever it finds there.
    for i in range(max(vm.brk - vm.kernel - vm.window, 0), done):
        loud[i] = LOUD
    for i in range(max(vm.brk - vm.kernel, 0), rest):
        loud[done + i] = LOUD
    if st.host[0].tiered == 1:
        _note_far(st, start, loud[:done])
        _note_far(st, first, loud[done:active])
    st.n_heard[ANY], st.n_heard[WRITE] = 0, 0
    for start in range(0, active, BLOCK):
        part = loud[start : min(start + BLOCK, active)]
        n = _count(part)
        if n > FEW:
            _add_all(st, start, part)
        elif n > 0:
            _add_few(st, start, part)


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
    now = loudness(st.page[slot], marks_of(st.content[slot]))
    if st.host[0].tiered == 1 and kind_of(st, slot) != KIND:
        now = np.uint8(LOUD)
    st.loud[offset] = now
    _add(st, offset, i64(now))
