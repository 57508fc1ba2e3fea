"""Swap to host cache (ESXi 5): a bounded part of an SSD first, the rest to the datastore."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
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

from hostsim import fault, image, invariants, replacement, snapshot, swap
from hostsim.config import Disk
from hostsim.host import Host
from hostsim.state import BALLOONED, KIND, SWAPPED, UNIQUE
from hostsim.units import MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE
ROOM = 10
SLOW = Disk(latency=8_000_000, iops=1000)


def still_host(room: int = ROOM, n_vms: int = 1, **options: Any) -> Host:
    """VMs 1..n of 256 pages that never ran, all written, on a host with room for a few pages in its
    host cache; both devices take many pages in this step."""
    cache = {"size": room * PAGE_SIZE, "latency": 90_000} | options.pop("host_cache", {})
    host = make_host(swap=SLOW, host_cache=cache, **options)
    power_on(host, *(make_spec(vm, MIB) for vm in range(1, n_vms + 1)))
    row = host.state.host[0]
    row.swap_io_left = row.ssd_io_left = 1000
    for v in range(n_vms):
        for ppn in range(N_PAGES):
            assert fault.touch(host.state, v, ppn, 1, int(UNIQUE) | v << 16 | ppn) >= 0
    return host


def page_out(host: Host, *ppns: int) -> None:
    for ppn in ppns:
        swap.page_out(host.state, 0, ppn)
        invariants.check(host.state)


def cached(host: Host, vm: int = 1) -> list[int]:
    """Pages of a VM in the host cache."""
    row = row_of(host, vm)
    bytes_of = host.state.page[row.base_slot : row.base_slot + row.size_slots]
    return np.flatnonzero((states_of(host, vm) == SWAPPED) & (bytes_of & int(KIND) != 0)).tolist()


def test_pages_go_to_the_host_cache_while_it_has_room() -> None:
    host = still_host()
    page_out(host, *range(ROOM + 5))
    assert cached(host) == list(range(ROOM))
    assert (counter(host, "swap_outs"), counter(host, "ssd_outs")) == (ROOM + 5, ROOM)
    assert (counter(host, "ssd_io_left"), counter(host, "swap_io_left")) == (1000 - ROOM, 995)


def test_a_busy_ssd_leaves_pages_to_the_datastore_and_the_other_way_round() -> None:
    host = still_host()
    row = host.state.host[0]
    row.ssd_io_left = 2
    page_out(host, *range(5))
    assert cached(host) == [0, 1]
    row.ssd_io_left, row.swap_io_left = 3, 0
    assert swap.page_out_vm(host.state, 0, 50, 1 << 40) == 3
    invariants.check(host.state)
    assert len(cached(host)) == 5 and not swap.can_write(host.state)


def test_each_page_is_read_from_where_it_lies_at_the_price_of_that() -> None:
    host = still_host()
    page_out(host, *range(ROOM + 1))
    row = host.state.host[0]
    row.swap_io_left = 0
    assert fault.touch(host.state, 0, 3, 0, 0) == 90_000
    assert fault.touch(host.state, 0, ROOM, 0, 0) == fault.NO_IO
    row.swap_io_left, row.ssd_io_left = 1, 0
    assert fault.touch(host.state, 0, ROOM, 0, 0) == SLOW.latency
    assert fault.touch(host.state, 0, 4, 0, 0) == fault.NO_IO
    invariants.check(host.state)
    assert (counter(host, "swap_ins"), counter(host, "ssd_ins")) == (2, 1)


@pytest.mark.parametrize("how", ["touched", "ballooned", "powered off", "overwritten"])
def test_room_is_free_again_when_a_page_leaves(how: str) -> None:
    host = still_host(n_vms=2, paging={"skip_overwritten": True})
    page_out(host, *range(ROOM))
    assert counter(host, "ssd_used") == ROOM
    if how == "touched":
        fault.touch(host.state, 0, 3, 0, 0)
    elif how == "overwritten":
        fault.overwrite(host.state, 0, 3, int(UNIQUE))
    elif how == "ballooned":
        host.state.vms[0].free_cursor = 3
        replacement.give_page(host.state, 0)
        assert states_of(host, 1)[3] == BALLOONED
    else:
        host.power_off(VmId(1))
    invariants.check(host.state)
    assert counter(host, "ssd_used") == (0 if how == "powered off" else ROOM - 1)


def test_a_migrating_vm_leaves_the_host_cache_to_its_source() -> None:
    """Its pages are sent, and lie on the datastore then: swapped still."""
    source, target = still_host(), still_host(n_vms=2)
    target.power_off(VmId(1))
    page_out(source, *range(ROOM))
    image.import_vm(target, image.unpack(image.pack(image.export_vm(source, VmId(1)))))
    invariants.check(target.state)
    assert (states_of(target, 1)[:ROOM] == SWAPPED).all() and cached(target) == []
    assert counter(source, "ssd_used") == ROOM and counter(target, "ssd_used") == 0


def test_a_snapshot_knows_where_pages_lie() -> None:
    host = still_host()
    page_out(host, *range(ROOM + 5))
    back = snapshot.load(snapshot.save(host))
    assert cached(back) == cached(host)
    assert snapshot.digest(back) == snapshot.digest(host)


def throughput(size: int, swap_device: Disk) -> float:
    """Touches that a guest does whose memory the host pages a third of, as a part of all due."""
    host = make_host(64 * MIB, swap=swap_device, host_cache={"size": size}, reserve=44 * MIB)
    phase = make_phase(memory=24 * MIB, active=24 * MIB, touch_interval=10_000, growth=8 * MIB)
    power_on(host, make_spec(1, 24 * MIB, phase, image=make_image(MIB), balloon="absent"))
    run(host, 20 * SECOND)
    host.measure()
    run(host, 120 * SECOND)
    lost = sum(lost_ns(host, 1).values())
    return 1 - lost / (120 * SECOND * 1_000_000)


def test_g1_the_faster_the_medium_the_faster_the_guest_and_a_host_cache_makes_up_for_a_disk() -> (
    None
):
    """Target G1: local SSD before a faster before a slower disk array; a host cache that holds all
    that is swapped is as good as an SSD, one that holds half lies between."""
    disks = [Disk(latency=90_000, iops=50_000), Disk(latency=4_000_000, iops=300)]
    disks.append(Disk(latency=8_000_000, iops=120))
    ssd, fast, slow = (throughput(0, disk) for disk in disks)
    assert ssd > 0.85 > fast > slow
    half, whole = (throughput(size, disks[2]) for size in (3 * MIB, 24 * MIB))
    assert slow < half < whole and abs(whole - ssd) < 0.02
