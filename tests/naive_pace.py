"""The literal twin's length of a step: as long as nothing can happen in it that must be seen."""

from __future__ import annotations

import naive_tier as tier
from naive_policy import SOFT, levels
from naive_state import Annotation, Esx, Vm
from naive_workload import MS, row_at, time_in_program

from hostsim.units import PAGE_SIZE

SHORTEST_MS, PAGING_MS = 10, 1000


def pace_ms(esx: Esx) -> int:
    """The longest step that may be made now."""
    esx.by_law = goes_long(esx) and all(is_alike(esx, vm) for vm in esx.on())
    bounds = [esx.tick_ms, (4 if esx.by_law else 2) * esx.pace_ms]
    if not esx.by_law:
        bounds.append(exposure_ms(esx))
    for vm in esx.on():
        bounds.append(max(reaction_ms(esx, vm), PAGING_MS))
        until = until_ms(esx, vm)
        if until > 0:
            bounds.append(max(until, PAGING_MS))
    rate = max(planned_rate(esx), esx.intake)
    if esx.level >= SOFT and not esx.by_law:
        bounds.append(PAGING_MS)
    if esx.level == SOFT and esx.by_law and rate < 1000:  # of a millionth in a ms: a slot a second
        bounds.append(max(relief_ms(esx), PAGING_MS))
    if tier.is_short(esx):
        bounds.append(PAGING_MS)
    if rate > 0:
        shortest = PAGING_MS if esx.by_law else SHORTEST_MS
        bounds.append(max(room(esx) * 1_000_000 // (2 * rate), shortest))
    return min(bounds)


def exposure_ms(esx: Esx) -> int:
    """The longest step after which a running sample tells what it should."""
    return max(esx.config.sampling.period // 2, PAGING_MS)


def goes_long(esx: Esx) -> bool:
    is_long = esx.tick_ms >= 2 * esx.config.sampling.period
    return esx.level <= SOFT and is_long and not esx.config.tier.nvme


def is_alike(esx: Esx, vm: Vm) -> bool:
    """Whether its guest is as likely to touch any page of its active set as any other."""
    if not vm.guest.booted or vm.replay:
        return False
    row = row_at(vm, esx.now_ms)
    return row.locality == "uniform" and row.data <= row.active


def part_ms(rest_ms: int, pace: int) -> int:
    """The first of so few equal parts that none is longer than `pace`, rounded up."""
    parts = 1
    while parts * pace < rest_ms:
        parts += 1
    return (rest_ms + parts - 1) // parts


def reaction_ms(esx: Esx, vm: Vm) -> int:
    """A balloon that moves is polled, or by law seen when it is there, once a balance at most; a VM
    that has less than it could is balanced; others wait."""
    balloon = vm.count(Annotation.BALLOONED)
    period = esx.config.allocation.balance_period
    if vm.has_driver and vm.guest.booted and balloon != vm.balloon_target:
        way = vm.balloon_target - balloon
        rates = esx.config.balloon
        rate = (rates.inflate if way > 0 else rates.deflate) * 1000 // PAGE_SIZE
        return max(ms_for(esx, abs(way), rate), period) if esx.by_law else rates.poll
    if (vm.target < vm.limit or balloon > 0) and not esx.by_law:
        return period // 3
    return esx.tick_ms


def ms_for(esx: Esx, frames: int, milli_pages_per_s: int) -> int:
    """How long so many frames take at a rate, or a tick."""
    return min(frames * esx.sample * 1_000_000 // max(milli_pages_per_s, 1), esx.tick_ms)


def relief_ms(esx: Esx) -> int:
    """Until what is missing is free, by all inflating drivers and the device that pages a
    VM without one."""
    rate = 0
    for vm in esx.on():
        if vm.has_driver and vm.guest.booted and vm.balloon_target > vm.count(Annotation.BALLOONED):
            rate += esx.config.balloon.inflate * 1000 // PAGE_SIZE
    swap = esx.config.swap
    if any(not vm.can_balloon() and vm.held() > vm.entitled() for vm in esx.on()):
        rate += swap.iops * swap.write_cluster * 1000
    missing = levels(esx.config.reclaim, esx.config.machine_bytes, esx.sample).goal - esx.free
    return ms_for(esx, max(missing, 1), rate)


def until_ms(esx: Esx, vm: Vm) -> int:
    """When the guest has booted, or its program moves on; 0 or less: never, or overdue."""
    if not vm.guest.booted:
        return (vm.guest.boot_end_ns - vm.clock_ns) // MS
    return row_at(vm, esx.now_ms).until_ms - time_in_program(vm, esx.now_ms)


def planned_rate(esx: Esx) -> int:
    """Millionths of a slot a ms that guests are going to take, each VM's rounded down."""
    rate = 0
    for vm in esx.on():
        guest = vm.guest
        if not guest.booted:
            zeroing = vm.spec.image.os == "windows" and guest.scrub_cursor < vm.size
            slots = guest.footprint * (guest.brk < guest.footprint) + vm.size * zeroing
            rate += slots * 1_000_000 // vm.spec.image.boot
            continue
        row = row_at(vm, esx.now_ms)
        if row.memory is not None and guest.brk < min(row.memory, vm.size):
            rate += row.growth_milli_per_s // esx.sample
        if row is not vm.last_row:
            vm.last_row = row
            touches = min(max(row.data, row.active), vm.size) * 1_000_000 // row.touch_interval_ms
            rate += touches * (vm.size - vm.alloc()) // vm.size
    return rate


def room(esx: Esx) -> int:
    """Frames until memory is below the threshold of the next level down."""
    limits = levels(esx.config.reclaim, esx.config.machine_bytes, esx.sample)
    lower = [level for level in limits.order if level > esx.level]
    below = limits.down[lower[0]] if lower else 0
    return max(esx.free - below + 1, 0)
