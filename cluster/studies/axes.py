"""PURE: what varies in a sweep, and the points that come of it, in an order that is stated.

Axes come in the order of the file, those of `vary` first. Of a product the last axis changes
fastest; a sample is in the order of the product. Equal file and seed give equal points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, prod
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from cluster import scenario_text
from cluster.scenario import Scenario
from cluster.studies.places import NoPlaceError, clash, resolve
from cluster.studies.spec import RANGE, RUNS_MAX, Sweep
from cluster.trace_vms import below
from cluster.yaml_input import Document, Place, Problem, path_text, shown
from hostsim.units import FILE

VALUES_MAX = 1000
"""Values of one axis."""
_LABEL_MAX = 40
Change = tuple[Place, Any]


@dataclass(frozen=True, slots=True)
class Axis:
    """Something that varies. labels, changes: one for each of its values."""

    name: str
    labels: tuple[str, ...]
    changes: tuple[tuple[Change, ...], ...]
    numbers: tuple[float, ...] | None
    """The values as numbers, of one unit; None where they are not quantities."""


@dataclass(frozen=True, slots=True)
class Point:
    """One scenario of a sweep. labels: its value on each axis."""

    labels: tuple[str, ...]
    changes: tuple[Change, ...]


class _AxisError(ValueError):
    """What is wrong with one axis; `at` is where, below the axis."""

    def __init__(self, message: str, at: Place = ()) -> None:
        super().__init__(message)
        self.at = at


def read_axes(sweep: Sweep, document: Document) -> tuple[list[Axis], list[Problem]]:
    """The axes of a sweep whose form is checked, and all that is wrong with them."""
    given = document.data["sweep"]
    axes: list[Axis] = []
    problems: list[Problem] = []
    made = {"vary": _of_path, "variants": _of_variants}
    for key, make in made.items():
        for name, values in given.get(key, {}).items():
            try:
                axes.append(make(name, values, document.data))
            except _AxisError as error:
                path: Place = ("sweep", key, name, *error.at)
                why = str(error)
                problems.append(Problem(path_text(path), document.line(path), "", why))
    problems += _together(axes, sweep, document)
    return axes, problems


def _place(path: str, data: Mapping[str, Any], at: Place = ()) -> Place:
    try:
        place = resolve(path, {key: value for key, value in data.items() if key != "sweep"})
    except NoPlaceError as error:
        raise _AxisError(str(error), at) from None
    if place == ("seed",):
        raise _AxisError("seed does not vary as other values do: seeds says how many there are", at)
    return place


def _of_path(path: str, values: Any, data: Mapping[str, Any]) -> Axis:
    place = _place(path, data)
    annotation = scenario_text.at(Scenario, place)
    if isinstance(values, dict) and sorted(values) == sorted(RANGE):
        listed = list(_of_range(annotation, values))
    elif isinstance(values, list):
        listed = values
    else:
        raise _AxisError("must be a list of values, or a range {from: , to: , step: }")
    if not 1 <= len(listed) <= VALUES_MAX:
        raise _AxisError(f"must have 1 to {VALUES_MAX} values, not {len(listed)}")
    changes = tuple(((place, value),) for value in listed)
    return Axis(path, _unlike(listed), changes, _numbers(annotation, listed))


def _of_variants(name: str, variants: Any, data: Mapping[str, Any]) -> Axis:
    if not variants:
        raise _AxisError("must have at least one variant")
    changes = []
    for label, values in variants.items():
        places = [_place(path, data, (label, path)) for path in values]
        found = clash(places)
        if found is not None:
            first, second = (list(values)[at] for at in found)
            raise _AxisError(f"{second} is {first}, or inside the other", (label, second))
        changes.append(tuple(zip(places, values.values(), strict=True)))
    return Axis(name, tuple(variants), tuple(changes), None)


def _together(axes: Sequence[Axis], sweep: Sweep, document: Document) -> Iterator[Problem]:
    """What must hold between axes."""

    def problem(why: str, *path: str) -> Problem:
        return Problem(path_text(("sweep", *path)), document.line(("sweep", *path)), "", why)

    written = [(axis.name, place) for axis in axes for place in _places(axis)]
    found = clash([place for _, place in written])
    if found is not None:
        (first, one), (second, other) = (written[at] for at in found)
        why = f"axis {shown(second)} varies {path_text(other)}, and axis {shown(first)} "
        yield problem(f"{why}{path_text(one)}: one value cannot vary twice")
    lengths = {len(axis.labels) for axis in axes}
    if sweep.mode == "zip" and len(lengths) > 1:
        counts = ", ".join(f"{axis.name} {len(axis.labels)}" for axis in axes)
        yield problem(f"zip needs axes with equally many values, not {counts}", "mode")
    n = count(axes, sweep)
    whole = prod(len(axis.labels) for axis in axes)
    if n > whole:
        yield problem(f"must be at most the {whole} combinations that there are", "points")
    if n * sweep.seeds > RUNS_MAX:
        why = f"{n} points with {sweep.seeds} seeds are more than {RUNS_MAX} runs"
        yield problem(f"{why}; mode sample takes some of the points")


def _places(axis: Axis) -> list[Place]:
    """The places that an axis writes, each once."""
    return list(dict.fromkeys(place for changes in axis.changes for place, _ in changes))


def count(axes: Sequence[Axis], sweep: Sweep) -> int:
    """How many points there are."""
    if sweep.mode == "zip":
        return min((len(axis.labels) for axis in axes), default=0)
    return sweep.points or prod(len(axis.labels) for axis in axes)


def points(axes: Sequence[Axis], sweep: Sweep, seed: int) -> list[Point]:
    """The points of a sweep, in their order."""
    n, whole = count(axes, sweep), prod(len(axis.labels) for axis in axes)
    if sweep.mode == "zip":
        return [_point(axes, [at] * len(axes)) for at in range(n)]
    chosen = _sample(n, whole, seed) if sweep.mode == "sample" else range(whole)
    return [_point(axes, _digits(at, [len(axis.labels) for axis in axes])) for at in chosen]


def _point(axes: Sequence[Axis], at: Sequence[int]) -> Point:
    chosen = list(zip(axes, at, strict=True))
    labels = tuple(axis.labels[i] for axis, i in chosen)
    return Point(labels, tuple(change for axis, i in chosen for change in axis.changes[i]))


def _digits(number: int, bases: Sequence[int]) -> list[int]:
    """A position in the product -> the position on each axis, the last one fastest."""
    found = []
    for base in reversed(bases):
        number, digit = divmod(number, base)
        found.append(digit)
    return found[::-1]


def _sample(n: int, whole: int, seed: int) -> list[int]:
    """n different numbers below `whole`, sorted (Floyd's algorithm: no list of all of them)."""
    chosen: dict[int, None] = {}
    for last in range(whole - n, whole):
        drawn = below(seed, "sweep", str(last), last + 1)
        chosen[last if drawn in chosen else drawn] = None
    return sorted(chosen)


def _of_range(annotation: Any, given: Mapping[str, Any]) -> Iterator[Any]:
    """from, from + step, ... up to `to`, as a scenario file would write them."""
    unit = scenario_text.unit_of(annotation)
    first, last, step = (_exactly(unit, key, given[key]) for key in RANGE)
    if len({kind for kind, _ in (first, last, step)}) > 1:
        raise _AxisError("from, to and step must be of one kind")
    if step[1] <= 0 or last[1] < first[1]:
        raise _AxisError("needs a step above 0, and to at or above from")
    whole = all(value == int(value) for _, value in (first, step))
    for i in range(min(int((last[1] - first[1]) / step[1]), VALUES_MAX) + 1):
        value = first[1] + i * step[1]
        if unit is None:
            yield int(value) if whole else float(value)
        else:
            exact = int(value) if first[0] is None else (first[0], int(value))
            yield scenario_text.text(annotation, exact)


def _exactly(unit: Any, key: str, value: Any) -> tuple[Any, Decimal]:
    """A number, with its kind where the unit has several."""
    if unit is None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not isfinite(value):
            raise _AxisError("must be a number: what varies here is one", (key,))
        return None, Decimal(str(value))
    try:
        reader: TypeAdapter[Any] = TypeAdapter(Annotated[Any, BeforeValidator(unit)])
        found = reader.validate_python(value, context={FILE: True})
    except ValidationError as error:
        raise _AxisError(str(error.errors()[0]["ctx"]["error"]), (key,)) from None
    return (found[0], Decimal(found[1])) if isinstance(found, tuple) else (None, Decimal(found))


def _numbers(annotation: Any, values: Sequence[Any]) -> tuple[float, ...] | None:
    """Values as numbers of one kind, None where one of them is none."""
    unit = scenario_text.unit_of(annotation)
    try:
        found = [_exactly(unit, "", value) for value in values]
    except _AxisError:
        return None
    return tuple(float(n) for _, n in found) if len({kind for kind, _ in found}) == 1 else None


def _unlike(values: Sequence[Any]) -> tuple[str, ...]:
    """Values as short texts, no two alike."""
    texts: list[str] = []
    for value in values:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = text if len(text) <= _LABEL_MAX else f"{text[: _LABEL_MAX - 1]}…"
        texts.append(text if text not in texts else f"{text} ({len(texts) + 1})")
    return tuple(texts)
