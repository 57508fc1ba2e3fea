"""Ballooning [P 3.2] page by page: what a guest gives, what the host gets, what comes back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    UNIQUE_ANON,
    UNIQUE_CACHE,
    alloc_slots,
    counter,
    in_slots,
    lost_ns,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    run_until_booted,
    states_of,
)

from hostsim import balloon, fault, guest, invariants, replacement, share
from hostsim.config import Disk
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.state import BALLOONED, RESIDENT, SWAPPED, UNIQUE, UNTOUCHED
from hostsim.units import MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE


def ballooned(host: Host, vm: int = 1) -> int:
    return int(row_of(host, vm).ballooned)


def mixed_guest(size: int = 4 * MIB, **options: Any) -> Host:
    """One booted VM of 1024 pages: 100 kernel, 300 cache, 600 anonymous, 24 free."""
    content = ContentTable(
        kernel=ContentMix(unique=100), cache=ContentMix(unique=300), anon=ContentMix(unique=600)
    )
    host = make_host()
    image = make_image(1000 * PAGE_SIZE, content=content, growth=UNIQUE_ANON)
    power_on(host, make_spec(1, size, image=image, **options))
    run_until_booted(host)
    run(host, SECOND)
    row = row_of(host, 1)
    assert (row.kernel, row.cache, row.anon, row.guest_free) == (100, 300, 600, 24)
    return host


def inflate(host: Host, n: int) -> int:
    row_of(host, 1).disk_io_left = 1 << 40
    given = balloon.inflate(host.state, 0, n)
    invariants.check(host.state)
    return given


# What the guest gives


def test_the_guest_gives_free_pages_first_backed_or_not() -> None:
    host = mixed_guest()
    row = row_of(host, 1)
    free_before = counter(host, "free")
    assert inflate(host, 24) == 24
    assert (row.guest_free, row.cache, row.anon) == (0, 300, 600)
    assert counter(host, "free") == free_before  # never touched: the host gets nothing for them
    assert (row.backed, counter(host, "guest_page_outs")) == (0, 0)


def test_then_it_drops_clean_cache_before_it_pages_out() -> None:
    """While cache is a third of what is idle, 64 looks always find some."""
    host = mixed_guest()
    row = row_of(host, 1)
    free_before = counter(host, "free")
    assert inflate(host, 24 + 150) == 174
    assert (row.cache, row.anon) == (150, 600)
    assert counter(host, "guest_page_outs") == 0
    assert counter(host, "free") == free_before + 150


def test_at_last_it_pages_out_anonymous_memory_to_its_own_disk() -> None:
    host = mixed_guest()
    row = row_of(host, 1)
    assert inflate(host, 24 + 900) == 924
    assert (row.cache, row.anon) == (0, 0)
    assert (counter(host, "guest_page_outs"), row.guest_swapped) == (600, 600)
    assert counter(host, "swap_outs") == 0


def test_kernel_memory_is_never_given() -> None:
    host = mixed_guest()
    assert inflate(host, 2000) == 924
    assert counter(host, "guest_refusals") == 1
    assert (states_of(host, 1)[:100] == RESIDENT).all()


def test_idle_memory_goes_before_the_active_set() -> None:
    """Half of the guest's movable memory is active; a balloon of 350 pages leaves it alone."""
    host = make_host()
    image = make_image(1000 * PAGE_SIZE, content=UNIQUE_CACHE)
    active = make_phase(active=500 * PAGE_SIZE, locality="sweep", writes=0)
    power_on(host, make_spec(1, 1000 * PAGE_SIZE, active, image=image))
    run_until_booted(host)
    run(host, 3 * SECOND)
    row = row_of(host, 1)
    assert (row.window, row.active) == (500, 500)
    assert inflate(host, 350) == 350
    assert (states_of(host, 1)[500:] == RESIDENT).all()


@pytest.mark.parametrize(("use", "others"), [("cache", "anon"), ("anon", "kernel")])
def test_rare_pages_of_a_use_are_given_uniformly(use: str, others: str) -> None:
    """All 4096 pages are active, 1 permille of them of the use to give: 4000 choices, chi-square
    within 5 sd. Seed fixed."""
    mixes = {use: ContentMix(unique=1), others: ContentMix(unique=999)}
    host = make_host()
    image = make_image(16 * MIB, content=ContentTable(**mixes))
    power_on(host, make_spec(1, 16 * MIB, make_phase(active=16 * MIB), image=image))
    run_until_booted(host)
    run(host, SECOND)
    row, chosen = row_of(host, 1), Counter[int]()
    n_pages = int(row.cache if use == "cache" else row.anon)
    assert row.span == row.active and 4 <= n_pages <= 5
    for _ in range(4000):
        chosen[replacement.choose_victim(host.state, 0)] += 1
    assert len(chosen) == n_pages
    chi_square = sum((n - 4000 / n_pages) ** 2 * n_pages / 4000 for n in chosen.values())
    assert chi_square < n_pages - 1 + 5 * (2 * (n_pages - 1)) ** 0.5


def test_a_guest_whose_swap_space_is_full_refuses() -> None:
    """The balloon gets nothing more, however often it asks; the host must page."""
    content = ContentTable(anon=ContentMix(unique=1000))
    host = make_host()
    image = make_image(MIB, content=content)
    power_on(host, make_spec(1, MIB, image=image, guest_swap=40 * PAGE_SIZE))
    run_until_booted(host)
    assert inflate(host, 100) == 40
    assert inflate(host, 100) == 0
    row = row_of(host, 1)
    assert (row.guest_swapped, row.anon, ballooned(host)) == (40, N_PAGES - 40, 40)
    assert counter(host, "guest_refusals") == 2


@pytest.mark.parametrize("k", [1, 4])
def test_a_driver_gives_way_before_its_guest_is_out_of_memory(k: int) -> None:
    """A guest that can page nothing out uses all but what its balloon took while it was free. When
    it wants the rest it gets it back, page by page, at no cost and for no page of its own."""
    host = make_host(sample=k)
    image = make_image(MIB, boot=SECOND)
    grow = make_phase(memory=4 * MIB, active=4 * MIB)
    power_on(host, make_spec(1, 4 * MIB, grow, image=image, guest_swap=0))
    run_until_booted(host)
    taken = inflate(host, in_slots(2 * MIB, k))
    assert taken == ballooned(host) == in_slots(2 * MIB, k)
    row_of(host, 1).balloon_target = taken
    run(host, 2 * SECOND)
    row = row_of(host, 1)
    assert (ballooned(host), row.brk, row.guest_free) == (0, in_slots(4 * MIB, k), 0)
    assert counter(host, "deflated") == taken
    assert lost_ns(host, 1)["guest_paging"] == 0
    before = int(row.touches)
    run(host, 10 * SECOND)
    assert row.touches - before == 10 * in_slots(4 * MIB, k)


def test_a_driver_gives_way_only_where_the_host_has_a_frame() -> None:
    host = make_host()
    power_on(host, make_spec(1, 2 * MIB, guest_swap=0))
    run_until_booted(host)
    assert inflate(host, N_PAGES) == N_PAGES
    st, ppn = host.state, 2 * N_PAGES - 1
    assert (row_of(host, 1).guest_free, states_of(host, 1)[ppn]) == (0, BALLOONED)
    st.host[0].free, free = 0, int(st.host[0].free)
    assert guest.access(st, 0, ppn, 0) == fault.NO_FRAME
    assert ballooned(host) == N_PAGES
    st.host[0].free = free
    assert guest.access(st, 0, ppn, 0) == 0
    invariants.check(st)
    assert (states_of(host, 1)[ppn], ballooned(host)) == (RESIDENT, N_PAGES - 1)


def test_a_guests_disk_bounds_how_fast_it_pages_out() -> None:
    """100 operations a second: so much anonymous memory a second, though 4 MiB/s may be taken."""
    disk = Disk(latency=1_000_000, iops=100)
    host = make_host(allocation={"claim": "configured"})
    power_on(host, make_spec(1, 8 * MIB, image=make_image(8 * MIB, disk=disk)))
    run_until_booted(host)
    host.set_vm(VmId(1), limit=4 * MIB)
    for _ in range(8):
        before = counter(host, "guest_page_outs")
        run(host, SECOND)
        assert counter(host, "guest_page_outs") - before == 100
    assert ballooned(host) == 800


# What the host gets


def give(host: Host, ppn: int) -> None:
    """The guest gives its free page `ppn`."""
    row_of(host, 1).free_cursor = ppn
    assert replacement.give_page(host.state, 0) == 0
    invariants.check(host.state)
    assert states_of(host, 1)[ppn] == BALLOONED


def two_free_guests() -> Host:
    """Two VMs that never ran: all their pages are free to the guest."""
    host = make_host(sharing={"enabled": True})
    power_on(host, make_spec(1, MIB), make_spec(2, MIB))
    return host


def test_pinning_an_untouched_page_frees_nothing() -> None:
    host = two_free_guests()
    free = counter(host, "free")
    give(host, 7)
    assert counter(host, "free") == free
    assert (row_of(host, 1).untouched, row_of(host, 1).backed) == (N_PAGES - 1, 0)


def test_pinning_a_resident_page_frees_its_frame_and_its_hint() -> None:
    host = two_free_guests()
    fault.touch(host.state, 0, 7, 1, int(UNIQUE) | 1)
    share.scan_page(host.state, 0, 7)
    free = counter(host, "free")
    give(host, 7)
    assert counter(host, "free") == free + 1
    assert (row_of(host, 1).backed, counter(host, "hint_frames")) == (1, 0)


def test_pinning_a_shared_page_drops_its_reference() -> None:
    """The frame is freed by its last holder only."""
    host = two_free_guests()
    st = host.state
    zero = int(st.vms[0].zero)
    for v, ppn in ((0, 7), (1, 3), (0, 8)):
        fault.touch(st, v, ppn, 0, 0)
        share.scan_page(st, v, ppn)
    free = counter(host, "free")
    for ppn, refs in ((7, 2), (8, 1)):
        give(host, ppn)
        assert (st.refs[zero], counter(host, "free")) == (refs, free)
    row_of(host, 2).free_cursor = 3
    replacement.give_page(st, 1)
    invariants.check(st)
    assert (st.refs[zero], counter(host, "free")) == (0, free + 1)
    assert counter(host, "distinct") == 0


def test_pinning_a_swapped_page_frees_its_swap_slot() -> None:
    host = two_free_guests()
    fault.touch(host.state, 0, 7, 1, int(UNIQUE) | 1)
    fault.leave_memory(host.state, 0, 7, SWAPPED)
    free = counter(host, "free")
    give(host, 7)
    assert (row_of(host, 1).swapped, counter(host, "free")) == (0, free)
    assert (counter(host, "swap_ins"), row_of(host, 1).backed) == (0, 1)


# Deflation


def test_deflating_gives_no_frame_until_a_touch_takes_a_zeroed_one() -> None:
    host = two_free_guests()
    fault.touch(host.state, 0, 7, 1, int(UNIQUE) | 1)
    give(host, 7)
    free, alloc = counter(host, "free"), alloc_slots(host, 1)
    assert balloon.deflate(host.state, 0, 1, np.uint64(5)) == 1
    invariants.check(host.state)
    assert states_of(host, 1)[7] == UNTOUCHED
    assert (counter(host, "free"), alloc_slots(host, 1)) == (free, alloc)
    fills = counter(host, "zero_fills")
    fault.touch(host.state, 0, 7, 0, 0)
    assert counter(host, "zero_fills") == fills + 1
    assert host.state.content[7] == row_of(host, 1).zero
    assert (counter(host, "free"), alloc_slots(host, 1)) == (free - 1, alloc + 1)


def test_rare_ballooned_pages_are_returned_uniformly() -> None:
    """Four of 4096, side by side, so that most draws are made among all: 4000 times one of them
    comes back, chi-square below its 99.99 % quantile for three degrees (21.1). Seed fixed."""
    host = make_host()
    power_on(host, make_spec(1, 16 * MIB))
    for ppn in range(7, 11):
        give(host, ppn)
    returned: Counter[int] = Counter()
    for key in range(4000):
        balloon.deflate(host.state, 0, 1, np.uint64(key))
        ppn = int(row_of(host, 1).free_cursor)
        returned[ppn] += 1
        assert replacement.give_page(host.state, 0) == 0
    invariants.check(host.state)
    assert set(returned) == {7, 8, 9, 10}
    assert sum((n - 1000) ** 2 / 1000 for n in returned.values()) < 21.1


def test_returned_pages_are_free_to_the_guest_and_hold_no_data() -> None:
    host = mixed_guest()
    inflate(host, 100)
    row = row_of(host, 1)
    assert row.guest_free == 0
    balloon.deflate(host.state, 0, 60, np.uint64(5))
    invariants.check(host.state)
    assert (row.guest_free, ballooned(host), row.untouched) == (60, 40, 60)


def test_a_touch_of_a_pinned_page_after_a_guest_reset_pops_it() -> None:
    """Target A15: the page is zero-filled as at a first touch, and the rest of the balloon is
    popped when the driver is heard of again; exact [P 3.2]."""
    host = two_free_guests()
    for ppn in (7, 8, 9):
        fault.touch(host.state, 0, ppn, 1, int(UNIQUE) | ppn)
        give(host, ppn)
    host.reset(VmId(1))
    invariants.check(host.state)
    assert guest.scrub(host.state, 0, 7) == 0
    invariants.check(host.state)
    assert (counter(host, "pops"), ballooned(host)) == (1, 2)
    assert states_of(host, 1)[7] == RESIDENT
    assert host.state.content[7] == row_of(host, 1).zero
    balloon.restart_driver(host.state, 0)
    invariants.check(host.state)
    assert (counter(host, "pops"), ballooned(host)) == (3, 0)
    assert (row_of(host, 1).lost_driver, row_of(host, 1).guest_free) == (0, N_PAGES)
