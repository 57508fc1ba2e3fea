"""What a run tells of itself while it goes on, for people who look in from elsewhere.

Made by NumPy from the last epoch's rows, at most once a second: the hosts under most pressure, the
slowest VMs, how fast the run is. Counts are kept at every barrier. All of it lies in the run folder
as progress.json, which is written aside and renamed, and gone once the run has ended as it should.
Nothing here is part of a result, and nothing that goes wrong here ends a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.aggregate import slowdowns
from cluster.files import WriteError, write_text
from cluster.messages import CAUSES, HOST_ROW, LEVELS, EpochReport, Rows
from cluster.rows import HostFacts, VmFacts, matrix
from cluster.scenario_file import Loaded
from hostsim.units import PAGE_SIZE

EVERY_S = 1.0
"""Least time between two views."""
RATE_VIEWS = 10
"""A rate is over the time of so many views."""
MOST = 20
"""Hosts, and VMs, that a view has."""
FILE = "progress.json"
COUNTED = (
    *("zero_fills", "cow_breaks", "decompressions", "swap_in_pages", "swap_out_pages"),
    *("inflated_pages", "deflated_pages"),
)
"""Columns of HOST_ROW that are counted."""
_WIDTH = len(HOST_ROW.names or ())
_AT = {name: (HOST_ROW.names or ()).index(name) for name in COUNTED}


@dataclass(frozen=True, slots=True)
class HostView:
    """A host at the end of the last epoch, and the worst state that it was in during it."""

    name: str
    level: str
    vms: int
    memory_bytes: int
    free_bytes: int
    ballooned_bytes: int
    swapped_bytes: int
    cpu_permille: int


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM in the last epoch. lost: cause -> part of its time, the largest first."""

    name: str
    host: str
    slowdown: float
    memory_bytes: int
    lost: dict[str, float]


@dataclass(frozen=True, slots=True)
class View:
    """A running cluster, as `esxsim top` shows it."""

    run: str
    simulated_s: float
    duration_s: float
    host_ticks_per_s: float
    simulated_s_per_s: float
    """Both over the last RATE_VIEWS seconds or so."""
    left_s: float | None
    """At that rate."""
    hosts: int
    hosts_on: int
    machine_bytes: int
    """Memory of the hosts that are on."""
    queue: int
    """VMs that wait for a host."""
    migrations: int
    """Under way."""
    counts: dict[str, int] = field(default_factory=dict)
    """Since this process took the run on: epochs, host_ticks, simulated_ms, migrated,
    migration_failed, and those of COUNTED, in pages."""
    pressed: tuple[HostView, ...] = ()
    """The hosts under most pressure: by state, then by the part of memory that is free."""
    slowest: tuple[VmView, ...] = ()
    """The VMs that lost most of the last epoch; none that lost nothing."""


def run_id(loaded: Loaded) -> str:
    """What a run is called in logs, metrics and lists: NAME-SEED-DIGEST, of its scenario."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", loaded.scenario.name).strip("-.") or "run"
    return f"{plain}-{loaded.scenario.seed}-{loaded.digest[:8]}"


def worst_levels(rows: Rows) -> Rows:
    """(n,) HOST_ROW of hosts that are on -> position in LEVELS of the worst state of each."""
    was_in = np.column_stack([rows[f"{level}_ms"] > 0 for level in reversed(LEVELS)])
    worst: Rows = len(LEVELS) - 1 - was_in.argmax(axis=1)
    return worst


def largest(values: Rows, most: int) -> Rows:
    """Positions of the `most` largest values, the largest first; ties go to the lower position."""
    at = np.arange(len(values))
    if len(values) > most:
        at = np.flatnonzero(values >= np.partition(values, -most)[-most])
    return at[np.argsort(-values[at], kind="stable")][:most]


class Live:
    """`look` after every barrier, `write` what came of it, `end` when the run has."""

    def __init__(
        self, loaded: Loaded, hosts: Sequence[HostFacts], vms: Sequence[VmFacts], out: Path
    ) -> None:
        self._run, self._scenario = run_id(loaded), loaded.scenario
        self._hosts, self._vms = hosts, vms
        self._memory = np.array([host.memory_bytes for host in hosts], np.int64)
        self._path = out / FILE
        self._sums = np.zeros(_WIDTH, np.int64)
        self._migrated = {"migrated": 0, "migration_failed": 0}
        self._epochs = 0
        self._marks = deque([(time.perf_counter(), 0)], RATE_VIEWS + 1)
        self._view: View | None = None
        self._is_new = False

    def decided(self, kind: str) -> None:
        """Count a decision, if its kind is one that is counted."""
        if kind in self._migrated:
            self._migrated[kind] += 1

    def look(
        self, report: EpochReport, epoch: int, *, queue: int, migrations: int, last: bool
    ) -> View | None:
        """Take a barrier that ends before `epoch`; the view then, or the last one if it is no
        second old. last: nothing comes after it."""
        n_epochs = epoch - int(report.hosts["epoch"][0]) if len(report.hosts) else 0
        self._epochs += n_epochs
        self._sums += matrix(report.hosts).sum(axis=0)
        now_s = time.perf_counter()
        self._is_new = last or self._view is None or now_s - self._marks[-1][0] >= EVERY_S
        if self._is_new:
            self._marks.append((now_s, self._epochs))
            self._view = self._made(report, epoch, queue, migrations)
        return self._view

    def write(self, progress: Any) -> None:
        """Keep a Progress in the run folder, if its view is new."""
        if not self._is_new:
            return
        told = {"pid": os.getpid(), "node": platform.node(), "progress": asdict(progress)}
        with contextlib.suppress(WriteError):  # a disk that is full says so where results go
            write_text(self._path, json.dumps(told))

    def end(self) -> None:
        """The run is over, and its report says more."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _made(self, report: EpochReport, epoch: int, queue: int, migrations: int) -> View:
        scenario = self._scenario
        last = scenario.duration // scenario.epoch
        (since_s, before), (now_s, epochs) = self._marks[0], self._marks[-1]
        per_s = (epochs - before) / max(now_s - since_s, 1e-9)
        ticks = scenario.epoch // scenario.tick * len(self._hosts)
        hosts = _of_epoch(report.hosts, epoch - 1)
        on = hosts[hosts["on"] > 0]
        return View(
            run=self._run,
            simulated_s=epoch * scenario.epoch / 1e3,
            duration_s=scenario.duration / 1e3,
            host_ticks_per_s=per_s * ticks,
            simulated_s_per_s=per_s * scenario.epoch / 1e3,
            left_s=(last - epoch) / per_s if per_s > 0 else None,
            hosts=len(self._hosts),
            hosts_on=len(on),
            machine_bytes=int(self._memory[on["host"]].sum()),
            queue=queue,
            migrations=migrations,
            counts={
                "epochs": self._epochs,
                "host_ticks": self._epochs * ticks,
                "simulated_ms": self._epochs * scenario.epoch,
                **self._migrated,
                **{name: int(self._sums[at]) for name, at in _AT.items()},
            },
            pressed=self._pressed(on),
            slowest=self._slowest(_of_epoch(report.vms, epoch - 1)),
        )

    def _pressed(self, rows: Rows) -> tuple[HostView, ...]:
        levels = worst_levels(rows)
        free = rows["free_pages"] * PAGE_SIZE / self._memory[rows["host"]]
        return tuple(
            HostView(
                name=self._hosts[rows["host"][i]].name,
                level=LEVELS[levels[i]],
                vms=int(rows["vms"][i]),
                memory_bytes=int(self._memory[rows["host"][i]]),
                free_bytes=int(rows["free_pages"][i]) * PAGE_SIZE,
                ballooned_bytes=int(rows["ballooned_pages"][i]) * PAGE_SIZE,
                swapped_bytes=int(rows["swapped_pages"][i]) * PAGE_SIZE,
                cpu_permille=int(rows["cpu_demand_permille"][i]),
            )
            for i in largest(levels + 1 - free, MOST).tolist()
        )

    def _slowest(self, rows: Rows) -> tuple[VmView, ...]:
        lost_ns = rows["lost_ns"].sum(axis=1)
        hurt = np.flatnonzero((rows["on_ns"] > 0) & (lost_ns > 0))
        slowdown = slowdowns(rows["on_ns"][hurt], lost_ns[hurt])
        return tuple(
            VmView(
                name=self._vms[row["vm"]].name,
                host=self._hosts[row["host"]].name,
                slowdown=float(slowdown[i]),
                memory_bytes=self._vms[row["vm"]].memory_bytes,
                lost=_causes(row["lost_ns"] / row["on_ns"]),
            )
            for i, row in ((i, rows[hurt[i]]) for i in largest(slowdown, MOST).tolist())
        )


def _of_epoch(rows: Rows, epoch: int) -> Rows:
    """The rows of the last epoch; they come in the order of epochs."""
    return rows[np.searchsorted(rows["epoch"], epoch) :]


def _causes(parts: Rows) -> dict[str, float]:
    """Cause -> part of time, the largest first (ties: in the order of CAUSES)."""
    order = np.argsort(-parts, kind="stable").tolist()
    return {CAUSES[i]: float(parts[i]) for i in order if parts[i] > 0}
