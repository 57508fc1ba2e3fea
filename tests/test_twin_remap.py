"""Fast host and literal twin where devices reach a part of memory only.

In the twin a low frame is one whose MPN is below a bound, and a page that moves gets another MPN.
Guests transmit pages of all uses while pages are shared, written, ballooned and swapped; after
every step each page's frame must be of the same kind in both hosts, and every count the same.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import naive_scenes as scenes
import pytest
from naive_pair import Pair, vm_spec
from naive_state import Use


def run(pair: Pair, steps: int) -> Counter[str]:
    """Run, compare, and sum up the events."""
    totals: Counter[str] = Counter()
    for _ in range(steps):
        pair.tick()
        totals += pair.twin.events
        pair.measure()
    return totals


def crowded(k: int, low: int, remap: str, **options: Any) -> Pair:
    """Three VMs of 300 slots together on 200 frames, `low` of which devices reach."""
    io = {"low_memory": scenes.amount(low, k), "copy_threshold": 2, "remap": remap}
    config = scenes.host(k, 200, io=io, balloon={"inflate": scenes.amount(2, k)}, **options)
    pair = Pair(config, 7, k)
    does = scenes.phases(
        k, {"active": 60, "writes": 500, "transmit": 60, "transmit_set": 50, "cpu": 300}
    )
    image = scenes.image(k, 80)
    for vm, size in enumerate((110, 100, 90)):
        spec = vm_spec(vm, scenes.guest(k, size, overhead=3), image, does)
        assert pair.power_on(spec)
    return pair


@pytest.mark.parametrize(
    ("k", "low", "remap"),
    [(16, 20, "never"), (16, 20, "free"), (16, 90, "free"), (64, 4, "random")],
)
def test_copies_and_moves_are_those_of_the_twin(k: int, low: int, remap: str) -> None:
    """While sharing, COW breaks, balloons and swapping take frames of both kinds and free them."""
    pair = crowded(k, low, remap)
    totals = run(pair, 28)
    mixed = ("shares_made", "cow_breaks", "inflated", "swap_outs", "swap_ins")
    assert all(totals[name] > 0 for name in (*mixed, "copies")), totals
    assert (totals["remaps"] == 0) == (remap == "never")
    assert totals["copies"] < totals["transmits"] or remap == "never"
    for vm in list(pair.twin.vms):
        pair.power_off(vm)
        pair.check()
    assert pair.fast.state.host[0].highmem_free == 200 - low and not pair.twin.copied
    assert (pair.fast.state.copied[:, 0] == -1).all()


def test_a_shared_frame_moves_for_all_its_holders() -> None:
    """A frame that two VMs share lies high; copied three times for one of them, it is low for both,
    and stays so when VMs write to it: the copy takes a high frame, the sole holder keeps it."""
    k = 16
    io = {"low_memory": scenes.amount(5, k), "copy_threshold": 2}
    pair = Pair(scenes.host(k, 300, io=io), 1, k)
    image = scenes.image(k, 60)
    idle = scenes.phases(k, {"active": 0})
    for vm in range(2):
        pair.power_on(vm_spec(vm, scenes.guest(k, 100), image, idle))
    run(pair, 12)
    first = pair.twin.vms[0]
    ppn = next(
        p
        for p in first.pages("shared")
        if first.guest.use[p] is Use.ANON and pair.twin.read(first, p).startswith(b"image")
    )
    for vm in range(2):
        pair.scan_page(vm, ppn)
    assert [pair.twin.vms[vm].state(ppn) for vm in range(2)] == ["shared", "shared"]
    assert [pair.transmit(0, ppn, draw) for draw in range(5)] == [1, 1, 2, 0, 0]
    pair.check()
    assert (pair.twin.events["copies"], pair.twin.events["remaps"]) == (3, 1)
    pair.transmit(1, ppn, 0)
    assert pair.twin.events["copies"] == 3
    pair.access(0, ppn, True)
    pair.access(1, ppn, True)
    pair.check()
    assert pair.twin.events["cow_reuses"] >= 1
    assert [pair.twin.is_high(pair.twin.vms[vm], ppn) for vm in range(2)] == [True, False]
