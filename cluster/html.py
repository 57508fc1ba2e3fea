"""report.html: one page from the files of a run folder alone, so it can be rebuilt at any time.

The page needs no network, no script and no other file. All text of a scenario (names, reasons,
questions) is data: Jinja2 escapes it, and only our own SVG passes unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cluster import charts, summary
from cluster.aggregate import MEMORY
from cluster.files import write_text
from cluster.messages import CAUSES, LEVELS
from cluster.readback import EVENTS_PER_KIND, Array, Events, HostGrid, RunData, read
from hostsim.units import GIB

TIMES = "\N{MULTIPLICATION SIGN}"
TOP = 20
"""Rows of the tables of the hardest-pressed hosts and the slowest VMs."""
KINDS_MAX = 40
"""Kinds of events that are listed."""


def build(run_dir: Path) -> Path:
    """Write report.html into a run folder, from its files only; the path of the page."""
    path = run_dir / "report.html"
    write_text(path, page(read(run_dir)))
    return path


def page(run: RunData) -> str:
    """The whole page. A run that was killed has neither report nor VM table: those parts go."""
    return render("report.html", _context(run))


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template: all text is data and escaped, but our own SVG."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(
        loader=PackageLoader("cluster"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(
        plain=summary.plain,
        percent=summary.percent,
        slowdown=summary.slowdown,
        hours=summary.hours,
        number=summary.count,
        gib=lambda value: summary.plain(value / GIB),
        svg=Markup,
    )
    return str(jinja.get_template(template).render(context))


def _context(run: RunData) -> dict[str, Any]:
    report = run.report
    name = run.scenario.get("name") or (report["scenario"]["name"] if report else "run")
    return {
        "title": str(name),
        "question": str(run.scenario.get("question") or ""),
        "manifest": _flat(run.manifest),
        "partial": bool(run.manifest.get("partial")),
        "reason": str(run.manifest.get("reason", "")),
        "report": report,
        "answer": summary.answer(report) if report else "",
        "tiles": _tiles(report) if report else [],
        "reasons": _ordered(report["vms"]["refused_by"]) if report else [],
        "causes": _bars(report["cost"]["slowdown_by_cause"], CAUSES) if report else [],
        "levels": _bars(report["reclaim_states"], LEVELS) if report else [],
        "assumptions": _flat(report["assumptions"]) if report else [],
        "memory_names": MEMORY,
        "cause_words": summary.CAUSE_WORDS,
        "stack_colours": charts.STACK_COLOURS,
        "level_colours": charts.LEVEL_COLOURS,
        "move_colours": charts.MOVE_COLOURS,
        "failure_colour": charts.FAILURE_COLOUR,
        "free_bands": _bands(),
        "events": _events(run.events),
        "event_counts": _ordered(run.events.counts)[:KINDS_MAX],
        "events_per_kind": EVENTS_PER_KIND,
        "per_bin": -(-run.timeline.epochs // len(run.timeline.memory)) if run.timeline else 0,
        "hosts": _worst_hosts(run.grid) if run.grid else [],
        "host_count": len(run.grid.hosts) if run.grid else 0,
        "host_groups": len(run.grid.groups) if run.grid else 0,
        "vms": _worst_vms(run.vms) if run.vms else [],
        "charts": _charts(run),
    }


def _charts(run: RunData) -> dict[str, charts.Chart | None]:
    line, grid = run.timeline, run.grid
    ran = _slowdowns(run.vms) if run.vms else np.zeros(0)
    return {
        "memory": charts.memory(line) if line else None,
        "levels": charts.levels(line) if line else None,
        "free": charts.free(grid, line.edges_s) if line and grid else None,
        "slowdown": charts.distribution(ran) if len(ran) else None,
        "moves": charts.moves(line, run.events.over_time) if line and _moved(run) else None,
        "power": charts.power(line) if line and np.ptp(line.hosts) > 0 else None,
    }


def _moved(run: RunData) -> bool:
    """Whether a VM migrated, or a host failed."""
    return any(bins.any() for bins in run.events.over_time.values())


def _slowdowns(vms: Mapping[str, Array]) -> Array:
    """Slowdowns of the VMs that ran; null was read as NaN."""
    values = vms["slowdown"].astype(np.float64)
    return values[np.isfinite(values)]


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key numbers: (value, name, sentence)."""
    return [*_fit_tiles(report), *_price_tiles(report)]


def _fit_tiles(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How many fitted, and how slow they were."""
    plain, count = summary.plain, summary.count
    vms, fit = report["vms"], report["consolidation"]
    slow = {name: summary.slowdown(part) for name, part in report["cost"]["slowdown"].items()}
    refused = f"{count(vms['refused'])} refused" if vms["refused"] else "None was refused"
    waiting = f"; {count(vms['waiting'])} still waited at the end" if vms["waiting"] else ""
    return [
        (
            f"{count(vms['placed'])} / {count(vms['submitted'])}",
            "VMs placed of those submitted",
            f"{refused}{waiting}.",
        ),
        (
            plain(fit["vms_per_host_mean"]),
            "VMs a host",
            f"Mean over time; the fullest host held {count(fit['vms_per_host_max'])}.",
        ),
        (
            f"{plain(fit['overcommit_configured'])} {TIMES}",
            "memory overcommit",
            "Sizes of powered-on VMs over memory of powered-on hosts; "
            f"at the peak {plain(fit['overcommit_peak'])} {TIMES}.",
        ),
        (
            f"{slow['p50']} {TIMES}",
            "median slowdown",
            f"Half of the VMs were at or below it, 95 % at or below {slow['p95']}; the worst "
            f"reached {slow['max']}. Undisturbed is 1.",
        ),
    ]


def _price_tiles(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Where the room came from."""
    plain, percent = summary.plain, summary.percent
    memory = report["memory_gib"]
    high = report["reclaim_states"]["high"]
    configured, saved = memory["configured"]["mean"], memory["shared_saved"]["mean"]
    return [
        (
            f"{plain(saved)} GiB",
            "saved by page sharing",
            f"{percent(saved / configured if configured else None)} of configured memory, mean "
            f"over time; {plain(memory['zero_saved']['mean'])} GiB of it are zero pages.",
        ),
        (
            f"{plain(memory['ballooned']['mean'])} GiB",
            "taken by balloons",
            "Mean over time, given back by the guests themselves; at most "
            f"{plain(memory['ballooned']['max'])} GiB.",
        ),
        (
            f"{plain(memory['swapped']['mean'])} GiB",
            "swapped out by hosts",
            f"Mean over time, at most {plain(memory['swapped']['max'])} GiB; "
            f"{summary.count(report['cost']['swap_in_pages'])} pages had to come back in.",
        ),
        (
            percent(high),
            "of host time in state HIGH",
            f"Free memory was ample then. For {percent(None if high is None else 1 - high)} of "
            "host time it was not.",
        ),
    ]


def _bars(parts: Mapping[str, float | None], order: Iterable[str]) -> list[tuple[str, Any, float]]:
    """(name, part, width in % of the longest bar, or of 1 %), in the given order."""
    longest = max(0.01, *(value or 0.0 for value in parts.values()))
    names = [name for name in order if name in parts]
    return [(name, parts[name], 100 * (parts[name] or 0.0) / longest) for name in names]


def _ordered(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Most frequent first, ties by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flat(values: Mapping[str, Any], under: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted path, text), in the order of the file."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{under}{name}.")
        else:
            found.append((f"{under}{name}", _text(value)))
    return found


def _bands() -> list[tuple[str, str]]:
    """(colour, words) of the heat map."""
    edges = [f"{100 * edge:g}" for edge in charts.FREE_BANDS]
    words = [f"{a} to {b} %" for a, b in pairwise(edges)]
    return list(zip(charts.FREE_COLOURS, words, strict=True))


def _events(events: Events) -> list[tuple[str, str, str]]:
    """(when, kind, facts) of the quoted events."""
    found = []
    for event in events.quoted[: KINDS_MAX * EVENTS_PER_KIND]:
        facts = []
        for name, value in event.items():
            if name in ("at_s", "kind"):
                continue
            if name.endswith("_bytes") and isinstance(value, int | float):
                facts.append(f"{name.removesuffix('_bytes')} {summary.plain(value / GIB)} GiB")
            elif name == "hosts_left" and isinstance(value, dict) and value:
                facts.append(f"room on {min(value.values())} hosts")
            else:
                facts.append(f"{name} {_text(value)}")
        at_s = event.get("at_s")
        when = summary.clock(at_s) if isinstance(at_s, int | float) else summary.DASH
        found.append((when, str(event["kind"]), ", ".join(facts)))
    return found


def _worst_hosts(grid: HostGrid) -> list[dict[str, Any]]:
    """Most time below HIGH first, then least free memory, then the lower id."""
    return sorted(grid.hosts, key=lambda host: (-host["pressed"], host["free_least"]))[:TOP]


def _worst_vms(vms: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Slowest first, ties to the lower id, with the cause that took most of their time."""
    values = np.nan_to_num(vms["slowdown"].astype(np.float64), nan=0.0)
    worst = np.argsort(-values, kind="stable")[:TOP]
    names = ("name", "hosts", "size_bytes", "on_s", "slowdown", "ballooned_mean_bytes")
    found = []
    for i in worst[values[worst] > 0].tolist():
        row = {name: vms[name][i] for name in (*names, "swapped_mean_bytes")}
        lost = [float(vms[f"lost_{cause}_s"][i]) for cause in CAUSES]
        most = int(np.argmax(lost))
        share = lost[most] / row["on_s"] if row["on_s"] else 0.0
        row["cause"] = f"{summary.CAUSE_WORDS[CAUSES[most]]} {summary.percent(share)}"
        found.append(row if lost[most] else {**row, "cause": "none"})
    return found
