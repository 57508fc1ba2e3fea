"""What the coordinator and its hosts say to each other: orders down, columns of numbers up.

Orders are decided at the end of epoch e and act at the start of e + 1. Reports are NumPy columns, one
row per (epoch, host) and one per (epoch, VM), because bulk data must not travel as objects. Page
quantities in reports are already multiplied back from slots to pages, so nobody above a host
knows the sampling factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hostsim.spec import VmSpec
from hostsim.units import HostId, VmId

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


@dataclass(frozen=True, slots=True)
class PowerOn:
    """Start `vm` on `host`: admission was checked by the planner and is checked again there."""

    host: HostId
    vm: VmSpec


@dataclass(frozen=True, slots=True)
class PowerOff:
    """Stop `vm`; its frames, swap slots and overhead are free at once."""

    host: HostId
    vm: VmId


@dataclass(frozen=True, slots=True)
class Reset:
    """Guest reset: the guest boots again in the memory that it has."""

    host: HostId
    vm: VmId


@dataclass(frozen=True, slots=True)
class SetVm:
    """New reservation, limit (pages) or shares of a running VM; None leaves a value."""

    host: HostId
    vm: VmId
    reservation_pages: int | None = None
    limit_pages: int | None = None
    shares: int | None = None


Order = PowerOn | PowerOff | Reset | SetVm

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
        ("double_paging_pages", np.int64),
        ("guest_paging_pages", np.int64),
        ("stalled_touches", np.int64),
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
        ("shared_pages", np.int64),
        ("ballooned_pages", np.int64),
        ("swapped_pages", np.int64),
        ("untouched_pages", np.int64),
        ("guest_swapped_pages", np.int64),
    ]
)
"""One row per epoch and VM that was powered on in it (at its end, or until it was powered off)."""

Rows = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A host's reclamation state changed in an epoch, with the number that decided it."""

    epoch: int
    at_ms: int
    host: HostId
    before: int
    after: int
    free_pages: int


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one barrier returns, hosts in id order.

    hosts: (n_hosts x n_epochs,) HOST_ROW, by epoch then host. vms: VM_ROW, by epoch, host, VM.
    """

    hosts: Rows
    vms: Rows
    level_changes: tuple[LevelChange, ...]
    busy_s: float
    """CPU seconds that host ticks took: how we ran, never part of the result."""
