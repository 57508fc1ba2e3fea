"""The pipeline of a host: one step, top to bottom. The ifs are here; mechanisms only do as told."""

from __future__ import annotations

import numpy as np

from hostsim import (
    allocate,
    balloon,
    breaking,
    pace,
    reclaim,
    rng,
    sample,
    share,
    swap,
    tier,
    workload,
)
from hostsim.frames import take_frames
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    HARD,
    HIGH,
    MILLIONTHS,
    SOFT,
    HostState,
    alloc_of,
    compressed_frames,
    count_vms,
    due,
    entitled,
    held_of,
    slot_unit,
)

NS_PER_MS = 1_000_000
BOOT_CPU_PERMILLE = 1000
"""A booting guest keeps one core busy."""
PART_BITS = i64(40)
"""Of a key: more ticks than any run has."""
SCANNING_NS_MAX = 1 << 59
"""CPU time that scanning takes in a step, at most: 18 years, so that an absurd price fits."""


@kernel
def step(st: HostState) -> None:
    """One step, in the order in which the paper's parts depend on each other."""
    host = st.host[0]
    begin(st)
    first = draw_first(st)
    refill_devices(st)
    charge_overheads(st)
    level_changed = update_level(st)
    if level_changed or host.rebalance == 1 or due(st, host.balance_ms) > 0:
        retarget(st)
    balloon.run(st, first)
    if host.level >= SOFT:
        page_out(st)
    if host.tiered == 1:
        tier.make_room(st)
    block(st)
    run_guests(st, first)
    if host.sharing == 1:
        share.scan(st, first)
        if host.level > HIGH and host.large_slots > 0:
            breaking.break_large_pages(st, first)
    sample.run(st)
    host.tick = key_of(host.now_ms, host.tick_ms)


@kernel
def begin(st: HostState) -> None:
    """The step's length: a part of what is left of its tick. Time moves on by it."""
    host = st.host[0]
    host.pace_ms = pace.pace_ms(st)
    host.dt_ms = pace.part_ms(host.tick_ms - host.now_ms % host.tick_ms, host.pace_ms)
    host.now_ms += host.dt_ms


@small
def key_of(start_ms: int, tick_ms: int) -> int:
    """Key of the random streams of a step: its start in ticks, and what lies between two ticks."""
    return start_ms // tick_ms + (start_ms % tick_ms << PART_BITS)


@kernel
def draw_first(st: HostState) -> int:
    """Position in the order of VMs of who is first at the free list in this step.

    Taking turns instead starves every second VM where free memory comes back every second step, as
    it does between HARD and LOW.
    """
    host = st.host[0]
    n = count_vms(st)
    return rng.below(rng.stream(host.seed, rng.ORDER, host.host, host.tick), 0, n)


@kernel
def refill_devices(st: HostState) -> None:
    """A step's worth of operations for the swap devices and every guest's disk; unused ones go."""
    host, unit = st.host[0], slot_unit(st)
    host.swap_io_carry = host.swap_io_carry % unit + host.swap_iops * host.dt_ms
    host.swap_io_left = host.swap_io_carry // unit
    host.ssd_io_carry = host.ssd_io_carry % unit + host.ssd_iops * host.dt_ms
    host.ssd_io_left = host.ssd_io_carry // unit
    host.tier_io_carry = host.tier_io_carry % unit + host.tier_iops * host.dt_ms
    host.tier_io_left = host.tier_io_carry // unit
    for i in range(count_vms(st)):
        vm = st.vms[st.order[i]]
        vm.disk_io_carry = vm.disk_io_carry % unit + vm.disk_iops * host.dt_ms
        vm.disk_io_left = vm.disk_io_carry // unit


@kernel
def charge_overheads(st: HostState) -> None:
    """A VM starts once its overhead memory is in place: it waits where no memory is free."""
    host = st.host[0]
    for i in range(count_vms(st)):
        vm = st.vms[st.order[i]]
        if vm.overhead_due > 0:
            taken = min(vm.overhead_due, host.free)
            vm.overhead_due -= taken
            vm.overhead += taken
            host.overhead += taken
            vm.overhead_highmem += take_frames(st, taken)


@kernel
def update_level(st: HostState) -> bool:
    """The reclamation state of this step; True when it changed."""
    host = st.host[0]
    before = host.level
    down = (host.down_clear, host.down_soft, host.down_hard, host.down_low)
    up = (host.up_high, host.up_clear, host.up_soft, host.up_hard)
    host.level = reclaim.next_level(before, host.free, down, up)
    host.level_free = host.free
    st.level_ms[host.level] += host.dt_ms
    return host.level != before


@kernel
def machine_to_divide(st: HostState) -> int:
    """M: what the allocator divides. Overheads still to be charged are counted as taken, and so is
    what is kept for VMs on their way here."""
    host = st.host[0]
    overheads = host.overhead + host.held
    for i in range(count_vms(st)):
        overheads += st.vms[st.order[i]].overhead_due
    return host.machine - overheads - host.goal + share.shared_saved(st)


@kernel
def retarget(st: HostState) -> None:
    """Recompute every VM's target and what its balloon should hold."""
    host = st.host[0]
    host.rebalance = 0
    n = count_vms(st)
    shares, low, claim = st.scratch[0, :n], st.scratch[1, :n], st.scratch[2, :n]
    touched, target, active = st.scratch[3, :n], st.scratch[4, :n], st.active[:n]
    claimed = np.int64(0)
    for i in range(n):
        v = st.order[i]
        vm = st.vms[v]
        alloc = alloc_of(st, v)
        active[i] = sample.active_fraction(st, v) * alloc
        touched[i] = alloc + vm.backed + vm.swapped + vm.compressed
        grown = max(touched[i] - vm.touched_before, 0)
        vm.touched_before = touched[i]
        by_touch = host.claim_touched == 1
        claim[i] = allocate.claim_of(vm.limit, touched[i], grown, vm.size_slots, by_touch)
        floor = vm.reservation if vm.shares == 0 else min(vm.reservation, held_of(st, v))
        shares[i], low[i] = vm.shares, min(floor, claim[i])
        if vm.shares == 0:
            claim[i] = low[i]
        claimed += claim[i]
    total = machine_to_divide(st)
    allocate.divide(total, host.tax_k, shares, active, low, claim, target)
    for i in range(n):
        v = st.order[i]
        most = st.vms[v].reservation if shares[i] == 0 else st.vms[v].limit
        st.vms[v].target = target[i] if claimed > total else most
        aim_balloon(st, v, touched[i], active[i])


@kernel
def aim_balloon(st: HostState, v: int, touched: int, active: float) -> None:
    """Set one VM's balloon target.

    With `configured` claims it follows the target. With `touched` claims a VM within its target
    keeps its untouched memory, and sampling noise alone moves no balloon above SOFT.
    """
    host = st.host[0]
    vm = st.vms[v]
    out = vm.swapped + vm.compressed - compressed_frames(st, v)
    wanted = allocate.balloon_target(vm.size_slots, vm.target, vm.reservation, out, vm.balloon_max)
    if host.claim_touched == 1:
        alloc = alloc_of(st, v)
        sigmas = host.deadband_sigmas
        band = allocate.deadband(alloc, active, host.tax_k, host.sample_pages, sigmas)
        if entitled(st, v) >= touched:
            wanted = 0
        elif host.level < SOFT and abs(wanted - vm.balloon_target) <= band:
            wanted = vm.balloon_target
    vm.balloon_target = wanted


@kernel
def page_out(st: HostState) -> None:
    """Page out what VMs have beyond their due, by excess (ties: lower id), until free is high."""
    host = st.host[0]
    n = count_vms(st)
    if n == 0:
        return
    excess = st.scratch[0, :n]
    for i in range(n):
        v = st.order[i]
        excess[i] = 0
        if reclaim.may_page(host.level, balloon.can_balloon(st, v)):
            excess[i] = max(held_of(st, v) - entitled(st, v), 0)
            if host.level >= HARD:
                excess[i] = max(excess[i] - st.vms[v].gave, 0)
    while host.free < host.goal and swap.can_write(st):
        i = i64(np.argmax(excess))
        if excess[i] == 0:
            break
        swap.page_out_vm(st, st.order[i], excess[i], host.goal)
        excess[i] = 0
    if host.level >= HARD and host.free < host.goal and swap.can_write(st):
        # All have their due or less, and still too little is free: what is due has changed, as
        # when a VM grows within its reservation. Without new targets all wait for the balance.
        host.rebalance = 1


@kernel
def block(st: HostState) -> None:
    """LOW stops the VMs that have more than their due; one whose overhead is not in place waits."""
    blocks = reclaim.blocks(st.host[0].level)
    for i in range(count_vms(st)):
        v = st.order[i]
        vm = st.vms[v]
        above = blocks and held_of(st, v) > entitled(st, v)
        vm.blocked = 1 if above or vm.overhead_due > 0 else 0


@kernel
def run_guests(st: HostState, first: int) -> None:
    """CPU contention, then every guest's step, in id order from position `first`."""
    host = st.host[0]
    n, free = count_vms(st), host.free
    dt_ns = host.dt_ms * NS_PER_MS
    demand = i64(0)
    for i in range(n):
        wanted = cpu_demand(st, st.order[i])
        demand += wanted
        st.vms[st.order[i]].cpu_ms += wanted * host.dt_ms
    host.cpu_demand_ms += demand * host.dt_ms
    demand_ns = demand * host.dt_ms * (NS_PER_MS // 1000)
    scanned_pages = host.scanned_last_step * host.sample
    scanning_ns = min(scanned_pages, SCANNING_NS_MAX // max(host.scan_ns, 1)) * host.scan_ns
    over = max(demand_ns + scanning_ns - host.cpus * dt_ns, 0)
    over_by_scan = min(over, scanning_ns)
    for i in range(n):
        v = st.order[(first + i) % n]
        vm = st.vms[v]
        cpu_lost = i64(0)
        scan_lost = i64(0)
        if over > 0 and demand > 0:
            busy_ns = cpu_demand(st, v) * dt_ns // (vm.vcpus * 1000)
            cpu_lost = part_of(busy_ns, over - over_by_scan, max(demand_ns, over))
            scan_lost = part_of(busy_ns, over_by_scan, max(demand_ns, over))
        workload.run(st, v, cpu_lost, scan_lost)
    host.intake = max((free - host.free) * MILLIONTHS // host.dt_ms, host.intake // 2)


@kernel
def part_of(amount: int, part: int, whole: int) -> int:
    """amount * part // whole for 0 <= part <= whole < 2 ** 62.

    By long multiplication, a bit of `amount` after the other: nanoseconds times nanoseconds are
    more than 64 bits hold.
    """
    quotient, rest = i64(0), i64(0)
    for bit in range(62, -1, -1):
        quotient, rest = 2 * quotient, 2 * rest
        if rest >= whole:
            quotient, rest = quotient + 1, rest - whole
        if (amount >> bit) & 1 == 1:
            rest += part
            if rest >= whole:
                quotient, rest = quotient + 1, rest - whole
    return quotient


@kernel
def cpu_demand(st: HostState, v: int) -> int:
    """What a VM would use now, in permille of a core. One that may not run uses nothing."""
    vm = st.vms[v]
    if vm.blocked == 1:
        return 0
    if vm.booted == 0:
        return BOOT_CPU_PERMILLE
    return st.programs[workload.select_row(st, v)].cpu_permille * vm.vcpus
