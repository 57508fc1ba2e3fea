"""PURE: who should have how much memory [P 5, 6.2]: shares, reservation, limit, the idle tax.

Repeated min-funding revocation, which takes from the client that pays least per page, ends where
the adjusted price S / (P (f + k (1 - f))) is equal for all. With active memory A held fixed and
f = min(1, A / P), that is linear in two pieces: P = lambda S up to A, (lambda S + (k - 1) A) / k
beyond, one lambda for all, clamped to each VM's bounds. So the equilibrium is solved directly
instead of revoking page by page. All amounts are in slots unless named otherwise. Nothing here
writes host state.
"""

from __future__ import annotations

import numpy as np

from hostsim.jit import i64, kernel, small
from hostsim.state import Array

_STEPS, _CLOSE = 128, 1e-9
"""Steps towards lambda, at most: as many halvings tell any two sums of slots apart in float64. And
the part of a slot that the sum may miss the total by."""

_ROUNDING = 1e-6
"""Slots by which float64 may fall short of a whole number that is exact."""

SLOW, FAST = 1.0 / 7.0, 0.6
"""Variance of the slow and fast averages in terms of one sample's: a / (2 - a) for gain a."""


@small
def tax_factor(tax: float) -> float:
    """k = 1 / (1 - tau): how much more an idle page costs than an active one [P 5.2]."""
    return 1.0 / (1.0 - tax)


@small
def _entitlement(level: float, shares: float, active: float, k: float) -> float:
    """Slots at which a VM pays the price that `level`, lambda, stands for."""
    flat = level * shares
    return flat if flat <= active else (flat + (k - 1.0) * active) / k


@kernel
def divide(
    total: int, k: float, shares: Array, active: Array, low: Array, cap: Array, target: Array
) -> None:
    """Targets of n VMs that share `total` slots.

    shares (n,) int64; active (n,) float64; low, cap (n,) int64 bounds, low <= cap; target (n,)
    int64, out. Where all caps fit, everybody gets the cap; where not even the lows fit, the low. A
    VM without shares gets its low. Slots that rounding leaves over go one each to unbounded VMs in
    order: the lower id first.
    """
    n = shares.size
    sum_cap = 0
    sum_low = 0
    for i in range(n):
        target[i] = low[i] if shares[i] == 0 else cap[i]
        sum_cap += target[i]
        sum_low += low[i]
    if sum_cap <= total:
        return
    if sum_low >= total:
        for i in range(n):
            target[i] = low[i]
        return
    level = _level(total, k, shares, active, low, cap)
    _whole_slots(total, k, shares, active, low, cap, level, target)


@kernel
def _level(total: int, k: float, shares: Array, active: Array, low: Array, cap: Array) -> float:
    """Lambda where the sum of clamped entitlements meets the total, but for rounding.

    The sum rises with lambda and is linear between bends, so Newton's steps end in a handful; where
    all VMs are at a bound, or one goes too far, the bracket is halved.
    """
    below, above = 0.0, 1.0
    for i in range(shares.size):
        if shares[i] > 0:
            above = max(above, k * (cap[i] + 1.0) / shares[i])
    level = 0.5 * above
    for _ in range(_STEPS):
        missing, slope = np.float64(total), 0.0
        for i in range(shares.size):
            if shares[i] == 0:
                missing -= low[i]
                continue
            want = _entitlement(level, shares[i], active[i], k)
            missing -= min(max(want, np.float64(low[i])), np.float64(cap[i]))
            if _is_between(want, shares[i], low[i], cap[i]):
                slope += shares[i] if level * shares[i] <= active[i] else shares[i] / k
        if missing < 0.0:
            above = level
        else:
            below = level
        further = level + missing / slope if slope > 0.0 else above
        if not below < further < above:
            further = 0.5 * (below + above)
        if abs(missing) < _CLOSE or further == level:
            break
        level = further
    return level


@small
def _is_between(want: float, shares: int, low: int, cap: int) -> bool:
    return shares > 0 and low < want < cap


@kernel
def _whole_slots(
    total: int,
    k: float,
    shares: Array,
    active: Array,
    low: Array,
    cap: Array,
    level: float,
    target: Array,
) -> None:
    """Fix the VMs that `level` puts at a bound, solve the others exactly, deal out what is left."""
    n = shares.size
    rest = np.float64(total)
    weight = 0.0
    for i in range(n):
        want = _entitlement(level, shares[i], active[i], k)
        if _is_between(want, shares[i], low[i], cap[i]):
            is_beyond = level * shares[i] > active[i]
            weight += shares[i] / k if is_beyond else np.float64(shares[i])
            rest -= (k - 1.0) / k * active[i] if is_beyond else 0.0
        else:
            target[i] = cap[i] if shares[i] > 0 and want >= cap[i] else low[i]
            rest -= target[i]
    if weight == 0.0:
        return
    exact = rest / weight
    left = total
    for i in range(n):
        want = _entitlement(level, shares[i], active[i], k)
        if _is_between(want, shares[i], low[i], cap[i]):
            whole = i64(np.floor(_entitlement(exact, shares[i], active[i], k) + _ROUNDING))
            target[i] = min(max(whole, low[i]), cap[i])
        left -= target[i]
    for i in range(n):
        want = _entitlement(level, shares[i], active[i], k)
        if left > 0 and _is_between(want, shares[i], low[i], cap[i]) and target[i] < cap[i]:
            target[i] += 1
            left -= 1


@small
def claim_of(limit: int, touched: int, grown: int, size: int, by_touch: bool) -> int:
    """What a VM counts for when memory is divided.

    Its limit; or what it has touched, plus headroom until the next balance: twice what it grew by
    since the last one, at least 1/64 of its size.
    """
    if not by_touch:
        return limit
    return min(limit, touched + max(2 * grown, size // 64, 1))


@small
def deadband(alloc: int, active: float, k: float, samples: int, sigmas: int) -> int:
    """Slots by which sampling noise alone moves a target: `sigmas` standard errors.

    The error of the estimate f of n samples is sqrt(FAST f (1 - f) / n); a slot of active memory
    moves the target by at most (k - 1) / k. f is taken with one touched and one idle page added, so
    that f = 0 or 1 does not claim to be exact.
    """
    if alloc <= 0 or sigmas == 0:
        return 0
    f = (active / alloc * samples + 1.0) / (samples + 2.0)
    error = np.sqrt(FAST * f * (1.0 - f) / samples)
    return i64(sigmas * error * alloc * (k - 1.0) / k)


@small
def balloon_target(size: int, target: int, reservation: int, out: int, maximum: int) -> int:
    """Pages the balloon should hold so that the guest lives in its target.

    out: what the host has paged out already, less the frames of what it keeps compressed.

    The reservation is guest memory that the VM may use at any time, so a balloon never takes it,
    even while the VM has touched less.
    """
    return min(max(size - max(target, reservation) - out, 0), maximum)


def refuse_power_on(
    *,
    memory: int,
    reserved: int,
    swap_space: int,
    swap_reserved: int,
    size: int,
    reservation: int,
    overhead: int,
) -> str | None:
    """Admission control [P 6.2], in unscaled bytes: the reason to refuse a VM, or None.

    memory: machine memory less the hypervisor's reserve. reserved: sum of reservation + overhead of
    the VMs that are on; swap_reserved: sum of their size - reservation.
    """
    if reserved + reservation + overhead > memory:
        return "memory-reservation"
    if swap_reserved + size - reservation > swap_space:
        return "swap-space"
    return None
