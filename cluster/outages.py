"""When hosts fail that no event names: drawn from the seed, or read from a file.

Drawn failures come at a constant rate: in each epoch with the same small chance, so that the time
to the next one is geometric, whatever went before.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.scenario import Scenario
from cluster.scenario_checks import Parts
from cluster.scenario_paths import inside
from cluster.scenario_problems import problem
from cluster.trace_vms import draw
from cluster.yaml_input import Problem, shown
from hostsim.units import HostId

COLUMNS = ("at_s", "host", "repair_s")
OUTAGES_MAX = 1_000_000
"""Lines of a file; beyond lies a slip."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A host fails, and is on again after a while."""

    host: HostId
    at_ms: int
    repair_ms: int


@dataclass(frozen=True, slots=True)
class NamedOutage:
    """A line of a file."""

    host: str
    at_ms: int
    repair_ms: int


def drawn(scenario: Scenario, names: Sequence[str]) -> tuple[Outage, ...]:
    """Failures of `availability.failures`, by host, then time. names: hosts in id order."""
    options = scenario.availability.failures
    if options is None:
        return ()
    found: list[Outage] = []
    stays_up = max(1.0 - scenario.epoch / options.mean_time, 0.0)
    last = scenario.duration // scenario.epoch
    for host, name in enumerate(names):
        epoch, number = 0, 0
        while True:
            epoch += _epochs_until(stays_up, draw(scenario.seed, f"failure {number}", name))
            if epoch >= last:
                break
            found.append(Outage(HostId(host), epoch * scenario.epoch, options.repair))
            epoch += max(-(-options.repair // scenario.epoch), 1)
            number += 1
    return tuple(found)


def _epochs_until(stays_up: float, word: int) -> int:
    """Epochs up to the failure, 1 at least: the first n with stays_up ** n at most word / 2 ** 64.

    By powers of two: products alone, which are the same on every CPU. 2 ** 40 stands for never.
    """
    bound = word / 2.0**64
    powers = [stays_up]
    while len(powers) < 40:
        powers.append(powers[-1] * powers[-1])
    n, left = 0, 1.0
    for exponent in range(len(powers) - 1, -1, -1):
        if left * powers[exponent] > bound:
            left *= powers[exponent]
            n += 1 << exponent
    return n + 1


def traced(outages: Sequence[NamedOutage], names: Sequence[str]) -> tuple[Outage, ...]:
    """Those of a file by host id."""
    ids = {name: HostId(host) for host, name in enumerate(names)}
    return tuple(Outage(ids[one.host], one.at_ms, one.repair_ms) for one in outages)


def read(parts: Parts, folder: Path) -> tuple[tuple[NamedOutage, ...], list[Problem]]:
    """The file of `availability.trace`, and what is wrong with it, at its first bad line."""
    name = parts.scenario.availability.trace
    if name is None or not parts.whole("availability"):
        return (), []
    try:
        rows = _rows(inside(folder, name), parts)
    except (OSError, ValueError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        return (), [problem(parts.document, ("availability", "trace"), f"{shown(name)}: {why}")]
    return rows, []


def _rows(path: Path, parts: Parts) -> tuple[NamedOutage, ...]:
    found: list[NamedOutage] = []
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        header = next(rows, [])
        if tuple(cell.strip() for cell in header) != COLUMNS:
            raise ValueError(f"must be CSV with columns {', '.join(COLUMNS)}")
        for number, row in enumerate(rows, start=2):
            if number > OUTAGES_MAX:
                raise ValueError(f"has more than {OUTAGES_MAX} lines")
            if row:
                found.append(_outage(row, number, parts))
    return tuple(sorted(found, key=lambda one: (one.at_ms, one.host)))


def _outage(row: Sequence[str], number: int, parts: Parts) -> NamedOutage:
    if len(row) != len(COLUMNS):
        raise ValueError(f"line {number}: must have {len(COLUMNS)} values, not {len(row)}")
    at_s, host, repair_s = (cell.strip() for cell in row)
    if parts.whole("hosts") and host not in parts.host_names:
        raise ValueError(f"line {number}: {shown(host)} is no host")
    times = []
    for name, text in (("at_s", at_s), ("repair_s", repair_s)):
        if not text.isdecimal() or len(text) > 10:
            why = "must be a whole number of seconds from 0"
            raise ValueError(f"line {number}: {name} {shown(text)} {why}")
        times.append(int(text) * 1000)
    return NamedOutage(host, times[0], times[1])
