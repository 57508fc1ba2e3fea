"""What a host reports of itself: one row of numbers per host and per VM, in unscaled pages.

Reading a measurement ends a measuring interval: counters and time accounts start again at zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from hostsim import sample
from hostsim.jit import kernel
from hostsim.share import shared_saved
from hostsim.state import Array, HostState, alloc_of, count_vms

CAUSES = (
    "swap_in",
    "guest_paging",
    "cow",
    "scan",
    "blocked",
    "migration",
    "cpu",
    "decompress",
)
"""Why a VM lost time (design section 5), in the order of every array of causes."""

LEVELS = ("high", "soft", "hard", "low")
"""Reclamation states [P 6.3], in the order of every array of levels."""

HOST_ROW = np.dtype(
    [
        ("epoch", np.int64),
        ("host", np.int64),
        ("vms", np.int64),
        # Memory at the end of the epoch, in pages (design section 4, accounting).
        ("configured_pages", np.int64),
        ("allocated_pages", np.int64),
        ("consumed_pages", np.int64),
        ("active_pages", np.int64),
        ("shared_pages", np.int64),
        ("shared_saved_pages", np.int64),
        ("zero_saved_pages", np.int64),
        ("ballooned_pages", np.int64),
        ("swapped_pages", np.int64),
        ("compressed_pages", np.int64),
        ("untouched_pages", np.int64),
        ("overhead_pages", np.int64),
        ("free_pages", np.int64),
        # Time in each reclamation state during the epoch, in milliseconds.
        ("high_ms", np.int64),
        ("soft_ms", np.int64),
        ("hard_ms", np.int64),
        ("low_ms", np.int64),
        # CPU demand of the VMs over the epoch, in permille of the host's capacity.
        ("cpu_demand_permille", np.int64),
        # Events during the epoch, in pages.
        ("zero_fills", np.int64),
        ("scanned_pages", np.int64),
        ("shares_made", np.int64),
        ("stale_hints", np.int64),
        ("cow_breaks", np.int64),
        ("inflated_pages", np.int64),
        ("deflated_pages", np.int64),
        ("swap_out_pages", np.int64),
        ("swap_in_pages", np.int64),
        # Paged out without a write, and overwritten without having been read (config.Paging).
        ("swap_dropped_pages", np.int64),
        ("swap_skipped_pages", np.int64),
        ("double_paging_pages", np.int64),
        ("stale_read_pages", np.int64),
        ("guest_paging_pages", np.int64),
        ("stalled_touches", np.int64),
        # First touches of sampled pages, in periods that ended; a page drawn twice counts twice.
        ("minor_faults", np.int64),
        ("transmitted_pages", np.int64),
        ("copied_pages", np.int64),
        ("remapped_pages", np.int64),
    ]
)
"""One row per epoch and host."""

VM_ROW = np.dtype(
    [
        ("epoch", np.int64),
        ("host", np.int64),
        ("vm", np.int64),
        # During the epoch: powered-on time and time lost, in nanoseconds; touches done.
        ("on_ns", np.int64),
        ("lost_ns", np.int64, (len(CAUSES),)),
        ("touches", np.int64),
        ("work_left_ns", np.int64),
        # At its end, in pages.
        ("target_pages", np.int64),
        ("allocated_pages", np.int64),
        ("consumed_pages", np.int64),
        ("active_pages", np.int64),
        # The slow and the fast average alone, of which `active` is the maximum.
        ("active_slow_pages", np.int64),
        ("active_fast_pages", np.int64),
        ("shared_pages", np.int64),
        ("ballooned_pages", np.int64),
        ("swapped_pages", np.int64),
        ("untouched_pages", np.int64),
        ("guest_swapped_pages", np.int64),
    ]
)
"""One row per epoch and VM that was powered on in it."""

Rows = npt.NDArray[Any]

_EVENTS = {
    "zero_fills": "zero_fills",
    "scanned_pages": "scanned",
    "shares_made": "shares_made",
    "stale_hints": "stale_hints",
    "cow_breaks": "cow_breaks",
    "inflated_pages": "inflated",
    "deflated_pages": "deflated",
    "swap_out_pages": "swap_outs",
    "swap_in_pages": "swap_ins",
    "swap_dropped_pages": "swap_drops",
    "swap_skipped_pages": "swap_skips",
    "double_paging_pages": "double_pagings",
    "stale_read_pages": "stale_reads",
    "stalled_touches": "stalled_touches",
    "transmitted_pages": "transmits",
    "copied_pages": "copies",
    "remapped_pages": "remaps",
}
"""Columns of HOST_ROW that are counters of the state, and their names there."""


def _counts_pages(row: np.dtype[Any], also: Iterable[str]) -> npt.NDArray[np.bool_]:
    """(n_int64,) bool: which numbers of a row count slots, so that a slot's k pages must show."""
    also = set(also)
    flags: list[bool] = []
    for name in row.names or ():
        flags += [name.endswith("_pages") or name in also] * (row[name].itemsize // 8)
    return np.array(flags)


_HOST_SCALES = _counts_pages(HOST_ROW, _EVENTS)
_VM_SCALES = _counts_pages(VM_ROW, ["touches"])


@kernel
def estimate_active(st: HostState, active: Array) -> None:
    """Estimated active memory of each VM in id order, in pages; active (n,) int64, out."""
    for i in range(count_vms(st)):
        v = st.order[i]
        active[i] = np.floor(sample.active_fraction(st, v) * (alloc_of(st, v) * st.host[0].sample))


def measure(st: HostState, zeros: list[int]) -> tuple[Rows, Rows]:
    """A (1,) HOST_ROW and an (n_vms,) VM_ROW in id order; epoch is left 0.

    zeros: content indexes of the zero pages of all salt groups.

    A slot stands for k pages, also where they share a frame: k contents, each in a frame of its
    own. But there is one zero page, so its frame counts once; and what is shared with pages
    outside the sample (the content after it) is in frames that those have.
    """
    n = count_vms(st)
    rows = st.order[:n]
    host, vms = np.zeros(1, HOST_ROW), np.zeros(n, VM_ROW)
    # Plain arrays: a recarray looks every field up twice.
    h, of = st.host.view(np.ndarray)[0], st.vms.view(np.ndarray)[rows]
    k, saved = int(h["sample"]), int(shared_saved(st))
    once = (k - 1) * sum(int(st.refs[zero]) > 0 for zero in zeros)
    unreal = once + k * sum(int(st.refs[zero + 1]) > 0 for zero in zeros)
    distinct = int(h["distinct"]) * k - unreal
    sharers = max(int(of["shared"].sum()) * k, 1)
    for name in ("ballooned", "swapped", "untouched", "shared"):
        vms[f"{name}_pages"] = of[name]
        host[f"{name}_pages"] = of[name].sum()
    vms["vm"], vms["host"], host["host"], host["vms"] = of["vm"], h["host"], h["host"], n
    vms["on_ns"], vms["touches"], vms["work_left_ns"] = of["on_ns"], of["touches"], of["backlog_ns"]
    vms["lost_ns"] = st.lost[rows]
    vms["target_pages"], vms["guest_swapped_pages"] = of["target"], of["guest_swapped"]
    vms["allocated_pages"] = of["resident"] + of["shared"]
    vms["consumed_pages"] = of["resident"]
    host["configured_pages"] = of["size_slots"].sum()
    host["allocated_pages"] = vms["allocated_pages"].sum()
    host["consumed_pages"] = of["resident"].sum() + h["distinct"]
    host["shared_saved_pages"] = saved
    host["zero_saved_pages"] = sum(max(int(st.refs[zero]) - 1, 0) for zero in zeros)
    host["overhead_pages"], host["free_pages"] = h["overhead"], h["free"]
    for name, counter in _EVENTS.items():
        host[name] = h[counter]
    host["guest_paging_pages"] = h["guest_page_ins"] + h["guest_page_outs"]
    host["minor_faults"] = h["minor_faults"]
    for table, is_counted in ((host, _HOST_SCALES), (vms, _VM_SCALES)):
        numbers = table.view(np.int64).reshape(len(table), len(is_counted))
        numbers *= np.where(is_counted, k, 1)
    vms["consumed_pages"] += of["shared"] * k * distinct // sharers
    host["consumed_pages"] -= unreal
    for name, pages in (("shared_saved", unreal), ("zero_saved", once), ("free", unreal)):
        host[f"{name}_pages"] += pages
    active = np.zeros(n, np.int64)
    estimate_active(st, active)
    vms["active_pages"], host["active_pages"] = active, active.sum()
    for average in ("slow", "fast"):
        vms[f"active_{average}_pages"] = of[average] * vms["allocated_pages"]
    elapsed_ms = int(st.level_ms.sum())
    host["cpu_demand_permille"] = h["cpu_demand_ms"] // max(h["cpus"] * elapsed_ms, 1)
    for level, name in enumerate(LEVELS):
        host[f"{name}_ms"] = st.level_ms[level]
    _start_again(st)
    return host, vms


def _start_again(st: HostState) -> None:
    """Begin a new measuring interval."""
    host, vms = st.host.view(np.ndarray), st.vms.view(np.ndarray)
    for counter in (
        *_EVENTS.values(),
        "guest_page_ins",
        "guest_page_outs",
        "minor_faults",
        "cpu_demand_ms",
    ):
        host[counter] = 0
    for counter in ("cow_reuses", "pops", "shared_before_swap", "guest_refusals"):
        host[counter] = 0
    st.level_ms[:] = 0
    st.lost[:] = 0
    vms["on_ns"] = 0
    vms["touches"] = 0
