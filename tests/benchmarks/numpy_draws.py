"""Draws and looks of hostsim's kernels, for whole arrays of pages with NumPy."""

from __future__ import annotations

import numpy as np

from hostsim import state
from hostsim.state import Array

WEYL, _MIX_1, _MIX_2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_30, _27, _31, _32 = map(np.uint64, (30, 27, 31, 32))
_LOW_32, _PERMILLE = np.uint64(0xFFFFFFFF), np.uint64(1000)

STATE, HINT, ACCESSED = map(np.uint8, (state.STATE, state.HINT, state.ACCESSED))
RESIDENT, SHARED, SWAPPED = map(np.uint8, (state.RESIDENT, state.SHARED, state.SWAPPED))
USE_SHIFT, ANON, USE = map(np.uint8, (state.USE_SHIFT, state.ANON, 3 << state.USE_SHIFT))
UNIQUE, STALE, INDEX = map(np.uint32, (state.UNIQUE, state.STALE, state.INDEX))
"""In the types of the arrays: NumPy would widen them otherwise."""


def mix(value: Array) -> Array:
    """As rng.mix."""
    value = (value ^ (value >> _30)) * _MIX_1
    value = (value ^ (value >> _27)) * _MIX_2
    return value ^ (value >> _31)


def words_of(key: int, n: int) -> Array:
    """The first `n` draws of a stream."""
    return mix(np.uint64(key) + np.arange(n, dtype=np.uint64) * WEYL)


def below(key: int, index: Array, bound: int) -> Array:
    """As rng.below, for draws of any index."""
    return place_of(mix(np.uint64(key) + index.astype(np.uint64) * WEYL), bound)


def place_of(words: Array, n: int) -> Array:
    """As rng.place_of."""
    return (((words >> _32) * np.uint64(n)) >> _32).astype(np.int64)


def is_write_of(words: Array, writes: int) -> Array:
    """As touch.is_write_of."""
    return ((words & _LOW_32) * _PERMILLE) >> _32 < np.uint64(writes)


def zipf_ranks(words: Array, n: int) -> Array:
    """As touch.zipf_rank."""
    octaves = 0
    while (2 << octaves) - 1 < n:
        octaves += 1
    total = octaves * (1 << octaves) + n - ((1 << octaves) - 1)
    low = (np.int64(1) << np.minimum(place_of(words, total) >> octaves, octaves)) - 1
    width = np.minimum(low + 1, n - low).astype(np.uint64)
    return low + (((words & _LOW_32) * width) >> _32).astype(np.int64)


def is_in_memory(page: Array) -> Array:
    """Whether pages with these state bytes are RESIDENT or SHARED: neighbours, as numbers."""
    return (page & STATE) - RESIDENT <= np.uint8(1)


def loudness(page: Array, content: Array) -> Array:
    """As loud.loudness."""
    use = page >> USE_SHIFT
    is_known = (page & ACCESSED != 0) & (use > 0)
    is_told = (page & HINT == 0) | (content & STALE != 0)
    is_own = (page & STATE == RESIDENT) & (content & UNIQUE != 0) & is_told
    keeps_writes = (use != ANON) | is_own
    return np.uint8(3) - np.uint8(2) * (is_known & is_in_memory(page)) - keeps_writes
