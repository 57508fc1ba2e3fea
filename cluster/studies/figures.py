"""The numbers of a report by their dotted path, and those of them that people ask for first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster import summary
from cluster.aggregate import Aggregator
from cluster.policy.history import History
from cluster.reports import build

_INPUTS = ("schema", "scenario", "assumptions")
"""Parts of a report that say what was run, not what came of it."""
REFUSED_BY = "vms.refused_by."


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that stands first. style: a function of `summary` that shows it."""

    path: str
    words: str
    style: str = "plain"


KEY_FIGURES = (
    Figure("vms.placed", "VMs placed", "count"),
    Figure("vms.refused", "VMs refused", "count"),
    Figure("consolidation.vms_per_host_mean", "VMs a host"),
    Figure("consolidation.overcommit_configured", "overcommit, mean"),
    Figure("consolidation.overcommit_peak", "overcommit, peak"),
    Figure("cost.slowdown.mean", "slowdown, mean", "slowdown"),
    Figure("cost.slowdown.p50", "slowdown, p50", "slowdown"),
    Figure("cost.slowdown.p95", "slowdown, p95", "slowdown"),
    Figure("cost.slowdown.max", "slowdown, max", "slowdown"),
    Figure("reclaim_states.high", "host time in HIGH", "percent"),
    Figure("memory_gib.configured.mean", "configured, GiB"),
    Figure("memory_gib.consumed.mean", "consumed, GiB"),
    Figure("memory_gib.shared_saved.mean", "shared_saved, GiB"),
    Figure("memory_gib.ballooned.mean", "ballooned, GiB"),
    Figure("memory_gib.swapped.mean", "swapped, GiB"),
    Figure("memory_gib.compressed.mean", "compressed, GiB"),
    Figure("memory_gib.untouched.mean", "untouched, GiB"),
    Figure("memory_gib.free.mean", "free, GiB"),
    Figure("cost.swap_in_pages", "pages swapped in", "count"),
    Figure("cost.swap_out_pages", "pages swapped out", "count"),
    Figure("cost.guest_paging_pages", "pages paged by guests", "count"),
    Figure("migrations.count", "migrations", "count"),
    Figure("failures.vms_restarted", "VMs restarted", "count"),
    Figure("energy.kwh", "energy, kWh"),
)
STYLE_OF = {figure.path: figure.style for figure in KEY_FIGURES}


def leaves(value: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted path, what stands there), in their order."""
    for name, inside in value.items():
        if isinstance(inside, Mapping):
            yield from leaves(inside, f"{under}{name}.")
        else:
            yield f"{under}{name}", inside


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a report that says what came of the run, by its path. Null is left out."""
    outcome = {name: part for name, part in report.items() if name not in _INPUTS}
    return {path: value for path, value in leaves(outcome) if is_number(value)}


def paths() -> list[str]:
    """Every path at which a report may have a number, but the reasons of refusals."""
    about = {"name": "", "seed": 0, "digest": ""}
    report = build(Aggregator([], [], epoch_ms=1000), about, History(), {})
    outcome = {name: part for name, part in report.items() if name not in _INPUTS}
    return [
        path
        for path, value in leaves(outcome)
        if path != "digest" and (value is None or is_number(value))
    ]


def shown(path: str, value: float | None) -> str:
    """A number of a report as people read it."""
    styles = {
        "plain": summary.plain,
        "count": summary.count,
        "slowdown": summary.slowdown,
        "percent": summary.percent,
    }
    if path.startswith("cost.slowdown."):
        return summary.slowdown(value)
    style = "count" if isinstance(value, int) else "plain"
    return styles[STYLE_OF.get(path, style)](value)


def changed(path: str, by: float) -> str:
    """A difference between two numbers of a report as people read it, with its sign."""
    return f"{'+' * (by > 0)}{_changed(path, by)}"


def _changed(path: str, by: float) -> str:
    if STYLE_OF.get(path) == "percent":
        return f"{100 * by:.1f} points"
    if path.startswith("cost.slowdown"):
        return f"{by:.3f}"
    return summary.count(by) if by == int(by) else summary.plain(by)
