"""What a guest's program does in a step: how many pages it touches, which, and how many it writes;
how its active set moves; which row of the program is in force; what lost time does to all that.

Touches are seen from outside: accessed bits are cleared before a step and read after it.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from host_builders import (
    MINUTE,
    SECOND,
    make_host,
    make_image,
    make_phase,
    make_rows,
    make_spec,
    power_on,
    row_of,
    run,
    run_until_booted,
)

from hostsim import invariants, touch
from hostsim.guest_config import Phase, Workload
from hostsim.host import Host
from hostsim.program import KEEP, LOCALITIES, Rows, from_workload
from hostsim.state import ACCESSED, COW, SWAP_IN, Array
from hostsim.units import MIB, PAGE_SIZE

N_PAGES = MIB // PAGE_SIZE
NS_PER_S = 1_000_000_000


def working_host(program: Any, size: int = 2 * MIB, tick_ms: int = SECOND, **options: Any) -> Host:
    """One booted VM whose memory no sampler looks at."""
    host = make_host(tick_ms=tick_ms, sampling={"period": 10_000 * MINUTE})
    power_on(host, make_spec(1, size, program, image=make_image(size), **options))
    run_until_booted(host)
    return host


def touched(host: Host) -> tuple[Array, Array]:
    """One step. PPNs touched in it, ascending, and those written."""
    st = host.state
    st.page[:] &= ~np.uint8(ACCESSED)
    before = st.content.copy()
    host.advance(host.tick_ms)
    return np.flatnonzero(st.page & ACCESSED), np.flatnonzero(st.content != before)


def single_touches(host: Host, n: int) -> tuple[Array, int]:
    """The pages of `n` steps of one touch each, and how many were written."""
    pages = np.zeros(n, np.int64)
    n_written = 0
    for i in range(n):
        (pages[i],), written = touched(host)
        assert set(written) <= {pages[i]}
        n_written += len(written)
    invariants.check(host.state)
    return pages, n_written


def chi_square(counts: Array, expected: Array) -> float:
    """In standard deviations from its mean."""
    freedom = len(counts) - 1
    value = float(((counts - expected) ** 2 / expected).sum())
    return abs(value - freedom) / (2 * freedom) ** 0.5


# How many


@pytest.mark.parametrize("tick_ms", [100, 1000, 7000])
@pytest.mark.parametrize(("active", "interval"), [(256, 1000), (100, 3000), (7, 5000), (1, 7000)])
def test_touches_come_at_the_programs_rate(tick_ms: int, active: int, interval: int) -> None:
    """active / interval, exact over seven minutes whatever the step: remainders carry."""
    phase = make_phase(active=active * PAGE_SIZE, touch_interval=interval)
    host = working_host(phase, tick_ms=tick_ms)
    host.measure()
    before = int(row_of(host, 1).touch_carry)
    run(host, 7 * MINUTE)
    total_us = before + active * 7 * MINUTE * 1000
    assert row_of(host, 1).touches == total_us // (interval * 1000)


def test_a_program_without_active_memory_touches_nothing() -> None:
    host = working_host(make_phase(active=0))
    assert [len(touched(host)[0]) for _ in range(10)] == [0] * 10


# Which


def test_uniform_touches_are_uniform_over_the_active_set() -> None:
    """8192 touches of 128 pages, a quarter of the VM's: chi-square within 5 sd."""
    host = working_host(make_phase(active=128 * PAGE_SIZE, touch_interval=128 * SECOND))
    window = int(row_of(host, 1).window)
    pages, _ = single_touches(host, 8192)
    counts = np.bincount(pages - window, minlength=128)
    assert len(counts) == 128
    assert chi_square(counts, np.full(128, 8192 / 128)) < 5


def test_zipf_touches_halve_with_every_doubling_of_rank() -> None:
    """127 pages are seven octaves of equal weight, uniform inside; the hottest page is the last."""
    size = 127 * PAGE_SIZE
    host = working_host(make_phase(active=size, touch_interval=127 * SECOND, locality="zipf"))
    pages, _ = single_touches(host, 8000)
    ranks = int(row_of(host, 1).window) + 126 - pages
    expected = np.concatenate([np.full(1 << o, 8000 / 7 / (1 << o)) for o in range(7)])
    assert chi_square(np.bincount(ranks, minlength=127), expected) < 5


@pytest.mark.parametrize(("n", "weights"), [(1, [1]), (2, [2, 1]), (5, [4, 2, 2, 1, 1])])
def test_a_partial_octave_has_its_part_of_the_weight(n: int, weights: list[int]) -> None:
    """[0], [1, 2], and of [3..6] what there is, at the weight a page would have in the whole."""
    words = np.random.default_rng(3).integers(0, 1 << 64, 20_000, np.uint64, endpoint=False)
    counts = np.bincount(
        [touch.zipf_rank(word, n, touch.octaves_of(n)) for word in words], minlength=n
    )
    assert len(counts) == n
    expected = np.array(weights, float) * 20_000 / sum(weights)
    assert (abs(counts - expected) <= 5 * expected**0.5).all()


def test_a_sweep_touches_pages_in_turn() -> None:
    """100 active pages, 16 a step: after 100 steps each was touched 16 times, in order."""
    size = 100 * PAGE_SIZE
    host = working_host(make_phase(active=size, touch_interval=6250, locality="sweep"))
    row = row_of(host, 1)
    for _ in range(100):
        start = int(row.sweep)
        expected = sorted((start + i) % 100 for i in range(16))
        assert (touched(host)[0] - int(row.window)).tolist() == expected


@pytest.mark.parametrize("writes", [0, 300, 1000])
def test_a_part_of_the_touches_writes(writes: int) -> None:
    """Within 5 sd of the binomial, and exact at none and all."""
    size = 128 * PAGE_SIZE
    host = working_host(make_phase(active=size, touch_interval=128 * SECOND, writes=writes))
    _, n_written = single_touches(host, 2000)
    sd = (2000 * writes / 1000 * (1 - writes / 1000)) ** 0.5
    assert abs(n_written - 2 * writes) <= 5 * sd


# The active set


def test_the_active_set_lies_last_after_boot() -> None:
    """So that drift finds pages not used before (memory in use is left as it stands)."""
    host = make_host()
    image = make_image(4 * MIB)
    power_on(host, make_spec(1, 16 * MIB, make_phase(active=MIB), image=image))
    run_until_booted(host)
    assert row_of(host, 1).window == 3 * N_PAGES


@pytest.mark.parametrize("tick_ms", [1000, 60_000])
def test_drift_moves_its_part_of_the_active_set_each_hour(tick_ms: int) -> None:
    """5 % of 1000 pages an hour: 150 pages in three, exact, and all are new to the guest."""
    phase = make_phase(active=1000 * PAGE_SIZE, drift=50, locality="sweep", touch_interval=60_000)
    host = make_host(tick_ms=tick_ms)
    power_on(host, make_spec(1, 16 * MIB, phase, image=make_image(8 * MIB)))
    run_until_booted(host)
    row = row_of(host, 1)
    window, alloc, carry = int(row.window), int(row.resident), int(row.drift_carry)
    run(host, 3 * 60 * MINUTE)
    moved = int(row.window) - window
    assert moved * 3_600_000_000 + int(row.drift_carry) - carry == 150 * 3_600_000_000
    run(host, MINUTE)
    assert moved <= int(row.resident) - alloc <= moved + 1


def test_an_active_set_that_reaches_the_end_goes_on_at_the_start() -> None:
    """In a VM all of whose memory is in use the window wraps round, and skips the kernel."""
    host = working_host(make_phase(active=64 * PAGE_SIZE, locality="sweep", touch_interval=SECOND))
    row_of(host, 1).window = 512 - 16
    pages, _ = touched(host)
    assert pages.tolist() == [*range(48), *range(512 - 16, 512)]


def test_memory_in_use_grows_and_shrinks_at_the_programs_rate() -> None:
    """1 MiB a second up to 6 MiB, then back to 3: the pages used last are freed first."""
    up = make_phase(memory=6 * MIB, growth=MIB, duration=10 * SECOND)
    down = make_phase(memory=3 * MIB, growth=MIB)
    host = make_host()
    power_on(host, make_spec(1, 8 * MIB, [up, down], image=make_image(MIB)))
    run_until_booted(host)
    row, seen = row_of(host, 1), []
    for _ in range(15):
        run(host, SECOND)
        seen.append(int(row.brk) / N_PAGES)
    assert [mib for mib, _ in groupby(seen)] == [2, 3, 4, 5, 6, 5, 4, 3]
    assert row.guest_free == 5 * N_PAGES


# Which row is in force


def active_of(host: Host, seconds: int) -> list[int]:
    """Active MiB in each of the next seconds."""
    seen = []
    for _ in range(seconds):
        run(host, SECOND)
        seen.append(int(row_of(host, 1).active) // N_PAGES)
    return seen


def phases(*pairs: tuple[int, int]) -> list[Phase]:
    """(seconds, active MiB) each."""
    return [make_phase(duration=s * SECOND, active=mib * MIB) for s, mib in pairs]


def test_phases_follow_each_other_and_repeat() -> None:
    host = working_host(phases((3, 1), (2, 2)), repeat=True)
    seen = active_of(host, 20)
    start = seen.index(2)
    assert seen[start : start + 15] == [2, 2, 1, 1, 1] * 3


def test_the_last_phase_goes_on_where_nothing_repeats() -> None:
    host = working_host(phases((3, 1), (2, 2), (2, 1)), repeat=False)
    seen = active_of(host, 20)
    start = seen.index(2)
    assert seen[start:] == [2, 2] + [1] * (18 - start)


def test_a_staggered_vm_enters_the_cycle_later() -> None:
    first = active_of(working_host(phases((3, 1), (2, 2)), repeat=True), 12)
    later = working_host(phases((3, 1), (2, 2)), repeat=True, offset_ms=4 * SECOND)
    assert active_of(later, 8) == first[4:]


def test_a_trace_runs_on_the_wall_clock_from_power_on() -> None:
    """Its first rows pass while the guest boots, and its time does not stand still later."""
    rows = make_rows((4, KEEP, MIB), (3, KEEP, 2 * MIB), (2, KEEP, 3 * MIB))
    host = make_host()
    run(host, 5 * SECOND)
    power_on(host, make_spec(1, 4 * MIB, rows, image=make_image(4 * MIB)))
    run(host, 3 * SECOND)
    assert (row_of(host, 1).booted, row_of(host, 1).active) == (1, N_PAGES)
    host.state.debts[0, SWAP_IN] = 2_500_000_000
    assert active_of(host, 8) == [1, 1, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("tick_ms", [1000, 5000])
@pytest.mark.parametrize("on_the_wall", [True, False])
def test_the_work_of_a_program_does_not_depend_on_the_step(tick_ms: int, on_the_wall: bool) -> None:
    """Ten seconds each of 200, 400 and 100 touches a second, then none, after a boot of 5 s that a
    trace does not wait for. A step does the work of the row in which it starts. Exact."""
    parts = [(10, 200), (10, 400), (10, 100), (1000, 0)]
    wall = make_rows(*((s, KEEP, n * PAGE_SIZE) for s, n in parts))
    own = [make_phase(duration=s * SECOND, active=n * PAGE_SIZE) for s, n in parts]
    host = make_host(tick_ms=tick_ms)
    run(host, 15 * SECOND)
    image = make_image(2 * MIB, boot=5 * SECOND)
    power_on(host, make_spec(1, 2 * MIB, wall if on_the_wall else own, image=image))
    run(host, 20 * SECOND)
    first = 5 * 200 + 10 * 400 if on_the_wall else 10 * 200 + 5 * 400
    assert row_of(host, 1).touches == first
    run(host, 40 * SECOND)
    assert row_of(host, 1).touches == (5 if on_the_wall else 10) * 200 + 10 * 400 + 10 * 100


def test_phases_become_rows_in_pages() -> None:
    program = Workload(
        phases=(
            Phase(duration=2000, active=("permille", 250), memory=("permille", 500), growth=MIB),
            Phase(duration=3000, active=("bytes", 3 * MIB), locality="zipf", writes=10, cpu=700),
        )
    )
    rows: Rows = from_workload(program, 1000)
    assert rows["until_ms"].tolist() == [2000, 5000]
    assert rows["active_pages"].tolist() == [250, 768]
    assert rows["memory_pages"].tolist() == [500, KEEP]
    assert rows["growth_pages_per_s"].tolist() == [256, 4096]
    assert [LOCALITIES[row["locality"]] for row in rows] == ["uniform", "zipf"]
    assert rows["cpu_permille"].tolist() == [200, 700]


def test_no_phase_wants_more_pages_than_the_vm_has() -> None:
    phase = Phase(duration=1000, active=("bytes", 5 * MIB), memory=("bytes", 9 * MIB))
    row = from_workload(Workload(phases=(phase,)), 1000)[0]
    assert (row["active_pages"], row["memory_pages"]) == (1000, 1000)


# The closed loop


def test_phases_wait_for_a_guest_that_loses_time() -> None:
    """Three seconds lost: the change of phase comes three seconds later, and the work with it."""
    undisturbed = active_of(working_host(phases((6, 1), (9, 2))), 12)
    host = working_host(phases((6, 1), (9, 2)))
    host.state.debts[0, SWAP_IN] = 3 * NS_PER_S
    assert active_of(host, 12)[3:] == undisturbed[:9]
    assert 4 <= undisturbed.index(2) <= 6


def test_a_guests_clock_is_powered_on_time_less_time_lost() -> None:
    host = working_host(make_phase(active=MIB))
    host.measure()
    row = row_of(host, 1)
    before = int(row.clock_ns)
    host.state.debts[0, [SWAP_IN, COW]] = 3_456_789_000, 12
    run(host, 20 * SECOND)
    assert row.on_ns == 20 * NS_PER_S
    assert host.state.lost[0, [SWAP_IN, COW]].tolist() == [3_456_789_000, 12]
    assert host.state.lost[0].sum() == 3_456_789_012
    assert row.clock_ns - before == 20 * NS_PER_S - 3_456_789_012


def test_half_a_step_lost_is_half_the_touches_lost() -> None:
    """On the VM's own clock the work of lost time comes when the clock gets there."""
    host = working_host(make_phase(active=200 * PAGE_SIZE))
    host.measure()
    host.state.debts[0, SWAP_IN] = NS_PER_S // 2
    run(host, SECOND)
    assert row_of(host, 1).touches == 100
    run(host, SECOND)
    assert row_of(host, 1).touches == 300


def test_a_trace_works_off_what_it_missed_one_step_at_a_time() -> None:
    """Five seconds lost: demand goes on, the backlog is five steps, five double steps end it."""
    host = working_host(make_rows((1000, KEEP, 200 * PAGE_SIZE)))
    host.measure()
    row = row_of(host, 1)
    host.state.debts[0, SWAP_IN] = 5 * NS_PER_S
    done, backlog = [0], []
    for _ in range(12):
        run(host, SECOND)
        done.append(int(row.touches))
        backlog.append(int(row.backlog_ns) // NS_PER_S)
    assert np.diff(done).tolist() == [0] * 5 + [400] * 5 + [200] * 2
    assert backlog == [1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 0, 0]
