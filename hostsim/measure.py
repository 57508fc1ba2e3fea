"""What a host reports of itself: a row of numbers, and one for each of its VMs, in unscaled pages.

Reading a measurement ends a measuring interval: counters and time accounts start again at zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hostsim import sample
from hostsim.jit import i64, kernel
from hostsim.large import LARGE_PAGES
from hostsim.share import shared_saved
from hostsim.state import (
    CLEAR,
    HARD,
    HIGH,
    LOW,
    N_CAUSES,
    SOFT,
    Array,
    HostState,
    alloc_of,
    compressed_frames,
    count_vms,
    refs_of,
)


@kernel
def measure(st: HostState, row: Any, vm_rows: Array, first: int) -> None:
    """Fill a HOST_ROW and, in id order from `first`, a VM_ROW for each VM; not their epochs.

    A slot stands for k pages, also where they share a frame: k contents, each in a frame of its
    own. But there is one zero page, so its frame counts once; and what is shared with pages outside
    the sample (the content after it) is in frames that those have.
    """
    host = st.host[0]
    once, unreal, zero_saved = i64(0), i64(0), i64(0)
    for i in range(count_vms(st)):
        if is_first_of_zero(st, i):
            zero = st.vms[st.order[i]].zero
            once += (host.sample - 1) * (refs_of(st, zero) > 0)
            unreal += host.sample * (refs_of(st, zero + 1) > 0)
            zero_saved += max(refs_of(st, zero) - 1, 0)
    unreal += once
    measure_memory(st, row, vm_rows, first, host.distinct * host.sample - unreal)
    row.shared_saved_pages = shared_saved(st) * host.sample + unreal
    row.zero_saved_pages = zero_saved * host.sample + once
    row.free_pages = host.free * host.sample + unreal
    row.spare_pages, row.held_pages = host.free * host.sample, host.held * host.sample
    measure_time(st, row, vm_rows, first)
    count_events(st, row)


@kernel
def is_first_of_zero(st: HostState, i: int) -> bool:
    """Whether no VM before the i-th has the same zero page: salt groups have their own."""
    zero, before = st.vms[st.order[i]].zero, i64(0)
    while st.vms[st.order[before]].zero != zero:
        before += 1
    return before == i


@kernel
def measure_memory(st: HostState, row: Any, vm_rows: Array, first: int, distinct: int) -> None:
    """Pages by state, of each VM and in all. distinct: shared frames, in pages."""
    host, n = st.host[0], count_vms(st)
    k = host.sample
    sharers = i64(0)
    for i in range(n):
        sharers += st.vms[st.order[i]].shared * k
    row.host, row.on, row.vms = host.host, 1, n
    row.overhead_pages = host.overhead * k
    n_nvme = (host.machine - host.highmem) - (host.free - host.highmem_free)
    row.nvme_pages = n_nvme * host.tiered * k
    row.configured_pages = row.allocated_pages = row.active_pages = row.shared_pages = 0
    row.ballooned_pages = row.swapped_pages = row.untouched_pages = row.compressed_pages = 0
    row.compression_cache_pages = row.large_pages = 0
    row.consumed_pages = distinct
    for i in range(n):
        v = st.order[i]
        vm, to = st.vms[v], vm_rows[first + i]
        to.host, to.vm = host.host, vm.vm
        to.target_pages, to.guest_swapped_pages = vm.target * k, vm.guest_swapped * k
        to.allocated_pages, to.shared_pages = alloc_of(st, v) * k, vm.shared * k
        to.consumed_pages = vm.resident * k + vm.shared * k * distinct // max(sharers, 1)
        to.active_pages = i64(np.floor(sample.active_fraction(st, v) * to.allocated_pages))
        to.active_slow_pages = i64(vm.slow * to.allocated_pages)
        to.active_fast_pages = i64(vm.fast * to.allocated_pages)
        to.ballooned_pages, to.swapped_pages = vm.ballooned * k, vm.swapped * k
        to.compressed_pages, to.untouched_pages = vm.compressed * k, vm.untouched * k
        row.configured_pages += vm.size_slots * k
        row.allocated_pages += to.allocated_pages
        row.consumed_pages += vm.resident * k
        row.active_pages += to.active_pages
        row.shared_pages += to.shared_pages
        row.ballooned_pages += to.ballooned_pages
        row.swapped_pages += to.swapped_pages
        row.compressed_pages += to.compressed_pages
        row.compression_cache_pages += compressed_frames(st, v) * k
        row.untouched_pages += to.untouched_pages
        row.large_pages += vm.large * host.large_slots * k


@kernel
def measure_time(st: HostState, row: Any, vm_rows: Array, first: int) -> None:
    """Time by reclamation state, CPU demand, and time that VMs were on and lost."""
    host = st.host[0]
    elapsed_ms = i64(0)
    for level in range(st.level_ms.size):
        elapsed_ms += st.level_ms[level]
    row.cpu_demand_permille = host.cpu_demand_ms // max(host.cpus * elapsed_ms, 1)
    row.high_ms, row.clear_ms = st.level_ms[HIGH], st.level_ms[CLEAR]
    row.soft_ms, row.hard_ms, row.low_ms = st.level_ms[SOFT], st.level_ms[HARD], st.level_ms[LOW]
    host.cpu_demand_ms = 0
    st.level_ms[:] = 0
    for i in range(count_vms(st)):
        v = st.order[i]
        vm, to = st.vms[v], vm_rows[first + i]
        to.on_ns, to.touches, to.work_left_ns = vm.on_ns, vm.touches * host.sample, vm.backlog_ns
        to.writes = vm.writes * host.sample // 1000
        to.cpu_ms = vm.cpu_ms // 1000
        vm.on_ns = vm.touches = vm.writes = vm.cpu_ms = 0
        for cause in range(N_CAUSES):
            to.lost_ns[cause] = st.lost[v, cause]
            st.lost[v, cause] = 0


@kernel
def count_events(st: HostState, row: Any) -> None:
    """Events since the last measurement, in pages."""
    host = st.host[0]
    k = host.sample
    row.zero_fills, row.scanned_pages = host.zero_fills * k, host.scanned * k
    row.shares_made, row.stale_hints = host.shares_made * k, host.stale_hints * k
    row.cow_breaks = host.cow_breaks * k
    row.inflated_pages, row.deflated_pages = host.inflated * k, host.deflated * k
    row.swap_out_pages, row.swap_in_pages = host.swap_outs * k, host.swap_ins * k
    row.host_cache_out_pages, row.host_cache_in_pages = host.ssd_outs * k, host.ssd_ins * k
    row.swap_dropped_pages, row.swap_skipped_pages = host.swap_drops * k, host.swap_skips * k
    row.compressions, row.decompressions = host.compressions * k, host.decompressions * k
    row.cache_evictions = host.cache_evictions * k
    row.large_breaks = host.large_breaks * host.large_slots * k // LARGE_PAGES
    row.tier_touches = host.tier_touches * k
    row.tier_up_pages, row.tier_down_pages = host.tier_ups * k, host.tier_downs * k
    row.double_paging_pages = host.double_pagings * k
    row.stale_read_pages = host.stale_reads * k
    row.guest_paging_pages = (host.guest_page_ins + host.guest_page_outs) * k
    row.stalled_touches = host.stalled_touches * k
    row.minor_faults = host.minor_faults
    row.transmitted_pages, row.copied_pages = host.transmits * k, host.copies * k
    row.remapped_pages = host.remaps * k
    host.zero_fills = host.scanned = host.shares_made = host.stale_hints = 0
    host.cow_breaks = host.cow_reuses = host.inflated = host.deflated = host.pops = 0
    host.swap_outs = host.swap_ins = host.swap_drops = host.swap_skips = 0
    host.double_pagings = host.shared_before_swap = host.stale_reads = 0
    host.guest_page_ins = host.guest_page_outs = host.guest_refusals = 0
    host.stalled_touches = host.minor_faults = 0
    host.transmits = host.copies = host.remaps = 0
    host.compressions = host.decompressions = host.cache_evictions = 0
    host.large_breaks = host.ssd_outs = host.ssd_ins = 0
    host.tier_touches = host.tier_ups = host.tier_downs = 0


@kernel
def measure_now(st: HostState, rows: Array, vm_rows: Array) -> None:
    """As `measure`, from the first row of each table."""
    measure(st, rows[0], vm_rows, 0)
