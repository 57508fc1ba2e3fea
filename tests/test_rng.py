"""Counter-based streams: equal draws for equal keys, whoever asked before; uniform; unrelated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostsim import rng
from hostsim.rng import below, mix

MASK = (1 << 64) - 1
WEYL = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORDS = st.integers(0, MASK)
SEEDS = st.integers(0, (1 << 63) - 1)
OWNERS = st.integers(0, 1 << 32)
TICKS = st.integers(0, 1 << 40)


def plain_mix(value: int) -> int:
    """SplitMix64's finaliser in integers without bounds."""
    value = ((value ^ (value >> 30)) * MIX_1) & MASK
    value = ((value ^ (value >> 27)) * MIX_2) & MASK
    return value ^ (value >> 31)


def plain_stream(seed: int, purpose: int, owner: int, tick: int) -> int:
    key = plain_mix((seed + WEYL) & MASK)
    key = plain_mix(key ^ ((purpose * MIX_1) & MASK))
    key = plain_mix(key ^ (((owner + 1) * MIX_2) & MASK))
    return plain_mix(key ^ ((tick * WEYL) & MASK))


def plain_below(key: int, index: int, bound: int) -> int:
    word = plain_mix((key + index * WEYL) & MASK)
    return ((word >> 32) * bound) >> 32


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return function.py_func if hasattr(function, "py_func") else function


def stream(seed: int, purpose: int, owner: int, tick: int) -> np.uint64:
    """numba hands words to Python as int; back in a kernel an int would count as signed."""
    return np.uint64(rng.stream(seed, purpose, owner, tick))


def draws(key: np.uint64, n: int, bound: int) -> Any:
    """(n,) the first n draws of a stream."""
    return np.array([below(key, i, bound) for i in range(n)])


def chi_square(counts: Any) -> float:
    """Pearson's statistic of counts that should be equal."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2).sum() / expected)


def chi_square_bound(degrees: int) -> float:
    """The 99.99 % quantile of chi-square, by Wilson and Hilferty; the normal quantile is 3.72."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + 3.72 * np.sqrt(part)) ** 3)


def test_the_mixer_is_splitmix64() -> None:
    """First outputs of SplitMix64 from seed 1234567, as in its reference implementation
    (Vigna, splitmix64.c; the vector is Rosetta Code's for this seed). Exact."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    state = 1234567
    found = []
    for _ in expected:
        state = (state + WEYL) & MASK
        found.append(int(mix(np.uint64(state))))
    assert found == expected


def test_draws_are_pinned_so_that_no_change_goes_unnoticed() -> None:
    """A change here changes every result of the simulator: it must be meant."""
    key = stream(42, rng.SWAP, 3, 1000)
    assert int(key) == plain_stream(42, rng.SWAP, 3, 1000)
    assert int(key) == 17904166781842537827
    assert [below(key, i, 1000) for i in range(8)] == [987, 14, 527, 327, 827, 802, 742, 421]


@given(WORDS)
def test_the_compiled_mixer_equals_plain_integers(word: int) -> None:
    assert int(mix(np.uint64(word))) == plain_mix(word)


@given(SEEDS, st.integers(1, 7), OWNERS, TICKS)
def test_the_compiled_stream_equals_plain_integers(
    seed: int, purpose: int, owner: int, tick: int
) -> None:
    assert int(stream(seed, purpose, owner, tick)) == plain_stream(seed, purpose, owner, tick)


@given(WORDS, st.integers(0, 1 << 40), st.integers(1, (1 << 32) - 1))
def test_the_compiled_draw_equals_plain_integers_and_stays_below_its_bound(
    key: int, index: int, bound: int
) -> None:
    found = below(np.uint64(key), index, bound)
    assert found == plain_below(key, index, bound)
    assert 0 <= found < bound


@given(WORDS, st.integers(0, 1 << 20), st.integers(1, 1 << 20))
def test_compiled_and_uncompiled_draws_agree(key: int, index: int, bound: int) -> None:
    with np.errstate(over="ignore"):
        plain = uncompiled(below)(np.uint64(key), index, bound)
    assert plain == below(np.uint64(key), index, bound)


def test_a_bound_of_one_leaves_no_choice() -> None:
    assert set(draws(stream(1, rng.TOUCH, 0, 0), 100, 1)) == {0}


def test_purposes_have_names_of_their_own() -> None:
    names = (rng.TOUCH, rng.SCAN, rng.SWAP, rng.ORDER, rng.GUEST, rng.SAMPLE, rng.DEFLATE)
    names = (*names, rng.SLOTS)
    assert len(set(names)) == len(names)


def test_a_draw_does_not_depend_on_the_draws_before_it() -> None:
    key = stream(7, rng.SCAN, 2, 55)
    forwards = [below(key, i, 10_000) for i in range(200)]
    backwards = [below(key, i, 10_000) for i in reversed(range(200))]
    assert forwards == backwards[::-1]


def test_no_two_keys_of_a_large_run_are_equal() -> None:
    """8 purposes x 30 VMs x 200 ticks x 3 seeds; chance of an accidental collision 6e-10."""
    keys = {
        int(stream(seed, purpose, owner, tick))
        for seed in range(3)
        for purpose in range(1, 9)
        for owner in range(30)
        for tick in range(200)
    }
    assert len(keys) == 3 * 8 * 30 * 200


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, rng.TOUCH, 0, 0), (2, rng.TOUCH, 0, 0)),
        ((1, rng.TOUCH, 0, 0), (1, rng.SCAN, 0, 0)),
        ((1, rng.TOUCH, 0, 0), (1, rng.TOUCH, 1, 0)),
        ((1, rng.TOUCH, 0, 0), (1, rng.TOUCH, 0, 1)),
        ((1, rng.TOUCH, 5, 7), (1, rng.TOUCH, 7, 5)),
        ((1, 2, 3, 4), (2, 1, 3, 4)),
    ],
)
def test_neighbouring_streams_are_unrelated(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    """4096 pairs of draws in an 8 x 8 table: chi-square below its 99.99 % quantile, and correlation
    below four standard errors. Fixed keys, so the test cannot fail by chance."""
    n = 4096
    first, second = draws(stream(*one), n, 8), draws(stream(*other), n, 8)
    table = np.bincount(first * 8 + second, minlength=64)
    assert chi_square(table) < chi_square_bound(63)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("bound", [2, 3, 7, 10, 100, 1000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_draws_are_uniform(seed: int, bound: int) -> None:
    """100 draws for each value: chi-square below its 99.99 % quantile; for many values also not
    suspiciously even, above half of its mean. Fixed seeds."""
    found = chi_square(np.bincount(draws(stream(seed, rng.SWAP, 4, 9), 100 * bound, bound)))
    assert found < chi_square_bound(bound - 1)
    if bound >= 100:
        assert found > (bound - 1) / 2


def test_successive_draws_of_one_stream_are_unrelated() -> None:
    """As for neighbouring streams, with the draw one index on."""
    found = draws(stream(11, rng.TOUCH, 1, 1), 8193, 8)
    table = np.bincount(found[:-1] * 8 + found[1:], minlength=64)
    assert chi_square(table) < chi_square_bound(63)


def test_the_same_index_of_successive_ticks_is_uniform() -> None:
    """Streams are used for a few draws a step, so it is across ticks that they must look random."""
    found = np.array([below(stream(3, rng.SAMPLE, 0, tick), 0, 16) for tick in range(8192)])
    assert chi_square(np.bincount(found, minlength=16)) < chi_square_bound(15)
    pairs = np.bincount(found[:-1] * 16 + found[1:], minlength=256)
    assert chi_square(pairs) < chi_square_bound(255)


@given(WORDS, st.integers(0, 63))
def test_one_input_bit_changes_about_half_of_the_output(word: int, bit: int) -> None:
    """Avalanche: between 8 and 56 of 64 bits; a fair mixer leaves this band once in 10^10."""
    changed = plain_mix(word) ^ int(mix(np.uint64(word ^ (1 << bit))))
    assert 8 <= changed.bit_count() <= 56


def test_a_large_bound_favours_no_part_of_its_range() -> None:
    """Of 2^32 words, a bound of 3 * 2^30 gives a value one or two; a modulo would give the two to
    the lowest third, multiply-shift spreads them. 6000 draws in three equal parts of the range:
    chi-square below its 99.99 % quantile (a modulo's would be about 750)."""
    bound = 3 << 30
    found = np.bincount(draws(stream(5, rng.SWAP, 0, 0), 6000, bound) // (1 << 30), minlength=3)
    assert chi_square(found) < chi_square_bound(2)
