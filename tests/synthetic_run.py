"""A plausible run without the engine: columns as hosts would report them, for the report's tests.

Memory follows a daily wave; where it runs short VMs balloon, then swap, and lose time. The truths
of the accounting hold row by row (configured = consumed + shared_saved + ballooned + swapped +
compressed + untouched; consumed + overhead + free = memory), so a report can be held against them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster import reports
from cluster.aggregate import Aggregator
from cluster.messages import CAUSES, HOST_ROW, VM_ROW, EpochReport, LevelChange
from cluster.policy.history import History
from cluster.rows import HostFacts, VmFacts, VmFate
from cluster.tables import RunFolder
from hostsim.units import GIB, MIB, PAGE_SIZE, HostId, VmId

EPOCH_MS = 60_000
OVERHEAD_PAGES = 32 * MIB // PAGE_SIZE
SCENARIO_YAML = """\
name: web-tier-consolidation
question: How many 4 GiB web and database VMs fit on {hosts} hosts before guests feel it?
seed: 7
"""


@dataclass
class Synthetic:
    """`reports` yields one EpochReport per barrier of `span` epochs; the rest is what we know."""

    n_hosts: int = 4
    vms_per_host: int = 12
    epochs: int = 30
    seed: int = 1
    host_gib: int = 32
    refused: int = 5
    host_name: str = "esx-{:03d}"
    vm_name: str = "web-{:04d}"
    hosts: list[HostFacts] = field(init=False)
    vms: list[VmFacts] = field(init=False)
    fates: list[VmFate] = field(init=False)

    def __post_init__(self) -> None:
        names = [self.host_name.format(h) for h in range(self.n_hosts)]
        memory = self.host_gib * GIB
        self.hosts = [HostFacts(HostId(h), name, memory, 16) for h, name in enumerate(names)]
        placed = self.n_hosts * self.vms_per_host
        sizes = [(2, 4, 4, 8)[v // self.n_hosts % 4] * GIB for v in range(placed + self.refused)]
        self.vms = [
            VmFacts(VmId(v), self.vm_name.format(v), size, size // 4, 2)
            for v, size in enumerate(sizes)
        ]
        self.fates = [
            VmFate(VmId(v), 0, start_ms=0, hosts=(HostId(v % self.n_hosts),)) for v in range(placed)
        ]
        why = ("no host has the memory reserved", "no host has the CPUs")
        self.fates += [VmFate(VmId(placed + i), 0, refused=why[i % 2]) for i in range(self.refused)]

    def reports(self, span: int = 1) -> Iterator[EpochReport]:
        """All epochs, `span` of them per report."""
        levels = np.zeros(self.n_hosts, np.int64)
        for first in range(0, self.epochs, span):
            epochs = range(first, min(first + span, self.epochs))
            made = [self._epoch(epoch, levels) for epoch in epochs]
            changes = tuple(change for _, _, found in made for change in found)
            hosts = np.concatenate([hosts for hosts, _, _ in made])
            vms = np.concatenate([vms for _, vms, _ in made])
            yield EpochReport(hosts, vms, changes, busy_s=0.25 * len(epochs))

    def _epoch(self, epoch: int, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
        draw = np.random.default_rng((self.seed, epoch))
        n = self.n_hosts * self.vms_per_host
        host = np.repeat(np.arange(self.n_hosts), self.vms_per_host)
        vm = np.arange(self.vms_per_host)[None, :] * self.n_hosts
        vm = (vm + np.arange(self.n_hosts)[:, None]).ravel()
        vms = np.zeros(n, VM_ROW)
        vms["epoch"], vms["host"], vms["vm"] = epoch, host, vm
        size = np.array([self.vms[v].memory_bytes // PAGE_SIZE for v in vm])
        wave = 0.7 + 0.28 * np.sin(2 * np.pi * (epoch / max(self.epochs, 2) * 2 + host / 17))
        touched = (size * wave * draw.uniform(0.9, 1.0, n)).astype(np.int64)
        overhead = self.vms_per_host * OVERHEAD_PAGES + GIB // PAGE_SIZE
        usable = self.host_gib * GIB // PAGE_SIZE * draw.uniform(0.945, 0.965, self.n_hosts)
        usable -= overhead
        shared = touched * 3 // 10
        saved = shared * 8 // 10
        want = np.bincount(host, touched - saved, self.n_hosts)
        short = (np.maximum(want - usable, 0) / want)[host]
        taken = (touched * short * 1.02).astype(np.int64)
        vms["swapped_pages"] = np.maximum(taken - size // 20, 0)
        vms["ballooned_pages"] = taken - vms["swapped_pages"]
        vms["allocated_pages"] = touched - taken
        vms["shared_pages"] = np.minimum(shared, vms["allocated_pages"])
        saved = vms["shared_pages"] * 8 // 10
        vms["consumed_pages"] = vms["allocated_pages"] - saved
        vms["active_pages"] = vms["allocated_pages"] // 4
        vms["active_slow_pages"] = vms["active_fast_pages"] = vms["active_pages"]
        vms["target_pages"] = vms["allocated_pages"]
        vms["untouched_pages"] = size - touched
        vms["on_ns"] = EPOCH_MS * 1_000_000
        lost = draw.exponential(1e6, (n, len(CAUSES)))
        lost[:, CAUSES.index("swap_in")] += vms["swapped_pages"] * 9e4 * draw.uniform(0, 1, n)
        lost[:, CAUSES.index("guest_paging")] += vms["ballooned_pages"] * 4e4
        lost[:, [CAUSES.index(cause) for cause in ("migration", "decompress", "tier")]] = 0
        vms["lost_ns"] = np.minimum(lost, EPOCH_MS * 1e5).astype(np.int64)
        vms["touches"] = touched // 3
        vms["work_left_ns"] = vms["lost_ns"].sum(axis=1)
        hosts, changes = self._hosts(epoch, vms, size, saved, levels)
        return hosts, vms, changes

    def _hosts(
        self, epoch: int, vms: np.ndarray, size: np.ndarray, saved: np.ndarray, levels: np.ndarray
    ) -> tuple[np.ndarray, list[LevelChange]]:
        rows = np.zeros(self.n_hosts, HOST_ROW)
        rows["epoch"], rows["host"], rows["on"] = epoch, np.arange(self.n_hosts), 1

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(vms["host"], values, self.n_hosts).astype(np.int64)

        rows["vms"] = np.bincount(vms["host"], minlength=self.n_hosts)
        rows["configured_pages"] = total(size)
        for name in ("allocated", "consumed", "active", "shared", "ballooned", "swapped"):
            rows[f"{name}_pages"] = total(vms[f"{name}_pages"])
        rows["untouched_pages"] = total(vms["untouched_pages"])
        rows["shared_saved_pages"] = total(saved)
        rows["zero_saved_pages"] = rows["shared_saved_pages"] // 3
        rows["overhead_pages"] = rows["vms"] * OVERHEAD_PAGES + GIB // PAGE_SIZE
        memory = self.host_gib * GIB // PAGE_SIZE
        rows["free_pages"] = memory - rows["overhead_pages"] - rows["consumed_pages"]
        free = rows["free_pages"] * 1000 // memory
        # Free memory near the thresholds, where the interesting hosts are.
        now = np.select([free >= 60, free >= 46, free >= 38], [0, 1, 2], 3)
        for i, level in enumerate(("high", "soft", "hard", "low")):
            rows[f"{level}_ms"] = np.where(now == i, EPOCH_MS, 0)
        rows["cpu_demand_permille"] = 400
        rows["swap_out_pages"] = rows["swapped_pages"] // 10
        rows["swap_in_pages"] = rows["swapped_pages"] // 12
        rows["cow_breaks"] = rows["shared_pages"] // 100
        rows["guest_paging_pages"] = rows["ballooned_pages"] // 20
        changed = np.flatnonzero(now != levels)
        changes = [
            LevelChange(
                epoch,
                epoch * EPOCH_MS + 1000,
                HostId(int(h)),
                int(levels[h]),
                int(now[h]),
                int(rows["free_pages"][h]),
            )
            for h in changed
        ]
        levels[:] = now
        return rows, changes

    def aggregate(self, span: int = 1, sample: int = 1) -> Aggregator:
        """The whole run, aggregated."""
        run = Aggregator(self.hosts, self.vms, epoch_ms=EPOCH_MS, sample=sample)
        for report in self.reports(span):
            run.add(report)
        return run

    def history(self) -> History:
        """What became of the VMs; nothing else happened."""
        return History(fates={fate.vm: fate for fate in self.fates})

    def scenario(self) -> dict[str, object]:
        """What report.json says of the scenario."""
        return {"name": "web-tier-consolidation", "seed": 7, "digest": "5ce0" * 16}

    def folder(self, out: Path, *, span: int = 1, detail_vms: bool = False) -> RunFolder:
        """A run folder with all epochs added, neither finished nor abandoned."""
        folder = RunFolder(
            out,
            self.hosts,
            scenario_yaml=SCENARIO_YAML.format(hosts=self.n_hosts),
            epoch_ms=EPOCH_MS,
            detail_vms=detail_vms,
        )
        for fate in self.fates:
            name = self.vms[fate.vm].name
            if fate.refused is not None:
                folder.event(0, "refused", vm=name, reason=fate.refused)
            elif fate.hosts:
                folder.event(0, "power_on", vm=name, host=self.hosts[fate.hosts[0]].name)
        for report in self.reports(span):
            folder.add(report)
        return folder

    def write(self, out: Path, *, sample: int = 1, detail_vms: bool = False) -> dict:
        """A whole run folder, finished, without report.html; its report."""
        folder = self.folder(out, detail_vms=detail_vms)
        run = self.aggregate(sample=sample)
        assumptions = {"images.web.content": "measured mix of 2019", "vms.web.overhead": "32 MiB"}
        report = reports.build(run, self.scenario(), self.history(), assumptions)
        report["digest"] = reports.digest(report, {h.host: f"{h.host:064x}" for h in self.hosts})
        folder.finish(report, reports.vm_table(run, self.fates), {"cpu_s": 12.5, "wall_s": 3.25})
        return report
