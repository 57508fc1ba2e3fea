"""What is to be run, and what became of it; runs one after the other, in this process.

A run that fails takes nothing else with it: why it failed is its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster import budget, execute
from cluster.errors import StoppedError
from cluster.execute import available_bytes, how, in_process
from cluster.files import WriteError
from cluster.population import populate
from cluster.scenario_file import Loaded
from cluster.simulator import simulator
from cluster.stopping import Stop
from cluster.studies.axes import Change
from cluster.studies.store import Store
from cluster.studies.sweep_file import Base
from hostsim.host import warm

DONE, FAILED = "done", "failed"
NOT_BEGUN = "stopped before the first run began"


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a scenario with changes and a seed."""

    words: str
    """What it is, for people."""
    folder: str
    changes: tuple[Change, ...]
    seed: int
    digest: str


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended: DONE, or FAILED and why."""

    job: Job
    status: str
    reason: str = ""


class Runner(Protocol):
    """Runs jobs, as many at a time as it can."""

    @property
    def width(self) -> int:
        """How many at a time."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Results as they come; ends early when the user stops it."""


@contextmanager
def local(base: Base, store: Store, stop: Stop, note: Callable[[str], None]) -> Iterator[Runner]:
    """Runs in this process."""
    with stop.leaving():
        warm(note)
    stop.begin()
    yield _Local(base, store, stop)


class _Local:
    """See Runner."""

    width = 1

    def __init__(self, base: Base, store: Store, stop: Callable[[], bool]) -> None:
        self._base, self._store, self._stop = base, store, stop

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """See Runner."""
        for job in jobs:
            if self._stop():
                return
            try:
                whole = self._one(job)
            except Exception as error:
                yield failed(job, error)
            else:
                if whole:
                    yield Result(job, DONE)

    def _one(self, job: Job) -> bool:
        loaded = self._base.load(job.changes, job.seed)
        return self._store.add(job.folder, job.digest, lambda out: self._write(loaded, out))

    def _write(self, loaded: Loaded, out: Path) -> bool:
        how_run = how(False, {"fleet": "local", "simulator": simulator()})
        population = populate(loaded)
        done = in_process(loaded, population, out, how_run, lambda now: None, self._stop)
        return not done.stopped


def failed(job: Job, error: Exception) -> Result:
    """What went wrong, as the job's result. A WriteError is raised again: where one result cannot
    be written, no other can."""
    if isinstance(error, WriteError):
        raise error
    return Result(job, FAILED, " ".join(f"{type(error).__name__}: {error}".split()))


def fits(loaded: Loaded) -> None:
    """TooLargeError with the estimate, where a run is too large for one process of this machine."""
    population, sample = populate(loaded), loaded.scenario.fidelity.sample
    budget.check(population, sample, execute.LOCAL_PROCESSES, available_bytes())


def stopped(what: str) -> StoppedError:
    """What the command ends with when the user stopped it."""
    return StoppedError(f"stopped: {what}; the same command goes on from there")
