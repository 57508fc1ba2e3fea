"""What page sharing saves, counted from hashes alone: what a simulation of them must come to.

A guest is a one-dimensional array of the hashes of its touched pages, 0 = the zero page. Guests of
one call share with each other; counts of guests that may not (salting) are sums over each alone.
Nothing here knows of hosts or scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class Saved(NamedTuple):
    """Pages that perfect sharing saves: all copies of a content but one."""

    zero: int
    nonzero: int

    @property
    def total(self) -> int:
        return self.zero + self.nonzero


class Expected(NamedTuple):
    """As Saved, on average over which pages have been scanned."""

    zero: float
    nonzero: float

    @property
    def total(self) -> float:
        return self.zero + self.nonzero


def copies(guests: Sequence[Hashes]) -> tuple[int, npt.NDArray[np.int64]]:
    """Zero pages of all guests together, and (n_contents,) int64 copies of each other content."""
    pages = np.concatenate([np.zeros(0, np.uint64), *guests])
    _, counts = np.unique(pages[pages != 0], return_counts=True)
    return int((pages == 0).sum()), counts.astype(np.int64)


def saved(guests: Sequence[Hashes]) -> Saved:
    """Pages less contents: what sharing saves once every page has been scanned."""
    zeros, counts = copies(guests)
    return Saved(max(zeros - 1, 0), int((counts - 1).sum()))


def expected_at(guests: Sequence[Hashes], coverage: float) -> Expected:
    """What sharing saves while each page has been scanned with probability `coverage`, 0 to 1.

    Of a content with m copies m c are scanned on average, and all of those but one are saved if any
    is: m c - 1 + (1 - c) ** m.
    """
    zeros, counts = copies(guests)
    zero, nonzero = (
        float((some * coverage - 1.0 + (1.0 - coverage) ** some).sum())
        for some in (np.array([zeros]), counts)
    )
    return Expected(zero, nonzero)
