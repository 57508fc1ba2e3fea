"""A host as bytes goes on as if nothing had happened; the digest is of what its state means.

Not of where things lie in it: rows, ranges and patterns depend on which VMs came when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive_scenes as scenes
import numpy as np
import pytest
from crowded_hosts import SECOND, SIZE, VMS, crowded_host, crowded_spec, grown, starved
from host_builders import counter, make_host, make_phase, make_spec, power_on, row_index, row_of

from hostsim import invariants, naming, snapshot
from hostsim.host import Host
from hostsim.state import ARRAYS, STALE, STATE, STATES, UNIQUE
from hostsim.units import MIB, HostId, VmId

# Save and load


@pytest.mark.parametrize("seconds", [0, 3, 6, 9, 30, 60])
@pytest.mark.parametrize("salting", ["none", "vm"])
def test_a_loaded_host_goes_on_as_the_saved_one_does(seconds: int, salting: str) -> None:
    host = grown(crowded_host(sharing={"salting": salting}), seconds)
    assert_goes_on(host, snapshot.load(snapshot.save(host)))


def test_a_starving_host_goes_on_as_the_saved_one_does() -> None:
    host = grown(snapshot.load(starved()), 5)
    assert_goes_on(host, snapshot.load(snapshot.save(host)))
    assert counter(host, "swap_ins") > 0 and counter(host, "cow_breaks") > 0


def assert_goes_on(host: Host, loaded: Host) -> None:
    """The same digest, measurements and level changes, through 40 steps and changes of VMs."""
    both = (host, loaded)
    assert_equal(both, snapshot.digest)
    for change in (replace_a_vm, reset_and_set, Host.measure, Host.vm_ids):
        assert_equal(both, lambda one: one.advance(10 * SECOND).tolist())
        assert_equal(both, snapshot.digest)
        assert_equal(both, lambda one, change=change: str(change(one)))
        invariants.check(loaded.state)


def assert_equal(hosts: tuple[Host, Host], look: Callable[[Host], object]) -> None:
    first, second = map(look, hosts)
    assert first == second


def replace_a_vm(host: Host) -> None:
    host.power_off(VmId(2))
    power_on(host, crowded_spec(9))


def reset_and_set(host: Host) -> None:
    host.reset(VmId(3))
    host.set_vm(VmId(1), shares=5, limit=scenes.amount(128, 1))


def test_saving_a_loaded_host_gives_the_same_bytes() -> None:
    assert snapshot.save(snapshot.load(starved())) == starved()


def test_a_host_without_vms_is_saved_too() -> None:
    host = make_host()
    loaded = snapshot.load(snapshot.save(host))
    for one in (host, loaded):
        power_on(one, make_spec(1, 2 * MIB, make_phase(active=MIB)))
        one.advance(5 * SECOND)
    assert snapshot.digest(loaded) == snapshot.digest(host)
    assert row_of(loaded, 1).resident == 256


# Digest


def test_the_digest_does_not_depend_on_the_order_of_power_ons() -> None:
    hosts = [crowded_host(vms=vms) for vms in ((1, 2, 3, 4), (4, 3, 2, 1), (3, 1, 4, 2))]
    assert [row_index(host, 1) for host in hosts] == [0, 3, 1]
    for _ in range(3):
        assert len({snapshot.digest(host) for host in hosts}) == 1
        for host in hosts:
            host.advance(15 * SECOND)
            invariants.check(host.state)
    assert counter(hosts[0], "swap_ins") > 0


def test_the_digest_does_not_know_vms_that_left_no_trace() -> None:
    """Twenty VMs came and went in an instant: other rows, ranges, patterns, sizes of arrays."""
    plain, busy = crowded_host(vms=()), crowded_host(vms=())
    small = make_spec(9, MIB, image_range=5)
    power_on(plain, *map(crowded_spec, VMS))
    power_on(busy, *(make_spec(vm, MIB, image_range=vm) for vm in range(30, 50)), small)
    for vm in (30, 31, 9):
        busy.power_off(VmId(vm))
    power_on(busy, *map(crowded_spec, VMS))
    for vm in range(32, 50):
        busy.power_off(VmId(vm))
    assert len(busy.state.vms) > len(plain.state.vms)
    for _ in range(3):
        assert snapshot.digest(busy) == snapshot.digest(plain)
        for host in (plain, busy):
            host.advance(10 * SECOND)
            invariants.check(host.state)
    assert snapshot.digest(busy) == snapshot.digest(plain)


@pytest.mark.parametrize("salting", ["none", "vm"])
def test_contents_are_named_as_in_each_vm_by_itself(salting: str) -> None:
    """The slow twin of the table of names looks every word up among the VM's own ranges."""
    host = grown(crowded_host(sharing={"salting": salting}), 30)
    names, words = naming.local_names(host.ranges), host.state.content.astype(np.int64)
    assert (words & UNIQUE != 0).any() and (words & STALE != 0).any()
    for vm in host.vm_ids():
        row = row_of(host, vm)
        its = words[row.base_slot : row.base_slot + row.size_slots]
        alone = naming.to_local(its, naming.ranges_of(host, row_index(host, vm)))
        assert np.array_equal(naming.named(its, names), alone)
        assert len(np.unique(alone[alone & UNIQUE == 0] >> naming.RANGE_SHIFT)) > 1


def test_a_measurement_is_part_of_the_digest_and_saving_is_not() -> None:
    host = snapshot.load(starved())
    before = snapshot.digest(host)
    snapshot.save(host)
    assert snapshot.digest(host) == before
    host.measure()
    assert snapshot.digest(host) != before


def field_names(array: str) -> list[str]:
    return list(ARRAYS[array][0].names or ())


@pytest.mark.parametrize("name", field_names("host"))
def test_every_number_of_a_host_is_in_the_digest(name: str) -> None:
    assert_in_digest(lambda host: add_one(host.state.host, name, 0))


NAMES_AND_LENGTHS = ("vm", "image_family", "app_family", "salt", "size_slots", "program_len")
"""Of a VM's row: they say what else of it is read, and cannot change alone."""


@pytest.mark.parametrize(
    "name",
    sorted(set(field_names("vms")) - set(snapshot.POSITIONS) - set(NAMES_AND_LENGTHS)),
)
def test_every_number_of_a_vm_is_in_the_digest(name: str) -> None:
    assert_in_digest(lambda host: add_one(host.state.vms, name, 2))


def add_one(rows: Any, name: str, at: int) -> None:
    rows.view(np.ndarray)[name][at] += 1


def flip(array: str, at: tuple[int, ...], bits: int = 1) -> Callable[[Host], None]:
    def change(host: Host) -> None:
        getattr(host.state, array)[at] ^= bits

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(flip("page", (SIZE + 7,), 1 << bit) for bit in range(8)),
        flip("level_ms", (2,)),
        flip("lost", (3, 5)),
        flip("sampled", (1, 0)),
        lambda host: add_one(host.state.programs, "cpu_permille", 3),
        lambda host: another_content(host, int(UNIQUE)),
        lambda host: another_content(host, 0),
        lambda host: another_content(host, int(STALE)),
        lambda host: another_stale_hint(host),
    ],
)
def test_every_page_sample_and_account_is_in_the_digest(change: Callable[[Host], None]) -> None:
    assert_in_digest(change)


def another_content(host: Host, flag: int) -> None:
    """Another word on a page: with its number one up or down, or with another flag."""
    words = host.state.content
    at = int(np.flatnonzero((words & int(UNIQUE | STALE) == 0) & (words > 1))[-1])
    words[at] = words[at] ^ flag if flag else words[at] - 1


def another_stale_hint(host: Host) -> None:
    """An entry names the content before or after."""
    at = int(np.flatnonzero(host.state.stale)[0])
    host.state.stale[at] = abs(int(host.state.stale[at]) - 2) + 1


def assert_in_digest(change: Callable[[Host], None]) -> None:
    host = snapshot.load(starved())
    before = snapshot.digest(host)
    change(host)
    assert snapshot.digest(host) != before


def test_the_page_states_of_the_starved_host_are_all_there() -> None:
    """What the tests above stand on."""
    host = snapshot.load(starved())
    counted = np.bincount(host.state.page & int(STATE), minlength=len(STATES))
    assert (counted > 0).all() and len(counted) == len(STATES)
    assert host.state.stale.any() and host.host == HostId(0)
