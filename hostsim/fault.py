"""What happens when a guest touches a page: zero-fill, swap-in, copy-on-write break.

A fault never reclaims: with no free frame the touch stalls, is counted, and is tried again. In LOW
a VM that has all it is entitled to gets none either: LOW stops the VMs above it, and one step is
long enough to take all that reclamation has freed. Costs are in the guest's time, in nanoseconds,
times the pages that one slot stands for.
"""

from __future__ import annotations

from hostsim import compress, large, remap, share, tier
from hostsim.frames import disown, own, release_frame, take_frame
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    ACCESSED,
    BALLOONED,
    COMPRESSED,
    COW,
    DECOMPRESS,
    INDEX,
    KIND,
    LOW,
    RESIDENT,
    SHARED,
    STATE,
    SWAP_IN,
    SWAPPED,
    UNTOUCHED,
    HostState,
    add_refs,
    entitled,
    held_of,
    refs_of,
    set_state,
)

NO_FRAME, NO_IO, NO_GUEST_MEMORY, NO_GUEST_IO = map(i64, (-1, -2, -3, -4))
NO_TIER_IO = tier.BUSY
"""Why a touch stalls: no free frame; the swap device is busy; the guest has no page to give up, or
no room in its own swap space; the guest's disk is busy; so is the NVMe that the page lies on."""


@small
def may_take_frame(st: HostState, v: int) -> bool:
    """Whether the VM may have one more page in memory now."""
    host = st.host[0]
    return host.free > 0 and (host.level < LOW or held_of(st, v) < entitled(st, v))


@small
def leave_memory(st: HostState, v: int, ppn: int, state: int) -> int:
    """A page that has a frame moves to `state`, one without a frame of its own.

    A shared frame is freed by its last holder only. Returns the frames freed, 0 or 1.
    """
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    freed, kind = 1, i64(0)
    if i64(st.page[slot]) & STATE == SHARED:
        index = i64(st.content[slot]) & INDEX
        add_refs(st, index, -1)
        vm.shared -= 1
        if refs_of(st, index) == 0:
            st.host[0].distinct -= 1
            kind = i64(st.shared_kind[index])
            st.shared_kind[index] = 0
        else:
            freed = 0
    else:
        if st.host[0].large_slots > 0:
            large.split(st, v, ppn)
        share.drop_hint(st, v, ppn)
        kind = disown(st, v, slot)
    remap.forget(st, v, ppn)
    set_state(st, slot, state)
    if state == BALLOONED:
        vm.ballooned += 1
    elif state == SWAPPED:
        vm.swapped += 1
    elif state == COMPRESSED:
        vm.compressed += 1
    else:
        vm.untouched += 1
    if freed == 1:
        release_frame(st, kind)
    return freed


@kernel
def pop(st: HostState, v: int, ppn: int) -> None:
    """A ballooned page is the guest's again without a frame: UNTOUCHED."""
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    if i64(st.page[slot]) & ACCESSED != 0:
        vm.backed -= 1
    set_state(st, slot, UNTOUCHED)
    vm.ballooned -= 1
    vm.untouched += 1


@small
def free_swap_slot(st: HostState, slot: int) -> None:
    """A SWAPPED page, about to be something else, leaves the device that it lies on."""
    st.host[0].ssd_used -= i64(i64(st.page[slot]) & KIND != 0)


@small
def _leave_swap(st: HostState, v: int, slot: int) -> None:
    """A swapped page gets a frame. The caller saw that there is one."""
    free_swap_slot(st, slot)
    set_state(st, slot, RESIDENT)
    own(st, v, slot, take_frame(st))
    st.vms[v].swapped -= 1


@small
def _swap_in(st: HostState, v: int, slot: int) -> int:
    """Read a page back: from the host cache, from swap, or from the guest's disk if it was dropped.
    As `bring_in`."""
    host = st.host[0]
    vm = st.vms[v]
    if i64(st.page[slot]) & ACCESSED != 0:
        if vm.disk_io_left <= 0:
            return NO_GUEST_IO
        vm.disk_io_left -= 1
        cost = vm.disk_latency_ns
    elif i64(st.page[slot]) & KIND != 0:
        if host.ssd_io_left <= 0:
            return NO_IO
        host.ssd_io_left -= 1
        host.ssd_ins += 1
        cost = host.ssd_latency_ns
    else:
        if host.swap_io_left <= 0:
            return NO_IO
        host.swap_io_left -= 1
        cost = host.swap_latency_ns
    _leave_swap(st, v, slot)
    host.swap_ins += 1
    vm.cause = SWAP_IN
    return cost


@small
def _decompress(st: HostState, v: int, ppn: int) -> int:
    """A compressed page gets a frame of its own. As `bring_in`."""
    slot = st.vms[v].base_slot + ppn
    compress.take_out(st, v, ppn)
    set_state(st, slot, RESIDENT)
    own(st, v, slot, take_frame(st))
    st.host[0].decompressions += 1
    st.vms[v].cause = DECOMPRESS
    return st.host[0].decompress_ns


@small
def bring_in(st: HostState, v: int, ppn: int) -> int:
    """Give the page a frame if it has none, or reach the one that it has. Returns the cost in ns of
    one page, or why not."""
    host = st.host[0]
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    state = i64(st.page[slot]) & STATE
    if state == RESIDENT or state == SHARED:
        return tier.reach(st, v, ppn) if host.tiered == 1 else i64(0)
    if not may_take_frame(st, v):
        return NO_FRAME
    if state == SWAPPED:
        return _swap_in(st, v, slot)
    if state == COMPRESSED:
        return _decompress(st, v, ppn)
    if state == BALLOONED:
        # Only a guest that was reset touches a page it had pinned [P 3.2: popping the balloon].
        pop(st, v, ppn)
        host.pops += 1
    if host.large_slots > 0 and large.back(st, v, ppn):
        return 0
    vm.untouched -= 1
    set_state(st, slot, RESIDENT)
    own(st, v, slot, take_frame(st))
    st.content[slot] = vm.zero
    host.zero_fills += 1
    return 0


@small
def write(st: HostState, v: int, ppn: int, word: int) -> int:
    """The guest writes `word` to a page that has a frame. Returns the cost, or why it stalls.

    The sole holder of a shared frame writes in place: the frame's name moves from the content to
    the page. Others get a private copy.
    """
    host = st.host[0]
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    if i64(st.page[slot]) & STATE == RESIDENT:
        share.rewrite(st, v, ppn, word)
        return 0
    cost = 0
    index = i64(st.content[slot]) & INDEX
    if refs_of(st, index) == 1:
        kind = i64(st.shared_kind[index])
        st.shared_kind[index] = 0
        host.distinct -= 1
        host.cow_reuses += 1
    elif host.free <= 0:
        return NO_FRAME
    else:
        kind = take_frame(st)
        host.cow_breaks += 1
        vm.cause = COW
        cost = host.cow_ns
    add_refs(st, index, -1)
    accessed = i64(st.page[slot]) & ACCESSED
    set_state(st, slot, RESIDENT)
    st.page[slot] = i64(st.page[slot]) | accessed
    own(st, v, slot, kind)
    vm.shared -= 1
    st.content[slot] = word
    return cost


@small
def touch(st: HostState, v: int, ppn: int, is_write: int, word: int) -> int:
    """The guest reads a page, or writes `word` to it. Returns the cost in ns, or why it stalls.

    A first touch, read or write, takes a frame. The first touch since the sampler dropped a page's
    mapping is a minor fault [P 5.3], at most n a period: too cheap to charge. Clearing a fresh
    frame is not charged either: it costs the same without overcommitment. A write that stalls
    after its page came in leaves the page in memory and untouched by the guest.
    """
    slot = st.vms[v].base_slot + ppn
    cost = bring_in(st, v, ppn)
    if cost < 0:
        return cost
    if is_write == 1:
        extra = write(st, v, ppn, word)
        if extra < 0:
            return extra
        cost += extra
    byte = i64(st.page[slot])
    if byte & ACCESSED == 0:
        st.page[slot] = byte | ACCESSED
    return cost * st.host[0].sample


@kernel
def overwrite(st: HostState, v: int, ppn: int, word: int) -> int:
    """The guest replaces all that a page holds by `word`. Cost and stalls as of `touch`.

    What the page held need not be read first: with `skip_overwritten` a swapped one is not.
    """
    host = st.host[0]
    slot = st.vms[v].base_slot + ppn
    if host.skip_overwritten == 1 and i64(st.page[slot]) & STATE == SWAPPED:
        if not may_take_frame(st, v):
            return NO_FRAME
        _leave_swap(st, v, slot)
        host.swap_skips += 1
        st.content[slot] = word
        st.page[slot] = i64(st.page[slot]) | ACCESSED
        return i64(0)
    return touch(st, v, ppn, 1, word)
