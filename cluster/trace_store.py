"""The normal form of a VM trace on disk, and every check that it must pass.

On disk a trace is a folder: `vms.parquet`, `usage.parquet` where usage is known, and `import.json`,
which says where it came from and is never read back as data. In memory it is a `Trace`, sorted
by VM name. What is loaded is either whole and within bounds or refused with the file, the column,
the value and what is allowed. Folders are written aside and renamed; one that holds anything
but an import is never replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.trace import (
    MARK,
    MHZ_MAX,
    SCHEMA,
    UNKNOWN,
    USAGE_COLUMNS,
    VM_COLUMNS,
    Column,
    Floats,
    Ints,
    Mask,
    Trace,
    TraceError,
    content_digest,
)

VMS, USAGE, FACTS = "vms.parquet", "usage.parquet", "import.json"
ROWS_MAX = 100_000_000
"""Rows of a table that are held in memory at most: a few gigabytes of columns."""
BYTES_MAX = 16 << 30
"""Uncompressed size of a table that is held in memory at most."""
NAME_MAX = 200
_STORAGE: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
_MHZ = "cpu_capacity_mhz"
_SHOWN = 80
"""Characters of a wrong value in a message at most."""


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    """A table with exactly these columns in any order, whole and of a size that fits."""
    if not path.is_file():
        raise TraceError(path, "is missing")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        found, meta = file.schema_arrow.names, file.metadata
        if sorted(found) != sorted(columns):
            raise TraceError(path, f"has columns {', '.join(found)}; must be {', '.join(columns)}")
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if meta.num_rows > ROWS_MAX or size > BYTES_MAX:
            raise TraceError(
                path,
                f"is far too large: {meta.num_rows} rows, {size} bytes; "
                f"allowed are {ROWS_MAX} rows and {BYTES_MAX} bytes",
            )
        table = file.read().combine_chunks()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TraceError(path, f"is not a readable Parquet file: {error}") from error
    return table


def _refuse(path: Path, name: str, broken: Mask, values: Any, allowed: str) -> None:
    """TraceError on the first row that is `broken`."""
    if broken.any():
        row = int(np.argmax(broken))
        value = values[row].as_py() if isinstance(values, pa.ChunkedArray) else values[row].item()
        shown = "null" if value is None else repr(value)[:_SHOWN]
        raise TraceError(path, f"column {name!r}, row {row}: is {shown}; must be {allowed}")


def _nulls(values: Any) -> Mask:
    return np.asarray(pc.is_null(values).to_numpy(), np.bool_)


def _integers(path: Path, table: pa.Table, column: Column) -> Ints:
    """A column as int64 within its bounds, UNKNOWN for null where it may be null."""
    values = table[column.name]
    if not pa.types.is_integer(values.type):
        raise TraceError(path, f"column {column.name!r} is {values.type}; must be an integer type")
    allowed = f"from {column.low} to {column.high}{', or null' if column.nullable else ''}"
    null = _nulls(values)
    if not column.nullable:
        _refuse(path, column.name, null, values, allowed)
    inside = pc.and_(pc.greater_equal(values, column.low), pc.less_equal(values, column.high))
    beyond = ~np.asarray(pc.fill_null(inside, True).to_numpy(), np.bool_)
    _refuse(path, column.name, beyond, values, allowed)
    filled = pc.fill_null(pc.cast(values, pa.int64()), UNKNOWN)
    return np.array(filled.to_numpy(), np.int64)


def _mhz(path: Path, table: pa.Table) -> Floats:
    """CPU capacities as float64, NaN exactly where null."""
    values = table[_MHZ]
    if not pa.types.is_floating(values.type):
        raise TraceError(path, f"column {_MHZ!r} is {values.type}; must be a floating type")
    mhz = np.array(pc.cast(values, pa.float64()).to_numpy(), np.float64)
    broken = ~((mhz > 0) & (mhz <= MHZ_MAX)) & ~_nulls(values)
    _refuse(path, _MHZ, broken, mhz, f"above 0, at most {MHZ_MAX:g}, or null")
    return mhz


def _names(path: Path, table: pa.Table) -> Any:
    """The column `vm` as large_string: no nulls, nothing that a terminal would not show."""
    values = table["vm"]
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise TraceError(path, f"column 'vm' is {values.type}; must be string")
    length = pc.fill_null(pc.utf8_length(values), 0).to_numpy()
    printable = pc.fill_null(pc.utf8_is_printable(values), False).to_numpy(zero_copy_only=False)
    broken = (length < 1) | (length > NAME_MAX) | ~np.asarray(printable, np.bool_)
    _refuse(path, "vm", broken, values, f"1 to {NAME_MAX} printable characters")
    return pc.cast(values, pa.large_string())


def _as_before(names: Any, compare: Any) -> Mask:
    """(n,) bool: row i compares so to row i - 1; False for row 0."""
    found = compare(names.slice(1), names.slice(0, len(names) - 1))
    return np.concatenate([[False], np.asarray(found.to_numpy(), np.bool_)])


def load_trace(folder: Path) -> Trace:
    """The trace stored in `folder`; TraceError names the first thing that is wrong."""
    path = folder / VMS
    table = _read(path, ("vm", *(column.name for column in VM_COLUMNS), _MHZ))
    if not table.num_rows:
        raise TraceError(path, "holds no VM")
    vm = _names(path, table)
    _refuse(path, "vm", _as_before(vm, pc.equal), vm, "unique: this VM is listed twice")
    _refuse(path, "vm", _as_before(vm, pc.less), vm, "sorted by name")
    columns = {column.name: _integers(path, table, column) for column in VM_COLUMNS}
    start, stop = columns["start_s"], columns["stop_s"]
    _refuse(path, "stop_s", (stop != UNKNOWN) & (stop <= start), stop, "above start_s")
    mhz = _mhz(path, table)
    index = np.zeros(0, np.int64)
    usage = {column.name: index for column in USAGE_COLUMNS}
    if (folder / USAGE).exists():
        usage, index = _load_usage(folder / USAGE, vm)
        _check_usage(folder / USAGE, usage, index, columns)
    offsets = np.searchsorted(index, np.arange(table.num_rows + 1)).astype(np.int64)
    names = np.array(vm.to_pylist(), dtype=object)
    return Trace(names=names, cpu_capacity_mhz=mhz, offsets=offsets, **columns, **usage)


def _load_usage(path: Path, vm: Any) -> tuple[dict[str, Ints], Ints]:
    """Columns of the usage table, and (n_usage,) int64 index of the VM of each row."""
    table = _read(path, ("vm", *(column.name for column in USAGE_COLUMNS)))
    names = _names(path, table)
    found = pc.fill_null(pc.index_in(names, value_set=vm), UNKNOWN).to_numpy()
    _refuse(path, "vm", found == UNKNOWN, names, f"a VM of {VMS}")
    usage = {column.name: _integers(path, table, column) for column in USAGE_COLUMNS}
    return usage, np.asarray(found, np.int64)


def _check_usage(
    path: Path, usage: Mapping[str, Ints], index: Ints, vms: Mapping[str, Ints]
) -> None:
    """Usage is sorted, within the VM's life, and within its memory."""
    t, active, stop = usage["t_s"], usage["active_bytes"], vms["stop_s"][index]
    back = np.diff(index, prepend=index[:1]) < 0
    _refuse(path, "vm", back, index, "sorted by VM (the value is the VM's place in the order)")
    same = np.diff(index, prepend=UNKNOWN) == 0
    late = same & (np.diff(t, prepend=t[:1]) <= 0)
    _refuse(path, "t_s", late, t, "above the row before it of the same VM")
    _refuse(path, "t_s", t < vms["start_s"][index], t, "at or after the VM's start_s")
    _refuse(path, "t_s", (stop != UNKNOWN) & (t >= stop), t, "before the VM's stop_s")
    memory = vms["memory_bytes"][index]
    _refuse(path, "active_bytes", active > memory, active, "at most the VM's memory_bytes")


def save_trace(trace: Trace, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the normal form whole or not at all; `facts` say where it came from."""
    folder = Path(os.path.abspath(folder))
    _claim(folder)
    aside = folder.with_name(f".{folder.name}.importing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        vms = {"vm": pa.array(trace.names, pa.string())}
        vms |= {column.name: _nullable(trace, column) for column in VM_COLUMNS}
        mhz = trace.cpu_capacity_mhz
        vms[_MHZ] = pa.array(mhz, mask=np.isnan(mhz))
        pq.write_table(pa.table(vms), aside / VMS, **_STORAGE)
        if len(trace.t_s):
            names = pa.array(np.repeat(trace.names, np.diff(trace.offsets)), pa.string())
            usage = {column.name: _nullable(trace, column) for column in USAGE_COLUMNS}
            pq.write_table(pa.table({"vm": names, **usage}), aside / USAGE, **_STORAGE)
        held = {MARK: SCHEMA, "content_digest": content_digest(trace), **facts}
        text = json.dumps(held, indent=2, sort_keys=False, allow_nan=False) + "\n"
        (aside / FACTS).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    except OSError as error:
        raise TraceError(folder, f"cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _nullable(trace: Trace, column: Column) -> Any:
    values = getattr(trace, column.name)
    return pa.array(values, mask=(values == UNKNOWN) if column.nullable else None)


def _claim(folder: Path) -> None:
    """Refuse a folder that holds anything but an import: files of somebody else are not touched."""
    if not folder.exists():
        return
    try:
        held = sorted(entry.name for entry in folder.iterdir())
        facts = json.loads((folder / FACTS).read_text("utf-8")) if FACTS in held else {}
    except (OSError, ValueError) as error:
        raise TraceError(folder, f"cannot be replaced: {error}") from error
    strange = [name for name in held if name not in (VMS, USAGE, FACTS)]
    if strange or (held and not (isinstance(facts, dict) and MARK in facts)):
        what = f"holds {strange[0]!r}" if strange else f"has no {FACTS} of an import"
        raise TraceError(folder, f"{what}: will not be replaced, name another folder")
