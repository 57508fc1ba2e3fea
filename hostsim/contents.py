"""Which contents a host's VMs can hold: ranges of host-local indexes, one per family and salt.

A host keeps dense counts only over contents that its own VMs can hold. A range is allotted when
the first VM that needs it powers on, grows when a larger VM comes, and ends with its last user.
Growing or ending moves other ranges: every content word of the host is then renumbered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hostsim.arrays import stale_size
from hostsim.compress import rank_contents
from hostsim.share import stale_put
from hostsim.state import (
    APPLICATION,
    DUPLICATE,
    IMAGE,
    INDEX,
    POOL,
    STALE,
    UNIQUE,
    Array,
    HostState,
)

ZERO_RANGE, IMAGE_RANGE, APPLICATION_RANGE, DUPLICATE_RANGE = range(4)


class Key(NamedTuple):
    """Names a range across hosts: its kind, the family's (or VM's) id, the salt group."""

    kind: int
    family: int
    salt: int


class Range(NamedTuple):
    """Where a range lies on this host."""

    base: int
    length: int
    users: int


Ranges = dict[Key, Range]
"""In order of base."""


Keys = tuple[Key, Key, Key, Key]
BASES = ("zero", "image_base", "app_base", "dup_base")
"""Fields of a VM row that say where its ranges lie, in the order of their keys."""


def keys_of(row: Any) -> Keys:
    """The ranges that a VM (its VM row) draws from: zero, image, application, duplicates."""
    return _keys(*(int(row[name]) for name in ("vm", "image_family", "app_family", "salt")))


def all_keys(rows: Array) -> list[Keys]:
    """The same of VM rows, (n,)."""
    columns = (rows[name].tolist() for name in ("vm", "image_family", "app_family", "salt"))
    return [_keys(*ids) for ids in zip(*columns, strict=True)]


def _keys(vm: int, image: int, application: int, salt: int) -> Keys:
    return (
        Key(ZERO_RANGE, 0, salt),
        Key(IMAGE_RANGE, image, salt),
        Key(APPLICATION_RANGE, application, salt),
        Key(DUPLICATE_RANGE, vm, salt),
    )


def lengths_of(class_lengths: Array) -> tuple[int, int, int, int]:
    """Lengths of those ranges, from distinct contents per class, (6,) int64.

    An image's range begins with its pool: that is as long in every VM of the image. The zero page
    is followed by what stands for all contents whose other pages are not in the sample.
    """
    classes = [POOL, IMAGE, APPLICATION, DUPLICATE]
    pool, image, application, duplicate = class_lengths[classes].tolist()
    return 2, pool + image, application, duplicate


def acquire(ranges: Ranges, *wanted: dict[Key, int]) -> Ranges:
    """The ranges with one more user of each one that a VM wants, at least as long as it asks."""
    longer = {key: (old.length, old.users) for key, old in ranges.items()}
    for key, length in [pair for one in wanted for pair in one.items()]:
        old_length, users = longer.get(key, (0, 0))
        longer[key] = (max(old_length, length), users + 1)
    return _placed(longer)


def release(ranges: Ranges, unwanted: Sequence[Key]) -> Ranges:
    """The ranges with one user less of each; those without users are gone."""
    fewer = {key: (old.length, old.users - (key in unwanted)) for key, old in ranges.items()}
    return _placed({key: at for key, at in fewer.items() if at[1] > 0})


def _placed(lengths: dict[Key, tuple[int, int]]) -> Ranges:
    ranges: Ranges = {}
    base = 0
    for key, (length, users) in lengths.items():
        ranges[key] = Range(base, length, users)
        base += length
    return ranges


def move(st: HostState, old: Ranges, new: Ranges) -> HostState:
    """The host's arrays with every content index moved from the old ranges to the new ones."""
    n_new = sum(at.length for at in new.values())
    indexed, shared_kind = np.zeros(n_new, np.int64), np.zeros(n_new, np.uint8)
    shift = np.zeros(len(st.indexed) + 1, np.int64)
    for key, at in old.items():
        to = new.get(key)
        if to is None:
            continue
        here, there = np.s_[at.base : at.base + at.length], np.s_[to.base : to.base + at.length]
        shift[here] = to.base - at.base
        indexed[there], shared_kind[there] = st.indexed[here], st.shared_kind[here]
    if shift.any():
        common = np.flatnonzero(st.content & UNIQUE == 0)
        words = st.content[common].astype(np.int64)
        index = words & INDEX
        st.content[common] = ((index + shift[index]) | (words & STALE)).astype(np.uint32)
    at_stale = st.stale_contents
    table = np.zeros(stale_size(n_new), np.uint32)
    moved = replace(st, indexed=indexed, shared_kind=shared_kind, stale=table)
    moved = with_ranks(moved, new)
    # In order: where entries lie in the table must not tell when its VMs came.
    for content in np.sort(at_stale + shift[at_stale]).tolist():
        stale_put(moved, content)
    return moved


def with_ranks(st: HostState, ranges: Ranges) -> HostState:
    """The arrays with `easier` filled for these ranges, where the host compresses. A content has
    its rank whatever its salt group: it is the same content."""
    if st.host[0].compression == 0:
        return st
    ranked = replace(st, easier=np.zeros(len(st.indexed), np.uint16))
    for key, at in ranges.items():
        owner = 2 * key.family if key.family >= 0 else -2 * key.family - 1
        rank_contents(ranked, at.base, at.length, owner, key.kind)
    return ranked
