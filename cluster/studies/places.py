"""Paths such as `hosts.esx.count`: where in a scenario's data they lead, and what may stand there.

A path that leads nowhere is the user's error, and says what there is instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster import scenario_text
from cluster.scenario import Scenario
from cluster.scenario_problems import closest, listed
from cluster.yaml_input import Place, path_text, shown


class NoPlaceError(ValueError):
    """A path names nothing of a scenario; the message says what there is."""


def resolve(path: str, data: dict[str, Any]) -> Place:
    """("hosts", 0, "count") for hosts.esx.count. Raises NoPlaceError.

    Keys that are not in the data are as good as those that are, where a scenario may have them;
    elements of lists must be there. Names may hold dots: the longest that fits is taken.
    """
    steps = path.split(".")
    place: Place = ()
    while steps:
        annotation = scenario_text.at(Scenario, place)
        model = scenario_text.model_in(annotation)
        if scenario_text.at(annotation, (0,)) is not None:
            place, steps = _element(place, steps, get(data, place))
        elif model is not None:
            known = list(model.model_fields)
            if steps[0] not in known:
                what = f"{path_text(place) or 'a scenario'} has no key {shown(steps[0])}"
                raise NoPlaceError(f"{what}: {closest(steps[0], known)}known: {listed(known)}")
            place, steps = (*place, steps[0]), steps[1:]
        elif scenario_text.at(annotation, (steps[0],)) is not None:  # names -> values
            place, steps = (*place, ".".join(steps)), []
        else:
            raise NoPlaceError(f"{path_text(place)} is one value: nothing is inside it")
    _check_way(place, data)
    return place


def _element(place: Place, steps: list[str], elements: Any) -> tuple[Place, list[str]]:
    """The step into a list, and the steps after it."""
    here = elements if isinstance(elements, list) else []
    named = [item.get("name") if isinstance(item, dict) else None for item in here]
    for length in range(len(steps), 0, -1):
        name = ".".join(steps[:length])
        if name in named:
            return (*place, named.index(name)), steps[length:]
    if steps[0].isdecimal() and int(steps[0][:10]) < len(here):
        return (*place, int(steps[0])), steps[1:]
    known = [name for name in named if isinstance(name, str)]
    there = f"known: {listed(known)}" if known else f"it has {len(here)} elements, from 0"
    what = f"{path_text(place)} has no element {shown(steps[0])}"
    raise NoPlaceError(f"{what}: {closest(steps[0], known)}{there}")


def _check_way(place: Place, data: dict[str, Any]) -> None:
    """What is on the way to a place is a mapping or a list, or not there."""
    for depth in range(1, len(place)):
        here = get(data, place[:depth])
        if here is not None and not isinstance(here, dict | list):
            where = path_text(place[:depth])
            raise NoPlaceError(f"{where} is {shown(here)} here: it has no {place[depth]}")


def get(data: Any, place: Place) -> Any:
    """What stands at a place; None where nothing does."""
    for step in place:
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def put(data: dict[str, Any], place: Place, value: Any) -> None:
    """Write a value at a place that `resolve` gave; mappings on the way are made."""
    here: Any = data
    for step in place[:-1]:
        if isinstance(here, dict) and here.get(step) is None:
            here[step] = {}
        here = here[step]
    here[place[-1]] = value


def clash(places: Sequence[Place]) -> tuple[int, int] | None:
    """The first two places of which one is the other, or inside it."""
    for j, second in enumerate(places):
        for i, first in enumerate(places[:j]):
            shorter = min(len(first), len(second))
            if first[:shorter] == second[:shorter]:
                return i, j
    return None
