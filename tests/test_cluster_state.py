"""The cluster's state: columns by id, and how orders and reports make the next one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_builders import arrays_of, cluster
from hypothesis import given
from hypothesis import strategies as st
from scenario_files import HOST, IMAGE, VM, loaded

from cluster.messages import (
    HOST_ROW,
    VM_ROW,
    EpochReport,
    Order,
    PowerOff,
    PowerOn,
    Reset,
    SetVm,
)
from cluster.policy.state import NOWHERE, ClusterState, initial, learn, obey
from cluster.population import Population, populate
from hostsim.units import GIB, MIB, PAGE_SIZE, HostId, VmId


def population(folder: Path, **values: Any) -> Population:
    return populate(loaded(folder, **values))


def report(*rows: tuple[int, int, int, int]) -> EpochReport:
    """Of (epoch, VM, consumed pages, active pages)."""
    vms = np.zeros(len(rows), VM_ROW)
    for name, column in zip(
        ("epoch", "vm", "consumed_pages", "active_pages"), zip(*rows, strict=True), strict=False
    ):
        vms[name] = column
    return EpochReport(np.zeros(0, HOST_ROW), vms, (), 0.0)


def test_at_first_all_hosts_are_empty_and_measures_are_boot_footprints(tmp_path: Path) -> None:
    hosts = [
        HOST | {"reserve": "2 GiB", "cpus": 7},
        HOST | {"name": "old", "count": 1, "profile": "osdi02", "memory": "2 GiB"},
    ]
    vms = [
        VM | {"count": 1, "reservation": "64 MiB", "overhead": "3 MiB", "vcpus": 2},
        VM | {"name": "x", "count": 1, "memory": "128 MiB", "limit": "96 MiB", "shares": "high"},
    ]
    state = initial(population(tmp_path, hosts=hosts, vms=vms))
    assert state.hosts.memory.tolist() == [8 * GIB, 8 * GIB, 2 * GIB]
    assert state.hosts.reservable.tolist() == [6 * GIB, 6 * GIB, 2 * GIB]
    assert state.hosts.swap_space.tolist() == [32 * GIB, 32 * GIB, 2 * GIB]
    assert state.hosts.cpus.tolist() == [7, 7, 16]
    assert state.vms.size.tolist() == [GIB, 128 * MIB]
    assert state.vms.overhead.tolist() == [3 * MIB, 32 * MIB]
    assert state.vms.vcpus.tolist() == [2, 1]
    assert state.host_of.tolist() == [NOWHERE, NOWHERE]
    assert state.reservation.tolist() == [64 * MIB, 0]
    assert state.limit.tolist() == [GIB, 96 * MIB]
    assert state.shares.tolist() == [10 * 1024, 20 * 128]
    footprints = [128 * MIB, 128 * MIB]
    assert state.consumed.tolist() == state.active.tolist() == footprints


def test_a_footprint_is_at_most_the_size_of_the_vm(tmp_path: Path) -> None:
    found = population(tmp_path, images=[IMAGE | {"footprint": "1 GiB"}])
    spec = found.vms[0].spec
    small = replace(spec, config=spec.config.model_copy(update={"memory": 100 * MIB}))
    state = initial(replace(found, vms=(replace(found.vms[0], spec=small), *found.vms[1:])))
    assert state.vms.footprint.tolist() == [100 * MIB, GIB, GIB]


def test_sums_per_host_are_over_the_vms_that_are_on() -> None:
    state = cluster(memory=[9, 9, 9], size=[1, 2, 4, 8, 16], on=[2, 0, NOWHERE, 2, NOWHERE])
    assert state.per_host(state.vms.size).tolist() == [2, 0, 9]
    assert state.per_host(np.ones(5, np.int64)).tolist() == [1, 0, 2]


def test_sums_per_host_are_exact_beyond_what_a_float_holds() -> None:
    state = cluster(memory=[1 << 60], size=[(1 << 53) + 1, 2], on=[0, 0])
    assert state.per_host(state.vms.size).tolist() == [(1 << 53) + 3]


ON = [0, NOWHERE, 1]


def small(**columns: Any) -> ClusterState:
    columns = {"footprint": [3, 4, 5], "consumed": [6, 7, 8], "active": [1, 2, 3]} | columns
    return cluster(memory=[100, 100], size=[10, 20, 30], on=ON, **columns)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Population:
    return population(tmp_path_factory.mktemp("specs"))


def test_power_on_puts_a_vm_there_and_forgets_what_was_measured(specs: Population) -> None:
    state = obey(small(), [PowerOn(HostId(1), specs.vms[1].spec)])
    assert state.host_of.tolist() == [0, 1, 1]
    assert state.consumed.tolist() == [6, 4, 8]
    assert state.active.tolist() == [1, 4, 3]


def test_power_off_takes_a_vm_away_and_reset_changes_nothing() -> None:
    state = obey(small(), [PowerOff(HostId(0), VmId(0)), Reset(HostId(1), VmId(2))])
    assert state.host_of.tolist() == [NOWHERE, NOWHERE, 1]
    assert arrays_of(replace(state, host_of=np.array(ON))) == arrays_of(small())


def test_set_changes_what_it_names() -> None:
    whole = obey(small(), [SetVm(HostId(0), VmId(0), reservation=2, limit=9, shares=0)])
    assert whole.reservation.tolist() == [2, 0, 0]
    assert whole.limit.tolist() == [9, 20, 30]
    assert whole.shares.tolist() == [0, 1000, 1000]
    part = obey(whole, [SetVm(HostId(0), VmId(0), reservation=0)])
    assert part.reservation.tolist() == [0, 0, 0]
    assert part.limit.tolist() == [9, 20, 30]
    assert part.shares.tolist() == [0, 1000, 1000]


def test_orders_are_obeyed_one_after_the_other(specs: Population) -> None:
    spec = specs.vms[0].spec
    away, back = PowerOff(HostId(0), VmId(0)), PowerOn(HostId(1), spec)
    assert obey(small(), [away, back]).host_of.tolist() == [1, NOWHERE, 1]
    assert obey(small(), [away, back, replace(away, host=HostId(1))]).host_of[0] == NOWHERE


def test_the_last_epoch_of_a_report_is_learned() -> None:
    rows = report((4, 0, 10, 5), (4, 2, 20, 6), (5, 0, 11, 7), (5, 2, 21, 8))
    state = learn(small(), rows)
    assert state.consumed.tolist() == [11 * PAGE_SIZE, 7, 21 * PAGE_SIZE]
    assert state.active.tolist() == [7 * PAGE_SIZE, 2, 8 * PAGE_SIZE]
    assert state.host_of.tolist() == ON


def test_a_report_without_vms_teaches_nothing() -> None:
    state = small()
    assert arrays_of(learn(state, report())) == arrays_of(state)


@pytest.mark.parametrize(
    "change",
    [
        lambda state, spec: obey(state, [PowerOn(HostId(0), spec)]),
        lambda state, spec: obey(state, [PowerOff(HostId(0), VmId(0))]),
        lambda state, spec: obey(state, [SetVm(HostId(0), VmId(0), 1, 2, 3)]),
        lambda state, spec: learn(state, report((0, 0, 1, 1))),
    ],
)
def test_a_state_is_never_written_again(
    specs: Population, change: Callable[[ClusterState, Any], ClusterState]
) -> None:
    state = small()
    before = copy.deepcopy(arrays_of(state))
    assert arrays_of(change(state, specs.vms[1].spec)) != before
    assert arrays_of(state) == before


@given(moves=st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1)), max_size=20))
def test_vms_are_conserved(specs: Population, moves: list[tuple[int, int]]) -> None:
    """Of what is on: arrivals less departures; on each host, those sent there and not away."""
    there: dict[int, int] = {0: 0, 2: 1}
    state = small()
    for vm, host in moves:
        if host == NOWHERE and vm in there:
            orders: list[Order] = [PowerOff(HostId(there.pop(vm)), VmId(vm))]
        elif host != NOWHERE and vm not in there:
            orders = [PowerOn(HostId(host), specs.vms[vm].spec)]
            there[vm] = host
        else:
            orders = []
        state = obey(state, orders)
    on = state.per_host(np.ones(3, np.int64))
    assert on.tolist() == [list(there.values()).count(host) for host in (0, 1)]
    assert int(on.sum()) == len(there)
