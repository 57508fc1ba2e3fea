"""Times taken side by side, and the tables that they end in.

Machines differ, and others use them: no time is worth anything by itself. What is compared runs in
turns, in one process, and the median of the turns' ratios counts. Time is CPU time of the process,
which does not run while another has the core. This is a table of our own and not pytest-benchmark,
which compares one function with its past, not three with each other.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

OUT_VARIABLE = "ESXSIM_BENCHMARKS"
"""Environment variable that says where the results go."""
OUT = Path("runs") / "benchmarks.json"
"""Below the current folder, where nothing is said."""

Row = dict[str, str | int | float]


@dataclass
class Tables:
    """Results by table, in the order in which they came."""

    rows: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, table: str, row: Row) -> None:
        self.rows.setdefault(table, []).append(row)

    def text(self) -> str:
        """All tables, in the form of README."""
        return "\n".join(f"{name}\n\n{_table(rows)}\n" for name, rows in self.rows.items())

    def write(self) -> Path:
        """The results as JSON. Returns the file."""
        path = Path(os.environ.get(OUT_VARIABLE) or OUT)
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"architecture": platform.machine(), "cores": os.cpu_count()}
        told = {"machine": machine, "tables": self.rows}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return path


def _table(rows: Sequence[Row]) -> str:
    shown = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in shown]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def cpu_s(work: Callable[[], object]) -> float:
    """CPU time that this process spends on `work`, in seconds."""
    before = time.process_time()
    work()
    return time.process_time() - before


def in_turns(
    works: Mapping[str, Callable[[], object]], prepare: Callable[[], None], turns: int
) -> dict[str, list[float]]:
    """CPU seconds of each work in each turn; every one starts from what `prepare` makes."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            prepare()
            times[name].append(cpu_s(work))
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of times that were taken one after the other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
