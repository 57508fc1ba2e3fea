"""Which checkpoint of a run folder a run goes on from, and why none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cluster import checkpoint, standing, tables
from cluster.checkpoint import RUN_FILE, Checkpoint, CheckpointError
from cluster.files import OutputError
from cluster.population import Population
from cluster.readback import json_object
from cluster.scenario_file import Loaded
from cluster.standing import Standing
from hostsim.packing import PackingError


class Resumption(NamedTuple):
    """Where a run goes on. problems: why newer checkpoints are not used."""

    checkpoint: Checkpoint
    standing: Standing
    problems: tuple[str, ...]


def find(out: Path, loaded: Loaded, population: Population) -> Resumption:
    """The newest good checkpoint in the run folder `out`. Raises CheckpointError."""
    found = _newest(out, loaded, population)
    if isinstance(found, Resumption):
        return found
    why = "; ".join(found) or "there is none"
    raise CheckpointError(f"{out}: no checkpoint to go on from: {why}")


def find_any(out: Path, loaded: Loaded, population: Population) -> Resumption | None:
    """The same, or None: the run begins again."""
    found = _newest(out, loaded, population)
    return found if isinstance(found, Resumption) else None


def whole_report(out: Path, loaded: Loaded) -> dict[str, Any] | None:
    """The report of the run in `out`, if it came to its end; None if it did not, or is not there.

    Raises OutputError where another scenario was run.
    """
    if not out.is_dir():
        return None
    manifest, report = (json_object(out / name) for name in ("manifest.json", "report.json"))
    if report is None:
        return None
    held = report.get("scenario")
    if not isinstance(held, dict) or held.get("digest") != loaded.digest:
        raise OutputError(f"{out} holds a run of another scenario, or of another seed")
    return report if manifest is not None and manifest.get("partial") is False else None


def _newest(out: Path, loaded: Loaded, population: Population) -> Resumption | list[str]:
    """The newest good checkpoint, or why each one is none."""
    problems: list[str] = []
    for one in checkpoint.candidates(out, checkpoint.identity(loaded.digest), problems):
        try:
            where = standing.unpack(one.read(RUN_FILE), loaded, population)
        except (PackingError, CheckpointError) as error:
            problems.append(f"{one.path}: {error}")
            continue
        why = tables.why_not_behind(out, where.written)
        missing = [h for h in population.hosts if checkpoint.host_file(h.host) not in one.files]
        if why is None and missing:
            why = f"{one.path} has no host {missing[0].name}"
        if why is None:
            return Resumption(one, where, tuple(problems))
        problems.append(why)
    return problems
