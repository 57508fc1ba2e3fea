"""Pre-copy as a pure state machine: rounds, bytes, downtime, and guests that write too fast."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster.policy import migration
from cluster.policy.migration import DIVERGES, Flight, Terms, Writing, copy, distinct_pages, order
from hostsim.units import GIB, MIB, PAGE_SIZE, HostId, VmId

SECOND = 1_000_000_000
PAGES = GIB // PAGE_SIZE
FAST = Terms(bytes_per_s=256 * MIB, downtime_ns=SECOND // 2, slow=True)
"""A GiB in four seconds."""


def flight(memory_pages: int = PAGES) -> Flight:
    return order(VmId(3), HostId(0), HostId(1), at_ms=0, memory_pages=memory_pages, why="test")


def writing(pages_per_s: int, active_pages: int = 1 << 40) -> Writing:
    """A guest that hardly ever writes a page twice, unless told otherwise."""
    return Writing(60 * pages_per_s, 60 * SECOND, active_pages)


@pytest.mark.parametrize(("n", "writes"), [(1, 1), (1, 9), (2, 1), (7, 5), (100, 1000), (3, 0)])
def test_distinct_pages_are_those_of_the_exact_formula(n: int, writes: int) -> None:
    exact = n * (1 - (1 - Fraction(1, n)) ** writes)
    assert distinct_pages(n, writes) == -int(-exact // 1)


def test_distinct_pages_are_those_that_draws_hit() -> None:
    draws = np.random.default_rng(5).integers(0, 1000, (400, 1500))
    hit = np.mean([len(np.unique(row)) for row in draws])
    assert distinct_pages(1000, 1500) == pytest.approx(hit, abs=2)


@given(some.integers(0, 1 << 34), some.integers(0, 1 << 40))
def test_distinct_pages_are_at_most_the_pages_and_at_most_the_writes(n: int, writes: int) -> None:
    assert 0 <= distinct_pages(n, writes) <= min(n, writes)


def test_an_idle_guest_is_sent_once() -> None:
    found = copy(flight(), FAST, writing(0), 60 * SECOND)
    assert (found.downtime_ns, found.rounds) == (0, 1)
    assert (found.sent_bytes, found.elapsed_ns) == (GIB, 4 * SECOND)


def test_rounds_follow_the_pre_copy_formula() -> None:
    """V[i+1] = V[i] d/b; total M/b (1 - (d/b)^(n+1)) / (1 - d/b), the last of them in downtime.

    A dirty rate of half the bandwidth: 4, 2, 1 s, then half a second, which is the downtime
    allowed (reference: pre-copy maths, section 3.2).
    """
    rate = FAST.bytes_per_s // PAGE_SIZE // 2
    found = copy(flight(), FAST, writing(rate), 60 * SECOND)
    assert (found.rounds, found.elapsed_ns) == (3, 7 * SECOND)
    assert found.downtime_ns == pytest.approx(SECOND / 2, rel=1e-3)
    assert found.sent_bytes == pytest.approx(GIB * (1 - 0.5**4) / (1 - 0.5), rel=1e-3)
    assert found.slowed_ns == 0


def test_writes_to_few_pages_are_sent_once_a_round() -> None:
    """However often: 100,000 writes a second to 64 MiB fill 64 MiB, a quarter of a second."""
    found = copy(flight(), FAST, writing(100_000, 64 * MIB // PAGE_SIZE), 60 * SECOND)
    assert (found.rounds, found.downtime_ns) == (1, SECOND // 4)


@given(some.integers(0, 100_000), some.integers(1, 20), some.booleans())
def test_it_does_not_matter_where_epochs_end(rate: int, cut_s: int, few: bool) -> None:
    guest = writing(rate, 40_000 if few else 1 << 40)
    whole = copy(flight(), FAST, guest, 60 * SECOND)
    cut = copy(flight(), FAST, guest, cut_s * SECOND)
    if cut.downtime_ns is None:
        cut = copy(cut, FAST, guest, (60 - cut_s) * SECOND)
    assert cut.rounds == whole.rounds
    assert cut.elapsed_ns == pytest.approx(whole.elapsed_ns, rel=1e-3)
    assert cut.sent_bytes == pytest.approx(whole.sent_bytes, rel=1e-3)


@given(
    memory=some.integers(0, 4 * PAGES),
    rate=some.integers(0, 1 << 22),
    active=some.integers(1, 1 << 24),
    bandwidth=some.integers(1, 1 << 40),
    downtime_ms=some.integers(0, 2000),
    slow=some.booleans(),
)
def test_a_flight_ends_within_bounds_or_goes_on(
    memory: int, rate: int, active: int, bandwidth: int, downtime_ms: int, slow: bool
) -> None:
    terms = Terms(bandwidth, downtime_ms * 1_000_000, slow)
    found = flight(memory)
    for _ in range(5):
        if found.downtime_ns is None and found.stalled is None:
            before = found
            found = copy(found, terms, writing(rate, active), 10 * SECOND)
            assert found.elapsed_ns - before.elapsed_ns <= 10 * SECOND
    assert 0 <= found.left_bytes <= found.round_bytes
    assert 0 <= found.slowed_ns <= found.elapsed_ns
    if found.downtime_ns is not None:
        assert found.downtime_ns <= terms.downtime_ns
        assert found.sent_bytes >= memory * PAGE_SIZE
    if slow:
        assert found.stalled is None


def test_a_guest_that_writes_too_fast_is_slowed_until_it_fits() -> None:
    rate = 3 * FAST.bytes_per_s // PAGE_SIZE
    found = copy(flight(), FAST, writing(rate), 600 * SECOND)
    assert found.downtime_ns is not None and found.downtime_ns <= FAST.downtime_ns
    assert 0 < found.slow_permille < 1000
    # Slowed to a sixth, as it writes thrice as fast as half a round's bytes may come.
    assert found.slow_permille == 166
    assert found.slowed_ns > 0


def test_or_given_up_if_it_must_not_be() -> None:
    terms = Terms(FAST.bytes_per_s, FAST.downtime_ns, slow=False)
    rate = 3 * FAST.bytes_per_s // PAGE_SIZE
    found = copy(flight(), terms, writing(rate), 600 * SECOND)
    assert (found.stalled, found.downtime_ns, found.rounds) == (DIVERGES, None, 1)
    assert found.slowed_ns == 0


def test_rounds_are_bounded() -> None:
    """A guest that writes nearly as fast as the network sends shrinks what is left too slowly."""
    terms = Terms(FAST.bytes_per_s, 0, slow=False)
    rate = int(0.97 * FAST.bytes_per_s / PAGE_SIZE)
    found = copy(flight(), terms, writing(rate), 3600 * SECOND)
    assert (found.stalled, found.rounds) == (migration.TOO_MANY_ROUNDS, migration.ROUNDS_MAX)
