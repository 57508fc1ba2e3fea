"""A host's arrays before it has a VM, and the sizes of those that grow with its VMs."""

from __future__ import annotations

from functools import cache

import numpy as np

from hostsim.program import ROW
from hostsim.records import HOST, VM
from hostsim.replay import EVENT
from hostsim.state import AHEAD, N_CAUSES, N_CLASSES, PATTERN, Array, HostState


def stale_size(n_contents: int) -> int:
    """Length of `stale`, for one entry a content at most: four fifths full at most."""
    return n_contents + n_contents // 4 + 1


def empty(n_rows: int, n_samples: int, n_counters: int = 1) -> HostState:
    """A host's arrays with no VM."""
    vms = np.zeros(n_rows, VM).view(np.recarray)
    vms["vm"] = -1
    return HostState(
        host=np.zeros(1, HOST).view(np.recarray),
        level_ms=np.zeros(5, np.int64),
        vms=vms,
        order=np.full(n_rows, -1, np.int64),
        lost=np.zeros((n_rows, N_CAUSES), np.int64),
        debts=np.zeros((n_rows, N_CAUSES), np.int64),
        page=np.zeros(0, np.uint8),
        content=np.zeros(0, np.uint32),
        indexed=np.zeros(0, np.int64),
        shared_kind=np.zeros(0, np.uint8),
        stale=np.zeros(stale_size(0), np.uint32),
        large=np.zeros(0, np.uint8),
        easier=np.zeros(0, np.uint16),
        by_age=np.zeros((0, 2), np.uint32),
        copied=np.full((n_counters, 2), -1, np.int64),
        sampled=np.full((n_rows, n_samples), -1, np.int64),
        kinds=np.zeros((0, 3, PATTERN), np.int64),
        ranks=np.zeros((0, 3, PATTERN), np.int64),
        class_counts=np.zeros((0, 3, N_CLASSES), np.int64),
        periods=np.zeros((0, 3), np.int64),
        class_base=np.zeros((n_rows, 3, N_CLASSES), np.int64),
        programs=np.zeros(0, ROW).view(np.recarray),
        replay=np.zeros(0, EVENT).view(np.recarray),
        scratch=np.zeros((5, n_rows), np.int64),
        active=np.zeros(n_rows, np.float64),
        **window_space(0),
        n_heard=np.zeros(2, np.int64),
        powers=np.zeros(AHEAD, np.float64),
        ahead=np.zeros(2 * AHEAD, np.int64),
    )


def window_space(n: int) -> dict[str, Array]:
    """Working space for active windows of up to `n` pages.

    It holds nothing between two calls of a kernel, so hosts of a process share it: it stays in the
    processor's caches. There is one for each power of two.
    """
    return _window_space(n.bit_length())


@cache
def _window_space(bits: int) -> dict[str, Array]:
    kinds = {"loud": np.uint8, "heard": np.int32, "heard_at": np.int32}
    return {name: np.zeros(1 << bits, kind) for name, kind in kinds.items()}
