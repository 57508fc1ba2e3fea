"""The run folder while a run goes on: rows arrive epoch by epoch and leave as Parquet parts.

A part is written aside and renamed, so a killed run keeps whole parts and no torn file; the first
manifest already says `partial`, and only `finish` takes that back. Parts grow with what is stored
(a sixteenth of it, up to PART_ROWS): few files in a long run, little lost in a short one. A run
that is resumed goes on behind what its checkpoint names, and only one run writes at a time.
Nothing here grows with simulated time, and nothing here decides what a number means.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.files import OutputError, WriteError, write_json, write_table, write_text
from cluster.messages import HOST_ROW, LEVELS, VM_ROW, EpochReport, Rows
from cluster.parts import PARTS, join, keep_first, part, parts_of, rows_of
from cluster.rows import EPOCH_ROW, Columns, HostFacts, HostList, columns, epoch_rows
from hostsim.units import PAGE_SIZE

PART_ROWS = 65_536
"""Most rows of a part."""
FIRST_PART_ROWS = 256
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
CHECKPOINTS = "checkpoints"
"""The folder of the run's checkpoints."""
GOES_ON = "the run was killed, or still goes on"
LOCK_S = 10.0
"""How long to wait for another process that writes here: one that was killed needs a moment."""
ROW_TYPES = {"hosts": HOST_ROW, "epochs": EPOCH_ROW, "vms_epochs": VM_ROW}
"""The tables that are streamed."""
_LINE = json.JSONEncoder(allow_nan=False)


@contextmanager
def _using(out: Path) -> Iterator[None]:
    """Whatever fails inside means that `out` cannot be used."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot use {out} for results: {error.strerror or error}") from error
    except ValueError as error:
        raise OutputError(f"{out} holds a manifest.json that is not a run's: {error}") from error


@dataclass(frozen=True, slots=True)
class Written:
    """How far a run folder is written: rows of each table, bytes of events.jsonl."""

    rows: dict[str, int]
    events_bytes: int


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
        for name in OWN_FILES[:-1]:  # the manifest last: until then it is a run folder
            (out / name).unlink(missing_ok=True)
        for folder in (out / PARTS, out / CHECKPOINTS):
            if folder.exists():
                shutil.rmtree(folder)
        (out / PARTS).mkdir()


def _reopen(out: Path, so_far: Written) -> dict[str, int]:
    """Make `out` what it was when it was written so far. Returns the number of each table's parts.

    Killed midway it can be done again. Raises OutputError where less is there.
    """
    check_usable(out)
    with _using(out):
        (out / PARTS).mkdir(exist_ok=True)
        parts = {table: keep_first(out, table, n) for table, n in so_far.rows.items()}
        with (out / "events.jsonl").open("r+b") as events:
            events.truncate(so_far.events_bytes)
        for name in ("report.json", "vms.parquet", "report.html"):
            (out / name).unlink(missing_ok=True)
    return parts


def why_not_behind(out: Path, so_far: Written) -> str | None:
    """Why a run cannot go on behind what was written, or None."""
    try:
        for table, n_rows in so_far.rows.items():
            if rows_of(out, table) < n_rows:
                return f"{out}: table {table} has fewer rows than were written"
        if (out / "events.jsonl").stat().st_size < so_far.events_bytes:
            return f"{out / 'events.jsonl'} is shorter than what was written"
    except (OSError, OutputError) as error:
        return str(error)
    return None


def _locked(out: Path) -> int:
    """A descriptor that holds `out` for this process, until it is closed. Raises OutputError.

    Where the file system knows no locks, none is held.
    """
    found = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    give_up_s = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < give_up_s:
                time.sleep(0.05)
                continue
            os.close(found)
            raise OutputError(f"another run is writing to {out}") from None
        except OSError:
            pass
        return found


def note_reason(out: Path, reason: str) -> None:
    """Say why a run that left its folder as it was does not go on."""
    with suppress(OSError, ValueError, WriteError):
        held = json.loads((out / "manifest.json").read_text("utf-8"))
        if held["reason"] == GOES_ON:
            write_json(out / "manifest.json", held | {"reason": reason})


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
        so_far: Written | None = None,
    ) -> None:
        """so_far: go on behind what a checkpoint names; None: begin. Raises OutputError."""
        from cluster import __version__

        self.out = out
        self._hosts = HostList(hosts)
        self._epoch_ms = epoch_ms
        self._part_rows = part_rows
        self._started = {"esxsim": __version__}
        tables = ("vms_epochs", "hosts", "epochs") if detail_vms else ("hosts", "epochs")
        self._held: dict[str, list[Rows]] = {table: [] for table in tables}
        self._stored = dict.fromkeys(tables, 0) if so_far is None else dict(so_far.rows)
        self._parts = dict.fromkeys(tables, 0)
        check_usable(out)
        with _using(out):
            out.mkdir(parents=True, exist_ok=True)
            self._unlock = weakref.finalize(self, os.close, _locked(out))
        try:
            self._open(scenario_yaml, so_far)
        except BaseException:
            self._unlock()
            raise

    def _open(self, scenario_yaml: str, so_far: Written | None) -> None:
        """Make the folder what the run begins with."""
        if so_far is None:
            _claim(self.out)
        else:
            self._parts = _reopen(self.out, so_far)
        try:
            self._manifest({}, partial=True, reason=GOES_ON)
        except WriteError:  # or nobody would know it for a run folder, and refuse it
            if so_far is None:
                (self.out / PARTS).rmdir()
            raise
        write_text(self.out / "scenario.yaml", scenario_yaml)
        try:
            (self.out / PARTS / RESERVE).write_bytes(bytes(RESERVE_BYTES))
            # Unbuffered: a line is one write, so a killed run tears no line.
            self._events = (self.out / "events.jsonl").open("ab", buffering=0)
        except OSError as error:
            raise WriteError(f"cannot write in {self.out}: {error.strerror or error}") from error

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

    def settle(self) -> Written:
        """Have all that was added on disk; how far that is."""
        for table, held in self._held.items():
            if held:
                self._flush(table)
        return Written(dict(self._stored), self._events.tell())

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
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        self._unlock()

    def leave(self) -> None:
        """Leave all as it is, as if the run had been killed: another one will go on."""
        self._events.close()
        self._unlock()

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
                if parts_of(self.out, table):
                    (self.out / f"{table}.parquet").unlink(missing_ok=True)
            raise
        finally:
            self._manifest(manifest or {}, partial=True, reason=reason)
            self._unlock()

    def _flush(self, table: str) -> None:
        """Write the held rows of a table as its next part."""
        rows = np.concatenate([np.zeros(0, ROW_TYPES[table]), *self._held[table]])
        values = columns(rows, self._epoch_ms)
        if table == "hosts":
            at = self._hosts.index(rows["host"])
            facts = self._hosts.facts
            values["host_name"] = [facts[i].name for i in at.tolist()]
            values["memory_bytes"] = self._hosts.memory_pages[at] * PAGE_SIZE
        write_table(part(self.out, table, self._parts[table]), values)
        self._held[table] = []
        self._stored[table] += len(rows)
        self._parts[table] += 1

    def _close(self, report: Columns | None, vms: Columns | None) -> None:
        self._events.close()
        for table, held in self._held.items():
            if held or not self._parts[table]:  # an empty table is a table too
                self._flush(table)
        for table in self._held:  # joined once all is in parts, should there be room for no more
            join(self.out, table)
        if vms is not None:
            write_table(self.out / "vms.parquet", vms)
        if report is not None:
            write_json(self.out / "report.json", report)
        shutil.rmtree(self.out / PARTS, ignore_errors=True)

    def _manifest(self, values: Columns, *, partial: bool, reason: str | None = None) -> None:
        state = {"partial": partial} if reason is None else {"partial": partial, "reason": reason}
        write_json(self.out / "manifest.json", {**self._started, **state, **values} | state)
