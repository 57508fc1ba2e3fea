"""The paper's figures as data: scenarios/osdi02/figures, whose README gives source and columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.reproduction.claims import Curve

FIGURES = Path(__file__).parents[2] / "scenarios" / "osdi02" / "figures"


@dataclass(frozen=True)
class Table:
    """A figure with one row per bar or point."""

    columns: dict[str, list[str]]

    def numbers(self, name: str) -> list[float]:
        """A column as numbers; NaN where the paper gives none."""
        return [float(value) if value else float("nan") for value in self.columns[name]]


def table(name: str) -> Table:
    """The file `name`.csv."""
    with (FIGURES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Table({key: [row[key] for row in rows] for key in rows[0]})


def series(name: str) -> dict[str, Curve]:
    """Curves over time of the file `name`.csv: minutes and MiB by the name of the series."""
    found = table(name)
    names = np.array(found.columns["series"])
    minutes, values = np.array(found.numbers("minute")), np.array(found.numbers("value_mb"))
    return {str(one): (minutes[names == one], values[names == one]) for one in np.unique(names)}


def at(curve: Curve, minute: float) -> float:
    """A curve's value at a time, along the line between its points."""
    return float(np.interp(minute, *curve))
