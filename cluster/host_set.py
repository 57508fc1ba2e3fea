"""Some hosts of the cluster, run through whole epochs: what one process holds of them.

A set's report depends on its hosts and their orders alone, so it does not matter how hosts are
spread over sets.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from cluster.errors import BrokenHostError
from cluster.messages import (
    Delay,
    Entitle,
    EpochReport,
    Hold,
    LevelChange,
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
from cluster.policy import balancing
from cluster.policy.decisions import whole_epochs
from cluster.population import HostSpec, Population
from cluster.scenario import Scenario
from hostsim import image, invariants, sketch, snapshot, spread
from hostsim.host import Host, epoch_tables, run_epochs
from hostsim.image import VmImage
from hostsim.packing import PackingError
from hostsim.rows import Rows, Tables
from hostsim.spec import VmSpec
from hostsim.units import HostId, VmId

Images = Mapping[VmId, VmImage]
"""VMs between two hosts."""


class Snapshots(NamedTuple):
    """Hosts as bytes, and for how long they did nothing else than become that, in s."""

    hosts: dict[HostId, bytes]
    took_s: float


CENSUSES = 4
"""How often in a run slots are compared: what they differ by changes slowly."""


def census_epochs(scenario: Scenario) -> int:
    """Epochs from one comparison of slots to the next, from the scenario alone; 0 = never."""
    if scenario.fidelity.sample == 1:
        return 0
    return max(scenario.duration // scenario.epoch // CENSUSES, 1)


class Sketching(NamedTuple):
    """How often hosts sketch what their VMs hold, in epochs; of how many contents one is named."""

    epochs: int
    one_in: int


def sketching(scenario: Scenario, population: Population) -> Sketching | None:
    """At each look of balancing, if it goes by content; from the scenario alone."""
    if population.sketches is None or scenario.balancing.level <= balancing.MANDATORY:
        return None
    return Sketching(
        whole_epochs(scenario, scenario.balancing.interval), population.sketches.one_in
    )


class PowersOn(NamedTuple):
    """VMs that start on a host one after the other, with no other order to it between them."""

    host: HostId
    vms: tuple[VmSpec, ...]


def _together(orders: Sequence[Order]) -> Iterator[Order | PowersOn]:
    """Orders by host, each host's in their order, with starts in a row made one."""
    by_host: dict[HostId, list[Order]] = {}
    for order in orders:
        by_host.setdefault(order.host, []).append(order)
    for host, its in by_host.items():
        for starts, some in groupby(its, lambda order: isinstance(order, PowerOn)):
            if starts:
                yield PowersOn(host, tuple(o.vm for o in some if isinstance(o, PowerOn)))
            else:
                yield from some


class HostSet:
    """Some hosts of the cluster, in id order."""

    def __init__(
        self,
        hosts: Sequence[HostSpec],
        *,
        seed: int,
        sample: int,
        tick_ms: int,
        epoch_ms: int,
        check: bool,
        census_epochs: int = 0,
        sketching: Sketching | None = None,
    ) -> None:
        """census_epochs: how often slots are compared, see `census_epochs`; sketching: likewise."""
        self._hosts = {
            spec.host: Host(spec.host, spec.config, seed, sample, tick_ms) for spec in hosts
        }
        self._names = {spec.host: spec.name for spec in hosts}
        self._epoch_ms = epoch_ms
        self._check = check
        self._census_epochs = census_epochs
        self._sketching = sketching
        self._off: set[HostId] = set()

    def ids(self) -> list[HostId]:
        """The hosts."""
        return list(self._hosts)

    def take(self, orders: Sequence[MoveOut]) -> dict[VmId, VmImage]:
        """VMs leave their hosts. Before `run` of the same orders, in any set."""
        images = {order.vm: image.export_vm(self._hosts[order.host], order.vm) for order in orders}
        for order in orders:
            self._hosts[order.host].power_off(order.vm)
        return images

    def run(
        self,
        orders: Sequence[Order],
        first_epoch: int,
        n_epochs: int,
        images: Images | None = None,
    ) -> EpochReport:
        """As Fleet.run, for orders that all go to hosts of this set. images: of those who come.

        Raises BrokenInvariantError when checking is on and a truth of the memory manager fails.
        """
        started = time.process_time()
        for order in _together(orders):
            self._obey(order, images or {})
        hosts = list(self._hosts.values())
        rows = epoch_tables(hosts, n_epochs)
        n_hosts, n_vms = len(hosts), len(rows[1]) // max(n_epochs, 1)
        changes: list[LevelChange] = []
        contrasts = spread.no_contrasts()
        sketches: Rows | None = None
        done = 0
        while done < n_epochs:
            span = self._span(first_epoch + done, n_epochs - done)
            upto = done + span
            some = rows[0][done * n_hosts : upto * n_hosts], rows[1][done * n_vms : upto * n_vms]
            changes += self._advance(hosts, span, some)
            if self._check:
                self._assert_sound(first_epoch + done)
            if self._is_census(first_epoch + upto):
                for host in hosts:
                    spread.add_to(contrasts, host.state)
            found = self._sketches(first_epoch + upto)
            sketches = sketches if found is None else found
            done = upto
        changes.sort(key=in_order)
        self._blank(rows[0])
        return EpochReport(
            hosts=rows[0].view(np.ndarray),
            vms=rows[1].view(np.ndarray),
            level_changes=tuple(changes),
            busy_s=time.process_time() - started,
            contrasts=contrasts,
            sketches=sketches,
        )

    def save(self) -> Snapshots:
        """All hosts as they are."""
        started = time.perf_counter()
        hosts = {host_id: snapshot.save(host) for host_id, host in self._hosts.items()}
        return Snapshots(hosts, time.perf_counter() - started)

    def restore(self, snapshots: Mapping[HostId, bytes], off: Collection[HostId]) -> None:
        """Make the hosts what they were when they were saved, `off` being those that were off.

        Raises PackingError for snapshots of other hosts, or of a run of another seed.
        """
        for host_id, made in self._hosts.items():
            found = snapshot.load(snapshots[host_id])
            for name in ("host", "seed", "sample", "tick_ms"):
                if getattr(found, name) != getattr(made, name):
                    raise PackingError(f"host {host_id}: the snapshot has another {name}")
            self._hosts[host_id] = found
        self._off = set(off) & set(self._hosts)

    def digests(self) -> dict[HostId, str]:
        """Digest of every host's state."""
        return {host_id: snapshot.digest(host) for host_id, host in self._hosts.items()}

    def _span(self, epoch: int, left: int) -> int:
        """Epochs from `epoch` on that run without a look at the hosts, of those that are left."""
        if self._check:
            return 1
        periods = [self._census_epochs] * (self._census_epochs > 0)
        if self._sketching is not None:
            periods.append(self._sketching.epochs)
        return min([left, *(period - epoch % period for period in periods)])

    def _is_census(self, epoch: int) -> bool:
        return self._census_epochs > 0 and epoch % self._census_epochs == 0

    def _sketches(self, epoch: int) -> Rows | None:
        """What VMs hold at the end of the epoch before this one, where it is due."""
        if self._sketching is None or epoch % self._sketching.epochs:
            return None
        one_in = self._sketching.one_in
        hosts = self._hosts.values()
        parts = [sketch.running(one.state, one.ranges, one.specs, one_in) for one in hosts]
        return by_vm(parts)

    def _blank(self, rows: Rows) -> None:
        """Hosts that are off have time go by, and nothing to report."""
        off = np.isin(rows["host"], sorted(self._off))
        for name in rows.dtype.names or ():
            if name not in ("epoch", "host", "spare_pages"):
                rows[name][off] = 0

    def _switch_off(self, host: Host) -> None:
        for vm in host.vm_ids():
            host.power_off(vm)
        host.hold(0)
        self._off.add(host.host)

    def _obey(self, order: Order | PowersOn, images: Images) -> None:
        host = self._hosts[order.host]
        match order:
            case PowersOn():
                host.power_on(*order.vms)
            case PowerOff():
                host.power_off(order.vm)
            case Reset():
                host.reset(order.vm)
            case SetVm():
                values = {"reservation": order.reservation, "limit": order.limit}
                host.set_vm(order.vm, shares=order.shares, **values)
            case Entitle():
                host.set_vm(order.vm, limit=order.limit, shares=order.shares)
            case SetHost():
                host.set_host(idle_tax=order.idle_tax)
            case MoveOut():
                pass  # it was taken before
            case MoveIn():
                image.import_vm(host, images[order.vm])
            case Hold():
                host.hold(order.pages)
            case Delay():
                host.delay(order.vm, order.lost_ns)
            case SwitchOff():
                self._switch_off(host)
            case SwitchOn():
                self._off.remove(host.host)

    def _advance(self, hosts: list[Host], n_epochs: int, rows: Tables) -> list[LevelChange]:
        changes = run_epochs(hosts, n_epochs, self._epoch_ms, rows)
        return [
            LevelChange(
                at_ms // self._epoch_ms,
                at_ms,
                hosts[i].host,
                before,
                after,
                free * hosts[i].sample,
            )
            for i, at_ms, before, after, free in changes.tolist()
        ]

    def _assert_sound(self, epoch: int) -> None:
        """Raises BrokenInvariantError where a host's state is not what it must be."""
        for host in self._hosts.values():
            try:
                invariants.check(host.state)
            except invariants.BrokenInvariantError as error:
                name = self._names[host.host]
                raise BrokenHostError(host.host, name, epoch, str(error)) from None


def in_order(change: LevelChange) -> tuple[int, int, int]:
    return change.epoch, change.host, change.at_ms


def by_vm(parts: Sequence[Rows]) -> Rows:
    """Sketches of several hosts, or sets of them, by VM and name: a VM is on one host."""
    rows = np.concatenate(parts)
    return rows[np.argsort(rows["vm"], kind="stable")]
