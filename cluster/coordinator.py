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

from cluster import checkpoint, reports, standing, tables
from cluster.errors import LostError
from cluster.files import WriteError
from cluster.fleet import Fleet, Saved
from cluster.messages import LEVELS, EpochReport
from cluster.policy import agenda, conservation, planner, state
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.history import History
from cluster.policy.state import ClusterState
from cluster.population import Population
from cluster.scenario import Scenario
from cluster.scenario_file import Loaded
from cluster.standing import Standing
from cluster.watch import live
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
    begun: int = 0
    """The epoch from which it was resumed."""
    checkpoint_age_s: float | None = None
    """How long ago the last checkpoint was, None where there is none yet."""
    restarts: int = 0
    """How often the run has gone on from a checkpoint because a process was lost."""
    warning: str | None = None
    """What is wrong, although the run goes on."""
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
    saved: Saved | None = None
    """The hosts, as they stand now."""


def barriers(
    population: Population,
    scenario: Scenario,
    fleet: Fleet,
    start: Standing | None = None,
    saves: Callable[[], bool] = lambda: False,
) -> Iterator[Barrier]:
    """The epoch loop: decide, let the hosts run, learn, again.

    A barrier is handed out once the hosts run on to the next, so that it is written down meanwhile.
    start: where the hosts stand; None: at the beginning. saves: asked at each barrier whether hosts
    are to be saved.
    """
    now = state.initial(population) if start is None else start.now
    due = agenda.agenda(population, scenario)
    epoch, last = 0 if start is None else start.epoch, scenario.duration // scenario.epoch
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
        saved = fleet.save() if epoch < last and saves() else None
        done = Barrier(plan, report, now, epoch, saved)
        del report  # held by the barrier alone, which is gone before the next one's rows are there
    if done is not None:
        yield done


@dataclass(frozen=True, slots=True)
class Keep:
    """Where a run goes on from, and how it is kept, so that it can be gone on from.

    start: where; the hosts stand there already. None: at the beginning. every_s: wall time from one
    checkpoint to the next; 0: none are made. restarts: how often this run has gone on because a
    process was lost.
    """

    start: Standing | None = None
    every_s: float = 0.0
    restarts: int = 0


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
    keep: Keep = Keep()

    def __post_init__(self) -> None:
        scenario = self.loaded.scenario
        self._started = self._looping_since = time.perf_counter()
        self._busy_s = self._looping_s = 0.0
        self._seen = standing.blank(self.loaded, self.population)
        self._history = History()
        self._begun = 0
        so_far: tables.Written | None = None
        if self.keep.start is not None:
            self._seen, self._history = self.keep.start.seen, self.keep.start.history
            self._begun, so_far = self.keep.start.epoch, self.keep.start.written
        self._folder = tables.RunFolder(
            self.out,
            self._seen.hosts.facts,
            scenario_yaml=self.loaded.scenario_yaml,
            epoch_ms=scenario.epoch,
            detail_vms=scenario.detail == "vms",
            so_far=so_far,
        )
        self._live = live.Live(self.loaded, self._seen.hosts.facts, self._seen.vms, self.out)
        self._keeper: checkpoint.Keeper | None = None
        if self.keep.every_s > 0:
            about = checkpoint.identity(self.loaded.digest)
            self._keeper = checkpoint.Keeper(self.out, about, self.keep.every_s, self._started)

    def run(self) -> Outcome:
        """Run to the end, or until `should_stop`; the folder is closed whatever happens."""
        try:
            try:
                stopped = self._epochs()
            finally:
                if self._keeper is not None:  # no other run may find it still writing
                    self._keeper.wait()
            outcome = self._conclude(stopped)
        except LostError:
            self._folder.leave()
            raise
        except BaseException as error:
            with contextlib.suppress(WriteError):  # what failed first is the reason
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
        for barrier in barriers(
            self.population, scenario, self.fleet, self.keep.start, self._is_checkpoint_due
        ):
            self._write_down(barrier.plan.decisions)
            self._seen.add(barrier.report)
            self._folder.add(barrier.report)
            self._keep(barrier)
            self._looping_s = time.perf_counter() - self._looping_since
            self._show(barrier.report, barrier.now, barrier.epoch, last)
            can_stop = self._keeper is None or barrier.saved is not None
            if barrier.epoch < last and can_stop and self.should_stop():
                return True
            del barrier  # or its rows would be held until the next one's are there
        return False

    def _is_checkpoint_due(self) -> bool:
        """Now and then, and before the run stops."""
        keeper = self._keeper
        return keeper is not None and (self.should_stop() or keeper.is_due(time.perf_counter()))

    def _keep(self, barrier: Barrier) -> None:
        """Begin to write a checkpoint of where the run stands, if its hosts were saved."""
        if self._keeper is None or barrier.saved is None:
            return
        written = self._folder.settle()
        where = Standing(barrier.epoch, barrier.now, self._seen, self._history, written)
        self._keeper.write(barrier.epoch, standing.pack(where), barrier.saved, time.perf_counter())

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
            "begun_at_epoch": self._begun,
            "restarts": self.keep.restarts,
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
            begun=self._begun,
            checkpoint_age_s=self._checkpoint_age_s(),
            restarts=self.keep.restarts,
            warning=None if self._keeper is None else self._keeper.failed,
            view=view,
        )
        self.watch(progress)
        self._live.write(progress)

    def _checkpoint_age_s(self) -> float | None:
        done_s = None if self._keeper is None else self._keeper.done_s
        return None if done_s is None else time.perf_counter() - done_s


def _most(before: int, n_epochs: int, took_s: float, n_rows: int) -> int:
    """How many epochs the next barrier may span, by what the last one took and brought, and it
    might have spanned. Its span never changes the result."""
    by_time = int(n_epochs * BARRIER_S / max(took_s, 1e-9))
    by_rows = n_epochs * VM_ROWS_PER_BARRIER // max(n_rows, 1)
    return max(min(by_time, by_rows, 4 * before, EPOCHS_PER_BARRIER), 1)
