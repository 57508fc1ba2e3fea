"""Builders for tests of the cluster: states of made-up hosts and VMs, and a small run that hurts.

The run is small in pages (one simulated in 16) and short, and has everything in it: arrivals,
departures, every action of an event, refusals, and hosts too small for what their guests use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scenario_files import changed, write

from cluster import resumption
from cluster.coordinator import Coordinator, Keep, Outcome, Progress
from cluster.fleet import Finish, Fleet, LocalFleet, Saved, merge
from cluster.host_set import HostSet, census_epochs, sketching
from cluster.messages import EpochReport, MoveOut, Order
from cluster.policy import agenda, planner
from cluster.policy.agenda import Agenda, Due, HostDue
from cluster.policy.decisions import Decision, Plan, Sight
from cluster.policy.state import NOWHERE, ON, ClusterState, HostColumns, VmColumns, initial
from cluster.pools import Pools
from cluster.population import HostSpec, Population, populate
from cluster.rules import Rules
from cluster.scenario import Scenario
from cluster.scenario_file import Loaded, load
from cluster.sketches import Sketches, nothing
from hostsim.invariants import BrokenInvariantError
from hostsim.units import HostId

PRESSED: dict[str, Any] = {
    "name": "pressed",
    "seed": 7,
    "duration": "15 min",
    "tick": "5 s",
    "fidelity": {"sample": 16},
    "hosts": [{"name": "esx", "count": 3, "memory": "256 MiB", "reserve": "16 MiB", "cpus": 4}],
    "images": [
        {
            "name": "linux",
            "footprint": "48 MiB",
            "content": {
                "kernel": {"image": "20 %", "unique": "10 %"},
                "anon": {"zero": "20 %", "image": "20 %", "unique": "30 %"},
            },
        }
    ],
    "workloads": [
        {
            "name": "hungry",
            "stagger": "2 min",
            "phases": [
                {"duration": "3 min", "memory": "90 %", "active": "60 %", "touch_interval": "5 s"},
                {"duration": "2 min", "memory": "50 %", "active": "10 %", "touch_interval": "5 s"},
            ],
        }
    ],
    "vms": [
        {
            "name": "web",
            "count": 8,
            "memory": "128 MiB",
            "reservation": "16 MiB",
            "overhead": "4 MiB",
            "image": "linux",
            "workload": "hungry",
            "interval": "30 s",
        },
        {
            "name": "batch",
            "count": 3,
            "memory": "96 MiB",
            "overhead": "4 MiB",
            "balloon": "absent",
            "image": "linux",
            "workload": "hungry",
            "start": "2 min",
            "stop": "7 min",
            "interval": "1 min",
        },
        {
            "name": "late",
            "memory": "64 MiB",
            "overhead": "4 MiB",
            "image": "linux",
            "workload": "hungry",
            "start": "never",
        },
        {
            "name": "wide",
            "memory": "200 MiB",
            "image": "linux",
            "workload": "hungry",
            "start": "8 min",
        },
    ],
    "placement": {"policy": "worst-fit", "overcommit": 2.0},
    "events": [
        {"at": "4 min", "target": "web-1", "action": "reset"},
        {"at": "5 min", "target": "web-2", "action": "set", "values": {"shares": "high"}},
        {"at": "5 min", "target": "esx-2", "action": "set", "values": {"idle_tax": "0 %"}},
        {"at": "6 min", "target": "web-3", "action": "set", "values": {"reservation": "64 MiB"}},
        {"at": "9 min", "target": "web-4", "action": "power_off"},
        {"at": "10 min", "target": "late", "action": "power_on"},
    ],
}
"""`wide` finds no host; everything else does."""


def cluster(
    *,
    memory: Sequence[int],
    size: Sequence[int],
    on: Sequence[int] | None = None,
    rules: Rules | None = None,
    pools: Pools | None = None,
    sketches: Sketches | None = None,
    **columns: Any,
) -> ClusterState:
    """A state from columns; what is not given is ample room and zero needs.

    on: host of each VM, -1 is nowhere, which is also the default. reservable: all memory.
    """
    hosts, vms = len(memory), len(size)

    def column(name: str, default: Sequence[int]) -> Any:
        return np.array(columns.pop(name, default), np.int64)

    host_columns = HostColumns(
        memory=np.array(memory, np.int64),
        reservable=column("reservable", memory),
        swap_space=column("swap_space", [1 << 40] * hosts),
        cpus=column("cpus", [1 << 20] * hosts),
        mixes=column("mixes", [1] * hosts) == 1,
    )
    footprint = column("footprint", size)
    state = ClusterState(
        hosts=host_columns,
        vms=VmColumns(
            size=np.array(size, np.int64),
            overhead=column("overhead", [0] * vms),
            vcpus=column("vcpus", [1] * vms),
            footprint=footprint,
        ),
        power=column("power", [ON] * hosts),
        ready_ms=column("ready_ms", [0] * hosts),
        low_ms=column("low_ms", [0] * hosts),
        high_ms=column("high_ms", [0] * hosts),
        spare=column("spare", [1 << 40] * hosts),
        held=column("held", [0] * hosts),
        host_of=np.array([NOWHERE] * vms if on is None else on, np.int64),
        reservation=column("reservation", [0] * vms),
        limit=column("limit", size),
        shares=column("shares", [1000] * vms),
        entitled=column("entitled", [NOWHERE] * vms),
        consumed=column("consumed", footprint),
        active=column("active", footprint),
        allocated=column("allocated", [0] * vms),
        writes=column("writes", [0] * vms),
        cpu_ms=column("cpu_ms", [0] * vms),
        holds=column("holds", [0] * vms),
        sketches=nothing(vms) if sketches is None else sketches,
        rules=Rules() if rules is None else rules,
        pools=Pools() if pools is None else pools,
    )
    assert not columns, f"unknown columns: {columns}"
    return state


def arrays_of(state: ClusterState) -> list[list[int]]:
    """Every number of a state, to compare states with."""
    hosts, vms = state.hosts, state.vms
    columns = [hosts.memory, hosts.reservable, hosts.swap_space, hosts.cpus]
    columns += [vms.size, vms.overhead, vms.vcpus, vms.footprint]
    columns += [state.host_of, state.reservation, state.limit, state.shares]
    columns += [state.holds]
    columns += [state.consumed, state.active, state.allocated, state.writes, state.cpu_ms]
    columns += [
        state.entitled,
        state.power,
        state.spare,
        state.held,
        state.ready_ms,
        state.low_ms,
        state.high_ms,
    ]
    return [column.tolist() for column in columns]


class Plans:
    """A scenario, its agenda, and the plans of its epochs one after the other."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.take_in(load(write(folder, changed(**values))))

    def take_in(self, found: Loaded) -> None:
        """Begin with a scenario that was loaded."""
        self.loaded: Loaded = found
        self.scenario: Scenario = found.scenario
        self.population: Population = populate(found)
        self.agenda: Agenda = agenda.agenda(self.population, self.scenario)
        self.now: ClusterState = initial(self.population)
        self.names = [vm.spec.name for vm in self.population.vms]

    def due(self) -> list[tuple[int, str, str]]:
        return [(one.epoch, self._action(one), self._name(one)) for one in self.agenda.due]

    def _action(self, one: Due | HostDue) -> str:
        return one.action

    def _name(self, one: Due | HostDue | Decision) -> str:
        """The VM that it is about, or the host."""
        if isinstance(one, HostDue) or one.vm is None:
            assert one.host is not None
            return self.population.hosts[one.host].name
        return self.names[one.vm]

    def plan(self, due: list[Due | HostDue], epoch: int) -> Plan:
        plan = planner.plan(self.now, due, Sight(self.population, self.scenario, epoch))
        self.now = plan.after
        return plan

    def all(self) -> list[Plan]:
        """Plans of every epoch in which something is due."""
        return [self.plan(list(self.agenda.at(e)), e) for e in dict.fromkeys(self.agenda.epochs)]

    def told(self) -> list[tuple[str, str, str | None]]:
        """(kind, VM or host, reason) of every decision of the run."""
        decisions = [one for plan in self.all() for one in plan.decisions]
        return [(one.kind, self._name(one), one.reason) for one in decisions]


def pressed(folder: Path, **values: Any) -> Loaded:
    """PRESSED with top-level keys replaced, loaded."""
    return load(write(folder, PRESSED | values, "pressed.yaml"))


MOVES: list[dict[str, Any]] = [
    {"at": "3 min", "target": "web-1", "action": "migrate", "values": {"host": "esx-2"}},
    {"at": "3 min", "target": "web-2", "action": "migrate", "values": {"host": "esx-3"}},
    {"at": "5 min", "target": "web-1", "action": "migrate", "values": {"host": "esx-3"}},
    {"at": "6 min", "target": "batch-1", "action": "migrate", "values": {"host": "esx-1"}},
    {"at": "11 min", "target": "web-6", "action": "migrate", "values": {"host": "esx-1"}},
]


def restless(folder: Path, **values: Any) -> Loaded:
    """PRESSED on hosts with more memory, some of whose VMs are sent from host to host."""
    events = sorted([*PRESSED["events"], *MOVES], key=lambda one: int(one["at"].split()[0]))
    hosts = [PRESSED["hosts"][0] | {"memory": "400 MiB"}]
    return pressed(folder, **({"events": events, "hosts": hosts} | values))


def host_set(loaded: Loaded, hosts: Sequence[HostSpec], check: bool = False) -> HostSet:
    """Some hosts of a scenario, ready to run."""
    scenario = loaded.scenario
    return HostSet(
        hosts,
        seed=scenario.seed,
        sample=scenario.fidelity.sample,
        tick_ms=scenario.tick,
        epoch_ms=scenario.epoch,
        check=check,
        census_epochs=census_epochs(scenario),
        sketching=sketching(scenario, populate(loaded)) if scenario.placement.content else None,
    )


class PackedFleet:
    """Hosts in several sets of one process, asked in any order: what actors do, without Ray."""

    def __init__(self, sets: Mapping[tuple[HostId, ...], HostSet]) -> None:
        self._sets = sets
        self.workers = len(sets)

    def start(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> Finish:
        """See Fleet."""
        reports = []
        mine = {ids: [one for one in orders if one.host in ids] for ids in self._sets}
        images = {}
        for ids, hosts in self._sets.items():
            images |= hosts.take([one for one in mine[ids] if isinstance(one, MoveOut)])
        for ids, hosts in self._sets.items():
            reports.append(hosts.run(mine[ids], first_epoch, n_epochs, images))
        return lambda: merge(reports)

    def run(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> EpochReport:
        """Start, and finish."""
        return self.start(orders, first_epoch, n_epochs)()

    def save(self) -> Saved:
        """See Fleet."""
        saved = [hosts.save() for hosts in self._sets.values()]
        return lambda: iter(saved)

    def digests(self) -> dict[HostId, str]:
        """See Fleet."""
        return {
            host: text for hosts in self._sets.values() for host, text in hosts.digests().items()
        }


def packed(loaded: Loaded, population: Population, packs: Sequence[Sequence[int]]) -> PackedFleet:
    """A fleet of one HostSet per pack of host ids, in the order given."""
    sets = {}
    for pack in packs:
        specs = [population.hosts[host] for host in pack]
        sets[tuple(spec.host for spec in specs)] = host_set(loaded, specs)
    return PackedFleet(sets)


class Recorded(LocalFleet):
    """Writes down what it is asked; fails on demand."""

    def __init__(self, loaded: Loaded, population: Population) -> None:
        super().__init__(host_set(loaded, population.hosts))
        self.calls: list[tuple[int, int, int]] = []
        self.fails_at: int | None = None

    def run(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> EpochReport:
        self.calls.append((first_epoch, n_epochs, len(orders)))
        if self.fails_at is not None and first_epoch >= self.fails_at:
            raise BrokenInvariantError("host 0, epoch 7: frames: 3 used + 4 free != 8")
        return super().run(orders, first_epoch, n_epochs)


def recorded(
    fails_at: int | None = None,
) -> tuple[Callable[[Loaded, Population], Fleet], list[Recorded]]:
    made: list[Recorded] = []

    def fleet(loaded: Loaded, population: Population) -> Fleet:
        made.append(Recorded(loaded, population))
        made[0].fails_at = fails_at
        return made[0]

    return fleet, made


def simulate(
    loaded: Loaded,
    out: Path,
    *,
    fleet: Callable[[Loaded, Population], Fleet] | None = None,
    watch: Callable[[Progress], None] = lambda now: None,
    should_stop: Callable[[], bool] = lambda: False,
    check: bool = False,
    resumes: bool = False,
    every_s: float = 0.0,
) -> Outcome:
    """A whole run in this process, into the folder `out`. resumes: from its last checkpoint."""
    population = populate(loaded)
    hosts: Fleet = (
        LocalFleet(host_set(loaded, population.hosts, check))
        if fleet is None
        else fleet(loaded, population)
    )
    how, keep = {"fleet": "test"}, Keep(every_s=every_s)
    if resumes:
        found = resumption.find(out, loaded, population)
        keep = Keep(found.standing, every_s)
        sets = list(hosts._sets.values()) if isinstance(hosts, PackedFleet) else [hosts._hosts]
        for one in sets:
            one.restore(found.checkpoint.hosts(one.ids()), found.standing.off())
    return Coordinator(loaded, population, hosts, out, how, watch, should_stop, keep).run()


def json_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return found
