"""Who should have how much memory: shares, bounds, the idle tax, claims, admission.

The pure functions, held against the paper's formula and an exact solver. What whole hosts make of
them is in test_claims.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import naive_policy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostsim import allocate
from hostsim.config import HostConfig
from hostsim.units import GIB, MIB

PER_MB = 256
"""Pages a MB of the paper."""

TAXES = st.sampled_from([0, 250, 500, 750, 900, 990])


def divide(total: int, tax: float, *vms: tuple[int, float, int, int]) -> list[int]:
    """Targets of VMs given as (shares, active, low, cap)."""
    shares, active, low, cap = (np.array(column) for column in zip(*vms, strict=True))
    target = np.zeros(len(vms), np.int64)
    k = allocate.tax_factor(tax)
    allocate.divide(total, k, shares, active.astype(np.float64), low, cap, target)
    return [int(slots) for slots in target]


def two(m_mb: float, tax: float, *active_mb: float, cap_mb: float = 1000) -> list[float]:
    """Targets in MB of two VMs of equal shares, without a floor."""
    vms = [(1000, amount * PER_MB, 0, round(cap_mb * PER_MB)) for amount in active_mb]
    return [slots / PER_MB for slots in divide(round(m_mb * PER_MB), tax, *vms)]


# Targets of the reference, section 4 A


@pytest.mark.parametrize(
    ("tax", "k"), [(0, 1), (0.25, 4 / 3), (0.5, 2), (0.75, 4), (0.9, 10), (0.99, 100)]
)
def test_a1_the_price_factor_of_an_idle_page(tax: float, k: float) -> None:
    """k = 1 / (1 - tau): 1, 1.333, 2, 4, 10. Exact but for float64's last bits (1e-13)."""
    assert allocate.tax_factor(tax) == pytest.approx(k, rel=1e-13)


@pytest.mark.parametrize("active", [(0, 0), (9.6, 200.5), (179, 0)])
def test_a2_without_a_tax_equal_shares_split_evenly(active: tuple[float, float]) -> None:
    """Two VMs of 256 MB, M = 358 MB, tau = 0: 179 / 179 whatever the activity, within 1 page."""
    assert two(358, 0, *active, cap_mb=256) == pytest.approx([179, 179], abs=1 / PER_MB)


@pytest.mark.parametrize(
    ("m_mb", "expected"), [(358, (107.4, 250.6)), (344.4, (100.6, 243.8)), (300, (78.4, 221.6))]
)
def test_a3_the_tax_moves_memory_as_in_figure_7(m_mb: float, expected: tuple[float, ...]) -> None:
    """Two equal VMs, active 9.6 and 200.5 MB, tau = 0.75, no bounds: M / 2 +- 3/8 of the
    difference. With M = 344.4 MB, what figure 7 sums to: 100.6 / 243.8, where the figure shows
    101.3 / 243.1. Within 0.1 MB of the formula, within 0.8 MB of the figure."""
    found = two(m_mb, 0.75, 9.6, 200.5)
    assert found == pytest.approx(expected, abs=0.1)
    if m_mb == 344.4:
        assert found == pytest.approx([101.3, 243.1], abs=0.8)


def test_a4_at_rest_pages_are_in_inverse_proportion_to_their_price() -> None:
    """As A3 with the fractions 0.0788 and 0.80 held instead: P1 / P2 = 1.60 / 3.764 = 0.425, here
    the fixed point of dividing again and again. Within 1 %."""
    f1, f2 = 0.0788, 0.80
    found = [179.0, 179.0]
    for _ in range(60):
        found = two(358, 0.75, f1 * found[0], f2 * found[1])
    assert found[0] / found[1] == pytest.approx(1.60 / 3.764, rel=0.001)
    assert sum(found) == pytest.approx(358, abs=1 / PER_MB)


@pytest.mark.parametrize("tax", [0.0, 0.75])
def test_a5_shares_of_two_to_one_split_two_to_one(tax: float) -> None:
    """Both fully active at 2:1: that is where they stay, whatever the tax. Within 1 page. From an
    even split each division closes 3 / (k + 2) of the gap, since beyond its active memory a VM pays
    k times as much."""
    m = 90_000
    vms = [(2000, 60_000.0, 0, m), (1000, 30_000.0, 0, m)]
    assert divide(m, tax, *vms) == pytest.approx([60_000, 30_000], abs=1)
    even = divide(m, tax, (2000, 45_000.0, 0, m), (1000, 45_000.0, 0, m))
    closed = 3 / (allocate.tax_factor(tax) + 2)
    assert even == pytest.approx([45_000 + 15_000 * closed, 45_000 - 15_000 * closed], abs=1)


@pytest.mark.parametrize(("low_mb", "expected"), [(0, 20), (64, 64)])
def test_a6_a_tax_near_one_takes_all_that_is_idle(low_mb: int, expected: int) -> None:
    """tau = 0.99, M = 358 MB: a VM with 20 MB active beside one that uses all it gets shrinks to
    the larger of its reservation and about its active memory. Within 2 % of M."""
    m = 358 * PER_MB
    hungry = m / 2
    for _ in range(2000):
        idle, hungry = divide(
            m, 0.99, (1000, 20.0 * PER_MB, low_mb * PER_MB, m), (1000, float(hungry), 0, m)
        )
    assert idle / PER_MB == pytest.approx(expected, abs=0.02 * 358)
    assert idle >= low_mb * PER_MB


def test_a7_five_vms_of_figure_8_share_by_their_size() -> None:
    """M = 860 MB; sizes 256, 256, 320, 320, 320 MB, shares in proportion, min half, all fully
    active: 149.6 and 187.0 MB, none below 128 or 160. Within 1 page."""
    sizes = [256, 256, 320, 320, 320]
    vms = [(10 * mb, mb * PER_MB * 860 / 1472, mb * PER_MB // 2, mb * PER_MB) for mb in sizes]
    found = divide(860 * PER_MB, 0.75, *vms)
    assert found == pytest.approx([860 * PER_MB * mb / 1472 for mb in sizes], abs=1)
    assert [round(slots / PER_MB, 1) for slots in found] == [149.6, 149.6, 187.0, 187.0, 187.0]
    assert sum(found) == 860 * PER_MB


def test_a8_without_shares_a_vm_gets_its_reservation() -> None:
    """Exact, with memory short and with memory to spare. Source: ESX 2 guide, p353 and p404."""
    for total in (1500, 100_000):
        assert divide(total, 0.75, (0, 900.0, 300, 1000), (10, 0.0, 0, 2000))[0] == 300


def admit(on: int, *, size: int, low: int, swap_space: int = 10 * GIB) -> str | None:
    """The answer to one more VM on figure 8's host with its first `on` VMs on."""
    sizes = [256, 256, 320, 320, 320][:on]
    return allocate.refuse_power_on(
        memory=GIB,
        reserved=sum(mb // 2 + 32 for mb in sizes) * MIB,
        swap_space=swap_space,
        swap_reserved=sum(mb - mb // 2 for mb in sizes) * MIB,
        size=size * MIB,
        reservation=low * MIB,
        overhead=32 * MIB,
    )


def test_a9_admission_counts_reservations_overheads_and_swap() -> None:
    """Host of 1024 MB, the five VMs of figure 8 with min half their size: 736 + 160 = 896 MB fit; a
    sixth of 128 + 32 MB (1056) does not, one of 96 + 32 (1024) does. Swap of 736 MB is needed for
    the five. Exact."""
    assert admit(4, size=320, low=160) is None
    assert admit(5, size=256, low=128) == "memory-reservation"
    assert admit(5, size=192, low=96) is None
    assert admit(5, size=192, low=97) == "memory-reservation"
    assert admit(4, size=320, low=160, swap_space=736 * MIB) is None
    assert admit(4, size=320, low=160, swap_space=736 * MIB - 1) == "swap-space"


# Properties of the division


@st.composite
def claims(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, float, int, int]]]:
    """(total, tax in permille, VMs), from abundance to floors that do not fit."""
    vms = []
    for _ in range(draw(st.integers(1, 7))):
        cap = draw(st.integers(1, 20_000))
        low = draw(st.integers(0, cap))
        active = draw(st.integers(0, cap)) / draw(st.sampled_from([1, 4, 7]))
        vms.append((draw(st.sampled_from([0, 1, 10, 2560, 1 << 40])), active, low, cap))
    total = draw(st.integers(0, sum(cap for *_, cap in vms) + 10))
    return total, draw(TAXES), vms


@given(claims())
def test_targets_equal_those_of_an_exact_solver_within_one_slot(given_: Any) -> None:
    total, tax, vms = given_
    exact = naive_policy.divide(
        total,
        Fraction(1000, 1000 - tax),
        [naive_policy.Claim(shares, Fraction(a), low, cap) for shares, a, low, cap in vms],
    )
    found = divide(total, tax / 1000, *vms)
    assert sum(found) == sum(exact)
    assert max(abs(a - b) for a, b in zip(found, exact, strict=True)) <= 1


@given(claims())
def test_targets_keep_to_their_bounds_and_use_all_memory(given_: Any) -> None:
    total, tax, vms = given_
    found = divide(total, tax / 1000, *vms)
    assert all(low <= slots <= cap for slots, (_, _, low, cap) in zip(found, vms, strict=True))
    lows = sum(low for _, _, low, _ in vms)
    caps = sum(cap if shares else low for shares, _, low, cap in vms)
    assert sum(found) == max(min(total, caps), lows)


@given(claims(), st.integers(0, 6), st.sampled_from([2, 10]))
def test_more_shares_never_get_less(given_: Any, which: int, factor: int) -> None:
    """Nor does a VM lose by a rise in its active memory. One slot is left to rounding."""
    total, tax, vms = given_
    which %= len(vms)
    shares, active, low, cap = vms[which]
    before = divide(total, tax / 1000, *vms)[which]
    vms[which] = (shares * factor, active, low, cap)
    assert divide(total, tax / 1000, *vms)[which] >= before - 1
    vms[which] = (shares, active + factor, low, cap)
    assert divide(total, tax / 1000, *vms)[which] >= before - 1


def test_more_shares_get_more_also_where_what_is_active_does_not_fit() -> None:
    """M = 1000 slots, 850 of them kept by an idle VM's reservation; two fully active VMs hold 110
    and 100. At shares of 2:1 they are owed 100 and 50 of the rest. Within 1 slot (as A5)."""
    kept = (10, 0.0, 850, 2000)
    even = divide(1000, 0.75, kept, (10, 110.0, 0, 2000), (10, 100.0, 0, 2000))
    more = divide(1000, 0.75, kept, (20, 110.0, 0, 2000), (10, 100.0, 0, 2000))
    assert more[1] > even[1]
    assert more == pytest.approx([850, 100, 50], abs=1)


@given(claims(), st.integers(2, 5))
def test_equal_vms_differ_by_a_slot_at_most_and_the_lower_id_has_it(given_: Any, n: int) -> None:
    total, tax, vms = given_
    found = divide(total, tax / 1000, *[vms[0]] * n)
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] <= 1


@given(claims())
def test_without_a_tax_activity_does_not_matter(given_: Any) -> None:
    total, _, vms = given_
    idle = [(shares, 0.0, low, cap) for shares, _, low, cap in vms]
    assert divide(total, 0.0, *vms) == divide(total, 0.0, *idle)


@pytest.mark.parametrize(("tax", "kept"), [(0.0, 0.5), (0.5, 1 / 3), (0.75, 0.2), (0.9, 1 / 11)])
def test_an_idle_vm_keeps_its_part_of_one_plus_k(tax: float, kept: float) -> None:
    """Equal shares beside a fully active VM: 1 / (1 + k) of the pair's memory, 20 % at tau = 0.75.
    Within 1 page. Source: reference, section 1.6."""
    m = 100_000
    assert divide(m, tax, (10, 0.0, 0, m), (10, m * (1 - kept), 0, m))[0] == pytest.approx(
        kept * m, abs=1
    )


def test_floors_that_do_not_fit_are_kept_all_the_same() -> None:
    assert divide(100, 0.75, (10, 5.0, 80, 200), (30, 5.0, 90, 200)) == [80, 90]


# Claims, balloon targets, the noise of an estimate


def test_configured_claims_are_limits_and_touched_claims_leave_room_to_grow() -> None:
    """Twice the last growth, at least 1/64 of the size, never above the limit."""
    assert allocate.claim_of(900, 100, 0, 1000, False) == 900
    assert allocate.claim_of(900, 100, 0, 1000, True) == 100 + 1000 // 64
    assert allocate.claim_of(900, 100, 40, 1000, True) == 100 + 2 * 40
    assert allocate.claim_of(900, 880, 40, 1000, True) == 900
    assert allocate.claim_of(90, 10, 0, 32, True) == 11


def test_a_balloon_makes_the_guest_live_in_its_target() -> None:
    """clamp(size - target - swapped, 0, maximum); it never reaches into the reservation."""
    assert allocate.balloon_target(1000, 700, 0, 0, 500) == 300
    assert allocate.balloon_target(1000, 700, 0, 120, 500) == 180
    assert allocate.balloon_target(1000, 700, 0, 400, 500) == 0
    assert allocate.balloon_target(1000, 300, 0, 0, 500) == 500
    assert allocate.balloon_target(1000, 300, 800, 0, 500) == 200


@given(
    st.integers(1, 1 << 20),
    st.floats(0, 1),
    TAXES,
    st.integers(1, 500),
    st.integers(0, 10),
)
def test_the_deadband_is_the_standard_error_of_the_estimate(
    alloc: int, f: float, tax: int, n: int, sigmas: int
) -> None:
    """The last change inside it and the first outside, as in exact fractions."""
    active = f * alloc
    k = allocate.tax_factor(tax / 1000)
    band = allocate.deadband(alloc, active, k, n, sigmas)
    config = HostConfig(
        sampling={"pages": n}, allocation={"idle_tax": tax, "deadband_sigmas": sigmas}
    )

    def is_noise(change: int) -> bool:
        return naive_policy.within_noise(config, alloc, Fraction(active), change)

    assert is_noise(band)
    assert not is_noise(band + 1)
