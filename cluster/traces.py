"""VM traces from outside: which format a path holds, and its readings in the normal form.

Readers deliver columns as published; `arrange` does what is the same for all formats, in one order:
leave out VMs that the simulator cannot hold, sort by name and time, leave out what repeats or
lies outside a life, clip usage to the VM's size, and shift time so that the first VM starts at 0.
Each of these counts what it touched. A scenario may point at a published trace as it is: the
same path then leads through memory only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.trace import (
    MHZ_MAX,
    SECONDS_MAX,
    UNKNOWN,
    VCPUS_MAX,
    Ints,
    Mask,
    Trace,
    TraceError,
    content_digest,
)
from cluster.trace_bitbrains import (
    gwa_files,
    gwa_header,
    parquet_files,
    read_bitbrains_csv,
    read_bitbrains_parquet,
)
from cluster.trace_readers import Raw, azure_files, read_azure_arrivals, read_azure_v1
from cluster.trace_store import NAME_MAX, VMS, load_trace, save_trace
from hostsim.units import MEMORY_BYTES_MAX, MIB

__all__ = [
    "FORMATS",
    "Summary",
    "Trace",
    "TraceError",
    "arrange",
    "content_digest",
    "import_trace",
    "load_input",
    "load_trace",
    "save_trace",
]


@dataclass(frozen=True, slots=True)
class Summary:
    """What an import read and made; `bad` rows were left out, `cleaned` ones changed, by reason."""

    format: str
    sources: tuple[str, ...]
    attribution: str
    licence: str | None
    vms: int
    usage_rows: int
    origin_s: int
    """Time 0 of the trace on the source's own clock."""
    rows_read: int
    bad: dict[str, int]
    cleaned: dict[str, int]


class _Format(NamedTuple):
    description: str
    found: Callable[[Path], bool]
    """Or TraceError, where the layout is this format's and a file is not."""
    read: Callable[[Path], Raw]


def _is_gwa(path: Path) -> bool:
    files = gwa_files(path)
    return bool(files) and bool(gwa_header(files[0]))


_FORMATS = {
    "bitbrains-csv": _Format(
        "GWA-T-12 as published: a semicolon CSV per VM, in a folder or a folder per month",
        _is_gwa,
        read_bitbrains_csv,
    ),
    "bitbrains-parquet": _Format(
        "GWA-T-12 re-packed: a folder with vms_MONTH.parquet and week_MONTH_5min.parquet",
        lambda path: all(parquet_files(path)),
        read_bitbrains_parquet,
    ),
    "azure-v1": _Format(
        "Azure Public Dataset V1: vmtable CSV, with vm_cpu_readings CSVs beside it (or gzipped)",
        lambda path: bool(azure_files(path)[0]),
        read_azure_v1,
    ),
    "azure-v1-arrivals": _Format(
        "Azure V1 as arrivals with binned lifetimes: arrivals.parquet",
        lambda path: path.name == "arrivals.parquet" or (path / "arrivals.parquet").is_file(),
        read_azure_arrivals,
    ),
}
FORMATS = {name: entry.description for name, entry in _FORMATS.items()}
"""Format name -> what it looks like, for `esxsim import` and its help."""


def arrange(raw: Raw, path: Path) -> tuple[Trace, int]:
    """`raw` in the normal form, and time 0 on its own clock; counts go to `raw.tally`.

    Of VMs with one name, and of readings with one VM and stamp, the first as read stays.
    """
    names = np.array([*raw.names, ""], dtype=object)[:-1]
    order = np.argsort(names, kind="stable")
    kept = order[_good_vms(raw, names, order)]
    if not len(kept):
        raise TraceError(path, f"holds no usable VM; left out: {_counted(raw.tally.bad)}")
    origin_s = int(raw.start_s[kept].min())
    place = np.full(len(names), UNKNOWN)
    place[kept] = np.arange(len(kept))
    stop = raw.stop_s[kept]
    start_s, stop_s = raw.start_s[kept] - origin_s, np.where(stop < 0, UNKNOWN, stop - origin_s)
    memory, vm, t = raw.memory_bytes[kept], place[raw.usage_vm], raw.t_s - origin_s
    rows = np.lexsort((t, vm))
    rows = rows[_good_readings(raw, vm[rows], t[rows], start_s, stop_s)]
    vm, active, cpu = vm[rows], raw.active_bytes[rows], raw.cpu_permille[rows]
    cleaned = raw.tally.cleaned
    cleaned["active memory above the VM's size, clipped"] += int((active > memory[vm]).sum())
    cleaned["CPU use above capacity, clipped"] += int((cpu > 1000).sum())
    trace = Trace(
        names=names[kept],
        start_s=start_s,
        stop_s=stop_s,
        vcpus=raw.vcpus[kept],
        memory_bytes=memory,
        cpu_capacity_mhz=raw.cpu_capacity_mhz[kept],
        offsets=np.searchsorted(vm, np.arange(len(kept) + 1)).astype(np.int64),
        t_s=t[rows],
        active_bytes=np.minimum(active, memory[vm]),
        cpu_permille=np.minimum(cpu, 1000),
    )
    return trace, origin_s


def _good_vms(raw: Raw, names: npt.NDArray[np.object_], order: Ints) -> Mask:
    """(n_vms,) bool in `order`: VMs that the normal form can hold."""
    sorted_names, memory = names[order], raw.memory_bytes[order]
    last = np.maximum(raw.start_s, raw.stop_s)[order]
    shown = [0 < len(name) <= NAME_MAX and name.isprintable() for name in sorted_names.tolist()]
    again = np.concatenate([[False], sorted_names[1:] == sorted_names[:-1]])[: len(order)]
    checks = [
        ("VM with an unusable name", ~np.array(shown, np.bool_)),
        ("VM with the name of another", again.astype(np.bool_)),
        ("VM outside 1 MiB to 1 PiB of memory", (memory < MIB) | (memory > MEMORY_BYTES_MAX)),
        (f"VM with more than {VCPUS_MAX} CPU cores", raw.vcpus[order] > VCPUS_MAX),
        ("VM with an absurd CPU capacity", raw.cpu_capacity_mhz[order] > MHZ_MAX),
        ("VM later than 100 years", last > raw.start_s.min(initial=0) + SECONDS_MAX),
    ]
    return raw.tally.keep(len(order), checks)


def _good_readings(raw: Raw, vm: Ints, t: Ints, start: Ints, stop: Ints) -> Mask:
    """(n_usage,) bool, of readings sorted by VM and time: of a VM that is left, within its life."""
    again = (np.diff(vm, prepend=UNKNOWN - 1) == 0) & (np.diff(t, prepend=0) == 0)
    end = np.where(stop[vm] == UNKNOWN, np.iinfo(np.int64).max, stop[vm])
    checks = [
        ("reading of a VM left out", vm == UNKNOWN),
        ("reading with the stamp of another", again),
        ("reading outside the VM's life", (t < start[vm]) | (t >= end)),
    ]
    return raw.tally.keep(len(vm), checks)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()) if n) or "nothing"


def _known(counts: Counter[str]) -> dict[str, int]:
    return {reason: n for reason, n in sorted(counts.items()) if n}


def import_trace(format: str, source: Path, out: Path) -> Summary:
    """Read `source` in `format`, write the normal form to the folder `out`."""
    entry = _FORMATS.get(format)
    if entry is None:
        raise TraceError(source, f"unknown format {format!r}; must be one of {', '.join(FORMATS)}")
    _must_exist(source)
    if not entry.found(source):
        raise TraceError(source, f"does not look like {format}: {entry.description}")
    raw = entry.read(source)
    trace, origin_s = arrange(raw, source)
    summary = Summary(
        format=format,
        sources=raw.sources,
        attribution=raw.attribution,
        licence=raw.licence,
        vms=len(trace.names),
        usage_rows=len(trace.t_s),
        origin_s=origin_s,
        rows_read=raw.tally.rows,
        bad=_known(raw.tally.bad),
        cleaned=_known(raw.tally.cleaned),
    )
    save_trace(trace, out, asdict(summary))
    return summary


def load_input(path: Path) -> Trace:
    """The trace at `path`: the normal form, or a published trace told by its layout."""
    _must_exist(path)
    if (path / VMS).exists():
        return load_trace(path)
    for entry in _FORMATS.values():
        if _looks_like(entry, path):
            return arrange(entry.read(path), path)[0]
    known = "; ".join(f"{name} ({description})" for name, description in FORMATS.items())
    raise TraceError(path, f"is no trace: must be an import (a folder with {VMS}) or {known}")


def _looks_like(entry: _Format, path: Path) -> bool:
    try:
        return entry.found(path)
    except TraceError:  # it may be of another format
        return False


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise TraceError(path, "does not exist")
