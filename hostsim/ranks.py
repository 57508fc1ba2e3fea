"""The page of a given rank among those of some kind: pages are counted by blocks of bytes.

Reading a VM's state bytes one by one took most of the time of balloons that return their last
pages, and of sampling; compilers count a block of them many at a time. Nothing here writes.
"""

from __future__ import annotations

import numpy as np

from hostsim.jit import i64, kernel, small
from hostsim.state import (
    BALLOONED,
    COMPRESSED,
    RESIDENT,
    SHARED,
    STATE,
    SWAPPED,
    USE_SHIFT,
    Array,
)

BLOCK = 64
"""Pages that are counted together: fewer than a byte counts to."""

Kind = tuple[np.uint8, np.uint8, np.uint8, np.uint8, np.uint8]
"""A mask, and four state bytes: a page is of the kind if what the mask leaves equals one."""

_STATE, _ALL = np.uint8(STATE), np.uint8(STATE | 3 << USE_SHIFT)
_RESIDENT, _SHARED, _SWAPPED = np.uint8(RESIDENT), np.uint8(SHARED), np.uint8(SWAPPED)
_BALLOONED, _COMPRESSED = np.uint8(BALLOONED), np.uint8(COMPRESSED)

IN_MEMORY: Kind = (_STATE, _RESIDENT, _SHARED, _SHARED, _SHARED)
PINNED: Kind = (_STATE, _BALLOONED, _BALLOONED, _BALLOONED, _BALLOONED)


@small
def used_as(use: int) -> Kind:
    """Pages of one guest use that hold its data in guest memory."""
    bits = np.uint8(use << USE_SHIFT)
    return (
        _ALL,
        np.uint8(bits | _RESIDENT),
        np.uint8(bits | _SHARED),
        np.uint8(bits | _SWAPPED),
        np.uint8(bits | _COMPRESSED),
    )


@kernel
def count(block: Array, kind: Kind) -> int:
    """Pages of the kind in at most BLOCK state bytes. In bytes throughout, for vector code."""
    mask, a, b, c, d = kind
    inside = np.uint8(0)
    for i in range(block.size):
        byte = block[i] & mask
        inside = np.uint8(inside + np.uint8((byte == a) | (byte == b) | (byte == c) | (byte == d)))
    return i64(inside)


@kernel
def place_in(block: Array, kind: Kind, rank: int) -> int:
    """Where in a block the page of the kind lies that has `rank` others before it."""
    mask, a, b, c, d = kind
    i = i64(-1)
    while rank >= 0:
        i += 1
        byte = block[i] & mask
        rank -= (byte == a) | (byte == b) | (byte == c) | (byte == d)
    return i


@kernel
def place_of(page: Array, kind: Kind, rank: int) -> int:
    """As `place_in`, for any number of state bytes. There must be more than `rank` such pages."""
    start = i64(0)
    inside = count(page[:BLOCK], kind)
    while rank >= inside:
        rank -= inside
        start += BLOCK
        inside = count(page[start : start + BLOCK], kind)
    return start + place_in(page[start : start + BLOCK], kind, rank)
