"""`esxsim compare`: what differs between runs in the scenario, and what that did to the outcome.

Runs that differ in their seed alone are one group. Groups are held against the first: with two
seeds or more on both sides, Welch's t test tells what is beyond the seeds' noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster import readback, scenario_text, yaml_input
from cluster.files import OutputError, write_json
from cluster.scenario import Scenario
from cluster.scenario_file import tuples
from cluster.scenario_paths import inside
from cluster.studies import store
from cluster.studies.figures import KEY_FIGURES, REFUSED_BY, numbers
from cluster.studies.statistics import difference, spread
from cluster.tables import check_usable
from hostsim.units import FILE

SCHEMA = 1
ABSENT = "not given"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is done. scenario: path -> value in words, without the seed."""

    folder: Path
    seed: int
    digest: str
    scenario: Mapping[str, Any]
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    runs: tuple[Run, ...]


def run_folders(given: Sequence[Path]) -> list[Path]:
    """The run folders among folders of runs and of studies. Raises OutputError."""
    found: list[Path] = []
    for folder in given:
        if store.is_study(folder):
            runs = _of_study(folder)
            if not runs:
                raise OutputError(f"{folder} is the folder of a study without any run")
            found += runs
        else:
            found.append(folder)
    return list(dict.fromkeys(found))


def _of_study(folder: Path) -> list[Path]:
    """The runs of a sweep in the order of its points; without a table, all that are there."""
    table = readback.json_object(folder / "results.json")
    if table is None:
        return sorted((folder / store.POINTS).glob("[!.]*"))
    try:
        runs = [run["folder"] for point in table["points"] for run in point["runs"]]
        return [inside(folder, name, str(folder)) for name in runs if name is not None]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = f"{folder / 'results.json'} is not what this esxsim wrote: {error}"
        raise OutputError(why) from error


def read_run(folder: Path) -> Run:
    """A run from its folder. Raises OutputError, and InputError for its scenario."""
    manifest = store.manifest_of(folder)
    if "esxsim" not in manifest:
        raise OutputError(f"{folder} is not a run folder: it has no manifest.json of esxsim")
    report = readback.report(folder / "report.json")
    if report is None or report["digest"] is None:
        raise OutputError(f"{folder} is of a run that ended early: there is nothing to compare")
    document = yaml_input.read(folder / "scenario.yaml")
    if not isinstance(document.data, dict):
        raise OutputError(f"{folder / 'scenario.yaml'} holds no scenario")
    stated = in_words(document.data)
    stated.pop("seed", None)
    return Run(folder, report["scenario"]["seed"], report["digest"], stated, numbers(report))


def in_words(data: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario as path -> value, with its defaults, equal quantities in equal words; as it is
    written where this esxsim does not take it."""
    try:
        scenario = Scenario.model_validate(tuples(data), strict=True, context={FILE: True})
    except ValidationError:
        return dict(flat(data))
    return dict(flat(scenario_text.in_words(Scenario, scenario)))


def flat(value: Any, under: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted path; elements of lists by their name, where each has one of its own."""
    if isinstance(value, Mapping) and value:
        for key, inside in value.items():
            yield from flat(inside, f"{under}.{key}" if under else str(key))
    elif isinstance(value, list) and value:
        names = [item.get("name") if isinstance(item, Mapping) else None for item in value]
        named = None not in names and len(set(names)) == len(names)
        for at, inside in enumerate(value):
            yield from flat(inside, f"{under}.{names[at] if named else at}")
    else:
        yield under, value


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of equal scenarios together, in the order in which they are given.

    A run that is given twice counts once. Runs with equal scenario and seed that gave something
    else (other input files, another simulator) are of different groups.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if group[0].scenario != run.scenario:
                continue
            same_seed = [one for one in group if one.seed == run.seed]
            if not same_seed:
                group.append(run)
            if not same_seed or same_seed[0].digest == run.digest:
                break
        else:
            groups.append([run])
    labels = _labels()
    return [Group(next(labels), tuple(group)) for group in groups]


def _labels() -> Iterator[str]:
    """A, B, ..., Z, A2, B2, ..."""
    for turn in count(1):
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            yield letter if turn == 1 else f"{letter}{turn}"


def compared(groups: Sequence[Group]) -> dict[str, Any]:
    """All of compare.json."""
    return {
        "schema": SCHEMA,
        "groups": [
            {
                "label": group.label,
                "folders": [str(run.folder) for run in group.runs],
                "seeds": [run.seed for run in group.runs],
            }
            for group in groups
        ],
        "scenario": _differing(groups),
        "outcome": [_outcome(path, groups) for path in _paths(groups)],
    }


def _differing(groups: Sequence[Group]) -> list[dict[str, Any]]:
    stated = [group.runs[0].scenario for group in groups]
    paths = dict.fromkeys(path for one in stated for path in one)
    rows = [{"path": path, "values": [one.get(path, ABSENT) for one in stated]} for path in paths]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _paths(groups: Sequence[Group]) -> list[str]:
    """Paths of numbers: those that people ask for first, then in the order of reports."""
    runs = [run for group in groups for run in group.runs]
    there = dict.fromkeys(path for run in runs for path in run.numbers)
    first = [figure.path for figure in KEY_FIGURES if figure.path in there]
    return list(dict.fromkeys([*first, *there]))


def _outcome(path: str, groups: Sequence[Group]) -> dict[str, Any]:
    absent = 0 if path.startswith(REFUSED_BY) else None
    sides = []
    for group in groups:
        values = [run.numbers.get(path, absent) for run in group.runs]
        sides.append([value for value in values if value is not None])
    return {
        "path": path,
        "groups": [asdict(spread(side)) if side else None for side in sides],
        "differences": [
            asdict(difference(sides[0], side)) if sides[0] and side else None for side in sides[1:]
        ],
    }


def verdict(found: Mapping[str, Any] | None) -> str:
    """What a difference is worth, in words."""
    if found is None:
        return "not known"
    if found["beyond_noise"] is None:
        return "noise unknown" if found["mean"] else "equal"
    if not found["mean"]:
        return "equal"
    return "beyond noise" if found["beyond_noise"] else "within noise"


def run(folders: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Compare. Writes compare.json into `out`, if given. Raises OutputError."""
    runs = [read_run(folder) for folder in run_folders(folders)]
    if out is not None and not (out / "compare.json").exists():
        if out.is_dir() and any(out.iterdir()):
            raise OutputError(f"{out} is not empty and holds no comparison: name another folder")
        check_usable(out)
    groups = grouped(runs)
    if len(groups) < 2:
        raise OutputError("there is one scenario only: nothing to compare it with")
    found = compared(groups)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot use {out} for results: {error.strerror}") from error
        write_json(out / "compare.json", found)
    return found
