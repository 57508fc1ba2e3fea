"""Where the files lie that a scenario names: in its own folder, or in the folder of data that the
user points to, and nowhere else. A scenario comes from somebody else."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def inside(folder: Path, name: str, words: str = "the scenario's folder") -> Path:
    """The file `name` in `folder`, or ValueError if it leads out of it.

    words: what a message calls the folder.
    """
    pure = PurePosixPath(name)
    if not name.isprintable() or not name or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"must be the name of a file in {words}")
    target, root = folder / name, folder.resolve()
    try:
        entries = [target, *target.rglob("*")] if target.is_dir() else [target]
        leads_out = any(not entry.resolve().is_relative_to(root) for entry in entries)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if leads_out:
        raise ValueError(f"must not lead out of {words} by a link")
    return target


def data_folder(name: str, data_root: Path | None) -> Path:
    """The folder `name` in the folder of data, or ValueError."""
    if not _FOLDER_NAME.fullmatch(name):
        raise ValueError("must be the name of one folder in the folder of trace data")
    if data_root is None:
        raise ValueError("the folder of trace data is not known: none was given")
    return data_root / name
