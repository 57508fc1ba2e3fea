"""Options of host paging: share before swap, clean pages dropped, overwritten pages not read.

What VSwapper (Amit, Tsafrir, Schuster, ASPLOS 2014) does for guests whose pages the host swaps
behind their back. Kernels are called on hosts whose VMs stand still.
"""

from __future__ import annotations

from typing import Any

import pytest
from crowded_hosts import run_checked
from host_builders import (
    SECOND,
    UNIQUE_ANON,
    UNIQUE_CACHE,
    arrays_of,
    counter,
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
from pydantic import ValidationError

from hostsim import fault, guest, image, invariants, share, snapshot, swap
from hostsim.config import Disk, HostConfig
from hostsim.guest_config import ContentTable
from hostsim.host import Host
from hostsim.state import RESIDENT, SHARED, SWAPPED
from hostsim.units import MIB, PAGE_SIZE

N_PAGES = MIB // PAGE_SIZE
PLENTY = 1 << 40
SWAP_NS, DISK_NS = 77_000, 450_000
COUNTERS = ("swap_outs", "swap_drops", "swap_ins", "swap_skips")


def booted(content: ContentTable = UNIQUE_CACHE, sharing: bool = False, **paging: bool) -> Host:
    """VM 1 and 2 of 1 MiB, all of it `content`; devices tell by their latency which one worked."""
    host = make_host(
        paging=paging, swap=Disk(latency=SWAP_NS, iops=1000), sharing={"enabled": sharing}
    )
    disk = Disk(latency=DISK_NS, iops=1000)
    guests = make_image(MIB, content=content, disk=disk)
    power_on(host, *(make_spec(vm, MIB, make_phase(), image=guests) for vm in (1, 2)))
    run_until_booted(host)
    host.measure()
    host.state.host[0].swap_io_left = row_of(host, 1).disk_io_left = PLENTY
    return host


def page_out(host: Host, *ppns: int) -> None:
    for ppn in ppns:
        swap.page_out(host.state, 0, ppn)
    invariants.check(host.state)


def counts(host: Host) -> tuple[int, ...]:
    return tuple(counter(host, name) for name in COUNTERS)


# Clean pages


def test_a_clean_page_is_dropped_without_a_write() -> None:
    host = booted(map_clean=True)
    free = counter(host, "free")
    page_out(host, 3, 4)
    assert counts(host) == (0, 2, 0, 0)
    assert counter(host, "swap_io_left") == PLENTY
    assert (states_of(host, 1)[3:5] == SWAPPED).all() and row_of(host, 1).swapped == 2
    assert counter(host, "free") == free + 2


@pytest.mark.parametrize(
    ("content", "map_clean"), [(UNIQUE_CACHE, False), (UNIQUE_ANON, True), (UNIQUE_ANON, False)]
)
def test_dirty_pages_and_all_pages_by_default_are_written(
    content: ContentTable, map_clean: bool
) -> None:
    host = booted(content, map_clean=map_clean)
    page_out(host, 3, 4)
    assert counts(host) == (2, 0, 0, 0)
    assert counter(host, "swap_io_left") == PLENTY - 2
    assert guest.access(host.state, 0, 3, 0) == SWAP_NS
    assert counter(host, "swap_io_left") == PLENTY - 3


def test_a_dropped_page_comes_back_from_the_guests_disk() -> None:
    """At the price of that disk, as lost to swap-in; its content is what it was."""
    host = booted(map_clean=True)
    slot = int(row_of(host, 1).base_slot) + 3
    word = int(host.state.content[slot])
    page_out(host, 3)
    assert guest.access(host.state, 0, 3, 0) == DISK_NS
    invariants.check(host.state)
    assert counts(host) == (0, 1, 1, 0)
    assert row_of(host, 1).disk_io_left == PLENTY - 1 and counter(host, "swap_io_left") == PLENTY
    assert (states_of(host, 1)[3], int(host.state.content[slot])) == (RESIDENT, word)
    page_out(host, 3)
    assert counts(host) == (0, 2, 1, 0)


def test_a_touch_of_a_dropped_page_waits_for_the_guests_disk() -> None:
    host = booted(map_clean=True)
    page_out(host, 3)
    row_of(host, 1).disk_io_left = 0
    assert guest.access(host.state, 0, 3, 0) == fault.NO_GUEST_IO
    assert states_of(host, 1)[3] == SWAPPED
    row_of(host, 1).disk_io_left, host.state.host[0].swap_io_left = 1, 0
    assert guest.access(host.state, 0, 3, 0) == DISK_NS


def test_snapshots_and_images_know_what_was_dropped() -> None:
    """A copy of the host goes on alike; a host that drops nothing takes the VM as it is."""
    host = booted(map_clean=True)
    page_out(host, 3)
    copy = snapshot.load(snapshot.save(host))
    assert arrays_of(copy.state) == arrays_of(host.state)
    target = make_host()
    image.import_vm(target, image.export_vm(host, host.vm_ids()[0]))
    row_of(target, 1).disk_io_left = 1
    assert guest.access(target.state, 0, 3, 0) == DISK_NS
    invariants.check(target.state)


# Overwritten pages


def free_again(host: Host, ppn: int) -> None:
    """The guest frees a page and uses it anew: its whole content is replaced."""
    guest.free_page(host.state, 0, ppn)


@pytest.mark.parametrize(
    ("paging", "cost", "counted"),
    [
        ({}, SWAP_NS, (1, 0, 1, 0)),
        ({"map_clean": True}, DISK_NS, (0, 1, 1, 0)),
        ({"skip_overwritten": True}, 0, (1, 0, 0, 1)),
        ({"map_clean": True, "skip_overwritten": True}, 0, (0, 1, 0, 1)),
    ],
)
def test_a_page_used_anew_need_not_be_read(
    paging: dict[str, bool], cost: int, counted: tuple[int, ...]
) -> None:
    """What it held, on whichever device, is overwritten: VSwapper's false read."""
    host = booted(**paging)
    page_out(host, 3)
    free_again(host, 3)
    assert guest.access(host.state, 0, 3, 1) == cost
    invariants.check(host.state)
    assert counts(host) == counted and states_of(host, 1)[3] == RESIDENT


@pytest.mark.parametrize(
    ("paging", "cost", "stale"),
    [
        ({}, SWAP_NS + DISK_NS, 1),
        ({"map_clean": True}, 2 * DISK_NS, 1),
        ({"skip_overwritten": True}, DISK_NS, 0),
        ({"map_clean": True, "skip_overwritten": True}, DISK_NS, 0),
    ],
)
def test_a_block_read_over_a_clean_swapped_page(
    paging: dict[str, bool], cost: int, stale: int
) -> None:
    """VSwapper's stale read costs what the device costs, or nothing where it is skipped."""
    host = booted(**paging)
    row_of(host, 1).active = row_of(host, 1).span = N_PAGES - int(row_of(host, 1).kernel)
    page_out(host, *range(N_PAGES))
    assert guest.read_data(host.state, 0) == cost
    invariants.check(host.state)
    names = ("stale_reads", "swap_ins", "swap_skips", "double_pagings")
    assert [counter(host, name) for name in names] == [stale, stale, 1 - stale, 0]


@pytest.mark.parametrize("skip_overwritten", [False, True])
def test_a_dirty_page_is_read_back_to_be_written_out(skip_overwritten: bool) -> None:
    """Double paging [P 3.1] stays: what the guest writes to its disk must be read first."""
    host = booted(UNIQUE_ANON, map_clean=True, skip_overwritten=skip_overwritten)
    row_of(host, 1).active = row_of(host, 1).span = N_PAGES - int(row_of(host, 1).kernel)
    page_out(host, *range(N_PAGES))
    assert guest.read_data(host.state, 0) == SWAP_NS + DISK_NS
    names = ("stale_reads", "swap_ins", "swap_skips", "double_pagings")
    assert [counter(host, name) for name in names] == [0, 1, 0, 1]


def test_a_write_to_a_part_of_a_page_needs_the_rest() -> None:
    host = booted(UNIQUE_ANON, skip_overwritten=True)
    page_out(host, 3)
    assert guest.access(host.state, 0, 3, 1) == SWAP_NS
    assert counts(host) == (1, 0, 1, 0)


def test_skipping_a_read_takes_a_frame_all_the_same() -> None:
    host = booted(skip_overwritten=True)
    page_out(host, 3)
    free_again(host, 3)
    host.state.host[0].free, free = 0, counter(host, "free")
    assert guest.access(host.state, 0, 3, 1) == fault.NO_FRAME
    host.state.host[0].free = free
    assert guest.access(host.state, 0, 3, 1) == 0
    assert counter(host, "free") == free - 1


def test_zeroing_a_swapped_page_needs_no_read() -> None:
    """A Windows guest's zero-page thread over memory that the host had swapped [P 5.4]."""
    host = make_host(paging={"skip_overwritten": True})
    guests = make_image(MIB, os="windows")
    power_on(host, make_spec(1, MIB, make_phase(), image=guests))
    run_until_booted(host)
    host.state.host[0].swap_io_left = PLENTY
    page_out(host, 3)
    assert guest.free_page(host.state, 0, 3) == 0
    assert counts(host) == (1, 0, 0, 1)
    assert host.state.content[int(row_of(host, 1).base_slot) + 3] == row_of(host, 1).zero


# Sharing first


@pytest.mark.parametrize("share_first", [True, False])
def test_a_page_of_which_another_is_known_is_shared_or_swapped(share_first: bool) -> None:
    """[P 4.3]. Both VMs hold a zero page; that of VM 2 was scanned."""
    host = booted(UNIQUE_ANON, sharing=True, share_first=share_first)
    st = host.state
    for v in (0, 1):
        fault.touch(st, v, 3, 1, int(st.vms[v].zero))
    share.scan_page(st, 1, 3)
    swap.page_out(st, 0, 3)
    invariants.check(st)
    assert states_of(host, 1)[3] == (SHARED if share_first else SWAPPED)
    assert counts(host) == (int(not share_first), 0, 0, 0)
    assert counter(host, "shared_before_swap") == int(share_first)


def test_sharing_comes_before_dropping() -> None:
    """A shared page is there when it is touched, a dropped one is not."""
    host = booted(sharing=True, map_clean=True)
    st = host.state
    for v in (0, 1):
        fault.touch(st, v, 3, 1, int(st.vms[v].zero))
    share.scan_page(st, 1, 3)
    page_out(host, 3)
    assert states_of(host, 1)[3] == SHARED and counts(host) == (0, 0, 0, 0)


# Whole runs


def squeezed(**paging: bool) -> dict[str, int]:
    """Events of two minutes in which a guest of 16 MiB, half cache and half anonymous, on a host
    with room for 10, works on 24 MiB of files without a driver."""
    host = make_host(64 * MIB, reserve=54 * MIB, paging=paging)
    phase = make_phase(
        active=16 * MIB,
        memory=16 * MIB,
        data=24 * MIB,
        locality="linear",
        touch_interval=6 * SECOND,
    )
    growth: dict[str, Any] = {"cache": {"unique": 500}, "anon": {"unique": 500}}
    guests = make_image(growth=ContentTable(**growth))
    power_on(host, make_spec(1, 16 * MIB, phase, image=guests, balloon="absent"))
    run(host, 120 * SECOND)
    names = (*COUNTERS, "stale_reads", "double_pagings")
    return {name: counter(host, name) for name in names}


def test_the_remedies_in_a_whole_run() -> None:
    """Dropping spares half of the writes (half of the pages is clean), skipping all stale reads;
    nothing spares double paging."""
    plain, clean = squeezed(), squeezed(map_clean=True)
    both = squeezed(map_clean=True, skip_overwritten=True)
    assert plain["swap_drops"] == plain["swap_skips"] == 0 < plain["stale_reads"]
    left = clean["swap_outs"] + clean["swap_drops"]
    assert clean["swap_drops"] / left == pytest.approx(0.5, abs=0.1)
    assert both["stale_reads"] == 0 < both["swap_skips"]
    assert min(seen["double_pagings"] for seen in (plain, clean, both)) > 0


def test_hosts_with_remedies_are_sound_at_every_step() -> None:
    host = make_host(
        reserve=48 * MIB,
        sharing={"enabled": True},
        paging={"map_clean": True, "skip_overwritten": True},
    )
    phases = [
        make_phase(active=4 * MIB, memory=mb * MIB, growth=2 * MIB, duration=8 * SECOND)
        for mb in (12, 3)
    ]
    guests = make_image(2 * MIB, growth=UNIQUE_CACHE)
    for vm in (1, 2):
        power_on(host, make_spec(vm, 12 * MIB, phases, image=guests, repeat=True, balloon="absent"))
    run_checked(host, 40)
    assert counter(host, "swap_drops") > 0 and counter(host, "swap_skips") > 0


# What a user writes


@pytest.mark.parametrize(
    ("paging", "message"),
    [({"map_clean": 3}, "boolean"), ({"map_dirty": True}, "Extra inputs"), (7, "valid dict")],
)
def test_wrong_options_are_refused(paging: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HostConfig(paging=paging)


@pytest.mark.parametrize("profile", ["osdi02", "vsphere"])
def test_every_profile_shares_first_and_nothing_more(profile: Any) -> None:
    assert HostConfig(profile=profile).paging.model_dump() == {
        "share_first": True,
        "map_clean": False,
        "skip_overwritten": False,
    }
