"""Closed forms of what VMs share, and the fits of figures 4 and 5 that follow from them.

Memory in pages or in MB of 256 of them. A page is found once the scan has visited it: the part
`seen` of all pages, each on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hostsim.units import MIB, PAGE_SIZE

Array = np.ndarray[Any, np.dtype[np.float64]]
PER_MB = MIB // PAGE_SIZE


class Guest(NamedTuple):
    """What a VM has in common with others: MB of zero pages, of contents equal in all, drawn from a
    pool, and that pool's size."""

    zero: float
    image: float
    drawn: float
    pool: float


class Sharing(NamedTuple):
    """MB of N VMs: in shared frames, reclaimed by that, and reclaimed from zero pages."""

    shared: float
    reclaimed: float
    zero: float


def sharing(n: int, guest: Guest, seen: float) -> Sharing:
    """Expected sharing of n VMs.

    An equal content is found in Binomial(n, seen) VMs. Of n drawn pages in P contents, m = n seen
    are found; P (1 - (1 - 1/P)^m) contents are among them, m (1 - 1/P)^(m - 1) of them once.
    """
    zero, one = n * guest.zero * seen, 1 / PER_MB
    alone = (1 - seen) ** (n - 1)
    shared = zero + n * guest.image * seen * (1 - alone)
    frames = one + guest.image * (1 - alone * (1 - seen) - n * seen * alone)
    found, pool = n * guest.drawn * seen * PER_MB, guest.pool * PER_MB
    once = found * (1 - 1 / pool) ** (found - 1)
    shared += (found - once) / PER_MB
    frames += (pool * (1 - (1 - 1 / pool) ** found) - once) / PER_MB
    return Sharing(shared, shared - frames, zero - one)


def seen_of(n: int, seconds: float, pages: float, per_vm: float = 50, total: float = 200) -> float:
    """Part of `pages` pages of each of n VMs that a scan at random has visited."""
    return float(1 - np.exp(-min(per_vm, total / n) * seconds / pages))


def least_squares(misses: Callable[[Array], Array], start: Sequence[float]) -> Array:
    """Parameters of the least sum of squares: Levenberg and Marquardt's method."""
    at = np.array(start, np.float64)
    damping, now = 1e-3, misses(at)
    for _ in range(200):
        steps = np.eye(len(at)) * 1e-5
        slope = np.array([(misses(at + step) - now) / 1e-5 for step in steps]).T
        square = slope.T @ slope
        move = np.linalg.solve(square + damping * np.diag(np.diag(square)), -slope.T @ now)
        then = misses(at + move)
        if then @ then < now @ now:
            at, now, damping = at + move, then, damping / 3
        else:
            damping *= 3
    return at
