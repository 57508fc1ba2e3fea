"""Checkpoints of a run: a folder each, a file per host, the manifest last; and which one is good.

A checkpoint is written under a name of its own and renamed once whole, so a folder that has its
name is complete, or was damaged later, which its digests show. They are data: JSON and msgpack.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.files import OutputError
from cluster.fleet import Saved
from cluster.simulator import simulator
from cluster.tables import CHECKPOINTS
from hostsim.packing import LAYOUT, VERSION
from hostsim.units import HostId

KEPT = 2
"""Checkpoints that are kept: should the last one be damaged, there is one more."""
EVERY_S = 60.0
"""Wall time from one checkpoint to the next."""
COST_SHARE = 0.02
"""The part of a run's time that hosts may spend on checkpoints: where one takes long, they come
less often."""
MANIFEST, RUN_FILE = "manifest.json", "run.msgpack"
_NAME = re.compile(r"epoch-(\d{9})")
Contents = Iterable[tuple[str, bytes]]
"""Names of files and what they hold, one after the other: not all of it is in memory."""


class CheckpointError(OutputError):
    """There is no checkpoint to go on from; the message says why each one is none."""


def host_file(host: HostId) -> str:
    """The file of a host."""
    return f"host-{host:06d}.msgpack"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that is whole. files: name -> SHA-256, hex."""

    path: Path
    epoch: int
    files: Mapping[str, str]

    def read(self, name: str) -> bytes:
        """A file of it. Raises CheckpointError for one that is not what was written."""
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path / name}: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != self.files.get(name):
            raise CheckpointError(f"{self.path / name} is damaged: its digest is another")
        return data

    def hosts(self, ids: Iterable[HostId]) -> dict[HostId, bytes]:
        """Snapshots of some hosts."""
        return {host: self.read(host_file(host)) for host in ids}


def identity(scenario_digest: str) -> dict[str, Any]:
    """What a checkpoint and the run that goes on from it must have in common."""
    return {
        "format": f"esxsim-checkpoint-{VERSION}",
        "layout": LAYOUT,
        "esxsim": simulator(),
        "scenario": scenario_digest,
    }


def write(out: Path, epoch: int, about: Mapping[str, Any], contents: Contents) -> None:
    """Write the checkpoint before `epoch` into the run folder `out`, and let old ones go.

    about: `identity`. Raises OSError; then nothing is there that was not before.
    """
    folder = out / CHECKPOINTS
    aside = folder / f".epoch-{epoch:09d}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        files: dict[str, str] = {}
        for name, data in contents:
            _write_through(aside / name, data)
            files[name] = hashlib.sha256(data).hexdigest()
        manifest = json.dumps({**about, "epoch": epoch, "files": files}, indent=1)
        _write_through(aside / MANIFEST, manifest.encode())
        path = folder / f"epoch-{epoch:09d}"
        shutil.rmtree(path, ignore_errors=True)
        os.rename(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in list(_newest_first(out))[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _write_through(path: Path, data: bytes) -> None:
    """Write a file, down to the disk: a rename may get there before what it names."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _newest_first(out: Path) -> Iterator[Path]:
    folder = out / CHECKPOINTS
    if folder.is_dir():
        yield from sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def exists(out: Path) -> bool:
    """Whether the run folder has anything that may be a checkpoint."""
    return any(True for _ in _newest_first(out))


def candidates(out: Path, about: Mapping[str, Any], problems: list[str]) -> Iterator[Checkpoint]:
    """Whole checkpoints of this very scenario and release, the newest first.

    Why others are none is added to `problems`.
    """
    for path in _newest_first(out):
        try:
            yield _opened(path, about)
        except CheckpointError as error:
            problems.append(str(error))


def _opened(path: Path, about: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in `path`, every file of which was read once. Raises CheckpointError."""
    try:
        held = json.loads((path / MANIFEST).read_text("utf-8"))
        for name, value in about.items():
            if held[name] != value:
                found = str(held[name])[:80]
                raise CheckpointError(f"{path}: {name} is {found}, this run's is {value}")
        files = {str(name): str(digest) for name, digest in held["files"].items()}
        whole = Checkpoint(path, int(held["epoch"]), files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: no whole checkpoint: {error!r}"[:300]) from None
    strange = [name for name in files if Path(name).name != name]
    if strange:
        raise CheckpointError(f"{path}: names a file elsewhere: {strange[0][:80]!r}")
    for name in files:
        whole.read(name)
    return whole


class Keeper:
    """Writes the checkpoints of a run while it goes on, and decides when the next one is due.

    Times are of a monotonic clock, in seconds. At most one is being written at a time.
    """

    def __init__(
        self,
        out: Path,
        about: Mapping[str, Any],
        every_s: float,
        now_s: float,
    ) -> None:
        self._out, self._about, self._every_s = out, about, every_s
        self._due_s = now_s + every_s
        self._writing: threading.Thread | None = None
        self.done_s: float | None = None
        """When the last one began that is whole by now."""
        self.failed: str | None = None
        """Why the last one could not be written; the run goes on all the same."""

    def is_due(self, now_s: float) -> bool:
        """Whether hosts should be saved now."""
        return now_s >= self._due_s and not self._is_writing()

    def write(self, epoch: int, run: bytes, saved: Saved, began_s: float) -> None:
        """Write, in a thread, what `standing.pack` made and hosts have saved."""
        self.wait()
        self._due_s = began_s + self._every_s
        self._writing = threading.Thread(target=self._write, args=(epoch, run, saved, began_s))
        self._writing.start()

    def wait(self) -> None:
        """Until what is being written is there."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _is_writing(self) -> bool:
        return self._writing is not None and self._writing.is_alive()

    def _write(self, epoch: int, run: bytes, saved: Saved, began_s: float) -> None:
        took_s = 0.0

        def contents() -> Iterator[tuple[str, bytes]]:
            nonlocal took_s
            yield RUN_FILE, run
            for part in saved():
                took_s = max(took_s, part.took_s)
                for host, data in part.hosts.items():
                    yield host_file(host), data

        try:
            write(self._out, epoch, self._about, contents())
        except Exception as error:  # of a disk, or of a host that is lost: the run will see that
            self.failed = f"no checkpoint of epoch {epoch}: {error}"
        else:
            self.failed = None
            self.done_s = began_s
        self._due_s = max(self._due_s, began_s + took_s / COST_SHARE)
