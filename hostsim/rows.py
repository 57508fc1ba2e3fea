"""In which rows a host reports of itself: numbers of each host and each VM, in unscaled pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CAUSES = (
    "swap_in",
    "guest_paging",
    "cow",
    "scan",
    "blocked",
    "migration",
    "cpu",
    "decompress",
    "tier",
)
"""Why a VM lost time (design section 5), in the order of every array of causes."""

LEVELS = ("high", "clear", "soft", "hard", "low")
"""Reclamation states [P 6.3], in the order of every array of levels."""

HOST_ROW = np.dtype(
    [
        ("epoch", np.int64),
        ("host", np.int64),
        # 1, or 0 of a host that is powered off: all but spare_pages is 0 then.
        ("on", np.int64),
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
        # Frames that compressed pages take: neither consumed nor overhead.
        ("compression_cache_pages", np.int64),
        # Pages that are parts of large ones.
        ("large_pages", np.int64),
        ("overhead_pages", np.int64),
        # Frames in use that lie on NVMe: parts of what is consumed, overhead and cache.
        ("nvme_pages", np.int64),
        ("free_pages", np.int64),
        # Free frames without what a sampled zero page adds to them; kept for arriving VMs.
        ("spare_pages", np.int64),
        ("held_pages", np.int64),
        # Time in each reclamation state during the epoch, in milliseconds.
        ("high_ms", np.int64),
        ("clear_ms", np.int64),
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
        # Those of them that the host cache on an SSD took and gave.
        ("host_cache_out_pages", np.int64),
        ("host_cache_in_pages", np.int64),
        # Paged out without a write, and overwritten without having been read (config.Paging).
        ("swap_dropped_pages", np.int64),
        ("swap_skipped_pages", np.int64),
        # Into VMs' compression caches, out of them by a touch, out of them to swap.
        ("compressions", np.int64),
        ("decompressions", np.int64),
        ("cache_evictions", np.int64),
        # Large pages broken into small ones.
        ("large_breaks", np.int64),
        # Touches of pages on NVMe; those that came up to DRAM by it; pages that went down.
        ("tier_touches", np.int64),
        ("tier_up_pages", np.int64),
        ("tier_down_pages", np.int64),
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
        # During the epoch: powered-on time and time lost, in nanoseconds; touches done; how many of
        # them write, on average, and pages that came into use.
        ("on_ns", np.int64),
        ("lost_ns", np.int64, (len(CAUSES),)),
        ("touches", np.int64),
        ("writes", np.int64),
        ("work_left_ns", np.int64),
        # CPU time that it would have used, had it run all the time.
        ("cpu_ms", np.int64),
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
        ("compressed_pages", np.int64),
        ("untouched_pages", np.int64),
        ("guest_swapped_pages", np.int64),
    ]
)
"""One row per epoch and VM that was powered on in it."""

Rows = npt.NDArray[Any]

Tables = tuple[Rows, Rows]
"""Rows of hosts and rows of VMs."""


def tables_of(n_hosts: int, n_vms: int) -> Tables:
    """So many rows of zeros; for kernels, which fill them, and which tests run uncompiled."""
    hosts, vms = np.zeros(n_hosts, HOST_ROW), np.zeros(n_vms, VM_ROW)
    return hosts.view(np.recarray), vms.view(np.recarray)
