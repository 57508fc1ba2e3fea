"""Reclamation states: thresholds, both readings, hysteresis, and what LOW does to a host's VMs."""

from __future__ import annotations

from typing import Any

import naive_policy
import numpy as np
import pytest
from host_builders import (
    MINUTE,
    SECOND,
    alloc_slots,
    counter,
    lost_ns,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
)
from hypothesis import given
from hypothesis import strategies as st

from hostsim import reclaim
from hostsim.config import HostConfig, Reclaim
from hostsim.host import Host
from hostsim.reclaim import Thresholds, blocks, may_page, minfree_bytes, next_level, thresholds
from hostsim.state import CLEAR, HARD, HIGH, LOW, SOFT
from hostsim.units import GIB, MIB, PAGE_SIZE

MEMORY = 100_000 * PAGE_SIZE
"""A host on which 1 % is 1000 slots."""

PERCENT = 1000


def step(at: Thresholds, level: int, free: int) -> int:
    down = (at.down_clear, at.down_soft, at.down_hard, at.down_low)
    return next_level(level, free, down, (at.up_high, at.up_clear, at.up_soft, at.up_hard))


def sweep(at: Thresholds, level: int, frees: range) -> tuple[int, list[tuple[int, int]]]:
    """The level after the sweep, and (free, level) of each change in it."""
    changes = []
    for free in frees:
        after = step(at, level, free)
        if after != level:
            changes.append((free, after))
        level = after
    return level, changes


# Target A10


def test_a10_levels_change_exactly_at_their_thresholds() -> None:
    """Free memory from 10 % to 0 and back, a slot at a time, reading (b): down below 4, 2 and 1 %,
    up strictly above 2, 4 and 6 %. Exact."""
    at = thresholds(Reclaim(), MEMORY, 1)
    level, falls = sweep(at, HIGH, range(10 * PERCENT, -1, -1))
    assert falls == [(3999, SOFT), (1999, HARD), (999, LOW)]
    level, rises = sweep(at, level, range(10 * PERCENT + 1))
    assert rises == [(2001, HARD), (4001, SOFT), (6001, HIGH)]


def test_a10_reading_a_enters_a_level_below_the_threshold_above_it() -> None:
    """Reading (a): down below 6, 4 and 2 %, up strictly above the same plus 0.5 %. Exact."""
    at = thresholds(Reclaim(reading="a"), MEMORY, 1)
    level, falls = sweep(at, HIGH, range(10 * PERCENT, -1, -1))
    assert falls == [(5999, SOFT), (3999, HARD), (1999, LOW)]
    level, rises = sweep(at, level, range(10 * PERCENT + 1))
    assert rises == [(2501, HARD), (4501, SOFT), (6501, HIGH)]


@pytest.mark.parametrize(
    ("config", "noise"),
    [(Reclaim(), 300), (Reclaim(reading="a"), 250), (Reclaim(reading="a", margin=6), 300)],
    ids=["b", "a", "a with 0.6 %"],
)
def test_a10_noise_does_not_make_levels_chatter(config: Reclaim, noise: int) -> None:
    """Free memory held at each of 0, 0.05 .. 10 % with uniform noise of +-0.3 %: once settled, 0
    changes in 500 steps, from whichever level it starts. Reading (a)'s margin of 0.5 % stands noise
    of +-0.25 %; +-0.3 % takes 0.6 %."""
    at = thresholds(config, MEMORY, 1)
    rng = np.random.default_rng(10)
    for base in range(0, 10 * PERCENT + 1, 50):
        for level in (HIGH, SOFT, HARD, LOW):
            frees = np.maximum(base + rng.integers(-noise, noise + 1, 1000), 0).tolist()
            for free in frees[:500]:
                level = step(at, level, free)
            settled = level
            for free in frees[500:]:
                level = step(at, level, free)
                assert level == settled, f"at {base / PERCENT} % free"


def test_a10_a_noisy_sweep_crosses_each_level_once() -> None:
    """10 % to 0 and back in 20 000 steps with +-0.3 % noise: three changes down, three up."""
    at = thresholds(Reclaim(), MEMORY, 1)
    rng = np.random.default_rng(11)
    way = np.concatenate([np.linspace(10_000, 0, 10_000), np.linspace(0, 10_000, 10_000)])
    level, changes = HIGH, []
    for free in np.maximum(way + rng.integers(-300, 301, len(way)), 0).astype(int).tolist():
        after = step(at, level, free)
        if after != level:
            changes.append(after)
        level = after
    assert changes == [SOFT, HARD, LOW, HARD, SOFT, HIGH]


def test_clear_is_entered_at_minfree_and_left_at_four_times_that() -> None:
    """ESXi 6: 100, 64, 32 and 16 % of minFree down, back above 400, 100, 64 and 32 %. Exact."""
    memory = 25_000 * PAGE_SIZE  # below 4 GiB: minFree is 6 %
    at = thresholds(Reclaim(**ESXI_6), memory, 1)
    level, falls = sweep(at, HIGH, range(10_000, -1, -1))
    assert falls == [(1499, CLEAR), (959, SOFT), (479, HARD), (239, LOW)]
    level, rises = sweep(at, level, range(10_001))
    assert rises == [(481, HARD), (961, SOFT), (1501, CLEAR), (6001, HIGH)]
    assert at.goal == 1501


def test_a_fall_may_skip_levels_and_a_rise_climbs_one_a_step() -> None:
    at = thresholds(Reclaim(), MEMORY, 1)
    assert step(at, HIGH, 0) == LOW
    assert step(at, HIGH, 1500) == HARD
    assert step(at, SOFT, 0) == LOW
    climbed = [LOW]
    for _ in range(4):
        climbed.append(step(at, climbed[-1], 100_000))
    assert climbed == [LOW, HARD, SOFT, HIGH, HIGH]


# Thresholds


@pytest.mark.parametrize(
    ("gib", "expected_mib", "quoted_mb"),
    [
        (4, 245.76, None),
        (12, 573.44, None),
        (28, 901.12, 899),
        (100, 1638.4, 1619),
        (128, 1925.12, 1925),
    ],
)
def test_a16_minfree_slides(gib: int, expected_mib: float, quoted_mb: int | None) -> None:
    """6 % of the first 4 GiB, 4 % of the next 8, 2 % of the next 16, 1 % of the rest: exact sums;
    within 1.5 % of what VMware quotes (reference, section 3.1)."""
    found = minfree_bytes(gib * GIB)
    assert found == int(expected_mib * MIB)
    if quoted_mb is not None:
        assert found / MIB == pytest.approx(quoted_mb, rel=0.015)


def test_a16_levels_are_64_32_and_16_percent_of_minfree() -> None:
    """A vSphere host of 28 GiB: 901.12 MiB, and 64, 32 and 16 % of it. Within one slot."""
    at = thresholds(HostConfig(memory=28 * GIB).reclaim, 28 * GIB, 1)
    minfree = 901.12 * 256
    assert at.goal == at.up_high + 1 == pytest.approx(minfree, abs=2)
    found = [at.down_soft, at.down_hard, at.down_low]
    assert found == pytest.approx([0.64 * minfree, 0.32 * minfree, 0.16 * minfree], abs=1)
    assert (at.up_soft, at.up_hard) == (at.down_soft, at.down_hard)


def test_the_margin_is_a_part_of_host_memory() -> None:
    at = thresholds(Reclaim(margin=3), MEMORY, 1)
    assert (at.goal, at.up_high, at.up_soft, at.up_hard) == (6301, 6300, 4300, 2300)
    assert (at.down_soft, at.down_hard, at.down_low) == (4000, 2000, 1000)


@given(
    st.integers(64 * MIB, 1 << 42),
    st.sampled_from([1, 16, 64]),
    st.sampled_from(["fixed", "sliding"]),
    st.sampled_from(["a", "b"]),
    st.none() | st.integers(0, 50),
    st.lists(st.integers(1, 1000), min_size=5, max_size=5, unique=True),
    st.booleans(),
)
def test_thresholds_and_levels_equal_those_of_the_twin(
    memory: int,
    sample: int,
    minfree: str,
    reading: str,
    margin: int | None,
    parts: list[int],
    has_clear: bool,
) -> None:
    """Every threshold, and the next level from every level at and beside every threshold."""
    names = ("high", "clear", "soft", "hard", "low")
    given: dict[str, Any] = dict(zip(names, sorted(parts, reverse=True), strict=True))
    given |= {"minfree": minfree, "reading": reading, "margin": margin}
    config = Reclaim(**(given | ({} if has_clear else {"clear": None})))
    at, twin = thresholds(config, memory, sample), naive_policy.levels(config, memory, sample)
    there = [CLEAR, SOFT, HARD, LOW] if has_clear else [SOFT, HARD, LOW]
    assert at.goal == twin.goal and set(twin.down) == set(twin.up) == set(map(int, there))
    assert [at[level] for level in there] == [twin.down[level] for level in there]
    assert [at[4 + level] for level in there] == [twin.up[level] for level in there]
    for free in {edge + side for edge in at for side in (-1, 0, 1) if edge + side >= 0}:
        for level in map(int, [HIGH, *there]):
            assert step(at, level, free) == naive_policy.next_level(twin, level, free)


@given(st.integers(0, 1 << 42), st.integers(0, 1 << 30))
def test_more_memory_never_has_less_minfree(memory: int, more: int) -> None:
    assert minfree_bytes(memory) <= minfree_bytes(memory + more) <= minfree_bytes(memory) + more


ESXI_6: Any = {"high": 4000, "clear": 1000, "soft": 640, "hard": 320, "low": 160}
ESXI_6 |= {"minfree": "sliding"}


@given(st.integers(0, 4), st.integers(0, 20_000), st.integers(0, 20_000), st.booleans())
def test_more_free_memory_never_leads_to_a_lower_level(
    level: int, one: int, other: int, has_clear: bool
) -> None:
    at = thresholds(Reclaim(**ESXI_6) if has_clear else Reclaim(), MEMORY, 1)
    level = level if has_clear or level != CLEAR else SOFT
    less, more = sorted((one, other))
    assert step(at, level, more) <= step(at, level, less)


# Means


@pytest.mark.parametrize(
    ("level", "pages_those_that_balloon", "pages_others"),
    [(HIGH, False, False), (SOFT, False, True), (HARD, True, True), (LOW, True, True)],
)
def test_each_level_adds_its_means(
    level: int, pages_those_that_balloon: bool, pages_others: bool
) -> None:
    assert may_page(level, True) == pages_those_that_balloon
    assert may_page(level, False) == pages_others
    assert blocks(level) == (level == LOW)


def test_a11_low_blocks_every_vm_above_its_target_and_no_other() -> None:
    """Two greedy VMs without balloons take all of 64 MiB beside a modest one, and the swap device
    frees 20 pages a second. In every step in LOW each greedy VM above its target stands still and
    loses the whole step; the modest one, below its target, runs in all of them. Exact."""
    host = make_host(64 * MIB, tick_ms=10, swap={"latency": 1_000_000, "iops": 20})
    greedy = make_phase(memory=64 * MIB, active=60 * MIB, growth=8 * MIB)
    modest = make_phase(active=2 * MIB)
    power_on(
        host,
        make_spec(1, 64 * MIB, greedy, balloon="absent"),
        make_spec(2, 32 * MIB, modest),
        make_spec(3, 64 * MIB, greedy, balloon="absent"),
    )
    run(host, 5 * SECOND)
    blocked_steps = 0
    for _ in range(100):
        before = {vm: (int(row_of(host, vm).clock_ns), lost_ns(host, vm)) for vm in (1, 2, 3)}
        run(host, 10)
        for vm, (clock_ns, lost) in before.items():
            row = row_of(host, vm)
            if counter(host, "level") != LOW:
                assert row.blocked == 0
            elif vm == 2:
                assert (row.blocked, alloc_slots(host, vm) <= row.target) == (0, True)
                assert row.clock_ns > clock_ns
            elif alloc_slots(host, vm) > row.target:
                blocked_steps += 1
                assert (row.blocked, row.clock_ns) == (1, clock_ns)
                assert lost_ns(host, vm)["blocked"] - lost["blocked"] == 10**7
    assert blocked_steps >= 80


def slowly_overrun() -> Host:
    """Two VMs without balloons grow by 64 pages a second each; the device writes 100 a second."""
    host = make_host(64 * MIB, swap={"latency": 1_000_000, "iops": 100})
    greedy = make_phase(memory=48 * MIB, active=2 * MIB, growth=MIB // 4)
    image = make_image(24 * MIB, boot=10 * SECOND)
    specs = [make_spec(vm, 48 * MIB, greedy, balloon="absent", image=image) for vm in (1, 2)]
    power_on(host, *specs)
    return host


def test_soft_and_hard_block_nobody() -> None:
    """Two VMs that grow faster than the swap device frees: down through every level, and nobody
    stands still before LOW. Exact."""
    host = slowly_overrun()
    seen = set()
    for _ in range(300):
        run(host, SECOND)
        level = counter(host, "level")
        seen.add(level)
        if level in (SOFT, HARD):
            assert [int(row_of(host, vm).blocked) for vm in (1, 2)] == [0, 0]
    assert seen == {HIGH, SOFT, HARD, LOW}


def test_level_changes_are_reported_with_the_free_memory_that_decided() -> None:
    """Each row of `advance` starts where the last one ended, and the thresholds explain it."""
    host = slowly_overrun()
    changes = run(host, 5 * MINUTE)
    assert len(changes) >= 5
    at = reclaim.thresholds(host.config.reclaim, 64 * MIB, 1)
    level = HIGH
    for _, before, after, free in changes.tolist():
        assert (before, step(at, before, free)) == (level, after)
        level = after
    assert level == counter(host, "level")


def test_a_host_at_its_targets_is_high() -> None:
    """Three VMs of 48 MiB that use all of it share 96 MiB; balloons alone can make the room. Ten
    minutes later all stand at their targets, and the level is HIGH (F4: 97 % of the time HIGH)."""
    host = make_host(96 * MIB, allocation={"idle_tax": 0})
    phase = make_phase(memory=48 * MIB, active=8 * MIB, growth=4 * MIB)
    power_on(host, *[make_spec(vm, 48 * MIB, phase) for vm in (1, 2, 3)])
    run(host, 10 * MINUTE)
    assert counter(host, "level") == HIGH
