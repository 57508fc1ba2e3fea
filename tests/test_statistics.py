"""Means, intervals and comparisons over seeds, against values computed elsewhere."""

from __future__ import annotations

from math import gamma, pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.studies.statistics import T_95, difference, spread, t_95, variance

WELCH = [
    (
        (27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4),
        (27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5, 31.3),
        (-4.24, 24.5, True),
    ),
    (
        (17.2, 20.9, 22.6, 18.1, 21.7, 21.4, 23.5, 24.2, 14.7, 21.8),
        (
            *(21.5, 22.8, 21.0, 23.0, 21.6, 23.6, 22.5, 20.7, 23.4, 21.8),
            *(20.7, 21.7, 21.5, 22.5, 23.6, 21.5, 22.5, 23.5, 21.5, 21.8),
        ),
        (-1.57, 9.9, False),
    ),
]


def test_the_table_of_t_is_students() -> None:
    """Between 0 and the quantile lies 47.5 % of the density."""
    for n, t in enumerate(T_95, start=1):
        x = np.linspace(0, t, 20_001)
        density = (1 + x * x / n) ** (-(n + 1) / 2)
        density *= gamma((n + 1) / 2) / (sqrt(n * pi) * gamma(n / 2))
        area = float(np.sum((density[1:] + density[:-1]) / 2) * (x[1] - x[0]))
        assert area == pytest.approx(0.475, abs=1e-4)
    assert list(T_95) == sorted(T_95, reverse=True)


@pytest.mark.parametrize(
    ("degrees", "t"),
    [
        *((0.5, 12.706), (1, 12.706), (9.9, 2.262), (30.9, 2.042), (39, 2.042), (40, 2.021)),
        *((119, 2.000), (1e9, 1.980)),
    ],
)
def test_degrees_of_freedom_are_rounded_down(degrees: float, t: float) -> None:
    assert t_95(degrees) == t


def test_a_spread_by_hand() -> None:
    found = spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (found.n, found.mean) == (8, 5.0)
    assert found.std == pytest.approx(sqrt(32 / 7))
    assert found.high == pytest.approx(5 + 2.365 * sqrt(32 / 7 / 8))
    assert found.low == pytest.approx(10 - found.high)  # type: ignore[operator]


def test_one_seed_says_nothing_of_noise() -> None:
    found = spread([3])
    assert (found.n, found.mean, found.std, found.low, found.high) == (1, 3.0, None, None, None)
    assert difference([1], [2]).beyond_noise is None
    assert difference([1], [2, 3, 4]).beyond_noise is None
    assert difference([1], [2, 3, 4]).mean == 2.0


@pytest.mark.parametrize(("before", "after", "known"), WELCH)
def test_welchs_test_finds_what_it_should(
    before: tuple[float, ...], after: tuple[float, ...], known: tuple[float, float, bool]
) -> None:
    found = difference(before, after)
    a, b = np.var(before, ddof=1) / len(before), np.var(after, ddof=1) / len(after)
    degrees = (a + b) ** 2 / (a**2 / (len(before) - 1) + b**2 / (len(after) - 1))
    half = t_95(degrees) * sqrt(a + b)
    assert found.mean == pytest.approx(np.mean(after) - np.mean(before))
    assert found.low == pytest.approx(found.mean - half)
    assert found.high == pytest.approx(found.mean + half)
    assert found.beyond_noise is known[2]


def test_equal_seeds_leave_no_noise() -> None:
    assert difference([1.0, 1.0], [1.0, 1.0]).beyond_noise is False
    assert difference([1.0, 1.0], [1.5, 1.5]).beyond_noise is True
    assert difference([1.0, 1.0], [1.0, 2.0]).beyond_noise is False


def test_of_equal_sides_one_in_twenty_is_beyond_noise() -> None:
    """The rate of false alarms is what it is said to be, whatever the variances and sizes."""
    rng = np.random.default_rng(1)
    alarms = sum(
        bool(difference(rng.normal(5, 1, 6).tolist(), rng.normal(5, 4, 9).tolist()).beyond_noise)
        for _ in range(4000)
    )
    assert 0.03 < alarms / 4000 < 0.06


FLOATS = st.floats(-1e9, 1e9)


@given(st.lists(FLOATS, min_size=2, max_size=20))
def test_the_variance_is_numpys(values: list[float]) -> None:
    scale = max(1.0, max(map(abs, values))) ** 2
    assert variance(values) == pytest.approx(np.var(values, ddof=1), abs=1e-9 * scale)


@given(st.lists(FLOATS, min_size=2, max_size=9), st.lists(FLOATS, min_size=2, max_size=9))
def test_a_difference_turns_with_its_sides(before: list[float], after: list[float]) -> None:
    one, other = difference(before, after), difference(after, before)
    assert one.mean == -other.mean and one.beyond_noise == other.beyond_noise
    assert one.low == -other.high  # type: ignore[operator]
