"""The literal twin's guest OS and balloon driver [P 3.2].

The guest knows what each page is used for and what its own disk holds. It gives its balloon free
pages first, then the page that it can best do without. A touch of a pinned page needs a free guest
page: the driver trades, so that the guest never notices which PPN it got.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import naive_compress as compress
import naive_pages as pages
from naive_machine import ZERO_PAGE, Content, Draws, NoGuestIo, NoGuestMemory, Stall
from naive_state import Annotation, Esx, Guest, Use, Vm

from hostsim import rng

GUEST_LOOKS = 64
"""Random looks of the guest for a page to give: its LRU is approximate."""
BALLOON_LOOKS = 64
"""Random looks of a driver for one of its own pages."""


def fresh(vm: Vm) -> Content:
    """A content that no page ever held."""
    vm.guest.writes += 1
    return f"written {vm.spec.vm} {vm.guest.writes}".encode()


def is_pinned(vm: Vm, ppn: int) -> bool:
    return vm.pmap.get(ppn) is Annotation.BALLOONED


def holds_data(vm: Vm, ppn: int, use: Use) -> bool:
    """Whether the page is used so, its data in guest memory (which the host may have swapped)."""
    return vm.guest.use[ppn] is use and ppn not in vm.guest.away


# Touching


def access(esx: Esx, vm: Vm, ppn: int, is_write: bool) -> int:
    """The workload touches a page. Cost in ns. Only anonymous pages are written in place."""
    use = vm.guest.use[ppn]
    if use is Use.FREE or ppn in vm.guest.away:
        return fault_in(esx, vm, ppn, free_becomes=Use.ANON)
    if is_write and use is Use.ANON:
        return pages.touch(esx, vm, ppn, fresh(vm))
    return pages.touch(esx, vm, ppn, None)


def relive(esx: Esx, vm: Vm, ppn: int, content: Content | None) -> int:
    """A real guest wrote or read the page, whatever it used it for. Cost in ns."""
    guest, cost = vm.guest, 0
    if vm.pmap.get(ppn) in (None, Annotation.BALLOONED):  # neither in memory nor in host swap
        cost = fault_in(esx, vm, ppn, free_becomes=Use.ANON)
    cost += pages.touch(esx, vm, ppn, content)
    if guest.use[ppn] is Use.CACHE and content is not None:  # it mirrors another file now
        guest.home[ppn] = content
    return cost


def populate(esx: Esx, vm: Vm, ppn: int) -> int:
    """The guest's memory in use reaches a page. What it has there already is left alone."""
    if vm.guest.use[ppn] is Use.FREE or ppn in vm.guest.away:
        return fault_in(esx, vm, ppn, free_becomes=Use.FREE)
    return 0


def fault_in(esx: Esx, vm: Vm, ppn: int, free_becomes: Use) -> int:
    """A page that is not in guest memory: first use, or its data is on the guest's disk."""
    cost = 0
    if is_pinned(vm, ppn):
        if vm.driver_lost:  # the guest knows of no balloon: its touch pops the page
            pages.require_frame(esx, vm)
        else:
            cost = trade(esx, vm, ppn)
    try:
        if vm.guest.use[ppn] is Use.FREE:
            return cost + first_use(esx, vm, ppn, free_becomes)
        return cost + page_in(esx, vm, ppn)
    except Stall:
        vm.debts["guest_paging"] += cost
        raise


def trade(esx: Esx, vm: Vm, ppn: int) -> int:
    """The driver returns a pinned page for another, or for none if the guest has none to give."""
    try:
        cost = give_page(esx, vm) * esx.sample
    except NoGuestMemory:
        pages.require_frame(esx, vm)
        take_back(vm, ppn)
        esx.events["deflated"] += 1
        return 0
    vm.cause = "guest_paging"
    take_back(vm, ppn)
    # One page that the guest now uses for something else: its sample goes on.
    vm.sampled = [ppn if number == vm.given else number for number in vm.sampled]
    return cost


def first_use(esx: Esx, vm: Vm, ppn: int, free_becomes: Use) -> int:
    """The page gets its planned content. One that the image left dirty but free stays free while
    memory in use merely reaches it, and is anonymous memory once the workload touches it."""
    use, content = vm.plan[ppn]
    cost = pages.overwrite(esx, vm, ppn, fresh(vm) if content is None else content)
    if use is Use.FREE:
        use = free_becomes
    vm.guest.use[ppn] = use
    if use is Use.CACHE:  # the page mirrors a file
        vm.guest.home[ppn] = esx.read(vm, ppn)
    return cost


def page_in(esx: Esx, vm: Vm, ppn: int) -> int:
    guest = vm.guest
    if guest.disk_io_left <= 0:
        raise NoGuestIo
    cost = pages.overwrite(esx, vm, ppn, guest.home[ppn])
    guest.disk_io_left -= 1
    guest.away.remove(ppn)
    esx.events["guest_page_ins"] += 1
    vm.cause = "guest_paging"
    return cost + vm.spec.image.disk.latency * esx.sample


def read_data(esx: Esx, vm: Vm) -> int:
    """A block of a file that is not cached comes from the guest's disk, over a cold page, which is
    written out first if it is dirty. One that the host had swapped is read back for that, or, if it
    is clean, for nothing."""
    guest = vm.guest
    if guest.disk_io_left <= 0:
        raise NoGuestIo
    draws = esx.draws(rng.GUEST, vm.spec.vm, guest.gifts)
    guest.gifts += 1
    cost = 0
    ppn = find_coldest(vm, draws)
    if ppn is not None:
        vm.given = ppn
        if guest.use[ppn] is Use.ANON:
            cost = write_out(esx, vm, ppn) * esx.sample
        is_swapped = vm.pmap.get(ppn) is Annotation.SWAPPED
        try:
            cost += pages.overwrite(esx, vm, ppn, fresh(vm))
        except Stall:
            vm.debts["guest_paging"] += cost
            raise
        if guest.use[ppn] is Use.CACHE:
            guest.home[ppn] = esx.read(vm, ppn)
        if is_swapped and not esx.config.paging.skip_overwritten:
            esx.events["stale_reads"] += 1
    guest.disk_io_left -= 1
    esx.events["guest_page_ins"] += 1
    vm.cause = "guest_paging"
    return cost + vm.spec.image.disk.latency * esx.sample


def scrub(esx: Esx, vm: Vm, ppn: int) -> int:
    """A Windows-like guest zeroes a free page, unless its balloon driver holds it."""
    if vm.guest.use[ppn] is not Use.FREE or (is_pinned(vm, ppn) and not vm.driver_lost):
        return 0
    return pages.overwrite(esx, vm, ppn, ZERO_PAGE)


def free_page(esx: Esx, vm: Vm, ppn: int) -> int:
    """The guest frees a page; the host does not see it."""
    guest = vm.guest
    guest.use[ppn] = Use.FREE
    guest.away.discard(ppn)
    guest.home.pop(ppn, None)
    return scrub(esx, vm, ppn) if vm.spec.image.os == "windows" else 0


# Giving pages to the balloon


def pin(esx: Esx, vm: Vm, ppn: int) -> None:
    """The driver pins a page that the guest gave up; what backed it is reclaimed."""
    if vm.pmap.get(ppn) is not None:
        vm.backed.add(ppn)
    if vm.frame(ppn) is not None:
        vm.gave += pages.leave_memory(esx, vm, ppn)
    if ppn in vm.compressed:
        vm.gave += compress.take_out(esx, vm, ppn)[1]
    if ppn in vm.swap:
        pages.forget_swapped(vm, ppn)
    vm.pmap[ppn] = Annotation.BALLOONED


def give_page(esx: Esx, vm: Vm) -> int:
    """The guest gives its balloon one page. Cost in ns of one page; it may refuse."""
    guest = vm.guest
    free = vm.guest_free()
    if free:
        vm.given = next_free(vm, free)
        pin(esx, vm, vm.given)
        return 0
    victim = choose_victim(esx, vm)
    try:
        if victim is None:
            raise NoGuestMemory
        cost = 0
        if guest.use[victim] is Use.ANON:
            cost = guest_page_out(esx, vm, victim)
    except Stall:
        esx.events["guest_refusals"] += 1
        raise
    guest.away.add(victim)
    vm.given = victim
    pin(esx, vm, victim)
    return cost


def next_free(vm: Vm, free: list[int]) -> int:
    """Downwards from the last one found, then from the top."""
    below = [ppn for ppn in free if ppn <= vm.guest.free_cursor]
    vm.guest.free_cursor = max(below) if below else max(free)
    return vm.guest.free_cursor


def guest_page_out(esx: Esx, vm: Vm, ppn: int) -> int:
    """An anonymous page goes to the guest's disk; the host may first have to read it: double
    paging [P 3.1]."""
    if vm.guest_swapped() >= vm.guest_swap:
        raise NoGuestMemory
    content = esx.read(vm, ppn)
    cost = write_out(esx, vm, ppn)
    vm.guest.home[ppn] = content
    return cost


def write_out(esx: Esx, vm: Vm, ppn: int) -> int:
    guest = vm.guest
    if guest.disk_io_left <= 0:
        raise NoGuestIo
    cost = 0
    if vm.pmap[ppn] is Annotation.SWAPPED:
        cost = pages.bring_in(esx, vm, ppn)
        esx.events["double_pagings"] += 1
    elif vm.pmap[ppn] is Annotation.COMPRESSED:
        cost = pages.bring_in(esx, vm, ppn)
    guest.disk_io_left -= 1
    esx.events["guest_page_outs"] += 1
    return cost


def choose_victim(esx: Esx, vm: Vm) -> int | None:
    """Cache, then anonymous pages, outside the active set; then a cold page inside it where pages
    have ranks, else cache, then any."""
    draws = esx.draws(rng.GUEST, vm.spec.vm, vm.guest.gifts)
    vm.guest.gifts += 1
    victim = find_idle(vm, draws)
    if victim is None and vm.last_row.is_ranked:
        victim = find_coldest(vm, draws)
    for use in (Use.CACHE, Use.ANON):
        if victim is None and vm.in_guest_memory(use):
            victim = find_use(vm, use, draws)
    return victim


def find_idle(vm: Vm, draws: Draws) -> int | None:
    """Among random pages outside the active set the first cache page, or else the first anonymous
    one."""
    guest = vm.guest
    idle = guest.span - guest.active
    if idle <= 0:
        return None
    anonymous = None
    for look in range(GUEST_LOOKS):
        offset = guest.window + guest.active + draws.below(GUEST_LOOKS + look, idle)
        ppn = guest.kernel + offset % guest.span
        if holds_data(vm, ppn, Use.CACHE):
            return ppn
        if anonymous is None and holds_data(vm, ppn, Use.ANON):
            anonymous = ppn
    return anonymous


def find_coldest(vm: Vm, draws: Draws) -> int | None:
    """Of random pages of the active set, the one with the lowest rank: the nearest to its start."""
    guest = vm.guest
    if guest.active == 0:
        return None
    offsets = [draws.below(look, guest.active) for look in range(GUEST_LOOKS)]
    ppns = [guest.kernel + (guest.window + offset) % guest.span for offset in sorted(offsets)]
    held = (ppn for ppn in ppns if any(holds_data(vm, ppn, use) for use in (Use.CACHE, Use.ANON)))
    return next(held, None)


def find_use(vm: Vm, use: Use, draws: Draws) -> int:
    for look in range(GUEST_LOOKS):
        ppn = draws.below(look, vm.size)
        if holds_data(vm, ppn, use):
            return ppn
    all_of_them = [ppn for ppn in range(vm.size) if holds_data(vm, ppn, use)]
    return all_of_them[draws.below(2 * GUEST_LOOKS, len(all_of_them))]


# The balloon driver


def take_back(vm: Vm, ppn: int) -> None:
    """The driver returns a page to the guest."""
    pages.pop(vm, ppn)
    vm.guest.free_cursor = ppn


def inflate(esx: Esx, vm: Vm, n: int) -> int:
    """Pin up to `n` pages; the guest's own effort is its loss of time. Returns how many."""
    done = 0
    try:
        while done < n:
            cost = give_page(esx, vm) * esx.sample
            vm.debts["guest_paging"] += cost
            done += 1
    except Stall:
        pass
    esx.events["inflated"] += done
    return done


def find_pinned(vm: Vm, draws: Draws, first_draw: int) -> int:
    looked = [draws.below(first_draw + look, vm.size) for look in range(BALLOON_LOOKS)]
    held = [ppn for ppn in looked if is_pinned(vm, ppn)]
    if held:  # pages that stand for data on the guest's disk go last
        return next((ppn for ppn in held if vm.guest.use[ppn] is Use.FREE), held[0])
    pinned = vm.pages("ballooned")
    return pinned[draws.below(first_draw + BALLOON_LOOKS, len(pinned))]


def deflate(esx: Esx, vm: Vm, n: int, draws: Draws) -> None:
    """Return `n` random pages of the balloon."""
    for i in range(n):
        ppn = find_pinned(vm, draws, i * (BALLOON_LOOKS + 1))
        take_back(vm, ppn)
        if vm.spec.image.os == "windows":
            with suppress(Stall):
                scrub(esx, vm, ppn)
    esx.events["deflated"] += n


def restart_driver(esx: Esx, vm: Vm) -> None:
    """First contact after a guest reset: the old balloon is popped."""
    for ppn in vm.pages("ballooned"):
        take_back(vm, ppn)
        esx.events["pops"] += 1
    vm.driver_lost = False


def reset(vm: Vm) -> None:
    """The guest boots anew in the memory that it has, and knows of no balloon."""
    old = vm.guest
    vm.guest = Guest(
        use=dict.fromkeys(range(vm.size), Use.FREE),
        kernel=old.kernel,
        footprint=old.footprint,
        boot_end_ns=vm.clock_ns + vm.spec.image.boot * 1_000_000,
        # What the simulated world remembers of it: where it looked, what it was owed.
        span=old.span,
        active=old.active,
        free_cursor=old.free_cursor,
        gifts=old.gifts,
        writes=old.writes,
        disk_io_left=old.disk_io_left,
        disk_io=old.disk_io,
        drift=old.drift,
        touch_credit=old.touch_credit,
        transmit=old.transmit,
    )
    vm.last_row = vm.program[0]
    vm.debts = Counter()
    vm.driver_lost = True
