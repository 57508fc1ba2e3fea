"""The pipeline of a host: how often mechanisms run, exact rates over a long time, fair order, and
that a run does not depend on how it is cut into calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_builders import (
    MINUTE,
    SECOND,
    UNIQUE_CACHE,
    arrays_of,
    counter,
    in_slots,
    make_host,
    make_image,
    make_phase,
    make_rows,
    make_spec,
    order_of,
    power_on,
    row_of,
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim import rng, tick
from hostsim.config import Disk
from hostsim.host import Host
from hostsim.program import KEEP
from hostsim.state import SOFT, due
from hostsim.units import MIB

# How often


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(0, 200))
def test_a_mechanism_runs_as_often_as_its_period_fits(period_ms: int, dt_ms: int, n: int) -> None:
    """floor(t / p) - floor((t - dt) / p) times in the step that ends at t; over all steps exactly
    floor(t / p)."""
    host = make_host(tick_ms=dt_ms)
    row, total = host.state.host[0], 0
    for at in range(1, n + 1):
        row.now_ms = at * dt_ms
        times = due(host.state, period_ms)
        assert times == at * dt_ms // period_ms - (at - 1) * dt_ms // period_ms
        total += times
    assert total == n * dt_ms // period_ms


def retargets(tick_ms: int, period_ms: int, duration_ms: int) -> list[int]:
    """Times in ms at which targets were recomputed after the first step."""
    host = make_host(tick_ms=tick_ms, allocation={"balance_period": period_ms})
    power_on(host, make_spec(1, MIB))
    host.advance(tick_ms)
    found = []
    while host.state.host[0].now_ms < duration_ms:
        row_of(host, 1).touched_before = -1
        host.advance(tick_ms)
        if row_of(host, 1).touched_before >= 0:
            found.append(counter(host, "now_ms"))
    return found


@pytest.mark.parametrize(
    ("tick_ms", "period_ms", "expected"),
    [
        (1000, 15_000, [15_000, 30_000, 45_000, 60_000]),
        (7000, 15_000, [21_000, 35_000, 49_000, 63_000]),
        (20_000, 15_000, [40_000, 60_000]),
        (100, 1000, [second * 1000 for second in range(1, 61)]),
    ],
)
def test_targets_are_balanced_in_the_steps_in_which_the_period_ends(
    tick_ms: int, period_ms: int, expected: list[int]
) -> None:
    assert retargets(tick_ms, period_ms, 60_000) == expected


def test_targets_are_also_recomputed_when_a_vm_comes_goes_or_changes() -> None:
    """At once, not at the next balance period (reference, section 1.9)."""
    host = make_host()
    power_on(host, *[make_spec(vm, 4 * MIB) for vm in (1, 2)])
    run(host, 2 * SECOND)
    first, second = host.vm_ids()
    host.set_vm(first, limit=MIB)
    run(host, SECOND)
    assert int(row_of(host, first).target) == in_slots(MIB)
    row_of(host, first).touched_before = -1
    host.power_off(second)
    run(host, SECOND)
    assert int(row_of(host, first).touched_before) >= 0


# Exact rates


def ballooning(tick_ms: int, **options: Any) -> Host:
    """A VM of 56 MiB that is to give all but one: the driver's rate is the only bound."""
    host = make_host(
        tick_ms=tick_ms,
        allocation={"claim": "configured"},
        balloon={"maximum": 1000} | options,
    )
    power_on(host, make_spec(1, 56 * MIB, limit=MIB))
    return host


@pytest.mark.parametrize(("tick_ms", "poll_ms"), [(1000, 1000), (1000, 3000), (2500, 1000)])
def test_a_driver_moves_at_its_polls_by_what_their_time_allows(tick_ms: int, poll_ms: int) -> None:
    """4 MiB a second: 1024 pages a second of polls, in the steps in which a poll is due. Exact."""
    host = ballooning(tick_ms, poll=poll_ms)
    run(host, 3 * tick_ms)
    for _ in range(2):
        before, start = int(row_of(host, 1).ballooned), counter(host, "now_ms")
        run(host, tick_ms)
        polls = (start + tick_ms) // poll_ms - start // poll_ms
        assert row_of(host, 1).ballooned - before == polls * poll_ms * 1024 // 1000


def test_a_balloon_rate_below_a_page_a_poll_is_kept_exactly() -> None:
    """0.4 pages a second for ten minutes of polls: 240 pages; then two minutes back at 0.8: 96."""
    host = ballooning(1000, inflate=4096 * 2 // 5, deflate=4096 * 4 // 5)
    run(host, 10 * SECOND)
    row = row_of(host, 1)
    start = int(row.ballooned)
    run(host, 10 * MINUTE)
    assert row.ballooned - start == pytest.approx(240, abs=1)
    host.set_vm(host.vm_ids()[0], limit=56 * MIB)
    start = int(row.ballooned)
    run(host, 2 * MINUTE)
    assert start - row.ballooned == pytest.approx(96, abs=1)


@pytest.mark.parametrize(("tick_ms", "rate"), [(1000, 7), (300, 7), (300, 1), (7000, 50)])
def test_scan_rates_are_exact_over_a_long_time(tick_ms: int, rate: int) -> None:
    """Two VMs in memory, `rate` pages a second each: floor(rate x time) in all, to two pages."""
    sharing = {"enabled": True, "scan_pages_per_s_vm": rate, "scan_pages_per_s_total": 1000}
    host = make_host(tick_ms=tick_ms, sharing=sharing)
    image = make_image(4 * MIB)
    power_on(host, *[make_spec(vm, 4 * MIB, image=image) for vm in (1, 2)])
    run(host, 21 * SECOND)
    start = counter(host, "scanned")
    run(host, 42 * MINUTE)
    assert counter(host, "scanned") - start == pytest.approx(2 * rate * 42 * 60, abs=2)


def test_the_hosts_scan_rate_bounds_the_sum_over_vms() -> None:
    """Ten VMs of 50 pages a second on a host of 200 [ADM2 p355]: 200. Exact."""
    sharing = {"enabled": True, "scan_pages_per_s_vm": 50, "scan_pages_per_s_total": 200}
    host = make_host(sharing=sharing)
    image = make_image(4 * MIB)
    power_on(host, *[make_spec(vm, 4 * MIB, image=image) for vm in range(10)])
    run(host, 10 * SECOND)
    host.measure()
    run(host, MINUTE)
    assert counter(host, "scanned") == 60 * 200


def test_a_scan_time_sets_the_rate_by_the_vms_size() -> None:
    """60 minutes for a VM of 1024 slots, under 1024 pages a second: one pass an hour, 1024 scans;
    for one of 4096 slots 4096. Rates are whole thousandths of a page: within 0.2 %."""
    sharing = {
        "enabled": True,
        "scan_pages_per_s_vm": 1024,
        "scan_pages_per_s_total": 16_384,
        "scan_time": 60 * MINUTE,
    }
    for size in (4 * MIB, 16 * MIB):
        host = make_host(sharing=sharing)
        power_on(host, make_spec(1, size, image=make_image(size)))
        run(host, 10 * SECOND)
        host.measure()
        run(host, 60 * MINUTE)
        assert counter(host, "scanned") == pytest.approx(in_slots(size), rel=0.002)


@settings(max_examples=40)
@given(
    st.integers(1, 10**8), st.integers(1, 60_000), st.integers(1, 300), st.sampled_from([1, 3, 512])
)
def test_a_devices_budget_is_exact_over_a_long_time(
    iops: int, dt_ms: int, n: int, sample: int
) -> None:
    """Whole operations a step; the fraction carries, so n steps have floor(n x rate x dt), also
    where a slot stands for many pages."""
    host = make_host(tick_ms=dt_ms, sample=sample, swap={"latency": 1000, "iops": iops})
    total = 0
    for _ in range(n):
        tick.refill_devices(host.state)
        total += counter(host, "swap_io_left")
    assert total == n * iops * dt_ms // (1000 * sample)


def test_a_slow_scan_keeps_its_rate_under_coarse_sampling() -> None:
    """50 pages/s for two hours are 360 000 pages: 703.1 slots of 512. Exact, with the carry."""
    sharing = {"enabled": True, "scan_pages_per_s_vm": 50, "scan_pages_per_s_total": 50}
    host = make_host(64 * MIB, sample=512, sharing=sharing)
    power_on(host, make_spec(1, 32 * MIB, image=make_image(32 * MIB)))
    run(host, MINUTE)
    host.measure()
    before = row_of(host, 1).scan_carry
    run(host, 120 * MINUTE)
    due = int(before) + 50 * 1000 * 120 * MINUTE
    assert counter(host, "scanned") == due // (512 * 10**6) == pytest.approx(703, abs=1)


def test_slow_growth_and_balloons_keep_their_rates_under_coarse_sampling() -> None:
    """A guest that grows by 50 pages/s, then a balloon of as much, at 512 pages a slot: after n
    seconds 50 n / 512 slots, rounded down, at every n. Exact."""
    rate = 50 * 4096
    claims = {"claim": "configured"}
    host = make_host(256 * MIB, sample=512, allocation=claims, balloon={"inflate": rate})
    phases = make_phase(memory=128 * MIB, growth=rate)
    power_on(host, make_spec(1, 160 * MIB, phases, image=make_image(8 * MIB)))
    run(host, SECOND)
    for seconds in range(1, 301):
        run(host, SECOND)
        assert row_of(host, 1).brk == 4 + 50 * seconds // 512
    host.set_vm(host.vm_ids()[0], limit=32 * MIB)
    carry = int(row_of(host, 1).inflate_carry) % (512 * 10**6)
    for seconds in range(1, 301):
        run(host, SECOND)
        due = (carry + 50 * 10**6 * seconds) // (512 * 10**6)
        assert row_of(host, 1).ballooned == due


def test_operations_that_a_device_did_not_use_are_lost() -> None:
    """A swap device and a guest disk of 30 a second stand idle for ten minutes; then they have 30
    for the next second, not 18 000. Exact."""
    host = make_host(swap={"latency": 1000, "iops": 30})
    image = make_image(MIB, growth=UNIQUE_CACHE, disk={"latency": 1000, "iops": 30})
    power_on(host, make_spec(1, 4 * MIB, image=image))
    run(host, 10 * MINUTE)
    assert (counter(host, "swap_io_left"), row_of(host, 1).disk_io_left) == (30, 30)
    run(host, SECOND)
    assert (counter(host, "swap_io_left"), row_of(host, 1).disk_io_left) == (30, 30)


# Order


def test_who_is_served_first_is_drawn_for_each_step() -> None:
    """Three VMs grow by 1024 pages a step, but only 100 frames are free in each: the VM at the
    drawn position of the id order gets them all. Exact; of 30 steps each is first in 10 +- 4 sd."""
    host = make_host(tick_ms=10)
    grow = make_phase(memory=16 * MIB, growth=400 * MIB)
    power_on(host, *[make_spec(vm, 16 * MIB, grow, image=make_image(MIB)) for vm in (9, 2, 5)])
    run(host, SECOND + 10)
    assert order_of(host) == [2, 5, 9]
    row, got, drawn = host.state.host[0], [], []
    for _ in range(30):
        before = {vm: int(row_of(host, vm).resident) for vm in (2, 5, 9)}
        row.free = 100
        drawn.append(
            [2, 5, 9][rng.below(np.uint64(rng.stream(row.seed, rng.ORDER, 0, row.tick)), 0, 3)]
        )
        host.advance(10)
        got += [vm for vm in (2, 5, 9) if row_of(host, vm).resident - before[vm] == 100]
    assert got == drawn
    assert all(1 <= got.count(vm) <= 20 for vm in (2, 5, 9))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_equal_vms_on_a_thrashing_host_suffer_equally(n: int) -> None:
    """No driver, 80 MiB wanted of 64: the host pages all the time, and frames are there for the
    first. Taking turns, every second VM had none in ten minutes; drawn, their work differs by
    chance: within 20 % of the mean. (No idle tax: what one VM gains it would see as active.)"""
    untaxed = {"idle_tax": 0}
    host = make_host(64 * MIB, swap=Disk(latency=100_000, iops=4000), allocation=untaxed)
    busy = make_phase(active=80 * MIB // n, memory=80 * MIB // n)
    power_on(host, *[make_spec(vm, 80 * MIB // n, busy, balloon="absent") for vm in range(n)])
    run(host, 10 * MINUTE)
    done = np.array([row_of(host, vm).touches for vm in range(n)])
    assert host.state.level_ms[SOFT:].sum() > 9 * MINUTE
    assert np.abs(done / done.mean() - 1).max() < 0.2


# Cuts


def busy_host(tick_ms: int = 1000, ids: tuple[int, ...] = (1, 2, 3, 4)) -> Host:
    """Sharing, ballooning, swapping, phases and traces, twice overcommitted."""
    sharing = {"enabled": True, "scan_pages_per_s_vm": 500, "scan_pages_per_s_total": 1500}
    host = make_host(64 * MIB, tick_ms=tick_ms, sharing=sharing, cpus=2)
    phases = [
        make_phase(memory=mb * MIB, active=4 * MIB, growth=2 * MIB, duration=40 * SECOND, cpu=700)
        for mb in (8, 30)
    ]
    trace = make_rows((50, KEEP, 4 * MIB), (20, KEEP, 24 * MIB), (60, KEEP, MIB), cpu=600)
    specs = {
        1: make_spec(1, 32 * MIB, phases, repeat=True),
        2: make_spec(2, 32 * MIB, trace),
        3: make_spec(3, 32 * MIB, phases, repeat=True, balloon="absent"),
        4: make_spec(4, 32 * MIB, phases, repeat=True, image=make_image(MIB, os="windows")),
    }
    power_on(host, *[specs[vm] for vm in ids])
    return host


@pytest.mark.parametrize("piece_s", [1, 10, 30, 60])
def test_a_run_does_not_depend_on_how_it_is_cut(piece_s: int) -> None:
    """Four minutes at once, and in pieces: every array of the state is the same byte for byte."""
    whole, cut = busy_host(), busy_host()
    changes = run(whole, 4 * MINUTE)
    pieces = [run(cut, piece_s * SECOND) for _ in range(240 // piece_s)]
    assert arrays_of(whole.state) == arrays_of(cut.state)
    assert np.concatenate(pieces).tolist() == changes.tolist()
    assert len(changes) >= 3
    assert counter(whole, "swap_outs") > 0 < counter(whole, "inflated")


def test_measuring_does_not_change_the_run() -> None:
    """Only accounts start again: pages, contents, targets and clocks stay as without it."""
    alone, watched = busy_host(), busy_host()
    run(alone, 4 * MINUTE)
    for _ in range(24):
        run(watched, 10 * SECOND)
        watched.measure()
    one, other = arrays_of(alone.state), arrays_of(watched.state)
    for name in ("page", "content", "indexed", "sampled", "stale"):
        assert one[name] == other[name], name
    for name in ("target", "ballooned", "swapped", "clock_ns", "slow", "backlog_ns", "serial"):
        assert (alone.state.vms[name] == watched.state.vms[name]).all(), name


def test_the_order_of_powering_on_does_not_matter() -> None:
    """Same VMs, same tick, three orders: every row that a report sees is the same."""
    reports = []
    for ids in ((1, 2, 3, 4), (4, 3, 2, 1), (3, 1, 4, 2)):
        host = busy_host(ids=ids)
        run(host, 4 * MINUTE)
        reports.append([rows.tobytes() for rows in host.measure()])
    assert reports[0] == reports[1] == reports[2]


def test_a_host_without_vms_only_lets_time_pass() -> None:
    host = make_host()
    assert run(host, 10 * MINUTE).size == 0
    assert counter(host, "now_ms") == 10 * MINUTE
    assert counter(host, "tick") == 600
    assert counter(host, "free") == counter(host, "machine") == in_slots(64 * MIB)
    assert host.state.level_ms.tolist() == [10 * MINUTE, 0, 0, 0, 0]
