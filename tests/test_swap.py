"""Host swap [P 3.3]: which VMs are paged in which level, which pages, how much, double paging.

Kernels are called on hosts whose VMs never ran, except where the pipeline itself is asked. What a
touch of a swapped page costs: test_fault.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    alloc_slots,
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

from hostsim import fault, invariants, replacement, share, swap, tick
from hostsim.config import Disk
from hostsim.host import Host
from hostsim.state import (
    BALLOONED,
    HARD,
    LOW,
    SHARED,
    SOFT,
    SWAPPED,
    UNIQUE,
)
from hostsim.units import MIB, PAGE_SIZE

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


# Which pages


def test_victims_are_uniform_over_pages_that_free_a_frame() -> None:
    """RESIDENT pages and SHARED pages with one reference; 25 600 draws, chi-square within 5 sd."""
    host = still_host(2)
    st = host.state
    fill(host, 0, range(160))
    zero = int(st.vms[0].zero)
    for v, ppn in ((0, 200), (0, 201), (1, 5)):
        fault.touch(st, v, ppn, 0, 0)
        share.scan_page(st, v, ppn)
    for ppn in range(20):
        swapped_out(host, 0, ppn)
    assert st.refs[zero] == 3
    chosen = Counter(
        swap.find_victim(st, 0, np.uint64(key), draw) for key in range(100) for draw in range(256)
    )
    assert set(chosen) == set(range(20, 160))
    mean = 25_600 / 140
    chi_square = sum((n - mean) ** 2 / mean for n in chosen.values())
    assert abs(chi_square - 139) < 5 * (2 * 139) ** 0.5


def test_rare_victims_are_as_uniform() -> None:
    """Four of 4096 pages have a frame: 4000 draws, each page within 5 sd of a quarter."""
    host = make_host()
    power_on(host, make_spec(1, 16 * MIB))
    fill(host, 0, range(7, 11))
    draws = (swap.find_victim(host.state, 0, np.uint64(3), draw) for draw in range(4000))
    chosen = Counter(draws)
    assert set(chosen) == {7, 8, 9, 10}
    assert all(abs(n - 1000) < 5 * 750**0.5 for n in chosen.values())


def test_the_last_holder_of_a_shared_frame_is_a_victim() -> None:
    host = still_host(2)
    st = host.state
    for v in (0, 1):
        fault.touch(st, v, 5, 0, 0)
        share.scan_page(st, v, 5)
    assert states_of(host, 1)[5] == SHARED
    assert swap.find_victim(st, 0, np.uint64(1), 0) == -1
    fault.touch(st, 1, 5, 1, int(UNIQUE) | 1)
    assert swap.find_victim(st, 0, np.uint64(1), 0) == 5
    free = counter(host, "free")
    swapped_out(host, 0, 5)
    assert (counter(host, "free"), counter(host, "distinct")) == (free + 1, 0)


def test_a_vm_without_frames_has_no_victim() -> None:
    host = still_host()
    assert swap.find_victim(host.state, 0, np.uint64(1), 0) == -1
    assert swap.page_out_vm(host.state, 0, 10, PLENTY) == 0


# How much


def test_paging_ends_at_the_amount_asked_for() -> None:
    host = still_host()
    fill(host, 0, range(100))
    assert swap.page_out_vm(host.state, 0, 30, PLENTY) == 30
    invariants.check(host.state)
    assert (counter(host, "swap_outs"), row_of(host, 1).swapped) == (30, 30)


def test_paging_ends_when_enough_memory_is_free() -> None:
    host = still_host()
    fill(host, 0, range(100))
    free = counter(host, "free")
    assert swap.page_out_vm(host.state, 0, 50, free + 7) == 7
    assert counter(host, "free") == free + 7


def test_paging_ends_with_the_devices_budget() -> None:
    host = still_host()
    fill(host, 0, range(100))
    host.state.host[0].swap_io_left = 11
    assert swap.page_out_vm(host.state, 0, 50, PLENTY) == 11
    assert counter(host, "swap_io_left") == 0


def test_paging_ends_when_the_vms_swap_space_is_full() -> None:
    """Swap space is size - reservation (design: accounting)."""
    host = make_host()
    power_on(host, make_spec(1, MIB, reservation=MIB - 40 * PAGE_SIZE))
    host.state.host[0].swap_io_left = PLENTY
    fill(host, 0, range(100))
    assert swap.page_out_vm(host.state, 0, 90, PLENTY) == 40
    invariants.check(host.state)
    assert row_of(host, 1).swapped == 40


@pytest.mark.parametrize(("iops", "tick_ms"), [(100, 1000), (75, 100), (333, 250)])
def test_the_devices_budget_holds_exactly(iops: int, tick_ms: int) -> None:
    """Two guests that sweep more memory than there is use up every operation: no step is so long
    that its operations are more than the goal for free memory has slots."""
    host = make_host(
        64 * MIB,
        reserve=56 * MIB,
        tick_ms=tick_ms,
        swap=Disk(latency=1000, iops=iops),
        reclaim={"high": 6, "soft": 4, "hard": 2, "low": 1},
    )
    busy = make_phase(active=6 * MIB, memory=6 * MIB, locality="sweep")
    power_on(host, *(make_spec(vm, 6 * MIB, busy, balloon="absent") for vm in (1, 2)))
    run(host, 60 * SECOND)
    before = counter(host, "swap_ins") + counter(host, "swap_outs")
    for _ in range(10):
        run(host, 6 * SECOND)
    done = counter(host, "swap_ins") + counter(host, "swap_outs") - before
    assert abs(done - 60 * iops) <= 1
    assert counter(host, "swap_ins") > 0.2 * 60 * iops


# Double paging


def test_a_guest_that_pages_out_a_swapped_page_reads_it_back_first() -> None:
    """Double paging [P 3.1]: one host swap-in and one guest page-out for one page."""
    host = make_host(swap=Disk(latency=77_000, iops=1000))
    power_on(host, make_spec(1, MIB, image=make_image(MIB)))
    run_until_booted(host)
    st = host.state
    st.host[0].swap_io_left = PLENTY
    assert swap.page_out_vm(st, 0, N_PAGES, PLENTY) == N_PAGES
    free = counter(host, "free")
    assert replacement.give_page(st, 0) == 77_000
    invariants.check(st)
    names = ("double_pagings", "swap_ins", "guest_page_outs")
    assert [counter(host, name) for name in names] == [1, 1, 1]
    row = row_of(host, 1)
    assert (row.swapped, row.ballooned, row.guest_swapped) == (N_PAGES - 1, 1, 1)
    assert counter(host, "free") == free


def test_a_free_swapped_page_is_given_without_double_paging() -> None:
    host = still_host()
    fill(host, 0, range(4))
    swapped_out(host, 0, 1)
    row_of(host, 1).free_cursor = 1
    assert replacement.give_page(host.state, 0) == 0
    assert (counter(host, "double_pagings"), counter(host, "swap_ins")) == (0, 0)
    assert states_of(host, 1)[1] == BALLOONED


# Who is paged, in which level


def pressed(level: int, excess: dict[int, int], drivers: dict[int, bool] | None = None) -> Host:
    """VMs of 200 resident pages with targets `excess` below, at `level`, in need of 30 pages."""
    host = still_host(len(excess))
    st = host.state
    for v, (vm, above) in enumerate(excess.items()):
        fill(host, v, range(200))
        row = row_of(host, vm)
        row.target = 200 - above
        row.driver, row.booted = (drivers or {}).get(vm, True), 1
        row.balloon_max = 128
    st.host[0].level = level
    st.host[0].goal = counter(host, "free") + 30
    return host


def paged(host: Host) -> dict[int, int]:
    tick.page_out(host.state)
    invariants.check(host.state)
    return {int(vm): int(row_of(host, vm).swapped) for vm in host.vm_ids()}


def test_soft_pages_only_vms_that_cannot_balloon() -> None:
    """Absent drivers, guests that still boot, and balloons at their maximum."""
    assert paged(pressed(SOFT, {1: 90, 2: 20}, {2: False})) == {1: 0, 2: 20}
    host = pressed(SOFT, {1: 90, 2: 20, 3: 5})
    row_of(host, 2).booted = 0
    row_of(host, 3).balloon_max = 0
    assert paged(host) == {1: 0, 2: 20, 3: 5}


def test_hard_pages_every_vm_above_its_target_by_excess() -> None:
    assert paged(pressed(HARD, {1: 10, 2: 25, 3: 0})) == {1: 5, 2: 25, 3: 0}


def test_ties_of_excess_go_to_the_lower_id() -> None:
    assert paged(pressed(HARD, {1: 20, 2: 20, 3: 20})) == {1: 20, 2: 10, 3: 0}


def test_what_a_balloon_gave_in_this_step_is_not_paged_again() -> None:
    host = pressed(HARD, {1: 20, 2: 15})
    row_of(host, 1).gave = 12
    assert paged(host) == {1: 8, 2: 15}


def test_no_vm_is_paged_below_its_target() -> None:
    assert paged(pressed(LOW, {1: 10, 2: 5})) == {1: 10, 2: 5}


def test_low_blocks_exactly_the_vms_above_their_target() -> None:
    """Target A11: every VM above its target is blocked, the others run; exact [P 6.3]."""
    host = pressed(LOW, {1: 10, 2: 0, 3: -20})
    tick.block(host.state)
    assert host.state.vms["blocked"][:3].tolist() == [1, 0, 0]
    host.state.host[0].level = HARD
    tick.block(host.state)
    assert host.state.vms["blocked"][:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("growth", [MIB // 4, 1024 * MIB])
def test_a_reservation_is_there_whenever_the_vm_grows_into_it(growth: int) -> None:
    """Two VMs, all of their memory reserved and all of the host's taken by them: the host ends in
    LOW, with no frame free, and both have everything and run at full speed. Exact."""
    host = make_host(64 * MIB)
    busy = make_phase(active=32 * MIB, memory=32 * MIB, growth=growth)
    options: dict[str, Any] = {"reservation": 32 * MIB, "image": make_image(MIB)}
    power_on(host, *[make_spec(vm, 32 * MIB, busy, **options) for vm in (1, 2)])
    for _ in range(12):
        run(host, 15 * SECOND)
        assert all(row_of(host, vm).blocked == 0 for vm in (1, 2))
    assert (counter(host, "level"), counter(host, "free")) == (LOW, 0)
    before = [int(row_of(host, vm).touches) for vm in (1, 2)]
    run(host, 10 * SECOND)
    assert [alloc_slots(host, vm) for vm in (1, 2)] == [32 * N_PAGES] * 2
    after = [int(row_of(host, vm).touches) for vm in (1, 2)]
    assert (np.array(after) - before).tolist() == [10 * 32 * N_PAGES] * 2
    assert counter(host, "swap_outs") == 0


def test_swap_space_keeps_what_it_held_when_the_reservation_was_raised() -> None:
    """All of 4 MiB may be swapped and is; then 3 MiB are reserved. Nothing more is written, the
    space shrinks to what it holds, and the invariant allows no page beyond."""
    host = make_host()
    power_on(host, make_spec(1, 4 * MIB, image=make_image(4 * MIB)))
    run_until_booted(host)
    st, row = host.state, row_of(host, 1)
    st.host[0].swap_io_left = 1 << 40
    assert swap.page_out_vm(st, 0, 2 * N_PAGES, 1 << 40) == 2 * N_PAGES
    host.set_vm(host.vm_ids()[0], reservation=3 * MIB)
    assert (row.swap_space, row.swapped) == (2 * N_PAGES, 2 * N_PAGES)
    assert swap.page_out_vm(st, 0, 100, 1 << 40) == 0
    invariants.check(st)
    host.set_vm(host.vm_ids()[0], reservation=MIB)
    assert row.swap_space == 3 * N_PAGES
    assert swap.page_out_vm(st, 0, 2 * N_PAGES, 1 << 40) == N_PAGES


def test_a_run_under_pressure_keeps_every_reservation() -> None:
    """Paging alone (no drivers), three guests that want twice what there is. VM 1 never loses what
    it has touched of its 30 MiB; the rest of M goes 2:1 by shares, 5147 and 2573 slots. Free memory
    goes round: together they have what they are due, and of what is kept free what they took in
    the last step."""
    host = make_host(reclaim={"high": 60})
    busy = make_phase(active=40 * MIB, memory=40 * MIB, locality="sweep")
    options: dict[str, Any] = {"balloon": "absent"}
    power_on(
        host,
        make_spec(1, 40 * MIB, busy, reservation=30 * MIB, **options),
        make_spec(2, 40 * MIB, busy, **options),
        make_spec(3, 40 * MIB, busy, shares="low", **options),
    )
    reserved = 30 * N_PAGES
    rest = counter(host, "machine") - counter(host, "goal") - reserved
    assert (2 * rest // 3 + 1, rest // 3) == (5147, 2573)
    most = 0
    for second in range(110):  # then the first estimate of what VM 3 uses comes
        run(host, SECOND)
        alloc = [alloc_slots(host, vm) for vm in (1, 2, 3)]
        most = max(most, alloc[0])
        assert alloc[0] >= min(most, reserved)
        if second >= 60:
            due = [reserved, 5147, 2573]
            targets = [int(row_of(host, vm).target) for vm in (1, 2, 3)]
            assert targets == pytest.approx(due, rel=0.01)
            above = [have - owed for have, owed in zip(alloc, targets, strict=True)]
            assert min(above) >= 0 and sum(above) <= counter(host, "goal")
    assert most > reserved


@pytest.mark.parametrize("cluster", [1, 7])
def test_pages_are_written_in_clusters(cluster: int) -> None:
    """30 operations a second write 30 clusters: [P 3.3] the swap device takes that many pages a
    second, while more are due. Exact, from step to step."""
    swap = Disk(latency=100_000, iops=30, write_cluster=cluster)
    host = make_host(64 * MIB, reserve=44 * MIB, swap=swap)
    busy = make_phase(active=MIB, memory=40 * MIB, growth=8 * MIB)
    power_on(host, make_spec(1, 40 * MIB, busy, balloon="absent"))
    run(host, 4 * SECOND)
    for _ in range(5):
        before = counter(host, "swap_outs")
        run(host, SECOND)
        assert counter(host, "swap_outs") - before == 30 * cluster
