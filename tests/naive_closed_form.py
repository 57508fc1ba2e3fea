"""The literal twin's long steps: of a sample, how many are touched, by the binomial law's sum."""

from __future__ import annotations

from math import comb

from naive_state import Esx, Vm

from hostsim import rng


def touched_samples(esx: Esx, vm: Vm, periods: int) -> list[int]:
    """For each period of the step, how many pages of a sample are touched."""
    if periods == 0:
        return []
    draws = esx.draws(rng.SAMPLE, vm.spec.vm, esx.tick)
    part = touched_part(esx, vm)
    n = esx.config.sampling.pages
    return [quantile((draws.word(i) >> 11) / 2**53, n, part) for i in range(periods)]


def touched_part(esx: Esx, vm: Vm) -> float:
    """Of the pages in memory: those of the active set, but for what a period's touches miss."""
    guest, row = vm.guest, vm.last_row
    in_memory = {ppn for ppn in range(vm.size) if vm.frame(ppn) is not None}
    if not in_memory or guest.active == 0:
        return 0.0
    window = {guest.kernel + (guest.window + i) % guest.span for i in range(guest.active)}
    touches = guest.active * esx.config.sampling.period // row.touch_interval_ms
    missed = (1 - 1 / guest.active) ** touches
    return min(len(window & in_memory) * (1 - missed) / len(in_memory), 1.0)


def quantile(draw: float, n: int, p: float) -> int:
    """The least k with P(B <= k) >= draw; for p over a half, counted from the top."""
    if p > 0.5:
        return n - quantile(1 - draw, n, 1 - p)
    k, upto = 0, (1 - p) ** n
    while draw > upto and k < n:
        k += 1
        upto += comb(n, k) * p**k * (1 - p) ** (n - k)
    return k
