"""Content-based page sharing [P 4.2, 4.3].

A content is indexed by at most one frame: a *hint* (a private page that was scanned; may be stale,
since hinted pages are not write-protected) or a *shared frame* (no owner, copy-on-write, counted by
its pages). Scanning turns two equal private frames into one shared frame. A page owns at most one
hint; the hint ends when the page is rescanned, shared, or leaves RESIDENT. A unique page's hint is
one bit: nothing can ever match it. Nothing here allocates frames.

A page that is part of a large one is hashed as others are, and not shared until memory is below the
high boundary: then the large page is broken. In CLEAR and below sharing is driven: the scanner goes
faster, and large pages are broken at random, see `breaking`.
"""

from __future__ import annotations

import numpy as np

from hostsim import large, rng
from hostsim.ahead import fetch_frame, fetch_page
from hostsim.frames import disown, release_frame
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    ACCESSED,
    AHEAD,
    HIGH,
    HINT,
    INDEX,
    PPN_BITS,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    UNIQUE,
    HostState,
    add_refs,
    count_vms,
    hint_on,
    refs_of,
    set_hint,
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
def _home(st: HostState, key: int) -> int:
    """Where a page's entry lies in `stale`, if nothing is in its way."""
    return rng.place_of(rng.mix(np.uint64(key)), st.stale.size)


@small
def _after(st: HostState, i: int) -> int:
    """The next position in `stale`, round its end."""
    return i + 1 if i + 1 < st.stale.size else 0


@small
def _distance(st: HostState, start: int, end: int) -> int:
    """Steps from one position in `stale` to another."""
    steps = end - start
    return steps if steps >= 0 else steps + st.stale.size


@kernel
def stale_put(st: HostState, content: int) -> None:
    """Remember that the page that owns the hint on `content` holds something else.

    The entry names the content alone: the content names the page.
    """
    i = _home(st, hint_on(st, content))
    while st.stale[i] != 0:
        i = _after(st, i)
    st.stale[i] = content + 1


@kernel
def stale_find(st: HostState, key: int) -> int:
    """Position in `stale` of the content on which page `key` owns a stale hint, or -1."""
    i = _home(st, key)
    while st.stale[i] != 0:
        if hint_on(st, stale_at(st, i)) == key:
            return i
        i = _after(st, i)
    return -1


@small
def stale_at(st: HostState, i: int) -> int:
    """The content at a position in `stale` that is not empty."""
    return i64(st.stale[i]) - 1


@kernel
def stale_remove(st: HostState, i: int) -> None:
    """Empty position `i`, moving later entries of its run back so that look-ups stay short."""
    j = _after(st, i)
    while st.stale[j] != 0:
        home = _home(st, hint_on(st, stale_at(st, j)))
        if _distance(st, home, j) >= _distance(st, i, j):
            st.stale[i] = st.stale[j]
            i = j
        j = _after(st, j)
    st.stale[i] = 0


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
            set_hint(st, word & INDEX, -1)
        return 0
    st.content[slot] = word & ~STALE
    i = stale_find(st, v << PPN_BITS | ppn)
    if i >= 0:
        set_hint(st, stale_at(st, i), -1)
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
    if old & STALE == 0:
        if old != word:
            if old & UNIQUE == 0:
                stale_put(st, old)
            word |= STALE
    else:
        i = stale_find(st, v << PPN_BITS | ppn)
        if i >= 0 and stale_at(st, i) == word:
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
    add_refs(st, i64(st.content[slot]) & INDEX, 1)
    st.vms[v].shared += 1
    return kind


@small
def _may_share(st: HostState, v: int, ppn: int) -> bool:
    """Whether a page may be shared now. Below the high boundary its large page is broken for it."""
    if st.host[0].large_slots == 0 or not large.is_large(st, v, ppn):
        return True
    if st.host[0].free >= st.host[0].large_floor:
        return False
    large.split(st, v, ppn)
    return True


@small
def match(st: HostState, v: int, ppn: int, insert_hint: int) -> int:
    """Look up the content of a RESIDENT page and share it if an equal frame is indexed.

    A miss inserts a hint when `insert_hint` is 1 (scan) and not when it is 0 (share before swap).
    The page must own no hint. One that is part of a large page is not shared, and none is with it,
    unless memory is short. Returns 1 when the page became SHARED: one frame is free again.
    """
    host = st.host[0]
    slot = st.vms[v].base_slot + ppn
    word = i64(st.content[slot])
    if word & UNIQUE == 0:
        if refs_of(st, word) > 0:
            if not _may_share(st, v, ppn):
                return 0
            release_frame(st, _to_shared(st, v, ppn))
            return 1
        hint = hint_on(st, word)
        if hint >= 0:
            other_v = hint >> PPN_BITS
            other_ppn = hint & ((1 << PPN_BITS) - 1)
            other = i64(st.content[st.vms[other_v].base_slot + other_ppn])
            if other == word and not (
                _may_share(st, v, ppn) and _may_share(st, other_v, other_ppn)
            ):
                return 0
            host.stale_hints += drop_hint(st, other_v, other_ppn)
            if other == word:
                st.shared_kind[word] = _to_shared(st, other_v, other_ppn)
                release_frame(st, _to_shared(st, v, ppn))
                host.distinct += 1
                return 1
        if insert_hint == 1:
            set_hint(st, word, v << PPN_BITS | ppn)
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
                fetch_page(st, ahead[i])
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
                fetch_frame(st, ahead[i])
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

    In CLEAR and below hosts that drive sharing do so at ShareRateMax, not in ShareScanTime: no
    source says how fast.
    """
    host, unit = st.host[0], slot_unit(st)
    host.scan_carry += host.scan_rate_total * host.dt_ms
    left = host.scan_carry // unit
    host.scan_carry -= left * unit
    host.scanned_last_step = 0
    is_driven = host.eager == 1 and host.level > HIGH
    n = count_vms(st)
    for i in range(n):
        v = st.order[(first + i) % n]
        vm = st.vms[v]
        if vm.sharing == 0:
            continue
        rate = host.scan_rate_vm
        if host.scan_time_ms > 0 and not is_driven:
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
