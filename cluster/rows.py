"""The rows of a run's tables: what hosts report, summed per epoch, and their columns by unit.

A row is a NumPy record of int64 alone, so adding is exact and the order of adding cannot show.
Pages and nanoseconds become bytes and seconds at one place, `columns`, on the way to a file.
Nothing here reads or writes files, and nothing here grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.messages import CAUSES, HOST_ROW, EpochReport, Rows
from hostsim.units import PAGE_SIZE, HostId, VmId, pages

Columns = Mapping[str, Any]
"""Column name -> values of equal length: NumPy arrays, or lists where None means unknown."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the reports say of a host before it ran."""

    host: HostId
    name: str
    memory_bytes: int
    cpus: int
    idle_mw: int = 0
    peak_mw: int = 0
    """What it takes, in milliwatts, when it is on: linear in its CPU load."""
    has_clear: bool = False
    """Whether it has a CLEAR state."""


@dataclass(frozen=True, slots=True)
class VmFacts:
    """What the reports say of a VM before it ran."""

    vm: VmId
    name: str
    memory_bytes: int
    reservation_bytes: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class VmFate:
    """What became of a VM that was submitted: known to the planner, never to a host.

    A VM that started was placed; one that did not, and has a reason, was refused; else it waits.
    """

    vm: VmId
    submitted_ms: int
    start_ms: int | None = None
    stop_ms: int | None = None
    """When it was powered off as planned; None while it is on."""
    failed_ms: int | None = None
    """When its host failed, if it has not been started again since."""
    hosts: tuple[HostId, ...] = ()
    """Where it ran, in order, each stay once."""
    refused: str | None = None
    """Why it found no host, in a few words that are the same for all VMs refused so."""

    @property
    def status(self) -> str:
        """placed, refused or waiting."""
        if self.start_ms is not None:
            return "placed"
        return "refused" if self.refused is not None else "waiting"


_MEASURES = tuple(name for name in HOST_ROW.names or () if name not in ("epoch", "host", "on"))
EPOCH_ROW = np.dtype(
    [(name, np.int64) for name in ("epoch", "hosts", "memory_pages", "power_mw")]
    + [(name, np.int64) for name in _MEASURES]
    + [("on_ns", np.int64), ("lost_ns", np.int64, (len(CAUSES),)), ("touches", np.int64)]
)
"""One row per epoch: hosts that were on, their memory, what they took (mean, in milliwatts), the
sums of their HOST_ROW columns (cpu_demand_permille: of the cluster's CPUs, rounded down), the sums
of the VMs' times and touches."""


class HostList:
    """Hosts in id order, with lookups from a column of host ids."""

    def __init__(self, hosts: Sequence[HostFacts]) -> None:
        self.facts = tuple(hosts)
        self.ids = np.array([host.host for host in hosts], np.int64)
        assert (np.diff(self.ids) > 0).all(), "hosts must come in id order, each once"
        self.memory_pages = np.array([pages(host.memory_bytes) for host in hosts], np.int64)
        self.cpus = np.array([host.cpus for host in hosts], np.int64)
        self.idle_mw = np.array([host.idle_mw for host in hosts], np.int64)
        self.peak_mw = np.array([host.peak_mw for host in hosts], np.int64)

    def index(self, ids: Rows) -> Rows:
        """Positions of `ids` in this list."""
        return np.searchsorted(self.ids, ids)

    def name(self, host: HostId) -> str:
        """The host's name."""
        return self.facts[int(self.index(np.array(host)))].name


def matrix(rows: Rows) -> Rows:
    """(n,) all-int64 structured rows -> (n, columns) int64, an array column taking several."""
    width = rows.dtype.itemsize // 8
    return np.ascontiguousarray(rows).view(np.int64).reshape(len(rows), width)


def epoch_rows(report: EpochReport, hosts: HostList) -> Rows:
    """(n_epochs,) EPOCH_ROW of one barrier."""
    epochs, starts = np.unique(report.hosts["epoch"], return_index=True)
    rows = np.zeros(len(epochs), EPOCH_ROW)
    if not len(epochs):
        return rows
    at = hosts.index(report.hosts["host"])
    cpus = np.add.reduceat(hosts.cpus[at] * report.hosts["on"], starts)
    demand = np.add.reduceat(hosts.cpus[at] * report.hosts["cpu_demand_permille"], starts)
    first = len(HOST_ROW.names or ()) - len(_MEASURES)
    into = 4  # epoch, hosts, memory_pages, power_mw come before the sums
    sums = np.add.reduceat(matrix(report.hosts), starts, axis=0)[:, first:]
    matrix(rows)[:, into : into + len(_MEASURES)] = sums
    on = report.hosts["on"]
    rows["epoch"], rows["hosts"] = epochs, np.add.reduceat(on, starts)
    rows["memory_pages"] = np.add.reduceat(hosts.memory_pages[at] * on, starts)
    busy = np.minimum(report.hosts["cpu_demand_permille"], 1000)
    power_mw = hosts.idle_mw[at] + (hosts.peak_mw - hosts.idle_mw)[at] * busy // 1000
    rows["power_mw"] = np.add.reduceat(power_mw * on, starts)
    rows["cpu_demand_permille"] = demand // np.maximum(cpus, 1)
    of_vms = np.searchsorted(report.vms["epoch"], np.append(epochs, epochs[-1] + 1)).tolist()
    for row, first, end in zip(rows, of_vms, of_vms[1:], strict=False):
        for name in ("on_ns", "lost_ns", "touches"):
            row[name] = report.vms[name][first:end].sum(axis=0)
    return rows


def columns(rows: Rows, epoch_ms: int) -> dict[str, Any]:
    """Rows of any of the dtypes -> table columns: pages as bytes, times as seconds."""
    found: dict[str, Any] = {"epoch": rows["epoch"], "end_s": (rows["epoch"] + 1) * epoch_ms / 1e3}
    for name in rows.dtype.names or ():
        stem, _, unit = name.rpartition("_")
        if name == "lost_ns":
            for cause, column in zip(CAUSES, rows[name].T, strict=True):
                found[f"lost_{cause}_s"] = column / 1e9
        elif unit == "mw":
            found[f"{stem}_w"] = rows[name] / 1e3
        elif unit == "pages":
            found[f"{stem}_bytes"] = rows[name] * PAGE_SIZE
        elif unit in ("ms", "ns"):
            found[f"{stem}_s"] = rows[name] / (1e3 if unit == "ms" else 1e9)
        else:
            found[name] = rows[name]
    return found
