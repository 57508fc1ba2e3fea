"""A finished run's folder, copied to where it stays: any URL that fsspec knows.

What makes a folder whole is copied last, and taken away first where there was one before: whoever
finds it there finds all of it. Credentials come from the environment, never from the URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster import readback
from cluster.files import OutputError, WriteError
from cluster.studies import store

LAST = ("report.html", "sweep.html", "report.json", "results.json", "study.json", "manifest.json")
"""Files of the folder's top, in this order, after all others."""
LEFT_OUT = "checkpoints"
"""Of a run's folder, beside what begins with a dot: what only a run that goes on needs."""


def publish(folder: Path, url: str) -> int:
    """Copy the folder of a run, or of a sweep, below `url`. Returns the number of files.

    Raises OutputError for a folder that is not whole and for a bad URL, WriteError where copying
    fails.
    """
    _check_whole(folder)
    names = order(folder)
    system, root = _system(url)
    try:
        for name in reversed(names):
            if "/" not in name and name in LAST and system.exists(f"{root}/{name}"):
                system.rm_file(f"{root}/{name}")
        for name in names:
            target = f"{root}/{name}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(folder / name), target)
    except Exception as error:  # of whatever library serves the URL
        raise WriteError(f"cannot copy {folder} to {shown(url)}: {_reason(error)}") from error
    return len(names)


def order(folder: Path) -> list[str]:
    """The files of a folder that are copied, as paths with `/`, in the order of copying."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(one.startswith(".") or one == LEFT_OUT for one in parts):
            found.append("/".join(parts))
    rank = {name: number for number, name in enumerate(LAST, start=1)}
    return sorted(found, key=lambda name: rank.get(name, 0))


def shown(url: str) -> str:
    """A URL as messages show it: without what may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_whole(folder: Path) -> None:
    if store.is_study(folder):
        if not (folder / "results.json").is_file():
            raise OutputError(f"{folder} is a sweep that has not come to its results")
        return
    whole = store.manifest_of(folder).get("partial") is False
    if not whole or readback.report(folder / "report.json") is None:
        raise OutputError(f"{folder} is not the folder of a whole run, so it is not published")


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    parts = urlsplit(url)
    if "://" not in url or not url.isprintable() or not parts.scheme:
        raise OutputError(f"{url[:60]!a} must be a URL, such as s3://bucket/runs")
    if "@" in parts.netloc:
        raise OutputError(f"{shown(url)}: credentials come from the environment, not from the URL")
    try:
        from fsspec.core import url_to_fs
        from fsspec.implementations.arrow import ArrowFSWrapper
    except ImportError:
        raise OutputError("needs fsspec: pip install 'esxsim[s3]'") from None
    try:
        if parts.scheme in ("s3", "gs"):  # pyarrow, which is here anyway, speaks these
            from pyarrow.fs import FileSystem

            found, path = FileSystem.from_uri(url)
            return ArrowFSWrapper(found), path.rstrip("/")
        found, path = url_to_fs(url)
    except Exception as error:  # what fsspec and its file systems raise is theirs to choose
        raise OutputError(f"{shown(url)}: {_reason(error)}") from error
    return found, path.rstrip("/")


def _reason(error: Exception) -> str:
    """An error's first line: those of object stores are pages long."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
