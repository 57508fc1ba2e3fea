"""What must hold of a run: `slowdown.p95 <= 1.05`, over any number of its report."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from cluster.scenario_problems import closest
from cluster.studies.figures import REFUSED_BY, paths, shown
from cluster.yaml_input import InputError, Problem
from cluster.yaml_input import shown as quoted

_SLO = re.compile(r"\s*([A-Za-z0-9_. -]*?)\s*(<=|>=|<|>)\s*(\S+)\s*")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True, slots=True)
class Slo:
    """One thing that must hold; `text` as the user wrote it."""

    text: str
    path: str
    sign: str
    bound: float

    def holds(self, numbers: Mapping[str, float]) -> bool:
        """Whether it does. Where nothing was there to measure, it does."""
        value = numbers.get(self.path, 0 if self.path.startswith(REFUSED_BY) else None)
        return value is None or _OPERATORS[self.sign](value, self.bound)

    def measured(self, numbers: Mapping[str, float]) -> str:
        """What was measured, for people."""
        return f"{self.path.removeprefix('cost.')} {shown(self.path, numbers.get(self.path))}"


def parse(texts: Sequence[str]) -> list[Slo]:
    """The command line's --slo. Raises InputError with every problem."""
    problems, found = [], []
    for text in texts:
        try:
            found.append(_one(text))
        except ValueError as error:
            problems.append(Problem("", None, quoted(text), str(error)))
    if problems:
        raise InputError("--slo", problems)
    return found


def _one(text: str) -> Slo:
    match = _SLO.fullmatch(text)
    if match is None or not match[1]:
        raise ValueError("must be PATH <= NUMBER (or <, >=, >), such as 'slowdown.p95 <= 1.05'")
    try:
        bound = float(match[3])
    except ValueError:
        bound = float("nan")
    if not isfinite(bound):
        raise ValueError(f"{quoted(match[3])} is not a number")
    known = paths()
    path = match[1]
    if path not in known and not path.startswith(REFUSED_BY):
        path = f"cost.{path}"
    if path not in known and not path.startswith(REFUSED_BY):
        names = [*known, *(name.removeprefix("cost.") for name in known)]
        example = "report.json has slowdown.p95, reclaim_states.high, memory_gib.swapped.mean, ..."
        raise ValueError(f"no number of a report: {closest(match[1], names)}{example}")
    return Slo(" ".join(text.split()), path, match[2], bound)
