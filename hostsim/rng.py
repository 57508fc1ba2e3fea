"""Counter-based random streams: a draw is a pure function of (seed, purpose, owner, tick, index).

No generator state exists anywhere, so draws do not depend on who asked before. The mixer is the
finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) over a Weyl sequence.
"""

from __future__ import annotations

import numpy as np

from hostsim.jit import i64, kernel, small

TOUCH, SCAN, SWAP, ORDER, GUEST, SAMPLE, DEFLATE, TRANSMIT = range(1, 9)
REMAP, POOL, SLOTS, SPREAD, EASE, BREAK, SKETCH = range(9, 16)
"""Purposes: what a stream is for."""

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32, _11 = map(np.uint64, (30, 27, 31, 32, 11))


@small
def mix(value: np.uint64) -> np.uint64:
    """One 64-bit word to another, every input bit reaching every output bit."""
    value = (value ^ (value >> _30)) * _MIX_1
    value = (value ^ (value >> _27)) * _MIX_2
    return value ^ (value >> _31)


@kernel
def stream(seed: int, purpose: int, owner: int, tick: int) -> np.uint64:
    """Key of the stream for one purpose of one VM or host in the step that starts at `tick`."""
    key = mix(np.uint64(seed) + _WEYL)
    key = mix(key ^ (np.uint64(purpose) * _MIX_1))
    key = mix(key ^ (np.uint64(owner + 1) * _MIX_2))
    return mix(key ^ (np.uint64(tick) * _WEYL))


@small
def word(key: np.uint64, index: int) -> np.uint64:
    """Draw `index` of stream `key`: 64 uniform bits."""
    return mix(key + np.uint64(index) * _WEYL)


@small
def place_of(word: np.uint64, n: int) -> int:
    """One of `n` places, uniform, from the high half of a random word; n < 2**32."""
    return i64(((word >> _32) * np.uint64(n)) >> _32)


@small
def below(key: np.uint64, index: int, bound: int) -> int:
    """Draw `index` of stream `key`, uniform in [0, bound), for bound < 2**32.

    Multiply-shift of the upper 32 bits; the bias is below bound / 2**32.
    """
    return place_of(np.uint64(word(key, index)), bound)  # to Python, kernels return plain integers


@small
def unit(word: np.uint64) -> float:
    """Uniform in [0, 1) from a draw, 53 bits."""
    return np.float64(word >> _11) * 2.0**-53
