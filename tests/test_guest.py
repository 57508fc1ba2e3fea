"""The guest OS: how it boots, what its pages hold, how it frees them, what its own disk is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    UNIQUE_ANON,
    UNIQUE_CACHE,
    counter,
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

from hostsim import balloon, fault, guest, invariants, swap
from hostsim.config import Disk
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.state import (
    ANON,
    BALLOONED,
    CACHE,
    FREE,
    KERNEL,
    RESIDENT,
    SWAPPED,
    UNTOUCHED,
    USE_SHIFT,
    Array,
)
from hostsim.units import MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE
MIXED = ContentTable(
    kernel=ContentMix(unique=100),
    cache=ContentMix(unique=300),
    anon=ContentMix(unique=500),
    free=ContentMix(unique=100),
)


def uses_of(host: Host, vm: int = 1) -> Array:
    """(size,) guest use of each page of a VM."""
    row = row_of(host, vm)
    return host.state.page[row.base_slot : row.base_slot + row.size_slots] >> USE_SHIFT


def booted(size: int, workload: Any = None, sharing: bool = False, **image: Any) -> Host:
    """One booted VM of `size`, half of which is its footprint unless the image says otherwise."""
    host = make_host(sharing={"enabled": sharing})
    made = make_image(**({"footprint": size // 2} | image))
    power_on(host, make_spec(1, size, workload, image=made))
    run_until_booted(host)
    return host


def refill_disk(host: Host, operations: int = 1 << 40) -> None:
    row_of(host, 1).disk_io_left = operations


# Boot


def test_the_footprint_comes_in_at_an_even_rate() -> None:
    host = make_host()
    power_on(host, make_spec(1, 8 * MIB, image=make_image(5 * MIB, boot=20 * SECOND)))
    row, seen = row_of(host, 1), []
    for _ in range(20):
        run(host, SECOND)
        seen.append(int(row.brk))
    assert seen == [5 * N_PAGES * second // 20 for second in range(1, 21)]


@pytest.mark.parametrize(("tick_ms", "ready_ms"), [(500, 20_000), (4000, 20_000), (7000, 20_125)])
def test_a_boot_ends_with_the_step_in_which_its_time_is_over(tick_ms: int, ready_ms: int) -> None:
    """20 s, or up to a second more: the program has the next step to itself, all of it."""
    host = make_host(tick_ms=tick_ms)
    image = make_image(2 * MIB, boot=20 * SECOND)
    power_on(host, make_spec(1, 2 * MIB, make_phase(active=MIB), image=image))
    now_ms = run_until_booted(host)
    row = row_of(host, 1)
    assert (row.boot_end_ns, row.clock_ns) == (ready_ms * 10**6, now_ms * 10**6)
    run(host, tick_ms)
    assert row.touches == N_PAGES * (now_ms + tick_ms - ready_ms) // SECOND


def test_a_linux_guest_touches_its_footprint_and_no_more() -> None:
    host = booted(4 * MIB)
    assert (states_of(host, 1) == RESIDENT).tolist() == [True] * 512 + [False] * 512
    assert row_of(host, 1).untouched == 512


def test_a_windows_guest_zeroes_all_its_memory() -> None:
    """[P 6.3]: all memory is touched, and what is not in use holds zeroes."""
    host = booted(4 * MIB, os="windows")
    assert (states_of(host, 1) == RESIDENT).all()
    zero = int(row_of(host, 1).zero)
    assert (host.state.content[512:] == zero).all()
    assert (uses_of(host)[512:] == FREE).all()
    assert not (host.state.content[:512] == zero).any()


def test_zeroed_memory_is_shared_while_a_windows_guest_boots() -> None:
    """Sharing gives back nearly all that zeroing took: what is free is one frame [FIG 8]."""
    options = {"scan_pages_per_s_total": 20_000, "scan_pages_per_s_vm": 9000, "enabled": True}
    host = make_host(sharing=options)
    image = make_image(2 * MIB, os="windows", boot=5 * SECOND)
    power_on(host, make_spec(1, 16 * MIB, image=image))
    run(host, 10 * SECOND)
    assert row_of(host, 1).shared == 14 * N_PAGES
    assert counter(host, "free") == counter(host, "machine") - 2 * N_PAGES - 1


def test_pages_get_the_uses_that_the_image_states() -> None:
    host = booted(1000 * PAGE_SIZE, footprint=1000 * PAGE_SIZE, content=MIXED)
    assert np.bincount(uses_of(host), minlength=4).tolist() == [100, 300, 500, 100]
    assert (uses_of(host)[:100] == KERNEL).all()
    row = row_of(host, 1)
    assert (row.guest_free, row.cache, row.anon) == (100, 300, 500)


def test_a_footprint_larger_than_the_vm_fills_the_vm() -> None:
    host = booted(MIB, footprint=4 * MIB)
    assert (row_of(host, 1).footprint, row_of(host, 1).anon) == (N_PAGES, N_PAGES)


def test_later_pages_get_the_uses_of_growth() -> None:
    growth = ContentTable(cache=ContentMix(unique=250), anon=ContentMix(unique=750))
    grow = make_phase(memory=2 * MIB + 1000 * PAGE_SIZE)
    host = booted(8 * MIB, grow, footprint=2 * MIB, growth=growth)
    run(host, 3 * SECOND)
    new = uses_of(host)[512:1512]
    assert (int((new == CACHE).sum()), int((new == ANON).sum())) == (250, 750)


# Writing and freeing


def test_only_anonymous_pages_are_written_in_place() -> None:
    """A guest that writes at every touch: cache, being clean, keeps its contents."""
    size = 1000 * PAGE_SIZE
    content = ContentTable(cache=ContentMix(unique=400), anon=ContentMix(unique=600))
    sweep = make_phase(active=size, writes=1000, locality="sweep")
    host = booted(size, sweep, footprint=size, content=content, sharing=True)
    host.state.page[:] |= 0x08  # every page owns a hint, so that no write may be thinned away
    host.state.host[0].hint_frames = 1000
    before = host.state.content.copy()
    run(host, 3 * SECOND)
    changed = host.state.content != before
    assert (changed == (uses_of(host) == ANON)).all()
    assert changed.sum() == 600


def two_phases() -> list[Any]:
    """3 MiB in use, then 1 MiB, then 3 again."""
    return [make_phase(memory=mib * MIB, duration=5 * SECOND) for mib in (3, 1, 3)]


def test_a_linux_guest_frees_pages_unseen() -> None:
    """The host keeps the frames and their contents; using the pages again takes no frame."""
    host = booted(4 * MIB, two_phases(), footprint=MIB)
    run(host, 3 * SECOND)
    before, free = host.state.content.copy(), counter(host, "free")
    run(host, 5 * SECOND)
    row = row_of(host, 1)
    assert (row.brk, row.guest_free, row.resident) == (N_PAGES, 3 * N_PAGES, 3 * N_PAGES)
    assert counter(host, "free") == free
    assert (host.state.content == before).all()
    fills = counter(host, "zero_fills")
    run(host, 5 * SECOND)
    assert (row.brk, counter(host, "zero_fills")) == (3 * N_PAGES, fills)


def test_a_windows_guest_scrubs_what_it_frees() -> None:
    host = booted(4 * MIB, two_phases(), footprint=MIB, os="windows")
    run(host, 3 * SECOND)
    zero = int(row_of(host, 1).zero)
    assert int((host.state.content == zero).sum()) == N_PAGES
    run(host, 5 * SECOND)
    assert int((host.state.content == zero).sum()) == 3 * N_PAGES


def test_a_scrub_that_stalls_is_tried_again() -> None:
    """A page that the host swapped is read back to be zeroed, 100 a second: pages freed wait for
    the device, in order, and all of them are zeroed in the end."""
    host = make_host(swap=Disk(latency=1000, iops=100))
    image = make_image(MIB, os="windows")
    power_on(host, make_spec(1, 4 * MIB, two_phases(), image=image))
    run(host, 6 * SECOND)
    row, st = row_of(host, 1), host.state
    st.host[0].swap_io_left = 1 << 40
    assert swap.page_out_vm(st, 0, 2000, 1 << 40) == 1024
    for second in range(1, 4):
        run(host, SECOND)
        assert (row.brk, counter(host, "swap_ins")) == (3 * N_PAGES - 100 * second, 100 * second)
        assert counter(host, "stalled_touches") == second
        assert row.guest_free == N_PAGES + 100 * second + 1  # the one that waits is free already
    last = int(row.brk) - 1
    assert (uses_of(host)[last], states_of(host, 1)[last]) == (FREE, SWAPPED)
    assert guest.free_page(st, 0, last) == fault.NO_IO
    st.host[0].swap_io_left = 1
    assert guest.free_page(st, 0, last) == 1000
    invariants.check(st)
    assert (st.content[last], row.guest_free) == (row.zero, N_PAGES + 301)


def test_freeing_a_page_on_the_guests_disk_forgets_it() -> None:
    host = booted(MIB, footprint=MIB)
    refill_disk(host)
    assert balloon.inflate(host.state, 0, 1) == 1
    ppn = int(np.flatnonzero(states_of(host, 1) == BALLOONED)[0])
    row = row_of(host, 1)
    assert row.guest_swapped == 1
    assert guest.free_page(host.state, 0, ppn) == 0
    invariants.check(host.state)
    assert (row.guest_swapped, row.guest_free, uses_of(host)[ppn]) == (0, 0, FREE)


# The guest's own disk


def paged_out(cache: bool, latency: int = 250_000) -> tuple[Host, int]:
    """A guest with one page's data on its own disk, and that page back from the balloon."""
    content = UNIQUE_CACHE if cache else UNIQUE_ANON
    disk = Disk(latency=latency, iops=1000)
    host = booted(2 * MIB, footprint=2 * MIB, content=content, disk=disk)
    refill_disk(host)
    balloon.inflate(host.state, 0, 1)
    ppn = int(np.flatnonzero(states_of(host, 1) == BALLOONED)[0])
    balloon.deflate(host.state, 0, 1, np.uint64(1))
    invariants.check(host.state)
    assert states_of(host, 1)[ppn] == UNTOUCHED
    return host, ppn


@pytest.mark.parametrize("cache", [False, True])
def test_a_page_is_read_back_as_it_was(cache: bool) -> None:
    """It takes a free guest page and a frame; the guest waits for its disk."""
    host, ppn = paged_out(cache)
    row = row_of(host, 1)
    assert (row.guest_free, row.guest_swapped) == (1, 0 if cache else 1)
    assert counter(host, "guest_page_outs") == (0 if cache else 1)
    word, operations = host.state.content[ppn], int(row.disk_io_left)
    assert guest.access(host.state, 0, ppn, 0) == 250_000
    invariants.check(host.state)
    assert host.state.content[ppn] == word
    assert (row.guest_free, row.guest_swapped, row.disk_io_left) == (0, 0, operations - 1)
    assert counter(host, "guest_page_ins") == 1
    assert (row.cache if cache else row.anon) == 512


def test_a_page_in_waits_for_the_guests_disk() -> None:
    host, ppn = paged_out(cache=False)
    refill_disk(host, 0)
    assert guest.access(host.state, 0, ppn, 0) == fault.NO_GUEST_IO
    invariants.check(host.state)
    assert states_of(host, 1)[ppn] == UNTOUCHED


def test_a_page_in_without_a_free_page_trades_with_the_balloon() -> None:
    """The guest gives another page for the one that it needs: the balloon stays as large."""
    host = booted(MIB, footprint=MIB)
    refill_disk(host)
    balloon.inflate(host.state, 0, 50)
    pinned = np.flatnonzero(states_of(host, 1) == BALLOONED)
    ppn = int(pinned[0])
    word = host.state.content[ppn]
    assert guest.access(host.state, 0, ppn, 0) > 0
    invariants.check(host.state)
    row = row_of(host, 1)
    assert (row.ballooned, row.guest_swapped, row.guest_free) == (50, 50, 0)
    assert states_of(host, 1)[ppn] == RESIDENT
    assert host.state.content[ppn] == word
    assert counter(host, "guest_page_outs") == 51


def test_guest_paging_is_time_that_the_guest_loses() -> None:
    """A balloon takes half of what the guest sweeps, so that each touch is a page-in in the end."""
    disk = Disk(latency=1_000_000, iops=100_000)
    sweep = make_phase(active=MIB, locality="sweep", writes=0, touch_interval=10 * SECOND)
    host = booted(MIB, sweep, footprint=MIB, disk=disk)
    host.set_vm(VmId(1), limit=MIB // 2)
    run(host, 20 * SECOND)
    host.measure()
    run(host, 10 * SECOND)
    page_ins = counter(host, "guest_page_ins")
    assert page_ins > 50
    assert lost_ns(host, 1)["guest_paging"] == page_ins * 1_000_000


def test_a_dirty_page_that_the_image_left_free_is_given_without_a_write() -> None:
    size = 1000 * PAGE_SIZE
    host = booted(size, footprint=size, content=MIXED)
    free = counter(host, "free")
    assert balloon.inflate(host.state, 0, 100) == 100
    invariants.check(host.state)
    assert (row_of(host, 1).anon, counter(host, "guest_page_outs")) == (500, 0)
    assert counter(host, "free") == free + 100


# Reset


def test_a_reset_guest_boots_again_in_the_memory_that_it_has() -> None:
    host = booted(4 * MIB, make_phase(memory=3 * MIB), footprint=2 * MIB)
    run(host, 3 * SECOND)
    free, fills = counter(host, "free"), counter(host, "zero_fills")
    host.reset(VmId(1))
    invariants.check(host.state)
    row = row_of(host, 1)
    assert (row.booted, row.brk, row.guest_free, row.anon) == (0, 0, 1024, 0)
    assert (row.resident, counter(host, "free")) == (768, free)
    run_until_booted(host)
    run(host, 3 * SECOND)
    assert (row.brk, row.guest_free) == (768, 256)
    assert (counter(host, "free"), counter(host, "zero_fills")) == (free, fills)


def test_a_reset_guest_forgets_what_it_had_paged_out() -> None:
    host = booted(MIB, footprint=MIB)
    refill_disk(host)
    balloon.inflate(host.state, 0, 100)
    host.reset(VmId(1))
    invariants.check(host.state)
    row = row_of(host, 1)
    assert (row.guest_swapped, row.ballooned, row.guest_free) == (0, 100, N_PAGES - 100)
    run_until_booted(host)
    run(host, 2 * SECOND)
    assert (row.ballooned, counter(host, "guest_page_ins")) == (0, 0)
