"""How long the next step of a host is.

The scenario's tick is the longest step. A step is shorter where a whole one would decide too late:
guests must not use up, within one, what is free above the next reclamation threshold; a program
that moves on is seen when it does; balloons under pressure keep their periods, DRAM above a slower
tier is looked after each second while it is short, and so does sampling where no closed form says
what it would find. It is a function of the host's own state alone, so it depends neither on packing
nor on the wall clock.
"""

from __future__ import annotations

from hostsim import balloon, closed_form, tier
from hostsim.closed_form import STEP_MS_PAGING
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    CLEAR,
    DRIVER_PRESENT,
    HIGH,
    LOW,
    MILLIONTHS,
    SOFT,
    HostState,
    alloc_of,
    count_vms,
    entitled,
    held_of,
    slot_unit,
)
from hostsim.workload import row_at

STEP_MS_MIN = 10
"""No step is made shorter than this."""


@small
def part_ms(rest_ms: int, pace_ms: int) -> int:
    """Length of the next of the equal steps, none longer than `pace_ms`, that `rest_ms` takes."""
    parts = -(-rest_ms // pace_ms)
    return -(-rest_ms // parts)


@small
def room(st: HostState) -> int:
    """Slots the last of which makes memory fall to the next level, or run out in LOW; or 0."""
    host = st.host[0]
    below = i64(0)
    if host.level == HIGH:
        below = host.down_clear
    elif host.level == CLEAR:
        below = host.down_soft
    elif host.level < LOW:
        below = host.down_hard if host.level == SOFT else host.down_low
    return max(host.free - below + 1, 0)


@kernel
def boot_rate(st: HostState, v: int) -> int:
    """Millionths of a slot that a booting guest takes each ms."""
    vm = st.vms[v]
    slots = vm.footprint if vm.brk < vm.footprint else i64(0)
    if vm.windows == 1 and vm.scrub_cursor < vm.size_slots:
        slots += vm.size_slots
    return slots * 1_000_000 // vm.boot_ms


@kernel
def program_rate(st: HostState, v: int, is_new: bool) -> int:
    """Millionths of a slot that a guest's program takes each ms: growth, and where it has just
    moved on, touches of an active set of which as much is missing as of the whole VM."""
    vm = st.vms[v]
    row = st.programs[vm.program + vm.row]
    rate = i64(0)
    if vm.brk < min(row.memory_pages, vm.size_slots):
        rate += row.growth_pages_per_s // st.host[0].sample
    if is_new:
        missing = vm.size_slots - alloc_of(st, v)
        reach = min(max(row.data_pages, row.active_pages), vm.size_slots)
        rate += reach * 1_000_000 // row.touch_interval_ms * missing // vm.size_slots
    return rate


@small
def moves(st: HostState, v: int) -> bool:
    """Whether a driver has pages to take or to give back."""
    vm = st.vms[v]
    return vm.ballooned != vm.balloon_target and vm.driver == DRIVER_PRESENT and vm.booted == 1


@small
def arrival_ms(st: HostState, v: int) -> int:
    """Time that a balloon needs to its target at its rate."""
    host = st.host[0]
    missing = st.vms[v].balloon_target - st.vms[v].ballooned
    rate = host.inflate_rate if missing > 0 else host.deflate_rate
    return min(abs(missing) * slot_unit(st) // max(rate, 1), host.tick_ms)


@kernel
def relief_ms(st: HostState) -> int:
    """Time until enough is free again in SOFT, if guests take no more: what is missing over what
    balloons that grow and, where a VM is paged, the swap device can do."""
    host = st.host[0]
    rate = i64(0)
    is_paging = False
    for i in range(count_vms(st)):
        v = st.order[i]
        if moves(st, v) and st.vms[v].balloon_target > st.vms[v].ballooned:
            rate += host.inflate_rate
        is_paging = is_paging or (
            not balloon.can_balloon(st, v) and held_of(st, v) > entitled(st, v)
        )
    if is_paging:
        rate += host.swap_iops * host.swap_cluster
    missing = max(host.goal - host.free, 1)
    return min(missing * slot_unit(st) // max(rate, 1), host.tick_ms)


@kernel
def reaction_ms(st: HostState, v: int) -> int:
    """How long what reclaims memory from a VM may wait for its next decision. By law a balloon that
    moves is looked at when it should have arrived: a step moves it at its rate however long it is.
    """
    host = st.host[0]
    vm = st.vms[v]
    if moves(st, v):
        if host.by_law == 1:
            return max(arrival_ms(st, v), host.balance_ms)
        return host.balloon_poll_ms
    if (vm.target < vm.limit or vm.ballooned > 0) and host.by_law == 0:
        return host.balance_ms // 3
    return host.tick_ms


@kernel
def pace_ms(st: HostState) -> int:
    """The longest step from now that decides nothing too late, in ms; `tick_ms` at most.

    Few times the step before at most, whose intake is what is known of guests that touch: a quiet
    step after a busy one proves little. By law all is coarser: balloons that move are seen once a
    balance period, a threshold may be passed by a second's intake, and SOFT is looked at for its
    end only where guests take so little that it may end: less than a slot a second.
    """
    host = st.host[0]
    until_ms, by_law = host.tick_ms, closed_form.goes_long(st)
    rate = i64(0)
    for i in range(count_vms(st)):
        v = st.order[i]
        vm = st.vms[v]
        if vm.booted == 0:
            by_law = False
            rate += boot_rate(st, v)
            left_ms = (vm.boot_end_ns - vm.clock_ns) // 1_000_000
        else:
            before = vm.row
            at_ms = row_at(st, v, host.now_ms)
            by_law = by_law and closed_form.is_alike(st, v)
            rate += program_rate(st, v, vm.row != before)
            left_ms = st.programs[vm.program + vm.row].until_ms - at_ms
        if left_ms > 0:
            until_ms = min(until_ms, left_ms)
    host.by_law = i64(by_law)
    reaction = host.tick_ms
    for i in range(count_vms(st)):
        reaction = min(reaction, reaction_ms(st, st.order[i]))
    rate = max(rate, host.intake)
    longest = min(host.tick_ms, max(until_ms, STEP_MS_PAGING))
    if by_law:
        longest = min(longest, 4 * host.pace_ms, max(reaction, STEP_MS_PAGING))
        if host.level == SOFT and rate * STEP_MS_PAGING < MILLIONTHS:
            longest = min(longest, max(relief_ms(st), STEP_MS_PAGING))
    else:
        reaction = max(reaction if host.level < SOFT else 0, STEP_MS_PAGING)
        longest = min(longest, 2 * host.pace_ms, reaction, closed_form.exposure_ms(st))
    if tier.is_short(st):
        longest = min(longest, STEP_MS_PAGING)
    if rate > 0:
        shortest = STEP_MS_PAGING if by_law else STEP_MS_MIN
        longest = min(longest, max(room(st) * MILLIONTHS // (2 * rate), shortest))
    return longest
