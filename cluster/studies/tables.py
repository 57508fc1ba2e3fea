"""Studies on the terminal: their numbers as tables, as wide as what they stand on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.studies.compare import verdict
from cluster.studies.figures import KEY_FIGURES, changed, shown
from cluster.summary import DASH

WORDS = {figure.path: figure.words for figure in KEY_FIGURES}
SHOWN = (
    ("vms.placed", "placed"),
    ("vms.refused", "refused"),
    ("consolidation.vms_per_host_mean", "VMs a host"),
    ("consolidation.overcommit_configured", "overcommit"),
    ("cost.slowdown.mean", "slowdown mean"),
    ("cost.slowdown.p95", "p95"),
    ("memory_gib.swapped.mean", "swapped, GiB"),
)


def with_interval(path: str, found: Mapping[str, Any] | None) -> str:
    """Mean and half of its 95 % confidence interval: 1.043 ± 0.010."""
    if found is None:
        return DASH
    text = shown(path, found["mean"])
    if not found["std"]:
        return text
    return f"{text} ± {shown(path, found['high'] - found['mean'])}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> None:
    """A table of texts on stdout; its first `words` columns are words, the others numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(header):
        made.add_column(Text(name), overflow="fold", justify="left" if at < words else "right")
    for row in rows:
        made.add_row(*map(Text, row))  # as text: brackets in it are no markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(made)


def show_sweep(results: Mapping[str, Any]) -> None:
    """Each point with its key numbers."""
    axes = [axis["name"] for axis in results["axes"]]
    rows = []
    for point in results["points"]:
        runs = point["runs"]
        done = sum(run["status"] == "done" for run in runs)
        summary = point["summary"]
        numbers = [with_interval(path, summary.get(path)) for path, _ in SHOWN]
        rows.append([*(point["values"][axis] for axis in axes), f"{done}/{len(runs)}", *numbers])
    short = [name.rpartition(".")[2] if name.count(".") else name for name in axes]
    table([*short, "runs", *(words for _, words in SHOWN)], rows, len(axes))


def show_capacity(found: Mapping[str, Any]) -> None:
    """The trials, and the sentence."""
    scale = 100 if found["vary"] == "overcommit" else 1
    rows = []
    for level in sorted({trial["level"] for trial in found["trials"]}):
        its = [trial for trial in found["trials"] if trial["level"] == level]
        held = sum(trial["holds"] for trial in its)
        why = next(("; ".join(trial["why"]) for trial in its if trial["why"]), "")
        rows.append([f"{level / scale:g}", f"{held}/{len(its)}", why])
    header = [found["vary"], "seeds that hold", "why not, of the first that does not"]
    table(header, rows, 0)
    typed = Console()
    typed.print(Text(found["sentence"]))
    if found["violations"]:
        again = [f"{one['level'] / scale:g} (seed {one['seed']})" for one in found["violations"]]
        typed.print(Text(f"More was not always harder: it held again at {', '.join(again)}."))


GROUPS_SHOWN = 6
OTHERS_SHOWN = 20


def show_comparison(found: Mapping[str, Any]) -> None:
    """Who is compared, what differs in the scenario, and in the outcome; the first groups only."""
    groups = found["groups"][:GROUPS_SHOWN]
    labels = [group["label"] for group in groups]
    for group in groups:
        seeds = len(group["seeds"])
        more = f" and {seeds - 1} more" * (seeds > 1)
        Console(soft_wrap=True).print(
            Text(f"{group['label']}: {group['folders'][0]}{more}, {seeds} seed{'s' * (seeds > 1)}")
        )
    rows = [
        [row["path"], *(short(value) for value in row["values"][:GROUPS_SHOWN])]
        for row in found["scenario"]
    ]
    table(["scenario", *labels], rows, 1)
    key = {figure.path for figure in KEY_FIGURES}
    told = [row for row in found["outcome"] if row["path"] in key]
    others = [row for row in found["outcome"] if row["path"] not in key and _beyond(row)]
    header = ["outcome", labels[0]]
    for label in labels[1:]:
        header += [label, f"{label} - {labels[0]}", ""]
    table(header, [_row(row, len(groups)) for row in (*told, *others[:OTHERS_SHOWN])], 1)
    if len(others) > OTHERS_SHOWN:
        print(f"and {len(others) - OTHERS_SHOWN} more numbers: --json has all of them")
    if len(found["groups"]) > GROUPS_SHOWN:
        print(f"{len(found['groups'])} groups in all: --json and --out have all of them")


def short(value: Any) -> str:
    """A value of a scenario, in words."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _beyond(row: Mapping[str, Any]) -> bool:
    """Whether a number differs, and not by what is known to be noise."""
    known = [found for found in row["differences"] if found]
    return any(found["mean"] and found["beyond_noise"] is not False for found in known)


def _row(row: Mapping[str, Any], n: int) -> list[str]:
    path = row["path"]
    cells = [WORDS.get(path, path), with_interval(path, row["groups"][0])]
    for side, found in zip(row["groups"][1:n], row["differences"], strict=False):
        change = DASH if found is None else changed(path, found["mean"])
        cells += [with_interval(path, side), change, verdict(found)]
    return cells
