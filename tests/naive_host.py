"""The literal twin of hostsim.Host: ESX as the paper describes it, page by page, slow and obvious.

It shares the random streams (hostsim.rng), the configuration models and the composition of guest
images with the fast host, so that both draw the same pages, and none of its mechanisms. Here is one
step of its pipeline; VMs come and go in naive_life, mechanisms are in naive_pages, naive_guest and
naive_workload, decisions in naive_policy, data in naive_state and naive_index.
"""

from __future__ import annotations

from fractions import Fraction

import naive_closed_form as closed_form
import naive_guest as guests
import naive_large as large
import naive_pace
import naive_pages as pages
import naive_policy as policy
import naive_tier as tier
import naive_workload as workload
from naive_policy import HARD, LOW, SOFT, slots
from naive_state import Esx, Vm

from hostsim import rng

SLOW_GAIN, FAST_GAIN = Fraction(1, 4), Fraction(3, 4)


def step(esx: Esx) -> None:
    esx.pace_ms = naive_pace.pace_ms(esx)
    esx.dt_ms = naive_pace.part_ms(esx.tick_ms - esx.now_ms % esx.tick_ms, esx.pace_ms)
    esx.now_ms += esx.dt_ms
    refill_devices(esx)
    charge_overheads(esx)
    changed = update_level(esx)
    if changed or esx.rebalance or runs_due(esx, esx.config.allocation.balance_period):
        retarget(esx)
    poll_balloons(esx)
    if esx.level >= SOFT:
        page_out(esx)
    if esx.config.tier.nvme:
        tier.make_room(esx)
    for vm in esx.on():
        above = esx.level == LOW and vm.held() > vm.entitled()
        vm.blocked = above or vm.overhead_due > 0
    run_guests(esx)
    if esx.config.sharing.enabled:
        scan(esx)
        if esx.level > policy.HIGH and esx.config.large_pages:
            break_large_pages(esx)
    sample(esx)
    whole, rest_ms = divmod(esx.now_ms, esx.tick_ms)
    esx.tick = whole + rest_ms * 2**40


def per_step(esx: Esx, pages_per_s: int) -> Fraction:
    """Slots due in a step."""
    return Fraction(pages_per_s * esx.dt_ms, 1000 * esx.sample)


def runs_due(esx: Esx, period_ms: int) -> int:
    """How often a mechanism with this period runs in the step that ends now."""
    return esx.now_ms // period_ms - (esx.now_ms - esx.dt_ms) // period_ms


def refill_devices(esx: Esx) -> None:
    """Operations of a step; whole ones that were left over are lost."""
    esx.swap_io_left = esx.swap_io.due(per_step(esx, esx.config.swap.iops))
    esx.tier_io_left = esx.tier_io.due(per_step(esx, esx.config.tier.iops))
    esx.ssd_io_left = esx.ssd_io.due(per_step(esx, esx.config.host_cache.iops))
    for vm in esx.on():
        guest = vm.guest
        guest.disk_io_left = guest.disk_io.due(per_step(esx, vm.spec.image.disk.iops))


def charge_overheads(esx: Esx) -> None:
    """A VM's frame buffer, pmap and shadow page tables take machine memory before it starts."""
    for vm in esx.on():
        while vm.overhead_due > 0 and esx.free > 0:
            vm.overhead.append(esx.machine.take(b"overhead", 0))
            vm.overhead_due -= 1


def limits(esx: Esx) -> policy.Levels:
    return policy.levels(esx.config.reclaim, esx.config.machine_bytes, esx.sample)


def update_level(esx: Esx) -> bool:
    before = esx.level
    esx.level = policy.next_level(limits(esx), before, esx.free)
    esx.level_free = esx.free
    esx.level_ms[esx.level] += esx.dt_ms
    return esx.level != before


def retarget(esx: Esx) -> None:
    """New targets for all VMs, and what their balloons should hold."""
    esx.rebalance = False
    config = esx.config
    claims, touched, active = [], [], []
    for vm in esx.on():
        alloc = vm.alloc()
        touched.append(alloc + len(vm.backed) + len(vm.swap) + len(vm.compressed))
        active.append(active_fraction(vm) * alloc)
        cap = policy.claimed_slots(config, vm.limit, vm.size, touched[-1], vm.touched_before)
        vm.touched_before = touched[-1]
        floor = vm.reservation if vm.shares == 0 else min(vm.reservation, vm.held())
        cap = min(floor, cap) if vm.shares == 0 else cap
        claims.append(policy.Claim(vm.shares, active[-1], min(floor, cap), cap))
    overheads = len(esx.held)
    overheads += sum(len(vm.overhead) + vm.overhead_due for vm in esx.on())
    n_frames = slots(config.machine_bytes - config.reserve, esx.sample)
    total = n_frames - overheads - limits(esx).goal + esx.shared_saved()
    is_short = sum(claim.cap for claim in claims) > total
    targets = policy.divide(total, policy.tax_factor(config), claims)
    for vm, target, seen, used in zip(esx.on(), targets, touched, active, strict=True):
        most = vm.limit if vm.shares else vm.reservation
        vm.target = target if is_short else most
        vm.balloon_target = balloon_target(esx, vm, seen, used)


def balloon_target(esx: Esx, vm: Vm, touched: int, active: Fraction) -> int:
    """The balloon holds what the target leaves of the VM's size, never the reservation."""
    out = len(vm.swap) + len(vm.compressed) - len(vm.cache_frames)
    wanted = max(vm.size - max(vm.target, vm.reservation) - out, 0)
    wanted = min(wanted, vm.balloon_max)
    if esx.config.allocation.claim == "touched":
        if vm.entitled() >= touched:
            return 0
        change = wanted - vm.balloon_target
        if esx.level < SOFT and policy.within_noise(esx.config, vm.alloc(), active, change):
            return vm.balloon_target
    return wanted


def poll_balloons(esx: Esx) -> None:
    config = esx.config.balloon
    polls = runs_due(esx, config.poll)
    for vm in esx.rotated():
        vm.gave = 0
        if polls == 0 or not vm.has_driver or not vm.guest.booted:
            continue
        if vm.driver_lost:
            guests.restart_driver(esx, vm)
        time_ms = polls * config.poll
        may_take = vm.inflate.due(rate(esx, config.inflate, time_ms))
        may_return = vm.deflate.due(rate(esx, config.deflate, time_ms))
        missing = vm.balloon_target - len(vm.pages("ballooned"))
        if missing > 0:
            guests.inflate(esx, vm, min(missing, may_take))
        else:
            draws = esx.draws(rng.DEFLATE, vm.spec.vm, esx.tick)
            guests.deflate(esx, vm, min(-missing, may_return), draws)


def rate(esx: Esx, bytes_per_s: int, dt_ms: int) -> Fraction:
    """Slots due at a rate that is kept in whole thousandths of a page a second."""
    milli = bytes_per_s * 1000 // policy.PAGE_BYTES
    return Fraction(milli * dt_ms, 1_000_000 * esx.sample)


def page_out(esx: Esx) -> None:
    """Swap from the VMs furthest above their targets first, until free memory is high."""
    goal = limits(esx).goal
    excess = {}
    for vm in esx.on():
        above = max(vm.held() - vm.entitled(), 0)
        if esx.level >= HARD:
            excess[vm.spec.vm] = max(above - vm.gave, 0)
        elif not vm.can_balloon():
            excess[vm.spec.vm] = above
    for vm_id in sorted(excess, key=lambda vm_id: (-excess[vm_id], vm_id)):
        if esx.free < goal and esx.can_write():
            draws = esx.draws(rng.SWAP, vm_id, esx.tick)
            pages.page_out_vm(esx, esx.vms[vm_id], excess[vm_id], goal, draws)
    if esx.level >= HARD and esx.free < goal and esx.can_write():
        esx.rebalance = True


def run_guests(esx: Esx) -> None:
    """CPU time beyond what the cores have is lost, by VMs and to scanning, in proportion."""
    dt_ns, free = esx.dt_ms * workload.MS, esx.free
    for vm in esx.on():
        vm.cpu_ms += workload.cpu_demand(esx, vm) * esx.dt_ms
    demand = sum(workload.cpu_demand(esx, vm) for vm in esx.on())
    esx.events["cpu_demand_ms"] += demand * esx.dt_ms
    demand_ns = demand * dt_ns // 1000
    scanning_ns = esx.scanned_last_step * esx.sample * esx.config.costs.scan
    over = max(demand_ns + scanning_ns - esx.config.cpus * dt_ns, 0)
    by_scan = min(over, scanning_ns)
    for vm in esx.rotated():
        cpu_lost = scan_lost = 0
        if over > 0 and demand > 0:
            busy_ns = workload.cpu_demand(esx, vm) * dt_ns // (vm.spec.config.vcpus * 1000)
            cpu_lost = busy_ns * (over - by_scan) // max(demand_ns, over)
            scan_lost = busy_ns * by_scan // max(demand_ns, over)
        workload.run(esx, vm, cpu_lost, scan_lost)
    esx.intake = max((free - esx.free) * 1_000_000 // esx.dt_ms, esx.intake // 2)


def scan(esx: Esx) -> None:
    """Every sharing VM at its own rate, while the host's budget lasts; one page may wait."""
    sharing = esx.config.sharing
    left = esx.scan.due(per_step(esx, sharing.scan_pages_per_s_total))
    esx.scanned_last_step = 0
    for vm in esx.rotated():
        if not vm.sharing:
            continue
        milli = sharing.scan_pages_per_s_vm * 1000
        is_driven = esx.config.large_pages or esx.config.reclaim.clear is not None
        if sharing.scan_time and not (is_driven and esx.level > policy.HIGH):
            milli = min(milli, vm.size * esx.sample * 1_000_000 // sharing.scan_time)
        due = vm.scan.due(Fraction(milli * esx.dt_ms, 1_000_000 * esx.sample))
        draws = esx.draws(rng.SCAN, vm.spec.vm, esx.tick)
        done = pages.scan_vm(esx, vm, min(due, left), draws)
        left -= done
        esx.scanned_last_step += done
        vm.scan.owed += min(due - done, 1)


def break_large_pages(esx: Esx) -> None:
    """Random large pages, at the scanner's highest rates, whatever time it has for all memory."""
    sharing, size = esx.config.sharing, large.slots_of_one(esx)
    left = esx.breaking.due(per_step(esx, sharing.scan_pages_per_s_total) / size)
    for vm in esx.rotated():
        if not vm.sharing:
            continue
        due = vm.breaking.due(per_step(esx, sharing.scan_pages_per_s_vm) / size)
        draws = esx.draws(rng.BREAK, vm.spec.vm, esx.tick)
        for draw in range(min(due, left, len(vm.large))):
            which = sorted(vm.large)[draws.below(draw, len(vm.large))]
            pages.break_large(esx, vm, which * size)
            left -= 1
            esx.scanned_last_step += size


# Sampling of idle memory [P 5.3]


def fraction_touched(vm: Vm) -> Fraction:
    """Of the sampled pages, those in memory whose mapping was established again."""
    touched = [ppn for ppn in vm.sampled if vm.frame(ppn) is not None and ppn in vm.mapped]
    return Fraction(len(touched), len(vm.sampled))


def active_fraction(vm: Vm) -> Fraction:
    """Maximum of slow, fast, and fast with the running period; all of memory at first."""
    if vm.periods == 0:
        return Fraction(1)
    estimates = [vm.slow, vm.fast]
    if vm.sampled:
        estimates.append((1 - FAST_GAIN) * vm.fast + FAST_GAIN * fraction_touched(vm))
    return max(estimates)


def sample(esx: Esx) -> None:
    """A period ends, and another begins; or several end that lay within one long step."""
    period_ns = esx.config.sampling.period * workload.MS
    for vm in esx.on():
        n, rest_ns = divmod(vm.clock_ns - vm.period_start_ns, period_ns)
        if esx.by_law:
            vm.sampled = []
            for touched in closed_form.touched_samples(esx, vm, n):
                enter(esx, vm, touched)
        elif n > 0:
            if vm.sampled:
                enter(esx, vm, int(fraction_touched(vm) * len(vm.sampled)))
            draw_sample(esx, vm)
        vm.period_start_ns = vm.clock_ns - rest_ns


def enter(esx: Esx, vm: Vm, touched: int) -> None:
    """What a period found goes into both averages."""
    now = Fraction(touched, esx.config.sampling.pages)
    esx.events["minor_faults"] += touched
    first = vm.periods == 0
    vm.slow = now if first else (1 - SLOW_GAIN) * vm.slow + SLOW_GAIN * now
    vm.fast = now if first else (1 - FAST_GAIN) * vm.fast + FAST_GAIN * now
    vm.periods += 1


def draw_sample(esx: Esx, vm: Vm) -> None:
    """Choose pages at random, with replacement, and drop their mappings."""
    draws = esx.draws(rng.SAMPLE, vm.spec.vm, esx.tick)
    vm.sampled = []
    in_memory = [ppn for ppn in range(vm.size) if vm.frame(ppn) is not None]
    if in_memory:
        ranks = [draws.below(i, len(in_memory)) for i in range(esx.config.sampling.pages)]
        vm.sampled = [in_memory[rank] for rank in sorted(ranks)]
    vm.mapped -= set(vm.sampled)
