"""The pages of studies, from what is in their files alone: sweep.html, capacity.html, compare.html.

As report.html: one file each, no script, nothing from the network, all text escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from cluster import charts, summary
from cluster.files import OutputError, write_text
from cluster.html import render
from cluster.messages import CAUSES
from cluster.readback import json_object
from cluster.studies import drawings
from cluster.studies.compare import verdict
from cluster.studies.drawings import Series
from cluster.studies.figures import KEY_FIGURES, changed, is_number, shown
from cluster.studies.tables import WORDS, short, with_interval

P95, MEAN = "cost.slowdown.p95", "cost.slowdown.mean"
OVERCOMMIT, EACH = "consolidation.overcommit_configured", "consolidation.vms_per_host_mean"
BARS_MAX = 24
HEAT_MAX = 400
"""Cells of a heat map."""
POINTS_MAX = 500
"""Rows of the table of points; the files have all."""
TABLE = (
    *("vms.placed", "vms.refused", EACH, OVERCOMMIT, MEAN, P95),
    *("reclaim_states.high", "memory_gib.shared_saved.mean", "memory_gib.ballooned.mean"),
    "memory_gib.swapped.mean",
)
UNITS = {"vms": (1, "VMs"), "hosts": (1, "hosts"), "overcommit": (100, "overcommit")}
"""What varies -> what a level is divided by, and words."""


def build(folder: Path) -> list[Path]:
    """Write the pages of what a study's folder holds; their paths. Raises OutputError."""
    made = {"results.json": sweep, "capacity.json": capacity, "compare.json": compare}
    names = {"results.json": "sweep.html", "capacity.json": "capacity.html"}
    found = []
    for name, page in made.items():
        try:
            held = json_object(folder / name)
            if held is not None:
                path = folder / names.get(name, "compare.html")
                write_text(path, page(held))
                found.append(path)
        except (KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{folder / name} is not what this esxsim wrote: {error}") from error
    return found


# A sweep


def sweep(results: Mapping[str, Any]) -> str:
    """sweep.html."""
    points, axes = results["points"], results["axes"]
    runs = [run for point in points for run in point["runs"]]
    failed = [
        (_values(point), run)
        for point in points
        for run in point["runs"]
        if run["status"] != "done"
    ]
    context = {
        "results": results,
        "done": sum(run["status"] == "done" for run in runs),
        "runs": len(runs),
        "failed": failed[:POINTS_MAX],
        "figures": _sweep_figures(results) if any(point["summary"] for point in points) else [],
        "header": [WORDS[path] for path in TABLE],
        "axes": [axis["name"] for axis in axes],
        "rows": [
            [
                list(point["values"].values()),
                [with_interval(path, point["summary"].get(path)) for path in TABLE],
            ]
            for point in points[:POINTS_MAX]
        ],
        "left_out": max(0, len(points) - POINTS_MAX),
        "answer": _sweep_answer(points),
    }
    return render("sweep.html", context)


def _values(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {label}" for name, label in point["values"].items())


def _mean(point: Mapping[str, Any], path: str) -> float:
    found = point["summary"].get(path)
    return nan if found is None else float(found["mean"])


def _sweep_answer(points: Sequence[Mapping[str, Any]]) -> str:
    known = [point for point in points if isfinite(_mean(point, P95))]
    if not known:
        return "No point has run yet."
    best = min(known, key=lambda point: _mean(point, P95))
    worst = max(known, key=lambda point: _mean(point, P95))
    if best is worst or _mean(best, P95) == _mean(worst, P95):
        return (
            f"At every point 95 % of the VMs were slowed down by a factor of {_p95(best)} or less."
        )
    return (
        f"95 % of the VMs were slowed down by a factor of {_p95(best)} or less at the best point "
        f"({_values(best)}), {_p95(worst)} or less at the worst ({_values(worst)})."
    )


def _p95(point: Mapping[str, Any]) -> str:
    return summary.slowdown(_mean(point, P95))


def _sweep_figures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts that fit what varies, each with its title and what it shows."""
    axes, points = results["axes"], results["points"]
    numeric = [at for at, axis in enumerate(axes) if axis["numbers"] is not None]
    figures = []
    if numeric and len(axes[numeric[0]]["labels"]) > 1:
        figures += _curves(axes, points, numeric[0])
    if len(axes) == 2:
        figures += _heat(axes, points)
    if not numeric and len(points) <= BARS_MAX:
        figures += _bars([", ".join(point["values"].values()) for point in points], points)
    return figures


def _curves(
    axes: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]], at: int
) -> list[dict[str, Any]]:
    """Slowdown by an axis, and by what it did to overcommit; a line for each of the others."""
    axis = axes[at]
    others = [one["name"] for one in axes if one is not axis]
    number = dict(zip(axis["labels"], axis["numbers"], strict=True))
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for point in points:
        if isfinite(_mean(point, P95)):
            name = ", ".join(point["values"][other] for other in others)
            lines.setdefault(name, []).append((number[point["values"][axis["name"]]], point))
    if not 1 <= len(lines) <= drawings.SERIES_MAX:
        return []
    for line in lines.values():
        line.sort(key=lambda one: one[0])
    ticks = {number[label]: label for label in axis["labels"]}
    words = f", a line for each {', '.join(others)}" if others else ""
    by_axis = [
        _series(name, [x for x, _ in its], [p for _, p in its]) for name, its in lines.items()
    ]
    figures = [
        {
            "title": f"Slowdown by {axis['name']}",
            "words": f"p95 over VMs{words}; bands: 95 % confidence over seeds.",
            "chart": drawings.curve("axis", by_axis, axis["name"], others, ticks),
        }
    ]
    reached = [_mean(point, OVERCOMMIT) for its in lines.values() for _, point in its]
    if max(reached) > 1.02 * min(reached):
        by_reached = [
            _series(name, [_mean(point, OVERCOMMIT) for _, point in its], [p for _, p in its])
            for name, its in lines.items()
        ]
        made = drawings.curve("consolidation", by_reached, "memory overcommit", others)
        words = (
            f"p95 over VMs by what consolidation there was{words}: sizes of powered-on VMs over "
        )
        words += "memory, means over time and seeds."
        figures.append({"title": "Consolidation curve", "words": words, "chart": made})
    return figures


def _series(name: str, xs: Sequence[float], points: Sequence[Mapping[str, Any]]) -> Series:
    spreads = [point["summary"][P95] for point in points]
    low, high = (
        [nan if spread[end] is None else spread[end] for spread in spreads]
        for end in ("low", "high")
    )
    return Series(name, xs, [spread["mean"] for spread in spreads], low, high)


def _heat(
    axes: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    rows, columns = ((axis["name"], axis["labels"]) for axis in axes)
    if len(rows[1]) < 2 or len(columns[1]) < 2 or len(rows[1]) * len(columns[1]) > HEAT_MAX:
        return []
    values = np.full((len(rows[1]), len(columns[1])), nan)
    for point in points:
        row, column = (axis["labels"].index(point["values"][axis["name"]]) for axis in axes)
        values[row, column] = _mean(point, P95)
    if not np.isfinite(values).any():
        return []
    made = drawings.heat_map("heat", rows, columns, values)
    return [{"title": "Both axes", "words": "Slowdown, p95, mean over seeds.", "chart": made}]


def _bars(labels: Sequence[str], points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    spreads = [[point["summary"].get(path) for point in points] for path in (P95, MEAN)]
    words = "Whiskers: 95 % confidence over seeds."
    return [
        {
            "title": f"Slowdown, {name}",
            "words": words,
            "chart": drawings.bars(name, labels, found, path, f"slowdown, {name}"),
        }
        for name, path, found in zip(("p95", "mean"), (P95, MEAN), spreads, strict=True)
    ]


# A search


def capacity(found: Mapping[str, Any]) -> str:
    """capacity.html."""
    divide, words = UNITS[found["vary"]]
    levels = sorted({trial["level"] for trial in found["trials"]})
    rows = []
    for level in levels:
        its = [trial for trial in found["trials"] if trial["level"] == level]
        why = next(("; ".join(trial["why"]) for trial in its if trial["why"]), "")
        held = f"{sum(trial['holds'] for trial in its)} of {len(its)}"
        numbers = [_over(its, path) for path in (EACH, OVERCOMMIT, MEAN, P95)]
        rows.append([f"{level / divide:g}", held, *numbers, why])
    context = {
        "found": found,
        "words": words,
        "figures": [
            _goal(found, goal, f"goal {at}", divide, words)
            for at, goal in enumerate(found["goals"])
        ],
        "rows": rows,
        "header": [WORDS[path] for path in (EACH, OVERCOMMIT, MEAN, P95)],
        "knees": [
            (seed, _level(knee["holds"], divide), _level(knee["fails"], divide))
            for seed, knee in found["knees"].items()
        ],
        "violations": [(one["level"] / divide, one["seed"]) for one in found["violations"]],
        "causes": _causes(found),
        "cause_words": summary.CAUSE_WORDS,
    }
    return render("capacity.html", context)


def _level(level: int | None, divide: int) -> str:
    return summary.DASH if level is None else f"{level / divide:g}"


def _over(trials: Sequence[Mapping[str, Any]], path: str) -> str:
    values = [trial["numbers"].get(path) for trial in trials]
    known = [value for value in values if is_number(value)]
    return shown(path, sum(known) / len(known) if known else None)


def _goal(
    found: Mapping[str, Any], goal: Mapping[str, Any], name: str, divide: int, words: str
) -> dict[str, Any]:
    path = goal["path"]
    known = [trial for trial in found["trials"] if is_number(trial["numbers"].get(path))]
    ends = [end for end in found["interval"] if end is not None]
    made = drawings.trials(
        name,
        drawings.Trials(
            level=[trial["level"] / divide for trial in known],
            seed=[trial["seed"] for trial in known],
            value=[trial["numbers"][path] for trial in known],
            held=[trial["holds"] for trial in known],
            bound=goal["bound"],
            interval=(ends[0] / divide, ends[1] / divide) if ends else None,
        ),
        words,
        path.removeprefix("cost."),
    )
    return {"title": goal["text"], "chart": made}


def _causes(found: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(cause, part of time lost, width of its bar in %) of the first run that failed."""
    first = found["first"]
    if first is None:
        return []
    its = (one for one in found["trials"] if [one["seed"], one["level"]] == first)
    numbers = next(its)["numbers"]
    parts = [(cause, numbers.get(f"cost.slowdown_by_cause.{cause}", 0.0)) for cause in CAUSES]
    longest = max(0.01, *(part for _, part in parts))
    return [(cause, part, 100 * part / longest) for cause, part in parts]


# A comparison


def compare(found: Mapping[str, Any]) -> str:
    """compare.html."""
    labels = [group["label"] for group in found["groups"]]
    key = [figure.path for figure in KEY_FIGURES]
    by_path = {row["path"]: row for row in found["outcome"]}
    context = {
        "found": found,
        "labels": labels,
        "scenario": [(row["path"], list(map(short, row["values"]))) for row in found["scenario"]],
        "key": [_compared(by_path[path]) for path in key if path in by_path],
        "others": [_compared(row) for row in found["outcome"] if row["path"] not in key],
        "chart": _groups(labels, by_path),
    }
    return render("compare.html", context)


def _groups(labels: Sequence[str], by_path: Mapping[str, Any]) -> charts.Chart | None:
    if P95 not in by_path or len(labels) > BARS_MAX:
        return None
    return drawings.bars("groups", labels, by_path[P95]["groups"], P95, "slowdown, p95")


def _compared(row: Mapping[str, Any]) -> dict[str, Any]:
    path = row["path"]
    sides = [with_interval(path, side) for side in row["groups"]]
    changes = [
        (summary.DASH if found is None else changed(path, found["mean"]), verdict(found))
        for found in row["differences"]
    ]
    return {
        "words": WORDS.get(path, path),
        "first": sides[0],
        "others": list(zip(sides[1:], changes, strict=True)),
    }
