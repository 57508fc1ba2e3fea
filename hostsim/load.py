"""Configuration -> rows of state: the one place that divides by the sampling factor k.

Memory is divided by k; times, latencies, shares and sample counts are not. Rates stay those of
pages, a second x 1000: a step's due is whole millionths of a page, and a slot is due at k pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hostsim import allocate, reclaim
from hostsim.composition import Composition
from hostsim.config import HostConfig, VmConfig
from hostsim.program import KEEP
from hostsim.program import Rows as ProgramRows
from hostsim.spec import VmSpec
from hostsim.state import DRIVER_ABSENT, DRIVER_PRESENT, HIGH, Array
from hostsim.units import PAGE_SIZE, HostId, slots

MILLI = 1000


def fill_host(
    row: Any, config: HostConfig, host: HostId, seed: int, sample: int, tick_ms: int
) -> None:
    """Flatten a host's configuration into its HOST row."""
    row.host, row.seed, row.sample = host, seed, sample
    row.tick_ms = row.pace_ms = row.dt_ms = tick_ms
    row.machine = slots(config.memory - config.reserve, sample)
    row.free = row.machine
    row.level, row.rebalance, row.level_free = HIGH, 1, row.machine
    for name, value in reclaim.thresholds(config.reclaim, config.memory, sample)._asdict().items():
        row[name] = value
    sharing = config.sharing
    row.sharing = sharing.enabled
    row.scan_rate_vm = sharing.scan_pages_per_s_vm * MILLI
    row.scan_rate_total = sharing.scan_pages_per_s_total * MILLI
    row.scan_time_ms = sharing.scan_time or 0
    balloon = config.balloon
    row.balloon_poll_ms = balloon.poll
    row.inflate_rate = balloon.inflate * MILLI // PAGE_SIZE
    row.deflate_rate = balloon.deflate * MILLI // PAGE_SIZE
    row.balloon_max_permille = balloon.maximum
    row.balance_ms = config.allocation.balance_period
    row.claim_touched = config.allocation.claim == "touched"
    row.deadband_sigmas = config.allocation.deadband_sigmas
    row.tax_k = allocate.tax_factor(config.allocation.idle_tax / 1000)
    row.sample_pages, row.sample_ms = config.sampling.pages, config.sampling.period
    row.swap_latency_ns = config.swap.latency
    row.swap_iops = config.swap.iops * MILLI
    row.cpus, row.cow_ns, row.scan_ns = config.cpus, config.costs.cow, config.costs.scan


def fill_bounds(row: Any, config: VmConfig, sample: int) -> None:
    """What the allocator may give a VM: reservation, limit and shares."""
    limit = config.memory if config.limit is None else config.limit
    row.reservation = min(slots(config.reservation, sample), row.size_slots)
    row.limit = min(slots(limit, sample), row.size_slots)
    row.shares = config.share_count
    row.swap_space = max(row.size_slots - row.reservation, row.swapped)


def fill_vm(row: Any, spec: VmSpec, composition: Composition, host: Any) -> None:
    """Flatten a VM into its VM row: everything but where its slots and contents lie."""
    config, image, k = spec.config, spec.image, int(host.sample)
    row.vm, row.vcpus = spec.vm, config.vcpus
    row.size_slots = max(slots(config.memory, k), 1)
    fill_bounds(row, config, k)
    row.overhead_due = slots(config.overhead, k)
    row.sharing = config.sharing and host.sharing == 1
    row.driver = DRIVER_PRESENT if config.balloon == "present" else DRIVER_ABSENT
    if config.balloon == "present":
        row.balloon_max = row.size_slots * host.balloon_max_permille // 1000
    row.untouched = row.guest_free = row.size_slots
    row.target = row.limit
    row.free_cursor = row.size_slots - 1
    guest_swap = config.memory - config.reservation
    row.guest_swap = slots(guest_swap if config.guest_swap is None else config.guest_swap, k)
    row.windows = image.os == "windows"
    row.copies_permille = composition.copies_permille
    row.footprint = max(min(slots(image.footprint, k), row.size_slots), 1)
    kernel = row.footprint * composition.kernel_permille // 1000
    row.kernel = min(kernel, row.size_slots - 1)  # the active set needs a page to lie in
    row.boot_ms = image.boot
    row.boot_end_ns = image.boot * 1_000_000
    row.disk_latency_ns, row.disk_iops = image.disk.latency, image.disk.iops * MILLI
    row.vm_clock, row.repeat = spec.vm_clock, spec.repeat
    row.start_ms, row.offset_ms = host.now_ms, spec.offset_ms
    row.span = 1


def program_slots(rows: ProgramRows, sample: int) -> Array:
    """A program in slots: amounts rounded to nearest, at least one slot of an active set."""
    scaled = rows.copy()
    for name in ("memory_pages", "active_pages"):
        pages = rows[name]
        nearest = (2 * pages + sample) // (2 * sample)
        scaled[name] = np.where(pages == KEEP, KEEP, np.where(pages > 0, np.maximum(nearest, 1), 0))
    scaled["growth_pages_per_s"] = rows["growth_pages_per_s"] * MILLI
    return scaled
