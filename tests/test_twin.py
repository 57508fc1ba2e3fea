"""The fast host and the literal twin over whole steps, one small scripted host per mechanism.

After every step all observable numbers, all pages and what every guest would read must be equal,
and the invariants hold; rows of measurements are compared on the way. Each set-up asserts that
what it is about did happen, so that none passes for want of pressure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import naive_scenes as scenes
import pytest
from naive_host import limits
from naive_machine import ZERO_PAGE
from naive_pair import Pair, vm_spec
from naive_policy import CLEAR, HARD, HIGH, LOW, SOFT
from naive_state import Annotation

from hostsim.config import Disk
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.program import KEEP

MEASURE_STEPS = 25
"""Steps between two measurements."""

Action = Callable[[Pair], object]


def run(pair: Pair, steps: int, at: dict[int, Action] | None = None) -> Counter[str]:
    """Run and compare; `at`: what to do before a step. Events of the host, ms in each level, and
    ns lost by cause, summed over the run."""
    totals: Counter[str] = Counter()
    for step in range(steps):
        if at and step in at:
            at[step](pair)
            pair.check()
        pair.tick()
        if step % MEASURE_STEPS == MEASURE_STEPS - 1 or step == steps - 1:
            totals += pair.twin.events
            for level, ms in pair.twin.level_ms.items():
                totals[f"level {level}"] += ms
            for vm in pair.twin.on():
                for cause, ns in vm.lost.items():
                    totals[f"lost to {cause}"] += ns
            pair.measure()
    return totals


def slowly(*values: object) -> Any:
    """A case that the slow suite has."""
    return pytest.param(*values, marks=pytest.mark.slow)


def all_happened(totals: Counter[str], *names: str) -> None:
    missing = [name for name in names if totals[name] == 0]
    assert not missing, f"never happened: {missing} in {dict(totals)}"


CACHE_GROWTH = ContentTable(cache=ContentMix(unique=500), anon=ContentMix(zero=100, unique=400))


def full_host(pair: Pair, sizes: list[int], footprint: int, **options: object) -> None:
    """Power on VMs of these sizes, all of one image, all with one workload."""
    k = pair.sample
    does = options.pop("does")
    image = scenes.image(k, footprint, **options.pop("image", {}))  # type: ignore[arg-type]
    for vm, size in enumerate(sizes):
        config = scenes.guest(k, size, **options)
        assert pair.power_on(vm_spec(vm, config, image, does))  # type: ignore[arg-type]


@pytest.mark.parametrize("locality", ["uniform", "sweep", "zipf", "linear"])
@pytest.mark.parametrize(
    ("k", "tick_ms", "steps"), [(16, 1000, 40), slowly(1, 1000, 40), (16, 10_000, 6)]
)
def test_phases_over_more_memory_than_the_host_has(
    locality: str, k: int, tick_ms: int, steps: int
) -> None:
    size = max(100, 256 // k)
    slow = {"inflate": scenes.amount(1, k)}  # so that paging has its part
    pair = Pair(scenes.host(k, 3 * size // 2, balloon=slow), 11, k, tick_ms)
    does = scenes.phases(
        k,
        {"active": size // 2, "locality": locality, "drift": 1000},
        {"active": size // 5, "locality": locality, "writes": 800, "memory": size},
    )
    full_host(pair, [size + 9, size, size], 3 * size // 4, does=does)
    totals = run(pair, steps)
    all_happened(
        totals, "scanned", "shares_made", "cow_breaks", "inflated", "swap_outs", "swap_ins"
    )
    assert all(vm.touches == 0 and vm.periods > 2 for vm in pair.twin.on())
    assert pair.twin.tick == steps and pair.twin.now_ms == steps * tick_ms


VSWAPPER = {"map_clean": True, "skip_overwritten": True}


@pytest.mark.parametrize(
    ("balloon", "paging", "happens"),
    [
        ("present", {}, ("swap_outs",)),
        ("absent", {}, ("swap_outs", "stale_reads", "double_pagings")),
        ("absent", VSWAPPER, ("swap_skips", "swap_drops", "swap_outs")),
        slowly("absent", {"share_first": False}, ("swap_outs", "stale_reads")),
        slowly("absent", {"map_clean": True}, ("swap_drops", "swap_outs", "stale_reads")),
        slowly("absent", {"skip_overwritten": True}, ("swap_skips", "double_pagings")),
    ],
)
def test_file_data_beyond_memory(
    balloon: str, paging: dict[str, bool], happens: tuple[str, ...]
) -> None:
    """Linux guests read files larger than their cache over its cold pages, some of which the host
    had swapped; a Windows guest beside them zeroes what its balloon gives back."""
    k = 16
    pair = Pair(scenes.host(k, 330, paging=paging), 4, k)
    ranked = {"active": 150, "data": 220, "touch_interval": 4000, "writes": 500}
    does = scenes.phases(
        k,
        {"locality": "zipf", "memory": 180, **ranked},
        {"locality": "uniform", "memory": 120, **ranked},
        {"locality": "linear", "memory": 60, **ranked},
    )
    for vm, os in enumerate(("linux", "windows", "linux")):
        image = scenes.image(
            k, 60, os=os, structures=40, content=scenes.BOOT_CONTENT, growth=CACHE_GROWTH
        )
        config = scenes.guest(k, 200, balloon="present" if os == "windows" else balloon)
        assert pair.power_on(vm_spec(vm, config, image, does))
    totals = run(pair, 60)
    all_happened(totals, "guest_page_ins", "inflated", "deflated", "cow_breaks", *happens)
    for name, option in (("swap_drops", "map_clean"), ("swap_skips", "skip_overwritten")):
        assert paging.get(option) or totals[name] == 0
    if paging.get("skip_overwritten"):
        assert totals["stale_reads"] == 0


@pytest.mark.parametrize("paging", [VSWAPPER, slowly({})])
def test_dropped_pages_are_freed_and_used_again(paging: dict[str, bool]) -> None:
    """Linux guests without drivers free and use again what the host had paged out: a page that the
    host dropped is read from the guest's disk, or, where that is skipped, just backed."""
    k = 16
    pair = Pair(scenes.host(k, 220, paging=paging), 13, k)
    does = scenes.phases(
        k,
        {"memory": 140, "active": 60, "duration": 9000, "growth": scenes.amount(40, k)},
        {"memory": 30, "active": 20, "duration": 9000, "growth": scenes.amount(40, k)},
    )
    image = {"growth": CACHE_GROWTH}
    full_host(pair, [150, 150], 30, does=does, balloon="absent", image=image)
    totals = run(pair, 80)
    all_happened(totals, "swap_outs", "swap_ins")
    assert (totals["swap_skips"] > 0, totals["swap_drops"] > 0) == (bool(paging), bool(paging))


def test_sharing_may_be_left_to_the_scanner() -> None:
    """Pages of which an equal frame is known are shared before they are swapped, unless told not
    to [P 4.3]."""
    k = 16
    written = {}
    for share_first in (True, False):
        paging = {"share_first": share_first}
        sharing = {"scan_pages_per_s_vm": 4 * k, "scan_pages_per_s_total": 12 * k}
        pair = Pair(scenes.host(k, 200, paging=paging, sharing=sharing), 8, k)
        does = scenes.phases(k, {"active": 40})
        full_host(pair, [130, 130], 120, does=does, balloon="absent")
        totals = run(pair, 40)
        assert (totals["shared_before_swap"] > 0) == share_first
        written[share_first] = totals["swap_outs"]
    assert written[False] > written[True]


def test_a_trace_falls_behind_and_catches_up() -> None:
    """A trace's demand follows the wall clock: work missed while swapping in is done later."""
    k = 16
    slow = Disk(latency=20_000_000, iops=15 * k)
    pair = Pair(scenes.host(k, 130, swap=slow), 5, k)
    rows = scenes.trace(k, (40, 90, 70), (80, 40, 4), (60, KEEP, 30), writes=500)
    image = scenes.image(k, 50)
    for vm in range(2):
        assert pair.power_on(vm_spec(vm, scenes.guest(k, 100, balloon="absent"), image, rows))
    totals = run(pair, 30)
    all_happened(totals, "swap_outs", "swap_ins", "stalled_touches", "lost to swap_in")
    behind = min(vm.backlog_ns for vm in pair.twin.on())
    assert behind > 5_000_000_000
    pair.power_off(1)
    run(pair, 80)
    assert pair.twin.vms[0].backlog_ns == 0


def test_growing_freeing_and_growing_again() -> None:
    k = 16
    pair = Pair(scenes.host(k, 200), 2, k)
    does = scenes.phases(
        k, {"memory": 140, "active": 30, "duration": 12_000}, {"memory": 20, "active": 10}
    )
    full_host(pair, [150, 150], 40, does=does)
    in_use: list[int] = []
    for _ in range(6):
        run(pair, 12)
        in_use.append(pair.twin.vms[0].guest.brk)
    assert max(in_use) > 100 and in_use[-1] != max(in_use) and min(in_use[2:]) < 60
    assert len(pair.twin.vms[0].guest_free()) > 0


def test_windows_zeroes_all_its_memory_at_boot_and_what_it_frees() -> None:
    """Zeroed pages find each other: one frame holds them all, so VMs twice the host's size boot."""
    k = 16
    sharing = {"scan_pages_per_s_vm": 200 * k, "scan_pages_per_s_total": 900 * k}
    pair = Pair(scenes.host(k, 200, sharing=sharing), 3, k)
    does = scenes.phases(k, {"memory": 60, "active": 10}, {"memory": 25, "active": 10})
    full_host(pair, [130, 130, 130], 40, does=does, image={"os": "windows"})
    most_saved = 0
    totals: Counter[str] = Counter()
    for _ in range(9):
        totals += run(pair, 10)
        most_saved = max(most_saved, pair.twin.shared_saved())
    all_happened(totals, "shares_made", "cow_breaks", "stale_hints")
    assert all(vm.guest.scrub_cursor == vm.size for vm in pair.twin.on())
    assert most_saved > 150
    zeros = [
        vm.frame(ppn)
        for vm in pair.twin.on()
        for ppn in vm.pages("shared")
        if pair.twin.read(vm, ppn) == ZERO_PAGE
    ]
    assert len({entry.mpn for entry in zeros if entry}) == 1


def test_the_guest_pages_out_what_the_host_had_swapped() -> None:
    """Double paging [P 3.1]: the balloon, late, takes anonymous pages that are in host swap."""
    k = 16
    swap = Disk(latency=100_000, iops=20 * k, write_cluster=3)
    pair = Pair(scenes.host(k, 190, swap=swap), 8, k)
    does = scenes.phases(k, {"active": 90, "touch_interval": 3000, "writes": 700})
    full_host(pair, [100, 100, 100], 95, does=does, image={"content": scenes.ANON_ONLY})
    totals = run(pair, 50)
    all_happened(totals, "double_pagings", "guest_page_outs", "guest_page_ins")
    all_happened(totals, "lost to guest_paging", "swap_outs")


def test_what_compresses_is_kept_before_it_is_swapped() -> None:
    """Caches of a tenth fill, their oldest pages go to swap, guests touch some of both; a guest
    whose balloon is late pages out what the host had compressed."""
    k = 16
    pair = Pair(scenes.host(k, 190, compression={"enabled": True}), 8, k)
    does = scenes.phases(k, {"active": 90, "touch_interval": 3000, "writes": 700})
    full_host(pair, [100, 100, 100], 95, does=does, image={"content": scenes.ANON_ONLY})
    most = 0
    totals: Counter[str] = Counter()
    for _ in range(10):
        totals += run(pair, 5)
        most = max(most, *(len(vm.cache_frames) for vm in pair.twin.on()))
    all_happened(totals, "compressions", "decompressions", "cache_evictions", "swap_outs")
    all_happened(totals, "lost to decompress", "guest_page_outs")
    assert most == 10


@pytest.mark.parametrize("has_clear", [True, False])
def test_large_pages_are_broken_shared_and_reclaimed(has_clear: bool) -> None:
    """Guests start in large pages of 32 slots; as they grow, those are broken by the scanner, by
    balloons and by paging."""
    k = 16
    reclaim = scenes.with_clear(k, 380) if has_clear else {}
    slow = {"inflate": scenes.amount(2, k)}
    pair = Pair(scenes.host(k, 380, large_pages=True, reclaim=reclaim, balloon=slow), 6, k)
    does = scenes.phases(
        k,
        {"active": 40, "memory": 90, "growth": scenes.amount(6, k)},
        {"active": 150, "memory": 185, "growth": scenes.amount(6, k)},
    )
    for vm, balloon in enumerate(("present", "present", "absent")):
        config = scenes.guest(k, 190, balloon=balloon)
        assert pair.power_on(vm_spec(vm, config, scenes.image(k, 60), does))
    most, totals = 0, Counter[str]()
    for _ in range(20):
        totals += run(pair, 5)
        most = max(most, sum(len(vm.large) for vm in pair.twin.on()))
    all_happened(totals, "large_breaks", "shares_made", "inflated", "swap_outs")
    assert most > 3 and (totals[f"level {CLEAR}"] > 0) == has_clear


def test_low_memory_blocks_the_vms_above_their_target() -> None:
    k = 16
    pair = Pair(scenes.host(k, 120, swap=Disk(latency=100_000, iops=2 * k)), 21, k)
    does = scenes.phases(k, {"active": 60, "memory": 95})
    full_host(pair, [100, 100, 100], 80, does=does, balloon="absent")
    totals = run(pair, 15)
    all_happened(totals, f"level {LOW}", "lost to blocked", "stalled_touches")
    clocks = {vm.clock_ns for vm in pair.twin.on()}
    assert min(clocks) < 25_000_000_000


def test_a_guest_without_swap_space_refuses_its_balloon_and_is_paged() -> None:
    k = 16
    pair = Pair(scenes.host(k, 150), 4, k)
    does = scenes.phases(k, {"active": 85, "writes": 900})
    full_host(pair, [100, 100], 95, does=does, guest_swap=6, image={"content": scenes.ANON_ONLY})
    full = 0
    totals: Counter[str] = Counter()
    for _ in range(20):
        totals += run(pair, 4)
        full += any(vm.guest_swapped() == vm.guest_swap == 6 for vm in pair.twin.on())
    all_happened(totals, "guest_refusals", "guest_page_outs", "swap_outs")
    assert full > 0


def test_vms_lose_time_to_each_other_and_to_scanning() -> None:
    """Three VMs want 2.4 cores of one, which also hashes 400 pages a second at 1 ms each."""
    k = 16
    sharing = {"scan_pages_per_s_vm": 20 * k, "scan_pages_per_s_total": 25 * k}
    config = scenes.host(k, 400, cpus=1, sharing=sharing, costs={"cow": 50_000, "scan": 1_000_000})
    pair = Pair(config, 6, k)
    full_host(pair, [100, 100, 100], 50, does=scenes.phases(k, {"active": 30, "cpu": 800}))
    totals = run(pair, 60)
    all_happened(totals, "lost to cpu", "lost to scan", "lost to cow", "cpu_demand_ms")
    assert totals["lost to cpu"] > totals["lost to scan"]


def test_vms_come_and_go_beside_running_ones() -> None:
    """More VMs than a new host has rows; ids free again are used again; some are refused."""
    k = 16
    pair = Pair(scenes.host(k, 260, swap_space=scenes.amount(700, k)), 9, k)
    does = scenes.phases(k, {"active": 20, "memory": 50}, {"active": 5, "memory": 30})
    images = [scenes.image(k, footprint) for footprint in (20, 35)]
    admitted: list[bool] = []

    def power_on(vm: int, size: int) -> Action:
        def act(pair: Pair) -> None:
            config = scenes.guest(k, size, overhead=3)
            family = vm % 2
            spec = vm_spec(vm, config, images[family], does, family + 1, application_range=9)
            admitted.append(pair.power_on(spec))

        return act

    at: dict[int, Action] = {step: power_on(7 * step % 11, 60) for step in range(10)}
    at |= {40: lambda pair: pair.power_off(7), 41: lambda pair: pair.power_off(0)}
    at |= {45: power_on(7, 110), 46: power_on(20, 64), 60: lambda pair: pair.power_off(3)}
    at |= {70: power_on(3, 64), 71: power_on(30, 200), 72: power_on(31, 64)}
    totals = run(pair, 90, at)
    all_happened(totals, "shares_made", "swap_outs", "inflated")
    assert len(pair.fast.state.vms) > 8 and sorted(pair.twin.vms)[:2] == [1, 2]
    assert admitted.count(False) > 0 and admitted[-1] is False
    for vm in list(pair.twin.vms):
        pair.power_off(vm)
        pair.check()
    assert pair.twin.free == 260 and pair.twin.index.metadata_bytes() == 0


def test_a_vm_waits_for_its_overhead_memory() -> None:
    k = 16
    pair = Pair(scenes.host(k, 150), 12, k)
    does = scenes.phases(k, {"active": 60, "writes": 900})
    full_host(pair, [110, 110], 100, does=does, balloon="absent")
    run(pair, 15)
    assert pair.twin.free < 40
    late = vm_spec(5, scenes.guest(k, 64, overhead=40), scenes.image(k, 20), does, 3)
    assert pair.power_on(late)
    run(pair, 1)
    assert pair.twin.vms[5].overhead_due > 0 and pair.twin.vms[5].blocked
    totals = run(pair, 60)
    all_happened(totals, "swap_outs", "lost to blocked")
    assert len(pair.twin.vms[5].overhead) == 40


@pytest.mark.parametrize("os", ["linux", "windows"])
def test_a_reset_guest_pops_its_old_balloon(os: str) -> None:
    """A15: pages that the guest touches are popped at the touch, the others at the driver's next
    poll; all of them read zero first."""
    k = 16
    pair = Pair(scenes.host(k, 330, balloon={"maximum": 900}), 14, k)
    image = {"os": os, "content": scenes.ANON_ONLY}
    full_host(pair, [100, 100], 80, does=scenes.phases(k, {"active": 20}), image=image)
    pair.set_vm(1, 0, scenes.amount(40, k), 100)
    before = run(pair, 30)
    all_happened(before, "inflated", "guest_page_outs")
    assert before["pops"] == 0 and pair.twin.vms[1].count(Annotation.BALLOONED) == 60
    pair.reset(1)
    pair.check()
    balloon = pair.twin.vms[1].count(Annotation.BALLOONED)
    totals = run(pair, 3)
    popped_by_touch = totals["pops"]
    assert pair.twin.vms[1].driver_lost and 0 < popped_by_touch <= balloon
    totals += run(pair, 40)
    assert not pair.twin.vms[1].driver_lost and totals["pops"] >= balloon
    assert totals["zero_fills"] >= popped_by_touch


def test_a_reset_in_the_middle_of_booting_starts_booting_anew() -> None:
    k = 16
    pair = Pair(scenes.host(k, 300), 15, k)
    does = scenes.phases(k, {"memory": 90, "active": 20})
    full_host(pair, [100, 100], 43, does=does, image={"os": "windows", "boot": 7000})
    at: dict[int, Action] = {3: lambda pair: pair.reset(0), 8: lambda pair: pair.reset(0)}
    at |= {13: lambda pair: pair.reset(1), 14: lambda pair: pair.reset(1)}
    run(pair, 18, at)
    assert pair.twin.vms[0].guest.booted and not pair.twin.vms[1].guest.booted
    run(pair, 20)
    assert pair.twin.vms[1].guest.booted


@pytest.mark.parametrize("salting", ["none", "vm"])
def test_salting_keeps_equal_pages_of_two_vms_apart(salting: str) -> None:
    k = 16
    sharing = {"salting": salting, "scan_pages_per_s_vm": 60 * k, "scan_pages_per_s_total": 200 * k}
    pair = Pair(scenes.host(k, 400, sharing=sharing), 16, k)
    full_host(pair, [100, 100, 100], 70, does=scenes.phases(k, {"active": 10, "writes": 100}))
    all_happened(run(pair, 60), "shares_made")
    holders: dict[int, set[int]] = {}
    for vm in pair.twin.on():
        for ppn in vm.pages("shared"):
            entry = vm.frame(ppn)
            assert entry is not None
            holders.setdefault(entry.mpn, set()).add(vm.spec.vm)
    most_vms = max(len(vms) for vms in holders.values())
    assert most_vms == (3 if salting == "none" else 1)


@pytest.mark.parametrize("off_for", ["host", "VM 1"])
def test_pages_are_not_shared_where_sharing_is_off(off_for: str) -> None:
    k = 16
    pair = Pair(scenes.host(k, 170, sharing={"enabled": off_for != "host"}), 17, k)
    does = scenes.phases(k, {"active": 30})
    image = scenes.image(k, 70)
    for vm in range(3):
        config = scenes.guest(k, 100, sharing=vm != 1)
        assert pair.power_on(vm_spec(vm, config, image, does))
    totals = run(pair, 60)
    all_happened(totals, "swap_outs")
    assert len(pair.twin.vms[1].pages("shared")) == 0
    assert (totals["scanned"] == 0) == (off_for == "host")
    assert (totals["shares_made"] == 0) == (off_for == "host")


UNUSUAL = (("configured", 0), ("configured", 750), ("touched", 990))


@pytest.mark.parametrize(
    ("claim", "tax"),
    [("touched", 750), *(slowly(*case) for case in UNUSUAL)],
)
def test_targets_follow_shares_idle_tax_and_claims(claim: str, tax: int) -> None:
    """An idle VM, a busy one, one without shares and a limited one on a host for half of them."""
    k = 16
    allocation = {"claim": claim, "idle_tax": tax, "deadband_sigmas": 2}
    pair = Pair(scenes.host(k, 230, allocation=allocation), 18, k)
    image = scenes.image(k, 60)
    busy = scenes.phases(k, {"active": 90, "memory": 110})
    idle = scenes.phases(k, {"active": 4, "memory": 110})
    given = [
        (idle, {}),
        (busy, {"reservation": 30}),
        (busy, {"shares": 0, "reservation": 20}),
        (busy, {"limit": 70, "shares": "high"}),
    ]
    for vm, (does, options) in enumerate(given):
        assert pair.power_on(vm_spec(vm, scenes.guest(k, 120, **options), image, does))
    at: dict[int, Action] = {
        40: lambda pair: pair.set_vm(0, 0, scenes.amount(120, k), 5000),
        55: lambda pair: pair.set_vm(1, scenes.amount(60, k), scenes.amount(90, k), 0),
    }
    totals = run(pair, 40)
    targets = [vm.target for vm in pair.twin.on()]
    assert targets[2] <= 20 and targets[3] <= 70
    if tax:
        assert targets[0] < targets[1]
    totals += run(pair, 50, {step - 40: act for step, act in at.items()})
    all_happened(totals, "inflated", "swap_outs")
    assert pair.twin.vms[1].target <= 60


@pytest.mark.parametrize("reading", ["a", "b"])
@pytest.mark.parametrize("minfree", ["fixed", "sliding"])
def test_levels_fall_and_rise(reading: str, minfree: str) -> None:
    """A burst of growth runs through all levels; after it memory becomes free again."""
    k = 16
    parts = {"high": 600, "soft": 400, "hard": 200, "low": 100} if minfree == "sliding" else {}
    reclaim = {"reading": reading, "minfree": minfree} | parts
    config = scenes.host(k, 300, reclaim=reclaim, swap=Disk(latency=1000, iops=6 * k))
    pair = Pair(config, 19, k)
    growth = scenes.amount(6, k)
    does = scenes.phases(
        k,
        {"memory": 60, "active": 10, "duration": 10_000},
        {"memory": 140, "active": 10, "growth": growth, "duration": 15_000},
        {"memory": 60, "active": 10, "duration": 60_000},
        repeat=False,
    )
    image = {"content": scenes.ANON_ONLY, "growth": scenes.ANON_GROWTH}
    full_host(pair, [150, 150, 150], 50, does=does, balloon="absent", image=image)
    totals = run(pair, 120)
    all_happened(totals, "level 0", f"level {SOFT}", f"level {HARD}", f"level {LOW}")
    # HIGH is reached at the goal; from there on guests may use what lies above `down`.
    assert pair.twin.level == HIGH and pair.twin.free >= limits(pair.twin).down[SOFT]


def test_soft_pages_only_the_vm_whose_balloon_cannot_help() -> None:
    k = 16
    config = scenes.host(k, 230, reclaim={"high": 29, "soft": 24, "hard": 2, "low": 1})
    pair = Pair(config, 20, k)
    image = scenes.image(k, 90)
    does = scenes.phases(k, {"active": 85})
    for vm, balloon in enumerate(["present", "disabled", "absent"]):
        config_of = scenes.guest(k, 100, balloon=balloon, shares="low")
        assert pair.power_on(vm_spec(vm, config_of, image, does))
    swapped: Counter[int] = Counter()
    for _ in range(60):
        run(pair, 1)
        if pair.twin.vms[0].guest.booted:
            swapped.update({vm.spec.vm: len(vm.swap) for vm in pair.twin.on()})
    assert swapped[1] > 0 and swapped[2] > 0


def test_programs_start_at_an_offset_and_repeat() -> None:
    k = 16
    pair = Pair(scenes.host(k, 250), 22, k)
    does = scenes.phases(
        k,
        {"memory": 40, "active": 12, "duration": 5000},
        {"memory": 40, "active": 5, "duration": 7000},
    )
    image = scenes.image(k, 40)
    for vm, offset_ms in enumerate([0, 4000, 9000]):
        config = scenes.guest(k, 100)
        assert pair.power_on(vm_spec(vm, config, image, does, offset_ms=offset_ms))
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(50):
        run(pair, 1)
        seen[tuple(vm.guest.active for vm in pair.twin.on())] += 1
    assert seen[12, 5, 5] > 3 and seen[5, 5, 12] > 3 and seen[5, 12, 5] > 3


def test_an_image_of_kernel_pages_leaves_one_page_to_work_in() -> None:
    """Its footprint is larger than the VM: without that page the active set lay in the next VM."""
    k = 16
    pair = Pair(scenes.host(k, 200), 1, k)
    does = scenes.phases(k, {"active": 20})
    image = scenes.image(k, 60, content=scenes.ALL_KERNEL)
    assert pair.power_on(vm_spec(0, scenes.guest(k, 40), image, does))
    assert pair.power_on(vm_spec(1, scenes.guest(k, 40), scenes.image(k, 30), does, 2))
    run(pair, 30)
    assert pair.twin.vms[0].guest.kernel == 39 and pair.twin.vms[0].guest.active == 1


def test_numbers_that_no_row_reports_start_again_with_each_measurement() -> None:
    k = 16
    pair = Pair(scenes.host(k, 150), 23, k)
    full_host(pair, [100, 100], 80, does=scenes.phases(k, {"active": 60}))
    run(pair, 40)
    pair.measure()
    host = pair.fast.state.host[0]
    assert pair.twin.events == Counter()
    assert host.cow_reuses == host.pops == host.shared_before_swap == host.guest_refusals == 0
