"""Contents of a VM named independently of its host: by range, and place in the range."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hostsim import contents
from hostsim.contents import Ranges
from hostsim.host import Host
from hostsim.records import VM
from hostsim.state import INDEX, STALE, UNIQUE, Array

RANGE_SHIFT = 28
"""A content of a VM, host-independent: which of its four ranges << 28 | place in that range."""


class VmRanges(NamedTuple):
    """Where a VM's ranges lie on its host, in the order of `contents.keys_of`; (4,) int64 each."""

    bases: Array
    lengths: Array


def ranges_of(host: Host, v: int) -> VmRanges:
    """The ranges of the VM in row v."""
    found = [host.ranges[key] for key in contents.keys_of(host.state.vms.view(VM, np.ndarray)[v])]
    bases = np.array([one.base for one in found], np.int64)
    return VmRanges(bases, np.array([one.length for one in found], np.int64))


def to_local(words: Array, ranges: VmRanges) -> Array:
    """Content words of a VM, (n,) int64, with host indexes named by range and place."""
    index = words & INDEX
    # By base, then length: an empty range lies where another one begins.
    order = np.lexsort((ranges.lengths, ranges.bases))
    which = order[np.searchsorted(ranges.bases[order], index, side="right") - 1]
    named = (which << RANGE_SHIFT) | (index - ranges.bases[which])
    return np.where(words & UNIQUE != 0, words, named | (words & STALE))


def local_names(ranges: Ranges) -> Array:
    """(n_contents,) int64: how `to_local` names each content of a host, in whichever VM."""
    first = [(key.kind << RANGE_SHIFT) - at.base for key, at in ranges.items()]
    lengths = [at.length for at in ranges.values()]
    return np.repeat(np.array(first, np.int64), lengths) + np.arange(sum(lengths))


def named(words: Array, names: Array) -> Array:
    """As `to_local`, with the names of all contents of the host."""
    common = names.take(words & INDEX, mode="clip") | (words & STALE)
    return np.where(words & UNIQUE != 0, words, common)


def to_host(words: Array, ranges: VmRanges) -> Array:
    """The reverse of `to_local`. Raises ValueError for a place outside its range."""
    which, place = (words & INDEX) >> RANGE_SHIFT, words & ((1 << RANGE_SHIFT) - 1)
    is_common = words & UNIQUE == 0
    if (is_common & (place >= ranges.lengths[which])).any():
        raise ValueError("a content outside the VM's ranges")
    return np.where(is_common, (ranges.bases[which] + place) | (words & STALE), words)
