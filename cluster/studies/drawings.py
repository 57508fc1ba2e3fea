"""Charts of studies: curves with their bands over seeds, bars, a heat map, and a search's trials.

Only what is measured is drawn: a band is the 95 % confidence interval of the mean over seeds, and
where there is one seed there is none. Colours as in `cluster.charts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.charts import INK, Chart, chart
from cluster.studies.figures import shown
from cluster.summary import slowdown

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
"""Series differ in their marks too."""
SERIES_MAX = len(COLOURS)
HEAT = ("#FFFFCC", "#FED976", "#FEB24C", "#FD8D3C", "#FC4E2A", "#E31A1C", "#B10026")
"""Light is good; ColorBrewer YlOrRd."""
_NAME_MAX = 34


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart. x, y, low, high: (n,) floats; low and high NaN with one seed."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, slots=True)
class Trials:
    """What a search tried of one goal, by seed. (n,) each; held: whether the run held."""

    seed: Sequence[int]
    level: Sequence[float]
    value: Sequence[float]
    held: Sequence[bool]
    bound: float
    interval: tuple[float, float] | None


def _plain(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def curve(
    name: str,
    series: Sequence[Series],
    x_words: str,
    told_apart_by: Sequence[str],
    ticks: Mapping[float, str] | None = None,
) -> Chart:
    """Slowdowns, p95, as lines with bands over seeds. told_apart_by: the axes whose values name the
    lines. ticks: places of the x axis that have words of their own."""
    y_words = "slowdown, p95"

    def paint(axes: Any, wide: bool) -> None:
        for at, one in enumerate(series):
            colour = COLOURS[at % SERIES_MAX]
            style = {"marker": MARKERS[at % SERIES_MAX], "markersize": 5, "linewidth": 1.8}
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(one.x, one.y, color=colour, label=_cut(one.name), **style)
        _plain(axes.yaxis)
        if ticks is None:
            _plain(axes.xaxis)
        else:
            step = -(-len(ticks) // (12 if wide else 5))
            places = sorted(ticks)[::step]
            axes.set_xticks(places, [ticks[place] for place in places])
        axes.set_xlabel(x_words)
        axes.set_ylabel(y_words)
        if len(series) > 1:
            title = _cut(", ".join(told_apart_by))
            axes.legend(frameon=False, fontsize="small", title=title, title_fontsize="small")

    ends = ", ".join(f"{one.name or 'all'} {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in series)
    return chart(name, f"Curve of {y_words} by {x_words}: {ends}.", (4.2, 3.4), paint)


def bars(name: str, labels: Sequence[str], found: Sequence[Any], path: str, words: str) -> Chart:
    """A bar for each label, with its confidence interval. found: a Spread as a mapping, or None.

    A slowdown's bar begins at 1, where nothing is lost; others at 0.
    """
    base = 1.0 if path.startswith("cost.slowdown.") else 0.0
    means = [base if one is None else one["mean"] for one in found]
    texts = ["no run" if one is None else shown(path, one["mean"]) for one in found]
    spreads = [
        (0.0, 0.0)
        if one is None or one["std"] is None
        else (one["mean"] - one["low"], one["high"] - one["mean"])
        for one in found
    ]

    def paint(axes: Any, wide: bool) -> None:
        rows = np.arange(len(labels))
        widths = np.array(means) - base
        axes.barh(rows, widths, left=base, color=COLOURS[0], height=0.62)
        ends = np.array(spreads).T
        axes.errorbar(means, rows, xerr=ends, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
        reach = max((mean + up for mean, (_, up) in zip(means, spreads, strict=True)), default=base)
        span = max(reach - base, 1e-9)
        for row, (mean, (_, up)) in enumerate(zip(means, spreads, strict=True)):
            axes.text(mean + up + 0.015 * span, row, texts[row], va="center", fontsize="small")
        axes.set_yticks(rows, [_cut(label, 34 if wide else 16) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(base, base + span * (1.14 if wide else 1.3))
        _plain(axes.xaxis)
        axes.locator_params(axis="x", nbins=7 if wide else 4)
        axes.set_xlabel(words)

    listed = ", ".join(f"{label} {text}" for label, text in zip(labels, texts, strict=True))
    height = 1.0 + 0.33 * len(labels)
    return chart(name, f"Bars of {words}: {listed}.", (height, height), paint)


def heat_map(
    name: str, rows: tuple[str, Sequence[str]], columns: tuple[str, Sequence[str]], values: Any
) -> Chart:
    """Slowdowns of all combinations of two axes, (axis, labels) each. values: (rows, columns), NaN
    where there is none."""
    known = values[np.isfinite(values)]

    def paint(axes: Any, wide: bool) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        low, high = float(known.min()), float(known.max())
        colours = LinearSegmentedColormap.from_list("heat", HEAT)
        top = high if high > low else low + 1e-9
        axes.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=top)
        size = "small" if wide or len(columns[1]) <= 5 else "xx-small"
        middle = {"ha": "center", "va": "center"}
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            if not np.isfinite(value):
                continue
            ink = "#FFFFFF" if value > low + 0.62 * (top - low) else "#1b2733"
            axes.text(column, row, slowdown(value), color=ink, fontsize=size, **middle)
        axes.set_xticks(range(len(columns[1])), [_cut(label, 14) for label in columns[1]])
        axes.set_yticks(range(len(rows[1])), [_cut(label, 22 if wide else 12) for label in rows[1]])
        if not wide and len(columns[1]) > 4:
            axes.tick_params(axis="x", rotation=90)
        axes.tick_params(length=0)
        axes.set_xlabel(columns[0])
        axes.set_ylabel(rows[0])

    label = (
        f"Heat map of slowdown, p95, by {rows[0]} and {columns[0]}: from {slowdown(known.min())} "
        f"to {slowdown(known.max())}."
    )
    height = 1.2 + 0.42 * len(rows[1])
    return chart(name, label, (height, height + 0.5), paint)


def trials(name: str, found: Trials, x_words: str, y_words: str) -> Chart:
    """Every run of a search: what was measured by level, the goal, and the answer's interval."""

    def paint(axes: Any, wide: bool) -> None:
        level, value = np.array(found.level, np.float64), np.array(found.value, np.float64)
        held = np.array(found.held, np.bool_)
        for seed in dict.fromkeys(found.seed):
            its = np.array(found.seed) == seed
            order = np.argsort(level[its])
            line = {"color": INK, "linewidth": 0.8, "alpha": 0.5}
            axes.plot(level[its][order], value[its][order], **line)
        axes.plot(level[held], value[held], "o", color=COLOURS[0], markersize=6, label="holds")
        style = {"markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot(level[~held], value[~held], "s", color=COLOURS[1], label="does not", **style)
        axes.axhline(found.bound, color=INK, linestyle="--", linewidth=1, label="goal")
        if found.interval is not None:
            low, high = found.interval
            axes.axvspan(low, high, color=COLOURS[2], alpha=0.25, linewidth=0)
            axes.axvline(low, color=COLOURS[2], linewidth=1.5)
            axes.axvline(high, color=COLOURS[2], linewidth=1.5)
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.locator_params(axis="x", nbins=10 if wide else 5)
        axes.set_xlabel(x_words)
        axes.set_ylabel(y_words)
        axes.legend(frameon=False, fontsize="small")

    n = sum(found.held)
    label = f"{y_words} by {x_words} in {len(found.held)} runs, of which {n} hold."
    return chart(name, label, (4.2, 3.4), paint)


def _cut(text: str, most: int = _NAME_MAX) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
