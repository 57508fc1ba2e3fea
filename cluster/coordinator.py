"""The epoch loop: look up what is due, decide, let the hosts run, learn, write down.

A conservative barrier: hosts influence each other only between epochs. A barrier spans as many
epochs as nothing is due in, and a second's worth at most, so that progress shows and a stop is
heeded soon; its span never changes the result. Everything the loop decides is in `planner`;
everything it writes is in `tables`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster import live, reports, tables
from cluster.aggregate import Aggregator
from cluster.fleet import Fleet
from cluster.messages import LEVELS, EpochReport
from cluster.policy import agenda, conservation, planner, state
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.history import History
from cluster.policy.state import ClusterState
from cluster.population import Population
from cluster.rows import HostFacts, VmFacts
from cluster.scenario import Scenario
from cluster.scenario_file import Loaded
from hostsim.units import PAGE_SIZE

EPOCHS_PER_BARRIER = 100
VM_ROWS_PER_BARRIER = 1 << 18
"""At most; rows take 54 MB. A host whose arrays are in the cache runs on as long as it may."""
MEMORY = (
    *("configured", "consumed", "active", "shared_saved", "ballooned", "swapped", "free"),
    *("compressed", "untouched", "overhead"),
)
"""What a watcher is told of memory."""
BARRIER_S = 1.0
"""How long a barrier should take at most, so that progress shows, and a stop is heeded, soon."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for people."""

    epoch: int
    epochs: int
    host_ticks: int
    wall_s: float
    """Since the first epoch began: what came before says nothing of the time that is left."""
    memory_bytes: dict[str, int] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    """Hosts by the worst reclamation state that they were in during the last epoch."""
    vms: int = 0
    checkpoint_age_s: float | None = None
    """Wall time since the last checkpoint; None where there is none."""
    restarts: int = 0
    """How often processes of the run were lost and started again."""
    view: live.View | None = None
    """What `esxsim top` and metrics show beside: made once a second."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `report` is partial when it was stopped."""

    report: dict[str, Any]
    stopped: bool


Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Barrier:
    """What was decided before some epochs, what came of them, and where the run stands now."""

    plan: Plan
    report: EpochReport
    now: ClusterState
    epoch: int


def barriers(population: Population, scenario: Scenario, fleet: Fleet) -> Iterator[Barrier]:
    """The epoch loop: decide, let the hosts run, learn, again.

    A barrier is handed out once the hosts run on to the next, so that it is written down meanwhile.
    """
    now = state.initial(population)
    due = agenda.agenda(population, scenario)
    epoch, last = 0, scenario.duration // scenario.epoch
    most = 1
    done: Barrier | None = None
    while epoch < last:
        sight = Sight(population, scenario, epoch)
        plan = planner.plan(now, due.at(epoch), sight)
        n_epochs = min(planner.next_due(plan.after, due, sight, last) - epoch, most)
        started = time.perf_counter()
        finish = fleet.start(plan.orders, epoch, n_epochs)
        if done is not None:
            yield done
        done = None  # its rows take as much memory as those to come
        report = finish()
        most = _most(most, n_epochs, time.perf_counter() - started, len(report.vms))
        conservation.check(plan.after, plan.orders, report)
        now = state.learn(plan.after, report)
        epoch += n_epochs
        done = Barrier(plan, report, now, epoch)
        del report  # held by the barrier alone, which is gone before the next one's rows are there
    if done is not None:
        yield done


@dataclass
class Coordinator:
    """One run, from its population to its folder."""

    loaded: Loaded
    population: Population
    fleet: Fleet
    out: Path
    how: dict[str, Any]
    """How it is run, for the manifest: never part of the result."""
    watch: Watch
    should_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        scenario = self.loaded.scenario
        self._started = self._looping_since = time.perf_counter()
        self._busy_s = self._looping_s = 0.0
        hosts = [_host_facts(one) for one in self.population.hosts]
        vms = [_facts(vm.spec) for vm in self.population.vms]
        self._history = History()
        self._folder = tables.RunFolder(
            self.out,
            hosts,
            scenario_yaml=self.loaded.scenario_yaml,
            epoch_ms=scenario.epoch,
            detail_vms=scenario.detail == "vms",
        )
        sample = scenario.fidelity.sample
        self._seen = Aggregator(hosts, vms, epoch_ms=scenario.epoch, sample=sample)
        self._live = live.Live(self.loaded, hosts, vms, self.out)

    def run(self) -> Outcome:
        """Run to the end, or until `should_stop`; the folder is closed whatever happens."""
        try:
            stopped = self._epochs()
            outcome = self._conclude(stopped)
        except BaseException as error:
            with contextlib.suppress(tables.WriteError):  # what failed first is the reason
                self._folder.abandon(f"the run failed: {error}", manifest=self._manifest())
            raise
        return outcome

    def _epochs(self) -> bool:
        """Take down what each barrier brings. Returns whether the run was stopped early."""
        scenario = self.loaded.scenario
        last = scenario.duration // scenario.epoch
        self._looping_since = time.perf_counter()
        if self.should_stop():
            return True
        for barrier in barriers(self.population, scenario, self.fleet):
            self._write_down(barrier.plan.decisions)
            self._seen.add(barrier.report)
            self._folder.add(barrier.report)
            self._looping_s = time.perf_counter() - self._looping_since
            self._show(barrier.report, barrier.now, barrier.epoch, last)
            if barrier.epoch < last and self.should_stop():
                return True
            del barrier  # or its rows would be held until the next one's are there
        return False

    def _write_down(self, decisions: tuple[Decision, ...]) -> None:
        """Decisions go to events.jsonl, and into the history of the run."""
        for one in decisions:
            about = {} if one.vm is None else {"vm": self.population.vms[one.vm].spec.name}
            facts = about | one.facts
            if one.host is not None:
                facts["host"] = self.population.hosts[one.host].name
            if one.target is not None:
                facts["to"] = self.population.hosts[one.target].name
            if one.reason is not None:
                facts["reason"] = one.reason
            self._folder.event(one.at_ms, one.kind, **facts)
            self._history.add(one)
            self._live.decided(one.kind)

    def _conclude(self, stopped: bool) -> Outcome:
        """Build the report and close the folder."""
        scenario = self.loaded.scenario
        about = {
            "name": scenario.name,
            "seed": scenario.seed,
            "digest": self.loaded.digest,
        }
        report = reports.build(self._seen, about, self._history, self.loaded.assumptions)
        vm_table = reports.vm_table(self._seen, self._history.by_vm())
        if stopped:
            report["partial"] = True
            reason = "the run was stopped before its end"
            self._folder.abandon(reason, report, vm_table, self._manifest())
        else:
            report["digest"] = reports.digest(report, self.fleet.digests())
            self._folder.finish(report, vm_table, self._manifest())
        self._live.end()
        return Outcome(report, stopped)

    def _manifest(self) -> dict[str, Any]:
        """How it was run. host_busy_share: of the time that the workers' cores had in the epoch
        loop, what hosts' ticks took; the rest is waiting, at barriers and for the coordinator."""
        core_s = self._looping_s * self.fleet.workers
        return {
            **self.how,
            "wall_s": round(time.perf_counter() - self._started, 3),
            "epochs_wall_s": round(self._looping_s, 3),
            "host_cpu_s": round(self._busy_s, 3),
            "host_busy_share": round(self._busy_s / core_s, 3) if core_s > 0 else None,
            "coordinator_cpu_s": round(time.process_time(), 3),
        }

    def _show(self, report: EpochReport, now: ClusterState, epoch: int, last: int) -> None:
        """Tell the watcher how far the run is."""
        self._busy_s += report.busy_s
        scenario = self.loaded.scenario
        rows = report.hosts[(report.hosts["epoch"] == epoch - 1) & (report.hosts["on"] > 0)]
        levels = np.bincount(live.worst_levels(rows), minlength=len(LEVELS))
        waiting, flying = len(now.queue), len(now.flights)
        view = self._live.look(report, epoch, queue=waiting, migrations=flying, last=epoch == last)
        progress = Progress(
            epoch=epoch,
            epochs=last,
            host_ticks=epoch * scenario.epoch // scenario.tick * len(self.population.hosts),
            wall_s=self._looping_s,
            memory_bytes={name: int(rows[f"{name}_pages"].sum()) * PAGE_SIZE for name in MEMORY},
            levels=dict(zip(LEVELS, levels.tolist(), strict=True)),
            vms=int((now.host_of != state.NOWHERE).sum()),
            view=view,
        )
        self.watch(progress)
        self._live.write(progress)


def _most(before: int, n_epochs: int, took_s: float, n_rows: int) -> int:
    """How many epochs the next barrier may span, by what the last one took and brought, and it
    might have spanned. Its span never changes the result."""
    by_time = int(n_epochs * BARRIER_S / max(took_s, 1e-9))
    by_rows = n_epochs * VM_ROWS_PER_BARRIER // max(n_rows, 1)
    return max(min(by_time, by_rows, 4 * before, EPOCHS_PER_BARRIER), 1)


def _host_facts(one: Any) -> HostFacts:
    config = one.config
    has_clear = config.reclaim.clear is not None
    watts = one.watts
    return HostFacts(
        *(one.host, one.name, config.machine_bytes, config.cpus, watts.idle, watts.peak),
        has_clear=has_clear,
    )


def _facts(spec: Any) -> VmFacts:
    config = spec.config
    return VmFacts(spec.vm, spec.name, config.memory, config.reservation, config.vcpus)
