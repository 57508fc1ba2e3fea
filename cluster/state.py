"""ClusterState: what the coordinator knows between two epochs; how orders and reports change it.

Columns by id, in bytes. `obey` and `learn` are pure: they return a new state, so that a state can
be kept, compared and replayed. `carry_out` is for those who made a `copy` first. What was promised
(reservations, swap space, sizes) is known exactly; what is measured (consumed, active) is the last
report's, and for a VM not measured yet its boot footprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.messages import EpochReport, Order, PowerOff, PowerOn, Reset, SetHost, SetVm
from cluster.population import Population
from hostsim.units import PAGE_SIZE

Ints = npt.NDArray[np.int64]

NOWHERE = -1
SETTINGS = ("reservation", "limit", "shares")
"""What `set` changes about a VM: columns of the state, fields of a SetVm and of a VmConfig."""


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


@dataclass(frozen=True, slots=True)
class VmColumns:
    """What does not change about the VMs, (n_vms,) each, bytes and numbers."""

    size: Ints
    overhead: Ints
    vcpus: Ints
    footprint: Ints
    """Memory in use after boot: stands for measured memory until there is a measurement."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The cluster at the start of an epoch. Arrays are not written to, but by `carry_out`.

    host_of      (n_vms,) host id, or NOWHERE
    reservation  (n_vms,) bytes; this and the next two outlive a power-off
    limit        (n_vms,) bytes
    shares       (n_vms,) a number
    consumed     (n_vms,) bytes, last measured or expected
    active       (n_vms,) bytes, last measured or expected
    """

    hosts: HostColumns
    vms: VmColumns
    host_of: Ints
    reservation: Ints
    limit: Ints
    shares: Ints
    consumed: Ints
    active: Ints

    def per_host(self, column: Ints) -> Ints:
        """(n_hosts,) sums of a VM column over the VMs that are on."""
        on = self.host_of != NOWHERE
        sums = np.zeros(len(self.hosts.memory), np.int64)
        np.add.at(sums, self.host_of[on], column[on])
        return sums


def initial(population: Population) -> ClusterState:
    """All hosts on, no VM on."""
    configs = [host.config for host in population.hosts]
    specs = [vm.spec for vm in population.vms]
    footprint = _column([min(s.image.footprint, s.config.memory) for s in specs])
    return ClusterState(
        hosts=HostColumns(
            memory=_column([config.memory for config in configs]),
            reservable=_column([config.memory - config.reserve for config in configs]),
            swap_space=_column([config.swap_space_bytes for config in configs]),
            cpus=_column([config.cpus for config in configs]),
        ),
        vms=VmColumns(
            size=_column([spec.config.memory for spec in specs]),
            overhead=_column([spec.config.overhead for spec in specs]),
            vcpus=_column([spec.config.vcpus for spec in specs]),
            footprint=footprint,
        ),
        host_of=np.full(len(specs), NOWHERE, np.int64),
        reservation=_column([spec.config.reservation for spec in specs]),
        limit=_column([spec.config.limit or spec.config.memory for spec in specs]),
        shares=_column([spec.config.share_count for spec in specs]),
        consumed=footprint.copy(),
        active=footprint.copy(),
    )


def copy(state: ClusterState) -> ClusterState:
    """The same state, whose columns may be written to until it is handed on."""
    columns = ("host_of", "consumed", "active", *SETTINGS)
    return replace(state, **{name: getattr(state, name).copy() for name in columns})


def carry_out(state: ClusterState, order: Order) -> None:
    """Write to the state what an order changes."""
    match order:
        case PowerOn():
            vm = order.vm.vm
            state.host_of[vm] = order.host
            state.consumed[vm] = state.active[vm] = state.vms.footprint[vm]
        case PowerOff():
            state.host_of[order.vm] = NOWHERE
        case SetVm():
            for name in SETTINGS:
                value = getattr(order, name)
                if value is not None:
                    getattr(state, name)[order.vm] = value
        case Reset() | SetHost():
            pass


def obey(state: ClusterState, orders: Sequence[Order]) -> ClusterState:
    """The state once `orders` are carried out."""
    after = copy(state)
    for order in orders:
        carry_out(after, order)
    return after


def learn(state: ClusterState, report: EpochReport) -> ClusterState:
    """The state with what the last epoch of a report measured."""
    if len(report.vms) == 0:
        return state
    rows = report.vms[report.vms["epoch"] == report.vms["epoch"][-1]]
    consumed, active = state.consumed.copy(), state.active.copy()
    consumed[rows["vm"]] = rows["consumed_pages"] * PAGE_SIZE
    active[rows["vm"]] = rows["active_pages"] * PAGE_SIZE
    return replace(state, consumed=consumed, active=active)


def _column(values: Sequence[int]) -> Ints:
    return np.array(values, np.int64)
