"""Ray actors: hosts in HostActors, the run in a CoordinatorActor, and the driver's side.

Each HostActor holds the hosts of one HostSet; the coordinator calls every actor once a barrier. A
mutating call must not run twice, so Ray's retries and restarts are off: when a process is lost, all
hosts begin again from a checkpoint. How hosts are packed into actors never shows in a result. The
driver only watches, and asks for a stop.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import standing
from cluster.checkpoint import RUN_FILE, Checkpoint
from cluster.coordinator import Coordinator, Keep, Outcome, Progress, Watch
from cluster.errors import ClusterError, LostError, RefusedError
from cluster.fleet import Finish, Saved, merge
from cluster.host_set import HostSet, Images, Sketching, Snapshots
from cluster.messages import EpochReport, MoveIn, MoveOut, Order
from cluster.population import HostSpec, Population
from cluster.ray_session import cause_of, cpus, got, nodes_with_cpus
from cluster.scenario_file import Loaded
from cluster.simulator import simulator
from cluster.watch import attach, live, metrics
from hostsim.host import warm
from hostsim.units import HostId

_api: Any = ray  # for what carries no types
HOSTS_PER_CPU = 2
"""`auto` gives each host its own actor up to this many a CPU; beyond, actors as many as CPUs."""
POLL_S = 0.25
START_S = 300.0
"""How long hosts may take to be there, where nothing says that one never will be."""
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
    off: tuple[HostId, ...] = ()
    """Hosts that are off where the run goes on."""

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

    def __init__(self, setup: HostSetup, snapshots: Mapping[HostId, bytes] | None = None) -> None:
        """snapshots: what the hosts go on from; None: they begin."""
        warm(lambda text: None)
        self._hosts = setup.build()
        if snapshots is not None:
            self._hosts.restore(snapshots, setup.off)

    def ready(self) -> tuple[str, str]:
        """Answers once the hosts are made and their kernels loaded: where, and which esxsim."""
        return _api.util.get_node_ip_address(), simulator()

    def take(self, orders: Sequence[MoveOut]) -> Images:
        """See HostSet.take."""
        return self._hosts.take(orders)

    def run(
        self, orders: Sequence[Order], first_epoch: int, n_epochs: int, *images: Images
    ) -> EpochReport:
        """See HostSet.run. images: what other actors' `take` returned."""
        return self._hosts.run(orders, first_epoch, n_epochs, ChainMap(*map(dict, images)))

    def save(self) -> Snapshots:
        """See HostSet.save."""
        return self._hosts.save()

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
        return lambda: merge(got(calls))

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

    def save(self) -> Saved:
        """See Fleet. An actor saves before it does what is asked of it later."""
        calls = [actor.save.remote() for actor in self._actors]
        return lambda: (got(call) for call in calls)

    def digests(self) -> dict[HostId, str]:
        """See Fleet."""
        found: dict[HostId, str] = {}
        for part in got([actor.digests.remote() for actor in self._actors]):
            found |= part
        return found


class CoordinatorActor:
    """Owns a run. `run` works in a thread of its own; the others answer meanwhile."""

    def __init__(self, fleet: RayFleet) -> None:
        self._fleet = fleet
        self._stop = threading.Event()
        self._progress: Progress | None = None
        self._seen: Progress | None = None

    def ready(self) -> tuple[str, str]:
        """Answers once this process is there; nothing is written yet."""
        return _api.util.get_node_ip_address(), simulator()

    def run(
        self,
        loaded: Loaded,
        population: Population,
        out: Path,
        how: dict[str, Any],
        keep: Keep,
        from_: Checkpoint | None,
    ) -> Outcome:
        """Run the epoch loop to its end; from_: where from, which `keep` does not say."""
        self._exporter = metrics.Exporter()
        if from_ is not None:
            keep = replace(keep, start=standing.unpack(from_.read(RUN_FILE), loaded, population))
        return Coordinator(
            loaded, population, self._fleet, out, how, self._watch, self._stop.is_set, keep
        ).run()

    def progress(self) -> Progress | None:
        """The latest progress; None before the first barrier."""
        return self._progress

    def seen(self) -> Progress | None:
        """The progress at which the latest view was made, so that all of it is of one moment."""
        return self._seen

    def stop(self) -> None:
        """End at the next barrier."""
        self._stop.set()

    def _watch(self, progress: Progress) -> None:
        self._progress = progress
        if self._seen is None or progress.view is not self._seen.view:
            self._seen = progress
        self._exporter.show(progress)


def pack(n_hosts: int, cpus: int, asked: int | None) -> int:
    """Hosts per actor: as asked, or one until the cluster's CPUs are clearly outnumbered."""
    if asked is not None:
        return asked
    if n_hosts <= HOSTS_PER_CPU * cpus:
        return 1
    return -(-n_hosts // max(cpus, 1))


def spread(cpus: Sequence[float], n: int) -> list[int]:
    """Which node each of `n` actors goes to, so that each node's CPUs have as many to do.

    Ray's own strategy goes by what actors ask for, which is nothing. Ties: the earlier node.
    """
    taken = [0] * len(cpus)
    found = []
    for _ in range(n):
        at = min(range(len(cpus)), key=lambda node: (taken[node] + 1) / cpus[node])
        taken[at] += 1
        found.append(at)
    return found


def _start(
    setup: HostSetup, hosts_per_actor: int, from_: Checkpoint | None, run: str
) -> tuple[list[Any], Any]:
    """Actors of the hosts, and the coordinator's, all of them starting at the same time."""
    # Actors outnumber CPUs and idle at the barrier, so they ask for none.
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
    sets = [
        setup.hosts[first : first + hosts_per_actor]
        for first in range(0, len(setup.hosts), hosts_per_actor)
    ]
    nodes = nodes_with_cpus()
    hosts = []
    for mine, at in zip(sets, spread(list(nodes.values()), len(sets)), strict=True):
        # Hard: soft ones all end on one node, and where this one is gone, the run begins again.
        there = NodeAffinitySchedulingStrategy(list(nodes)[at], soft=False)
        snapshots = None if from_ is None else from_.hosts(spec.host for spec in mine)
        remote = ray.remote(HostActor).options(scheduling_strategy=there, **options)
        hosts.append(remote.remote(replace(setup, hosts=mine), snapshots))
    ids = [spec.host for spec in setup.hosts]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options |= {"scheduling_strategy": here, "max_concurrency": 4}
    fleet = RayFleet(hosts, ids, hosts_per_actor, cpus())
    return hosts, attach.start(ray.remote(CoordinatorActor), run, options, fleet)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run on the cluster, from its beginning or from a checkpoint. begin: told once the hosts
    are there, before anything is written; meanwhile: done while they run."""

    loaded: Loaded
    population: Population
    setup: HostSetup
    hosts_per_actor: int
    out: Path
    how: dict[str, Any]
    keep: Keep
    from_: Checkpoint | None = None
    begin: Callable[[], None] = lambda: None
    meanwhile: Callable[[], None] = lambda: None


def run(attempt: Attempt, watch: Watch, should_stop: Callable[[], bool]) -> Outcome:
    """Run on the connected cluster and watch it. Raises LostError when a process is lost."""
    actors: list[Any] = []
    try:
        hosts, coordinator = _start(
            attempt.setup, attempt.hosts_per_actor, attempt.from_, live.run_id(attempt.loaded)
        )
        actors = [coordinator, *hosts]
        _await_all([actor.ready.remote() for actor in actors])
        attempt.begin()
        call = coordinator.run.remote(
            *(attempt.loaded, attempt.population, attempt.out, attempt.how),
            *(attempt.keep, attempt.from_),
        )
        attempt.meanwhile()
        return _watched(coordinator, call, watch, should_stop)
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None
    finally:
        for actor in actors:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)


def _await_all(ready: list[Any]) -> None:
    """Until all actors are there. Raises LostError when that takes too long, or one is not, and
    RefusedError where a node has another esxsim: its hosts would be others."""
    give_up_s = time.monotonic() + START_S
    # A signal is heeded between two looks.
    while len(ray.wait(ready, num_returns=len(ready), timeout=POLL_S)[0]) < len(ready):
        if time.monotonic() > give_up_s:
            raise LostError(f"the cluster did not start all hosts within {START_S:.0f} s")
    for node, found in ray.get(ready):
        if found != simulator():
            raise RefusedError(f"esxsim on node {node} is {found}, and here {simulator()}")


def _watched(coordinator: Any, call: Any, watch: Watch, should_stop: Callable[[], bool]) -> Outcome:
    """Show how the run gets on, and hand on that it is to stop, until it has ended."""
    shown: Progress | None = None
    asked_to_stop = False
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
