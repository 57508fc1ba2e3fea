"""HostState: the arrays of one host, and what each row means. Lookups; nothing else.

A frame is named by what it holds: a private frame is its (VM, PPN), a shared frame is its content.
So no machine page number is stored: free memory is a count and a shared frame a reference count.
The page of VM row v with number ppn lies at slot vms[v].base_slot + ppn of `page` and `content`.

State byte (`page`): bits 0-2 state, 3 hint, 4 kind, 5 accessed, 6-7 guest use. Kind is set exactly
when the page is RESIDENT and its frame is a high one (see `frames`), or the page is SWAPPED and
lies in the host cache on an SSD, not on the datastore. Accessed is cleared by the sampler and by
`tier`, and set by every touch; on a BALLOONED page it records that the host had backed the page
when the guest pinned it, on a SWAPPED page that the host dropped it: its data is on the guest's own
disk. So is that of a page in use whose state is BALLOONED or UNTOUCHED.

Content word (`content`): bit 31 unique (a fresh guest write: can never match another page), bit 30
stale (the page owns a hint and was rewritten since), bits 0-29 the host-local content index, or for
a unique page a serial number of the guest's choosing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import typeof_impl

from hostsim.jit import Arrays, address_table, i64, opener, small
from hostsim.program import ROW
from hostsim.records import HOST, VM
from hostsim.replay import EVENT

UNTOUCHED, RESIDENT, SHARED, BALLOONED, SWAPPED, COMPRESSED = map(i64, range(6))
"""Exclusive states of a page (design section 4)."""
STATES = ("untouched", "resident", "shared", "ballooned", "swapped", "compressed")
STATE, HINT, KIND, ACCESSED = map(i64, (0x07, 0x08, 0x10, 0x20))
USE_SHIFT = i64(6)
FREE, CACHE, ANON, KERNEL = map(i64, range(4))
"""Guest use: on its free list; clean page cache; anonymous; unmovable."""

UNIQUE = i64(1 << 31)
STALE = i64(1 << 30)
INDEX = STALE - 1

HIGH, CLEAR, SOFT, HARD, LOW = map(i64, range(5))
"""Reclamation states [P 6.3]; CLEAR came with ESXi 6, other hosts are never in it."""

DRIVER_ABSENT, DRIVER_PRESENT = map(i64, range(2))

SWAP_IN, GUEST_PAGING, COW, SCAN_CPU, BLOCKED, MIGRATION, CPU, DECOMPRESS, TIER = map(i64, range(9))
"""Causes of lost time: columns of `lost`. In the order of cluster.messages.CAUSES."""
N_CAUSES = 9

PATTERN = 1000
"""Slots after which the composition of a guest image repeats, at most: entries are permille."""
IN_KERNEL, IN_FOOTPRINT, IN_GROWTH = map(i64, range(3))
ZERO, IMAGE, APPLICATION, DUPLICATE, FRESH, POOL = map(i64, range(6))
"""Content classes of a page at its first use."""
N_CLASSES = 6


AHEAD = 64
"""Draws made at a time: memory is asked for all their pages before the first is looked at."""

Array = npt.NDArray[Any]
INT = np.dtype(np.int64)


@dataclass(frozen=True)
class HostState:
    """The arrays of one host.

    host        (1,) HOST          scalars
    level_ms    (5,) int64         time in each level since the last measurement
    vms         (n_rows,) VM       a row per VM; free rows have vm -1
    order       (n_rows,) int64    rows of powered-on VMs by ascending VM id, then -1
    lost        (n_rows, 9) int64  ns lost, by cause
    debts       (n_rows, 9) int64  ns that faults cost and that did not fit into their step
    page        (n_slots,) uint8   state bytes
    content     (n_slots,) uint32  content words
    indexed     (n_contents,) int64  the frame that a content is indexed by, if any: the hinting
                                   page as 1 + (row << 40 | ppn), or minus its SHARED pages, or 0
    shared_kind (n_contents,) uint8  KIND exactly when a shared, high frame holds it, or 0
    stale       (n_stale,) uint32  open addressing, by page: 1 + each content whose hinting page was
                                   rewritten since, or 0
    large       (n_regions or 0,) uint8  1 exactly where a region of a VM is backed by a large page:
                                   empty on a host that has none
    easier      (n_contents or 0,) uint16  permille of contents that compress better than this one
    by_age      (n_slots or 0, 2) uint32  of a COMPRESSED page the next older and the next newer one
                                   in its VM's cache, as 1 + PPN, or 0. Both arrays are empty
                                   exactly where the host does not compress
    copied      (n_counters, 2) int64  a page as vm << 40 | ppn, or -1; how often it was copied
    sampled     (n_rows, n_samples) int64  PPNs of the running sampling period
    kinds       (n_images, 3, PATTERN) int64  guest use * 8 + content class of a pattern's slots
    ranks       (n_images, 3, PATTERN) int64  how many slots of the same class come before each
    class_counts (n_images, 3, 6) int64   slots of each class in one pattern
    periods     (n_images, 3) int64       slots after which each section's pattern repeats
    class_base  (n_rows, 3, 6) int64  slots of each class in a VM's sections before this one
    programs    (n_program_rows,) ROW  workloads, in slots
    replay      (n_events,) EVENT  what VMs that stand for real guests replay
    scratch     (5, n_rows) int64  working space of one call, as kernels allocate nothing
    active      (n_rows,) float64  the same
    loud        (n_loud,) uint8    the same: loudness by place in one VM's active window, see `loud`
    heard       (n_loud,) int32    the same: places that any touch changes, that a write changes
    heard_at    (n_loud,) int32    the same: where in its list a place is
    n_heard     (2,) int64         the same: lengths of the lists
    powers      (AHEAD,) float64   the same
    ahead       (2 * AHEAD,) int64     the same: what the next draws are of, and which matter
    """

    host: Array
    level_ms: Array
    vms: Array
    order: Array
    lost: Array
    debts: Array
    page: Array
    content: Array
    indexed: Array
    shared_kind: Array
    stale: Array
    large: Array
    easier: Array
    by_age: Array
    copied: Array
    sampled: Array
    kinds: Array
    ranks: Array
    class_counts: Array
    periods: Array
    class_base: Array
    programs: Array
    replay: Array
    scratch: Array
    active: Array
    loud: Array
    heard: Array
    heard_at: Array
    n_heard: Array
    powers: Array
    ahead: Array

    def __post_init__(self) -> None:
        for name in ("host", "vms", "programs", "replay"):
            array = getattr(self, name)
            if not isinstance(array, np.recarray):
                object.__setattr__(self, name, array.view(np.recarray))

    @cached_property
    def table(self) -> Array:
        """Addresses of the arrays, which never change."""
        return address_table([getattr(self, name) for name in ARRAYS])

    @cached_property
    def address(self) -> int:
        """Address of that table: all that kernels are passed."""
        return int(self.table.ctypes.data)

    @property
    def refs(self) -> Array:
        """(n_contents,) int64, read-only: pages in state SHARED. Not for kernels."""
        return _read_only(np.maximum(-self.indexed, 0))

    @property
    def hints(self) -> Array:
        """(n_contents,) int64, read-only: hinting page as row << 40 | ppn, or -1. As `refs`."""
        return _read_only(np.maximum(self.indexed, 0) - 1)

    @property
    def stale_contents(self) -> Array:
        """(n,) int64, read-only: contents with a stale hint, in no order. As `refs`."""
        return _read_only(self.stale[self.stale > 0].astype(np.int64) - 1)


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


ARRAYS: dict[str, tuple[np.dtype[Any], int]] = {
    "host": (HOST, 1),
    "level_ms": (INT, 1),
    "vms": (VM, 1),
    "order": (INT, 1),
    "lost": (INT, 2),
    "debts": (INT, 2),
    "page": (np.dtype(np.uint8), 1),
    "content": (np.dtype(np.uint32), 1),
    "indexed": (INT, 1),
    "shared_kind": (np.dtype(np.uint8), 1),
    "stale": (np.dtype(np.uint32), 1),
    "large": (np.dtype(np.uint8), 1),
    "easier": (np.dtype(np.uint16), 1),
    "by_age": (np.dtype(np.uint32), 2),
    "copied": (INT, 2),
    "sampled": (INT, 2),
    "kinds": (INT, 3),
    "ranks": (INT, 3),
    "class_counts": (INT, 3),
    "periods": (INT, 2),
    "class_base": (INT, 3),
    "programs": (ROW, 1),
    "replay": (EVENT, 1),
    "scratch": (INT, 2),
    "active": (np.dtype(np.float64), 1),
    "loud": (np.dtype(np.uint8), 1),
    "heard": (np.dtype(np.int32), 1),
    "heard_at": (np.dtype(np.int32), 1),
    "n_heard": (INT, 1),
    "powers": (np.dtype(np.float64), 1),
    "ahead": (INT, 1),
}
"""Fields of HostState with dtype and number of dimensions."""

KERNEL_TYPE = Arrays("HostState", ARRAYS)

state_at = opener(KERNEL_TYPE)
"""In a kernel: the HostState of one of its handles (`jit.handles`)."""


@typeof_impl.register(HostState)
def _typeof(value: HostState, context: Any) -> Arrays:
    return KERNEL_TYPE


PPN_BITS = i64(40)
MILLIONTHS = i64(1_000_000)
"""A rate of pages/s x 1000 over milliseconds counts millionths of a page; the rest carries."""


@small
def state_of(st: HostState, slot: int) -> int:
    """State of a page."""
    return i64(st.page[slot]) & STATE


@small
def use_of(st: HostState, slot: int) -> int:
    """Guest use of a page."""
    return i64(st.page[slot]) >> USE_SHIFT


@small
def refs_of(st: HostState, content: int) -> int:
    """Pages in state SHARED that hold a content."""
    return max(-st.indexed[content], 0)


@small
def add_refs(st: HostState, content: int, change: int) -> None:
    """More SHARED pages hold a content, or fewer. There is no hint on it."""
    st.indexed[content] -= change


@small
def hint_on(st: HostState, content: int) -> int:
    """The page, as row << 40 | ppn, that owns the hint on a content; negative where none is."""
    return st.indexed[content] - 1


@small
def set_hint(st: HostState, content: int, key: int) -> None:
    """A page owns the hint on a content that no page shares; -1: none does."""
    st.indexed[content] = key + 1


@small
def set_state(st: HostState, slot: int, state: int) -> None:
    """Move a page to `state`; hint, kind and accessed bits go, use stays."""
    st.page[slot] = (i64(st.page[slot]) & ~(STATE | HINT | KIND | ACCESSED)) | state


@small
def set_use(st: HostState, slot: int, use: int) -> None:
    """Change the guest's use of a page."""
    st.page[slot] = (i64(st.page[slot]) & 0x3F) | (use << USE_SHIFT)


@small
def alloc_of(st: HostState, v: int) -> int:
    """RESIDENT + SHARED pages of a VM."""
    return st.vms[v].resident + st.vms[v].shared


@small
def compressed_frames(st: HostState, v: int) -> int:
    """Frames that a VM's COMPRESSED pages take."""
    return (st.vms[v].compressed_quarters + 3) // 4


@small
def held_of(st: HostState, v: int) -> int:
    """What targets bound: pages in memory, and frames of compressed ones, which count as theirs."""
    return alloc_of(st, v) + compressed_frames(st, v)


@small
def entitled(st: HostState, v: int) -> int:
    """Slots that nobody may keep a VM from: its target, and its reservation whenever it grows.

    A target is bounded by what the VM has at the time, so that it lags behind a growing VM.
    """
    return max(st.vms[v].target, st.vms[v].reservation)


@small
def slot_unit(st: HostState) -> int:
    """Millionths of a page in one slot: what a carry must reach for a slot to be due."""
    return MILLIONTHS * st.host[0].sample


@small
def count_vms(st: HostState) -> int:
    """Powered-on VMs."""
    n = 0
    while n < st.order.size and st.order[n] >= 0:
        n += 1
    return n


@small
def due(st: HostState, period_ms: int) -> int:
    """How often a mechanism with this period runs in the current step, which ends at now_ms."""
    now_ms = st.host[0].now_ms
    return now_ms // period_ms - (now_ms - st.host[0].dt_ms) // period_ms
