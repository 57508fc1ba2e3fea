"""A folder of results as one file, and back: written by the head, read by whoever fetches it.

What comes over the network is checked before any of it counts: its size, its SHA-256, and that
every member is a file inside the folder. It is unpacked aside, then renamed.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import ClusterError, RefusedError
from cluster.studies import store
from cluster.tables import check_usable

PACKED = "esxsim packed: "
"""Begins the line by which the head tells what it packed, as JSON."""
BUNDLES = "esxsim"
"""Folder of packed results, in the folder of Ray's logs: the dashboard gives out files there."""
LEFT_OUT = ("checkpoints",)
"""Folders that only serve to go on with a run, where it lies."""
_LEVEL = 1
"""Of gzip: tables are compressed already."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the head says of one: sizes in bytes, packed and unpacked."""

    file: str
    size: int
    sha256: str
    unpacked: int


def pack(folder: Path, target: Path) -> Bundle:
    """Write all regular files of a folder into `target`, a .tar.gz; links are left out."""
    unpacked = 0
    with tarfile.open(target, "w:gz", compresslevel=_LEVEL) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_symlink() or not path.is_file() or name.parts[0] in LEFT_OUT:
                continue
            archive.add(path, str(name), recursive=False)
            unpacked += path.stat().st_size
    with target.open("rb") as written:
        sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    return Bundle(target.name, target.stat().st_size, sha256, unpacked)


def check_target(out: Path) -> None:
    """OutputError where fetched results could not take the place of `out`."""
    if not store.is_study(out):
        check_usable(out)


def unpack(packed: Path, told: Bundle, out: Path) -> None:
    """Make `out` the folder that was packed; a former run or study there is replaced.

    Raises ClusterError where it is not what the head told, RefusedError for what leads out.
    """
    with packed.open("rb") as written:
        sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    if packed.stat().st_size != told.size or sha256 != told.sha256:
        raise ClusterError("the results were damaged on their way: fetch them again")
    out = Path(os.path.abspath(out))
    aside, former = (out.with_name(f".{out.name}.{what}") for what in ("fetching", "former"))
    for folder in (aside, former):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        _extract(packed, aside, told.unpacked)
        check_target(out)
        if out.exists():
            out.rename(former)
        aside.rename(out)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ClusterError(f"the results cannot be unpacked: {error}") from None
    except OSError as error:
        raise ClusterError(f"the results cannot be written to {out}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if former.exists() and not out.exists():
            former.rename(out)
        shutil.rmtree(former, ignore_errors=True)


def _extract(packed: Path, folder: Path, limit: int) -> None:
    """Write the members, regular files only, as plain files of ours."""
    left = limit
    with tarfile.open(packed, "r:gz") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            inside = name.parts and not name.is_absolute() and ".." not in name.parts
            content = archive.extractfile(member) if member.isreg() else None
            left -= member.size
            if not inside or not member.name.isprintable() or content is None or left < 0:
                raise RefusedError(f"the results hold what does not belong there: {member.name!a}")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as written:
                shutil.copyfileobj(content, written, 1 << 20)
