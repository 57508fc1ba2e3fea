"""The literal twin's memory tiers: frames have numbers, the high ones are DRAM, the others NVMe.

A page that a guest touches is read into a frame of DRAM, if one is free. While fewer are free than
there should be, a hand goes round all pages of all VMs, and private ones that have lost their
mapping since it last came by go down.
"""

from __future__ import annotations

from fractions import Fraction

import naive_large as large
import naive_remap as remap
from naive_machine import NoTierIo
from naive_policy import levels
from naive_state import Esx, Vm


def goal(esx: Esx) -> int:
    """Frames of DRAM that should be free: as many as on a host that has DRAM alone."""
    config = esx.config
    return levels(config.reclaim, config.memory, esx.sample).goal if config.tier.nvme else 0


def is_short(esx: Esx) -> bool:
    return len(esx.machine.free_high) < goal(esx)


def is_far(esx: Esx, vm: Vm, ppn: int) -> bool:
    """Whether a page in memory lies on NVMe."""
    on_nvme = esx.config.tier.nvme > 0 and vm.frame(ppn) is not None
    return on_nvme and not esx.is_high(vm, ppn)


def n_used(esx: Esx) -> int:
    """Frames on NVMe that hold something."""
    used = [mpn for mpn in esx.machine.frames if not esx.machine.is_high(mpn)]
    return len(used) if esx.config.tier.nvme else 0


def move(esx: Esx, vm: Vm, ppn: int, high: bool) -> None:
    """Read a page into DRAM, or write it to NVMe."""
    entry = vm.frame(ppn)
    assert entry is not None
    large.split(esx, vm, ppn)
    old, new = entry.mpn, esx.machine.free_of(high).pop()
    esx.machine.free_of(not high).append(old)
    remap.moved(esx, {old: new})
    esx.tier_io_left -= 1


def reach(esx: Esx, vm: Vm, ppn: int) -> int:
    """What a touch of a page in memory costs, in ns of one page."""
    if not is_far(esx, vm, ppn):
        return 0
    if esx.tier_io_left <= 0:
        raise NoTierIo
    esx.events["tier_touches"] += 1
    vm.cause = "tier"
    if esx.machine.free_high:
        move(esx, vm, ppn, high=True)
        esx.events["tier_ups"] += 1
    else:
        esx.tier_io_left -= 1
    return esx.config.tier.latency


def make_room(esx: Esx) -> None:
    """In a sampling period the hand goes round once, if DRAM is short all the time."""
    pages = [(vm, ppn) for vm in esx.on() for ppn in range(vm.size)]
    due = esx.looks.due(Fraction(len(pages) * esx.dt_ms, esx.config.sampling.period))
    if due > 0:
        esx.hand %= len(pages)
    for _ in range(min(due, len(pages))):
        if not (is_short(esx) and esx.machine.free_low and esx.tier_io_left > 0):
            return
        look(esx, *pages[esx.hand])
        esx.hand = (esx.hand + 1) % len(pages)


def look(esx: Esx, vm: Vm, ppn: int) -> None:
    """Pages of a sample that is being taken are left to it."""
    if vm.state(ppn) != "resident" or is_far(esx, vm, ppn) or ppn in vm.sampled:
        return
    if ppn in vm.mapped:
        vm.mapped.discard(ppn)
    else:
        move(esx, vm, ppn, high=False)
        esx.events["tier_downs"] += 1
