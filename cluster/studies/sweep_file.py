"""A scenario file with a key `sweep`: its points, each a scenario, or all that is wrong with them.

The file is read once. What is wrong with several points in the same way is told once, with the
first of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster import yaml_input
from cluster.scenario_file import Loaded, ScenarioError, check, digest_of, load, read, tuples
from cluster.scenario_problems import from_validation
from cluster.studies.axes import Axis, Change, Point, points, read_axes
from cluster.studies.places import put
from cluster.studies.spec import Sweep
from cluster.yaml_input import Document, InputError, Problem
from hostsim.units import FILE


@dataclass(frozen=True, slots=True)
class Base:
    """A scenario as read, from which others are made by changes."""

    document: Document
    problems: tuple[Problem, ...]
    folder: Path
    data_root: Path | None

    def load(self, changes: Iterable[Change], seed: int) -> Loaded:
        """The scenario with changes. Raises ScenarioError."""
        changed = replace(self.document, data=copy.deepcopy(self.document.data))
        for place, value in (*changes, (("seed",), seed)):
            put(changed.data, place, copy.deepcopy(value))
        return check(changed, self.problems, self.folder, self.data_root, changed=True)

    @property
    def seed(self) -> int:
        """The file's, where it has a valid one."""
        found = self.document.data.get("seed", 1)
        return found if isinstance(found, int) and not isinstance(found, bool) else 1


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep that may run."""

    base: Base
    text: str
    """The file."""
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    digests: tuple[tuple[str, ...], ...]
    """(points, seeds) of the scenarios."""
    warnings: tuple[str, ...]
    name: str
    question: str
    """The first point's, as name."""


def has_sweep(path: Path) -> bool:
    """Whether the file is a scenario with a sweep; False where it cannot be read at all."""
    try:
        data = yaml_input.read(path).data
    except InputError:
        return False
    return isinstance(data, dict) and "sweep" in data


def read_base(path: Path, data_root: Path | None) -> tuple[Base, Any]:
    """The scenario at `path` without its sweep, and the sweep's data. Raises ScenarioError."""
    document, problems = read(path)
    sweep = document.data.pop("sweep", None)
    return Base(document, tuple(problems), path.parent, data_root), sweep


def load_sweep(
    path: Path,
    *,
    data_root: Path | None,
    seed: int | None = None,
    fits: Callable[[Loaded], object] = lambda loaded: None,
) -> SweepPlan:
    """Read and check a sweep, every point of it. Raises ScenarioError with every problem.

    seed: instead of the scenario's. fits: raises InputError for a scenario that cannot be run.
    """
    base, given = read_base(path, data_root)
    document = base.document
    whole = replace(document, data={**document.data, "sweep": given})
    try:
        sweep = Sweep.model_validate(tuples(given), strict=True, context={FILE: True})
    except ValidationError as error:
        problems = from_validation(error, Sweep, whole, ("sweep",))
        raise ScenarioError(document.file, problems) from None
    axes, problems = read_axes(sweep, whole)
    if problems:
        raise ScenarioError(document.file, problems)
    first = base.seed if seed is None else seed
    seeds = tuple(range(first, first + sweep.seeds))
    found = points(axes, sweep, first)
    checked = _check_all(base, axes, found, seeds, fits)
    return SweepPlan(
        base,
        document.text,
        tuple(axes),
        tuple(found),
        seeds,
        digests=tuple(one.digests for one in checked),
        warnings=tuple(dict.fromkeys(text for one in checked for text in one.warnings)),
        name=checked[0].name,
        question=checked[0].question,
    )


def validate(path: Path, data_root: Path | None) -> tuple[tuple[str, ...], str]:
    """Warnings of a scenario file, with or without a sweep, and what to say of it.

    Raises ScenarioError with every problem.
    """
    if not has_sweep(path):
        return load(path, data_root=data_root).warnings, "valid"
    plan = load_sweep(path, data_root=data_root)
    n, seeds = len(plan.points), len(plan.seeds)
    many = f"{n} point{'s' * (n > 1)} with {seeds} seed{'s' * (seeds > 1)}"
    return plan.warnings, f"valid: a sweep of {many}"


def words(axes: Sequence[Axis], point: Point) -> str:
    """A point as people read it: hosts.esx.count 8, placement.policy worst-fit."""
    pairs = zip(axes, point.labels, strict=True)
    return ", ".join(f"{axis.name} {label}" for axis, label in pairs)


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is kept of a valid point: not its trace, nor its hashes."""

    name: str
    question: str
    digests: tuple[str, ...]
    warnings: tuple[str, ...]


def _check_all(
    base: Base,
    axes: Sequence[Axis],
    found: Sequence[Point],
    seeds: Sequence[int],
    fits: Callable[[Loaded], object],
) -> list[_Checked]:
    """Every point's scenario, or each problem once, with where it occurs first."""
    checked: list[_Checked] = []
    seen: dict[Problem, list[Point]] = {}
    for point in found:
        try:
            loaded = base.load(point.changes, seeds[0])
            fits(loaded)
        except InputError as error:
            for problem in error.problems:
                seen.setdefault(problem, []).append(point)
        else:
            of = loaded.scenario
            digests = tuple(digest_with(loaded, seed) for seed in seeds)
            checked.append(_Checked(of.name, of.question, digests, loaded.warnings))
    if seen:
        problems = [
            problem
            if len(where) == len(found)
            else replace(problem, message=f"{problem.message} ({_where(axes, where, found)})")
            for problem, where in seen.items()
        ]
        raise ScenarioError(base.document.file, problems)
    return checked


def digest_with(loaded: Loaded, seed: int) -> str:
    """The scenario's digest, had it been loaded with this seed."""
    scenario = loaded.scenario.model_copy(update={"seed": seed})
    return digest_of(scenario, loaded.trace, loaded.hashes)


def _where(axes: Sequence[Axis], where: Sequence[Point], found: Sequence[Point]) -> str:
    first = words(axes, where[0])
    if len(where) == 1:
        return f"at {first}"
    return f"at {len(where)} of {len(found)} points, first at {first}"
