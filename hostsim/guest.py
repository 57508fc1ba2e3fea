"""The guest OS: which pages it has in use, what they hold, and which it gives up.

The guest numbers its memory by PPN: unmovable kernel pages first, then its boot footprint, then
pages first used later. A page in use whose state is BALLOONED or UNTOUCHED has its data on the
guest's own disk (clean cache: dropped; anonymous: paged out); its content word says what will be
read back. A touch of such a page, or of a ballooned page never used, needs a free guest page: the
balloon driver then trades pages, pinning one that the guest gives up and returning this one, so
PPNs need no second level of mapping.
"""

from __future__ import annotations

import numpy as np

from hostsim import fault, rng
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    ACCESSED,
    ANON,
    APPLICATION,
    BALLOONED,
    CACHE,
    DUPLICATE,
    FREE,
    GUEST_PAGING,
    IMAGE,
    IN_FOOTPRINT,
    IN_GROWTH,
    IN_KERNEL,
    INDEX,
    PATTERN,
    RESIDENT,
    SHARED,
    STALE,
    SWAPPED,
    UNIQUE,
    UNTOUCHED,
    ZERO,
    HostState,
    set_state,
    set_use,
    state_of,
    use_of,
)

LOOKS = 64
"""Random pages the guest looks at before it settles for a worse one: its LRU is approximate."""


@small
def fresh_word(st: HostState, v: int) -> int:
    """What a write makes: a content that no other page can hold."""
    st.vms[v].serial += 1
    return UNIQUE | (st.vms[v].serial & INDEX)


@kernel
def plan_kind(st: HostState, v: int, ppn: int) -> int:
    """Guest use * 8 + content class of a page at its first use."""
    vm = st.vms[v]
    if ppn < vm.kernel:
        return st.kinds[vm.pattern, IN_KERNEL, ppn % PATTERN]
    if ppn < vm.footprint:
        return st.kinds[vm.pattern, IN_FOOTPRINT, (ppn - vm.kernel) % PATTERN]
    return st.kinds[vm.pattern, IN_GROWTH, (ppn - vm.footprint) % PATTERN]


@kernel
def plan_word(st: HostState, v: int, ppn: int) -> int:
    """Content word of a page at its first use, from the image's composition.

    The j-th page of class IMAGE holds the j-th content of the image family in every VM.
    """
    vm = st.vms[v]
    if ppn < vm.kernel:
        section, offset = IN_KERNEL, ppn
    elif ppn < vm.footprint:
        section, offset = IN_FOOTPRINT, ppn - vm.kernel
    else:
        section, offset = IN_GROWTH, ppn - vm.footprint
    at = offset % PATTERN
    kind = st.kinds[vm.pattern, section, at] % 8
    j = st.class_base[v, section, kind] + st.ranks[vm.pattern, section, at]
    j += offset // PATTERN * st.class_counts[vm.pattern, section, kind]
    if kind == ZERO:
        return vm.zero
    if kind == IMAGE:
        return vm.image_base + j
    if kind == APPLICATION:
        return vm.app_base + j
    if kind == DUPLICATE:
        return vm.dup_base + j * 1000 // vm.copies_permille
    return fresh_word(st, v)


@small
def in_guest_memory(state: int) -> bool:
    """Whether a page in use has its data in guest memory (the host may have swapped it)."""
    return state == RESIDENT or state == SHARED or state == SWAPPED


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
def _find_free(st: HostState, v: int) -> int:
    """A guest-free page: downwards from where the last one was found. There must be one."""
    vm = st.vms[v]
    ppn = vm.free_cursor
    while not is_guest_free(st, vm.base_slot + ppn):
        ppn = ppn - 1 if ppn > 0 else vm.size_slots - 1
    vm.free_cursor = ppn
    return ppn


@small
def _holds(st: HostState, slot: int, use: int) -> bool:
    return use_of(st, slot) == use and in_guest_memory(state_of(st, slot))


@kernel
def _find_use(st: HostState, v: int, use: int, key: np.uint64) -> int:
    """A random page of this use in guest memory. The caller saw that there is one.

    LOOKS random pages, then the next one upwards.
    """
    vm = st.vms[v]
    ppn = 0
    for look in range(LOOKS):
        ppn = rng.below(key, look, vm.size_slots)
        if _holds(st, vm.base_slot + ppn, use):
            return ppn
    while not _holds(st, vm.base_slot + ppn, use):
        ppn = ppn + 1 if ppn + 1 < vm.size_slots else 0
    return ppn


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
        set_state(st, slot, BALLOONED)
        vm.swapped -= 1
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
def _page_out(st: HostState, v: int, ppn: int) -> int:
    """The guest writes an anonymous page to its own disk. Returns the cost, or why it refuses.

    When the host had swapped the page it must first read it back: double paging [P 3.1].
    """
    host = st.host[0]
    vm = st.vms[v]
    if vm.guest_swapped >= vm.guest_swap or vm.disk_io_left <= 0:
        return fault.NO_GUEST_MEMORY
    cost = 0
    if state_of(st, vm.base_slot + ppn) == SWAPPED:
        cost = fault.bring_in(st, v, ppn)
        if cost < 0:
            return cost
        host.double_pagings += 1
    vm.disk_io_left -= 1
    vm.guest_swapped += 1
    host.guest_page_outs += 1
    return cost


@kernel
def choose_victim(st: HostState, v: int) -> int:
    """The page that the guest can best do without, or -1 when all it has is unmovable.

    Clean cache, then anonymous pages, outside the active window; then cache, then anonymous pages
    inside it. (Cache before all anonymous pages would be simpler, and wrong: a guest with idle
    anonymous memory then re-reads its active cache for ever.)
    """
    vm = st.vms[v]
    key = rng.stream(st.host[0].seed, rng.GUEST, vm.vm, vm.gifts)
    vm.gifts += 1
    ppn = _find_idle(st, v, key)
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
    pin(st, v, ppn)
    return cost


@kernel
def take_back(st: HostState, v: int, ppn: int) -> None:
    """The balloon returns a page: UNTOUCHED for the host, free for the guest."""
    vm = st.vms[v]
    fault.pop(st, v, ppn)
    vm.guest_free += 1
    vm.free_cursor = ppn


@kernel
def _allocate(st: HostState, v: int, ppn: int, free_becomes: int) -> int:
    """First use of a guest-free page: it gets the use and content that its image plans for it.

    free_becomes: use of a page that the image left dirty but free: FREE, or ANON once it is in use.
    """
    vm = st.vms[v]
    cost = fault.touch(st, v, ppn, 1, plan_word(st, v, ppn))
    if cost < 0:
        return cost
    use = plan_kind(st, v, ppn) // 8
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
        return fault.NO_GUEST_MEMORY
    cost = fault.touch(st, v, ppn, 1, i64(st.content[slot]) & ~STALE)
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
            if st.host[0].free <= 0:
                return fault.NO_FRAME
            vm.guest_free += 1
        else:
            cost = give_page(st, v)
            if cost < 0:
                return cost
            cost *= st.host[0].sample
            take_back(st, v, ppn)
    is_first = use_of(st, slot) == FREE
    more = _allocate(st, v, ppn, free_becomes) if is_first else _page_in(st, v, ppn)
    return more if more < 0 else cost + more


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
def scrub(st: HostState, v: int, ppn: int) -> int:
    """A Windows-like guest zeroes a free page [P 5.4, 6.3]. Returns the cost, or why it stalls."""
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    if use_of(st, slot) != FREE:
        return 0
    ballooned = state_of(st, slot) == BALLOONED
    if ballooned and vm.lost_driver == 0:
        return 0
    cost = fault.touch(st, v, ppn, 1, vm.zero)
    if cost >= 0 and ballooned:
        vm.guest_free += 1
    return cost


@kernel
def free_page(st: HostState, v: int, ppn: int) -> int:
    """The guest frees a page. The host does not see it, unless the guest scrubs it."""
    vm = st.vms[v]
    slot = vm.base_slot + ppn
    use = use_of(st, slot)
    if use == FREE:
        return 0
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
    vm.row = 0
    vm.scrub_cursor = 0
    vm.booted = 0
    vm.debt_ns = 0
    vm.boot_end_ns = vm.clock_ns + vm.boot_ms * 1_000_000
    vm.lost_driver = 1
