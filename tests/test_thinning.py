"""Touches that change nothing are skipped: a host that makes every one of them is not different.

Reads of resident private pages and unique-to-unique writes may be thinned away as long as the
distribution of everything observable stays exact. A slow guest makes each touch and asks the memory
manager about it. Where touches go in order (sweep, Zipf) it draws the same pages, so that each
array of the two hosts is equal afterwards, but for the serial numbers of unique contents. Where
they are uniform, the two agree in distribution: in means, in variances, and page by page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    counter,
    make_host,
    make_image,
    make_phase,
    make_rows,
    make_spec,
    power_on,
    row_index,
    row_of,
    run,
)
from hypothesis import given
from hypothesis import strategies as st
from naive_machine import Draws

from hostsim import balloon, guest, invariants, rng, share, swap, tick, touch, workload
from hostsim.arrays import empty
from hostsim.config import Disk
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.program import KEEP, SWEEP, UNIFORM, ZIPF
from hostsim.state import ACCESSED, INDEX, RESIDENT, SHARED, STATE, UNIQUE, HostState
from hostsim.units import MIB

CONTENT = ContentTable(
    kernel=ContentMix(unique=50),
    cache=ContentMix(image=150, unique=150),
    anon=ContentMix(zero=100, image=200, duplicate=50, unique=300),
)
STATEFUL = (
    *("host", "vms", "lost", "debts", "page", "content", "indexed", "sampled"),
    "stale",
)
"""Arrays that a touch may change."""
SECOND_NS = 1_000_000_000


def touch_all(
    st: HostState, v: int, n: int, touch_ns: int, writes: int, locality: int, reach: int
) -> int:
    """`workload.touch_window` without thinning, in Python: every touch is made."""
    vm = st.vms[v]
    draws = Draws(int(rng.stream(st.host[0].seed, rng.TOUCH, vm.vm, st.host[0].tick)))
    active, window, span = int(vm.active), int(vm.window), int(vm.span)
    done = 0
    if vm.stalled > 0:
        ppn, is_write = divmod(int(vm.stalled) - 1, 2)
        at = ppn - int(vm.kernel)
        if 0 <= at < span and (at - window) % span < active:
            if vm.left_ns < touch_ns:
                return 0
            going, done = touch_one(st, v, ppn, is_write, touch_ns)
            if not going:
                vm.sweep = (vm.sweep + done) % active
                return done
        vm.stalled = 0
    while done < n and vm.left_ns >= touch_ns:
        word = draws.word(done)
        is_write = int(((word & 0xFFFFFFFF) * 1000 >> 32) < writes)
        if locality == SWEEP:
            offset = (int(vm.sweep) + done) % active
        elif locality == ZIPF:
            second = Draws(word).word(1)
            offset = (
                active
                - 1
                - int(touch.zipf_rank(np.uint64(second), active, touch.octaves_of(active)))
            )
        else:
            offset = (word >> 32) * active >> 32
        ppn = int(vm.kernel) + (window + offset) % span
        going, was_done = touch_one(st, v, ppn, is_write, touch_ns)
        done += was_done
        if not going:
            break
    vm.sweep = (vm.sweep + done) % active
    return done


def touch_one(st: HostState, v: int, ppn: int, is_write: int, touch_ns: int) -> tuple[bool, int]:
    """One touch. Whether the step goes on, and 1 if it was done."""
    vm = st.vms[v]
    cost = guest.access(st, v, ppn, is_write)
    vm.stalled = 0 if cost >= 0 else 1 + 2 * ppn + is_write
    if cost >= 0:
        vm.left_ns -= touch_ns
        vm.brk = max(vm.brk, ppn + 1)
    return bool(workload.settle(st, v, cost)), int(cost >= 0)


def step_unthinned(monkeypatch: pytest.MonkeyPatch) -> Callable[[HostState], None]:
    """The pipeline's step, as Python down to the guests' touches, with `touch_all` in it."""
    run(make_host(), SECOND)  # compile the pipeline before parts of it are replaced
    monkeypatch.setattr(tick, "run_guests", tick.run_guests.py_func)  # type: ignore[attr-defined]
    for name in ("run", "work"):
        monkeypatch.setattr(workload, name, getattr(workload, name).py_func)
    monkeypatch.setattr(workload, "touch_window", touch_all)
    return tick.step.py_func  # type: ignore[attr-defined, no-any-return]


def observable(host: Host) -> dict[str, Any]:
    """Every array but working space; unique contents without their serial numbers."""
    st = host.state
    vms = st.vms.copy()
    vms["serial"] = 0
    content = np.where(st.content & UNIQUE, st.content & ~np.uint32(INDEX), st.content)
    names = [
        "host",
        "level_ms",
        "lost",
        "page",
        "indexed",
        "sampled",
        "stale",
    ]
    return {name: getattr(st, name).tolist() for name in names} | {
        "vms": vms.tolist(),
        "content": content.tolist(),
    }


def busy_host(locality: str, reserve: int = 59 * MIB) -> Host:
    """Three guests on a host too small for them: scans, balloons, paging and sampling all run."""
    host = make_host(
        reserve=reserve,
        sharing={"enabled": True, "scan_pages_per_s_vm": 400, "scan_pages_per_s_total": 900},
        balloon={"inflate": MIB // 4},
        allocation={"balance_period": 5 * SECOND},
        sampling={"pages": 20, "period": 7 * SECOND},
        reclaim={"high": 8, "soft": 6, "hard": 4, "low": 2},
        swap=Disk(latency=200_000, iops=400),
    )
    image = make_image(2 * MIB, content=CONTENT)
    options: dict[str, Any] = {"locality": locality, "touch_interval": 700, "writes": 400}
    power_on(
        host,
        make_spec(1, 4 * MIB, make_phase(active=MIB, drift=1000, **options), image=image),
        make_spec(2, 4 * MIB, make_rows((99, KEEP, 2 * MIB), **options), image=image),
        make_spec(
            3, 4 * MIB, make_phase(active=MIB, memory=3 * MIB, **options), image=image,
            balloon="absent",
        ),
    )  # fmt: skip
    return host


@pytest.mark.parametrize("locality", ["sweep", "zipf"])
def test_skipped_touches_change_nothing_that_can_be_seen(
    locality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, slow = busy_host(locality), busy_host(locality)
    step = step_unthinned(monkeypatch)
    for _ in range(40):
        run(fast, SECOND)
        with np.errstate(over="ignore"):
            while slow.state.host[0].now_ms < fast.state.host[0].now_ms:
                step(slow.state)
        assert observable(fast) == observable(slow)
    invariants.check(slow.state)
    for name in ("cow_breaks", "swap_ins", "guest_page_ins", "stale_hints", "zero_fills"):
        assert counter(fast, name) > 10, name
    made = [int(row_of(slow, vm).serial) - int(row_of(fast, vm).serial) for vm in (1, 2, 3)]
    assert sum(made) > 500  # so many writes were thinned away


# Uniform touches: the same distribution

SEEDS = 200
EVENTS = ("cow_breaks", "swap_ins", "zero_fills", "guest_page_ins", "stalled_touches")


def outcomes(host: Host, touch_pages: Any, vm: int) -> tuple[np.ndarray, np.ndarray]:
    """For each seed, what 500 touches of a VM did: (SEEDS, n_numbers), and (SEEDS, n_pages, 3) of
    whether each page of the host is mapped, private, and holds a content of its own afterwards."""
    st, v, n = host.state, row_index(host, vm), 500
    before = {name: getattr(st, name).copy() for name in STATEFUL}
    numbers, after = [], []
    for seed in range(SEEDS):
        for name, array in before.items():
            getattr(st, name)[...] = array
        st.host[0].seed = seed
        row = st.vms[v]
        row.left_ns, row.disk_io_left, st.host[0].swap_io_left = SECOND_NS, 60, 25
        done = touch_pages(st, v, n, SECOND_NS // n // 2, 400, UNIFORM, int(row.active))
        events = [int(st.host[0][name]) for name in EVENTS]
        stale = len(st.stale_contents)
        time = [done, int(row.left_ns), *st.lost[v, :3].tolist()]
        numbers.append([*events, *time, stale, int(row.resident), int(row.brk)])
        page, word = st.page.astype(np.int64), st.content.astype(np.int64)
        kept = page & STATE == RESIDENT
        after.append(np.stack([page & ACCESSED != 0, kept, kept & (word & UNIQUE != 0)], axis=-1))
    return np.array(numbers, float), np.array(after)


def mixed_host() -> Host:
    """Three guests; 1 and 2 have half of their active memory shared, hinted, unmapped, on swap or
    not there yet, and a balloon to trade with; 3 has nearly all it wants."""
    host = busy_host("uniform", reserve=53 * MIB)
    run(host, 12 * SECOND)
    host.measure()
    st = host.state
    st.host[0].swap_io_left = 1 << 40
    for v in (0, 1):
        share.scan_vm(st, v, 300)
        swap.page_out_vm(st, v, 60, 1 << 40)
        balloon.inflate(st, v, 40)
    swap.page_out_vm(st, 2, 12, 1 << 40)
    rows = np.arange(len(st.page)) % 3 == 0
    st.page[rows & (st.page & STATE <= SHARED)] &= ~np.uint8(ACCESSED)
    invariants.check(st)
    return host


@pytest.mark.parametrize("vm", [1, *(pytest.param(vm, marks=pytest.mark.slow) for vm in (2, 3))])
def test_uniform_touches_are_distributed_as_if_all_were_made(vm: int) -> None:
    """200 seeds of one step on a host where everything happens. Means within 4.5 standard errors,
    variances within 4.5 of theirs (kurtosis included), and how often each page was changed: the
    mean square of its deviations, in units of chance, is 1 within 4.5 sd. Seeds fixed."""
    host = mixed_host()
    fast, fast_pages = outcomes(host, touch.touch_window, vm)
    slow, slow_pages = outcomes(mixed_host(), touch_all, vm)
    assert (slow.std(axis=0) > 0).sum() >= 4, "nothing happens by chance here"
    for a, b in zip(fast.T, slow.T, strict=True):
        assert abs(a.mean() - b.mean()) <= 4.5 * np.sqrt((a.var() + b.var()) / SEEDS)
        spread = np.sqrt((spread_of_variance(a) + spread_of_variance(b)) / SEEDS)
        assert abs(a.var() - b.var()) <= 4.5 * spread
    p, q = fast_pages.mean(axis=0), slow_pages.mean(axis=0)
    both = (p + q) / 2
    by_chance = (both * SEEDS > 5) & ((1 - both) * SEEDS > 5)
    squares = (p - q)[by_chance] ** 2 / (2 * both * (1 - both) / SEEDS)[by_chance]
    assert len(squares) > 50
    assert abs(squares.mean() - 1) < 4.5 * np.sqrt(2 / len(squares))


def spread_of_variance(values: np.ndarray) -> float:
    """Variance of one term of the sample variance: fourth moment less the variance squared."""
    centred = values - values.mean()
    return float((centred**4).mean() - values.var() ** 2)


@given(
    quiet=st.floats(1e-9, 1.0, exclude_max=True),
    draw=st.floats(2.0**-53, 1.0, exclude_max=True),
    most=st.integers(0, 1 << 40),
)
def test_the_number_of_quiet_touches_inverts_the_geometric_distribution(
    quiet: float, draw: float, most: int
) -> None:
    """The largest g with draw < quiet ** g, at most `most`: by exact powers, within the rounding
    of a float's power."""
    g = touch.quiet_before(empty(1, 1), quiet, draw, most)
    assert 0 <= g <= most
    rounding = 1 + (g + 1) * 1e-15
    assert draw < quiet**g * rounding or g == 0
    assert g == most or draw * rounding >= quiet ** (g + 1)
