"""Charts as SVG text that stands inside a page: no ids that clash, no links out, no date.

Every chart is drawn twice, for a wide and a narrow screen, since text that shrinks with the picture
cannot be read on a phone. Lines and letters take the colour of the page's text, so a chart
works on dark ground too. Equal data gives equal bytes. Colours can be told apart by colour-blind
readers (Okabe and Ito 2008; ColorBrewer RdYlBu).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from cluster.messages import LEVELS
from cluster.readback import STACK, Array, HostGrid, Timeline
from cluster.summary import percent, slowdown
from hostsim.units import GIB

INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
STACK_COLOURS = dict(
    zip(
        STACK,
        ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#D55E00", "#B8BEC6"),
        strict=True,
    )
)
LEVEL_COLOURS = dict(
    zip(LEVELS, ("#9CC9E8", "#CFE7C4", "#F0E442", "#E69F00", "#C23B10"), strict=True)
)
MOVE_COLOURS = {"migrated": "#0072B2", "migration_failed": "#E69F00", "restart": "#CC79A7"}
FAILURE_COLOUR, POWER_COLOUR = "#C23B10", "#009E73"
FREE_BANDS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 1.0)
"""Edges of the heat map's bands of free memory: fine where hosts begin to reclaim."""
FREE_COLOURS = ("#A50026", "#D73027", "#F46D43", "#FDAE61", "#FEE090", "#ABD9E9", "#4575B4")
PADDING = 3.0
"""Points around a chart: matplotlib's `figure.constrained_layout.w_pad`."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.5,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart at both widths, and what it shows in words."""

    wide: str
    narrow: str
    label: str


def prepare() -> None:
    """Load what draws, which takes as long as a chart or two: for who has to wait anyway."""
    from matplotlib import figure
    from matplotlib.backends import backend_svg

    assert figure and backend_svg


def _svg(
    name: str, label: str, size: tuple[float, float], paint: Callable[[Any, bool], None]
) -> str:
    """Draw one figure: `paint(axes, wide)`."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = f"esxsim {name} {size}"
    style: Any = {**STYLE, "svg.hashsalt": salt, "font.size": 12 if size[0] > 6 else 11}
    with rc_context(style):
        figure = Figure(figsize=size, dpi=72, frameon=False)
        axes = figure.add_subplot(frameon=True, facecolor="none")
        paint(axes, size[0] > 6)
        _fit(axes, size)
        out = StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        # Not `savefig`, which draws once more to lay the figure out before it is drawn.
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(out, metadata=empty)
    return _inline(out.getvalue(), label)


def _fit(axes: Any, size: tuple[float, float]) -> None:
    """Margins just as wide as what stands in them. matplotlib's constrained layout finds the same,
    and takes as long as drawing does."""
    inner, outer = axes.get_window_extent(), axes.get_tightbbox(for_layout_only=True)
    width, height = (72 * inches for inches in size)
    left, bottom = inner.x0 - outer.x0 + PADDING, inner.y0 - outer.y0 + PADDING
    right, top = outer.x1 - inner.x1 + PADDING, outer.y1 - inner.y1 + PADDING
    part = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    axes.set_position(part)


def _inline(svg: str, label: str) -> str:
    """A whole SVG document -> an element for a page."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", svg)
    svg = re.sub(r'(?<= d=")[^"]*', _shorter, svg)
    svg = svg.replace(INK, "currentColor").replace("xlink:href", "href")
    head = re.search(r'viewBox="[^"]*"', svg)
    assert head is not None, "matplotlib wrote an SVG without a viewBox"
    opened = f'<svg {head[0]} role="img" aria-label="{escape(label)}">'
    return opened + re.sub(r"\n\s*\n+", "\n", svg[svg.index(">") + 1 :]).strip()


def _shorter(path: re.Match[str]) -> str:
    """Path data to a tenth of a point, on one line: a third of the bytes."""
    tenths = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path[0])
    return " ".join(tenths.split())


def chart(
    name: str, label: str, heights: tuple[float, float], paint: Callable[[Any, bool], None]
) -> Chart:
    wide = _svg(name, label, (12.4, heights[0]), paint)
    return Chart(wide, _svg(name, label, (4.2, heights[1]), paint), label)


def _time_axis(axes: Any, edges_s: Array) -> float:
    """Label the time axis; returns the seconds of its unit."""
    minutes = edges_s[-1] < 7200
    unit = 60.0 if minutes else 3600.0
    axes.set_xlabel(f"simulated time, {'minutes' if minutes else 'hours'}")
    axes.set_xlim(edges_s[0] / unit, edges_s[-1] / unit)
    return unit


def _steps(axes: Any, values: Array, edges: Array, baseline: Any, **style: Any) -> None:
    """As `axes.stairs` where the axes' limits are known: to find them itself it solves every
    segment of the outline as a curve, which took a quarter of the page's time."""
    from matplotlib.patches import StepPatch

    axes.add_artist(StepPatch(values, edges, baseline=baseline, **style))


def _stacked(axes: Any, edges: Array, parts: Sequence[Array], colours: Sequence[str]) -> None:
    """Stacked steps over the bins, bottom first."""
    below = np.zeros(len(edges) - 1)
    for part, colour in zip(parts, colours, strict=True):
        _steps(axes, below + part, edges, below, fill=True, facecolor=colour, linewidth=0)
        below = below + part


def memory(line: Timeline) -> Chart:
    """What configured memory is made of over time, against machine memory."""

    def paint(axes: Any, wide: bool) -> None:
        unit = _time_axis(axes, line.edges_s)
        parts = [line.stack[name] / GIB for name in STACK]
        _stacked(axes, line.edges_s / unit, parts, list(STACK_COLOURS.values()))
        memory = line.memory / GIB
        edges = line.edges_s / unit
        _steps(axes, memory, edges, None, fill=False, edgecolor=INK, linewidth=2)
        top = float(max(memory.max(), sum(parts).max()))  # type: ignore[union-attr]
        axes.set_ylim(0, 1.06 * top)
        axes.yaxis.set_major_formatter("{x:,.5g}" if top < 10 else "{x:,.0f}")
        axes.set_ylabel("GiB, all hosts")

    peak = max(float(sum(part[i] for part in line.stack.values())) for i in range(len(line.memory)))
    label = (
        "Stacked areas over time: configured memory divided into consumed, shared_saved, "
        "compressed, ballooned, swapped and untouched, with machine memory as a line. "
        f"Configured memory reaches {peak / GIB:,.0f} GiB on {line.memory.max() / GIB:,.0f} GiB."
    )
    return chart("memory", label, (4.4, 3.4), paint)


def levels(line: Timeline) -> Chart:
    """Part of host time in each reclamation state over time."""

    def paint(axes: Any, wide: bool) -> None:
        unit = _time_axis(axes, line.edges_s)
        parts = [line.levels[level] * 100 for level in LEVELS]
        _stacked(axes, line.edges_s / unit, parts, list(LEVEL_COLOURS.values()))
        axes.set_ylim(0, 100)
        axes.set_ylabel("% of hosts")

    worst = max(float(1 - high) for high in line.levels["high"])
    label = (
        f"Strip over time: part of host time in the reclamation states {', '.join(LEVELS)}. "
        f"At the worst moment {percent(worst)} of host time was below high."
    )
    return chart("levels", label, (2.2, 2.3), paint)


def moves(line: Timeline, events: Mapping[str, Array]) -> Chart:
    """Migrations and restarts over time, and when hosts failed."""

    def paint(axes: Any, wide: bool) -> None:
        unit = _time_axis(axes, line.edges_s)
        edges = line.edges_s / unit
        parts = [events[kind] for kind in MOVE_COLOURS]
        _stacked(axes, edges, parts, list(MOVE_COLOURS.values()))
        for at in np.flatnonzero(events["host_failed"]).tolist():
            axes.axvline(edges[at], color=FAILURE_COLOUR, linewidth=1.5, linestyle="--")
        axes.set_ylim(0, 1.1 * max(float(sum(parts).max()), 1))  # type: ignore[union-attr]
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("VMs")

    label = (
        f"Over time: {int(events['migrated'].sum()):,} VMs migrated, "
        f"{int(events['restart'].sum()):,} restarted after "
        f"{int(events['host_failed'].sum()):,} host failures."
    )
    return chart("moves", label, (2.6, 2.4), paint)


def power(line: Timeline) -> Chart:
    """What hosts take over time."""

    def paint(axes: Any, wide: bool) -> None:
        unit = _time_axis(axes, line.edges_s)
        watts = line.power_w / 1000
        _stacked(axes, line.edges_s / unit, [watts], [POWER_COLOUR])
        axes.set_ylim(0, 1.1 * max(float(watts.max()), 1e-3))
        axes.set_ylabel("kW")

    label = (
        f"Power of all hosts over time: {line.power_w.mean() / 1000:,.2f} kW on average with "
        f"{line.hosts.mean():,.1f} hosts on."
    )
    return chart("power", label, (2.2, 2.2), paint)


def free(grid: HostGrid, edges_s: Array) -> Chart:
    """Hosts over time: the least free part of each host's memory, in bands."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    rows = len(grid.groups)

    def paint(axes: Any, wide: bool) -> None:
        unit = _time_axis(axes, edges_s)
        axes.imshow(
            np.clip(grid.free, 0, 0.9999),
            aspect="auto",
            interpolation="nearest",
            cmap=ListedColormap(FREE_COLOURS),
            norm=BoundaryNorm(FREE_BANDS, len(FREE_COLOURS)),
            extent=(edges_s[0] / unit, edges_s[-1] / unit, rows - 0.5, -0.5),
        )
        step = max(1, -(-rows // (20 if wide else 16)))
        ticks = range(0, rows, step)
        width = 18 if wide else 10
        names = [grid.groups[i][0] for i in ticks]
        axes.set_yticks(
            list(ticks), [n if len(n) <= width else n[: width - 1] + "…" for n in names]
        )
        axes.tick_params(axis="y", length=0 if step == 1 else 3)

    low = float(np.nanmin(grid.free))
    label = (
        f"Heat map of {len(grid.hosts)} hosts over time: the least free part of each host's "
        f"memory. The lowest value is {percent(max(low, 0.0))}."
    )
    height = float(np.clip(0.9 + 0.24 * rows, 1.7, 5.6))
    return chart("free", label, (1.2 * height, height), paint)


def distribution(values: Array) -> Chart:
    """Which part of the VMs has at most which slowdown; marks at the 50th and 95th percentile."""
    ordered = np.sort(values)
    n = len(ordered)
    marks = {p: float(ordered[-(-p * n // 100) - 1]) for p in (50, 95)}
    thinned = np.unique(np.linspace(0, n - 1, min(n, 800)).astype(np.int64))
    most = float(ordered[-1])

    def paint(axes: Any, wide: bool) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

        logarithmic = most > 10
        right = max(1.01, 1 + (most - 1) * 1.06)
        x = np.concatenate([[1.0], ordered[thinned], [right]])
        y = np.concatenate([[0.0], (thinned + 1) / n * 100, [100.0]])
        axes.step(x, y, where="post", color="#0072B2", linewidth=2)
        axes.fill_between(x, y, step="post", color="#0072B2", alpha=0.15, linewidth=0)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(7 if wide else 4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.5g}"))
        axes.set_xlim(1, right)
        axes.set_ylim(0, 104)
        axes.set_xlabel("slowdown of a VM over its whole life")
        axes.set_ylabel("% of VMs at or below")
        for p, value in marks.items():
            axes.plot([value, value], [0, p], color=INK, linewidth=1, linestyle="--")
            axes.plot([value], [p], "o", color="#D55E00", markersize=6)
            to_left = (value - 1) > (right - 1) * 0.5 and not logarithmic
            axes.annotate(
                f"p{p}: {slowdown(value)}",
                (value, p),
                xytext=(-9 if to_left else 9, -13),
                textcoords="offset points",
                ha="right" if to_left else "left",
                weight="bold",
            )

    label = (
        f"Cumulative distribution of slowdown over {n:,} VMs: half of them at or below "
        f"{slowdown(marks[50])}, 95 % at or below {slowdown(marks[95])}, "
        f"the worst {slowdown(most)}."
    )
    return chart("slowdown", label, (3.9, 3.2), paint)
