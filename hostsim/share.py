"""Content-based page sharing [P 4.2, 4.3].

A content is indexed by at most one frame: a *hint* (a private page that was scanned; may be stale,
since hinted pages are not write-protected) or a *shared frame* (no owner, copy-on-write, counted by
`refs`). Scanning turns two equal private frames into one shared frame. A page owns at most one
hint; the hint ends when the page is rescanned, shared, or leaves RESIDENT. A unique page's hint is
one bit: nothing can ever match it. Nothing here allocates frames.
"""

from __future__ import annotations

import numpy as np

from hostsim import rng
from hostsim.frames import disown, release_frame
from hostsim.jit import fetch, i64, kernel, small
from hostsim.state import (
    ACCESSED,
    AHEAD,
    HINT,
    INDEX,
    PPN_BITS,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    UNIQUE,
    HostState,
    count_vms,
    set_state,
    slot_unit,
    state_of,
)

DRAWS_PER_PAGE = 4
"""Random pages drawn, at most, for one page of scan budget: pages without a frame are passed over
(they cannot be hashed), and a VM with next to none must not stall the scan."""

SLOTS_IN_CACHE = 1 << 17
"""A VM of so many slots lies in a core's own cache: asking for its pages early would take longer
than it saves."""


@small
def shared_saved(st: HostState) -> int:
    """SHARED pages minus distinct shared frames, in slots."""
    total = 0
    for i in range(count_vms(st)):
        total += st.vms[st.order[i]].shared
    return total - st.host[0].distinct


@small
def _home(key: int, mask: int) -> int:
    return i64(rng.mix(np.uint64(key))) & mask


@kernel
def stale_put(st: HostState, key: int, content: int) -> None:
    """Remember that page `key` owns a stale hint on `content`."""
    mask = st.stale_page.size - 1
    i = _home(key, mask)
    while st.stale_page[i] != -1:
        i = (i + 1) & mask
    st.stale_page[i] = key
    st.stale_at[i] = content


@kernel
def stale_find(st: HostState, key: int) -> int:
    """Position of page `key` in the table of stale hints, or -1."""
    mask = st.stale_page.size - 1
    i = _home(key, mask)
    while st.stale_page[i] != key:
        if st.stale_page[i] == -1:
            return -1
        i = (i + 1) & mask
    return i


@kernel
def stale_remove(st: HostState, i: int) -> None:
    """Empty position `i`, moving later entries of its run back so that look-ups stay short."""
    mask = st.stale_page.size - 1
    j = i
    while True:
        j = (j + 1) & mask
        if st.stale_page[j] == -1:
            break
        home = _home(st.stale_page[j], mask)
        if ((j - home) & mask) >= ((j - i) & mask):
            st.stale_page[i] = st.stale_page[j]
            st.stale_at[i] = st.stale_at[j]
            i = j
    st.stale_page[i] = -1


@small
def drop_hint(st: HostState, v: int, ppn: int) -> int:
    """End the hint that a page owns, if any. Returns 1 when there was one and it was stale."""
    slot = st.vms[v].base_slot + ppn
    if i64(st.page[slot]) & HINT == 0:
        return 0
    word = i64(st.content[slot])
    st.host[0].hint_frames -= 1
    st.page[slot] = i64(st.page[slot]) & ~HINT
    if word & STALE == 0:
        if word & UNIQUE == 0:
            st.hints[word & INDEX] = -1
        return 0
    st.content[slot] = word & ~STALE
    i = stale_find(st, v << PPN_BITS | ppn)
    if i >= 0:
        st.hints[st.stale_at[i]] = -1
        stale_remove(st, i)
    return 1


@small
def rewrite(st: HostState, v: int, ppn: int, word: int) -> None:
    """A RESIDENT page now holds `word`. Its hint, if any, is stale while the contents differ."""
    slot = st.vms[v].base_slot + ppn
    old = i64(st.content[slot])
    if i64(st.page[slot]) & HINT == 0:
        st.content[slot] = word
        return
    key = v << PPN_BITS | ppn
    if old & STALE == 0:
        if old != word:
            if old & UNIQUE == 0:
                stale_put(st, key, old)
            word |= STALE
    else:
        i = stale_find(st, key)
        if i >= 0 and st.stale_at[i] == word:
            stale_remove(st, i)
        else:
            word |= STALE
    st.content[slot] = word


@small
def _to_shared(st: HostState, v: int, ppn: int) -> int:
    """A RESIDENT page becomes a reference to the shared frame of its content.

    Returns the kind of the frame that it had of its own.
    """
    slot = st.vms[v].base_slot + ppn
    accessed = i64(st.page[slot]) & ACCESSED
    kind = disown(st, v, slot)
    set_state(st, slot, SHARED)
    st.page[slot] = i64(st.page[slot]) | accessed
    st.refs[i64(st.content[slot]) & INDEX] += 1
    st.vms[v].shared += 1
    return kind


@small
def match(st: HostState, v: int, ppn: int, insert_hint: int) -> int:
    """Look up the content of a RESIDENT page and share it if an equal frame is indexed.

    A miss inserts a hint when `insert_hint` is 1 (scan) and not when it is 0 (share before swap).
    The page must own no hint. Returns 1 when the page became SHARED: one frame is free again.
    """
    host = st.host[0]
    slot = st.vms[v].base_slot + ppn
    word = i64(st.content[slot])
    if word & UNIQUE == 0:
        if st.refs[word] > 0:
            release_frame(st, _to_shared(st, v, ppn))
            return 1
        hint = st.hints[word]
        if hint >= 0:
            other_v = hint >> PPN_BITS
            other_ppn = hint & ((1 << PPN_BITS) - 1)
            other = i64(st.content[st.vms[other_v].base_slot + other_ppn])
            host.stale_hints += drop_hint(st, other_v, other_ppn)
            if other == word:
                st.shared_kind[word] = _to_shared(st, other_v, other_ppn)
                release_frame(st, _to_shared(st, v, ppn))
                host.distinct += 1
                return 1
        if insert_hint == 1:
            st.hints[word] = v << PPN_BITS | ppn
    if insert_hint == 1:
        st.page[slot] = i64(st.page[slot]) | HINT
        host.hint_frames += 1
    return 0


@small
def scan_page(st: HostState, v: int, ppn: int) -> None:
    """The candidate step of [P 4.3] for one page that has a frame."""
    host = st.host[0]
    host.scanned += 1
    if state_of(st, st.vms[v].base_slot + ppn) != RESIDENT:
        return
    host.stale_hints += drop_hint(st, v, ppn)
    host.shares_made += match(st, v, ppn, 1)


@kernel
def scan_vm(st: HostState, v: int, budget: int) -> int:
    """Scan up to `budget` random pages of one VM. Returns how many were hashed.

    To scan a shared page changes nothing, nor to scan one whose hint is good: such pages, nearly
    all where little is written, are counted without a branch and passed over.
    """
    vm = st.vms[v]
    key = rng.stream(st.host[0].seed, rng.SCAN, vm.vm, st.host[0].tick)
    ahead, base, size = st.ahead, vm.base_slot, vm.size_slots
    is_far = size > SLOTS_IN_CACHE
    done, drawn, most = i64(0), i64(0), DRAWS_PER_PAGE * budget
    while done < budget and drawn < most:
        n = min(min(AHEAD, most - drawn), 2 * (budget - done))
        for i in range(n):
            ahead[i] = base + rng.below(key, drawn + i, size)
        if is_far:
            for i in range(n):
                fetch(st.page, ahead[i])
                fetch(st.content, ahead[i])
        drawn += n
        before, n_news = done, i64(0)
        for i in range(n):
            slot = ahead[i]
            byte, word = i64(st.page[slot]), i64(st.content[slot])
            state = byte & STATE
            is_hashed = ((state == RESIDENT) | (state == SHARED)) & (done < budget)
            is_known = (state == SHARED) | ((byte & HINT != 0) & (word & STALE == 0))
            ahead[n_news] = slot
            n_news += i64(is_hashed & ~is_known)
            done += i64(is_hashed)
        if is_far:
            for i in range(n_news):
                index = i64(st.content[ahead[i]]) & INDEX
                fetch(st.refs, index)
                fetch(st.hints, index)
        for i in range(n_news):
            scan_page(st, v, ahead[i] - base)
        st.host[0].scanned += done - before - n_news
    return done


@kernel
def scan(st: HostState, first: int) -> None:
    """Scan every sharing VM at its own rate while the host's budget lasts.

    VMs are served in id order starting at position `first` of the order. One slot at most of what
    is not scanned, because the host's budget or frames were not found, waits for the next step: or
    short steps and large slots, whose budgets are one or none, would lose a part of the rate.
    """
    host, unit = st.host[0], slot_unit(st)
    host.scan_carry += host.scan_rate_total * host.dt_ms
    left = host.scan_carry // unit
    host.scan_carry -= left * unit
    host.scanned_last_step = 0
    n = count_vms(st)
    for i in range(n):
        v = st.order[(first + i) % n]
        vm = st.vms[v]
        if vm.sharing == 0:
            continue
        rate = host.scan_rate_vm
        if host.scan_time_ms > 0:
            rate = min(rate, vm.size_slots * unit // host.scan_time_ms)
        vm.scan_carry += rate * host.dt_ms
        budget = min(vm.scan_carry // unit, left)
        if budget > 0:
            done = scan_vm(st, v, budget)
            left -= done
            host.scanned_last_step += done
            vm.scan_carry -= done * unit
        if vm.scan_carry >= unit:
            vm.scan_carry = unit + vm.scan_carry % unit
