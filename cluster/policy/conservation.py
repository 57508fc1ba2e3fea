"""The truths of a cluster after each barrier: what hosts report is what the coordinator believes.

Each VM is on exactly one host or nowhere; no host promised more than it has; frames held are those
of flights; every VM that left a host arrived at another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.messages import EpochReport, MoveIn, MoveOut, Order
from cluster.policy.state import NOWHERE, RUNS, ClusterState
from hostsim.invariants import BrokenInvariantError


def check(after: ClusterState, orders: Sequence[Order], report: EpochReport) -> None:
    """Raises BrokenInvariantError with its name and the numbers. after: the orders' state."""
    vms = report.vms[report.vms["epoch"] == report.vms["epoch"].max(initial=-1)]
    seen = np.full(len(after.host_of), NOWHERE, np.int64)
    seen[vms["vm"]] = vms["host"]
    _require("each VM is on one host", len(vms), int((after.host_of != NOWHERE).sum()))
    at = np.flatnonzero(seen != after.host_of)
    where = f" of VM {at[0]}" if len(at) else ""
    _require(f"host{where}", seen[at[:1]].tolist(), after.host_of[at[:1]].tolist())
    hosts = report.hosts[report.hosts["epoch"] == report.hosts["epoch"].max(initial=-1)]
    ids = hosts["host"]
    runs = after.power[ids] <= RUNS
    _require("hosts that are on", hosts["on"].tolist(), runs.astype(np.int64).tolist())
    _require("frames held", hosts["held_pages"].tolist(), after.held[ids].tolist())
    promised = after.promised(after.reservation + after.vms.overhead)
    over = np.flatnonzero(promised > after.hosts.reservable).tolist()
    _require("hosts that promised more than they have", over, [])
    left = sorted((one.vm, one.host) for one in orders if isinstance(one, MoveOut))
    came = sorted((one.vm, one.source) for one in orders if isinstance(one, MoveIn))
    _require("migrations are paired", came, left)
    for flight in after.flights:
        _require("a flight's VM is at its source", after.host_of[flight.vm], flight.source)


def _require(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise BrokenInvariantError(f"{name}: {found}, expected {expected}")
