"""The scalars of a host and of a VM: one record each, whose fields kernels read and write."""

from __future__ import annotations

import numpy as np


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


HOST = np.dtype(
    # Identity and time, then where reclamation stands.
    _fields(np.int64, "host seed sample now_ms tick_ms pace_ms by_law dt_ms tick")
    + _fields(np.int64, "intake rebalance level")
    # Frames: machine = memory - reserve; free = machine - overhead - held - private - distinct.
    # highmem: those of the machine that lie high, highmem_free: those of the free ones. held: those
    # kept for VMs that are on their way here.
    + _fields(np.int64, "machine highmem overhead free highmem_free held held_highmem distinct")
    + _fields(np.int64, "hint_frames")
    # Thresholds in slots: enter a level below down_*, leave it upwards above up_*; goal: enough.
    + _fields(np.int64, "goal down_clear down_soft down_hard down_low level_free")
    + _fields(np.int64, "up_high up_clear up_soft up_hard")
    # Options, flattened from config once.
    + _fields(np.int64, "scan_rate_total scan_rate_vm scan_time_ms sharing")
    + _fields(np.int64, "balloon_poll_ms inflate_rate deflate_rate balloon_max_permille")
    + _fields(np.int64, "balance_ms claim_touched deadband_sigmas sample_pages sample_ms")
    + _fields(np.float64, "tax_k")
    + _fields(np.int64, "swap_latency_ns swap_iops swap_cluster share_first map_clean")
    + _fields(np.int64, "skip_overwritten cpus cow_ns scan_ns copy_ns copy_threshold remap")
    + _fields(np.int64, "compression compressed_max_permille decompress_ns")
    # Slots of a large page, 0 where there are none; free memory from which on they are had.
    + _fields(np.int64, "large_slots large_floor large_carry eager")
    # The host cache on an SSD: its slots, those in use, its price and budget.
    + _fields(np.int64, "ssd_slots ssd_used ssd_latency_ns ssd_iops ssd_io_carry ssd_io_left")
    # Memory tiers: 1 where high frames are DRAM and low ones NVMe; its price and budget; free DRAM
    # that looking for cold pages aims at, where it stands, and what of looks is due.
    + _fields(np.int64, "tiered tier_latency_ns tier_iops tier_io_carry tier_io_left")
    + _fields(np.int64, "tier_goal tier_hand tier_carry")
    # Carried remainders and budgets of the current step.
    + _fields(np.int64, "scan_carry swap_io_carry swap_io_left swap_cluster_left scanned_last_step")
    # Counters since the last measurement, in slots; CPU demand in permille of a core x ms.
    + _fields(np.int64, "zero_fills scanned shares_made stale_hints cow_breaks cow_reuses inflated")
    + _fields(np.int64, "deflated pops swap_outs swap_ins swap_drops swap_skips stale_reads remaps")
    + _fields(np.int64, "double_pagings shared_before_swap guest_page_ins guest_page_outs copies")
    + _fields(np.int64, "guest_refusals stalled_touches minor_faults cpu_demand_ms transmits")
    + _fields(np.int64, "compressions decompressions cache_evictions large_breaks ssd_outs")
    + _fields(np.int64, "ssd_ins tier_touches tier_ups tier_downs"),
    align=True,
)
"""Scalars of a host. Rates are pages a second x 1000; intake: millionths of a slot a ms."""

VM = np.dtype(
    _fields(np.int64, "vm base_slot size_slots reservation limit shares overhead overhead_due")
    + _fields(np.int64, "vcpus sharing driver salt")
    # Pages by state (slots); backed = BALLOONED pages that gave the host a frame or swap slot;
    # swap_space = size - reservation, or what was swapped when the reservation was raised.
    + _fields(np.int64, "untouched resident shared ballooned swapped backed swap_space")
    # What COMPRESSED pages take, in quarters of a slot, and may take; those in the VM's cache for
    # the longest and the shortest time, as 1 + PPN; permille of contents that go into a quarter,
    # and into a half or less.
    + _fields(np.int64, "compressed compressed_quarters compressed_max oldest newest")
    + _fields(np.int64, "to_quarter to_half compressed_highmem")
    # Regions that may be backed by large pages, those that are, and where their bits begin.
    + _fields(np.int64, "regions large large_base large_carry")
    # RESIDENT pages, and slots of overhead, whose frames lie in high memory.
    + _fields(np.int64, "highmem overhead_highmem")
    # Policy: what the VM should have, what its balloon should hold.
    + _fields(np.int64, "target balloon_target balloon_max blocked touched_before gave")
    # Content: families that it draws from, and where their ranges lie on this host.
    + _fields(np.int64, "image_family app_family zero image_base app_base dup_base")
    + _fields(np.int64, "pattern copies_permille copies_phase pool windows")
    # Guest: unmovable slots first, then the boot footprint; brk = first slot never used.
    + _fields(np.int64, "kernel footprint brk window span active guest_free cache anon")
    + _fields(np.int64, "guest_swapped guest_swap booted boot_ms scrub_cursor lost_driver")
    + _fields(np.int64, "free_cursor sweep gifts given disk_latency_ns disk_iops disk_io_left")
    # Program: rows [program, program + program_len) and the one in force; replay the same way,
    # and its next event; touchable: slots from the first that the workload may come to.
    + _fields(np.int64, "program program_len row vm_clock repeat cycle_start_ms start_ms offset_ms")
    + _fields(np.int64, "boot_end_ns replay replay_len event touchable")
    # Clocks: executed VM time, what the last cost was for, work left undone. writes: x 1000,
    # cpu_ms: permille of a core x ms.
    + _fields(np.int64, "clock_ns left_ns cause backlog_ns on_ns touches writes cpu_ms")
    + _fields(np.int64, "serial")
    # Sampler.
    + _fields(np.int64, "period_start_ns samples periods")
    + _fields(np.float64, "slow fast")
    # Carried remainders; the touch to be tried again: 1 + 2 PPN + 1 if it writes, 0 = none.
    + _fields(np.int64, "scan_carry inflate_carry deflate_carry touch_carry grow_carry")
    + _fields(np.int64, "drift_carry disk_io_carry scrub_carry transmit_carry stalled"),
    align=True,
)
"""Scalars of a VM. A row is free exactly when vm is -1. Sizes in slots, times as named."""
