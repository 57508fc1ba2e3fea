"""Runs of a study as Ray tasks, each a whole run in a process of its own, as `--local` does it.

A task may be on another machine, so a run comes back as its files, and is written here. It changes
nothing else, so that Ray may begin one again whose process or node was lost; one that failed is
told, not tried again.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from cluster import budget, ray_session
from cluster.execute import LOCAL_PROCESSES, how, in_process
from cluster.population import Population, populate
from cluster.scenario_file import Loaded
from cluster.simulator import simulator
from cluster.stopping import Stop
from cluster.studies.jobs import DONE, Job, Result, Runner, failed
from cluster.studies.store import Store, files_of, write_files
from cluster.studies.sweep_file import Base
from hostsim.host import warm

_api: Any = ray  # for what carries no types
POLL_S = 0.25
RETRIES = 3
"""A run whose process or node is lost begins again, so often; one that fails does not."""


def simulate(loaded: Loaded, population: Population, how_run: dict[str, Any]) -> dict[str, bytes]:
    """A whole run; the files of its folder."""
    warm(lambda text: None)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        in_process(loaded, population, out, how_run, lambda now: None, lambda: False)
        return files_of(out)


@contextmanager
def session(address: str | None, base: Base, store: Store, stop: Stop) -> Iterator[Runner]:
    """Runs on Ray: a cluster of our own (address None), or the one at `address`.

    Kernels are compiled already, and what `ray_environment.prepare` sets is set. Raises
    ClusterError.
    """
    with ray_session.session(address, stop.waiting()) as facts:
        stop.begin()
        memory = max(int(node["Resources"].get("memory", 0)) for node in _api.nodes())
        yield _Tasks(base, store, stop, facts, memory, ray.remote(simulate))


@dataclass(frozen=True, slots=True)
class _Tasks:
    """See Runner. memory: bytes of the largest node. remote: `simulate`, for Ray."""

    base: Base
    store: Store
    stop: Callable[[], bool]
    facts: dict[str, Any]
    memory: int
    remote: Any

    @property
    def width(self) -> int:
        """See Runner."""
        return max(1, int(self.facts["cpus"]))

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """See Runner. No more tasks wait than there are CPUs, beside those that run."""
        left = deque(jobs)
        running: dict[Any, Job] = {}
        try:
            while (left or running) and not self.stop():
                while left and len(running) < 2 * self.width:
                    job = left.popleft()
                    try:
                        running[self._start(job)] = job
                    except Exception as error:
                        yield failed(job, error)
                for call in ray.wait(list(running), timeout=POLL_S)[0] if running else ():
                    job = running.pop(call)
                    try:
                        self._take(job, call)
                    except Exception as error:
                        yield failed(job, error)
                    else:
                        yield Result(job, DONE)
        finally:
            for call in running:
                ray.cancel(call, force=True)

    def _start(self, job: Job) -> Any:
        loaded = self.base.load(job.changes, job.seed)
        population = populate(loaded)
        sample = loaded.scenario.fidelity.sample
        needed = budget.check(population, sample, LOCAL_PROCESSES, self.memory)
        facts = {"fleet": "ray task", "ray_cluster": self.facts, "simulator": simulator()}
        light = replace(loaded, trace=None, trace_vms=None, hashes={})
        options = {"num_cpus": 1, "memory": needed, "max_retries": RETRIES}
        return self.remote.options(**options).remote(light, population, how(False, facts))

    def _take(self, job: Job, call: Any) -> None:
        files = ray_session.got(call)
        self.store.add(job.folder, job.digest, lambda out: write_files(out, files))
