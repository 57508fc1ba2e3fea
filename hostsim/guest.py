"""The guest OS: which pages it has in use and what they hold. What it gives up: `replacement`.

The guest numbers its memory by PPN: unmovable kernel pages first, then its boot footprint, then
pages first used later. A page in use whose state is BALLOONED or UNTOUCHED has its data on the
guest's own disk (clean cache: dropped; anonymous: paged out); its content word says what will be
read back. A touch of such a page, or of a ballooned page never used, needs a free guest page: the
balloon driver then trades pages, pinning one that the guest gives up and returning this one, so
PPNs need no second level of mapping. A guest with nothing left to give gets its page for nothing.
"""

from __future__ import annotations

from hostsim import fault, rng
from hostsim.jit import i64, kernel, small
from hostsim.replacement import (
    count_use,
    find_coldest,
    give_page,
    in_guest_memory,
    take_back,
    write_out,
)
from hostsim.replay import READ, USE_BITS, ZERO_PLACE
from hostsim.state import (
    ANON,
    APPLICATION,
    BALLOONED,
    DUPLICATE,
    FREE,
    GUEST_PAGING,
    IMAGE,
    IN_FOOTPRINT,
    IN_GROWTH,
    IN_KERNEL,
    INDEX,
    POOL,
    STALE,
    SWAPPED,
    UNIQUE,
    ZERO,
    HostState,
    set_use,
    state_of,
    use_of,
)


@small
def fresh_word(st: HostState, v: int) -> int:
    """What a write makes: a content that no other page can hold."""
    st.vms[v].serial += 1
    return UNIQUE | (st.vms[v].serial & INDEX)


@small
def section_of(st: HostState, v: int, ppn: int) -> tuple[int, int]:
    """Which section of its image a page belongs to, and its place there."""
    vm = st.vms[v]
    if ppn < vm.kernel:
        return IN_KERNEL, ppn
    if ppn < vm.footprint:
        return IN_FOOTPRINT, ppn - vm.kernel
    return IN_GROWTH, ppn - vm.footprint


@small
def is_replayed(st: HostState, v: int, ppn: int) -> bool:
    """Whether a real guest's boot, and not an image, says what the page holds at its first use."""
    return st.vms[v].replay_len > 0 and ppn < st.vms[v].footprint


@small
def replayed_word(st: HostState, v: int, word: int) -> int:
    """Content word of what an event says."""
    place = word & READ
    return st.vms[v].zero if place == ZERO_PLACE else st.vms[v].image_base + place - 1


@kernel
def plan_use(st: HostState, v: int, ppn: int) -> int:
    """Guest use of a page at its first use."""
    if is_replayed(st, v, ppn):
        return i64(st.replay[st.vms[v].replay + ppn].word) >> USE_BITS
    section, offset = section_of(st, v, ppn)
    pattern = st.vms[v].pattern
    return st.kinds[pattern, section, offset % st.periods[pattern, section]] // 8


@kernel
def plan_word(st: HostState, v: int, ppn: int) -> int:
    """Content word of a page at its first use, from a replay or the image's composition.

    The j-th page of class IMAGE holds the j-th content of the image family in every VM; the j-th of
    class POOL one of the family's pool, which each VM draws for itself.
    """
    vm = st.vms[v]
    if is_replayed(st, v, ppn):
        return replayed_word(st, v, i64(st.replay[vm.replay + ppn].word))
    section, offset = section_of(st, v, ppn)
    period = st.periods[vm.pattern, section]
    at = offset % period
    kind = st.kinds[vm.pattern, section, at] % 8
    j = st.class_base[v, section, kind] + st.ranks[vm.pattern, section, at]
    j += offset // period * st.class_counts[vm.pattern, section, kind]
    if kind == ZERO:
        return vm.zero
    if kind == IMAGE:
        return vm.image_base + vm.pool + j
    if kind == APPLICATION:
        return vm.app_base + j
    if kind == DUPLICATE:
        number = (j * 1000 + vm.copies_phase) // vm.copies_permille
        return vm.dup_base + number if number >= 0 else vm.zero + 1
    if kind == POOL:
        key = rng.stream(st.host[0].seed, rng.POOL, vm.vm, 0)
        return vm.image_base + rng.below(key, j, vm.pool)
    return fresh_word(st, v)


@kernel
def _allocate(st: HostState, v: int, ppn: int, free_becomes: int) -> int:
    """First use of a guest-free page: it gets the use and content that its image plans for it.

    free_becomes: use of a page that the image left dirty but free: FREE, or ANON once it is in use.
    """
    vm = st.vms[v]
    cost = fault.overwrite(st, v, ppn, plan_word(st, v, ppn))
    if cost < 0:
        return cost
    use = plan_use(st, v, ppn)
    if use == FREE:
        use = free_becomes
    if use != FREE:
        set_use(st, vm.base_slot + ppn, use)
        vm.guest_free -= 1
        count_use(st, v, use, 1)
    return cost


@kernel
def _page_in(st: HostState, v: int, ppn: int) -> int:
    """Read a page's data back from the guest's disk into its UNTOUCHED page."""
    host = st.host[0]
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    if vm.disk_io_left <= 0:
        return fault.NO_GUEST_IO
    cost = fault.overwrite(st, v, ppn, i64(st.content[slot]) & ~STALE)
    if cost < 0:
        return cost
    use = use_of(st, slot)
    vm.disk_io_left -= 1
    vm.guest_free -= 1
    count_use(st, v, use, 1)
    if use == ANON:
        vm.guest_swapped -= 1
    host.guest_page_ins += 1
    vm.cause = GUEST_PAGING
    return cost + vm.disk_latency_ns * host.sample


@kernel
def _fault_in(st: HostState, v: int, ppn: int, free_becomes: int) -> int:
    """Make a page usable that is not in guest memory. Returns the cost, or why it stalls."""
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    cost = 0
    if state_of(st, slot) == BALLOONED:
        if vm.lost_driver == 1:
            # After a reset the guest knows of no balloon: its touch pops the page.
            if not fault.may_take_frame(st, v):
                return fault.NO_FRAME
            vm.guest_free += 1
        else:
            cost = give_page(st, v)
            if cost == fault.NO_GUEST_MEMORY:
                # The driver gives way before its guest is out of memory; the host has to page.
                if not fault.may_take_frame(st, v):
                    return fault.NO_FRAME
                cost = i64(0)
                take_back(st, v, ppn)
                st.host[0].deflated += 1
            elif cost < 0:
                return cost
            else:
                cost *= st.host[0].sample
                vm.cause = GUEST_PAGING
                take_back(st, v, ppn)
                _rename_sampled(st, v, vm.given, ppn)
    is_first = use_of(st, slot) == FREE
    more = _allocate(st, v, ppn, free_becomes) if is_first else _page_in(st, v, ppn)
    if more < 0:  # the touch will be tried again, but its page was given up already
        st.debts[v, GUEST_PAGING] += cost
        return more
    return cost + more


@kernel
def _rename_sampled(st: HostState, v: int, given: int, taken: int) -> None:
    """Two pages have traded places: to a real guest, with a page number of its own, it is one page
    that it has used for something else. So a sample of it goes on under its new number."""
    for i in range(st.vms[v].samples):
        if st.sampled[v, i] == given:
            st.sampled[v, i] = taken


@kernel
def populate(st: HostState, v: int, ppn: int) -> int:
    """The guest's memory in use reaches this page. Returns the cost in ns, or why it stalls."""
    slot = st.vms[v].base_slot + ppn
    if use_of(st, slot) == FREE or not in_guest_memory(state_of(st, slot)):
        return _fault_in(st, v, ppn, FREE)
    return i64(0)


@kernel
def access(st: HostState, v: int, ppn: int, is_write: int) -> int:
    """The workload touches a page. Returns the cost in ns, or why it stalls.

    Only anonymous pages are written in place: clean cache stays clean.
    """
    slot = st.vms[v].base_slot + ppn
    use = use_of(st, slot)
    if use == FREE or not in_guest_memory(state_of(st, slot)):
        return _fault_in(st, v, ppn, ANON)
    if is_write == 1 and use == ANON:
        return fault.touch(st, v, ppn, 1, fresh_word(st, v))
    return fault.touch(st, v, ppn, 0, 0)


@kernel
def relive(st: HostState, v: int, ppn: int, word: int) -> int:
    """A replayed event, a write or a read, happens. Returns the cost in ns, or why it stalls.

    A real guest's kernel and its page cache are written, too, and so are pages that were free when
    their use was recorded: what a page is used for stays.
    """
    cost = i64(0)
    if not in_guest_memory(state_of(st, st.vms[v].base_slot + ppn)):
        cost = _fault_in(st, v, ppn, ANON)
        if cost < 0:
            return cost
    is_write = i64(word & READ != READ)
    more = fault.touch(st, v, ppn, is_write, replayed_word(st, v, word) if is_write else i64(0))
    return more if more < 0 else cost + more  # a page that was just faulted in is private


@kernel
def read_data(st: HostState, v: int) -> int:
    """The workload uses file data that is not cached: it is read from the guest's disk over a cold
    page, or past memory where there is none. Returns the cost, or why it stalls.

    Anonymous pages stand for dirty ones, which are written out first. A page that the host had
    swapped is read back for that (double paging [P 3.1]), or, if it is clean, only to be
    overwritten (VSwapper's stale read), unless the host skips that.
    """
    host = st.host[0]
    vm = st.vms[v]
    if vm.disk_io_left <= 0:
        return fault.NO_GUEST_IO
    key = rng.stream(host.seed, rng.GUEST, vm.vm, vm.gifts)
    vm.gifts += 1
    ppn = find_coldest(st, v, key)
    cost = i64(0)
    if ppn >= 0:
        vm.given = ppn
        slot = vm.base_slot + ppn
        written = i64(0)
        if use_of(st, slot) == ANON:
            written = write_out(st, v, ppn)
            if written < 0:
                return written
        is_stale = state_of(st, slot) == SWAPPED and host.skip_overwritten == 0
        cost = fault.overwrite(st, v, ppn, fresh_word(st, v))
        if cost < 0:
            st.debts[v, GUEST_PAGING] += written * host.sample
            return cost
        cost += written * host.sample
        host.stale_reads += is_stale
    vm.disk_io_left -= 1
    host.guest_page_ins += 1
    vm.cause = GUEST_PAGING
    return cost + vm.disk_latency_ns * host.sample


@kernel
def scrub(st: HostState, v: int, ppn: int) -> int:
    """A Windows-like guest zeroes a free page [P 5.4, 6.3]. Returns the cost, or why it stalls."""
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    if use_of(st, slot) != FREE:
        return 0
    ballooned = state_of(st, slot) == BALLOONED
    if ballooned and vm.lost_driver == 0:
        return 0
    cost = fault.overwrite(st, v, ppn, vm.zero)
    if cost >= 0 and ballooned:
        vm.guest_free += 1
    return cost


@kernel
def free_page(st: HostState, v: int, ppn: int) -> int:
    """The guest frees a page. The host does not see it, unless the guest scrubs it.

    A scrub that stalls leaves the page free: freeing it again tries again.
    """
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    use = use_of(st, slot)
    if use != FREE:
        if in_guest_memory(state_of(st, slot)):
            count_use(st, v, use, -1)
            vm.guest_free += 1
        elif use == ANON:
            vm.guest_swapped -= 1
        set_use(st, slot, FREE)
    return scrub(st, v, ppn) if vm.windows == 1 else 0


@kernel
def reset(st: HostState, v: int) -> None:
    """The guest restarts in the memory that it has: all pages free to it, the balloon forgotten."""
    vm = st.vms[v]
    for ppn in range(vm.size_slots):
        set_use(st, vm.base_slot + ppn, FREE)
    vm.guest_free = vm.size_slots - vm.ballooned
    vm.cache = 0
    vm.anon = 0
    vm.guest_swapped = 0
    vm.brk = 0
    vm.window = 0
    vm.sweep = 0
    vm.stalled = 0
    vm.row = 0
    vm.scrub_cursor = 0
    vm.grow_carry = 0
    vm.scrub_carry = 0
    vm.booted = 0
    st.debts[v, :] = 0
    vm.boot_end_ns = vm.clock_ns + vm.boot_ms * 1_000_000
    vm.event = min(vm.footprint, vm.replay_len)
    vm.lost_driver = 1
