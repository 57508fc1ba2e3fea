"""Studies on the terminal: their numbers as tables, as wide as what they stand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.studies.figures import shown
from cluster.summary import DASH

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
