"""PURE: what `--vary` means for a scenario: a level, and the scenario with that much.

`vms`: so many VMs in all, divided among the groups and the trace in their proportion. `hosts`: so
many hosts, in the same way. `overcommit`: the placement's limit in hundredths, with so many VMs
that it is met. Groups of which an event or a rule names a member stay as they are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from cluster.budget import busiest
from cluster.population import Population
from cluster.scenario import HOSTS_MAX, VMS_MAX, HostGroup, VmGroup, member_names
from cluster.scenario_file import Loaded
from cluster.studies.axes import Change
from cluster.studies.search import Loads
from cluster.trace_vms import running
from cluster.yaml_input import InputError, Place, Problem

Kind = Literal["vms", "hosts", "overcommit"]
KINDS: tuple[Kind, ...] = ("vms", "hosts", "overcommit")
OVERCOMMIT_MIN, OVERCOMMIT_MAX = 10, 100_000
"""In hundredths, as the scenario has them at most."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Levels of a scenario. places, weights: where the counts stand, and the scenario's own.

    fixed: how many there are in groups that do not vary. low, high: the levels there may be;
    why_high: what the highest is bounded by. in_trace: VMs that the trace has, the last place's.
    per_level: VMs for one level of overcommit.
    """

    kind: Kind
    places: tuple[Place, ...]
    weights: tuple[int, ...]
    fixed: int
    low: int
    high: int
    start: int
    why_high: str
    in_trace: int | None = None
    per_level: Fraction = Fraction(0)

    def loads(self) -> Loads:
        """Where to search. Of hosts the fewer are the harder: a load is minus their number."""
        if self.kind == "hosts":
            return Loads.around(-self.start, -self.high, -self.low)
        return Loads.around(self.start, self.low, self.high)

    def level(self, load: int) -> int:
        """The level that a load stands for."""
        return -load if self.kind == "hosts" else load

    def count(self, level: int) -> int:
        """How many hosts or VMs there are in all."""
        if self.kind != "overcommit":
            return level
        return max(len(self.places), -(-self.per_level * level // 1)) + self.fixed

    def changes(self, level: int) -> tuple[Change, ...]:
        """What to change in the scenario."""
        counts = apportioned(self.count(level) - self.fixed, self.weights)
        if self.in_trace is not None:  # rounding may give it one more
            counts[-1] = min(counts[-1], self.in_trace)
        found: list[Change] = list(zip(self.places, counts, strict=True))
        if self.kind == "overcommit":
            found.append((("placement", "overcommit"), level / 100))
        return tuple(found)

    def words(self, level: int) -> str:
        """A level for people."""
        if self.kind == "overcommit":
            return f"overcommit {level / 100:.2f}"
        return f"{level} {self.kind}"


def apportioned(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to the weights, one at least each (Sainte-Laguë).

    As the total grows, none gets less, so that the VMs of a smaller scenario are in the larger.
    Ties go to the earlier.
    """
    assert total >= len(weights), f"{total} is less than one for each of {len(weights)}"
    counts = [1] * len(weights)
    order = [(Fraction(3, weight), at) for at, weight in enumerate(weights)]
    heapq.heapify(order)
    for _ in range(total - len(weights)):
        _, at = order[0]
        counts[at] += 1
        heapq.heapreplace(order, (Fraction(2 * counts[at] + 1, weights[at]), at))
    return counts


def scale_of(kind: Kind, loaded: Loaded, population: Population, file: str) -> Scale:
    """What a scenario's levels are. Raises InputError where nothing of it can vary."""
    scenario = loaded.scenario
    named = set(_texts(scenario.model_dump(include={"events", "rules"})))
    groups: Sequence[HostGroup | VmGroup] = scenario.hosts if kind == "hosts" else scenario.vms
    key = "hosts" if kind == "hosts" else "vms"
    free = [at for at, group in enumerate(groups) if named.isdisjoint(member_names(group))]
    places: list[Place] = [(key, at, "count") for at in free]
    weights = [groups[at].count for at in free]
    fixed = sum(group.count for group in groups) - sum(weights)
    most: int | None = None
    high, why = (HOSTS_MAX if kind == "hosts" else VMS_MAX), f"a scenario has at most so many {key}"
    if kind != "hosts" and scenario.trace is not None and loaded.trace_vms is not None:
        places.append(("trace", "vms"))
        weights.append(len(loaded.trace_vms.index))
        most = _in_trace(loaded)
        if most * sum(weights) // weights[-1] + fixed < high:
            high = most * sum(weights) // weights[-1] + fixed
            why = f"only {most} VMs of the trace run in the simulated time"
    if not places:
        what = f"members of all groups of {key} are named: there is none whose count may vary"
        raise InputError(file, [Problem(key, None, "", what)])
    low, start = len(places) + fixed, sum(weights) + fixed
    found = Scale(kind, tuple(places), tuple(weights), fixed, low, high, start, why, most)
    return _overcommit(found, population) if kind == "overcommit" else found


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _texts(inside)


def _in_trace(loaded: Loaded) -> int:
    trace, source = loaded.trace, loaded.scenario.trace
    assert trace is not None and source is not None
    return len(running(trace, source.start, loaded.scenario.duration))


def _overcommit(by_vms: Scale, population: Population) -> Scale:
    """Levels of overcommit, in hundredths, from those of VMs."""
    memory = sum(host.config.machine_bytes for host in population.hosts)
    peak = sum(spec.config.memory for spec in busiest(population.vms, 1))
    per_level = Fraction(sum(by_vms.weights) * memory, max(peak, 1) * 100)
    high = min(int((by_vms.high - by_vms.fixed) / per_level), OVERCOMMIT_MAX)
    return Scale(
        "overcommit",
        by_vms.places,
        by_vms.weights,
        by_vms.fixed,
        low=OVERCOMMIT_MIN,
        high=max(high, OVERCOMMIT_MIN),
        start=max(int(Fraction(peak * 100, memory)), OVERCOMMIT_MIN),
        why_high=by_vms.why_high,
        in_trace=by_vms.in_trace,
        per_level=per_level,
    )
