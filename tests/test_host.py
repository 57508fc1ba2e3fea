"""The façade of one host: VMs come, go and change; what it promises, returns and repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from crowded_hosts import SECOND, SIZE, VMS, crowded_host, crowded_spec, grown, run_checked, starved
from host_builders import (
    arrays_of,
    counter,
    make_host,
    make_phase,
    make_spec,
    order_of,
    power_on,
    row_index,
    row_of,
    run,
    run_until_booted,
    states_of,
)

from hostsim import host as host_module
from hostsim import invariants, snapshot
from hostsim.host import Host, warm
from hostsim.spec import VmSpec
from hostsim.state import ANON, BALLOONED, FREE, HARD, HIGH, LOW, SOFT, UNTOUCHED, USE_SHIFT
from hostsim.units import MIB, VmId

# Admission control


def figure_8() -> list[VmSpec]:
    """The five VMs of the paper's figure 8: two of 256 MB and three of 320, reservation half."""
    sizes = (256, 256, 320, 320, 320)
    return [
        make_spec(vm, size * MIB, reservation=size // 2 * MIB, overhead=32 * MIB)
        for vm, size in enumerate(sizes, start=1)
    ]


def test_admission_counts_reservations_and_overheads() -> None:
    """Target A9, exact [P 6.2]: on a host of 1024 MB the five VMs need 736 + 5 x 32 = 896 MB; a
    sixth with a reservation of 128 MB would make it 1056 and is refused."""
    host = make_host(1024 * MIB, sample=64, swap_space=4096 * MIB)
    power_on(host, *figure_8())
    promised = [spec.config.reservation + spec.config.overhead for spec in host.specs.values()]
    assert sum(promised) == 896 * MIB
    sixth = make_spec(6, 256 * MIB, reservation=128 * MIB, overhead=32 * MIB)
    assert host.why_refused(sixth) == "memory-reservation"
    with pytest.raises(ValueError, match="host 0 refuses VM 6: memory-reservation"):
        host.power_on(sixth)
    assert host.vm_ids() == [1, 2, 3, 4, 5]
    fits = make_spec(6, 256 * MIB, reservation=96 * MIB, overhead=32 * MIB)
    assert host.why_refused(fits) is None, "896 + 128 = 1024 MB, to the byte"
    beyond = make_spec(6, 256 * MIB, reservation=96 * MIB + 1, overhead=32 * MIB)
    assert host.why_refused(beyond) == "memory-reservation"
    host.power_on(fits)


def test_admission_counts_swap_space() -> None:
    """Target A9, exact: the five VMs need 1472 - 736 = 736 MB of swap space, and no byte less."""
    host = make_host(1024 * MIB, sample=64, swap_space=736 * MIB)
    power_on(host, *figure_8())
    short = make_host(1024 * MIB, sample=64, swap_space=736 * MIB - 1)
    power_on(short, *figure_8()[:4])
    assert short.why_refused(figure_8()[4]) == "swap-space"
    with pytest.raises(ValueError, match="swap-space"):
        short.power_on(figure_8()[4])
    assert order_of(short) == [1, 2, 3, 4]


def test_the_hypervisors_reserve_is_nobodys() -> None:
    spec = make_spec(1, 64 * MIB, reservation=64 * MIB)
    assert make_host(65 * MIB, reserve=MIB).why_refused(spec) is None
    assert make_host(65 * MIB, reserve=MIB + 1).why_refused(spec) == "memory-reservation"


def test_a_vm_is_not_weighed_against_itself() -> None:
    host = make_host(64 * MIB)
    spec = make_spec(1, 64 * MIB, reservation=64 * MIB)
    host.power_on(spec)
    assert host.why_refused(spec) is None
    assert host.why_refused(make_spec(2, MIB, reservation=4096)) == "memory-reservation"


def test_a_refused_vm_leaves_no_trace() -> None:
    host = snapshot.load(starved())
    before, ranges, specs = arrays_of(host.state), dict(host.ranges), dict(host.specs)
    with pytest.raises(ValueError, match="memory-reservation"):
        host.power_on(make_spec(9, 64 * MIB, reservation=64 * MIB))
    with pytest.raises(ValueError, match="VM 2 is already on host 0"):
        host.power_on(crowded_spec(2))
    assert arrays_of(host.state) == before
    assert (host.ranges, host.specs) == (ranges, specs)


# Power on, power off


def test_powering_off_gives_every_frame_back() -> None:
    host = snapshot.load(starved())
    for vm in (3, 1, 4, 2):
        had, free = row_of(host, vm), counter(host, "free")
        private, overhead = int(had.resident), int(had.overhead)
        host.power_off(VmId(vm))
        invariants.check(host.state)
        assert counter(host, "free") >= free + private + overhead
    assert counter(host, "free") == counter(host, "machine") == 420
    for name in ("distinct", "hint_frames", "overhead"):
        assert counter(host, name) == 0
    st = host.state
    for array in (st.page, st.content, st.programs, st.indexed):
        assert len(array) == 0
    assert not st.stale.any() and (st.order == -1).all() and not st.lost.any()
    assert (host.ranges, host.specs, host.vm_ids(), host.zero_pages()) == ({}, {}, [], [])


def test_a_vm_waits_for_its_overhead_and_boots_then() -> None:
    host = crowded_host(frames=100, vms=())
    power_on(host, make_spec(1, MIB, overhead=100 * 4096))
    assert counter(host, "free") == 100
    run(host, SECOND)
    assert (counter(host, "free"), counter(host, "overhead")) == (0, 100)
    power_on(host, make_spec(2, MIB))
    assert row_of(host, 2).overhead == 0


def test_rows_are_reused_and_order_is_by_id() -> None:
    host = make_host()
    power_on(host, *(make_spec(vm, MIB) for vm in (5, 2, 9)))
    assert [row_index(host, vm) for vm in (5, 2, 9)] == [0, 1, 2]
    host.power_off(VmId(2))
    power_on(host, make_spec(3, MIB), make_spec(1, MIB))
    assert [row_index(host, vm) for vm in (3, 1)] == [1, 3]
    assert host.vm_ids() == order_of(host) == [1, 3, 5, 9]
    run(host, 5 * SECOND)
    assert all(row_of(host, vm).booted == 1 for vm in host.vm_ids())


def test_a_host_takes_more_vms_than_it_has_rows() -> None:
    """Eight rows at first; the arrays grow under VMs that run, which notice nothing."""
    crowd, alone = (make_host(sharing={"enabled": True}) for _ in range(2))
    spec = make_spec(1, 2 * MIB, make_phase(active=MIB))
    for host in (crowd, alone):
        power_on(host, spec)
        run(host, 7 * SECOND)
    power_on(crowd, *(make_spec(vm, MIB, image_range=vm) for vm in range(2, 31)))
    n_rows = len(crowd.state.vms)
    assert 30 <= n_rows < 30 * 1.25 and len(alone.state.vms) == 8
    for name in ("order", "lost", "sampled", "class_base", "active"):
        assert len(getattr(crowd.state, name)) == n_rows
    for host in (crowd, alone):
        run(host, 20 * SECOND)
    assert states_of(crowd, 1).tolist() == states_of(alone, 1).tolist()
    assert row_of(crowd, 1).touches == row_of(alone, 1).touches > 1000
    for vm in range(2, 31):
        crowd.power_off(VmId(vm))
    invariants.check(crowd.state)
    assert crowd.vm_ids() == [1]


def test_vms_that_stay_keep_their_pages_when_others_go() -> None:
    host = snapshot.load(starved())
    kept = {vm: (states_of(host, vm), row_of(host, vm).copy()) for vm in (1, 4)}
    for vm in (2, 3):
        host.power_off(VmId(vm))
    for vm, (states, row) in kept.items():
        assert states_of(host, vm).tolist() == states.tolist()
        for name in ("resident", "swapped", "brk", "clock_ns", "row", "cache", "anon"):
            assert row_of(host, vm)[name] == row[name]
    run_checked(host, 20)


# Reset


def test_a_reset_guest_boots_again_in_the_memory_it_has() -> None:
    """The guest forgets its pages and its balloon; the host keeps what it gave until it is told."""
    host = snapshot.load(starved())
    states, free = states_of(host, 1), counter(host, "free")
    assert (states == BALLOONED).sum() > 50
    host.reset(VmId(1))
    invariants.check(host.state)
    row = row_of(host, 1)
    assert states_of(host, 1).tolist() == states.tolist() and counter(host, "free") == free
    assert (row.booted, row.brk, row.anon, row.cache, row.guest_swapped) == (0, 0, 0, 0, 0)
    uses = host.state.page[row.base_slot : row.base_slot + SIZE] >> int(USE_SHIFT)
    assert (uses == FREE).all()
    for vm in (2, 3, 4):
        host.power_off(VmId(vm))
    run_until_booted(host)
    row = row_of(host, 1)
    uses = host.state.page[row.base_slot : row.base_slot + SIZE] >> int(USE_SHIFT)
    assert row.booted == 1 and (uses == ANON).sum() > 0
    run_checked(host, 10)


@pytest.mark.parametrize("call", [Host.reset, Host.power_off, Host.set_vm, Host.row_of])
def test_a_vm_that_is_not_on_is_named(call: Any) -> None:
    host = snapshot.load(starved())
    before = arrays_of(host.state)
    with pytest.raises(ValueError, match="VM 8 is not on host 0"):
        call(host, VmId(8))
    assert arrays_of(host.state) == before


# Settings


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"reservation": SIZE * 4096 + 1}, "reservation must not exceed limit"),
        ({"limit": 19 * 4096}, "reservation must not exceed limit"),
        ({"reservation": 101 * 4096, "limit": 100 * 4096}, "reservation must not exceed limit"),
        ({"limit": SIZE * 4096 + 1}, "limit must not exceed memory"),
    ],
)
def test_a_wrong_setting_changes_nothing(values: dict[str, int], reason: str) -> None:
    assert_set_changes_nothing(snapshot.load(starved()), values, reason)


def test_a_reservation_that_is_not_admitted_changes_nothing() -> None:
    host = crowded_host(frames=100, vms=(1, 2, 3))
    grown(host, 5)
    assert_set_changes_nothing(host, {"reservation": 90 * 4096}, "refuses VM 1: memory-reservation")


def test_a_lower_reservation_needs_swap_space() -> None:
    host = make_host(64 * MIB, swap_space=MIB)
    power_on(host, make_spec(1, 2 * MIB, reservation=MIB))
    assert_set_changes_nothing(host, {"reservation": MIB - 1}, "refuses VM 1: swap-space")


def assert_set_changes_nothing(host: Host, values: dict[str, int], reason: str) -> None:
    before, specs = arrays_of(host.state), dict(host.specs)
    with pytest.raises(ValueError, match=reason):
        host.set_vm(VmId(1), shares=7, **({"limit": None} | values))
    assert arrays_of(host.state) == before
    assert host.specs == specs


def test_settings_reach_the_allocator() -> None:
    """Half the shares, a limit, a reservation: the very next step solves with them."""
    host = make_host(64 * MIB)
    power_on(host, make_spec(1, 8 * MIB), make_spec(2, 8 * MIB))
    run(host, 2 * SECOND)
    assert row_of(host, 1).shares == 80
    host.set_vm(VmId(1), reservation=MIB, limit=4 * MIB, shares=40)
    row, config = row_of(host, 1), host.specs[VmId(1)].config
    assert (row.reservation, row.limit, row.shares) == (256, 1024, 40)
    assert (config.reservation, config.limit, config.share_count) == (MIB, 4 * MIB, 40)
    assert counter(host, "rebalance") == 1
    run(host, SECOND)
    assert (row_of(host, 1).target, row_of(host, 2).target) == (1024, 2048)
    host.set_vm(VmId(1), shares=0)
    assert (row_of(host, 1).limit, row_of(host, 1).shares) == (1024, 0)


# Running


def test_level_changes_are_told_with_time_and_free_memory() -> None:
    """They form a chain from HIGH to the level of now, equal to what single steps tell."""
    whole, stepped = crowded_host(frames=300), crowded_host(frames=300)
    changes = whole.advance(60 * SECOND)
    singly = [one for _ in range(60) for one in stepped.advance(SECOND).tolist()]
    assert changes.tolist() == singly and changes.dtype == np.int64
    times, before, after, free = changes.T.tolist()
    assert times == sorted(set(times))
    assert before == [int(HIGH), *after[:-1]] and after[-1] == counter(whole, "level")
    there = [int(HIGH), int(SOFT), int(HARD), int(LOW)]
    assert set(there) == {*before, *after}
    down = {level: counter(whole, f"down_{level}") for level in ("soft", "hard", "low")}
    for was, level, slots in zip(before, after, free, strict=True):
        if level > was:  # a fall, to the deepest level whose threshold free memory is below
            expected = sum(slots < threshold for threshold in down.values())
            assert level == there[expected]
        else:
            assert level == there[there.index(was) - 1], "a rise climbs one level a step"
    spent = np.diff([0, *times, 60 * SECOND])
    in_level = np.bincount([int(HIGH), *after], weights=spent, minlength=5)
    assert in_level.tolist() == whole.state.level_ms.tolist()


def test_nothing_is_told_where_the_level_stays() -> None:
    host = make_host()
    power_on(host, make_spec(1, MIB))
    assert host.advance(10 * SECOND).shape == (0, 4)
    assert host.advance(0).shape == (0, 4)
    assert counter(host, "now_ms") == 10 * SECOND


def test_one_long_advance_is_many_short_ones() -> None:
    long, short = crowded_host(), crowded_host()
    long.advance(60 * SECOND)
    for _ in range(6):
        short.advance(10 * SECOND)
    assert snapshot.digest(long) == snapshot.digest(short)
    assert counter(long, "swap_ins") > 0


def test_the_seed_and_the_hosts_id_decide_and_nothing_else() -> None:
    hosts = [crowded_host(), crowded_host(), crowded_host(seed=2)]
    digests = [snapshot.digest(grown(host, 30)) for host in hosts]
    assert digests[0] == digests[1] != digests[2]
    pages = [host.state.page.tobytes() for host in hosts]
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize("frames", [200, 420, 1100])
def test_configured_memory_is_always_accounted_for(frames: int) -> None:
    """configured = consumed + shared_saved + ballooned + swapped + compressed + untouched, of the
    host and summed over its VMs, through boot, pressure, a reset and VMs that come and go."""
    host = crowded_host(frames=frames)
    for second in range(0, 60, 3):
        grown(host, 3)
        if second == 30:
            host.reset(VmId(1))
            host.power_off(VmId(3))
            power_on(host, crowded_spec(7))
        row, vms = (table[0] if len(table) == 1 else table for table in host.measure())
        parts = ("consumed", "shared_saved", "ballooned", "swapped", "compressed", "untouched")
        assert row["configured_pages"] == sum(row[f"{part}_pages"] for part in parts) == 4 * SIZE
        of_vm = ("allocated", "ballooned", "swapped", "compressed", "untouched")
        assert (sum(vms[f"{part}_pages"] for part in of_vm) == SIZE).all()
        used = row["consumed_pages"] + row["overhead_pages"] + row["free_pages"]
        used += row["compression_cache_pages"]
        assert used == counter(host, "machine") == frames
    untouched = (states_of(host, 1) == UNTOUCHED).sum()
    assert vms["untouched_pages"][0] == untouched


def test_zero_pages_are_one_per_salt_group() -> None:
    common, salted = crowded_host(), crowded_host(sharing={"salting": "vm"})
    assert len(common.zero_pages()) == 1
    assert len(salted.zero_pages()) == len(VMS)
    zeros = {int(row_of(salted, vm).zero) for vm in VMS}
    assert zeros == set(salted.zero_pages())


@pytest.mark.parametrize(("is_warm", "notes"), [(True, 0), (False, 1)])
def test_warming_up_says_so_only_when_it_will_take_long(
    is_warm: bool, notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "is_warm", lambda: is_warm)
    told: list[str] = []
    warm(told.append)
    assert len(told) == notes
    assert all("compiling" in note for note in told)
