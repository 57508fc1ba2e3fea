"""The hosts of a run behind one interface: in this process (here) or in Ray actors (`actors`).

`HostSet` is the part that both share: some hosts, run through whole epochs. A set's report depends
on its hosts and their orders alone, so it does not matter how hosts are spread over sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from cluster.messages import (
    HOST_ROW,
    VM_ROW,
    EpochReport,
    LevelChange,
    Order,
    PowerOff,
    PowerOn,
    Reset,
    Rows,
    SetHost,
    SetVm,
)
from cluster.population import HostSpec
from hostsim import invariants, snapshot
from hostsim.host import Host
from hostsim.units import HostId

Finish = Callable[[], EpochReport]
"""Waits until hosts have run as they were told, and gives their report. Called once."""


class Fleet(Protocol):
    """Hosts that carry out orders and report."""

    workers: int
    """How many of them can be at work at the same time: processes, or cores where those are
    fewer."""

    def start(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> Finish:
        """Carry out `orders`, then simulate epochs [first_epoch, first_epoch + n_epochs)."""

    def digests(self) -> dict[HostId, str]:
        """Digest of every host's final state."""


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
    ) -> None:
        self._hosts = {
            spec.host: Host(spec.host, spec.config, seed, sample, tick_ms) for spec in hosts
        }
        self._epoch_ms = epoch_ms
        self._check = check

    def run(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> EpochReport:
        """As Fleet.run, for orders that all go to hosts of this set.

        Raises BrokenInvariantError when checking is on and a truth of the memory manager fails.
        """
        started = time.process_time()
        for order in orders:
            self._obey(order)
        host_rows: list[Rows] = []
        vm_rows: list[Rows] = []
        changes: list[LevelChange] = []
        for epoch in range(first_epoch, first_epoch + n_epochs):
            for host in self._hosts.values():
                changes += self._advance(host, epoch)
                of_host, of_vms = host.measure()
                of_host["epoch"] = of_vms["epoch"] = epoch
                host_rows.append(of_host)
                vm_rows.append(of_vms)
        return EpochReport(
            hosts=np.concatenate(host_rows or [np.zeros(0, HOST_ROW)]),
            vms=np.concatenate(vm_rows or [np.zeros(0, VM_ROW)]),
            level_changes=tuple(changes),
            busy_s=time.process_time() - started,
        )

    def digests(self) -> dict[HostId, str]:
        """Digest of every host's state."""
        return {host_id: snapshot.digest(host) for host_id, host in self._hosts.items()}

    def _obey(self, order: Order) -> None:
        host = self._hosts[order.host]
        match order:
            case PowerOn():
                host.power_on(order.vm)
            case PowerOff():
                host.power_off(order.vm)
            case Reset():
                host.reset(order.vm)
            case SetVm():
                values = {"reservation": order.reservation, "limit": order.limit}
                host.set_vm(order.vm, shares=order.shares, **values)
            case SetHost():
                host.set_host(idle_tax=order.idle_tax)

    def _advance(self, host: Host, epoch: int) -> list[LevelChange]:
        changes = host.advance(self._epoch_ms)
        if self._check:
            try:
                invariants.check(host.state)
            except invariants.BrokenInvariantError as error:
                where = f"host {host.host}, epoch {epoch}"
                raise invariants.BrokenInvariantError(f"{where}: {error}") from None
        return [
            LevelChange(epoch, at_ms, host.host, before, after, free * host.sample)
            for at_ms, before, after, free in changes.tolist()
        ]


class LocalFleet:
    """All hosts in this process."""

    workers = 1

    def __init__(self, hosts: HostSet) -> None:
        self._hosts = hosts

    def start(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> Finish:
        """See Fleet. They run when their report is asked for: nobody else would run them."""
        return lambda: self.run(orders, first_epoch, n_epochs)

    def run(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> EpochReport:
        """Start, and finish."""
        return self._hosts.run(orders, first_epoch, n_epochs)

    def digests(self) -> dict[HostId, str]:
        """See Fleet."""
        return self._hosts.digests()


def merge(reports: Sequence[EpochReport]) -> EpochReport:
    """One report of several sets' reports: rows by epoch, then host, then VM."""
    hosts = np.concatenate([report.hosts for report in reports])
    vms = np.concatenate([report.vms for report in reports])
    changes = [change for report in reports for change in report.level_changes]
    changes.sort(key=lambda change: (change.epoch, change.host, change.at_ms))
    return EpochReport(
        hosts=hosts[np.lexsort((hosts["host"], hosts["epoch"]))],
        vms=vms[np.lexsort((vms["vm"], vms["host"], vms["epoch"]))],
        level_changes=tuple(changes),
        busy_s=sum(report.busy_s for report in reports),
    )
