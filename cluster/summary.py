"""The report in words: numbers with units for people, the answer in two sentences, a short summary.

Everything here reads the dict of report.json and nothing else. Null is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.messages import CAUSES, LEVELS

DASH = "-"
Number = float | int | None
MEMORY_ROWS = (
    *("configured", "allocated", "consumed", "active", "shared_saved", "ballooned", "swapped"),
    *("compressed", "nvme", "free"),
)
"""Memory that the summary shows, compressed and nvme where there is any; report.json has more."""
CAUSE_WORDS = {
    "swap_in": "host swap-in",
    "guest_paging": "guest paging",
    "cow": "copy-on-write",
    "scan": "page scanning",
    "blocked": "blocked in LOW",
    "migration": "migration",
    "cpu": "CPU contention",
    "decompress": "decompression",
    "tier": "memory on NVMe",
}
"""Causes of lost time as people read them."""


def plain(value: Number, digits: int = 3) -> str:
    """About `digits` significant digits, thousands set apart: 1,024 or 37.5 or 0.26."""
    if value is None:
        return DASH
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, min(digits - max(whole, 1), digits))}f}"


def count(value: Number) -> str:
    """A whole number: 1,234,567."""
    return DASH if value is None else f"{round(value):,}"


def percent(value: Number) -> str:
    """A fraction as a percentage: 12.3 %, and never 0 for what is more than none."""
    if value is None:
        return DASH
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 < value < 1:
        return "> 99.9 %"
    if value in (0, 1):
        return f"{value:.0%}".replace("%", " %")
    return f"{100 * value:.1f} %"


def slowdown(value: Number) -> str:
    """1.043, 2.35, 17.1, 1000: more digits near one, where they matter."""
    return DASH if value is None else f"{value:.3f}" if value < 2 else plain(value).replace(",", "")


def hours(seconds: Number) -> str:
    """Simulated time in the unit that reads best."""
    if seconds is None:
        return DASH
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{plain(seconds / length)} {unit}".replace(".00 ", " ").replace(".0 ", " ")
    return f"{plain(seconds)} s".replace(".00 ", " ").replace(".0 ", " ")


def clock(seconds: float) -> str:
    """A moment of the run: 5:03:20, or 2 d 5:03:20."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    day, hour = divmod(hour, 24)
    return f"{f'{day} d ' if day else ''}{hour}:{minute:02}:{second:02}"


def reasons(refused_by: Mapping[str, int]) -> str:
    """Refusals by reason, most frequent first (ties: by name)."""
    ordered = sorted(refused_by.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason}: {count(n)}" for reason, n in ordered)


def answer(report: Mapping[str, Any]) -> str:
    """How many VMs fitted, and what it cost them."""
    hosts, vms, fit = report["hosts"], report["vms"], report["consolidation"]
    cost = report["cost"]["slowdown"]
    where = f"{count(hosts['count'])} host{'' if hosts['count'] == 1 else 's'}"
    fitted = (
        f"{count(vms['placed'])} of {count(vms['submitted'])} VMs found a place on {where} with "
        f"{plain(hosts['memory_gib'])} GiB of memory"
    )
    if fit["overcommit_configured"] is None or cost["p50"] is None:
        return f"{fitted}. None of them ran."
    fitted += (
        f"; the sizes of those that were on added up to "
        f"{plain(fit['overcommit_configured'])} times that memory on average and "
        f"{plain(fit['overcommit_peak'])} times at the peak. "
    )
    if cost["max"] < 1.0005:
        return f"{fitted}None of the VMs needed as much as 0.1 % more time for it."
    return (
        f"{fitted}Half of the VMs were slowed down by a factor of {slowdown(cost['p50'])} or less, "
        f"95 % by {slowdown(cost['p95'])} or less, the worst by {slowdown(cost['max'])}."
    )


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """A short summary for the terminal, plain text."""
    hosts, vms, fit = report["hosts"], report["vms"], report["consolidation"]
    cost = report["cost"]
    lines = [
        f"{report['scenario']['name']} (seed {report['scenario']['seed']}): "
        f"{hours(report['simulated_s'])} simulated on {count(hosts['count'])} "
        f"host{'' if hosts['count'] == 1 else 's'} with "
        f"{plain(hosts['memory_gib'])} GiB"
    ]
    if report["partial"]:
        lines.append("PARTIAL: the run ended early; this is what it had by then")
    refused = f"{count(vms['refused'])} refused"
    if vms["refused_by"]:
        refused += f" ({reasons(vms['refused_by'])})"
    waiting = f", {count(vms['waiting'])} waiting" if vms["waiting"] else ""
    lines += [
        f"VMs            {count(vms['submitted'])} submitted, {count(vms['placed'])} placed, "
        f"{refused}{waiting}, {count(vms['completed'])} completed",
        f"Consolidation  {plain(fit['vms_per_host_mean'])} VMs a host on average, at most "
        f"{count(fit['vms_per_host_max'])}; overcommit {plain(fit['overcommit_configured'])}, "
        f"peak {plain(fit['overcommit_peak'])}",
        f"Memory, GiB    {'mean':>10}{'p95':>10}{'max':>10}",
    ]
    for name in MEMORY_ROWS:
        row = report["memory_gib"][name]
        if name in ("compressed", "nvme") and not row["max"]:
            continue
        cells = "".join(f"{plain(row[column]):>10}" for column in ("mean", "p95", "max"))
        lines.append(f"  {name:<13}{cells}")
    states = report["reclaim_states"]
    levels = [f"{level} {percent(states[level])}" for level in LEVELS if level in states]
    lines.append(f"Host time      {', '.join(levels)}")
    return lines + _cost_lines(report, cost)


def _cost_lines(report: Mapping[str, Any], cost: Mapping[str, Any]) -> list[str]:
    spread = cost["slowdown"]
    parts = [f"{name} {slowdown(spread[name])}" for name in ("p50", "p95", "max")]
    lost = cost["slowdown_by_cause"]
    causes = sorted((c for c in CAUSES if lost[c]), key=lambda c: (-lost[c], CAUSES.index(c)))
    words = ", ".join(f"{CAUSE_WORDS[cause]} {percent(lost[cause])}" for cause in causes)
    lines = [
        f"Slowdown       {', '.join(parts)} over VMs",
        f"  time lost to {words or 'nothing'}",
        f"Swap           {count(cost['swap_out_pages'])} pages out, "
        f"{count(cost['swap_in_pages'])} pages in",
    ]
    error = report["error"]
    if error["sample"] > 1:
        lines.append(
            f"Sampling       1 page in {error['sample']}; standard error: shared_saved "
            f"{percent(error['shared_saved_rel_std'])}, consumed "
            f"{percent(error['consumed_rel_std'])}, swapped {percent(error['swapped_rel_std'])}"
        )
    if report["digest"]:
        lines.append(f"Digest         {report['digest']}")
    return lines
