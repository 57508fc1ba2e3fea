"""The hosts of a run behind one interface: in this process (here) or in Ray actors (`actors`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from cluster.host_set import HostSet, Snapshots, by_vm, in_order
from cluster.messages import (
    EpochReport,
    MoveOut,
    Order,
)
from hostsim import spread
from hostsim.units import HostId

Finish = Callable[[], EpochReport]
"""Waits until hosts have run as they were told, and gives their report. Called once."""


Saved = Callable[[], Iterator[Snapshots]]
"""Waits for snapshots that hosts have begun to make, set by set. Called once."""


class Fleet(Protocol):
    """Hosts that carry out orders and report."""

    workers: int
    """How many of them can be at work at the same time: processes, or cores where those are
    fewer."""

    def start(self, orders: Sequence[Order], first_epoch: int, n_epochs: int) -> Finish:
        """Carry out `orders`, then simulate epochs [first_epoch, first_epoch + n_epochs)."""

    def save(self) -> Saved:
        """Snapshots of all hosts as they are now, whatever is started next."""

    def digests(self) -> dict[HostId, str]:
        """Digest of every host's final state."""


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
        images = self._hosts.take([order for order in orders if isinstance(order, MoveOut)])
        return self._hosts.run(orders, first_epoch, n_epochs, images)

    def save(self) -> Saved:
        """See Fleet."""
        saved = self._hosts.save()
        return lambda: iter([saved])

    def digests(self) -> dict[HostId, str]:
        """See Fleet."""
        return self._hosts.digests()


def merge(reports: Sequence[EpochReport]) -> EpochReport:
    """One report of several sets' reports: rows by epoch, then host, then VM."""
    hosts = np.concatenate([report.hosts for report in reports])
    vms = np.concatenate([report.vms for report in reports])
    changes = [change for report in reports for change in report.level_changes]
    changes.sort(key=in_order)
    sketches = [report.sketches for report in reports if report.sketches is not None]
    return EpochReport(
        hosts=hosts[np.lexsort((hosts["host"], hosts["epoch"]))],
        vms=vms[np.lexsort((vms["vm"], vms["host"], vms["epoch"]))],
        level_changes=tuple(changes),
        busy_s=sum(report.busy_s for report in reports),
        contrasts=sum((report.contrasts for report in reports), spread.no_contrasts()),
        sketches=by_vm(sketches) if sketches else None,
    )
