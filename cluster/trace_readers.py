"""Readers of published VM traces: each turns one layout of files into `Raw` columns.

A reader knows a format's units and traps and nothing else: sorting, clipping and the shift to time
zero are the same for all formats and live in `cluster.traces`. A row that cannot be used is
counted once, under the first reason it meets, and never guessed; a value that is used
differently from how it was published is counted as cleaned. Work is on whole columns: cells arrive
as text, so a bad cell costs its row, not the file. Nothing here writes. This file holds what
all readers need and the Azure readers; `cluster.trace_bitbrains` holds the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cluster.trace import UNKNOWN, Floats, Ints, Mask, TraceError
from cluster.trace_store import ROWS_MAX
from hostsim.units import GIB, KIB

STEP_S = 300
"""All formats sample every five minutes, give or take."""
AZURE = "Azure Public Dataset V1, Microsoft; Cortez et al., SOSP 2017"
AZURE_LICENCE = "CC-BY 4.0"
AZURE_LAST_S = 2_591_700
"""Last stamp of the 30 days of Azure V1: what is deleted then was still running."""
_NUMBER = r"^-?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?$"
_ENCODING = "latin1"
"""A character for every byte: read as UTF-8, one wrong byte would refuse the whole file."""


@dataclass(slots=True)
class Tally:
    """Counts while reading: rows seen, rows left out by reason, values changed by what."""

    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    cleaned: Counter[str] = field(default_factory=Counter)

    def keep(self, rows: int, checks: Sequence[tuple[str, Mask]]) -> Mask:
        """(rows,) bool, rows that meet no reason; each other one counts under its first."""
        kept = np.ones(rows, np.bool_)
        for reason, broken in checks:
            self.bad[reason] += int((kept & broken).sum())
            kept &= ~broken
        return kept


@dataclass(slots=True)
class Raw:
    """What a reader found, in any order, on the trace's own clock; equal lengths per group.

    names (n_vms,) str. start_s, stop_s (n_vms,) int64 s, stop UNKNOWN while still running.
    vcpus, memory_bytes (n_vms,) int64. cpu_capacity_mhz (n_vms,) float64, NaN unknown.
    usage_vm (n_usage,) int64 index into names. t_s (n_usage,) int64 s.
    active_bytes, cpu_permille (n_usage,) int64, UNKNOWN where not recorded.
    """

    names: Sequence[str]
    start_s: Ints
    stop_s: Ints
    vcpus: Ints
    memory_bytes: Ints
    cpu_capacity_mhz: Floats
    usage_vm: Ints
    t_s: Ints
    active_bytes: Ints
    cpu_permille: Ints
    tally: Tally
    sources: tuple[str, ...]
    attribution: str
    licence: str | None


def csv_batches(
    path: Path, columns: Sequence[str], delimiter: str, skip_rows: int, tally: Tally
) -> Iterator[pa.RecordBatch]:
    """Batches of cells; rows with another number of cells are counted and skipped.

    A cell's characters stand for its bytes: see `texts` for what was text.
    """

    def skip(_row: Any) -> str:
        tally.bad["wrong number of cells"] += 1
        tally.rows += 1
        return "skip"

    try:
        if path.stat().st_size == 0:
            raise TraceError(path, "is empty")
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(
                column_names=list(columns), skip_rows=skip_rows, encoding=_ENCODING
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, quote_char=False, invalid_row_handler=skip
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in columns}, strings_can_be_null=False
            ),
        )
        for batch in reader:
            tally.rows += batch.num_rows
            if tally.rows > ROWS_MAX:
                raise TraceError(path, f"brings the rows above {ROWS_MAX}: import a part")
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise TraceError(path, f"is not readable as CSV: {error}") from error


def numbers(column: Any) -> Floats:
    """(n,) float64 of cells; NaN exactly where a cell is no plain decimal number."""
    text = pc.ascii_trim_whitespace(column)
    plain = pc.match_substring_regex(text, _NUMBER)
    exact = pc.cast(pc.if_else(plain, text, pa.scalar(None, pa.string())), pa.float64())
    return np.asarray(exact.to_numpy(zero_copy_only=False), np.float64)


def texts(column: Any) -> tuple[list[str], Mask]:
    """Cells as the UTF-8 that they were published in, and (n,) bool, those that are none."""
    cells = column.to_pylist()
    broken = np.zeros(len(cells), np.bool_)
    ascii_only = pc.string_is_ascii(column).to_numpy(zero_copy_only=False)
    for at in np.flatnonzero(~ascii_only).tolist():
        try:
            cells[at] = cells[at].encode(_ENCODING).decode("utf-8-sig")
        except UnicodeDecodeError:
            broken[at] = True
    return cells, broken


def number_checks(columns: Sequence[Floats]) -> list[tuple[str, Mask]]:
    """Reasons that make a row of numbers unusable in any format."""
    stacked = np.stack(columns)
    lowest, highest = stacked.min(axis=0), stacked.max(axis=0)  # NaN where any is NaN
    return [
        ("not a number", np.isnan(lowest)),
        ("negative", lowest < 0),
        ("absurdly large", highest > 1e15),
    ]


def whole(values: Floats) -> Ints:
    """Rounded to the nearest integer; what is NaN must have been sorted out before."""
    return np.rint(values).astype(np.int64)


def parquet_columns(path: Path, wanted: Sequence[str]) -> pa.Table:
    """The `wanted` columns of a Parquet file."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if missing := [name for name in wanted if name not in names]:
            raise TraceError(path, f"lacks the column {missing[0]!r}; needs {', '.join(wanted)}")
        if file.metadata.num_rows > ROWS_MAX:
            raise TraceError(path, f"has {file.metadata.num_rows} rows; at most {ROWS_MAX} fit")
        return file.read(columns=list(wanted))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TraceError(path, f"is not a readable Parquet file: {error}") from error


def floats(path: Path, table: pa.Table, name: str) -> Floats:
    """A numeric column as float64, NaN where null."""
    kind = table[name].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise TraceError(path, f"column {name!r} is {kind}; must hold numbers")
    return np.asarray(pc.cast(table[name], pa.float64(), safe=False).to_numpy(), np.float64)


def _size_checks(cores: Floats, memory_gb: Floats) -> list[tuple[str, Mask]]:
    return [("no CPU cores", cores < 1), ("memory above 1 PiB", memory_gb > GIB // KIB)]


def _lasting(start: Floats, stop: Floats, tally: Tally) -> Floats:
    """`stop`, half a step after `start` where the five-minute grid shows a life of 0."""
    zero = stop == start
    tally.cleaned["lifetime of 0 s taken as half a step, 150 s"] += int(zero.sum())
    return np.where(zero, stop + STEP_S // 2, stop)


_VMTABLE = (
    *("vm", "subscription", "deployment", "created", "deleted", "cpu_max", "cpu_avg", "cpu_p95"),
    *("category", "cores", "memory_gb"),
)
_READINGS = ("t", "vm", "cpu_min", "cpu_max", "cpu")


def azure_files(path: Path) -> tuple[list[Path], list[Path]]:
    """VM tables and files of CPU readings; the latter are optional."""
    if path.is_file():
        return ([path] if "vmtable" in path.name else []), []
    tables = sorted([*path.glob("*vmtable*.csv"), *path.glob("*vmtable*.csv.gz")])
    pattern = "*vm_cpu_readings*.csv"
    return tables, sorted([*path.glob(pattern), *path.glob(pattern + ".gz")])


def read_azure_v1(path: Path) -> Raw:
    """Azure Public Dataset V1: a VM table and CPU readings, CSV without a header, often gzipped.

    GB are GiB (0.75 is the 768 MiB of an A0). Created at 0 means: was running already.
    """
    tables, readings = azure_files(path)
    tally = Tally()
    names: list[str] = []
    parts = []
    for table in tables:
        for batch in csv_batches(table, _VMTABLE, ",", 0, tally):
            row = np.stack([numbers(batch.column(i)) for i in (3, 4, 9, 10)])
            created, deleted, cores, memory_gb = row
            checks = [*number_checks(list(row)), ("deleted before created", deleted < created)]
            checks += _size_checks(cores, memory_gb)
            cells, broken = texts(batch.column("vm"))
            kept = tally.keep(batch.num_rows, [*checks, ("VM name that is not UTF-8", broken)])
            names += [cells[at] for at in np.flatnonzero(kept).tolist()]
            parts.append(row[:, kept])
    created, deleted, cores, memory_gb = np.concatenate([np.zeros((4, 0)), *parts], axis=1)
    running = deleted >= AZURE_LAST_S
    usage_vm, t_s, cpu = _azure_usage(readings, names, tally)
    return Raw(
        names=names,
        start_s=whole(created),
        stop_s=np.where(running, UNKNOWN, whole(_lasting(created, deleted, tally))),
        vcpus=whole(cores),
        memory_bytes=whole(memory_gb * GIB),
        cpu_capacity_mhz=np.full(len(names), np.nan),
        usage_vm=usage_vm,
        t_s=t_s,
        active_bytes=np.full(len(t_s), UNKNOWN),
        cpu_permille=cpu,
        tally=tally,
        sources=tuple(file.name for file in [*tables, *readings]),
        attribution=AZURE,
        licence=AZURE_LICENCE,
    )


def _azure_usage(files: Sequence[Path], names: Sequence[str], tally: Tally) -> tuple[Ints, ...]:
    """(n_usage,) VM index, stamp, mean CPU in permille of the readings of known VMs."""
    known = pa.array([name.encode().decode(_ENCODING) for name in names], pa.string())
    parts = [np.zeros((3, 0), np.int64)]
    for file in files:
        for batch in csv_batches(file, _READINGS, ",", 0, tally):
            t, cpu = numbers(batch.column("t")), numbers(batch.column("cpu"))
            index = pc.fill_null(pc.index_in(batch.column("vm"), known), UNKNOWN).to_numpy()
            strange = ("reading of an unknown VM", index == UNKNOWN)
            kept = tally.keep(batch.num_rows, [*number_checks([t, cpu]), strange])
            parts.append(np.stack([index[kept], whole(t[kept]), whole(cpu[kept] * 10)]))
    index, t_s, cpu_permille = np.concatenate(parts, axis=1)
    return index, t_s, cpu_permille


def read_azure_arrivals(path: Path) -> Raw:
    """`arrivals.parquet`: Azure V1 as arrivals with a binned lifetime and no usage.

    A VM lives for the middle of its bin; censored ones are still running. The training split
    has no lifetimes: its rows are left out, since a VM that never ends would be a guess.
    Names are the split and the row's number in the file.
    """
    file = path / "arrivals.parquet" if path.is_dir() else path
    columns = ("t", "vcpus", "mem_gb", "dur_min_s", "dur_max_s")
    table = parquet_columns(file, ("split", "censored", *columns))
    tally = Tally(rows=table.num_rows)
    row = np.stack([floats(file, table, name) for name in columns])
    try:
        censored = np.asarray(pc.fill_null(table["censored"], False).to_numpy(), np.bool_)
        splits = pc.cast(table["split"], pa.string())
    except pa.ArrowException as error:
        raise TraceError(file, f"split must be text, censored a boolean: {error}") from error
    no_life = ("no lifetime recorded", np.isnan(row[3:]).any(axis=0))
    checks = [no_life, *number_checks(list(row)), ("lifetime bin ends early", row[4] < row[3])]
    kept = tally.keep(table.num_rows, [*checks, *_size_checks(row[1], row[2])])
    start, vcpus, memory_gb, least, most = row[:, kept]
    tally.cleaned["lifetime known to a bin, its middle taken"] += int((most > least).sum())
    stop = _lasting(start, start + (least + most) // 2, tally)
    numbered = pc.cast(pa.array(np.flatnonzero(kept)), pa.string())
    width = len(str(table.num_rows))
    names = pc.binary_join_element_wise(
        pc.fill_null(splits, "none").filter(pa.array(kept)),
        pc.utf8_lpad(numbered, width, "0"),
        "-",
    )
    nothing = np.zeros(0, np.int64)
    return Raw(
        names=names.to_pylist(),
        start_s=whole(start),
        stop_s=np.where(censored[kept], UNKNOWN, whole(stop)),
        vcpus=whole(vcpus),
        memory_bytes=whole(memory_gb * GIB),
        cpu_capacity_mhz=np.full(len(start), np.nan),
        usage_vm=nothing,
        t_s=nothing,
        active_bytes=nothing,
        cpu_permille=nothing,
        tally=tally,
        sources=(file.name,),
        attribution=AZURE,
        licence=AZURE_LICENCE,
    )
