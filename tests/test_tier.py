"""Memory tiers (vSphere 8U3): frames of DRAM and NVMe; what goes down, comes up, and its price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_builders import (
    ALL_IMAGE,
    MINUTE,
    SECOND,
    counter,
    in_slots,
    lost_ns,
    make_config,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    row_of,
    run,
)
from scenario_files import HOST, changed, problems_of

from hostsim import (
    fault,
    image,
    invariants,
    lost,
    loud,
    reclaim,
    sample,
    share,
    snapshot,
    swap,
    tier,
)
from hostsim.config import HostConfig
from hostsim.host import Host
from hostsim.state import ACCESSED, KIND, RESIDENT, STATE, TIER, UNIQUE
from hostsim.units import GIB, MIB, PAGE_SIZE, VmId

N_PAGES = MIB // PAGE_SIZE
DRAM = 100
"""Frames of DRAM that are left for VMs of 256 pages."""
LATENCY = 70_000


def still_host(n_vms: int = 1, dram: int = DRAM, **options: Any) -> Host:
    """VMs 1..n of 256 pages that never ran, all written, in order: the first pages lie in DRAM. The
    device takes many pages in this step, and no DRAM need be free."""
    reserve = 64 * MIB - dram * PAGE_SIZE
    given = {"nvme": 100, "latency": LATENCY} | options.pop("tier", {})
    guest = options.pop("image", None)
    host = make_host(reserve=reserve, tier=given, **options)
    does = make_phase(active=MIB)
    power_on(host, *(make_spec(vm, MIB, does, image=guest) for vm in range(1, n_vms + 1)))
    row = host.state.host[0]
    row.tier_io_left, row.tier_goal = 1000, 0
    for v in range(n_vms):
        for ppn in range(N_PAGES):
            assert fault.touch(host.state, v, ppn, 1, int(UNIQUE) | v << 16 | ppn) == 0
    invariants.check(host.state)
    return host


def in_dram(host: Host, vm: int = 1) -> list[int]:
    """Private pages of a VM that lie in DRAM."""
    row = row_of(host, vm)
    page = host.state.page[row.base_slot : row.base_slot + row.size_slots]
    return np.flatnonzero(page & int(STATE | KIND) == int(RESIDENT | KIND)).tolist()


def forget_accesses(host: Host, *ppns: int) -> None:
    """Pages of the first VM that nobody has touched for long."""
    for ppn in ppns:
        host.state.page[ppn] &= ~np.uint8(ACCESSED)


def aim(host: Host, n_free: int) -> None:
    host.state.host[0].tier_goal = n_free


# Where pages lie, and what they cost


def test_fresh_pages_lie_in_dram_while_it_has_room() -> None:
    host = still_host()
    assert in_dram(host) == list(range(DRAM))
    assert counter(host, "highmem") == DRAM
    assert counter(host, "machine") == DRAM + 64 * MIB // 10 // PAGE_SIZE
    (row,), _ = host.measure()
    assert row.nvme_pages == N_PAGES - DRAM and row.tier_touches == 0


@pytest.mark.parametrize("sample", [1, 4])
def test_a_touch_of_a_page_on_nvme_waits_for_it_and_brings_it_up(sample: int) -> None:
    host = still_host()
    host.state.host[0].sample = sample
    fault.leave_memory(host.state, 0, 3, 0)
    assert fault.touch(host.state, 0, 200, 0, 0) == LATENCY * sample
    assert host.state.vms[0].cause == TIER
    assert 200 in in_dram(host) and counter(host, "highmem_free") == 0
    assert fault.touch(host.state, 0, 200, 1, int(UNIQUE)) == 0
    assert (counter(host, "tier_touches"), counter(host, "tier_ups")) == (1, 1)
    assert counter(host, "tier_io_left") == 999
    invariants.check(host.state)


def test_without_room_in_dram_each_touch_waits() -> None:
    host = still_host()
    assert [fault.touch(host.state, 0, 200, 0, 0) for _ in range(3)] == [LATENCY] * 3
    assert 200 not in in_dram(host)
    assert (counter(host, "tier_touches"), counter(host, "tier_ups")) == (3, 0)
    assert counter(host, "tier_io_left") == 997


def test_a_busy_device_stalls_the_touch_and_the_guest_loses_time_to_the_tier() -> None:
    host = still_host()
    host.state.host[0].tier_io_left = 0
    assert fault.touch(host.state, 0, 200, 0, 0) == fault.NO_TIER_IO
    assert fault.touch(host.state, 0, 3, 0, 0) == 0
    host.state.vms[0].left_ns = 12_345
    assert not lost.settle(host.state, 0, fault.NO_TIER_IO)
    assert lost_ns(host, 1)["tier"] == 12_345 == sum(lost_ns(host, 1).values())
    assert counter(host, "tier_touches") == 0 and counter(host, "stalled_touches") == 1


def test_a_fresh_page_on_nvme_is_made_there_without_waiting() -> None:
    """As one that swap gives back: it was not in memory, so its first touch reaches nothing."""
    host = still_host()
    fault.leave_memory(host.state, 0, 200, 0)
    assert fault.touch(host.state, 0, 200, 0, 0) == 0
    assert 200 not in in_dram(host)
    assert fault.touch(host.state, 0, 200, 0, 0) == LATENCY


def test_a_swapped_page_that_is_overwritten_is_made_on_nvme_without_waiting() -> None:
    """It was not in memory either, and the host reads it from nowhere, however busy the device."""
    host = still_host(paging={"skip_overwritten": True})
    host.state.host[0].swap_io_left = 10
    swap.page_out(host.state, 0, 200)
    host.state.host[0].tier_io_left = 0
    word = int(UNIQUE) | 4711
    assert fault.overwrite(host.state, 0, 200, word) == 0
    assert host.state.content[200] == word and host.state.page[200] & ACCESSED
    assert 200 not in in_dram(host) and counter(host, "swap_skips") == 1
    invariants.check(host.state)


def test_a_shared_frame_comes_up_for_all_and_never_goes_down() -> None:
    host = still_host(2)
    shared = host.state.vms[0].image_base
    for v in range(2):
        share.rewrite(host.state, v, 200, int(shared))
        share.scan_page(host.state, v, 200)
    assert row_of(host, 1).shared == row_of(host, 2).shared == 1
    fault.leave_memory(host.state, 0, 3, 0)
    assert [fault.touch(host.state, v, 200, 0, 0) for v in (0, 1)] == [LATENCY, 0]
    assert host.state.shared_kind[shared] == KIND
    for v in range(2):
        host.state.page[host.state.vms[v].base_slot + 200] &= ~np.uint8(ACCESSED)
    aim(host, 1)
    tier.look(host.state, 0, 200, 1)
    tier.look(host.state, 1, 200, 1)
    assert host.state.shared_kind[shared] == KIND
    invariants.check(host.state)


def test_pages_on_nvme_are_loud_and_only_they() -> None:
    """A window that goes round the end, with pages of both tiers, private and shared: any touch of
    those below is heard. Of two pages that become equal the frame of the first one scanned stays.
    """
    host = still_host(image=make_image(content=ALL_IMAGE))
    vm = host.state.vms[0]
    vm.kernel, vm.span, vm.window, vm.active, vm.brk = 0, N_PAGES, 40, 250, N_PAGES
    host.state.page[:N_PAGES] |= 2 << 6  # anonymous
    for content, pair in enumerate([(10, 210), (220, 20)]):
        for ppn in pair:
            share.rewrite(host.state, 0, ppn, int(vm.image_base) + content)
            share.scan_page(host.state, 0, ppn)
    assert vm.shared == 4
    loud.listen(host.state, 0)
    heard = host.state.heard[: host.state.n_heard[loud.ANY]]
    window = [(40 + offset) % N_PAGES for offset in range(250)]
    far = {20, *range(DRAM, N_PAGES)} - {210}
    assert [window[offset] for offset in heard] == [ppn for ppn in window if ppn in far]
    fault.leave_memory(host.state, 0, 3, 0)
    assert fault.touch(host.state, 0, 220, 0, 0) == LATENCY
    for ppn in (20, 220):
        loud.listen_again(host.state, 0, ppn)
    heard = host.state.heard[: host.state.n_heard[loud.ANY]]
    assert {window[offset] for offset in heard} == far & set(window) - {20, 220}


# What goes down


def test_pages_not_accessed_since_the_last_look_go_down_until_enough_is_free() -> None:
    host = still_host()
    forget_accesses(host, 5, 6, 50)
    aim(host, 3)
    assert tier.look(host.state, 0, 0, N_PAGES) == 51
    assert counter(host, "highmem_free") == 3 == counter(host, "tier_downs")
    assert set(range(DRAM)) - set(in_dram(host)) == {5, 6, 50}
    assert counter(host, "tier_io_left") == 997
    aim(host, 6)
    assert tier.look(host.state, 0, 0, N_PAGES) == 3  # marked by the look before, and cold now
    assert {0, 1, 2} & set(in_dram(host)) == set()
    invariants.check(host.state)


def test_what_is_touched_between_two_looks_stays() -> None:
    host = still_host()
    aim(host, 10)
    tier.look(host.state, 0, 0, N_PAGES)
    assert counter(host, "tier_downs") == 0
    hot = range(0, 100, 2)
    for ppn in hot:
        assert fault.touch(host.state, 0, ppn, 0, 0) == 0
    tier.look(host.state, 0, 0, N_PAGES)
    assert counter(host, "tier_downs") == 10 and set(hot) <= set(in_dram(host))


@pytest.mark.parametrize("why", ["busy", "full", "enough"])
def test_no_page_goes_down_without_need_or_a_place(why: str) -> None:
    host = still_host(tier={"nvme": 10} if why == "full" else {}, n_vms=1)
    forget_accesses(host, *range(DRAM))
    row = host.state.host[0]
    aim(host, 0 if why == "enough" else 50)
    row.tier_io_left = 7 if why == "busy" else 1000
    tier.look(host.state, 0, 0, N_PAGES)
    n_low = counter(host, "machine") - counter(host, "highmem")
    most = {"busy": 7, "enough": 0, "full": n_low - (N_PAGES - DRAM)}[why]
    assert counter(host, "tier_downs") == most < 50
    invariants.check(host.state)


def test_the_hand_goes_round_once_in_a_sampling_period() -> None:
    """Of 512 pages in steps of a thirtieth: each is looked at once, those of the second VM too."""
    host = still_host(2, dram=400)
    row = host.state.host[0]
    aim(host, 400)
    row.dt_ms = SECOND
    hands = []
    for _ in range(30):
        row.tier_io_left = 1000
        tier.make_room(host.state)
        hands.append(counter(host, "tier_hand"))
    assert hands[-1] == 0 and hands == [512 * (i + 1) // 30 % 512 for i in range(30)]
    in_first, in_second = (in_dram(host, vm) for vm in (1, 2))
    assert (len(in_first), len(in_second)) == (256, 144) and counter(host, "tier_downs") == 0
    assert not (host.state.page[in_first] & int(ACCESSED)).any()
    for _ in range(30):
        row.tier_io_left = 1000
        tier.make_room(host.state)
    n_free = counter(host, "machine") - 512
    assert counter(host, "tier_downs") == min(400, n_free)


def test_looks_leave_a_running_sample_as_it_is() -> None:
    """Neither the pages sampled, one of them twice, nor whether they were touched."""
    host = still_host()
    vm = host.state.vms[0]
    vm.samples, vm.periods = 4, 1
    host.state.sampled[0, :4] = (4, 9, 9, 60)
    forget_accesses(host, 9, 10, 60)
    before = sample.active_fraction(host.state, 0)
    aim(host, DRAM)
    tier.look(host.state, 0, 0, N_PAGES)
    assert host.state.sampled[0, :4].tolist() == [4, 9, 9, 60]
    assert sample.touched_samples(host.state, 0) == 1
    assert sample.active_fraction(host.state, 0) == before
    assert {4, 9, 60} <= set(in_dram(host)) and 10 not in in_dram(host)
    invariants.check(host.state)


def test_a_page_that_moves_breaks_its_large_page() -> None:
    host = make_host(large_pages=True, tier={"nvme": 250})
    power_on(host, make_spec(1, 8 * MIB))
    for ppn in (0, 512):
        fault.touch(host.state, 0, ppn, 1, int(UNIQUE))
    assert row_of(host, 1).large == 2
    row = host.state.host[0]
    row.tier_io_left, row.tier_goal = 1, row.highmem_free + 1
    assert tier.look(host.state, 0, 0, 1024) == 2  # the first one is accessed
    assert row_of(host, 1).large == 1 and counter(host, "large_breaks") == 1
    invariants.check(host.state)


# Whole hosts


def test_a_host_with_dram_to_spare_is_one_without_a_tier() -> None:
    """Four guests of 8 MiB on 64 MiB, with a tier and without: every VM's row is the same, no page
    is looked at, none lies on NVMe."""
    rows = []
    for nvme in (0, 1000):
        host = make_host(tier={"nvme": nvme}, sharing={"enabled": True})
        phase = make_phase(memory=7 * MIB, active=4 * MIB, growth=MIB, drift=500)
        power_on(host, *(make_spec(vm, 8 * MIB, phase) for vm in range(1, 5)))
        run(host, 5 * MINUTE)
        (row,), vms = host.measure()
        rows.append(vms.tobytes())
        moved = [row[name] for name in ("nvme_pages", "tier_touches", "tier_down_pages")]
        assert moved == [0, 0, 0] and counter(host, "tier_hand") == 0
    assert rows[0] == rows[1]


def test_a_tier_does_not_travel() -> None:
    """A VM that arrives has frames as a fresh one: DRAM first, whatever it had at its source."""
    source, target = still_host(), still_host(2, dram=300)
    target.power_off(VmId(1))
    n_free = counter(target, "highmem_free")
    image.import_vm(target, image.unpack(image.pack(image.export_vm(source, VmId(1)))))
    invariants.check(target.state)
    assert len(in_dram(target)) == min(n_free, N_PAGES) > len(in_dram(source))
    plain = make_host()
    image.import_vm(plain, image.unpack(image.pack(image.export_vm(source, VmId(1)))))
    invariants.check(plain.state)
    assert in_dram(plain) == []


def test_a_snapshot_goes_on_as_the_host_would_have() -> None:
    host = make_host(tier={"nvme": 1000})
    phase = make_phase(memory=26 * MIB, active=20 * MIB, growth=MIB, drift=1000)
    power_on(host, *(make_spec(vm, 30 * MIB, phase) for vm in range(1, 5)))
    run(host, 3 * MINUTE + 500)
    back = snapshot.load(snapshot.save(host))
    for one in (host, back):
        run(one, 2 * MINUTE)
    assert counter(host, "tier_touches") > 0 and counter(host, "tier_hand") > 0
    assert snapshot.digest(back) == snapshot.digest(host)


def test_thresholds_are_parts_of_all_memory_and_the_goal_of_dram_is_one_of_dram() -> None:
    host, plain = make_host(tier={"nvme": 1000}), make_host()
    assert counter(host, "goal") == reclaim.thresholds(host.config.reclaim, 128 * MIB, 1).goal
    assert counter(host, "tier_goal") == counter(plain, "goal")
    assert counter(host, "machine") == in_slots(128 * MIB)
    assert counter(plain, "tier_goal") == counter(plain, "tiered") == 0


def test_transmits_of_a_host_with_tiers_are_not_copied() -> None:
    host = make_host(tier={"nvme": 1000})
    phase = make_phase(memory=8 * MIB, active=MIB, transmit=MIB, transmit_set=("bytes", MIB))
    power_on(host, make_spec(1, 8 * MIB, phase, image=make_image(MIB, content=ALL_IMAGE)))
    run(host, MINUTE)
    (row,), _ = host.measure()
    assert row.transmitted_pages > 1000 and row.copied_pages == 0


# What a scenario may say

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tier": {"nvme": "401 %"}}, "hosts[0].tier.nvme", "400"),
    ({"tier": {"nvme": "-1 %"}}, "hosts[0].tier.nvme", "percentage"),
    ({"tier": {"nvme": 25}}, "hosts[0].tier.nvme", "percentage"),
    ({"tier": {"iops": 0}}, "hosts[0].tier.iops", "least 1"),
    ({"tier": {"latency": "90 GiB"}}, "hosts[0].tier.latency", "us"),
    ({"tier": {"size": "1 GiB"}}, "hosts[0].tier.size", "nvme"),
    (
        {"tier": {"nvme": "25 %"}, "io": {"low_memory": "16 MiB"}},
        "hosts[0]",
        "tier.nvme and io.low_memory exclude each other",
    ),
]


@pytest.mark.parametrize(("values", "path", "words"), BAD, ids=[str(one[0]) for one in BAD])
def test_a_wrong_tier_is_refused(
    tmp_path: Path, values: dict[str, Any], path: str, words: str
) -> None:
    (found,) = problems_of(tmp_path, changed(hosts=[HOST | values]))
    assert found.path == path and words in found.message, found


SPACE: dict[str, Any] = {"memory": 2 * GIB}


def test_machine_memory_is_dram_and_nvme() -> None:
    config = make_config(tier={"nvme": 4000})
    assert config.machine_bytes == 5 * 64 * MIB
    assert HostConfig(**SPACE, tier={"nvme": 4000}).swap_space_bytes == 5 * 4 * 2 * GIB
    assert make_config().machine_bytes == 64 * MIB
