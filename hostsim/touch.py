"""A guest touches its active window: nearly all touches change nothing, and are told apart cheaply.

Every touch is drawn, so a plain loop over pages sees the same ones; but first the loudness of each
page of the window is noted, and a touch of a quiet page ends there.
"""

from __future__ import annotations

import numpy as np

from hostsim import guest, rng
from hostsim.jit import i64, kernel, small
from hostsim.lost import settle
from hostsim.program import SWEEP, UNIFORM, ZIPF
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

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_PERMILLE = np.uint64(1000)

BLOCK = 64
"""Touches that are looked at together."""
LOUD = 2
"""Loudness of a page at which a touch may change something; a write adds 1 to the page's own."""


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


@kernel
def listen(st: HostState, v: int) -> None:
    """Note the loudness of every page of the active window.

    One pass in order is much cheaper than to look each random page up in its turn: touches of
    quiet pages, nearly all of them, then read this map alone, which the nearest cache holds.
    """
    vm = st.vms[v]
    loud, first = st.loud, vm.base_slot + vm.kernel
    done = min(vm.active, vm.span - vm.window)
    start = first + vm.window
    page, content = st.page[start : start + done], st.content[start : start + done]
    for i in range(done):
        loud[i] = loudness(i64(page[i]), i64(content[i]))
    rest = vm.active - done
    page, content = st.page[first : first + rest], st.content[first : first + rest]
    for i in range(rest):
        loud[done + i] = loudness(i64(page[i]), i64(content[i]))
    # A touch beyond the memory in use extends it, whatever it finds there.
    for i in range(max(vm.brk - vm.kernel - vm.window, 0), done):
        loud[i] = LOUD
    for i in range(max(vm.brk - vm.kernel, 0), rest):
        loud[done + i] = LOUD


@kernel
def listen_again(st: HostState, v: int, ppn: int) -> None:
    """Note the loudness of one page, if it lies in the active window."""
    vm = st.vms[v]
    if not vm.kernel <= ppn < vm.kernel + vm.span:
        return
    offset = ppn - vm.kernel - vm.window
    if offset < 0:
        offset += vm.span
    if offset < vm.active:
        slot = vm.base_slot + ppn
        st.loud[offset] = loudness(i64(st.page[slot]), i64(st.content[slot]))


@small
def zipf_rank(word: np.uint64, n: int) -> int:
    """Rank in [0, n) from a 64-bit draw, Zipf with exponent 1 up to steps of a factor of two.

    Ranks fall into octaves [0], [1, 2], [3..6], ... of equal weight (the last by its part), and are
    uniform inside one: integers only, so every CPU draws the same.
    """
    octaves = 0
    while (2 << octaves) - 1 < n:
        octaves += 1
    full = i64(1) << octaves
    part = n - (full - 1)
    total = octaves * full + part
    pick = i64(((word >> _SHIFT_32) * np.uint64(total)) >> _SHIFT_32)
    octave = min(pick >> octaves, octaves)
    low = (i64(1) << octave) - 1
    width = min(low + 1, n - low)
    return low + i64(((word & _LOW_32) * np.uint64(width)) >> _SHIFT_32)


@small
def is_write_of(word: np.uint64, write_bound: np.uint64) -> np.uint64:
    """1 when the low half of a touch's word says that it writes."""
    return np.uint64((((word & _LOW_32) * _PERMILLE) >> _SHIFT_32) < write_bound)


@small
def offset_of(word: np.uint64, active: np.uint64) -> np.uint64:
    """Place in the window, uniform, from the high half of a touch's word."""
    return ((word >> _SHIFT_32) * (active & _LOW_32)) >> _SHIFT_32


@kernel
def are_quiet(loud: Array, key: np.uint64, done: int, active: int, writes: int) -> bool:
    """Whether the next BLOCK uniform touches change nothing. Without branches, for vector code."""
    n, write_bound = np.uint64(active), np.uint64(writes)
    word = key + np.uint64(done) * _WEYL
    heard = np.uint64(0)
    for i in range(BLOCK):
        mixed = rng.mix(word + np.uint64(i) * _WEYL)
        heard |= np.uint64(loud[offset_of(mixed, n)]) + is_write_of(mixed, write_bound)
    return bool(heard < np.uint64(LOUD))  # ones joined by OR stay below it


@kernel
def touch_window(st: HostState, v: int, n: int, touch_ns: int, writes: int, locality: int) -> int:
    """Touch `n` pages of the active window, `touch_ns` apart. Returns how many were done."""
    vm = st.vms[v]
    listen(st, v)
    key = rng.stream(st.host[0].seed, rng.TOUCH, vm.vm, st.host[0].tick)
    loud = st.loud
    size, span, active = vm.size_slots, vm.span, vm.active
    first, window, sweep = vm.kernel, vm.window, vm.sweep
    write_bound = np.uint64(writes)
    is_uniform = locality == UNIFORM
    done, single = 0, 0
    left = vm.left_ns
    while done < n and left >= touch_ns:
        if single == 0 and is_uniform and n - done >= BLOCK and left >= BLOCK * touch_ns:
            if are_quiet(loud, key, done, active, writes):
                left -= BLOCK * touch_ns
                done += BLOCK
                continue
            single = BLOCK
        single = max(single - 1, 0)
        word = rng.mix(key + np.uint64(done) * _WEYL)
        is_write = i64(is_write_of(word, write_bound))
        if locality == SWEEP:
            offset = sweep + done
            offset -= offset // active * active
        elif locality == ZIPF:
            # A second word: the rank's two halves must not reuse the bits of the write draw.
            offset = active - 1 - zipf_rank(rng.mix(word + _WEYL), active)
        else:
            offset = i64(offset_of(word, np.uint64(active)))
        left -= touch_ns
        if loud[offset] + is_write >= LOUD:
            offset += window
            if offset >= span:
                offset -= span
            ppn = first + offset
            vm.left_ns = left
            cost = guest.access(st, v, ppn, is_write)
            if cost >= 0 and ppn >= vm.brk:
                vm.brk = min(ppn + 1, size)
            listen_again(st, v, ppn)
            listen_again(st, v, vm.given)
            going = settle(st, v, cost)
            left = vm.left_ns
            if cost < 0:
                break
            if not going:
                done += 1
                break
        done += 1
    vm.left_ns = left
    vm.sweep = (sweep + done) % active
    return done
