"""Faults: what a touch costs the guest, and that a fault never reclaims (design: rules, 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    arrays_of,
    counter,
    lost_ns,
    make_host,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    run_until_booted,
    states_of,
)

from hostsim import fault, invariants, share, swap
from hostsim.config import Disk
from hostsim.host import Host
from hostsim.state import (
    RESIDENT,
    SWAPPED,
    UNIQUE,
)
from hostsim.units import MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE
PLENTY = 1 << 40


def still_host(n_vms: int = 1, frames: int | None = None, **options: Any) -> Host:
    """VMs 1..n of 256 pages that never ran, and a swap device that is never the bottleneck."""
    reserve = 0 if frames is None else 64 * MIB - frames * PAGE_SIZE
    host = make_host(reserve=reserve, sharing={"enabled": True}, **options)
    power_on(host, *(make_spec(vm, MIB) for vm in range(1, n_vms + 1)))
    host.state.host[0].swap_io_left = PLENTY
    return host


def fill(host: Host, v: int, ppns: range) -> None:
    """The guest writes a content of its own to each page."""
    for ppn in ppns:
        assert fault.touch(host.state, v, ppn, 1, int(UNIQUE) | v << 16 | ppn) >= 0
    invariants.check(host.state)


def swapped_out(host: Host, v: int, ppn: int) -> None:
    swap.page_out(host.state, v, ppn)
    invariants.check(host.state)
    assert states_of(host, int(host.state.vms[v].vm))[ppn] == SWAPPED


# What a touch costs


@pytest.mark.parametrize("sample", [1, 16])
def test_a_touch_brings_a_page_in_at_the_devices_latency(sample: int) -> None:
    """One slot's fault counts k faults and k latencies (design: miniature simulation)."""
    host = make_host(sample=sample, swap=Disk(latency=123_000, iops=1000))
    power_on(host, make_spec(1, 16 * MIB))
    host.state.host[0].swap_io_left = 5
    fill(host, 0, range(10))
    swapped_out(host, 0, 4)
    free = counter(host, "free")
    word = host.state.content[4]
    assert fault.touch(host.state, 0, 4, 0, 0) == 123_000 * sample
    invariants.check(host.state)
    assert host.state.content[4] == word
    assert (counter(host, "swap_ins"), counter(host, "free")) == (1, free - 1)
    assert (counter(host, "swap_io_left"), row_of(host, 1).swapped) == (3, 0)
    assert fault.touch(host.state, 0, 4, 0, 0) == 0


def test_swapping_in_is_time_that_the_guest_loses() -> None:
    """200 pages are out; the guest sweeps all its memory once: 200 latencies, to the nanosecond."""
    host = make_host(swap=Disk(latency=500_000, iops=100_000))
    still = make_phase(duration=5 * SECOND)
    sweep = make_phase(active=MIB, locality="sweep", writes=0)
    power_on(host, make_spec(1, MIB, [still, sweep]))
    run_until_booted(host)
    host.state.host[0].swap_io_left = PLENTY
    assert swap.page_out_vm(host.state, 0, 200, PLENTY) == 200
    run(host, 9 * SECOND)
    assert counter(host, "swap_ins") == 200
    assert lost_ns(host, 1)["swap_in"] == 200 * 500_000
    assert sum(lost_ns(host, 1).values()) == 200 * 500_000


def test_a_debt_of_latencies_outlasts_the_step() -> None:
    """One fault of 2.5 s in steps of 1 s: the guest stands still until it is paid."""
    host = make_host(swap=Disk(latency=2_500_000_000, iops=1000))
    power_on(host, make_spec(1, MIB, make_phase(active=MIB, locality="sweep", writes=0)))
    run_until_booted(host)
    run(host, SECOND)
    host.measure()
    host.state.host[0].swap_io_left = PLENTY
    swapped_out(host, 0, 0)
    seen = []
    for _ in range(5):
        run(host, SECOND)
        seen.append(lost_ns(host, 1)["swap_in"] // 1_000_000)
    assert seen[-1] == 2500
    assert max(np.diff([0, *seen])) == 1000


# A fault never reclaims


@pytest.mark.parametrize("kind", ["first touch", "swapped", "copy on write"])
def test_a_touch_without_a_free_frame_stalls_and_changes_nothing(kind: str) -> None:
    """Tried again once a frame is free, it is served (design: rules paid for, 1)."""
    host = still_host(2, frames=8)
    st = host.state
    ppn, writes = {"first touch": (50, 0), "swapped": (1, 0), "copy on write": (3, 1)}[kind]
    if kind == "copy on write":
        for v in (0, 1):
            fault.touch(st, v, 3, 0, 0)
            share.scan_page(st, v, 3)
    fill(host, 0, range(10, 14))
    if kind == "swapped":
        fill(host, 0, range(1, 2))
        swapped_out(host, 0, 1)
    fill(host, 1, range(60, 60 + counter(host, "free")))
    assert counter(host, "free") == 0
    before = arrays_of(st)
    assert fault.touch(st, 0, ppn, writes, int(UNIQUE) | 77) == fault.NO_FRAME
    assert arrays_of(st) == before
    swapped_out(host, 1, 60)
    assert fault.touch(st, 0, ppn, writes, int(UNIQUE) | 77) >= 0
    invariants.check(st)
    assert (states_of(host, 1)[ppn], counter(host, "free")) == (RESIDENT, 0)


def test_a_swapped_page_waits_for_the_device() -> None:
    host = still_host()
    fill(host, 0, range(4))
    swapped_out(host, 0, 1)
    host.state.host[0].swap_io_left = 0
    before = arrays_of(host.state)
    assert fault.touch(host.state, 0, 1, 0, 0) == fault.NO_IO
    assert arrays_of(host.state) == before


def test_a_stalled_guest_waits_and_is_counted() -> None:
    """No frame is free and nothing may be paged: one stalled touch a step, all time is lost, and
    the guest goes on where it stood once memory is free."""
    host = make_host(
        reserve=62 * MIB, tick_ms=10, reclaim={"high": 4, "soft": 3, "hard": 2, "low": 1}
    )
    grow = make_phase(memory=2 * MIB)
    swapless = {"reservation": 0, "balloon": "absent"}
    power_on(host, make_spec(1, 2 * MIB, grow, **swapless), make_spec(2, 2 * MIB, **swapless))
    host.state.vms["size_slots"][:2] = 512
    run_until_booted(host)
    row = row_of(host, 1)
    host.state.vms["reservation"][:2] = 512  # no swap space: the host can page nobody
    run(host, 5 * SECOND)
    assert counter(host, "free") == 0
    brk, stalls, lost = int(row.brk), counter(host, "stalled_touches"), lost_ns(host, 1)["blocked"]
    assert 0 < brk < 512
    run(host, 10 * SECOND)
    assert row_of(host, 1).brk == brk
    assert counter(host, "stalled_touches") - stalls == 1000
    assert lost_ns(host, 1)["blocked"] - lost == 10 * 1_000_000_000
    host.power_off(VmId(2))
    run(host, 2 * SECOND)
    assert row_of(host, 1).brk == 512
