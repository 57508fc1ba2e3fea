"""The table of a sweep: a row for each point and seed, and each point's numbers over its seeds.

results.json holds all of it, for programs and for the page; results.parquet has the rows,
summary.parquet a row for each point and number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cluster.files import write_json, write_table
from cluster.studies.figures import REFUSED_BY, numbers
from cluster.studies.jobs import DONE
from cluster.studies.statistics import spread
from cluster.studies.store import Store
from cluster.studies.sweep_file import SweepPlan

NOT_RUN = "not run"
SCHEMA = 1
_STATISTICS = ("n", "mean", "std", "low", "high")


def collect(plan: SweepPlan, store: Store, failures: Mapping[str, str]) -> dict[str, Any]:
    """All of results.json. failures: scenario digest -> why it could not be run."""
    points = []
    for at, (point, digests) in enumerate(zip(plan.points, plan.digests, strict=True)):
        runs = [
            _run(store, seed, digest, failures)
            for seed, digest in zip(plan.seeds, digests, strict=True)
        ]
        values = {axis.name: label for axis, label in zip(plan.axes, point.labels, strict=True)}
        points.append({"point": at, "values": values, "runs": runs, "summary": summarised(runs)})
    return {
        "schema": SCHEMA,
        "name": plan.name,
        "question": plan.question,
        "axes": [
            {"name": axis.name, "labels": list(axis.labels), "numbers": axis.numbers}
            for axis in plan.axes
        ],
        "seeds": list(plan.seeds),
        "points": points,
    }


def _run(store: Store, seed: int, digest: str, failures: Mapping[str, str]) -> dict[str, Any]:
    report = store.report(digest)
    if report is not None:
        folder = store.folder(digest)
        found = {"status": DONE, "reason": "", "folder": str(folder), "digest": report["digest"]}
        return {"seed": seed, **found, "numbers": numbers(report)}
    status = "failed" if digest in failures else NOT_RUN
    reason = failures.get(digest, "")
    found = {"status": status, "reason": reason, "folder": None, "digest": None}
    return {"seed": seed, **found, "numbers": {}}


def summarised(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each number over the runs that are done, those that lack it left out."""
    done = [run["numbers"] for run in runs if run["status"] == DONE]
    names = list(dict.fromkeys(name for one in done for name in one))
    found = {}
    for name in names:
        absent = 0 if name.startswith(REFUSED_BY) else None
        values = [one.get(name, absent) for one in done]
        found[name] = asdict(spread([value for value in values if value is not None]))
    return found


def write(results: Mapping[str, Any], out: Path) -> None:
    """The three files, each whole or not at all."""
    write_json(out / "results.json", results)
    write_table(out / "results.parquet", _rows(results))
    write_table(out / "summary.parquet", _summary(results))


def column(values: Sequence[Any]) -> Any:
    """Numbers where all are, None where unknown; text otherwise."""
    unknown = np.array([value is None for value in values], bool)
    whole = all(value is None or isinstance(value, int) for value in values)
    filled = [0 if value is None else value for value in values]
    return np.ma.masked_array(np.array(filled, np.int64 if whole else np.float64), unknown)


def _rows(results: Mapping[str, Any]) -> dict[str, Any]:
    pairs = [(point, run) for point in results["points"] for run in point["runs"]]
    names = list(dict.fromkeys(name for _, run in pairs for name in run["numbers"]))
    columns: dict[str, Any] = {"point": column([point["point"] for point, _ in pairs])}
    for axis in results["axes"]:
        columns[f"vary.{axis['name']}"] = [point["values"][axis["name"]] for point, _ in pairs]
    columns["seed"] = column([run["seed"] for _, run in pairs])
    for name in ("status", "reason", "folder", "digest"):
        columns[name] = [run[name] for _, run in pairs]
    for name in names:
        columns[name] = column([run["numbers"].get(name) for _, run in pairs])
    return columns


def _summary(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        (point["point"], name, found)
        for point in results["points"]
        for name, found in point["summary"].items()
    ]
    statistics = {name: column([found[name] for *_, found in rows]) for name in _STATISTICS}
    return {
        "point": column([point for point, *_ in rows]),
        "number": [name for _, name, _ in rows],
        **statistics,
    }
