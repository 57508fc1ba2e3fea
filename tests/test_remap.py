"""Pages that devices cannot reach are copied, and hot ones move to low memory: one rule at a time.

What that saves is in test_remap_claims, and that the literal twin does the same in test_twin_remap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_builders import (
    SECOND,
    counter,
    in_slots,
    lost_ns,
    make_host,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
    run_until_booted,
)
from scenario_files import HOST, WORKLOAD, changed, problems_of

from hostsim import fault, remap, rng, workload
from hostsim.host import Host
from hostsim.image import export_vm, import_vm
from hostsim.load import COUNTERS
from hostsim.spec import VmSpec
from hostsim.state import KIND, SWAPPED, UNTOUCHED
from hostsim.units import MIB, PAGE_SIZE, VmId

COPY_NS = 1_500
"""The default price of a copy."""


def limited(low: int, **options: Any) -> Host:
    """A host of 64 MiB, of which devices reach `low` bytes."""
    io = {"low_memory": low} | options.pop("io", {})
    return make_host(64 * MIB, io=io, **options)


def sender(vm: int, set_pages: int, size: int = 4 * MIB, **options: Any) -> VmSpec:
    """A VM that transmits 256 pages a second, and touches nothing."""
    of = ("bytes", set_pages * PAGE_SIZE)
    return make_spec(vm, size, make_phase(transmit=MIB, transmit_set=of), **options)


def is_high(host: Host, vm: int) -> list[bool]:
    """By PPN, where nothing is shared: whether the page has a frame that devices cannot reach."""
    row = row_of(host, vm)
    page = host.state.page[row.base_slot : row.base_slot + row.size_slots]
    found: list[bool] = (page & int(KIND) != 0).tolist()
    return found


# What is copied, what moves, what it costs


@pytest.mark.parametrize("threshold", [0, 1, 4])
def test_a_page_moves_once_it_was_copied_more_often_than_the_threshold(threshold: int) -> None:
    """[P 7]: "If the number of copies exceeds a specified threshold". One page, 256 times a second:
    threshold + 1 copies to a bounce buffer and one to its new frame, then none. Exact."""
    host = limited(MIB, io={"copy_threshold": threshold})
    power_on(host, sender(1, 1))
    run(host, 10 * SECOND)
    assert counter(host, "transmits") >= 256 * 8
    assert (counter(host, "copies"), counter(host, "remaps")) == (threshold + 1, 1)
    assert lost_ns(host, 1) == lost_ns(host, 1) | {"cpu": (threshold + 2) * COPY_NS}
    assert is_high(host, 1)[:2] == [False, True]


@pytest.mark.parametrize("k", [1, 16])
def test_without_moving_every_transmit_is_copied_and_paid_for(k: int) -> None:
    """To the nanosecond; a slot's copy is that of its k pages."""
    io = {"low_memory": MIB * k, "remap": "never"}
    host = make_host(64 * MIB * k, io=io, sample=k)
    of = ("bytes", 64 * PAGE_SIZE * k)
    power_on(host, make_spec(1, 4 * MIB * k, make_phase(transmit=MIB * k, transmit_set=of)))
    run_until_booted(host)
    host.measure()
    run(host, 10 * SECOND)
    assert counter(host, "transmits") == counter(host, "copies") == 2560
    assert counter(host, "remaps") == 0
    assert lost_ns(host, 1)["cpu"] == sum(lost_ns(host, 1).values()) == 2560 * k * COPY_NS
    table, _ = host.measure()
    names = ("transmitted_pages", "copied_pages", "remapped_pages")
    assert [int(table[name][0]) for name in names] == [2560 * k, 2560 * k, 0]


def test_nothing_is_copied_where_devices_reach_all_memory() -> None:
    """Without the limit, or with one as high as memory, all is as if nobody had written this."""
    hosts = [make_host(64 * MIB), limited(64 * MIB), limited(64 * MIB, io={"remap": "random"})]
    for host in hosts:
        power_on(host, sender(1, 64))
        run(host, 10 * SECOND)
        assert counter(host, "transmits") > 2000
        assert (counter(host, "copies"), counter(host, "highmem_free")) == (0, 0)
        assert sum(lost_ns(host, 1).values()) == 0
    for name in ("page", "content", "vms", "lost"):
        assert len({getattr(host.state, name).tobytes() for host in hosts}) == 1, name


def test_transmitting_draws_from_a_stream_of_its_own() -> None:
    """A guest touches the same pages at the same times, whether it transmits or not."""
    found = []
    for rate in (0, MIB):
        host = make_host(64 * MIB)
        phase = make_phase(active=2 * MIB, memory=3 * MIB, transmit=rate)
        power_on(host, make_spec(1, 4 * MIB, phase))
        run(host, 20 * SECOND)
        row = row_of(host, 1)
        found.append((int(row.touches), int(row.serial), host.state.content.tobytes()))
    assert found[0] == found[1]


def test_a_page_that_was_swapped_is_brought_in_to_be_transmitted() -> None:
    """And a stalled VM transmits nothing: the rate is per second of the guest's own time."""
    host = limited(MIB)
    power_on(host, sender(1, 8))
    run_until_booted(host)
    host.measure()
    for ppn in range(8):
        fault.leave_memory(host.state, 0, ppn, SWAPPED)
    run(host, SECOND)
    assert counter(host, "swap_ins") == 8
    assert lost_ns(host, 1)["swap_in"] == 8 * 100_000
    assert 0 < counter(host, "transmits") <= 256


# Where frames lie


def test_fresh_pages_and_overheads_lie_high_while_there_is_room() -> None:
    """8 MiB of 64 lie high. The overhead takes 1 MiB of them, the first 7 MiB of the guest's pages
    the rest; a second VM gets low frames only. All come back. Exact."""
    host = limited(56 * MIB)
    assert counter(host, "highmem_free") == in_slots(8 * MIB)
    full = make_phase(memory=16 * MIB)
    power_on(host, make_spec(1, 16 * MIB, full, overhead=MIB))
    run(host, 5 * SECOND)
    row = row_of(host, 1)
    assert (row.overhead_highmem, row.highmem) == (in_slots(MIB), in_slots(7 * MIB))
    assert is_high(host, 1) == [ppn < row.highmem for ppn in range(int(row.size_slots))]
    power_on(host, make_spec(2, 16 * MIB, full, overhead=MIB))
    run(host, 5 * SECOND)
    assert (row_of(host, 2).overhead_highmem, row_of(host, 2).highmem) == (0, 0)
    host.power_off(VmId(1))
    assert counter(host, "highmem_free") == in_slots(8 * MIB)
    run(host, SECOND)
    host.power_off(VmId(2))
    assert counter(host, "free") == in_slots(64 * MIB)
    assert counter(host, "highmem_free") == in_slots(8 * MIB)


def test_a_vm_that_moves_in_takes_high_frames_first_and_brings_no_counts() -> None:
    source, target = limited(MIB), limited(63 * MIB)
    power_on(source, sender(1, 64))
    run(source, 4 * SECOND)
    assert 0 < row_of(source, 1).highmem < row_of(source, 1).resident
    import_vm(target, export_vm(source, VmId(1)))
    row = row_of(target, 1)
    assert row.highmem == min(int(row.resident), in_slots(MIB)) > 0
    assert (target.state.copied == -1).all()
    run(target, 4 * SECOND)


# When low memory is full


def test_a_page_waits_for_a_free_frame_of_low_memory() -> None:
    """Four low frames, which VM 1 takes; VM 2's pages stay high until it is powered off."""
    host = limited(4 * PAGE_SIZE)
    power_on(host, sender(1, 64))
    run(host, 10 * SECOND)
    assert counter(host, "remaps") == 4
    power_on(host, sender(2, 64))
    run(host, 10 * SECOND)
    assert counter(host, "remaps") == 4 and all(is_high(host, 2)[:64])
    host.power_off(VmId(1))
    run(host, 10 * SECOND)
    assert counter(host, "remaps") == 8 and sum(is_high(host, 2)[:64]) == 60


def test_a_random_page_makes_way() -> None:
    """Four low frames, 64 hot pages: there are always four pages in them, and none is free."""
    host = limited(4 * PAGE_SIZE, io={"remap": "random"})
    power_on(host, sender(1, 64), sender(2, 64))
    run(host, 10 * SECOND)
    assert counter(host, "remaps") > 100
    assert counter(host, "free") == counter(host, "highmem_free")
    low = [(vm, ppn) for vm in (1, 2) for ppn in range(64) if not is_high(host, vm)[ppn]]
    assert len(low) == 4
    copies = counter(host, "copies") * COPY_NS
    moves = (4 + 2 * (counter(host, "remaps") - 4)) * COPY_NS
    paid = sum(lost_ns(host, vm)["cpu"] for vm in (1, 2))
    assert paid + int(host.state.debts.sum()) == copies + moves


@pytest.mark.parametrize("low_pages", [64, 2048])
def test_pages_that_make_way_are_drawn_uniformly(low_pages: int) -> None:
    """Of the private low pages of all VMs, each as often as the others, where they are few (a draw
    among all) and where they are many (random looks): chi-square over 40 groups of pages within
    five standard deviations of its mean."""
    host = limited(16 * MIB)
    power_on(host, *(make_spec(vm, 4 * MIB, make_phase(memory=4 * MIB)) for vm in (1, 2)))
    run(host, 5 * SECOND)
    low = [(v, ppn) for v in (0, 1) for ppn in range(v, 1024, 2048 // low_pages)]
    for v, ppn in low:
        remap.move(host.state, v, ppn)
    names = [v << 40 | ppn for v, ppn in low]
    key = np.uint64(rng.stream(1, rng.REMAP, 1, 7))
    n_draws = 10_000
    found = np.array([remap.find_victim(host.state, key, draw) for draw in range(n_draws)])
    assert set(found.tolist()) <= set(names)
    groups = np.array_split(names, 40)
    seen = np.array([np.isin(found, group).sum() for group in groups])
    expected = np.array([len(group) for group in groups]) * n_draws / len(low)
    chi_square, degrees = ((seen - expected) ** 2 / expected).sum(), len(groups) - 1
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


def test_no_page_makes_way_where_low_memory_holds_none() -> None:
    """Low memory is free as a whole, then a page has it, then that page has left."""
    host = limited(PAGE_SIZE)
    power_on(host, sender(1, 1))
    run_until_booted(host)
    key = np.uint64(rng.stream(1, rng.REMAP, 1, 7))
    assert remap.find_victim(host.state, key, 0) == -1
    remap.move(host.state, 0, 9)
    assert remap.find_victim(host.state, key, 0) == 9
    fault.leave_memory(host.state, 0, 9, UNTOUCHED)
    assert remap.find_victim(host.state, key, 0) == -1


# Counters


def copies_until_moved(host: Host, ppn: int) -> int:
    """Sends of a page until its frame lies low."""
    for n in range(1, 50):
        if workload.send(host.state, 0, ppn, n) == 2:
            return n
    raise AssertionError("it never moves")


def test_a_count_ends_when_the_page_leaves_memory() -> None:
    """Four copies, then the page is swapped out and comes back: five more make it move."""
    host = limited(MIB)
    power_on(host, sender(1, 1, image=None))
    run_until_booted(host)
    for draw in range(4):
        workload.send(host.state, 0, 100, draw)
    fault.leave_memory(host.state, 0, 100, SWAPPED)
    fault.bring_in(host.state, 0, 100)
    assert copies_until_moved(host, 100) == 5
    assert not (host.state.copied[:, 0] == 1 << 40 | 100).any()


def test_a_page_that_needs_the_same_counter_ends_a_count() -> None:
    host = limited(MIB)
    power_on(host, sender(1, 1))
    run_until_booted(host)
    place = {ppn: remap._counter_of(host.state, 1 << 40 | ppn) for ppn in range(256)}
    host.state.copied[:] = -1
    one = next(ppn for ppn in range(1, 256) if list(place.values()).count(place[ppn]) == 1)
    assert max(place.values()) < COUNTERS
    other = 1 << 40 | 77_777  # a page that nobody has: the counter is not its own
    for draw in range(4):
        workload.send(host.state, 0, one, draw)
    host.state.copied[place[one], 0] = other
    assert copies_until_moved(host, one) == 5


# What a scenario may say

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"hosts": [HOST | {"io": {"low_memory": "0 B"}}]}, "hosts[0].io.low_memory", "above 0"),
    ({"hosts": [HOST | {"io": {"low_memory": 4}}]}, "hosts[0].io.low_memory", "with a unit"),
    (
        {"hosts": [HOST | {"io": {"remap": "always"}}]},
        "hosts[0].io.remap",
        "'free' or 'random'",
    ),
    ({"hosts": [HOST | {"io": {"copy_threshold": -1}}]}, "hosts[0].io.copy_threshold", "least 0"),
    ({"hosts": [HOST | {"io": {"treshold": 1}}]}, "hosts[0].io.treshold", "copy_threshold"),
]


@pytest.mark.parametrize(("change", "path", "words"), BAD, ids=[path for _, path, _ in BAD])
def test_a_wrong_host_is_refused(
    tmp_path: Path, change: dict[str, Any], path: str, words: str
) -> None:
    (found,) = problems_of(tmp_path, changed(**change))
    assert found.path == path and words in found.message


@pytest.mark.parametrize(
    ("values", "path", "words"),
    [
        ({"transmit": "101 GiB/s"}, ".transmit", "at most 100 GiB/s"),
        ({"transmit": "8 MiB"}, ".transmit", "such as '4 MiB/s'"),
        ({"transmit": "8 MiB/s", "transmit_set": "0 %"}, "", "transmit_set above 0"),
    ],
)
def test_a_wrong_phase_is_refused(
    tmp_path: Path, values: dict[str, str], path: str, words: str
) -> None:
    phase = WORKLOAD["phases"][0] | values
    data = changed(workloads=[WORKLOAD | {"phases": [phase]}])
    (found,) = problems_of(tmp_path, data)
    assert found.path == f"workloads[0].phases[0]{path}" and words in found.message
