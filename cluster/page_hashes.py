"""Page hashes of real guests, from files: one content hash for each page, dump by dump.

Two layouts. A `.npz` of fingerprints: arrays h01, p01, c01, o01, ... for each guest (hashes, pages
that the host had backed, use of each page, other pages of the hypervisor's process), or h_NAME,
c_NAME with one row a dump, and referenced_pages. A `.parquet` of snapshots: columns trace, vm,
snapshot, hashes, of pages in use only. What is read is of the right form and within bounds, or one
HashesError says what is wrong; nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

XXH3_64, SUPER_FAST_HASH_32 = "xxh3-64", "SuperFastHash-32"
ZERO_PAGE_32 = 3051824092
"""SuperFastHash of 4 KiB of zeros."""
BYTES_MAX = 4 << 30
"""Of a file, unpacked."""
PAGES_MAX = 1 << 26
"""Of a guest: 256 GiB."""
GUESTS_MAX = 1000
FREE, ANON, MAPPED, CACHED, SLAB, KERNEL, RESERVED, SHMEM, UNKNOWN = (*range(8), 255)
"""What a guest used a page for, by its own account."""
CLASSES = (FREE, ANON, MAPPED, CACHED, SLAB, KERNEL, RESERVED, SHMEM, UNKNOWN)
_UNREADABLE = (
    *(OSError, ValueError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


class HashesError(Exception):
    """A file of page hashes cannot be used; `str` says why, without its name."""


@dataclass(frozen=True, slots=True, eq=False)
class Guest:
    """One real guest. Hash 0 is the zero page; equal hashes of one kind are equal contents.

    hashes      (n_dumps, n_pages) uint64  by guest-physical address, or in the file's order
    touched     (n_pages,) bool            the host had memory behind the page
    classes     (n_pages,) uint8           one of CLASSES, at the end
    others      (n_others,) uint64         pages of its hypervisor process that are no guest memory
    referenced  (n_dumps,) int64           pages accessed since the dump before; row 0 is no matter
    """

    name: str
    hashes: Hashes
    touched: npt.NDArray[np.bool_]
    classes: npt.NDArray[np.uint8]
    others: Hashes
    referenced: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PageHashes:
    """The guests of a file that were asked for, in the file's order."""

    kind: str
    """Which hash: only hashes of one kind can be compared."""
    guests: tuple[Guest, ...]
    knows_touched: bool
    """False: the file does not say which pages were touched, and all count as touched."""


def content_digest(found: PageHashes) -> str:
    """SHA-256, hex, over the content: the same hashes have it wherever they are stored."""
    digest = hashlib.sha256(f"{found.kind} {len(found.guests)} {found.knows_touched} ".encode())
    for guest in found.guests:
        for name in ("hashes", "touched", "classes", "others", "referenced"):
            array = getattr(guest, name)
            plain = array.astype(array.dtype.newbyteorder("<"))
            digest.update(f"{name} {array.shape} ".encode() + plain.tobytes())
    return digest.hexdigest()


def read(
    path: Path, *, guest: str | None = None, trace: str | None = None, snapshot: int | None = None
) -> PageHashes:
    """The guests of a file; `guest` leaves one of them. trace, snapshot: of a Parquet file.

    Raises HashesError.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise HashesError(f"cannot be read: {error.strerror or error}") from None
    if size is None:
        raise HashesError("is no file" if path.exists() else "does not exist")
    if path.suffix == ".npz":
        if trace is not None or snapshot is not None:
            raise HashesError("has neither traces nor snapshots: they are for .parquet")
        found = _read_npz(path)
    elif path.suffix == ".parquet":
        found = _read_parquet(path, trace, snapshot)
    else:
        raise HashesError("must be a .npz or a .parquet file")
    if guest is not None:
        names = [one.name for one in found.guests]
        if guest not in names:
            raise HashesError(f"has no guest {guest!r:.40}; it has {', '.join(names[:20])}")
        one = found.guests[names.index(guest)]
        found = PageHashes(found.kind, (one,), found.knows_touched)
    return found


def _reason(error: Exception) -> str:
    """A library's words, on one line that a terminal can show."""
    text = " ".join(str(error).split())[:200]
    return text if text.isprintable() else ascii(text)


# Fingerprints


def _read_npz(path: Path) -> PageHashes:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > BYTES_MAX:
            raise HashesError(f"is far too large: {unpacked} bytes, allowed are {BYTES_MAX}")
        with np.load(path) as archive:  # never unpickles: objects are a ValueError
            names = [name for name in archive.files if name != "meta"]
            arrays = {name: np.asarray(archive[name]) for name in names}
    except _UNREADABLE as error:
        raise HashesError(f"is no readable .npz file: {_reason(error)}") from None
    series = "referenced_pages" in arrays
    guests = _series(arrays) if series else _numbered(arrays)
    if not 1 <= len(guests) <= GUESTS_MAX:
        raise HashesError("holds no guest: must have arrays h01, h02, ... or h_NAME")
    return PageHashes(XXH3_64, tuple(guests), not series)


def _numbered(arrays: Mapping[str, Any]) -> list[Guest]:
    """Guests h01, h02, ..., one dump each."""
    guests = []
    for key in sorted(key for key in arrays if re.fullmatch("h[0-9]{2,3}", key)):
        name = key[1:]
        hashes = _array(arrays, key, np.uint64, 1)
        n = len(hashes)
        packed = _array(arrays, f"p{name}", np.uint8, 1)
        if len(packed) != -(-n // 8):
            raise HashesError(f"p{name} has {len(packed)} bytes, for {n} pages")
        touched = np.unpackbits(packed)[:n].astype(bool)
        if hashes[~touched].any():
            raise HashesError(f"{key} has a content on a page that p{name} says was never touched")
        classes = _classes(arrays, f"c{name}", n)
        has_others = f"o{name}" in arrays
        others = _array(arrays, f"o{name}", np.uint64, 1) if has_others else np.zeros(0, np.uint64)
        guests.append(_guest(name, hashes[None], touched, classes, others, np.zeros(1, np.int64)))
    return guests


def _series(arrays: Mapping[str, Any]) -> list[Guest]:
    """Guests h_NAME, many dumps each; columns of referenced_pages are in the file's order."""
    names = [key[2:] for key in arrays if re.fullmatch("h_[A-Za-z0-9_-]{1,40}", key)]
    referenced = _array(arrays, "referenced_pages", np.int64, 2)
    if referenced.shape[1] != len(names):
        raise HashesError(f"referenced_pages has {referenced.shape[1]} columns, not {len(names)}")
    guests = []
    for column, name in enumerate(names):
        hashes = _array(arrays, f"h_{name}", np.uint64, 2)
        n_dumps, n = hashes.shape
        if n_dumps != len(referenced):
            raise HashesError(f"h_{name} has {n_dumps} dumps, referenced_pages {len(referenced)}")
        touches = referenced[:, column]
        if ((touches < 0) | (touches > n)).any():
            raise HashesError(f"referenced_pages of {name} must be from 0 to {n}")
        classes = _classes(arrays, f"c_{name}", n)
        nothing = np.zeros(0, np.uint64)
        guests.append(_guest(name, hashes, np.ones(n, np.bool_), classes, nothing, touches))
    return guests


def _classes(arrays: Mapping[str, Any], key: str, n: int) -> npt.NDArray[np.uint8]:
    classes: npt.NDArray[np.uint8] = _array(arrays, key, np.uint8, 1)
    if len(classes) != n:
        raise HashesError(f"{key} has {len(classes)} pages, its guest {n}")
    strange = ~np.isin(classes, CLASSES)
    if strange.any():
        raise HashesError(f"{key} has class {classes[strange][0]}; must be 0 to 7, or 255")
    return classes


def _guest(
    name: str,
    hashes: Hashes,
    touched: npt.NDArray[np.bool_],
    classes: npt.NDArray[np.uint8],
    others: Hashes,
    referenced: npt.NDArray[np.int64],
) -> Guest:
    n_dumps, n = hashes.shape
    if not (0 < n <= PAGES_MAX and n_dumps > 0 and touched.any()):
        raise HashesError(f"guest {name} must have pages that were touched, at most {PAGES_MAX}")
    return Guest(name, hashes, touched, classes, others, referenced)


def _array(arrays: Mapping[str, Any], key: str, dtype: Any, ndim: int) -> Any:
    array = arrays.get(key)
    if array is None:
        raise HashesError(f"has no array {key}")
    if array.dtype != np.dtype(dtype) or array.ndim != ndim:
        is_now = f"{array.dtype} of {array.ndim} dimensions"
        raise HashesError(f"{key} is {is_now}; must be {np.dtype(dtype)} of {ndim}")
    return array


# Snapshots


def _read_parquet(path: Path, trace: str | None, snapshot: int | None) -> PageHashes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["trace", "vm", "snapshot", "hashes"]
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise HashesError(f"has no column {missing[0]}; must have {', '.join(columns)}")
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if size > BYTES_MAX or meta.num_rows > 100_000:
            raise HashesError(f"is far too large: {meta.num_rows} rows of {size} bytes")
        table = file.read(columns).combine_chunks()
        table.validate(full=True)
        keys = [(str(t), int(v), int(s)) for t, v, s in _keys(table)]
    except (pa.ArrowException, TypeError, *_UNREADABLE) as error:
        raise HashesError(f"is no readable Parquet file: {_reason(error)}") from None
    if not pa.types.is_list(table["hashes"].type) or table["hashes"].type.value_type != pa.uint32():
        raise HashesError(f"hashes are {table['hashes'].type}; must be lists of uint32")
    known = sorted({f"{t!a} {s}" for t, _, s in keys})
    rows = [i for i, (t, _, s) in enumerate(keys) if t == trace and s == snapshot]
    if not rows:
        which = "needs trace and snapshot" if None in (trace, snapshot) else "has no such snapshot"
        raise HashesError(f"{which}; it has {', '.join(known[:20])}")
    rows.sort(key=lambda i: keys[i][1])
    vms = [keys[i][1] for i in rows]
    if len(set(vms)) < len(vms) or len(vms) > GUESTS_MAX:
        raise HashesError(f"{trace!a} {snapshot} has one VM twice, or more than {GUESTS_MAX}")
    guests = [_snapshot(str(vm), table["hashes"][i]) for vm, i in zip(vms, rows, strict=True)]
    return PageHashes(SUPER_FAST_HASH_32, tuple(guests), True)


def _keys(table: Any) -> Any:
    return zip(*(table[name].to_pylist() for name in ("trace", "vm", "snapshot")), strict=True)


def _snapshot(name: str, row: Any) -> Guest:
    """A guest of which the pages in use are known, and no more of them than what they hold."""
    values = row.values
    if values is None or values.null_count:
        raise HashesError(f"guest {name} has no hashes, or null among them")
    plain = np.array(values.to_numpy(zero_copy_only=False), np.uint64)
    # 0 stands for the zero page here, and the zero page's own hash is free for what hashes to 0.
    hashes = np.where(plain == ZERO_PAGE_32, 0, np.where(plain == 0, ZERO_PAGE_32, plain))
    n = len(hashes)
    unknown = np.full(n, UNKNOWN, np.uint8)
    nothing = np.zeros(0, np.uint64)
    touched = np.ones(n, np.bool_)
    return _guest(name, hashes[None], touched, unknown, nothing, np.zeros(1, np.int64))
