"""A VM that moves to another host: its content and its guest's state travel, its frames do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive_scenes as scenes
import numpy as np
import pytest
from crowded_hosts import (
    SECOND,
    VMS,
    crowded_host,
    crowded_spec,
    grown,
    run_checked,
    starved,
    target_host,
)
from host_builders import (
    arrays_of,
    counter,
    make_host,
    make_spec,
    power_on,
    row_index,
    row_of,
    states_of,
)
from hypothesis import given, settings
from hypothesis import strategies as some

from hostsim import contents, image, invariants, naming, snapshot
from hostsim.host import Host
from hostsim.image import BELONGS_TO_HOST, COMPRESSED_FIELDS, VmImage, export_vm, import_vm
from hostsim.state import (
    BALLOONED,
    COMPRESSED,
    HINT,
    INDEX,
    RESIDENT,
    SHARED,
    STALE,
    STATES,
    SWAPPED,
    UNIQUE,
    UNTOUCHED,
    VM,
    Array,
)
from hostsim.units import MIB, HostId, VmId


def pages_of(host: Host, vm: int) -> tuple[Array, Array]:
    """State bytes and content words of a VM; copies."""
    row = row_of(host, vm)
    cut = slice(row.base_slot, row.base_slot + row.size_slots)
    return host.state.page[cut].copy(), host.state.content[cut].astype(np.int64)


def readings(host: Host, vm: int) -> list[tuple[Any, ...]]:
    """What the guest would read from each page, named so that it means the same on every host.

    A page of its own by the serial number of its write; another by the content's range, without
    the salt, and its place in it.
    """
    found: list[tuple[Any, ...]] = []
    for word in pages_of(host, vm)[1].tolist():
        if word & UNIQUE:
            found.append(("unique", word & (STALE - 1)))
            continue
        at = word & INDEX
        keys = contents.keys_of(row_of(host, vm))
        holders = [
            (key.kind, key.family, at - host.ranges[key].base)
            for key in keys
            if 0 <= at - host.ranges[key].base < host.ranges[key].length
        ]
        assert len(holders) == 1, f"word {word} lies in {holders}"
        found.append(holders[0])
    return found


def travelled(host: Host, vm: int) -> dict[str, Any]:
    """All that travels but pages: the guest, its workload, clocks, sampler, carries, lost time."""
    skipped = {*BELONGS_TO_HOST, *COMPRESSED_FIELDS, "resident", "shared"}
    row, v = row_of(host, vm), row_index(host, vm)
    found = {name: row[name] for name in VM.names or () if name not in skipped}
    samples = host.state.sampled[v, : row.samples].tolist()
    return found | {"sampled": samples, "lost": host.state.lost[v].tolist()}


@pytest.mark.parametrize("vm", [1, 2, 3, 4])
@pytest.mark.parametrize("salting", ["none", "vm"])
def test_the_guest_reads_the_same_on_another_host(vm: int, salting: str) -> None:
    """Another host with other neighbours, ranges and salt groups: nothing the guest has changed."""
    source, target = snapshot.load(starved()), target_host(salting)
    import_vm(target, export_vm(source, VmId(vm)))
    invariants.check(target.state)
    assert readings(target, vm) == readings(source, vm)
    assert travelled(target, vm) == travelled(source, vm)
    assert {"brk", "window", "anon", "row", "clock_ns", "fast"} < set(travelled(target, vm))
    bases = [int(row_of(host, vm).image_base) for host in (source, target)]
    assert bases[0] != bases[1]


def test_shared_and_compressed_pages_get_a_frame_and_the_others_stay_what_they_are() -> None:
    source, target = crowded_host(), target_host()
    while np.bincount(states_of(source, 1), minlength=len(STATES)).min() == 0:
        source.advance(SECOND)
        assert counter(source, "now_ms") < 100 * SECOND, "the set-up never has every state"
    before, free = states_of(source, 1), counter(target, "free")
    import_vm(target, export_vm(source, VmId(1)))
    after = states_of(target, 1)
    counted = np.zeros((len(STATES), len(STATES)), int)
    np.add.at(counted, (before, after), 1)
    kept = np.bincount(before, minlength=len(STATES))
    expected = np.diag(kept)
    for state in (SHARED, COMPRESSED):
        expected[state, state], expected[state, RESIDENT] = 0, kept[state]
    assert counted.tolist() == expected.tolist()
    assert counter(target, "free") == free - kept[[RESIDENT, SHARED, COMPRESSED]].sum()


def test_hints_do_not_travel() -> None:
    """Neither the hint itself nor the note, on a page rewritten since, that its hint is stale."""
    source, target = snapshot.load(starved()), target_host()
    hints, entries = counter(target, "hint_frames"), len(target.state.stale_contents)
    stale = int(STALE)
    assert any((pages_of(source, vm)[1] & stale).any() for vm in VMS)
    for vm in VMS:
        assert (pages_of(source, vm)[0] & int(HINT)).any()
        import_vm(target, export_vm(source, VmId(vm)))
        page, words = pages_of(target, vm)
        assert not (page & int(HINT)).any() and not (words & stale).any()
    assert counter(target, "hint_frames") == hints
    assert len(target.state.stale_contents) == entries


def test_an_export_changes_nothing_at_the_source() -> None:
    source = snapshot.load(starved())
    before = arrays_of(source.state)
    export_vm(source, VmId(3))
    assert arrays_of(source.state) == before


def test_both_hosts_go_on_after_a_move() -> None:
    source, target = snapshot.load(starved()), target_host("vm")
    free = counter(source, "free")
    private = int(row_of(source, 2).resident)
    import_vm(target, export_vm(source, VmId(2)))
    source.power_off(VmId(2))
    assert counter(source, "free") >= free + private
    touches = int(row_of(target, 2).touches)
    for host in (source, target):
        run_checked(host, 30)
    assert row_of(target, 2).touches > touches


def test_equal_pages_are_found_anew_at_the_target() -> None:
    """Every page of the VM was unshared on arrival; scanning shares the same contents again."""
    source, target = snapshot.load(starved()), target_host()
    import_vm(target, export_vm(source, VmId(3)))
    assert row_of(target, 3).shared == 0
    run_checked(target, 30)
    assert row_of(target, 3).shared > 20


def test_a_vm_that_returns_to_its_host_goes_on_where_it_was() -> None:
    host = snapshot.load(starved())
    before, kept = readings(host, 2), travelled(host, 2)
    taken = export_vm(host, VmId(2))
    host.power_off(VmId(2))
    host.power_off(VmId(4))  # shared pages need frames of their own for a while
    import_vm(host, taken)
    assert readings(host, 2) == before
    assert travelled(host, 2) == kept
    run_checked(host, 20)


def test_the_guest_goes_on_as_it_would_have_at_the_source() -> None:
    """With memory for all, and nothing to share, a move leaves no trace in what the guest does."""
    stays, source, target = make_host(), make_host(), make_host(96 * MIB)
    for host in (stays, source):
        power_on(host, crowded_spec(1))
        grown(host, 20)
    grown(target, 20)
    import_vm(target, export_vm(source, VmId(1)))
    source.power_off(VmId(1))
    assert counter(source, "free") == counter(source, "machine")
    for host in (stays, target):
        run_checked(host, 40)
    assert readings(target, 1) == readings(stays, 1)
    assert states_of(target, 1).tolist() == states_of(stays, 1).tolist()
    assert row_of(target, 1).touches == row_of(stays, 1).touches > 1000


@pytest.mark.parametrize("reservation", [0, MIB // 2])
def test_a_vm_whose_reservation_was_set_is_saved_and_moves(reservation: int) -> None:
    """The guest's own swap space, by default what was not reserved at boot, stays as it was."""
    source = crowded_host(vms=())
    power_on(source, make_spec(1, 2 * MIB, reservation=MIB))
    grown(source, 3)
    source.set_vm(VmId(1), reservation=reservation)
    assert row_of(source, 1)["guest_swap"] == MIB // 4096
    assert snapshot.digest(snapshot.load(snapshot.save(source))) == snapshot.digest(source)
    target = target_host()
    import_vm(target, export_vm(source, VmId(1)))
    assert row_of(target, 1)["guest_swap"] == MIB // 4096
    assert row_of(target, 1)["reservation"] == reservation // 4096


# Refusals


def refused(host: Host, taken: VmImage, reason: str) -> None:
    """The image is refused for the reason, and the host is as it was."""
    before, specs = arrays_of(host.state), dict(host.specs)
    assert image.why_refused(host, taken) == reason
    with pytest.raises(ValueError, match=f"refuses VM {taken.spec.vm}: {reason}"):
        import_vm(host, taken)
    assert arrays_of(host.state) == before
    assert host.specs == specs
    invariants.check(host.state)


def test_too_few_free_frames_refuse_the_vm() -> None:
    source = snapshot.load(starved())
    taken = export_vm(source, VmId(1))
    needed = int(taken.row["resident"][0])
    states = ("resident", "shared", "compressed")
    assert needed == sum(int(row_of(source, 1)[name]) for name in states)
    spec = crowded_spec(1)
    overhead_slots = spec.config.overhead // 4096
    for frames in (needed, needed - 1):
        target = crowded_host(8, frames, vms=())
        assert counter(target, "free") == frames > overhead_slots
        if frames < needed:
            refused(target, taken, "memory-frames")
        else:
            import_vm(target, taken)
            invariants.check(target.state)
            assert counter(target, "free") == 0


def test_admission_refuses_a_vm_on_its_way_as_any_other() -> None:
    source = crowded_host(vms=())
    power_on(source, make_spec(1, 2 * MIB, reservation=MIB))
    taken = export_vm(grown(source, 3), VmId(1))
    full = make_host(64 * MIB)
    power_on(full, make_spec(2, 64 * MIB, reservation=64 * MIB - 4096))
    refused(full, taken, str(full.why_refused(taken.spec)))
    assert full.why_refused(taken.spec) is not None


def test_a_vm_that_is_on_is_not_imported_again() -> None:
    host = target_host()
    taken = export_vm(host, VmId(6))
    before = arrays_of(host.state)
    with pytest.raises(ValueError, match="already on"):
        import_vm(host, taken)
    assert arrays_of(host.state) == before


def test_a_vm_that_is_not_on_is_not_exported() -> None:
    with pytest.raises(ValueError, match="VM 77 is not on host 7"):
        export_vm(target_host(), VmId(77))


def test_an_image_that_does_not_fit_its_spec_changes_nothing() -> None:
    taken = export_vm(snapshot.load(starved()), VmId(1))
    target = target_host()
    before = snapshot.digest(target)
    row = taken.row.copy()
    row["kernel"] += 1
    foreign = taken.content.copy()
    foreign[:] = 3 << naming.RANGE_SHIFT | 99_999
    for wrong in ({"row": row}, {"content": foreign}):
        with pytest.raises(ValueError, match=r"kernel|outside the VM's ranges"):
            import_vm(target, replace(taken, **wrong))
        assert VmId(1) not in target.specs
        invariants.check(target.state)
    target.state.host[0].rebalance = 0
    assert snapshot.digest(target) == before


# Histories


@settings(max_examples=15)
@given(some.data())
def test_vms_that_move_to_and_fro_keep_every_truth(data: some.DataObject) -> None:
    """Two starving hosts with other salting exchange VMs, or refuse to, at random moments."""
    hosts = [
        crowded_host(0, 450, vms=(1, 2, 3)),
        crowded_host(1, 450, vms=(4, 5), sharing={"salting": "vm"}),
    ]
    for _ in range(data.draw(some.integers(3, 8))):
        for host in hosts:
            run_checked(host, data.draw(some.integers(0, 5)))
        step_ms = max(counter(host, "now_ms") for host in hosts)
        for host in hosts:
            host.advance(step_ms - counter(host, "now_ms"))
        source, target = data.draw(some.permutations(hosts))
        if not source.specs:
            continue
        vm = data.draw(some.sampled_from(source.vm_ids()))
        taken, before = export_vm(source, vm), readings(source, vm)
        if image.why_refused(target, taken) is not None:
            refused(target, taken, str(image.why_refused(target, taken)))
            continue
        import_vm(target, taken)
        source.power_off(vm)
        assert readings(target, vm) == before
        for host in hosts:
            invariants.check(host.state)
    assert sorted(vm for host in hosts for vm in host.vm_ids()) == [1, 2, 3, 4, 5]


def test_a_ballooned_page_that_was_backed_stays_backed() -> None:
    source, target = snapshot.load(starved()), target_host()
    import_vm(target, export_vm(source, VmId(1)))
    assert row_of(target, 1).backed == row_of(source, 1).backed
    kinds = np.bincount(states_of(target, 1), minlength=len(STATES))
    for state in (UNTOUCHED, BALLOONED, SWAPPED):
        assert kinds[state] == np.bincount(states_of(source, 1), minlength=len(STATES))[state]


def test_a_host_with_fewer_samples_keeps_those_that_fit() -> None:
    source = snapshot.load(starved())
    target = crowded_host(7, 2000, vms=(), sampling={"pages": 5, "period": 5000})
    import_vm(target, export_vm(source, VmId(1)))
    assert row_of(target, 1).samples == 5 < row_of(source, 1).samples
    run_checked(target, 20)
    assert target.host == HostId(7) and scenes.amount(1, 1) == 4096
