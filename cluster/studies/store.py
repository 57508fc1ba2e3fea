"""The folder of a study: one run folder for each scenario and seed, and what is made of them.

A run is found by its scenario's digest and by the simulator that made it, so nothing is run twice,
whichever study asks for it, and nothing that an older simulator made is taken for new. Runs are
written aside and renamed: what has its name is whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import __version__, readback
from cluster.files import OutputError, WriteError, write_json
from cluster.simulator import simulator
from cluster.tables import check_usable

MARK = "study.json"
POINTS = "points"
SCHEMA = 1
_SLUG_MAX = 80
_DIGEST_CHARS = 16


def run_name(words: str, seed: int, digest: str) -> str:
    """The name of a run's folder: readable first, then what makes it unique."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", words)[:_SLUG_MAX].strip("-.") or "run"
    return f"{slug}-s{seed}-{digest[:_DIGEST_CHARS]}"


def is_study(folder: Path) -> bool:
    """Whether this is the folder of a study."""
    try:
        held = json.loads((folder / MARK).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and "study" in held


def check_free(out: Path) -> None:
    """OutputError if a study could not use `out`: it holds something else. Changes nothing."""
    if is_study(out):
        return
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty and not the folder of a study: name another folder")
    check_usable(out)


class Store:
    """The runs of a study's folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._points = out / POINTS
        self._by_digest = {}
        for path in sorted(self._points.glob("[!.]*")):
            self._by_digest[path.name[-_DIGEST_CHARS:]] = path

    def report(self, digest: str) -> dict[str, Any] | None:
        """The report of a run that is done, None where there is none."""
        path = self._by_digest.get(digest[:_DIGEST_CHARS])
        try:
            if path is None or manifest_of(path).get("simulator") != simulator():
                return None
            found = readback.report(path / "report.json")
        except OutputError:  # damaged: it is run again
            return None
        whole = found is not None and found["digest"] is not None
        return found if whole and found["scenario"]["digest"] == digest else None  # type: ignore[index]

    def folder(self, digest: str) -> Path | None:
        """Where the run of a scenario is, below the study's folder."""
        path = self._by_digest.get(digest[:_DIGEST_CHARS])
        return None if path is None else path.relative_to(self.out)

    def add(self, name: str, digest: str, write: Callable[[Path], bool]) -> bool:
        """Have `write` fill an empty folder; it stays under `name` if `write` gives True.

        Raises WriteError, and what `write` raises.
        """
        aside, path = self._points / f".{name}.tmp", self._points / name
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            whole = write(aside)
            if whole:
                old = self._by_digest.get(digest[:_DIGEST_CHARS])
                for former in (old, path):
                    if former is not None:
                        shutil.rmtree(former, ignore_errors=True)
                os.replace(aside, path)
                self._by_digest[digest[:_DIGEST_CHARS]] = path
            return whole
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def manifest_of(folder: Path) -> dict[str, Any]:
    """manifest.json of a run folder; empty where there is none, or it is damaged."""
    try:
        held = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def files_of(folder: Path) -> dict[str, bytes]:
    """A run folder as bytes, to be written elsewhere."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> bool:
    """What `files_of` gave, into an empty folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return True


@contextmanager
def opened(out: Path) -> Iterator[Store]:
    """The store at `out`, made if need be, in use by nobody else meanwhile. Raises OutputError."""
    check_free(out)
    try:
        (out / POINTS).mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise OutputError(f"cannot use {out} for results: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{out} is in use by another esxsim") from None
        write_json(out / MARK, {"study": SCHEMA, "esxsim": __version__})
        yield Store(out)
