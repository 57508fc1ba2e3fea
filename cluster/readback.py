"""A run folder read back into what fits on one page, however long the run was.

Tables are read batch by batch and folded into a fixed number of time bins and host groups, so the
memory for a report does not grow with the run. It reads parts as well as joined tables: a run that
was killed has a report too. Nothing here knows how anything is shown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster import report_shape
from cluster.files import OutputError
from cluster.messages import CAUSES, LEVELS
from cluster.parts import table_files

Array = npt.NDArray[Any]

TIME_BINS = 360
"""Most points of a chart over time; each is the mean, or the worst, of the epochs in it."""
HOST_GROUPS = 200
"""Most rows of the heat map; beyond, neighbours in id order share one and the worst shows."""
OVER_TIME = ("migrated", "migration_failed", "restart", "host_failed")
"""Kinds of events that are counted over time."""
EVENTS_PER_KIND = 8
"""Events of each kind that are quoted."""
STACK = ("consumed", "shared_saved", "compressed", "ballooned", "swapped", "untouched")
"""What configured memory is made of."""
_VM_COLUMNS = (
    *("name", "hosts", "size_bytes", "on_s", "slowdown", "ballooned_mean_bytes"),
    "swapped_mean_bytes",
    *(f"lost_{cause}_s" for cause in CAUSES),
)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Cluster-wide over time. edges_s (n + 1,); the others (n,), or per name.

    hosts: how many are on, mean. power_w: what they take, mean. memory: machine memory of the
    powered-on hosts; stack: parts of configured memory; all in bytes, means over the bin. levels:
    part of host time in each reclamation state.
    """

    edges_s: Array
    epochs: int
    hosts: Array
    power_w: Array
    memory: Array
    stack: dict[str, Array]
    levels: dict[str, Array]


@dataclass(frozen=True, slots=True)
class HostGrid:
    """Hosts over time, and each host's whole run. free (groups, n): the least free part of memory.

    NaN where no host of the group was on. groups: first and last host name of each row.
    hosts: one dict per host in id order.
    """

    free: Array
    groups: list[tuple[str, str]]
    hosts: list[dict[str, Any]]


@dataclass(slots=True)
class Events:
    """How many events of each kind there were, and the first few of each in file order."""

    counts: Counter[str] = field(default_factory=Counter)
    quoted: list[dict[str, Any]] = field(default_factory=list)
    over_time: dict[str, Array] = field(default_factory=dict)
    """Of the kinds in OVER_TIME, how many there were in each bin of the timeline."""


@dataclass(frozen=True, slots=True)
class RunData:
    """All that a report shows. `report` and `vms` are None where the run was killed."""

    manifest: dict[str, Any]
    scenario: dict[str, Any]
    report: dict[str, Any] | None
    timeline: Timeline | None
    grid: HostGrid | None
    vms: dict[str, Array] | None
    events: Events


def json_object(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds an object, None where there is no file."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise OutputError(f"{path} does not hold a JSON object")
    return value


def report(path: Path) -> dict[str, Any] | None:
    """report.json, None where there is none; all that is read of it is there."""
    report = json_object(path)
    wrong = report_shape.fault(report) if report is not None else None
    if wrong is not None:
        raise OutputError(f"{path} is not a report that this esxsim can read: {wrong}")
    return report


def scenario(path: Path) -> dict[str, Any]:
    import yaml

    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OutputError(f"cannot read {path}: {error}") from error
    return value if isinstance(value, dict) else {}


def _batches(files: Sequence[Path], names: Sequence[str]) -> Iterator[dict[str, Array]]:
    """The named columns of all files, a batch of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=list(names)):
                    yield {name: batch[name].to_numpy(zero_copy_only=False) for name in names}
        except (OSError, pa.ArrowException, KeyError) as error:
            raise OutputError(f"cannot read {path}: {error}") from error


def _epochs(folder: Path) -> tuple[int, int, float]:
    """First epoch, number of epochs, and the length of one in seconds; 0 epochs where none ran."""
    first, last, end_s = 0, -1, 0.0
    for batch in _batches(table_files(folder, "epochs"), ["epoch", "end_s"]):
        if len(batch["epoch"]):
            first = first if last >= 0 else int(batch["epoch"][0])
            last, end_s = int(batch["epoch"][-1]), float(batch["end_s"][-1])
    return first, last - first + 1 if last >= 0 else 0, end_s / (last + 1) if last >= 0 else 0.0


def _timeline(folder: Path, first: int, epochs: int, epoch_s: float) -> Timeline:
    bins = min(epochs, TIME_BINS)
    byte_names = ["memory", *STACK]
    plain = ["hosts", "power_w"]
    names = plain + [f"{name}_bytes" for name in byte_names] + [f"{level}_s" for level in LEVELS]
    sums = {name: np.zeros(bins) for name in names}
    rows = np.zeros(bins)
    for batch in _batches(table_files(folder, "epochs"), ["epoch", *names]):
        at = (batch["epoch"] - first) * bins // epochs
        rows += np.bincount(at, minlength=bins)
        for name in names:
            sums[name] += np.bincount(at, batch[name], minlength=bins)
    means = {name: sums[f"{name}_bytes"] / np.maximum(rows, 1) for name in byte_names}
    host_s = np.maximum(sum(sums[f"{level}_s"] for level in LEVELS), 1e-9)
    return Timeline(
        edges_s=(first + np.ceil(np.arange(bins + 1) * epochs / bins)) * epoch_s,
        epochs=epochs,
        hosts=sums["hosts"] / np.maximum(rows, 1),
        power_w=sums["power_w"] / np.maximum(rows, 1),
        memory=means.pop("memory"),
        stack=means,
        levels={level: sums[f"{level}_s"] / host_s for level in LEVELS},
    )


_MEANS = ("vms", "configured_bytes", "consumed_bytes", "ballooned_bytes", "swapped_bytes")
_SUMS = ("high_s", "clear_s", "soft_s", "hard_s", "low_s", "swap_in_bytes", "swap_out_bytes")


def _grid(folder: Path, first: int, epochs: int) -> HostGrid:
    files = table_files(folder, "hosts")
    named: dict[int, str] = {}
    for batch in _batches(files, ["host", "host_name"]):
        ids, at = np.unique(batch["host"], return_index=True)
        named.update(zip(ids.tolist(), batch["host_name"][at].tolist(), strict=True))
    ids = np.array(sorted(named), np.int64)
    n, groups, bins = len(ids), min(len(ids), HOST_GROUPS), min(epochs, TIME_BINS)
    free = np.full((groups, bins), np.inf)
    rows, least = np.zeros(n), np.full(n, np.inf)
    totals = {name: np.zeros(n) for name in (*_MEANS, *_SUMS)}
    memory = np.zeros(n)
    for batch in _batches(files, ["epoch", "host", "on", "memory_bytes", "free_bytes", *totals]):
        known = batch["epoch"] < first + epochs  # a killed run may have written more of the hosts
        known &= batch["on"] > 0
        batch = {name: column[known] for name, column in batch.items()}
        at = np.searchsorted(ids, batch["host"])
        part = batch["free_bytes"] / batch["memory_bytes"]
        np.minimum.at(free, (at * groups // n, (batch["epoch"] - first) * bins // epochs), part)
        np.minimum.at(least, at, part)
        rows += np.bincount(at, minlength=n)
        memory[at] = batch["memory_bytes"]
        for name, total in totals.items():
            total += np.bincount(at, batch[name], minlength=n)
    for name in _MEANS:
        totals[name] /= np.maximum(rows, 1)
    host_s = sum(totals[f"{level}_s"] for level in LEVELS)
    facts = {
        **totals,
        "memory_bytes": memory,
        "free_least": least,
        "pressed": 1 - totals["high_s"] / np.maximum(host_s, 1e-9),
    }
    hosts = [
        {"name": named[int(host)], **{name: float(values[i]) for name, values in facts.items()}}
        for i, host in enumerate(ids)
    ]
    starts = np.searchsorted(np.arange(n) * groups // max(n, 1), np.arange(groups + 1))
    spans = [(hosts[a]["name"], hosts[b - 1]["name"]) for a, b in pairwise(starts)]
    return HostGrid(np.where(np.isinf(free), np.nan, free), spans, hosts)


def _vms(folder: Path) -> dict[str, Array] | None:
    """What a report shows of the VMs, all of them: the table does not grow with time."""
    path = folder / "vms.parquet"
    if not path.exists():
        return None
    batches = list(_batches([path], _VM_COLUMNS))
    if not batches:
        return {name: np.zeros(0) for name in _VM_COLUMNS}
    return {name: np.concatenate([batch[name] for batch in batches]) for name in _VM_COLUMNS}


def _events(path: Path, edges_s: Array) -> Events:
    if not path.exists():
        return Events()
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return _counted(lines, edges_s)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error


def _counted(lines: Iterable[str], edges_s: Array) -> Events:
    bins = max(len(edges_s) - 1, 1)
    found = Events(over_time={kind: np.zeros(bins, np.int64) for kind in OVER_TIME})
    for line in lines:
        try:
            event = json.loads(line)
            kind = str(event["kind"])
        except (ValueError, TypeError, KeyError, RecursionError):
            found.counts["(unreadable line)"] += 1
            continue
        found.counts[kind] += 1
        at_s = event.get("at_s")
        if kind in found.over_time and isinstance(at_s, int | float):
            at = int(np.searchsorted(edges_s, at_s, side="right")) - 1
            found.over_time[kind][min(max(at, 0), bins - 1)] += 1
        if found.counts[kind] <= EVENTS_PER_KIND:
            found.quoted.append(event)
    return found


def read(folder: Path) -> RunData:
    """Everything of a run folder that a report shows, or OutputError."""
    manifest = json_object(folder / "manifest.json")
    if manifest is None or "esxsim" not in manifest:
        raise OutputError(f"{folder} is not a run folder: it has no manifest.json of esxsim")
    first, epochs, epoch_s = _epochs(folder)
    line = _timeline(folder, first, epochs, epoch_s) if epochs else None
    return RunData(
        manifest=manifest,
        scenario=scenario(folder / "scenario.yaml"),
        report=report(folder / "report.json"),
        timeline=line,
        grid=_grid(folder, first, epochs) if epochs else None,
        vms=_vms(folder),
        events=_events(folder / "events.jsonl", np.zeros(1) if line is None else line.edges_s),
    )
