"""The compression cache of a VM (ESX 4.1): pages chosen for swap that compress to a half or less.

A page in it takes one or two quarters of a slot (1 or 2 KiB of a page of 4); the cache takes whole
frames, as few as hold them all. Pages lie in it in the order in which they came: a list linked both
ways through `by_age`. How far a content compresses is a function of the content and of the VM's
image. Nothing here decides which pages come and go, or touches frames other than the cache's own.
"""

from __future__ import annotations

from hostsim import rng
from hostsim.frames import release_frame, take_frame
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    COMPRESSED,
    INDEX,
    KIND,
    UNIQUE,
    HostState,
    compressed_frames,
    state_of,
)

OLDER, NEWER = map(i64, range(2))
"""Columns of `by_age`."""
PERMILLE = 1000


@kernel
def rank_contents(st: HostState, base: int, length: int, owner: int, kind: int) -> None:
    """Fill `easier` for a range of contents, from what names it on every host alike."""
    key = rng.stream(st.host[0].seed, rng.EASE, owner, 1 + kind)
    for place in range(length):
        st.easier[base + place] = rng.below(key, place, PERMILLE)


@small
def quarters_of(st: HostState, v: int, ppn: int) -> int:
    """Quarters of a slot that a page compresses to: 1 or 2, or 0 where it takes more.

    What only this page holds, a unique content or one whose other pages are not in the sample, is
    named by the page: so writes that replace one by another change nothing, and may be left out.
    """
    vm = st.vms[v]
    word = i64(st.content[vm.base_slot + ppn])
    if word & UNIQUE != 0 or word & INDEX == vm.zero + 1:
        rank = rng.below(rng.stream(st.host[0].seed, rng.EASE, vm.vm, 0), ppn, PERMILLE)
    elif word & INDEX == vm.zero:
        return 1
    else:
        rank = i64(st.easier[word & INDEX])
    if rank < vm.to_quarter:
        return 1
    return 2 if rank < vm.to_half else 0


@kernel
def count_quarters(st: HostState, v: int) -> int:
    """Quarters of a slot that a VM's COMPRESSED pages take, counted anew."""
    total = i64(0)
    for ppn in range(st.vms[v].size_slots):
        if state_of(st, st.vms[v].base_slot + ppn) == COMPRESSED:
            total += quarters_of(st, v, ppn)
    return total


@small
def _resize(st: HostState, v: int, quarters: int) -> None:
    """The cache holds so many quarters more, or fewer. Low frames are given back first."""
    vm = st.vms[v]
    before = compressed_frames(st, v)
    vm.compressed_quarters += quarters
    after = compressed_frames(st, v)
    if after > before:
        vm.compressed_highmem += i64(take_frame(st) == KIND)
    elif after < before:
        is_high = i64(vm.compressed_highmem == before)
        vm.compressed_highmem -= is_high
        release_frame(st, is_high * KIND)


@small
def _link(st: HostState, v: int, older: int, newer: int) -> None:
    """Two pages follow each other in the cache, as 1 + PPN; 0 is its end."""
    vm = st.vms[v]
    if older == 0:
        vm.oldest = newer
    else:
        st.by_age[vm.base_slot + older - 1, NEWER] = newer
    if newer == 0:
        vm.newest = older
    else:
        st.by_age[vm.base_slot + newer - 1, OLDER] = older


@kernel
def put(st: HostState, v: int, ppn: int) -> None:
    """A page that has just become COMPRESSED, and so left its frame, goes into the cache."""
    newest = st.vms[v].newest
    _link(st, v, newest, 1 + ppn)
    _link(st, v, 1 + ppn, i64(0))
    _resize(st, v, quarters_of(st, v, ppn))


@kernel
def take_out(st: HostState, v: int, ppn: int) -> int:
    """A COMPRESSED page, about to be something else, leaves the cache. Frames freed: 0 or 1."""
    slot, free = st.vms[v].base_slot + ppn, st.host[0].free
    _link(st, v, i64(st.by_age[slot, OLDER]), i64(st.by_age[slot, NEWER]))
    st.by_age[slot, OLDER] = 0
    st.by_age[slot, NEWER] = 0
    st.vms[v].compressed -= 1
    _resize(st, v, -quarters_of(st, v, ppn))
    return st.host[0].free - free
