"""What the literal twin reports of itself: the rows of hostsim.rows, counted page by page.

Amounts are in pages, so a slot counts for all pages that it stands for. Reading a measurement ends
a measuring interval: events and time accounts start again at zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import naive_large as large
import naive_tier as tier
from naive_compare import TOLERANCE, Difference
from naive_host import active_fraction
from naive_lost import CAUSES
from naive_machine import ELSEWHERE, ZERO_PAGE, Content
from naive_state import Esx, Vm

Row = dict[str, Any]
"""A row by column."""

LEVELS = ["high", "clear", "soft", "hard", "low"]
ESTIMATES = ("active_pages", "active_slow_pages", "active_fast_pages")
EVENTS = {
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
    "compressions": "compressions",
    "decompressions": "decompressions",
    "cache_evictions": "cache_evictions",
    "host_cache_out_pages": "ssd_outs",
    "host_cache_in_pages": "ssd_ins",
    "tier_touches": "tier_touches",
    "tier_up_pages": "tier_ups",
    "tier_down_pages": "tier_downs",
}


def whole_pages(exact: Fraction) -> range:
    """Whole pages, rounded down: two answers where float64 may fall either way."""
    return range(int((exact - TOLERANCE) // 1), int((exact + TOLERANCE) // 1) + 1)


def frames_of(esx: Esx, content: Content) -> int:
    """Shared frames with a content: at most one per salt group."""
    frames = [esx.machine.frames[frame.mpn] for frame in esx.index.shared_frames()]
    return sum(frame.content == content for frame in frames)


def unreal_pages(esx: Esx) -> int:
    """Pages that count as shared frames and are none.

    A frame in a sample of one in k is k frames of as many contents. But there is one zero page, and
    what is held by a page outside the sample is in that one's frame."""
    return frames_of(esx, ZERO_PAGE) * (esx.sample - 1) + frames_of(esx, ELSEWHERE) * esx.sample


def vm_row(esx: Esx, vm: Vm) -> Row:
    """A VM's row, but for its active memory."""
    k = esx.sample
    shared = len(vm.pages("shared"))
    sharers = sum(len(other.pages("shared")) for other in esx.on())
    frames = len(esx.index.shared_frames()) * k - unreal_pages(esx)
    its_part = shared * frames // max(sharers, 1)
    return {
        "host": esx.host,
        "vm": vm.spec.vm,
        "on_ns": vm.on_ns,
        "lost_ns": [vm.lost[cause] for cause in CAUSES],
        "touches": vm.touches * k,
        "writes": vm.writes * k // 1000,
        "cpu_ms": vm.cpu_ms // 1000,
        "work_left_ns": vm.backlog_ns,
        "target_pages": vm.target * k,
        "allocated_pages": vm.alloc() * k,
        "consumed_pages": len(vm.pages("resident")) * k + its_part,
        "shared_pages": shared * k,
        "ballooned_pages": len(vm.pages("ballooned")) * k,
        "swapped_pages": len(vm.pages("swapped")) * k,
        "compressed_pages": len(vm.compressed) * k,
        "untouched_pages": len(vm.pages("untouched")) * k,
        "guest_swapped_pages": vm.guest_swapped() * k,
    }


def host_row(esx: Esx) -> Row:
    """The host's row, but for its active memory."""
    k, vms = esx.sample, esx.on()
    resident = sum(len(vm.pages("resident")) for vm in vms)
    shared_frames = esx.index.shared_frames()
    zero_pages = [f for f in shared_frames if esx.machine.frames[f.mpn].content == ZERO_PAGE]
    unreal = unreal_pages(esx)
    elapsed_ms = esx.level_ms.total()
    row: Row = {
        "host": esx.host,
        "on": 1,
        "vms": len(vms),
        "configured_pages": sum(vm.size for vm in vms) * k,
        "allocated_pages": sum(vm.alloc() for vm in vms) * k,
        "consumed_pages": (resident + len(shared_frames)) * k - unreal,
        "shared_saved_pages": esx.shared_saved() * k + unreal,
        "zero_saved_pages": sum(esx.index.references(f.mpn) * k - 1 for f in zero_pages),
        "compression_cache_pages": sum(len(vm.cache_frames) for vm in vms) * k,
        "overhead_pages": sum(len(vm.overhead) for vm in vms) * k,
        "nvme_pages": tier.n_used(esx) * k,
        "free_pages": esx.free * k + unreal,
        "spare_pages": esx.free * k,
        "held_pages": len(esx.held) * k,
        "cpu_demand_permille": esx.events["cpu_demand_ms"] // max(esx.config.cpus * elapsed_ms, 1),
        "minor_faults": esx.events["minor_faults"],
        "guest_paging_pages": (esx.events["guest_page_ins"] + esx.events["guest_page_outs"]) * k,
    }
    for state in ("shared", "ballooned", "swapped", "compressed", "untouched"):
        row[f"{state}_pages"] = sum(len(vm.pages(state)) for vm in vms) * k
    row["large_pages"] = sum(len(vm.large) for vm in vms) * large.slots_of_one(esx) * k
    row["large_breaks"] = esx.events["large_breaks"] * large.slots_of_one(esx) * k // 512
    for column, event in EVENTS.items():
        row[column] = esx.events[event] * k
    for level, name in enumerate(LEVELS):
        row[f"{name}_ms"] = esx.level_ms[level]
    return row


def differences(esx: Esx, fast_host: Any, fast_vms: Any) -> Iterator[Difference]:
    """Where the rows of the fast host, (1,) HOST_ROW and (n,) VM_ROW, say something else."""
    yield from _unequal("host", fast_host[0], host_row(esx))
    if fast_vms["vm"].tolist() != sorted(esx.vms):
        yield "rows of VMs", fast_vms["vm"].tolist(), sorted(esx.vms)
    for vm, fast in zip(esx.on(), fast_vms, strict=True):
        yield from _unequal(f"VM {vm.spec.vm}", fast, vm_row(esx, vm))
        pages = vm.alloc() * esx.sample
        estimates = {
            "active_pages": whole_pages(active_fraction(vm) * pages),
            "active_slow_pages": whole_pages(vm.slow * pages),
            "active_fast_pages": whole_pages(vm.fast * pages),
        }
        for column, may_be in estimates.items():
            if fast[column] not in may_be:
                yield f"VM {vm.spec.vm} {column}", int(fast[column]), may_be
    active = int(fast_vms["active_pages"].sum())
    if fast_host["active_pages"][0] != active:
        yield "host active_pages", int(fast_host["active_pages"][0]), active


def _unequal(what: str, fast: Any, twin: Row) -> Iterator[Difference]:
    columns = set(fast.dtype.names) - set(ESTIMATES)
    assert columns == {*twin, "epoch"}, "a column nobody compares"
    for column, value in twin.items():
        if fast[column].tolist() != value:
            yield f"{what} {column}", fast[column].tolist(), value


def start_again(esx: Esx) -> None:
    """Begin a new measuring interval."""
    esx.events = Counter()
    esx.level_ms = Counter()
    for vm in esx.on():
        vm.on_ns = vm.touches = vm.writes = vm.cpu_ms = 0
        vm.lost = Counter()
