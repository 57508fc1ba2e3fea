"""A VM trace in memory: its values, their bounds, and the digest of what it holds.

Apart from `trace_store`, which reads and writes files, so that whoever handles a trace, or may have
to and does not, need not load the library for them: that takes longer than a scenario does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hostsim.units import MEMORY_BYTES_MAX, MIB

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


MARK, SCHEMA = "esxsim_trace", 1
"""Key in import.json that makes a folder an import, and the normal form's version."""
UNKNOWN = -1
"""An integer that was not recorded; as stop time: still running when the record ends."""
SECONDS_MAX = 100 * 366 * 86_400
VCPUS_MAX = 1024
MHZ_MAX = 1e9


class TraceError(Exception):
    """A trace cannot be used: `path` names the file or folder, `message` says why."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message


@dataclass(frozen=True, slots=True)
class Trace:
    """VMs in order of their names, and their usage by VM, then time.

    names (n_vms,) object, str: unique, rising by code point.
    start_s (n_vms,) int64 s from the trace's first VM.
    stop_s (n_vms,) int64 s, above start_s; -1 exactly when still running at the trace's end.
    vcpus (n_vms,) int64, 1 to 1024. memory_bytes (n_vms,) int64, from 1 MiB: configured size.
    cpu_capacity_mhz (n_vms,) float64 MHz of all vCPUs together; NaN unknown.
    offsets (n_vms + 1,) int64: VM i has the usage rows from offsets[i] up to offsets[i + 1].
    t_s (n_usage,) int64 s, rising within a VM, within its life: a row holds until the next.
    active_bytes (n_usage,) int64 bytes in active use, at most the VM's memory; -1 unknown.
    cpu_permille (n_usage,) int64 of all the VM's vCPUs, 0 to 1000; -1 unknown.
    """

    names: npt.NDArray[np.object_]
    start_s: Ints
    stop_s: Ints
    vcpus: Ints
    memory_bytes: Ints
    cpu_capacity_mhz: Floats
    offsets: Ints
    t_s: Ints
    active_bytes: Ints
    cpu_permille: Ints


class Column(NamedTuple):
    """An integer column on disk: bounds, both inclusive, and whether null may stand."""

    name: str
    low: int
    high: int
    nullable: bool = False


VM_COLUMNS = (
    Column("start_s", 0, SECONDS_MAX),
    Column("stop_s", 1, SECONDS_MAX, nullable=True),
    Column("vcpus", 1, VCPUS_MAX),
    Column("memory_bytes", MIB, MEMORY_BYTES_MAX),
)
USAGE_COLUMNS = (
    Column("t_s", 0, SECONDS_MAX),
    Column("active_bytes", 0, MEMORY_BYTES_MAX, nullable=True),
    Column("cpu_permille", 0, 1000, nullable=True),
)


def content_digest(trace: Trace) -> str:
    """SHA-256, hex, over the content: the same trace has it wherever it is stored."""
    names = "".join(f"{len(name)}:{name}" for name in trace.names.tolist()).encode()
    digest = hashlib.sha256(f"{MARK} {SCHEMA} {len(names)} ".encode() + names)
    mhz = trace.cpu_capacity_mhz
    digest.update(np.where(np.isnan(mhz), np.nan, mhz).astype("<f8").tobytes())
    for name in ("offsets", *(column.name for column in (*VM_COLUMNS, *USAGE_COLUMNS))):
        values = getattr(trace, name).astype("<i8")
        digest.update(f"{name} {len(values)} ".encode() + values.tobytes())
    return digest.hexdigest()
