"""What an experiment is: a question, what one seed observes, the claims, and the figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.reproduction.claims import Claim, Curve, Observation
from cluster.reproduction.lab import Lab

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito 2008: can be told apart by colour-blind readers."""

Paint = Callable[[Any, Sequence[Observation]], None]


@dataclass(frozen=True)
class Panel:
    """One chart: what it shows, in words, and how it is painted on matplotlib's axes."""

    name: str
    label: str
    paint: Paint
    height: float = 3.6


@dataclass(frozen=True)
class Experiment:
    """A figure of the paper, or a measurement of real machines."""

    name: str
    title: str
    question: str
    """What it asks; its scenario files open with the same."""
    observe: Callable[[Lab, int], Observation]
    """One seed."""
    claims: tuple[Claim, ...]
    panels: tuple[Panel, ...]
    seeds: int = 10
    """At least so many; 1 where nothing is random."""
    missing: Callable[[Lab], str | None] = lambda lab: None
    """Why it cannot run here: data that is not part of the project is not there."""


def mean_curve(observations: Sequence[Observation], name: str) -> Curve:
    """A curve's mean over the seeds; x is equal in all."""
    x = np.asarray(observations[0].curves[name][0])
    return x, np.mean([one.curves[name][1] for one in observations], axis=0)


def compare(axes: Any, ours: Curve, paper: Curve | None, colour: str, label: str) -> None:
    """Our curve as a line, over the paper's points."""
    if paper is not None:
        axes.plot(*paper, ".", color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0)
    axes.plot(*ours, color=colour, linewidth=1.6, label=label)


def bars(
    axes: Any, labels: Sequence[str], parts: Mapping[str, Any], *, stacked: bool = False
) -> None:
    """Horizontal bars, the first label on top; the parts side by side, or one after the other."""
    places = np.arange(len(labels))
    height = 0.7 if stacked else 0.8 / len(parts)
    before = np.zeros(len(labels))
    for at, ((name, values), colour) in enumerate(zip(parts.items(), COLOURS, strict=False)):
        shift = 0.0 if stacked else (at - (len(parts) - 1) / 2) * height
        left = before.copy() if stacked else None
        axes.barh(places + shift, values, height, left=left, color=colour, label=name)
        before += values
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    ncols = len(parts) if axes.figure.get_figwidth() > 6 else 1
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    axes.legend(frameon=False, ncols=ncols, fontsize="small", **above)


def plain_numbers(axis: Any) -> None:
    """Labels of a logarithmic axis as plain numbers: its own are formulas, shown as source text."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
