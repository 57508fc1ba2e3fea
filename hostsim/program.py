"""A guest's workload as rows: one table for phases and traces, read by the compiled guest.

Row i holds until `until_ms`, on the VM's own clock for phases (a slowed guest takes longer) and on
the wall clock for traces (demand does not wait). Memory is in unscaled pages here; the host divides
by the sampling factor when it loads the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hostsim.guest_config import Phase, Workload
from hostsim.units import pages

LOCALITIES = ("uniform", "sweep", "zipf", "linear")
UNIFORM, SWEEP, ZIPF, LINEAR = range(4)
KEEP = -1
"""memory_pages of a row that leaves the memory in use as it stands."""

ROW = np.dtype(
    [
        ("until_ms", np.int64),
        ("memory_pages", np.int64),
        ("growth_pages_per_s", np.int64),
        ("active_pages", np.int64),
        ("data_pages", np.int64),
        ("touch_interval_ms", np.int64),
        ("writes_permille", np.int32),
        ("locality", np.int32),
        ("drift_permille_per_h", np.int32),
        ("cpu_permille", np.int32),
        ("transmit_pages_per_s", np.int64),
        ("transmit_set_pages", np.int64),
    ],
    align=True,
)
"""until_ms: exclusive end of the row, from the program's start (end of boot); rising.
data_pages: what touches are spread over, the active pages and data on the guest's disk; 0: the
active pages alone. transmit_set_pages: the first pages in use, that the guest transmits from by
rank."""

Rows = npt.NDArray[Any]
"""(n_rows,) ROW."""


def _pages_of(amount: tuple[str, int], size_pages: int) -> int:
    kind, value = amount
    return min(size_pages, pages(value) if kind == "bytes" else size_pages * value // 1000)


def from_workload(workload: Workload, size_pages: int) -> Rows:
    """Phases -> rows for a VM of `size_pages` pages."""
    rows = np.zeros(len(workload.phases), ROW)
    until_ms = 0
    for row, phase in zip(rows, workload.phases, strict=True):
        until_ms += phase.duration
        _fill(row, phase, size_pages)
        row["until_ms"] = until_ms
    return rows


def _fill(row: Any, phase: Phase, size_pages: int) -> None:
    row["memory_pages"] = KEEP if phase.memory is None else _pages_of(phase.memory, size_pages)
    row["growth_pages_per_s"] = pages(phase.growth)
    row["active_pages"] = _pages_of(phase.active, size_pages)
    row["data_pages"] = pages(phase.data)
    row["touch_interval_ms"] = phase.touch_interval
    row["writes_permille"] = phase.writes
    row["locality"] = LOCALITIES.index(phase.locality)
    row["drift_permille_per_h"] = phase.drift
    row["cpu_permille"] = phase.cpu
    row["transmit_pages_per_s"] = pages(phase.transmit)
    row["transmit_set_pages"] = _pages_of(phase.transmit_set, size_pages)
