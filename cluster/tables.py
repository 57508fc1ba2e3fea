"""The run folder while a run goes on: rows arrive epoch by epoch and leave as Parquet parts.

A part is written aside and renamed, so a killed run keeps whole parts and no torn file; the first
manifest already says `partial`, and only `finish` takes that back. Parts grow with what is stored
(a sixteenth of it, up to PART_ROWS): few files in a long run, little lost in a short one. Joining
cuts fixed row groups, so the joined bytes do not depend on how the rows were batched.
Nothing here grows with simulated time, and nothing here decides what a number means.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cluster.messages import HOST_ROW, LEVELS, VM_ROW, EpochReport, Rows
from cluster.rows import EPOCH_ROW, Columns, HostFacts, HostList, columns, epoch_rows
from hostsim.units import PAGE_SIZE

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
"""pyarrow's own allocator keeps what it once had: 60 MB more for `scale-1000`, and no faster. It is
imported after this, where it is used: half a second that not every command needs."""
PART_ROWS = 65_536
"""Most rows of a part."""
GROUP_ROWS = 16_384
"""Rows of a row group of a joined table: what joining and reading hold in memory."""
FIRST_PART_ROWS = 256
PARTS = ".parts"
RESERVE, RESERVE_BYTES = "reserve", 16 << 10
"""Room beside the parts that a full disk cannot take: for the manifest that says what happened."""
OWN_FILES = (
    "report.json",
    "hosts.parquet",
    "vms.parquet",
    "vms_epochs.parquet",
    "epochs.parquet",
    "events.jsonl",
    "progress.json",
    "report.html",
    "scenario.yaml",
    "manifest.json",
)
"""What a run may write, and what a new run into a former run folder removes first."""
ROW_TYPES = {"hosts": HOST_ROW, "epochs": EPOCH_ROW, "vms_epochs": VM_ROW}
"""The tables that are streamed."""
_LINE = json.JSONEncoder(allow_nan=False)


class OutputError(Exception):
    """The run folder cannot be used; the message names the path and says why."""


class WriteError(Exception):
    """Writing failed in a folder that could be used, as on a full disk: no fault of the input."""


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name to write at; renamed to `path` once whole, so nobody ever reads half a file."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)  # gone already unless writing failed


def write_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    with _aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `path` whole or not at all, for people and programs."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, values: Columns) -> None:
    """Write a Parquet file whole or not at all. A list is text, even where all of it is None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    typed = {
        name: pa.array(column, pa.string()) if isinstance(column, list) else pa.array(column)
        for name, column in values.items()
    }
    with _aside(path) as aside:
        pq.write_table(pa.table(typed), aside, row_group_size=GROUP_ROWS)


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
    if not parts:  # joined before
        return
    schema = pq.read_schema(parts[0])
    held = schema.empty_table()
    with _aside(folder / f"{table}.parquet") as aside, pq.ParquetWriter(aside, schema) as writer:
        for part in parts:
            held = pa.concat_tables([held, pq.ParquetFile(part).read(use_threads=False)])
            while len(held) >= GROUP_ROWS:
                writer.write_table(held.slice(0, GROUP_ROWS).combine_chunks())
                held = held.slice(GROUP_ROWS)
        if len(held):
            writer.write_table(held.combine_chunks())


@contextmanager
def _using(out: Path) -> Iterator[None]:
    """Whatever fails inside means that `out` cannot be used."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot use {out} for results: {error.strerror or error}") from error
    except ValueError as error:
        raise OutputError(f"{out} holds a manifest.json that is not a run's: {error}") from error


def check_usable(out: Path) -> None:
    """OutputError if a run could not write to the folder `out`. Looks, and changes nothing."""
    with _using(out):
        nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not out.exists() or not any(out.iterdir()):
            return
        manifest = out / "manifest.json"
        held = json.loads(manifest.read_text("utf-8")) if manifest.exists() else None
        if not isinstance(held, dict) or "esxsim" not in held:
            raise OutputError(f"{out} is not empty and not a run folder: name another folder")


def _claim(out: Path) -> None:
    """Make `out` an empty run folder, or refuse: files of somebody else are never touched."""
    check_usable(out)
    with _using(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in OWN_FILES[:-1]:  # the manifest last: until then it is a run folder
            (out / name).unlink(missing_ok=True)
        if (out / PARTS).exists():
            shutil.rmtree(out / PARTS)
        (out / PARTS).mkdir()


class RunFolder:
    """Where one run writes: `add` per barrier, `event` as it happens, `finish` or `abandon`."""

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
        tables = ("vms_epochs", "hosts", "epochs") if detail_vms else ("hosts", "epochs")
        self._held: dict[str, list[Rows]] = {table: [] for table in tables}
        self._stored = dict.fromkeys(tables, 0)
        self._parts = dict.fromkeys(tables, 0)
        try:
            self._manifest({}, partial=True, reason="the run was killed, or still goes on")
        except WriteError:  # or nobody would know it for a run folder, and refuse it
            (out / PARTS).rmdir()
            raise
        write_text(out / "scenario.yaml", scenario_yaml)
        try:
            (out / PARTS / RESERVE).write_bytes(bytes(RESERVE_BYTES))
            # Unbuffered: a line is one write, so a killed run tears no line.
            self._events = (out / "events.jsonl").open("ab", buffering=0)
        except OSError as error:
            raise WriteError(f"cannot write in {out}: {error.strerror or error}") from error

    def add(self, report: EpochReport) -> None:
        """Take the rows of one barrier, and write down its level changes."""
        summed = epoch_rows(report, self._hosts)
        rows = {"hosts": report.hosts, "epochs": summed, "vms_epochs": report.vms}
        due = False
        for table, held in self._held.items():
            held.append(rows[table])
            most = min(self._part_rows, max(FIRST_PART_ROWS, self._stored[table] // 16))
            due = due or sum(map(len, held)) >= most
        if due:  # all together, so that a killed run's tables end at the same epoch
            for table in self._held:
                self._flush(table)
        for change in report.level_changes:
            names = {"before": LEVELS[change.before], "after": LEVELS[change.after]}
            free_bytes = change.free_pages * PAGE_SIZE
            host = self._hosts.name(change.host)
            self.event(change.at_ms, "level", host=host, **names, free_bytes=free_bytes)

    def event(self, at_ms: int, kind: str, **facts: Any) -> None:
        """One line of events.jsonl: when, what, to whom, and the numbers that decided it."""
        text = _LINE.encode({"at_s": at_ms / 1e3, "kind": kind, **facts})
        line = text.encode() + b"\n"
        try:
            written = self._events.write(line)
            if written < len(line):  # a disk that gets full takes a part of it
                self._events.truncate(self._events.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise WriteError(f"cannot write events in {self.out}: {error.strerror}") from error

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
        """The run ends early: keep what there is, marked as partial; it has no digest.

        Where writing fails, tables stay in the parts that there are, and the manifest still says
        why the run ended.
        """
        if report is not None:
            report = {**report, "partial": True, "digest": None}
        try:
            self._close(report, vms)
        except WriteError:
            (self.out / PARTS / RESERVE).unlink(missing_ok=True)
            for table in self._held:  # more room: what is joined is in parts too
                if any((self.out / PARTS).glob(f"{table}-*.parquet")):
                    (self.out / f"{table}.parquet").unlink(missing_ok=True)
            raise
        finally:
            self._manifest(manifest or {}, partial=True, reason=reason)

    def _flush(self, table: str) -> None:
        """Write the held rows of a table as its next part."""
        rows = np.concatenate([np.zeros(0, ROW_TYPES[table]), *self._held[table]])
        values = columns(rows, self._epoch_ms)
        if table == "hosts":
            at = self._hosts.index(rows["host"])
            facts = self._hosts.facts
            values["host_name"] = [facts[i].name for i in at.tolist()]
            values["memory_bytes"] = self._hosts.memory_pages[at] * PAGE_SIZE
        write_table(self.out / PARTS / f"{table}-{self._parts[table]:06d}.parquet", values)
        self._held[table] = []
        self._stored[table] += len(rows)
        self._parts[table] += 1

    def _close(self, report: Columns | None, vms: Columns | None) -> None:
        self._events.close()
        for table, held in self._held.items():
            if held or not self._parts[table]:  # an empty table is a table too
                self._flush(table)
        for table in self._held:  # joined once all is in parts, should there be room for no more
            _join(self.out, table)
        if vms is not None:
            write_table(self.out / "vms.parquet", vms)
        if report is not None:
            write_json(self.out / "report.json", report)
        shutil.rmtree(self.out / PARTS, ignore_errors=True)

    def _manifest(self, values: Columns, *, partial: bool, reason: str | None = None) -> None:
        state = {"partial": partial} if reason is None else {"partial": partial, "reason": reason}
        write_json(self.out / "manifest.json", {**self._started, **state, **values} | state)
