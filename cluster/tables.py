"""The run folder while a run goes on: rows arrive epoch by epoch and leave as Parquet parts.

A part is written aside and renamed, so a killed run keeps whole parts and no torn file; the first
manifest already says `partial`, and only `finish` takes that back. Parts grow with what is stored
(a sixteenth of it, up to PART_ROWS): few files in a long run, little lost in a short one. Joining
cuts fixed row groups, so the joined bytes do not depend on how the rows were batched.
Nothing here grows with simulated time, and nothing here decides what a number means.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.messages import CAUSES, HOST_ROW, LEVELS, EpochReport, Rows
from hostsim.units import PAGE_SIZE, HostId, VmId, pages

PART_ROWS = 65_536
"""Most rows of a part, and the rows of a row group of a joined table."""
FIRST_PART_ROWS = 256
PARTS = ".parts"
OWN_FILES = (
    "report.json",
    "hosts.parquet",
    "vms.parquet",
    "vms_epochs.parquet",
    "epochs.parquet",
    "events.jsonl",
    "report.html",
    "scenario.yaml",
    "manifest.json",
)
"""What a run may write, and what a new run into a former run folder removes first."""

Columns = Mapping[str, Any]
"""Column name -> values of equal length: NumPy arrays, or lists where None means unknown."""


class OutputError(Exception):
    """The run folder cannot be used; the message names the path and says why."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the reports say of a host before it ran."""

    host: HostId
    name: str
    memory_bytes: int
    cpus: int


@dataclass(frozen=True, slots=True)
class VmFacts:
    """What the reports say of a VM before it ran."""

    vm: VmId
    name: str
    memory_bytes: int
    vcpus: int


_MEASURES = tuple(name for name in HOST_ROW.names or () if name not in ("epoch", "host"))
EPOCH_ROW = np.dtype(
    [(name, np.int64) for name in ("epoch", "hosts", "memory_pages")]
    + [(name, np.int64) for name in _MEASURES]
    + [("on_ns", np.int64), ("lost_ns", np.int64, (len(CAUSES),)), ("touches", np.int64)]
)
"""One row per epoch: hosts that reported and their memory, the sums of their HOST_ROW columns
(cpu_demand_permille: of the cluster's CPUs, rounded down), the sums of the VMs' times and touches.
"""


class HostList:
    """Hosts in id order, with lookups from a column of host ids."""

    def __init__(self, hosts: Sequence[HostFacts]) -> None:
        self.facts = tuple(hosts)
        self.ids = np.array([host.host for host in hosts], np.int64)
        assert (np.diff(self.ids) > 0).all(), "hosts must come in id order, each once"
        self.memory_pages = np.array([pages(host.memory_bytes) for host in hosts], np.int64)
        self.cpus = np.array([host.cpus for host in hosts], np.int64)

    def index(self, ids: Rows) -> Rows:
        """Positions of `ids` in this list."""
        return np.searchsorted(self.ids, ids)

    def name(self, host: HostId) -> str:
        """The host's name."""
        return self.facts[int(self.index(np.int64(host)))].name


def _matrix(rows: Rows) -> Rows:
    """(n,) all-int64 structured rows -> (n, columns) int64, an array column taking several."""
    return np.ascontiguousarray(rows).view(np.int64).reshape(len(rows), -1)


def epoch_rows(report: EpochReport, hosts: HostList) -> Rows:
    """(n_epochs,) EPOCH_ROW of one barrier."""
    epochs, starts = np.unique(report.hosts["epoch"], return_index=True)
    rows = np.zeros(len(epochs), EPOCH_ROW)
    if not len(epochs):
        return rows
    ends = np.append(starts[1:], len(report.hosts))
    at = hosts.index(report.hosts["host"])
    cpus = np.add.reduceat(hosts.cpus[at], starts)
    demand = np.add.reduceat(hosts.cpus[at] * report.hosts["cpu_demand_permille"], starts)
    first = len(HOST_ROW.names or ()) - len(_MEASURES)
    into = 3  # epoch, hosts, memory_pages come before the sums
    sums = np.add.reduceat(_matrix(report.hosts), starts, axis=0)[:, first:]
    _matrix(rows)[:, into : into + len(_MEASURES)] = sums
    rows["epoch"], rows["hosts"] = epochs, ends - starts
    rows["memory_pages"] = np.add.reduceat(hosts.memory_pages[at], starts)
    rows["cpu_demand_permille"] = demand // np.maximum(cpus, 1)
    of_vm = np.searchsorted(epochs, report.vms["epoch"])
    for name in ("on_ns", "lost_ns", "touches"):
        np.add.at(rows[name], of_vm, report.vms[name])
    return rows


def columns(rows: Rows, epoch_ms: int) -> dict[str, Any]:
    """Rows of any of the dtypes -> table columns: pages as bytes, times as seconds."""
    found: dict[str, Any] = {"epoch": rows["epoch"], "end_s": (rows["epoch"] + 1) * epoch_ms / 1e3}
    for name in rows.dtype.names or ():
        stem, _, unit = name.rpartition("_")
        if name == "lost_ns":
            for cause, column in zip(CAUSES, rows[name].T, strict=True):
                found[f"lost_{cause}_s"] = column / 1e9
        elif unit == "pages":
            found[f"{stem}_bytes"] = rows[name] * PAGE_SIZE
        elif unit in ("ms", "ns"):
            found[f"{stem}_s"] = rows[name] / (1e3 if unit == "ms" else 1e9)
        else:
            found[name] = rows[name]
    return found


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name to write at; renamed to `path` once whole, so nobody ever reads half a file."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    with _aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `path` whole or not at all, for people and programs."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, values: Columns) -> None:
    """Write a Parquet file whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _aside(path) as aside:
        pq.write_table(pa.table(dict(values)), aside, row_group_size=PART_ROWS)


def table_files(folder: Path, table: str) -> list[Path]:
    """The files that hold a table, in row order: the joined one, else the parts so far."""
    joined = folder / f"{table}.parquet"
    if joined.exists():
        return [joined]
    return sorted((folder / PARTS).glob(f"{table}-*.parquet"))


def _join(folder: Path, table: str) -> None:
    """Parts -> one file, holding at most a row group and a part in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = sorted((folder / PARTS).glob(f"{table}-*.parquet"))
    if not parts:
        return
    schema = pq.read_schema(parts[0])
    held = schema.empty_table()
    with _aside(folder / f"{table}.parquet") as aside, pq.ParquetWriter(aside, schema) as writer:
        for part in parts:
            held = pa.concat_tables([held, pq.read_table(part)], promote_options="none")
            while len(held) >= PART_ROWS:
                writer.write_table(held.slice(0, PART_ROWS).combine_chunks())
                held = held.slice(PART_ROWS)
        if len(held):
            writer.write_table(held.combine_chunks())


def _claim(out: Path) -> None:
    """Make `out` an empty run folder, or refuse: files of somebody else are never touched."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            manifest = out / "manifest.json"
            held = json.loads(manifest.read_text("utf-8")) if manifest.exists() else None
            if not isinstance(held, dict) or "esxsim" not in held:
                raise OutputError(f"{out} is not empty and not a run folder: name another folder")
            for name in OWN_FILES[:-1]:  # the manifest last: until then it is a run folder
                (out / name).unlink(missing_ok=True)
            if (out / PARTS).exists():
                shutil.rmtree(out / PARTS)
        (out / PARTS).mkdir()
    except OSError as error:
        raise OutputError(f"cannot use {out} for results: {error.strerror or error}") from error
    except ValueError as error:
        raise OutputError(f"{out} holds a manifest.json that is not a run's: {error}") from error


class RunFolder:
    """Where one run writes. `add` per barrier, `event` as it happens, `finish` or `abandon` once."""

    def __init__(
        self,
        out: Path,
        hosts: Sequence[HostFacts],
        *,
        scenario_yaml: str,
        epoch_ms: int,
        detail_vms: bool = False,
        part_rows: int = PART_ROWS,
    ) -> None:
        from cluster import __version__

        _claim(out)
        self.out = out
        self._hosts = HostList(hosts)
        self._epoch_ms = epoch_ms
        self._part_rows = part_rows
        self._started = {"esxsim": __version__}
        self._held: dict[str, list[Rows]] = {"hosts": [], "epochs": []}
        if detail_vms:
            self._held["vms_epochs"] = []
        self._stored = dict.fromkeys(self._held, 0)
        self._parts = dict.fromkeys(self._held, 0)
        self._manifest({}, partial=True, reason="the run was killed, or still goes on")
        write_text(out / "scenario.yaml", scenario_yaml)
        try:
            # Unbuffered: a line is one write, so a killed run tears no line.
            self._events = (out / "events.jsonl").open("ab", buffering=0)
        except OSError as error:
            raise OutputError(f"cannot write in {out}: {error.strerror or error}") from error

    def add(self, report: EpochReport) -> None:
        """Take the rows of one barrier, and write down its level changes."""
        rows = {"hosts": report.hosts, "epochs": epoch_rows(report, self._hosts)}
        rows["vms_epochs"] = report.vms
        for table, held in self._held.items():
            held.append(rows[table])
            due = min(self._part_rows, max(FIRST_PART_ROWS, self._stored[table] // 16))
            if sum(map(len, held)) >= due:
                self._flush(table)
        for change in report.level_changes:
            names = {"before": LEVELS[change.before], "after": LEVELS[change.after]}
            free_bytes = change.free_pages * PAGE_SIZE
            host = self._hosts.name(change.host)
            self.event(change.at_ms, "level", host=host, **names, free_bytes=free_bytes)

    def event(self, at_ms: int, kind: str, **facts: Any) -> None:
        """One line of events.jsonl: when, what, to whom, and the numbers that decided it."""
        line = json.dumps({"at_s": at_ms / 1e3, "kind": kind, **facts}, allow_nan=False)
        try:
            self._events.write(line.encode() + b"\n")
        except OSError as error:
            raise OutputError(f"cannot write events in {self.out}: {error.strerror}") from error

    def finish(self, report: Columns, vms: Columns, manifest: Columns) -> None:
        """Everything is there: join the tables; the manifest, last, says the run is whole."""
        self._close(report, vms)
        self._manifest(manifest, partial=False)

    def abandon(
        self,
        reason: str,
        report: Columns | None = None,
        vms: Columns | None = None,
        manifest: Columns | None = None,
    ) -> None:
        """The run ends early: keep what there is, marked as partial."""
        self._close(report, vms)
        self._manifest(manifest or {}, partial=True, reason=reason)

    def _flush(self, table: str) -> None:
        """Write the held rows of a table as its next part."""
        rows = np.concatenate(self._held[table] or [np.zeros(0)])
        self._held[table] = []
        if not len(rows):
            return
        values = columns(rows, self._epoch_ms)
        if table == "hosts":
            at = self._hosts.index(rows["host"])
            names = np.array([host.name for host in self._hosts.facts], dtype=object)
            values["host_name"] = names[at]
            values["memory_bytes"] = self._hosts.memory_pages[at] * PAGE_SIZE
        write_table(self.out / PARTS / f"{table}-{self._parts[table]:06d}.parquet", values)
        self._stored[table] += len(rows)
        self._parts[table] += 1

    def _close(self, report: Columns | None, vms: Columns | None) -> None:
        for table in self._held:
            self._flush(table)
            _join(self.out, table)
        if vms is not None:
            write_table(self.out / "vms.parquet", vms)
        if report is not None:
            write_json(self.out / "report.json", report)
        self._events.close()
        shutil.rmtree(self.out / PARTS, ignore_errors=True)

    def _manifest(self, values: Columns, *, partial: bool, reason: str | None = None) -> None:
        state = {"partial": partial} if reason is None else {"partial": partial, "reason": reason}
        write_json(self.out / "manifest.json", {**self._started, **state, **values})
