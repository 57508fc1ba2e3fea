"""reproduction.html: every claim, and each figure with our curve over the paper's points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster import charts
from cluster.html import render
from cluster.reproduction.claims import Observation, quantity
from cluster.reproduction.experiment import Experiment, Panel

Rows = Sequence[Mapping[str, Any]]


def simulated(row: Mapping[str, Any]) -> str:
    """Mean and spread of a line of the table, for people."""
    found = row["simulated"]
    if found["mean"] is None:
        return "never"
    text = quantity(found["mean"], found["unit"])
    if found["seeds"] > 1:
        text += f" (sd {found['spread']:.2g}, {found['seeds']} seeds)"
    return text


def page(
    done: Sequence[tuple[Experiment, Rows, Sequence[Observation]]], skipped: Mapping[str, str]
) -> str:
    """The whole page. skipped: why experiments could not run, by title."""
    sections = [
        {
            "name": experiment.name,
            "title": experiment.title,
            "question": experiment.question,
            "rows": [{**row, "simulated": simulated(row)} for row in rows],
            "held": sum(row["holds"] for row in rows),
            "charts": [_chart(panel, observations) for panel in experiment.panels],
        }
        for experiment, rows, observations in done
    ]
    rows = [row for _, some, _ in done for row in some]
    failed = [row for row in rows if not row["holds"]]
    context = {"sections": sections, "rows": rows, "failed": failed, "skipped": skipped}
    return render("reproduction.html", context)


def _chart(panel: Panel, observations: Sequence[Observation]) -> charts.Chart:
    def paint(axes: Any, wide: bool) -> None:
        panel.paint(axes, observations)

    return charts.chart(panel.name, panel.label, (panel.height, panel.height), paint)
