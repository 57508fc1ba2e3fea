"""Long steps: what sampling finds in one is distributed as if short ones had been made.

Where a number of draws is stated, a wrong law would fail by far: bounds are 4.5 standard errors.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from host_builders import (
    MINUTE,
    SECOND,
    alloc_slots,
    counter,
    make_host,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    steps_of,
)
from hypothesis import given
from hypothesis import strategies as st

from hostsim import closed_form
from hostsim.host import Host
from hostsim.units import MIB

LONG, PERIOD = 5 * MINUTE, 30 * SECOND
EPSILON = Fraction(1, 10**11)
"""How far sums of float64 terms may be from the exact ones."""


def law(n: int, p: Fraction, k: int) -> Fraction:
    """P(B <= k), B binomial (n, p), exactly."""
    terms = (comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    return sum(terms, Fraction(0))


def binomial(draw: float, n: int, p: float) -> int:
    """One draw of `binomials`."""
    found = np.zeros(1, np.int64)
    closed_form.binomials(np.array([draw]), n, p, found)
    return int(found[0])


@given(
    draw=st.floats(0.0, 1.0, exclude_max=True),
    n=st.integers(1, 120),
    p=st.floats(0.0, 1.0),
)
def test_a_uniform_draw_becomes_a_binomial_one(draw: float, n: int, p: float) -> None:
    """The draw lies between the sums of the law up to k, from the top where p is over a half."""
    k = binomial(draw, n, p)
    assert 0 <= k <= n
    below = law(n, Fraction(p), k - 1) if k > 0 else Fraction(0)
    assert below - EPSILON <= Fraction(draw) <= law(n, Fraction(p), k) + EPSILON


@given(
    draws=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=64),
    n=st.integers(1, 1000),
    p=st.floats(0.0, 1.0),
)
def test_draws_do_not_depend_on_each_other(draws: list[float], n: int, p: float) -> None:
    found = np.zeros(len(draws), np.int64)
    closed_form.binomials(np.array(draws), n, p, found)
    assert found.tolist() == [binomial(draw, n, p) for draw in draws]


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_certain_outcome_is_certain(p: float) -> None:
    found = {binomial(draw, 1000, p) for draw in (0.0, 0.3, 1.0 - 2.0**-53)}
    assert found == {1000 * int(p)}


@given(base=st.floats(0.0, 1.0), exponent=st.integers(0, 2000))
def test_a_power_is_a_product(base: float, exponent: int) -> None:
    exact = float(Fraction(base) ** exponent)
    assert closed_form.power(base, exponent) == pytest.approx(exact, rel=1e-11, abs=1e-300)


def quiet(tick_ms: int, seed: int = 1, *, vms: int = 8, interval_ms: int = PERIOD) -> Host:
    """Guests that touch a quarter of their memory, once every `interval_ms` in the mean."""
    host = make_host(512 * MIB, tick_ms=tick_ms, seed=seed, sampling={"period": PERIOD})
    busy = make_phase(active=4 * MIB, memory=12 * MIB, touch_interval=interval_ms)
    power_on(host, *(make_spec(vm, 16 * MIB, busy) for vm in range(1, vms + 1)))
    return host


def test_a_quiet_host_makes_one_step_of_a_tick() -> None:
    host = quiet(LONG)
    run(host, 2 * LONG)
    assert steps_of(host, 4 * LONG) == [LONG] * 4


def test_a_standing_balloon_is_no_pressure() -> None:
    """Two guests that were squeezed and have settled: nothing moves, so nothing needs short steps;
    those that they make when the balloons follow an estimate are few."""
    host = make_host(64 * MIB, tick_ms=LONG, reserve=40 * MIB)
    one = make_phase(active=4 * MIB, memory=15 * MIB, touch_interval=PERIOD)
    power_on(host, *(make_spec(vm, 16 * MIB, one) for vm in (1, 2)))
    run(host, 6 * LONG)
    assert sum(int(row_of(host, vm).ballooned) for vm in (1, 2)) > 0
    steps = steps_of(host, 20 * LONG)
    assert sum(step for step in steps if step == LONG) > 0.8 * 20 * LONG


@pytest.mark.parametrize("locality", ["sweep", "zipf"])
def test_pages_that_are_not_alike_are_sampled_one_by_one(locality: str) -> None:
    host = make_host(512 * MIB, tick_ms=LONG, sampling={"period": PERIOD})
    ordered = make_phase(active=4 * MIB, touch_interval=PERIOD, locality=locality)
    uniform = make_phase(active=4 * MIB, touch_interval=PERIOD)
    power_on(host, make_spec(1, 16 * MIB, ordered), make_spec(2, 16 * MIB, uniform))
    run(host, 2 * LONG)
    assert max(steps_of(host, 2 * LONG)) == PERIOD // 2


def test_a_short_tick_asks_for_no_long_steps() -> None:
    """Below two sampling periods all is as it was: page for page the twin's."""
    host = quiet(2 * PERIOD - 1)
    run(host, 4 * (2 * PERIOD - 1))
    assert max(steps_of(host, 10 * (2 * PERIOD - 1))) <= PERIOD // 2


@pytest.mark.parametrize("interval_ms", [5 * SECOND, PERIOD, 4 * PERIOD])
def test_long_steps_estimate_as_short_ones_do(interval_ms: int) -> None:
    """12 hosts of 8 guests, over 40 min from boot: mean and variance of the slow average, which
    has the periods' fractions in it, at ticks of 5 s and of 5 min. 1152 values a tick, of which
    a guest's own are correlated over about 4 periods: with 10 periods between two they are not."""
    values = {}
    for tick_ms in (5 * SECOND, LONG):
        found: list[float] = []
        for seed in range(12):
            host = quiet(tick_ms, seed, interval_ms=interval_ms)
            host.advance(2 * LONG)
            for _ in range(12):
                host.advance(LONG)
                found += [float(row_of(host, vm).slow) for vm in host.vm_ids()]
        values[tick_ms] = np.array(found)
    short, long = values.values()
    error = np.sqrt(short.var() / len(short) + long.var() / len(long))
    assert abs(short.mean() - long.mean()) < 4.5 * error
    assert np.log(long.var() / short.var()) == pytest.approx(0, abs=4.5 * np.sqrt(4 / len(short)))


def test_touched_pages_are_counted_as_minor_faults() -> None:
    """8 guests, 10 periods a step: a third of each sample touched for sure (an interval of a
    tenth of the period leaves out 45 in a million)."""
    host = quiet(LONG, interval_ms=PERIOD // 10)
    host.advance(2 * LONG)
    host.measure()
    host.advance(LONG)
    expected = sum(100 * 10 * 1024 / alloc_slots(host, vm) for vm in host.vm_ids())
    assert counter(host, "minor_faults") == pytest.approx(expected, abs=4.5 * np.sqrt(expected))


def test_after_long_steps_sampling_goes_on_page_by_page() -> None:
    """A VM that sweeps comes: the others' estimates stay where they were, by new samples."""
    host = quiet(LONG, interval_ms=PERIOD // 10)
    run(host, 4 * LONG)
    assert all(int(row_of(host, vm).samples) == 0 for vm in host.vm_ids())
    before = np.mean([float(row_of(host, vm).slow) for vm in host.vm_ids()])
    ordered = make_phase(active=4 * MIB, touch_interval=PERIOD, locality="sweep")
    power_on(host, make_spec(99, 16 * MIB, ordered))
    run(host, 4 * LONG)
    assert all(int(row_of(host, vm).samples) > 0 for vm in host.vm_ids())
    after = np.mean([float(row_of(host, vm).slow) for vm in host.vm_ids() if vm != 99])
    assert after == pytest.approx(before, rel=0.15)
