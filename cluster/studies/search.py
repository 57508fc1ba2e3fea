"""PURE: the largest load that holds, in few trials.

A load is an integer; more of it is taken to be harder, so that loads up to a knee hold and those
beyond do not. The search doubles its steps from where it starts until it has one that holds below
one that does not, then halves the gap. What has been tried is all that it knows: it can be stopped
and asked again at any time, and the same trials lead to the same next ones.

Where a load fails below one that holds, the assumption is wrong there. The knee is then below the
lowest failure, and `violations` tells of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRECISION = 50
"""A knee is known once the gap is a fiftieth of it, or one."""
STRIDE = 4
"""A search that knows nothing begins with steps of a quarter of where it starts."""


@dataclass(frozen=True, slots=True)
class Loads:
    """Where to look: from low to high, beginning at start with steps of `step`."""

    low: int
    high: int
    start: int
    step: int

    @staticmethod
    def around(start: int, low: int, high: int) -> Loads:
        """A search that knows no more than where to begin."""
        start = min(max(start, low), high)
        return Loads(low, high, start, max(1, abs(start) // STRIDE))

    def from_knee(self, knee: Knee) -> Loads:
        """The same search, begun at what was found before."""
        start = self.low if knee.holds is None else knee.holds
        return Loads(self.low, self.high, start, gap_of(start))


@dataclass(frozen=True, slots=True)
class Knee:
    """The largest load that holds below every failure, and the lowest failure; None: no such."""

    holds: int | None
    fails: int | None


def gap_of(load: int) -> int:
    """How closely a knee near `load` is to be known."""
    return max(1, abs(load) // PRECISION)


def knee_of(tried: Mapping[int, bool]) -> Knee:
    """What the trials so far say."""
    fails = min((load for load, held in tried.items() if not held), default=None)
    below = [load for load, held in tried.items() if held and (fails is None or load < fails)]
    return Knee(max(below, default=None), fails)


def violations(tried: Mapping[int, bool]) -> list[int]:
    """Loads that hold although a lower one failed."""
    fails = knee_of(tried).fails
    beyond = [load for load, held in tried.items() if held and fails is not None and load > fails]
    return sorted(beyond)


def next_loads(tried: Mapping[int, bool], loads: Loads, width: int) -> list[int]:
    """What to try next, up to `width` loads at the same time; nothing once the knee is known."""
    knee = knee_of(tried)
    if knee.holds is None and knee.fails is None:
        return [loads.start]
    if knee.fails is None:
        return _outwards(loads, knee.holds or 0, loads.high, width)
    if knee.holds is None:
        return _outwards(loads, knee.fails, loads.low, width)
    gap = knee.fails - knee.holds
    if gap <= gap_of(knee.holds):
        return []
    parts = min(width + 1, gap)
    return [knee.holds + gap * part // parts for part in range(1, parts)]


def _outwards(loads: Loads, reached: int, end: int, width: int) -> list[int]:
    """Steps from what was reached towards an end, each as long as the way from the start so far."""
    found: list[int] = []
    while reached != end and len(found) < width:
        step = max(loads.step, abs(reached - loads.start))
        reached = min(reached + step, end) if end > reached else max(reached - step, end)
        found.append(reached)
    return found


def probes(tried: Mapping[int, bool], loads: Loads) -> list[int]:
    """What to try beside a knee, a quarter of it away, where nothing was tried as far out: whether
    more is harder, and what the curve is like."""
    knee = knee_of(tried)
    found = []
    if knee.holds is not None:
        below = max(knee.holds - max(1, abs(knee.holds) // STRIDE), loads.low)
        if not any(load <= below for load in tried):
            found.append(below)
    if knee.fails is not None:
        above = min(knee.fails + max(1, abs(knee.fails) // STRIDE), loads.high)
        if not any(load >= above for load in tried):
            found.append(above)
    return found
