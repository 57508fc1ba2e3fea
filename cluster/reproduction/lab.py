"""Runs scenarios for experiments: the same files, planner and hosts as `esxsim run`, no folder.

What a run gave comes back as the hosts' own rows, in MiB and minutes as the paper's figures have
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.coordinator import barriers
from cluster.fleet import LocalFleet
from cluster.host_set import HostSet
from cluster.messages import CAUSES, LEVELS, LevelChange, Rows
from cluster.policy.decisions import Decision
from cluster.population import Population, populate
from cluster.scenario_file import Loaded, load
from hostsim.units import MIB, PAGE_SIZE

Array = np.ndarray[Any, np.dtype[Any]]
Changes = Mapping[str, Any]
"""Places of a scenario file, such as "vms.0.memory", and what to put there instead."""


def room_for(mb: int) -> Changes:
    """A host of 512 MB that has so much for one VM, beside the 6 % kept free and its overhead."""
    return {"hosts.0.reserve": f"{512 - 31 - 32 - mb} MiB"}


@dataclass(frozen=True)
class Run:
    """One run. hosts: (n_epochs x n_hosts,) HOST_ROW. vms: VM_ROW of those powered on."""

    loaded: Loaded
    population: Population
    hosts: Rows
    vms: Rows
    level_changes: tuple[LevelChange, ...]
    decisions: tuple[Decision, ...]

    @property
    def epoch_min(self) -> float:
        """An epoch in minutes."""
        return self.loaded.scenario.epoch / 60_000

    def host(self, at: int = 0) -> Series:
        """The rows of one host."""
        return Series(self.hosts[self.hosts["host"] == at], self.epoch_min)

    def vm(self, name: str) -> Series:
        """The rows of one VM."""
        ids = {vm.spec.name: vm.spec.vm for vm in self.population.vms}
        return Series(self.vms[self.vms["vm"] == ids[name]], self.epoch_min)


@dataclass(frozen=True)
class Series:
    """Rows of one host or VM over time."""

    rows: Rows
    epoch_min: float

    @property
    def minutes(self) -> Array:
        """(n,) when each epoch ended, from the start of the run."""
        return (self.rows["epoch"] + 1) * self.epoch_min

    def mib(self, name: str) -> Array:
        """(n,) a column of pages in MiB."""
        return self.rows[f"{name}_pages"] * (PAGE_SIZE / MIB)

    def curve(self, name: str) -> tuple[Array, Array]:
        """A column of pages over time, for a figure."""
        return self.minutes, self.mib(name)

    def total(self, name: str) -> float:
        """Sum of a counter of events over the run."""
        return float(self.rows[name].sum())

    def mib_total(self, name: str) -> float:
        """Sum over the run of a column of pages that counts events, in MiB."""
        return self.total(f"{name}_pages") * PAGE_SIZE / MIB

    def between(self, start_min: float, end_min: float) -> Series:
        """The epochs that end in (start, end]."""
        inside = (self.minutes > start_min + 1e-9) & (self.minutes <= end_min + 1e-9)
        return Series(self.rows[inside], self.epoch_min)

    def mean(self, name: str) -> float:
        """Mean of a column of pages, in MiB."""
        return float(self.mib(name).mean())

    def at(self, name: str, minute: float) -> float:
        """A column of pages, in MiB, at the last epoch that had ended by then."""
        return float(self.mib(name)[self.minutes <= minute + 1e-9][-1])

    def throughput(self) -> float:
        """Touched data in MiB per second of powered-on time."""
        return self.total("touches") * (PAGE_SIZE / MIB) / (self.total("on_ns") / 1e9)

    def lost(self, cause: str) -> float:
        """Part of the VM's time that it lost to a cause."""
        return float(self.rows["lost_ns"][:, CAUSES.index(cause)].sum()) / self.total("on_ns")

    def level_minutes(self) -> dict[str, float]:
        """Time of a host in each reclamation state."""
        return {level: self.total(f"{level}_ms") / 60_000 for level in LEVELS}

    def first(self, name: str, minute: float, holds: Any) -> float:
        """Minutes from `minute` until `holds(MiB)` is first true of a column; inf if never."""
        after = self.between(minute, np.inf)
        found = np.flatnonzero(holds(after.mib(name)))
        return float(after.minutes[found[0]] - minute) if len(found) else float("inf")


@dataclass(frozen=True)
class Lab:
    """Where experiments find their scenarios, and data that is not part of the project."""

    scenarios: Path
    data: Path

    def run(self, name: str, seed: int, changes: Changes | None = None) -> Run:
        """Run a scenario file in this process, some of it changed.

        Raises ScenarioError as `load` does.
        """
        path = self.scenarios / f"{name}.yaml"
        loaded = load(path, data_root=self.data, seed=seed, changes=changes)
        scenario, population = loaded.scenario, populate(loaded)
        hosts = HostSet(
            population.hosts,
            seed=scenario.seed,
            sample=scenario.fidelity.sample,
            tick_ms=scenario.tick,
            epoch_ms=scenario.epoch,
            check=False,
        )
        past = list(barriers(population, scenario, LocalFleet(hosts)))
        return Run(
            loaded=loaded,
            population=population,
            hosts=np.concatenate([barrier.report.hosts for barrier in past]),
            vms=np.concatenate([barrier.report.vms for barrier in past]),
            level_changes=tuple(one for barrier in past for one in barrier.report.level_changes),
            decisions=tuple(one for barrier in past for one in barrier.plan.decisions),
        )
