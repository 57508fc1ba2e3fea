"""The compression cache of a VM (ESX 4.1): compress before swap, decompress at a touch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    ALL_IMAGE,
    FAST_DISK,
    counter,
    lost_ns,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    states_of,
)
from hypothesis import given, settings
from hypothesis import strategies as some

from hostsim import compress, fault, image, invariants, replacement, share, snapshot, swap
from hostsim.config import Disk
from hostsim.guest_config import Compressible
from hostsim.host import Host
from hostsim.state import BALLOONED, COMPRESSED, RESIDENT, SHARED, SWAPPED, UNIQUE
from hostsim.units import MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE
CACHE_SLOTS = N_PAGES // 10
QUARTER, HALF, NEITHER = (
    Compressible(quarter=1000, half=0),
    Compressible(quarter=0, half=1000),
    Compressible(quarter=0, half=0),
)


def still_host(
    compressible: Compressible = QUARTER, n_vms: int = 1, size: int = MIB, **options: Any
) -> Host:
    """VMs 1..n of `size` that never ran, all written, on a host that compresses."""
    given = {"compression": {"enabled": True}} | options
    host = make_host(sharing={"enabled": True}, **given)
    guest = make_image(compressible=compressible)
    power_on(host, *(make_spec(vm, size, image=guest) for vm in range(1, n_vms + 1)))
    host.state.host[0].swap_io_left = 1 << 40
    for v in range(n_vms):
        for ppn in range(size // PAGE_SIZE):
            assert fault.touch(host.state, v, ppn, 1, int(UNIQUE) | v << 16 | ppn) >= 0
    return host


def page_out(host: Host, *ppns: int) -> None:
    for ppn in ppns:
        swap.page_out(host.state, 0, ppn)
        invariants.check(host.state)


def by_age(host: Host) -> list[int]:
    """Pages of VM 1's cache, the oldest first."""
    row, found = row_of(host, 1), []
    at = int(row.oldest)
    while at:
        found.append(at - 1)
        at = int(host.state.by_age[row.base_slot + at - 1, compress.NEWER])
    return found


@pytest.mark.parametrize(("compressible", "pages_a_frame"), [(QUARTER, 4), (HALF, 2)])
def test_a_cache_takes_whole_frames_and_as_few_as_hold_its_pages(
    compressible: Compressible, pages_a_frame: int
) -> None:
    host = still_host(compressible)
    free = counter(host, "free")
    for n in range(1, 10):
        page_out(host, n)
        assert counter(host, "free") == free + n - -(-n // pages_a_frame)
    assert row_of(host, 1).compressed == 9 and counter(host, "swap_outs") == 0


def test_what_does_not_compress_to_a_half_is_swapped() -> None:
    host = still_host(NEITHER)
    page_out(host, 3)
    assert states_of(host, 1)[3] == SWAPPED
    assert (counter(host, "compressions"), counter(host, "swap_outs")) == (0, 1)


def test_share_before_compress() -> None:
    """A page of which an equal frame is known is shared [P 4.3]; nothing is compressed."""
    host = still_host()
    st, zero = host.state, int(host.state.vms[0].zero)
    for ppn in (7, 8, 9):
        fault.touch(st, 0, ppn, 1, zero)
    share.scan_page(st, 0, 7)
    page_out(host, 8)
    assert states_of(host, 1)[[7, 8]].tolist() == [SHARED, SHARED]
    assert (counter(host, "compressions"), counter(host, "shared_before_swap")) == (0, 1)


def test_a_touch_decompresses_at_its_price_and_without_the_disk() -> None:
    host = still_host(costs={"decompress": 12_345})
    page_out(host, 5)
    word = int(host.state.content[5])
    host.state.host[0].swap_io_left = 0
    free = counter(host, "free")
    assert fault.touch(host.state, 0, 5, 0, 0) == 12_345
    assert states_of(host, 1)[5] == RESIDENT and int(host.state.content[5]) == word
    assert counter(host, "free") == free  # its own frame, and the cache's was the last
    assert (counter(host, "decompressions"), counter(host, "swap_ins")) == (1, 0)
    invariants.check(host.state)


def test_a_full_cache_swaps_what_it_has_held_longest() -> None:
    """10 % of 256 pages are 25 frames: 100 pages of a quarter. The 101st drives out the first."""
    host = still_host()
    page_out(host, *range(100))
    assert (row_of(host, 1).compressed, counter(host, "swap_outs")) == (100, 0)
    for ppn in (0, 50, 99):  # touched, and again the newest
        fault.touch(host.state, 0, ppn, 0, 0)
        page_out(host, ppn)
    page_out(host, 100, 101)
    assert states_of(host, 1)[[1, 2]].tolist() == [SWAPPED, SWAPPED]
    assert by_age(host) == [*range(3, 50), *range(51, 99), 0, 50, 99, 100, 101]
    assert counter(host, "cache_evictions") == counter(host, "swap_outs") == 2
    assert row_of(host, 1).compressed_quarters == 4 * CACHE_SLOTS


def test_a_page_that_needs_two_to_make_way_waits_for_the_device() -> None:
    """Its cache is full of quarters, and the device takes one page in this step: one goes, and the
    victim stays in memory."""
    host = still_host(Compressible(quarter=500, half=500))
    row, st = row_of(host, 1), host.state
    sizes = np.array([compress.quarters_of(st, 0, ppn) for ppn in range(N_PAGES)])
    small, large = np.flatnonzero(sizes == 1).tolist(), np.flatnonzero(sizes == 2).tolist()
    page_out(host, *small[:100])
    assert row.compressed_quarters == 4 * CACHE_SLOTS
    st.host[0].swap_io_left = 1
    page_out(host, large[0])
    assert states_of(host, 1)[large[0]] == RESIDENT and states_of(host, 1)[small[0]] == SWAPPED
    assert counter(host, "swap_io_left") == 0


def test_a_balloon_frees_what_a_compressed_page_takes() -> None:
    host = still_host(HALF)
    page_out(host, 10)
    free = counter(host, "free")
    host.state.vms[0].free_cursor = 10
    assert replacement.give_page(host.state, 0) == 0
    assert states_of(host, 1)[10] == BALLOONED and counter(host, "free") == free + 1
    invariants.check(host.state)


def test_power_off_frees_the_cache() -> None:
    host = still_host(n_vms=2)
    free = counter(host, "free")
    page_out(host, *range(9))
    host.power_off(VmId(1))
    assert counter(host, "free") == free + N_PAGES
    invariants.check(host.state)


def test_equal_contents_compress_alike_in_every_vm_of_every_host() -> None:
    """Whatever else the host holds, and its salt groups: a pure function of the content."""
    guest = make_image(MIB, content=ALL_IMAGE, compressible=Compressible(quarter=300, half=300))
    other = make_image(MIB, content=ALL_IMAGE)
    found = []
    for salting, first in (("none", ()), ("vm", (7,)), ("none", (7, 8))):
        sharing = {"enabled": True, "salting": salting}
        host = make_host(sharing=sharing, compression={"enabled": True})
        power_on(host, *(make_spec(vm, MIB, image=other, image_range=vm) for vm in first))
        power_on(host, *(make_spec(vm, MIB, image=guest, image_range=3) for vm in (1, 2)))
        run(host, 3000)
        for v in (len(first), len(first) + 1):
            found.append([compress.quarters_of(host.state, v, ppn) for ppn in range(N_PAGES)])
    assert all(one == found[0] for one in found)
    counts = np.bincount(found[0], minlength=3)
    assert (abs(counts - N_PAGES * np.array([0.4, 0.3, 0.3])) < 5 * np.sqrt(N_PAGES / 4)).all()


@settings(max_examples=40)
@given(quarter=some.integers(0, 1000), half=some.integers(0, 1000), first=some.integers(0, 1 << 20))
def test_an_image_says_how_many_pages_compress_how_far(quarter: int, half: int, first: int) -> None:
    """Of unique pages, each by chance: within five standard errors of 256 draws."""
    half = min(half, 1000 - quarter)
    host = still_host(Compressible(quarter=quarter, half=half))
    host.state.host[0].seed = first
    sizes = [compress.quarters_of(host.state, 0, ppn) for ppn in range(N_PAGES)]
    for size, permille in ((1, quarter), (2, half)):
        part = permille / 1000
        error = 5 * np.sqrt(N_PAGES * part * (1 - part)) + 1e-9
        assert abs(sizes.count(size) - N_PAGES * part) <= error


def test_a_migrating_vm_takes_its_compressed_pages_along_in_memory() -> None:
    """They are content of the source's memory; the target's cache of it begins empty."""
    source, target = still_host(n_vms=2), still_host()
    page_out(source, *range(20))
    target.power_off(VmId(1))
    travelling = image.unpack(image.pack(image.export_vm(source, VmId(1))))
    image.import_vm(target, travelling)
    invariants.check(target.state)
    assert (states_of(target, 1) == RESIDENT).all()
    assert row_of(target, 1).compressed == row_of(target, 1).oldest == 0


def test_a_snapshot_keeps_the_cache_and_its_order() -> None:
    host = still_host()
    page_out(host, 9, 4, 200, 17)
    fault.touch(host.state, 0, 4, 0, 0)
    back = snapshot.load(snapshot.save(host))
    assert by_age(back) == by_age(host) == [9, 200, 17]
    assert snapshot.digest(back) == snapshot.digest(host)


def test_g2_swap_outs_fall_by_the_part_that_compresses_while_the_cache_has_room() -> None:
    """With the default table, 31 % of 2,000 victims are written: within five standard errors."""
    host = still_host(Compressible(), size=16 * MIB, compression={"enabled": True, "maximum": 1000})
    assert swap.page_out_vm(host.state, 0, 2000, 1 << 40) == 2000
    invariants.check(host.state)
    assert counter(host, "compressions") + counter(host, "swap_outs") == 2000
    assert abs(counter(host, "swap_outs") - 620) < 5 * np.sqrt(2000 * 0.31 * 0.69)


def starving(compression: bool, **options: Any) -> Host:
    """Four VMs without drivers that touch 80 MiB of 64."""
    slow = Disk(latency=8_000_000, iops=400)
    enabled = {"enabled": compression}
    host = make_host(64 * MIB, compression=enabled, swap=slow, seed=3, **options)
    phase = make_phase(memory=20 * MIB, active=20 * MIB, touch_interval=20_000, growth=MIB)
    guest = make_image(MIB, disk=FAST_DISK)
    specs = [make_spec(vm, 24 * MIB, phase, image=guest, balloon="absent") for vm in range(1, 5)]
    power_on(host, *specs)
    run(host, 120_000)
    return host


def test_g2_compression_keeps_pages_from_the_disk_and_guests_from_waiting() -> None:
    """Target G2 on a host in hard and low memory: caches fill up to 10 % of each VM, fewer pages
    are written, and guests lose less time to swap and decompression than to swap alone."""
    lost, swapped = {}, {}
    for compression in (False, True):
        host = starving(compression)
        total = {name: 0 for name in ("swap_in", "decompress")}
        for vm in range(1, 5):
            for name in total:
                total[name] += lost_ns(host, vm)[name]
            row = row_of(host, vm)
            assert row.compressed_quarters <= 4 * (row.size_slots // 10)
        lost[compression], swapped[compression] = total, counter(host, "swap_outs")
        assert (counter(host, "compressions") > 0) == compression
    assert lost[False]["decompress"] == 0 < lost[True]["decompress"]
    assert sum(lost[True].values()) < sum(lost[False].values())
    assert swapped[True] < swapped[False]


def test_a_miniature_compresses_as_much() -> None:
    """One page in 16 of the same host: pages in caches, their frames, and what went in, out and to
    swap within 10 % of all pages simulated; in five pairs of seeds they differ by 9 % at most."""
    found = []
    for sample in (1, 16):
        row = starving(True, sample=sample).measure()[0][0]
        names = ("compressed_pages", "compression_cache_pages", "compressions", "decompressions")
        found.append([int(row[name]) for name in (*names, "swap_out_pages")])
    exact, miniature = np.array(found)
    assert (abs(miniature - exact) < 0.1 * exact).all() and (exact > 1000).all()


def test_a_host_that_does_not_compress_has_no_room_for_it() -> None:
    host = still_host(compression={"enabled": False})
    assert len(host.state.by_age) == len(host.state.easier) == 0
    page_out(host, 0)
    assert (states_of(host, 1) != COMPRESSED).all()
