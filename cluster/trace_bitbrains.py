"""Readers of the Bitbrains traces (GWA-T-12): per VM, memory the guest actively used, and CPU.

Both layouts become `Readings`, and one function makes lives of them: a VM lives from its first to
its last reading while powered on. The archive's "memory usage" is active memory (its level fits
ESX's active memory, not what a VM holds). Traps: stamps are seconds although the header says ms;
KB are KiB; a capacity of 0 means the VM is off; one VM claims 511 GiB; the same file name in two
months need not be the same VM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.trace import UNKNOWN, Floats, Ints, Mask, TraceError
from cluster.trace_readers import (
    STEP_S,
    Raw,
    Tally,
    csv_batches,
    floats,
    number_checks,
    numbers,
    parquet_columns,
    whole,
)
from hostsim.units import KIB

ATTRIBUTION = (
    "GWA-T-12 Bitbrains, Grid Workloads Archive; cite Shen, van Beek and Iosup, CCGrid 2015"
)
MEMORY_KB_MAX = 256 << 20
"""Capacities above 256 GiB are broken: the next largest VM has 96 GiB."""
_MS_FROM = 1e11
"""Unix stamps from here on are milliseconds: as seconds they lie after the year 5000."""
_UNIX_FROM, _UNIX_TO = 946_684_800, 4_102_444_800
_FIELDS = ("vm", "t_s", "cpu_mhz", "memory_kb", "on")
_HEADER_BYTES = 10_000
_GWA = {
    "timestamp [ms]": "t",
    "cpu cores": "cores",
    "cpu capacity provisioned [mhz]": "mhz",
    "cpu usage [mhz]": "cpu",
    "memory capacity provisioned [kb]": "capacity",
    "memory usage [kb]": "memory",
}


@dataclass(slots=True)
class Readings:
    """Readings of all VMs, in any order.

    vm (n,) int64 index of the VM. t_s (n,) int64 Unix seconds. cpu_mhz, memory_kb (n,) float64
    used. on (n,) bool, the VM was powered on.
    """

    vm: Ints
    t_s: Ints
    cpu_mhz: Floats
    memory_kb: Floats
    on: Mask


@dataclass(slots=True)
class Sizes:
    """VMs of a trace: names, and (n_vms,) float64 cores, mhz and memory_kb provisioned."""

    names: Sequence[str]
    cores: Floats
    mhz: Floats
    memory_kb: Floats


def _lives(readings: Readings, sizes: Sizes, tally: Tally, sources: Sequence[str]) -> Raw:
    """Readings while off count as usage of 0 within a life; before and after they are left out."""
    n_vms, on = len(sizes.names), readings.on
    first, last = np.full(n_vms, np.iinfo(np.int64).max), np.full(n_vms, UNKNOWN)
    np.minimum.at(first, readings.vm[on], readings.t_s[on])
    np.maximum.at(last, readings.vm[on], readings.t_s[on])
    seen = last != UNKNOWN
    tally.bad["VM never on in this trace"] += int((~seen).sum())
    # A VM seen in the last two steps was still running: collectors do not stop as one.
    running = last > readings.t_s.max(initial=0) - 2 * STEP_S
    inside = (readings.t_s >= first[readings.vm]) & (readings.t_s <= last[readings.vm])
    tally.cleaned["reading while off, before or after the VM's life"] += int((~inside).sum())
    tally.cleaned["reading while off, within the VM's life: uses 0"] += int((inside & ~on).sum())
    vm, on = readings.vm[inside], on[inside]
    mhz = np.where(sizes.mhz > 0, sizes.mhz, np.nan)
    tally.cleaned["CPU capacity of 0 taken as unknown"] += int((np.isnan(mhz) & seen).sum())
    # Clipped here so that it stays an integer, and to the whole with all other formats' later.
    used = np.minimum(readings.cpu_mhz[inside] * 1000 / mhz[vm], 1e6)
    cpu = np.where(on, np.nan_to_num(used, nan=UNKNOWN), 0)
    return Raw(
        names=[name for name, kept in zip(sizes.names, seen.tolist(), strict=True) if kept],
        start_s=first[seen],
        stop_s=np.where(running, UNKNOWN, last + STEP_S)[seen],
        vcpus=whole(sizes.cores[seen]),
        memory_bytes=whole(sizes.memory_kb[seen]) * KIB,
        cpu_capacity_mhz=mhz[seen],
        usage_vm=(np.cumsum(seen) - 1)[vm],
        t_s=readings.t_s[inside],
        active_bytes=whole(np.where(on, readings.memory_kb[inside] * KIB, 0)),
        cpu_permille=whole(cpu),
        tally=tally,
        sources=tuple(sources),
        attribution=ATTRIBUTION,
        licence=None,
    )


def gwa_files(path: Path) -> list[Path]:
    """The CSV files of a VM, a folder of VMs, or a folder with a folder per month."""
    if path.is_file():
        return [path] if path.suffix == ".csv" else []
    return sorted([*path.glob("*.csv"), *path.glob("*/*.csv")])


def gwa_header(path: Path) -> list[str]:
    """A column name per cell of a file's header: the needed ones by our names."""
    try:
        with path.open("rb") as file:
            line = file.readline(_HEADER_BYTES)
    except OSError as error:
        raise TraceError(path, f"cannot be read: {error.strerror}") from error
    cells = line.decode("utf-8-sig", errors="replace").split(";")
    names = [_GWA.get(cell.strip().lower(), f"#{i}") for i, cell in enumerate(cells)]
    for published, name in _GWA.items():
        if names.count(name) != 1:
            raise TraceError(path, f"the header must name the column {published!r} once")
    return names


def _gwa_rows(path: Path, tally: Tally) -> dict[str, Floats]:
    """Usable rows of one VM's file: name -> (n,) float64, t in seconds."""
    parts = [dict.fromkeys(_GWA.values(), np.zeros(0))]
    for batch in csv_batches(path, gwa_header(path), ";", 1, tally):
        row = {name: numbers(batch.column(name)) for name in _GWA.values()}
        in_ms = row["t"] >= _MS_FROM
        row["t"] = np.floor(np.where(in_ms, row["t"] / 1000, row["t"]))
        checks = [
            *number_checks(list(row.values())),
            ("timestamp not from 2000 to 2099", (row["t"] < _UNIX_FROM) | (row["t"] >= _UNIX_TO)),
            ("memory capacity above 256 GiB", row["capacity"] > MEMORY_KB_MAX),
            ("no CPU cores", (row["capacity"] > 0) & (row["cores"] < 1)),
        ]
        kept = tally.keep(batch.num_rows, checks)
        tally.cleaned["timestamp in ms"] += int((in_ms & kept).sum())
        parts.append({name: values[kept] for name, values in row.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in _GWA.values()}


def read_bitbrains_csv(path: Path) -> Raw:
    """GWA-T-12 as published: a CSV per VM, named by its file and the folder of its month.

    A stamp is in seconds or in milliseconds, told by its size. A VM is as large as it ever was.
    """
    base = path.parent if path.is_file() else path
    tally = Tally()
    names, largest, readings = [], [], []
    for i, file in enumerate(gwa_files(path)):
        row = _gwa_rows(file, tally)
        on = row["capacity"] > 0
        names.append(file.relative_to(base).with_suffix("").as_posix())
        largest.append([row[name].max(initial=0) for name in ("cores", "mhz", "capacity")])
        resized = np.unique(row["capacity"][on]).size > 1
        tally.cleaned["VM resized, its largest size taken"] += int(resized)
        vm = np.full(len(on), i)
        readings.append(Readings(vm, row["t"].astype(np.int64), row["cpu"], row["memory"], on))
    joined = Readings(
        *(np.concatenate([getattr(part, name) for part in readings]) for name in _FIELDS)
    )
    sizes = Sizes(names, *np.array(largest).T)
    return _lives(joined, sizes, tally, [f"{len(names)} CSV files"])


def parquet_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Tables of VMs and tables of readings in the re-packed layout."""
    return sorted(path.glob("vms_*.parquet")), sorted(path.glob("week_*_5min.parquet"))


def read_bitbrains_parquet(path: Path) -> Raw:
    """The re-packed layout: `vms_MONTH.parquet` and `week_MONTH_5min.parquet`.

    Capacities are per VM here, so a VM is off where it uses neither CPU nor memory.
    """
    tables, weeks = parquet_files(path)
    if len(tables) != 1 or len(weeks) != 1:
        found = f"found {len(tables)} and {len(weeks)}"
        raise TraceError(path, f"must hold one vms_*.parquet and one week_*_5min.parquet; {found}")
    tally = Tally()
    wanted = ("vm", "cores", "cpu_cap_mhz", "mem_cap_kb")
    table = parquet_columns(tables[0], wanted)
    spec = np.stack([floats(tables[0], table, name) for name in wanted])
    tally.rows += table.num_rows
    _, firsts = np.unique(spec[0], return_index=True)
    again = ~np.isin(np.arange(table.num_rows), firsts)
    checks = [*number_checks(list(spec)), ("VM listed again", again)]
    checks += [("VM with a memory capacity above 256 GiB", spec[3] > MEMORY_KB_MAX)]
    checks += [("VM without memory", spec[3] == 0), ("VM without CPU cores", spec[1] < 1)]
    spec = spec[:, tally.keep(table.num_rows, checks)]
    spec = spec[:, np.argsort(spec[0], kind="stable")]
    columns = ("vm", "ts", "cpu_mhz", "mem_kb")
    week = parquet_columns(weeks[0], columns)
    rows = np.stack([floats(weeks[0], week, name) for name in columns])
    tally.rows += week.num_rows
    known = ("reading of a VM left out or not listed", ~np.isin(rows[0], spec[0]))
    stamp = ("timestamp not from 2000 to 2099", (rows[1] < _UNIX_FROM) | (rows[1] >= _UNIX_TO))
    vm, t, cpu_mhz, memory_kb = rows[
        :, tally.keep(week.num_rows, [*number_checks(list(rows)), known, stamp])
    ]
    on = (cpu_mhz > 0) | (memory_kb > 0)
    index = np.searchsorted(spec[0], vm).astype(np.int64)
    readings = Readings(index, t.astype(np.int64), cpu_mhz, memory_kb, on)
    width = len(str(int(spec[0].max(initial=0))))
    sizes = Sizes([f"vm-{int(vm):0{width}d}" for vm in spec[0].tolist()], *spec[1:])
    return _lives(readings, sizes, tally, [tables[0].name, weeks[0].name])
