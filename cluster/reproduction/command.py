"""`esxsim reproduce`: experiments over seeds in all processors, judged, shown and written down.

One process runs one seed of one experiment; what it gives does not depend on which process that
is, nor on how many there are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cluster import log
from cluster.files import write_text
from cluster.log import LOG
from cluster.reproduction.claims import Observation, judge
from cluster.reproduction.experiment import Experiment
from cluster.reproduction.experiments import EXPERIMENTS
from cluster.reproduction.lab import Lab
from cluster.reproduction.page import page, simulated
from cluster.scenario_problems import listed
from cluster.yaml_input import InputError, Problem, shown
from hostsim.host import warm

SCENARIOS = Path(__file__).parents[2] / "scenarios" / "osdi02"
FIRST_SEED = 1


def run(names: Sequence[str], out: Path, seeds: int | None, data: Path) -> bool:
    """Run the experiments named (all without names); whether every claim holds.

    seeds: how many each experiment takes where anything is random; None: its own number. Writes
    reproduction.json and reproduction.html into `out`. Raises InputError for a name that is not
    known.
    """
    lab = Lab(SCENARIOS, data)
    chosen = _chosen(names)
    skipped = {one.title: why for one in chosen if (why := one.missing(lab)) is not None}
    chosen = [one for one in chosen if one.title not in skipped]
    counts = {one.name: _seeds(one, seeds) for one in chosen}
    out.mkdir(parents=True, exist_ok=True)
    seen = _observe(lab, chosen, counts)
    done = []
    for one in chosen:
        observations = [seen[one.name, seed] for seed in _range(counts[one.name])]
        done.append((one, [judge(claim, observations) for claim in one.claims], observations))
    rows = [row for _, some, _ in done for row in some]
    write_text(out / "reproduction.json", json.dumps(rows, indent=2, allow_nan=False) + "\n")
    write_text(out / "reproduction.html", page(done, skipped))
    _show(rows, skipped)
    return all(row["holds"] for row in rows)


def _chosen(names: Sequence[str]) -> list[Experiment]:
    known = {one.name: one for one in EXPERIMENTS}
    for name in names:
        if name not in known:
            fault = Problem("NAME", None, shown(name), f"is not known: {listed(list(known))}")
            raise InputError("reproduce", [fault])
    return [one for one in EXPERIMENTS if not names or one.name in names]


def _seeds(experiment: Experiment, asked: int | None) -> int:
    return experiment.seeds if asked is None or experiment.seeds == 1 else asked


def _range(n: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + n)


def _observe_one(name: str, lab: Lab, seed: int) -> Observation:
    """One seed of an experiment, in a process of its own."""
    experiment = next(one for one in EXPERIMENTS if one.name == name)
    return experiment.observe(lab, seed)


def _observe(
    lab: Lab, chosen: Sequence[Experiment], counts: dict[str, int]
) -> dict[tuple[str, int], Observation]:
    """Every experiment at every one of its seeds."""
    total = sum(counts.values())
    with _progress(total) as note:
        warm(note)
        spawn = multiprocessing.get_context("spawn")
        workers = max(1, min(total, len(os.sched_getaffinity(0))))
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            asked: dict[Future[Observation], tuple[str, int]] = {
                pool.submit(_observe_one, one.name, lab, seed): (one.name, seed)
                for one in chosen
                for seed in _range(counts[one.name])
            }
            seen = {}
            try:
                for future in as_completed(asked):
                    seen[asked[future]] = future.result()
                    note(asked[future][0])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return seen


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, a line now and then elsewhere; called with the name of what is done."""
    console = Console(stderr=True)
    n = 0
    if not console.is_terminal or log.form() == "json":

        def line(text: str) -> None:
            nonlocal n
            is_done = any(text == one.name for one in EXPERIMENTS)
            n += is_done
            if not is_done or n % 5 == 0 or n == total:
                LOG.info("%d of %d runs done: %s", n, total, text)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reproduce", total=total)

        def step(text: str) -> None:
            is_done = any(text == one.name for one in EXPERIMENTS)
            bar.update(task, description=text, advance=1 if is_done else 0)

        yield step


def _show(rows: Sequence[dict[str, Any]], skipped: dict[str, str]) -> None:
    """The table, as wide as what it stands on."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "claim", "source", "expected", "simulated", "tolerance", "holds"):
        table.add_column(name, overflow="fold")
    for row in rows:
        words = [str(row[name]) for name in ("id", "claim", "source", "expected")]
        words += [simulated(row), row["tolerance"]]
        holds = Text("yes") if row["holds"] else Text("NO", "bold red")
        table.add_row(*map(Text, words), holds)  # as text: brackets in it are no markup
    console = Console()
    if not console.is_terminal or log.form() == "json":
        console = Console(width=160)
    console.print(table)
    for title, why in skipped.items():
        console.print(f"skipped: {title}: {escape(why)}")
    held = sum(row["holds"] for row in rows)
    console.print(f"{held} of {len(rows)} claims hold")
