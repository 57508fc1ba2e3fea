"""The only place with Ray: hosts in HostActors, the run in a CoordinatorActor, the driver's side.

Each HostActor holds the hosts of one HostSet; the coordinator calls every actor once a barrier. A
mutating call must not run twice, so Ray's retries and restarts are off. How hosts are packed into
actors never shows in a result. The driver only watches, and asks for a stop.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.coordinator import Coordinator, Outcome, Progress, Watch
from cluster.errors import ClusterError
from cluster.fleet import HostSet, merge
from cluster.messages import EpochReport, Order
from cluster.population import HostSpec, Population
from cluster.scenario_file import Loaded
from hostsim.host import warm
from hostsim.jit import CACHE_VARIABLE
from hostsim.units import HostId

HOSTS_PER_CPU = 2
"""`auto` gives each host its own actor up to this many a CPU; beyond, actors as many as CPUs."""
POLL_S = 0.25
STOP_S = 60.0
"""How long a stop may take before the run is killed: one barrier, and writing what there is."""


@dataclass(frozen=True, slots=True)
class HostSetup:
    """What a set of hosts is made of."""

    hosts: tuple[HostSpec, ...]
    seed: int
    sample: int
    tick_ms: int
    epoch_ms: int
    check: bool

    def build(self) -> HostSet:
        """Make the hosts."""
        return HostSet(
            self.hosts,
            seed=self.seed,
            sample=self.sample,
            tick_ms=self.tick_ms,
            epoch_ms=self.epoch_ms,
            check=self.check,
        )


class HostActor:
    """One or several simulated hosts in a process of their own."""

    def __init__(self, setup: HostSetup) -> None:
        warm(lambda text: None)
        self._hosts = setup.build()

    def ready(self) -> None:
        """Answers once the hosts are made and their kernels loaded."""

    def run(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> EpochReport:
        """See Fleet.run."""
        return self._hosts.run(orders, first_epoch, n_epochs)

    def digests(self) -> dict[HostId, str]:
        """See Fleet.digests."""
        return self._hosts.digests()


class RayFleet:
    """Hosts in actors; the Fleet of the coordinator on Ray."""

    def __init__(self, setup: HostSetup, hosts_per_actor: int) -> None:
        remote = ray.remote(HostActor)
        self._actors: list[Any] = []
        self._actor_of: dict[HostId, int] = {}
        for first in range(0, len(setup.hosts), hosts_per_actor):
            packed = setup.hosts[first : first + hosts_per_actor]
            part = HostSetup(
                packed, setup.seed, setup.sample, setup.tick_ms, setup.epoch_ms, setup.check
            )
            self._actor_of |= {spec.host: len(self._actors) for spec in packed}
            # Actors outnumber CPUs and idle at the barrier, so they ask for none.
            options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
            self._actors.append(
                remote.options(scheduling_strategy="SPREAD", **options).remote(part)
            )
        ray.get([actor.ready.remote() for actor in self._actors])

    def run(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> EpochReport:
        """See Fleet."""
        mine: list[list[Order]] = [[] for _ in self._actors]
        for order in orders:
            mine[self._actor_of[order.host]].append(order)
        calls = [
            actor.run.remote(orders_of, first_epoch, n_epochs)
            for actor, orders_of in zip(self._actors, mine, strict=True)
        ]
        return merge(ray.get(calls))

    def digests(self) -> dict[HostId, str]:
        """See Fleet."""
        found: dict[HostId, str] = {}
        for part in ray.get([actor.digests.remote() for actor in self._actors]):
            found |= part
        return found

    def close(self) -> None:
        """Kill the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


class CoordinatorActor:
    """Owns a run. `prepare`, then `run` work in threads of theirs; the others answer meanwhile."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._progress: Progress | None = None

    def prepare(self, setup: HostSetup, hosts_per_actor: int) -> None:
        """Start the hosts; nothing is written yet."""
        self._fleet = RayFleet(setup, hosts_per_actor)

    def run(
        self, loaded: Loaded, population: Population, out: Path, how: dict[str, Any]
    ) -> Outcome:
        """Run the epoch loop to its end."""
        try:
            return Coordinator(
                loaded, population, self._fleet, out, how, self._watch, self._stop.is_set
            ).run()
        finally:
            self._fleet.close()

    def progress(self) -> Progress | None:
        """The latest progress; None before the first barrier."""
        return self._progress

    def stop(self) -> None:
        """End at the next barrier."""
        self._stop.set()

    def _watch(self, progress: Progress) -> None:
        self._progress = progress


def pack(n_hosts: int, cpus: int, asked: int | None) -> int:
    """Hosts per actor: as asked, or one until the cluster's CPUs are clearly outnumbered."""
    if asked is not None:
        return asked
    if n_hosts <= HOSTS_PER_CPU * cpus:
        return 1
    return -(-n_hosts // max(cpus, 1))


def _cause(error: Exception) -> Exception:
    """What went wrong in the process where it did."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


@contextlib.contextmanager
def session(
    address: str | None, starting: contextlib.AbstractContextManager[None]
) -> Iterator[dict[str, Any]]:
    """A connection to Ray: a cluster of our own on this machine, or the one at `address`.

    Our own listens on the loopback device only, and asks for the token that
    `ray_environment.prepare` made before Ray was imported. Ray starts inside `starting`. Yields
    facts of the cluster. Raises ClusterError.
    """
    # Or Ray makes an exit of SIGTERM while it starts, and what it had started stays for a minute.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"_node_ip_address": "127.0.0.1"}
    else:
        options |= {"address": address}
    cache = os.environ.get(CACHE_VARIABLE)
    if cache is not None:
        options["runtime_env"] = {"env_vars": {CACHE_VARIABLE: cache}}
    try:
        try:
            with starting:
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            where = "on this machine" if address is None else f"at {address}"
            raise ClusterError(f"no Ray cluster {where}: {error}") from error
        api: Any = ray  # these two carry no types
        cpus = int(api.cluster_resources().get("CPU", 1))
        yield {"ray": ray.__version__, "nodes": len(api.nodes()), "cpus": cpus}
    finally:
        ray.shutdown()


def run(
    loaded: Loaded,
    population: Population,
    setup: HostSetup,
    hosts_per_actor: int,
    out: Path,
    how: dict[str, Any],
    watch: Watch,
    begin: Callable[[], None],
    should_stop: Callable[[], bool],
) -> Outcome:
    """Run on the connected cluster and watch it. Raises ClusterError when a process is lost.

    `begin` is told once the hosts are there, before anything is written.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 4}
    coordinator: Any = (
        ray.remote(CoordinatorActor).options(scheduling_strategy=here, **options).remote()
    )
    shown: Progress | None = None
    asked_to_stop = False
    try:
        prepared = coordinator.prepare.remote(setup, hosts_per_actor)
        while not ray.wait([prepared], timeout=POLL_S)[0]:  # a signal is heeded in between
            pass
        ray.get(prepared)
        begin()
        call = coordinator.run.remote(loaded, population, out, how)
        while not ray.wait([call], timeout=POLL_S)[0]:
            if should_stop() and not asked_to_stop:
                asked_to_stop = True
                coordinator.stop.remote()
                if not ray.wait([call], timeout=STOP_S)[0]:
                    raise ClusterError(f"the run did not stop within {STOP_S:.0f} s: killed")
            progress = ray.get(coordinator.progress.remote())
            if progress is not None and progress != shown:
                watch(progress)
                shown = progress
        outcome: Outcome = ray.get(call)
        return outcome
    except ray.exceptions.RayError as error:
        cause = _cause(error)
        if isinstance(cause, ray.exceptions.RayError):
            raise ClusterError(f"a process of the run was lost: {cause}") from None
        raise cause from None
    finally:
        ray.kill(coordinator)
