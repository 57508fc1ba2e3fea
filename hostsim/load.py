"""Configuration -> rows of state: the one place that divides by the sampling factor k.

Memory is divided by k; times, latencies, shares and sample counts are not. Rates stay those of
pages, a second x 1000: a step's due is whole millionths of a page, and a slot is due at k pages.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hostsim import allocate, reclaim
from hostsim.composition import Composition, range_lengths
from hostsim.config import Allocation, HostConfig, VmConfig
from hostsim.large import LARGE_PAGES
from hostsim.program import KEEP
from hostsim.program import Rows as ProgramRows
from hostsim.records import HOST, VM
from hostsim.remap import REMAP
from hostsim.replay import Replay
from hostsim.spec import VmSpec
from hostsim.state import DRIVER_ABSENT, DRIVER_PRESENT, HIGH, IMAGE, N_CLASSES, Array
from hostsim.units import PAGE_SIZE, HostId, slots

MILLI = 1000
COUNTERS = 65_536
"""Pages whose copies a host counts at a time, for which [P 7] has no number: 256 MiB of buffers."""


def low_bytes(config: HostConfig) -> int:
    """Machine memory whose frames are low ones (see `frames`)."""
    if config.tier.nvme > 0:
        return config.machine_bytes - config.memory
    return config.memory if config.io.low_memory is None else config.io.low_memory


def copy_counters(config: HostConfig, sample: int) -> int:
    """Entries of the table of copy counters: one, never used, where devices reach all memory."""
    return 1 if config.io.low_memory is None else max(COUNTERS // sample, 1)


def fill_host(
    rows: Array, config: HostConfig, host: HostId, seed: int, sample: int, tick_ms: int
) -> None:
    """Flatten a host's configuration into its HOST row, (1,)."""
    rows.view(np.ndarray)[:] = _host_of_kind(config, seed, sample, tick_ms)
    rows["host"] = host


@functools.lru_cache(maxsize=64)
def _host_of_kind(config: HostConfig, seed: int, sample: int, tick_ms: int) -> Array:
    """What hosts of one kind have in common: (1,) HOST, to be copied."""
    rows = np.zeros(1, HOST)
    row = rows.view(np.recarray)[0]
    row.seed, row.sample = seed, sample
    row.tick_ms = row.pace_ms = row.dt_ms = tick_ms
    row.machine = slots(config.machine_bytes - config.reserve, sample)
    row.highmem = max(row.machine - slots(low_bytes(config), sample), 0)
    row.free, row.highmem_free = row.machine, row.highmem
    row.level, row.rebalance, row.level_free = HIGH, 1, row.machine
    for name, value in (
        reclaim.thresholds(config.reclaim, config.machine_bytes, sample)._asdict().items()
    ):
        row[name] = value
    row.tier_latency_ns, row.tier_iops = config.tier.latency, config.tier.iops * MILLI
    row.tiered = config.tier.nvme > 0
    if config.tier.nvme > 0:
        row.tier_goal = reclaim.thresholds(config.reclaim, config.memory, sample).goal
    row.large_slots = max(LARGE_PAGES // sample, 1) if config.large_pages else 0
    row.large_floor = row.up_high
    row.eager = config.large_pages or config.reclaim.clear is not None
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
    fill_tax(row, config.allocation)
    row.sample_pages, row.sample_ms = config.sampling.pages, config.sampling.period
    row.swap_latency_ns = config.swap.latency
    row.swap_iops, row.swap_cluster = config.swap.iops * MILLI, config.swap.write_cluster
    row.ssd_slots = slots(config.host_cache.size, sample)
    row.ssd_latency_ns, row.ssd_iops = config.host_cache.latency, config.host_cache.iops * MILLI
    paging = config.paging
    row.share_first, row.map_clean = paging.share_first, paging.map_clean
    row.skip_overwritten = paging.skip_overwritten
    row.cpus, row.cow_ns, row.scan_ns = config.cpus, config.costs.cow, config.costs.scan
    row.copy_ns, row.copy_threshold = config.costs.page_copy, config.io.copy_threshold
    row.remap = REMAP.index(config.io.remap)
    compression = config.compression
    row.compression, row.decompress_ns = compression.enabled, config.costs.decompress
    row.compressed_max_permille = compression.maximum if compression.enabled else 0
    return rows


def fill_tax(row: Any, config: Allocation) -> None:
    """The price factor of an idle page."""
    row.tax_k = allocate.tax_factor(config.idle_tax / 1000)


def fill_bounds(row: Any, config: VmConfig, sample: int) -> None:
    """What the allocator may give a VM: reservation, limit and shares."""
    limit = config.memory if config.limit is None else config.limit
    row.reservation = min(slots(config.reservation, sample), row.size_slots)
    row.limit = min(slots(limit, sample), row.size_slots)
    row.shares = config.share_count
    row.swap_space = max(row.size_slots - row.reservation, row.swapped)


def fill_vms(
    rows: Array, specs: Sequence[VmSpec], layouts: Sequence[Composition], host: Any
) -> None:
    """Flatten VMs into VM rows, (n,): everything but where their slots and contents lie.

    host: the host's row. Raises ValueError for a replay that its VM cannot hold.
    """
    terms = (
        *(int(host.sample), int(host.sharing), int(host.balloon_max_permille)),
        int(host.compressed_max_permille),
        int(host.large_slots),
    )
    now_ms, plain = int(host.now_ms), rows.view(np.ndarray)
    for at, (spec, layout) in enumerate(zip(specs, layouts, strict=True)):
        plain[at] = _row_of_kind(spec.config, layout, *terms)
        row = plain[at]
        row["vm"], row["start_ms"], row["offset_ms"] = spec.vm, now_ms, spec.offset_ms
        row["vm_clock"], row["repeat"] = spec.vm_clock, spec.repeat
        if spec.replay is not None:
            fill_replay(plain.view(np.recarray)[at], spec.replay, terms[0])


@functools.lru_cache(maxsize=256)
def _row_of_kind(
    config: VmConfig,
    composition: Composition,
    sample: int,
    sharing: int,
    balloon_max_permille: int,
    compressed_max_permille: int,
    large_slots: int,
) -> Any:
    """What VMs of one kind have in common, on hosts alike: a VM row, to be copied.

    A cluster has few kinds of VM, and filling ninety fields one by one takes a while.
    """
    rows, k, image = np.zeros(1, VM), sample, composition.image
    row = rows.view(np.recarray)[0]
    row.vcpus = config.vcpus
    row.size_slots = max(slots(config.memory, k), 1)
    fill_bounds(row, config, k)
    row.overhead_due = slots(config.overhead, k)
    row.sharing = config.sharing and sharing == 1
    row.driver = DRIVER_PRESENT if config.balloon == "present" else DRIVER_ABSENT
    if config.balloon == "present":
        row.balloon_max = row.size_slots * balloon_max_permille // 1000
    row.regions = row.size_slots // large_slots if large_slots > 0 else 0
    row.compressed_max = 4 * (row.size_slots * compressed_max_permille // 1000)
    row.to_quarter = image.compressible.quarter
    row.to_half = image.compressible.quarter + image.compressible.half
    row.untouched = row.guest_free = row.size_slots
    row.target = row.limit
    row.free_cursor = row.size_slots - 1
    guest_swap = config.memory - config.reservation
    row.guest_swap = slots(guest_swap if config.guest_swap is None else config.guest_swap, k)
    row.windows = image.os == "windows"
    row.copies_permille = composition.copies_permille
    row.copies_phase = composition.copies_phase
    row.pool = max(slots(image.pool, k), 1) if image.pool > 0 else 0
    row.kernel, row.footprint = sections(composition, int(row.size_slots), k)
    row.touchable = row.size_slots
    row.boot_ms = image.boot
    row.boot_end_ns = image.boot * 1_000_000
    row.disk_latency_ns, row.disk_iops = image.disk.latency, image.disk.iops * MILLI
    row.span = 1
    return rows[0]


def sections(composition: Composition, size_slots: int, sample: int) -> tuple[int, int]:
    """Slots of the kernel, and of the boot footprint that they are part of, of a VM's size."""
    image = composition.image
    structures = size_slots * image.structures // 1000
    footprint = max(min(slots(image.footprint, sample), size_slots), 1)
    kernel = footprint * composition.kernel_permille // 1000 + structures
    # The active set needs a page to lie in.
    return min(kernel, size_slots - 1), min(footprint + structures, size_slots)


def fill_replay(row: Any, replay: Replay, sample: int) -> None:
    """What a replay says of a VM instead of its image; the boot is not an event to come."""
    if sample != 1 or replay.pages > row.size_slots:
        have = f"VM {row.vm} has {row.size_slots} slots of {sample} pages"
        raise ValueError(f"{have}, and replays {replay.pages} pages")
    row.pool = 0
    row.footprint = row.event = replay.pages
    row.replay_len = len(replay.events)
    # The workload needs a page to come to: the last one in use, whatever it is used for.
    row.touchable = max(replay.used, 1)
    row.kernel = min(replay.unmovable, row.touchable - 1)


def content_lengths(row: Any, spec: VmSpec, composition: Composition) -> Array:
    """(6,) int64: distinct contents that a VM can hold of each class; its row is filled."""
    if spec.replay is None:
        sizes = (int(row[name]) for name in ("kernel", "footprint", "size_slots", "pool"))
        return range_lengths(composition, *sizes)
    lengths = np.zeros(N_CLASSES, np.int64)
    lengths[IMAGE] = spec.replay.contents
    return lengths


def program_slots(rows: ProgramRows, sample: int) -> Array:
    """A program in slots: amounts rounded to nearest, at least one slot of an active set."""
    scaled = rows.copy()
    for name in ("memory_pages", "active_pages", "data_pages", "transmit_set_pages"):
        pages = rows[name]
        nearest = (2 * pages + sample) // (2 * sample)
        scaled[name] = np.where(pages == KEEP, KEEP, np.where(pages > 0, np.maximum(nearest, 1), 0))
    for name in ("growth_pages_per_s", "transmit_pages_per_s"):
        scaled[name] = rows[name] * MILLI
    return scaled
