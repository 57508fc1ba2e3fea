"""Fast host and literal twin with memory tiers: in the twin a page that moves gets another MPN.

Guests touch more than DRAM holds while pages are shared, written, ballooned and swapped; after
every step each page's frame must be of the same tier in both hosts, each accessed bit and each
count the same.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import naive_scenes as scenes
import pytest
from naive_pair import Pair, vm_spec

PHASES: tuple[dict[str, Any], ...] = (
    {"active": 60, "memory": 80, "writes": 400, "duration": 12_000},
    {"active": 20, "memory": 90, "drift": 1000, "duration": 9000},
)


def crowded(k: int, dram: int, nvme: int, locality: str, iops: int, **options: Any) -> Pair:
    """Three VMs of 300 slots together on a host with so many frames of each kind."""
    tier = scenes.tier(k, dram, nvme, iops=iops * k)
    config = scenes.host(k, dram, tier=tier, **options)
    pair = Pair(config, 7, k)
    does = scenes.phases(k, *({"locality": locality} | phase for phase in PHASES))
    for vm, size in enumerate((110, 100, 90)):
        spec = vm_spec(vm, scenes.guest(k, size, overhead=3), scenes.image(k, 60), does)
        assert pair.power_on(spec)
    return pair


def run(pair: Pair, steps: int) -> Counter[str]:
    """Run, compare, and sum up the events."""
    totals: Counter[str] = Counter()
    for _ in range(steps):
        pair.tick()
        totals += pair.twin.events
        pair.measure()
    return totals


@pytest.mark.parametrize("locality", ["uniform", "zipf"])
@pytest.mark.parametrize(
    ("k", "dram", "nvme"), [(16, 160, 200), (16, 100, 100), (64, 120, 90), (4, 140, 150)]
)
def test_pages_go_down_and_come_up_as_in_the_twin(
    k: int, dram: int, nvme: int, locality: str
) -> None:
    pair = crowded(k, dram, nvme, locality, 300)
    totals = run(pair, 30)
    assert all(totals[name] > 0 for name in ("tier_touches", "tier_ups", "tier_downs")), totals
    assert totals["shares_made"] > 0 and totals["cow_breaks"] > 0
    for vm in list(pair.twin.vms):
        pair.power_off(vm)
        pair.check()
    assert len(pair.twin.machine.free_high) == pair.fast.state.host[0].highmem_free


def test_a_busy_device_makes_both_wait() -> None:
    pair = crowded(16, 100, 200, "uniform", 15)
    totals = run(pair, 30)
    assert totals["stalled_touches"] > 0 and totals["tier_touches"] > 0
    assert sum(vm.debts.total() for vm in pair.twin.on()) >= 0


def test_large_pages_break_where_parts_move() -> None:
    pair = crowded(64, 160, 200, "uniform", 300, large_pages=True)
    totals = run(pair, 30)
    assert totals["large_breaks"] > 0 and totals["tier_downs"] > 0
