"""PURE: what the trials of a search say together: one answer, its interval, and the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.studies.search import Knee, knee_of, violations
from cluster.summary import count, plain

Tried = Mapping[int, Mapping[int, bool]]
"""Seed -> load -> whether it held."""


@dataclass(frozen=True, slots=True)
class Answer:
    """holds: the largest load at which every seed holds; None where some seed holds at none.

    least, most: the range of the seeds' knees (most: of those that have one). first: seed and load
    of the lowest failure of the seed that fails first; None where none fails. open_end: some seed
    holds at the highest load there is; at_end: every one does.
    """

    holds: int | None
    least: int | None
    most: int | None
    first: tuple[int, int] | None
    open_end: bool
    at_end: bool
    violations: tuple[tuple[int, int], ...]


def answer(tried: Tried) -> Answer:
    """The answer of a search that is over. Ties go to the lower seed."""
    knees = {seed: knee_of(its) for seed, its in tried.items()}
    known = [knee.holds for knee in knees.values() if knee.holds is not None]
    failing = [(knee.fails, seed) for seed, knee in knees.items() if knee.fails is not None]
    first = min(failing, default=None)
    least = min(known) if len(known) == len(knees) else None
    return Answer(
        holds=least,
        least=min(known, default=None),
        most=max(known, default=None),
        first=None if first is None else (first[1], first[0]),
        open_end=len(failing) < len(knees),
        at_end=not failing,
        violations=tuple((seed, load) for seed, its in tried.items() for load in violations(its)),
    )


def knees_of(tried: Tried) -> dict[int, Knee]:
    """Each seed's."""
    return {seed: knee_of(its) for seed, its in tried.items()}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sentence needs to know. The numbers are means over the seeds at the answer."""

    kind: str
    level: int | None
    least: int | None
    most: int | None
    """Levels, least below most."""
    seeds: int
    hosts: int
    vms: float
    """Placed in all."""
    each: float | None
    """VMs a host, mean over time."""
    overcommit: float | None
    slos: Sequence[str]
    oversized: int
    """VMs that are larger than any host."""
    open_end: bool
    at_end: bool
    why_end: str
    lowest: int
    """The easiest level that there is."""


def sentence(facts: Facts, bound: Mapping[str, Any]) -> str:
    """The answer in one sentence."""
    goal = f"with {' and '.join(facts.slos)}"
    if facts.level is None:
        easiest = _level(facts.kind, facts.lowest)
        text = f"Not even {easiest} will do {goal}"
    else:
        text = f"{_fitting(facts)} {goal}"
        if facts.kind != "overcommit":
            text += " and no VM refused"
            text += f" but {facts.oversized} larger than any host" * bool(facts.oversized)
        text += _interval(facts)
    if facts.at_end:
        return f"{text}; it may be more, but {facts.why_end}."
    what, after = bound["binds"], bound["next"]
    if what is None:
        return f"{text}."
    beyond = "with fewer" if facts.kind == "hosts" else "beyond"
    text += f"; {beyond}, {what['what']} binds ({what['evidence']})"
    return text + (f", then {after['what']} ({after['evidence']})." if after else ".")


def _level(kind: str, level: int) -> str:
    if kind == "overcommit":
        return f"an overcommit of {level / 100:.2f}"
    noun = "VM" if kind == "vms" else "host"
    return f"{count(level)} {noun}{'' if level == 1 else 's'}"


def _fitting(facts: Facts) -> str:
    assert facts.level is not None
    times = f"overcommit {plain(facts.overcommit)} at the peak"
    each = f"{plain(facts.each)} VMs a host on average, {times}"
    hosts = _level("hosts", facts.hosts)
    if facts.kind == "vms":
        start = "At least " if facts.at_end else ""
        return f"{start}{_level('vms', facts.level)} fit on {hosts} ({each})"
    if facts.kind == "hosts":
        start = f"{count(facts.level)} host{' is' if facts.level == 1 else 's are'}"
        enough = "enough" if facts.at_end else "needed"
        return f"{start} {enough} for {_level('vms', round(facts.vms))} ({each})"
    start = "at least " if facts.at_end else ""
    return f"Overcommit is safe up to {start}{facts.level / 100:.2f} on {hosts} ({each})"


def _interval(facts: Facts) -> str:
    assert facts.least is not None and facts.most is not None
    if facts.seeds == 1:
        return ", for the one seed tried"
    low, high = count(facts.least), count(facts.most)
    if facts.kind == "overcommit":
        low, high = f"{facts.least / 100:.2f}", f"{facts.most / 100:.2f}"
    if facts.open_end and facts.kind == "hosts":
        low = f"at most {low}"
    elif facts.open_end:
        high = f"at least {high}"
    if facts.least == facts.most:
        return f", for each of {facts.seeds} seeds alike"
    return f", for each of {facts.seeds} seeds ({low} to {high} by seed)"
