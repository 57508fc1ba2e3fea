"""The literal twin's large pages: regions of 2 MiB in one machine page each, broken under pressure.

Its frames are still numbered one by one: a large page is a promise that they lie together, which
sharing and reclaiming a part of them breaks.
"""

from __future__ import annotations

from naive_machine import ZERO_PAGE
from naive_policy import HIGH, levels
from naive_state import Backed, Esx, Use, Vm


def slots_of_one(esx: Esx) -> int:
    """Slots that a large page has; 0 where there are none."""
    return max(512 // esx.sample, 1) if esx.config.large_pages else 0


def high_boundary(esx: Esx) -> int:
    """Free frames above which memory is high again."""
    limits = levels(esx.config.reclaim, esx.config.machine_bytes, esx.sample)
    return limits.up[limits.order[1]]


def region(esx: Esx, vm: Vm, ppn: int) -> range:
    """The pages that a large page would hold together with this one; none behind the last."""
    size = slots_of_one(esx)
    if size == 0 or ppn // size >= vm.size // size:
        return range(0)
    return range(ppn // size * size, ppn // size * size + size)


def is_part(esx: Esx, vm: Vm, ppn: int) -> bool:
    size = slots_of_one(esx)
    return size > 0 and ppn // size in vm.large


def split(esx: Esx, vm: Vm, ppn: int) -> None:
    """Break the large page that a page is part of, if any."""
    if is_part(esx, vm, ppn):
        vm.large.remove(ppn // slots_of_one(esx))
        esx.events["large_breaks"] += 1


def may_share(esx: Esx, *pages: tuple[Vm, int]) -> bool:
    """Whether pages may be shared: parts of large ones only below the high boundary, and then they
    are broken."""
    if any(is_part(esx, *page) for page in pages) and esx.free >= high_boundary(esx):
        return False
    for page in pages:
        split(esx, *page)
    return True


def back(esx: Esx, vm: Vm, ppn: int) -> bool:
    """At the first touch of a region that the guest never used, while memory stays high."""
    pages = region(esx, vm, ppn)
    if not pages or esx.level != HIGH or esx.free - len(pages) < high_boundary(esx):
        return False
    if any(vm.pmap.get(p) is not None or vm.guest.use[p] is not Use.FREE for p in pages):
        return False
    for p in pages:
        vm.pmap[p] = Backed(esx.machine.take(ZERO_PAGE, vm.salt))
        esx.events["zero_fills"] += 1
    vm.large.add(ppn // slots_of_one(esx))
    return True
