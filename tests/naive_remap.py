"""The literal twin's hot I/O page remapping [P 7]: frames have numbers, and low ones are reached.

A page that moves is copied to another MPN; every pmap entry and index record that named the old one
names the new one. Copies are counted in a small table, one page at a place, as in a cache.
"""

from __future__ import annotations

import naive_large as large
from naive_machine import Draws
from naive_state import Copied, Esx, Vm

from hostsim import rng

TABLE_PAGES = 65_536
LOOKS = 256
PPN_BITS = 40


def place_of(esx: Esx, vm: Vm, ppn: int) -> int:
    """Where a page's counter is, or would be."""
    has_limit = esx.config.io.low_memory is not None
    n_places = max(TABLE_PAGES // esx.sample, 1) if has_limit else 1
    return Draws(vm.spec.vm << PPN_BITS | ppn).word(0) % n_places


def forget(esx: Esx, vm: Vm, ppn: int) -> None:
    place = place_of(esx, vm, ppn)
    entry = esx.copied.get(place)
    if entry is not None and (entry.vm, entry.ppn) == (vm.spec.vm, ppn):
        del esx.copied[place]


def count_copy(esx: Esx, vm: Vm, ppn: int) -> int:
    place = place_of(esx, vm, ppn)
    entry = esx.copied.get(place)
    if entry is None or (entry.vm, entry.ppn) != (vm.spec.vm, ppn):
        entry = esx.copied[place] = Copied(vm.spec.vm, ppn)
    entry.copies += 1
    return entry.copies


def send(esx: Esx, vm: Vm, ppn: int, draw: int) -> int:
    """A page in memory is transmitted. How many pages had to be copied for it."""
    esx.events["transmits"] += 1
    entry = vm.frame(ppn)
    assert entry is not None
    if esx.config.tier.nvme or not esx.machine.is_high(entry.mpn):
        return 0
    esx.events["copies"] += 1
    if count_copy(esx, vm, ppn) <= esx.config.io.copy_threshold or esx.config.io.remap == "never":
        return 1
    low = esx.machine.free_of(high=False)
    if low:
        mpn = low.pop()
        large.split(esx, vm, ppn)
        esx.machine.free_of(high=True).append(entry.mpn)
        moved(esx, {entry.mpn: mpn})
        esx.events["remaps"] += 1
        forget(esx, vm, ppn)
        return 2
    if esx.config.io.remap == "random":
        victim = find_victim(esx, esx.draws(rng.REMAP, vm.spec.vm, esx.tick), draw)
        if victim is not None:
            makes_way = victim[0].frame(victim[1])
            assert makes_way is not None
            for page in ((vm, ppn), victim):
                large.split(esx, *page)
            moved(esx, {entry.mpn: makes_way.mpn, makes_way.mpn: entry.mpn})
            esx.events["remaps"] += 1
            forget(esx, vm, ppn)
            forget(esx, *victim)
            return 3
    return 1


def moved(esx: Esx, mpns: dict[int, int]) -> None:
    """Frames have new numbers: all that name them follow."""
    frames = {old: esx.machine.frames.pop(old) for old in mpns}
    for vm in esx.on():
        for ppn in range(vm.size):
            entry = vm.frame(ppn)
            if entry is not None:
                entry.mpn = mpns.get(entry.mpn, entry.mpn)
    for old, frame in frames.items():
        esx.machine.frames[mpns[old]] = frame
    esx.index.renumber(mpns)


def find_victim(esx: Esx, draws: Draws, draw: int) -> tuple[Vm, int] | None:
    """A random private page in low memory: by random looks, and then among all there are."""
    pages = [(vm, ppn) for vm in esx.on() for ppn in range(vm.size)]
    first_draw = draw * (LOOKS + 1)
    for look in range(LOOKS):
        page = pages[draws.below(first_draw + look, len(pages))]
        if may_make_way(esx, *page):
            return page
    victims = [page for page in pages if may_make_way(esx, *page)]
    return victims[draws.below(first_draw + LOOKS, len(victims))] if victims else None


def may_make_way(esx: Esx, vm: Vm, ppn: int) -> bool:
    return vm.state(ppn) == "resident" and not esx.is_high(vm, ppn)
