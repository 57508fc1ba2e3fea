"""What a report needs of a run, gathered while it goes on.

Integer sums per VM, one integer per epoch and quantity, a histogram of fixed bins: nothing else is
kept, and nothing else grows. Integers add exactly in any order, so neither the packing of hosts nor
the span of a barrier can show. What the numbers mean is said in `cluster.reports`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from cluster.messages import CAUSES, LEVELS, VM_ROW, EpochReport, Rows
from cluster.rows import HostFacts, HostList, VmFacts, epoch_rows, matrix
from hostsim.spread import no_contrasts

SLOWDOWN_MAX = 1000
"""What a VM that lost all of its time counts as: JSON has no infinity, a mean needs a number."""
BINS_PER_ONE = 1000
"""Bins of the histogram over VM-epochs per 1.0 of slowdown; its percentiles are rounded to them."""
MICRO = 1_000_000
"""Parts of 1.0 in which the slowdowns of VM-epochs are added up."""
MEMORY = (
    *("configured", "allocated", "consumed", "active", "shared", "shared_saved", "zero_saved"),
    *("ballooned", "swapped", "compressed", "untouched", "compression_cache", "large"),
    *("overhead", "nvme", "free"),
)
"""Quantities of memory that are kept for every epoch, cluster-wide, as they stood at its end."""
EVENTS = (
    "swap_in_pages",
    "swap_out_pages",
    "double_paging_pages",
    "cow_breaks",
    "guest_paging_pages",
    "compressions",
    "decompressions",
    "cache_evictions",
    "large_breaks",
    "host_cache_out_pages",
    "host_cache_in_pages",
    "tier_touches",
    "tier_up_pages",
    "tier_down_pages",
)
"""Counters that are summed over hosts and epochs."""
HELD = ("allocated", "active", "ballooned", "swapped", "compressed")
"""Memory of a VM whose sum and maximum over epochs are kept."""
PER_EPOCH = (
    *("hosts", "vms", "memory_pages", "cpu_demand_permille", "power_mw", "high_ms"),
    *(f"{name}_pages" for name in MEMORY),
)
"""Columns of EPOCH_ROW that are kept for every epoch."""
SUMMED = (*(f"{level}_ms" for level in LEVELS), *EVENTS)
"""Columns of EPOCH_ROW of which only the sum is kept."""


def slowdowns(on_ns: Rows, lost_ns: Rows) -> Rows:
    """Powered-on time / (powered-on time - time lost), at most SLOWDOWN_MAX; `on_ns` above 0."""
    ran = np.maximum((on_ns - lost_ns).astype(np.float64), on_ns / SLOWDOWN_MAX)
    return on_ns / ran


class Aggregator:
    """`add` every barrier's report in order; read the fields at any time after.

    epochs: column of PER_EPOCH -> one int64 per epoch. sums: column of SUMMED -> int.
    Per VM, in id order: ids, on_ns, lost_ns (vms, causes), touches, work_left_ns (the last known),
    rows = epochs in which it was on, and the sums and maxima of HELD, in pages.
    bins: VM-epochs by slowdown in steps of 1 / BINS_PER_ONE from 0; micro: the sum of their
    slowdowns in MICRO parts, and slowest_micro the largest one.
    contrasts: (3, CONTRASTS + 1) int64, the sum of the reports'.
    """

    def __init__(
        self,
        hosts: Sequence[HostFacts],
        vms: Sequence[VmFacts],
        *,
        epoch_ms: int,
        sample: int = 1,
    ) -> None:
        self.hosts = HostList(hosts)
        self.vms = tuple(vms)
        self.ids = np.array([vm.vm for vm in vms], np.int64)
        assert (np.diff(self.ids) > 0).all(), "VMs must come in id order, each once"
        self.epoch_ms = epoch_ms
        self.sample = sample
        self.epochs = {name: array("q") for name in PER_EPOCH}
        self.sums = dict.fromkeys(SUMMED, 0)
        self.most_vms = 0
        n = len(vms)
        self.on_ns = np.zeros(n, np.int64)
        self.lost_ns = np.zeros((n, len(CAUSES)), np.int64)
        self.touches = np.zeros(n, np.int64)
        self.work_left_ns = np.zeros(n, np.int64)
        self.rows = np.zeros(n, np.int64)
        self.held_sums = {name: np.zeros(n, np.int64) for name in HELD}
        self.held_maxima = {name: np.zeros(n, np.int64) for name in HELD}
        self.bins = np.zeros(SLOWDOWN_MAX * BINS_PER_ONE + 1, np.int64)
        self.micro = 0
        self.slowest_micro = 0
        self.contrasts = no_contrasts()

    def add(self, report: EpochReport) -> None:
        """Take the rows of one barrier: whole epochs, each once, in order."""
        rows = epoch_rows(report, self.hosts)
        for name, kept in self.epochs.items():
            kept.frombytes(np.ascontiguousarray(rows[name]).tobytes())
        for name in SUMMED:
            self.sums[name] += int(rows[name].sum())
        self.contrasts += report.contrasts
        self.most_vms = max(self.most_vms, int(report.hosts["vms"].max(initial=0)))
        if len(report.vms):
            self._add_vms(report.vms.reshape(len(rows), -1))
            self._add_vm_epochs(report.vms)

    def _add_vms(self, rows: Rows) -> None:
        """rows: (n_epochs, n_vms) VM_ROW, the same VMs in each epoch."""
        at = np.searchsorted(self.ids, rows[0]["vm"])
        by_column = matrix(rows.ravel()).reshape(*rows.shape, -1)
        sums = by_column.sum(axis=0).view(VM_ROW)[:, 0]
        maxima = by_column.max(axis=0).view(VM_ROW)[:, 0]
        self.on_ns[at] += sums["on_ns"]
        self.touches[at] += sums["touches"]
        self.rows[at] += len(rows)
        self.lost_ns[at] += sums["lost_ns"]
        for name in HELD:
            column = f"{name}_pages"
            self.held_sums[name][at] += sums[column]
            self.held_maxima[name][at] = np.maximum(self.held_maxima[name][at], maxima[column])
        self.work_left_ns[at] = rows[-1]["work_left_ns"]

    def _add_vm_epochs(self, rows: Rows) -> None:
        ran = rows["on_ns"] > 0
        slowdown = slowdowns(rows["on_ns"][ran], rows["lost_ns"].sum(axis=1)[ran])
        counts = np.bincount(np.rint(slowdown * BINS_PER_ONE).astype(np.int64))
        self.bins[: len(counts)] += counts
        micro = np.rint(slowdown * MICRO).astype(np.int64)
        self.micro += int(micro.sum())
        self.slowest_micro = max(self.slowest_micro, int(micro.max(initial=0)))
