"""The literal twin's policy: shares, idle tax, admission, reclamation states, in exact fractions.

The equilibrium of min-funding revocation is found by trying every level of price at which some VM
meets a bound, and interpolating exactly between two of them: slow, and free of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hostsim.config import HostConfig, Reclaim

PAGE_BYTES = 4096
GIB = 1 << 30
HIGH, CLEAR, SOFT, HARD, LOW = range(5)


def slots(size_bytes: int, sample: int) -> int:
    """Bytes -> slots of `sample` pages, to the nearest; a half goes up."""
    return int((Fraction(size_bytes, PAGE_BYTES * sample) + Fraction(1, 2)) // 1)


def tax_factor(config: HostConfig) -> Fraction:
    """k = 1 / (1 - tau) [P 5.2]."""
    return Fraction(1000, 1000 - config.allocation.idle_tax)


# Who should have how much [P 5]


@dataclass(frozen=True)
class Claim:
    """One VM in the division: shares, active slots, and the bounds of its target."""

    shares: int
    active: Fraction
    low: int
    cap: int

    def at(self, level: Fraction, k: Fraction) -> Fraction:
        """Slots at which the VM pays the price `level` stands for, within its bounds."""
        if self.shares == 0:
            return Fraction(self.low)
        want = level * self.shares
        if want > self.active:  # beyond what is active, a page costs k times as much
            want = (want + (k - 1) * self.active) / k
        return min(max(want, Fraction(self.low)), Fraction(self.cap))

    def levels(self, k: Fraction) -> list[Fraction]:
        """Levels at which it leaves its lower bound, has what is active, and reaches its cap."""
        if self.shares == 0:
            return []
        bends = [self.active / self.shares]
        for bound in (self.low, self.cap):
            beyond = max(bound - self.active, Fraction(0))
            bends.append((bound + (k - 1) * beyond) / self.shares)
        return bends


def divide(total: int, k: Fraction, claims: list[Claim]) -> list[int]:
    """Targets in whole slots; what rounding leaves over goes to unbounded VMs, lower id first."""
    caps = [claim.cap if claim.shares else claim.low for claim in claims]
    lows = [claim.low for claim in claims]
    if sum(caps) <= total:
        return caps
    if sum(lows) >= total:
        return lows
    level = _level(total, k, claims)
    exact = [claim.at(level, k) for claim in claims]
    assert sum(exact) == total
    targets = [int(amount // 1) for amount in exact]
    for i, (claim, amount) in enumerate(zip(claims, exact, strict=True)):
        if sum(targets) < total and claim.low < amount < claim.cap:
            targets[i] += 1
    return targets


def _level(total: int, k: Fraction, claims: list[Claim]) -> Fraction:
    """The level where the slots of all VMs sum to the total: their sum is linear between bends."""
    bends = sorted(level for claim in claims for level in claim.levels(k))
    sums = [sum((claim.at(bend, k) for claim in claims), Fraction(0)) for bend in bends]
    for before, after, low, high in zip(bends, bends[1:], sums, sums[1:], strict=False):
        if low <= total <= high:
            if low == high:
                return before
            return before + (after - before) * (total - low) / (high - low)
    raise AssertionError(f"{total} lies outside {sums[0]} .. {sums[-1]}")


def claimed_slots(
    config: HostConfig, limit: int, size: int, touched: int, touched_before: int
) -> int:
    """What a VM counts for: its limit, or what it touched with headroom to grow."""
    if config.allocation.claim == "configured":
        return limit
    headroom = max(2 * max(touched - touched_before, 0), size // 64, 1)
    return min(limit, touched + headroom)


def within_noise(config: HostConfig, alloc: int, active: Fraction, change: int) -> bool:
    """Whether sampling noise alone explains a change of a balloon target by `change` slots.

    Standard error of the fast average of n samples: sqrt(0.6 f (1 - f) / n). A slot of active
    memory moves the target by at most (k - 1) / k. Compared squared, to stay exact.
    """
    n, sigmas = config.sampling.pages, config.allocation.deadband_sigmas
    if alloc <= 0 or sigmas == 0:
        return change == 0
    k = tax_factor(config)
    f = (active / alloc * n + 1) / (n + 2)
    variance = Fraction(6, 10) * f * (1 - f) / n
    return change**2 <= sigmas**2 * variance * (alloc * (k - 1) / k) ** 2


# How scarce memory is [P 6.3]


@dataclass(frozen=True)
class Levels:
    """Free slots. `goal` is what targets aim for, one more than ends reclamation; a level of `down`
    is entered when free falls below its number, one of `up` is left upwards above its number. The
    levels that there are, from HIGH down, are `order`."""

    goal: int
    order: list[int]
    down: dict[int, int]
    up: dict[int, int]


def minfree_bytes(memory: int) -> int:
    """6 % of the first 4 GiB, 4 % up to 12 GiB, 2 % up to 28 GiB, 1 % of the rest."""
    total = Fraction(0)
    for start, end, percent in ((0, 4, 6), (4, 12, 4), (12, 28, 2), (28, 1 << 60, 1)):
        part = min(memory, end * GIB) - min(memory, start * GIB)
        total += Fraction(part * percent, 100)
    return int(total // 1)


def levels(reclaim: Reclaim, memory: int, sample: int) -> Levels:
    base = memory if reclaim.minfree == "fixed" else minfree_bytes(memory)
    parts = {HIGH: reclaim.high, SOFT: reclaim.soft, HARD: reclaim.hard, LOW: reclaim.low}
    if reclaim.clear is not None:
        parts[CLEAR] = reclaim.clear
    order = sorted(parts)
    own = {level: slots(base * parts[level] // 1000, sample) for level in order}
    above = {level: own[order[i]] for i, level in enumerate(order[1:])}
    reading_a = reclaim.reading == "a"
    default = 5 if reading_a else 0
    margin_permille = default if reclaim.margin is None else reclaim.margin
    margin = slots(memory * margin_permille // 1000, sample)
    down = above if reading_a else {level: own[level] for level in order[1:]}
    up = {level: above[level] + margin for level in order[1:]}
    return Levels(up[SOFT] + 1, order, down, up)


def next_level(limits: Levels, level: int, free: int) -> int:
    """A fall may skip levels; a rise climbs one, and passes over a CLEAR of less than a slot."""
    at = lowest = limits.order.index(level)
    while limits.order[lowest] != LOW and free < limits.down[limits.order[lowest + 1]]:
        lowest += 1
    if lowest == at and level != HIGH and free > limits.up[level]:
        above = limits.order[at - 1]
        return HIGH if above == CLEAR and limits.up[SOFT] == limits.up[CLEAR] else above
    return limits.order[lowest]
