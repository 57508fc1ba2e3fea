"""The truths of a cluster: each is seen to be broken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cluster_builders import cluster

from cluster.messages import HOST_ROW, VM_ROW, EpochReport, MoveIn, MoveOut
from cluster.policy import conservation, migration
from cluster.policy.state import NOWHERE, ON, STANDBY, ClusterState
from hostsim.invariants import BrokenInvariantError
from hostsim.units import HostId, VmId


def sound() -> tuple[ClusterState, EpochReport]:
    """VM 0 on host 0, VM 1 on host 1, VM 2 nowhere; host 2 sleeps."""
    state = cluster(
        memory=[100, 100, 100], size=[10, 20, 30], on=[0, 1, NOWHERE], power=[ON, ON, STANDBY]
    )
    hosts, vms = np.zeros(3, HOST_ROW), np.zeros(2, VM_ROW)
    hosts["host"], hosts["on"] = [0, 1, 2], [1, 1, 0]
    vms["vm"], vms["host"] = [0, 1], [0, 1]
    return state, EpochReport(hosts, vms, (), 0.0)


def test_a_sound_cluster_passes() -> None:
    state, report = sound()
    conservation.check(state, [], report)
    moved = [MoveOut(HostId(1), VmId(0)), MoveIn(HostId(0), VmId(0), HostId(1))]
    conservation.check(state, moved, report)


def test_every_truth_can_be_broken() -> None:
    state, report = sound()

    def told(name: str) -> None:
        with pytest.raises(BrokenInvariantError, match=name):
            conservation.check(state, orders, report)

    orders: list[MoveIn | MoveOut] = []
    report.vms["host"][1] = 0
    told("host of VM 1")
    report.vms["host"][1] = 1
    state.host_of[1] = NOWHERE
    told("each VM is on one host")
    state.host_of[1] = 1
    state.power[2] = ON
    told("hosts that are on")
    state.power[2] = STANDBY
    state.held[1] = 7
    told("frames held")
    state.held[1] = 0
    state.reservation[1] = 101
    told("promised more than they have")
    state.reservation[1] = 0
    orders = [MoveOut(HostId(1), VmId(0))]
    told("migrations are paired")
    orders = []
    flight = migration.order(
        VmId(2), HostId(0), HostId(1), at_ms=0, memory_pages=1, why="a VM that is nowhere"
    )
    state = replace(state, flights=(flight,))
    told("a flight's VM is at its source")
