"""ClusterState: what the coordinator knows between two epochs; how orders and reports change it.

Columns by id, in bytes. `obey` and `learn` are pure: they return a new state, so that a state can
be kept, compared and replayed. `carry_out` is for those who made a `copy` first. What was promised
(reservations, swap space, sizes) is known exactly; what is measured (consumed, active) is the last
report's, and for a VM not measured yet its boot footprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cluster.messages import (
    Delay,
    Entitle,
    EpochReport,
    Hold,
    MoveIn,
    MoveOut,
    Order,
    PowerOff,
    PowerOn,
    Reset,
    SetHost,
    SetVm,
    SwitchOff,
    SwitchOn,
)
from cluster.policy.migration import Flight
from cluster.pools import Pools
from cluster.population import Population
from cluster.rules import Rules
from cluster.sketches import Sketches, nothing
from hostsim.config import Sharing
from hostsim.units import PAGE_SIZE, HostId, VmId

Ints = npt.NDArray[np.int64]

NOWHERE = -1
ON, EVACUATING, CLEARING, OFF, FAILED, STANDBY, BOOTING = range(7)
"""What a host may be: open to VMs; being emptied, for maintenance or to save power; off as planned,
or by failure; off to save power; on its way from there."""
RUNS = CLEARING
"""Up to here a host runs VMs."""
SETTINGS = ("reservation", "limit", "shares")
"""What `set` changes about a VM: columns of the state, fields of a SetVm and of a VmConfig."""
OF_HOSTS = ("power", "ready_ms", "low_ms", "high_ms", "spare", "held")
"""What changes about hosts."""
MEASURED = ("consumed", "active", "allocated", "writes", "cpu_ms", "holds")
"""What reports say of VMs."""


@dataclass(frozen=True, slots=True)
class HostColumns:
    """What does not change about the hosts, (n_hosts,) each.

    memory: bytes of the machine, what every ratio is over. reservable: those of them that VMs can
    be promised, the hypervisor's reserve taken off. swap_space: bytes.
    """

    memory: Ints
    reservable: Ints
    swap_space: Ints
    cpus: Ints
    mixes: npt.NDArray[np.bool_]
    """Whether VMs may share pages with one another there."""


@dataclass(frozen=True, slots=True)
class VmColumns:
    """What does not change about the VMs, (n_vms,) each, bytes and numbers."""

    size: Ints
    overhead: Ints
    vcpus: Ints
    footprint: Ints
    """Memory in use after boot: stands for measured memory until there is a measurement."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A VM that is to start as soon as a host takes it."""

    vm: VmId
    since_ms: int
    not_before_ms: int
    restart: bool
    """After the failure of its host; else it comes for the first time."""
    reason: str | None = None
    """Why no host took it at the last try."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The cluster at the start of an epoch. Arrays are not written to, but by `carry_out`.

    power        (n_hosts,) ON to BOOTING
    ready_ms     (n_hosts,) when a BOOTING host takes VMs
    low_ms       (n_hosts,) for how long its load has been low, as power saving saw it
    high_ms      (n_hosts,) the same of high
    spare        (n_hosts,) pages: free frames, last measured, less those promised since
    held         (n_hosts,) pages: frames kept for VMs on their way here
    host_of      (n_vms,) host id, or NOWHERE; of a VM on its way, where it still runs
    reservation  (n_vms,) bytes; this and the next two outlive a power-off
    limit        (n_vms,) bytes
    shares       (n_vms,) a number
    entitled     (n_vms,) MiB by its pools, as its host was told; NOWHERE if it was not
    consumed     (n_vms,) bytes, last measured or expected
    active       (n_vms,) bytes, last measured or expected
    allocated    (n_vms,) pages in memory, compressed ones included, last measured
    writes       (n_vms,) pages written in the last epoch
    cpu_ms       (n_vms,) CPU time that it would have used in the last epoch
    holds        (n_vms,) row of `sketches` that says what it holds, as last found or expected
    flights      VMs on their way, by id
    queue        VMs that wait for a host, in order
    rules        which VMs may be where: they never change
    pools        resource pools: they never change
    sketches     what VMs hold; of nobody, unless placement goes by content
    """

    hosts: HostColumns
    vms: VmColumns
    power: Ints
    ready_ms: Ints
    low_ms: Ints
    high_ms: Ints
    spare: Ints
    held: Ints
    host_of: Ints
    reservation: Ints
    limit: Ints
    shares: Ints
    entitled: Ints
    consumed: Ints
    active: Ints
    allocated: Ints
    writes: Ints
    cpu_ms: Ints
    holds: Ints
    sketches: Sketches
    flights: tuple[Flight, ...] = ()
    queue: tuple[Waiting, ...] = ()
    rules: Rules = field(default_factory=Rules)
    pools: Pools = field(default_factory=Pools)

    def per_host(self, column: Ints) -> Ints:
        """(n_hosts,) sums of a VM column over the VMs that are on."""
        on = self.host_of != NOWHERE
        sums = np.zeros(len(self.hosts.memory), np.int64)
        np.add.at(sums, self.host_of[on], column[on])
        return sums

    def promised(self, column: Ints) -> Ints:
        """(n_hosts,) the same, with VMs on their way counted where they go, too."""
        sums = self.per_host(column)
        for flight in self.flights:
            sums[flight.target] += column[flight.vm]
        return sums

    def whereabouts(self) -> Ints:
        """(n_vms,) host of each VM, of one on its way where it goes; NOWHERE where it has none."""
        where = self.host_of.copy()
        for flight in self.flights:
            where[flight.vm] = flight.target
        return where

    def flight_of(self, vm: VmId) -> Flight | None:
        """The flight of a VM, if it is on its way."""
        return next((flight for flight in self.flights if flight.vm == vm), None)


def initial(population: Population) -> ClusterState:
    """All hosts on, no VM on."""
    configs = [host.config for host in population.hosts]
    specs = [vm.spec for vm in population.vms]
    footprint = _column([min(s.image.footprint, s.config.memory) for s in specs])
    reservable = _column([config.machine_bytes - config.reserve for config in configs])
    none = np.zeros(len(specs), np.int64)
    sketches = population.sketches or nothing(len(specs))
    return ClusterState(
        hosts=HostColumns(
            memory=_column([config.machine_bytes for config in configs]),
            reservable=reservable,
            swap_space=_column([config.swap_space_bytes for config in configs]),
            cpus=_column([config.cpus for config in configs]),
            mixes=np.array([_mixes(config.sharing) for config in configs], np.bool_),
        ),
        vms=VmColumns(
            size=_column([spec.config.memory for spec in specs]),
            overhead=_column([spec.config.overhead for spec in specs]),
            vcpus=_column([spec.config.vcpus for spec in specs]),
            footprint=footprint,
        ),
        power=np.full(len(configs), ON, np.int64),
        ready_ms=np.zeros(len(configs), np.int64),
        low_ms=np.zeros(len(configs), np.int64),
        high_ms=np.zeros(len(configs), np.int64),
        spare=reservable // PAGE_SIZE,
        held=np.zeros(len(configs), np.int64),
        host_of=np.full(len(specs), NOWHERE, np.int64),
        reservation=_column([spec.config.reservation for spec in specs]),
        limit=_column([spec.config.limit or spec.config.memory for spec in specs]),
        shares=_column([spec.config.share_count for spec in specs]),
        entitled=np.full(len(specs), NOWHERE, np.int64),
        consumed=footprint.copy(),
        active=footprint.copy(),
        allocated=none,
        writes=none.copy(),
        cpu_ms=none.copy(),
        holds=sketches.expected.copy(),
        sketches=sketches,
        rules=population.rules,
        pools=population.pools,
    )


def copy(state: ClusterState) -> ClusterState:
    """The same state, whose columns may be written to until it is handed on."""
    columns = (*OF_HOSTS, "host_of", "entitled", *MEASURED, *SETTINGS)
    return replace(state, **{name: getattr(state, name).copy() for name in columns})


def carry_out(state: ClusterState, order: Order) -> None:
    """Write to the state what an order changes."""
    match order:
        case PowerOn():
            vm = order.vm.vm
            state.host_of[vm] = order.host
            state.entitled[vm] = NOWHERE
            state.consumed[vm] = state.active[vm] = state.vms.footprint[vm]
            state.allocated[vm] = state.writes[vm] = state.cpu_ms[vm] = 0
            state.holds[vm] = state.sketches.expected[vm]
        case PowerOff():
            state.host_of[order.vm] = NOWHERE
        case SetVm():
            for name in SETTINGS:
                value = getattr(order, name)
                if value is not None:
                    getattr(state, name)[order.vm] = value
            state.entitled[order.vm] = NOWHERE
        case MoveOut():
            state.host_of[order.vm] = NOWHERE
        case MoveIn():
            state.host_of[order.vm] = order.host
            came_in = min(int(state.held[order.host]), int(state.allocated[order.vm]))
            state.held[order.host] -= came_in
            state.spare[order.host] -= state.allocated[order.vm] - came_in
        case Hold():
            state.spare[order.host] += state.held[order.host] - order.pages
            state.held[order.host] = order.pages
        case SwitchOff():
            state.power[order.host] = OFF
            state.held[order.host] = 0
            state.host_of[state.host_of == order.host] = NOWHERE
        case SwitchOn():
            state.power[order.host] = ON
        case Entitle():
            state.entitled[order.vm] = order.entitled_mib
        case Reset() | SetHost() | Delay():
            pass


def set_power(state: ClusterState, host: HostId, power: int) -> None:
    """Write to the state what a host is from now on, where hosts are told nothing."""
    state.power[host] = power


def boot(state: ClusterState, host: HostId, ready_ms: int) -> None:
    """Write to the state that a host on standby boots, and until when."""
    state.power[host] = BOOTING
    state.ready_ms[host] = ready_ms


def obey(state: ClusterState, orders: Sequence[Order]) -> ClusterState:
    """The state once `orders` are carried out."""
    after = copy(state)
    for order in orders:
        carry_out(after, order)
    return after


def learn(state: ClusterState, report: EpochReport) -> ClusterState:
    """The state with what the last epoch of a report measured."""
    after = copy(state)
    hosts = report.hosts[report.hosts["epoch"] == report.hosts["epoch"].max(initial=-1)]
    after.spare[hosts["host"]] = hosts["spare_pages"]
    vms = report.vms[report.vms["epoch"] == report.vms["epoch"].max(initial=-1)]
    after.consumed[vms["vm"]] = vms["consumed_pages"] * PAGE_SIZE
    after.active[vms["vm"]] = vms["active_pages"] * PAGE_SIZE
    after.allocated[vms["vm"]] = vms["allocated_pages"] + vms["compressed_pages"]
    after.writes[vms["vm"]], after.cpu_ms[vms["vm"]] = vms["writes"], vms["cpu_ms"]
    if report.sketches is None:
        return after
    known, rows = state.sketches.rows_of(report.sketches)
    # Of VMs that are not booted nothing was found: what is expected of them is known still.
    after.holds[:] = state.sketches.expected
    after.holds[known] = rows
    return replace(after, sketches=state.sketches.learned(report.sketches))


def _mixes(sharing: Sharing) -> bool:
    return sharing.enabled and sharing.salting == "none"


def _column(values: Sequence[int]) -> Ints:
    return np.array(values, np.int64)
