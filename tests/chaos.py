"""Runs of the command among faults: killed processes, drawn from a seed, and how each run ends.

A voyage is one scenario run to its end, however often the command has to be typed again, with
`--continue`, as a user or a retried job would. Nothing may hang: each wait has a bound.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from cluster_builders import PRESSED
from processes import processes_below
from scenario_files import write

MAIN = (sys.executable, "-c", "from cluster.cli import main; main()")
BOUND_S = 180.0
"""From a fault until the run goes on, or the command has ended."""
COMPARED = ("report.json", "events.jsonl", "hosts.parquet", "vms.parquet", "epochs.parquet")
SCENARIO: dict[str, Any] = PRESSED | {
    "name": "chaos",
    "duration": "4 h",
    "hosts": [{"name": "esx", "count": 6, "memory": "400 MiB", "reserve": "16 MiB", "cpus": 4}],
    "vms": [
        PRESSED["vms"][0] | {"count": 26, "interval": "2 min"},
        PRESSED["vms"][1] | {"count": 8, "start": "20 min", "stop": "3 h", "interval": "10 min"},
    ],
    "events": [],
    "placement": {"policy": "worst-fit", "by": "consumed", "overcommit": 2.5},
    "balancing": {"level": 4, "interval": "10 min"},
    "migration": {"bandwidth": "4 MiB/s"},
    "availability": {"failures": {"mean_time": "8 h", "repair": "30 min"}, "delay": "60 s"},
    "detail": "vms",
}
"""Arrivals, departures, migrations, failing hosts and restarts, for some seconds."""


@dataclass
class Voyage:
    """One run, and the faults that befell it. command: of the run, without its options."""

    scenario: Path
    out: Path
    options: Sequence[str]
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    endings: list[tuple[int, str]] = field(default_factory=list)
    """Exit codes of the command, with its last words."""

    def sail(self, next_fault: Callable[[Voyage, int], str | None]) -> None:
        """Run to the end. next_fault: does the next one, given the command's process; says which;
        None: no more."""
        while not self.endings or self.endings[-1][0] != 0:
            assert len(self.endings) < 40, self.endings
            with self._command() as process:
                while process.poll() is None and self._goes_on(process):
                    told = next_fault(self, process.pid)
                    if told is None:
                        break
                    self.faults.append(told)
                _, errors = process.communicate(timeout=BOUND_S)
            self.endings.append((process.returncode, errors[-2000:]))
            assert "Traceback" not in errors, errors
            assert process.returncode in (0, 1, -signal.SIGKILL, -signal.SIGTERM), errors

    @contextlib.contextmanager
    def _command(self) -> Iterator[subprocess.Popen[str]]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        arguments = ["run", str(self.scenario), "--out", str(self.out), "--continue", "--json"]
        with subprocess.Popen(
            [*self.prefix, *MAIN, *arguments, "--checkpoint-every", "0.3", *self.options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | dict(self.environment),
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def _goes_on(self, process: subprocess.Popen[str]) -> bool:
        """Waits until something is written by the run; False where the command ended first."""
        began = self._written()
        give_up_s = time.monotonic() + BOUND_S
        while process.poll() is None:
            assert time.monotonic() < give_up_s, f"nothing within {BOUND_S} s of {self.faults[-1:]}"
            if self._written() != began:
                return True
            time.sleep(0.05)
        return False

    def _written(self) -> int:
        """When events were written last."""
        with contextlib.suppress(FileNotFoundError):
            return (self.out / "events.jsonl").stat().st_mtime_ns
        return 0


def scenario(folder: Path) -> Path:
    return write(folder, SCENARIO, "chaos.yaml")


def killed(kind: str, driver: int, random: Random) -> str | None:
    """Kill -9 a process of a kind below the command's; None where there is none."""
    if kind == "driver":
        pids = [driver]
    else:
        found = processes_below(driver)
        pids = [pid for pid, name in found.items() if kind in name and pid != driver]
    if not pids:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(random.choice(pids), signal.SIGKILL)
    return kind


def assert_same(out: Path, whole: Path) -> None:
    """Every byte of the results is that of an undisturbed run; nothing of the work is left."""
    for name in (*COMPARED, "vms_epochs.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    left = {path.name for path in out.iterdir()} - {path.name for path in whole.iterdir()}
    assert not left, left
