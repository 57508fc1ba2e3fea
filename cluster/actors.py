"""The only place with Ray: hosts in HostActors, the run in a CoordinatorActor, the driver's side.

Each HostActor holds the hosts of one HostSet; the coordinator calls every actor once a barrier. A
mutating call must not run twice, so Ray's retries and restarts are off. How hosts are packed into
actors never shows in a result. The driver only watches, and asks for a stop.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import ray_probe
from cluster.coordinator import Coordinator, Outcome, Progress, Watch
from cluster.errors import ClusterError
from cluster.fleet import Finish, HostSet, Images, Sketching, merge
from cluster.messages import EpochReport, MoveIn, MoveOut, Order
from cluster.population import HostSpec, Population
from cluster.scenario_file import Loaded
from hostsim.host import warm
from hostsim.jit import CACHE_VARIABLE
from hostsim.units import HostId

_api: Any = ray  # for what carries no types
HOSTS_PER_CPU = 2
"""`auto` gives each host its own actor up to this many a CPU; beyond, actors as many as CPUs."""
_NO_CLUSTER = (RuntimeError, ValueError, OSError, ray.exceptions.RayError)
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
    census_epochs: int
    sketching: Sketching | None = None

    def build(self) -> HostSet:
        """Make the hosts."""
        return HostSet(
            self.hosts,
            seed=self.seed,
            sample=self.sample,
            tick_ms=self.tick_ms,
            epoch_ms=self.epoch_ms,
            check=self.check,
            census_epochs=self.census_epochs,
            sketching=self.sketching,
        )


class HostActor:
    """One or several simulated hosts in a process of their own."""

    def __init__(self, setup: HostSetup) -> None:
        warm(lambda text: None)
        self._hosts = setup.build()

    def ready(self) -> None:
        """Answers once the hosts are made and their kernels loaded."""

    def take(self, orders: Sequence[MoveOut]) -> Images:
        """See HostSet.take."""
        return self._hosts.take(orders)

    def run(
        self, orders: Sequence[Order], first_epoch: int, n_epochs: int, *images: Images
    ) -> EpochReport:
        """See HostSet.run. images: what other actors' `take` returned."""
        return self._hosts.run(orders, first_epoch, n_epochs, ChainMap(*map(dict, images)))

    def digests(self) -> dict[HostId, str]:
        """See HostSet.digests."""
        return self._hosts.digests()


class RayFleet:
    """Hosts in actors; the Fleet of the coordinator on Ray.

    `actors` hold the hosts in their order, `hosts_per_actor` each; `cpus` are the cluster's.
    """

    def __init__(
        self, actors: Sequence[Any], hosts: Sequence[HostId], hosts_per_actor: int, cpus: int
    ) -> None:
        self._actors = actors
        self._actor_of = {host: at // hosts_per_actor for at, host in enumerate(hosts)}
        self.workers = max(1, min(len(actors), cpus))

    def start(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> Finish:
        """See Fleet."""
        mine: list[list[Order]] = [[] for _ in self._actors]
        for order in orders:
            mine[self._actor_of[order.host]].append(order)
        coming = self._send(orders)
        calls = [
            actor.run.remote(orders_of, first_epoch, n_epochs, *coming[at])
            for at, (actor, orders_of) in enumerate(zip(self._actors, mine, strict=True))
        ]
        return lambda: merge(ray.get(calls))

    def _send(self, orders: Sequence[Order]) -> list[list[Any]]:
        """References to the images that come to each actor: they go there from where they were,
        past this process. All of them leave before any host runs on."""
        leaving: dict[tuple[int, int], list[MoveOut]] = {}
        for order in orders:
            if isinstance(order, MoveIn):
                pair = self._actor_of[order.source], self._actor_of[order.host]
                leaving.setdefault(pair, []).append(MoveOut(order.source, order.vm))
        coming: list[list[Any]] = [[] for _ in self._actors]
        for (source, target), moves in leaving.items():
            coming[target].append(self._actors[source].take.remote(moves))
        return coming

    def digests(self) -> dict[HostId, str]:
        """See Fleet."""
        found: dict[HostId, str] = {}
        for part in ray.get([actor.digests.remote() for actor in self._actors]):
            found |= part
        return found


class CoordinatorActor:
    """Owns a run. `run` works in a thread of its own; the others answer meanwhile."""

    def __init__(self, fleet: RayFleet) -> None:
        self._fleet = fleet
        self._stop = threading.Event()
        self._progress: Progress | None = None

    def ready(self) -> None:
        """Answers once this process is there; nothing is written yet."""

    def run(
        self, loaded: Loaded, population: Population, out: Path, how: dict[str, Any]
    ) -> Outcome:
        """Run the epoch loop to its end."""
        return Coordinator(
            loaded, population, self._fleet, out, how, self._watch, self._stop.is_set
        ).run()

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


def _cpus() -> int:
    return int(_api.cluster_resources().get("CPU", 1))


def cause_of(error: Exception) -> Exception:
    """What went wrong in the process where it did."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


def _start_less() -> None:
    """Have a session of our own start without what only shows a cluster to people.

    Ray has no options for it: the autoscaler, which would add nodes; the collector of logs, which
    we do not show; and a dashboard's process although we want none, for which Ray waits. They took
    a third of its start. A version of Ray that heeds none of this starts them, and a test says so.
    """
    internals = _api._private
    given = internals.parameter.RayParams

    def parameters(*values: Any, **named: Any) -> Any:
        found = given(*values, **named)
        found.no_monitor, found.include_log_monitor = True, False
        return found

    internals.parameter.RayParams = parameters
    internals.services.start_api_server = lambda *values, **named: ("", None)
    # What it would import to see whether its agent could serve web pages takes as long as Ray.
    internals.utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")


@contextlib.contextmanager
def session(
    address: str | None, starting: contextlib.AbstractContextManager[None]
) -> Iterator[dict[str, Any]]:
    """A connection to Ray: a cluster of our own on this machine, or the one at `address`.

    Our own listens on the loopback device only, and asks for the token that
    `ray_environment.prepare` made before Ray was imported. Ray starts inside `starting`. Yields
    facts of the cluster. Raises ClusterError, or RefusedError where the address is wrong.
    """
    internals = _api._private
    # Or Ray makes an exit of SIGTERM while it starts, and what it had started stays for a minute.
    internals.utils.set_sigterm_handler = lambda handler: None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"_node_ip_address": "127.0.0.1"}
        _start_less()
    else:
        options |= {"address": address}
        warning = ray_probe.check(address)
        if warning is not None:
            print(f"esxsim: warning: {warning}", file=sys.stderr)
    cache = os.environ.get(CACHE_VARIABLE)
    if cache is not None:
        options["runtime_env"] = {"env_vars": {CACHE_VARIABLE: cache}}
    try:
        try:
            with starting:
                ray.init(**options)
        except _NO_CLUSTER as error:
            where = "on this machine" if address is None else f"at {address}"
            why = " ".join(str(error).split())
            raise ClusterError(f"no Ray cluster {where}: {why}") from error
        yield {"ray": ray.__version__, "nodes": len(_api.nodes()), "cpus": _cpus()}
    finally:
        ray.shutdown()


def _start(setup: HostSetup, hosts_per_actor: int) -> tuple[list[Any], Any]:
    """Actors of the hosts, and the coordinator's, all of them starting at the same time."""
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
    # Actors outnumber CPUs and idle at the barrier, so they ask for none.
    remote = ray.remote(HostActor).options(scheduling_strategy="SPREAD", **options)
    hosts = [
        remote.remote(replace(setup, hosts=setup.hosts[first : first + hosts_per_actor]))
        for first in range(0, len(setup.hosts), hosts_per_actor)
    ]
    ids = [spec.host for spec in setup.hosts]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options |= {"scheduling_strategy": here, "max_concurrency": 4}
    fleet = RayFleet(hosts, ids, hosts_per_actor, _cpus())
    return hosts, ray.remote(CoordinatorActor).options(**options).remote(fleet)


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
    meanwhile: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run on the connected cluster and watch it. Raises ClusterError when a process is lost.

    `begin` is told once the hosts are there, before anything is written; `meanwhile` is done while
    they run.
    """
    hosts, coordinator = _start(setup, hosts_per_actor)
    shown: Progress | None = None
    asked_to_stop = False
    try:
        ready = [actor.ready.remote() for actor in (*hosts, coordinator)]
        while len(ray.wait(ready, num_returns=len(ready), timeout=POLL_S)[0]) < len(ready):
            pass  # a signal is heeded in between
        ray.get(ready)
        begin()
        call = coordinator.run.remote(loaded, population, out, how)
        meanwhile()
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
        cause = cause_of(error)
        if isinstance(cause, ray.exceptions.RayError):
            raise ClusterError(f"a process of the run was lost: {cause}") from None
        raise cause from None
    finally:
        for actor in (coordinator, *hosts):
            ray.kill(actor)
