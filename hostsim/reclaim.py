"""PURE: free memory -> reclamation state, and which means it adds [P 6.3].

Balloons follow their targets in every state. CLEAR, where there is one, breaks large pages to share
their parts. SOFT adds paging of VMs that cannot balloon, HARD of every VM above its target, LOW
also blocks those VMs until memory is free again. A fall may skip levels; a rise climbs one level a
step, and only once free memory is strictly above the threshold.
"""

from __future__ import annotations

from typing import NamedTuple

from hostsim.config import Reclaim
from hostsim.jit import kernel, small
from hostsim.state import CLEAR, HARD, HIGH, LOW, SOFT
from hostsim.units import GIB, slots

_SLIDES = ((4 * GIB, 60), (8 * GIB, 40), (16 * GIB, 20))
"""Part of host memory, and its permille in minFree; 10 permille beyond (vSphere 5)."""


class Thresholds(NamedTuple):
    """In slots: a level is entered below `down_*` and left upwards above `up_*`. A host without a
    CLEAR state enters it and leaves it as the levels beside it, which passes it over; so does one
    whose CLEAR is narrower than a slot."""

    goal: int
    """Free memory that targets and paging aim for: just enough to be above SOFT again."""
    down_clear: int
    down_soft: int
    down_hard: int
    down_low: int
    up_high: int
    up_clear: int
    up_soft: int
    up_hard: int


def minfree_bytes(memory_bytes: int) -> int:
    """The sliding scale of vSphere 5: 6 % of the first 4 GiB, 4 % of the next 8, 2 %, 1 %."""
    total, left = 0, memory_bytes
    for part, permille in _SLIDES:
        total += min(left, part) * permille
        left -= min(left, part)
    return (total + left * 10) // 1000


def thresholds(config: Reclaim, memory_bytes: int, sample: int) -> Thresholds:
    """Thresholds of a host. Reading (a) enters a level below the threshold of the one above.

    With `clear` reading (b) is what ESXi 6 does: CLEAR is entered below 100 % of minFree and left
    above 400 %.
    """
    base = memory_bytes if config.minfree == "fixed" else minfree_bytes(memory_bytes)
    clear_permille = config.high if config.clear is None else config.clear
    high, clear, soft, hard, low = (
        slots(base * permille // 1000, sample)
        for permille in (config.high, clear_permille, config.soft, config.hard, config.low)
    )
    margin_permille = config.margin
    if margin_permille is None:
        margin_permille = 5 if config.reading == "a" else 0
    margin = slots(memory_bytes * margin_permille // 1000, sample)
    if config.reading == "a":
        down = (high, clear, soft, hard)
    else:
        down = (soft if config.clear is None else clear, soft, hard, low)
    up = [threshold + margin for threshold in (high, clear, soft, hard)]
    return Thresholds(clear + margin + 1, *down, *up)


@kernel
def next_level(
    level: int,
    free: int,
    down: tuple[int, int, int, int],
    up: tuple[int, int, int, int],
) -> int:
    """The level of the next step. `down[i]` enters level i + 1, `up[i]` leaves it for level i."""
    fallen = level
    while fallen < LOW and free < down[fallen]:
        fallen += 1
    if fallen == level and level > HIGH and free > up[level - 1]:
        return HIGH if level == SOFT and up[CLEAR] == up[HIGH] else level - 1
    return fallen


@small
def may_page(level: int, can_balloon: bool) -> bool:
    """Whether a VM above its target may be paged out in this level."""
    return level >= HARD or (level == SOFT and not can_balloon)


@small
def blocks(level: int) -> bool:
    """Whether VMs above their target must stand still."""
    return level == LOW
