"""What a guest does in a step: boot, grow or free, touch its active set, all within its time.

A guest is a closed loop: time lost to faults, contention or blocking is work not done. On the VM's
own clock (phases) the work simply comes later; on the wall clock (traces) demand does not wait, so
missed work is a backlog that later steps work off, at most one step's worth extra at a time.
The active set is a window of `active` pages, sliding over the guest's memory.
"""

from __future__ import annotations

from hostsim import frames, guest, remap, rng
from hostsim.jit import apart, i64, kernel
from hostsim.lost import lose, pay_debts, settle
from hostsim.program import KEEP
from hostsim.state import BLOCKED, CPU, N_CAUSES, SCAN_CPU, HostState, slot_unit
from hostsim.touch import octaves_of, touch_window, zipf_rank

NS_PER_MS = 1_000_000


@kernel
def row_at(st: HostState, v: int, now_ms: int) -> int:
    """Advance the program to the row in force at a time; how far into its cycle it is, in ms."""
    vm = st.vms[v]
    if vm.vm_clock == 1:
        at_ms = (vm.clock_ns - vm.boot_end_ns) // NS_PER_MS + vm.offset_ms
    else:
        at_ms = now_ms - vm.start_ms + vm.offset_ms
    last = vm.program + vm.program_len - 1
    while at_ms - vm.cycle_start_ms >= st.programs[vm.program + vm.row].until_ms:
        if vm.program + vm.row < last:
            vm.row += 1
        elif vm.repeat == 1:
            vm.cycle_start_ms += st.programs[last].until_ms
            vm.row = 0
        else:
            break
    return at_ms - vm.cycle_start_ms


@kernel
def select_row(st: HostState, v: int) -> int:
    """The row in force as the step started, as an index in `programs`."""
    row_at(st, v, st.host[0].now_ms - st.host[0].dt_ms)
    return st.vms[v].program + st.vms[v].row


@kernel
def boot(st: HostState, v: int) -> None:
    """One step of booting: the footprint comes in at an even rate; Windows zeroes all memory."""
    vm = st.vms[v]
    dt_ms = st.host[0].dt_ms
    vm.grow_carry += vm.footprint * dt_ms
    due = vm.grow_carry // vm.boot_ms
    vm.grow_carry -= due * vm.boot_ms
    grow(st, v, min(due, vm.footprint - vm.brk))
    if vm.windows == 1 and vm.left_ns > 0:
        vm.scrub_carry += vm.size_slots * dt_ms
        due = vm.scrub_carry // vm.boot_ms
        vm.scrub_carry -= due * vm.boot_ms
        for _ in range(min(due, vm.size_slots - vm.scrub_cursor)):
            cost = guest.scrub(st, v, vm.scrub_cursor)
            vm.scrub_cursor += cost >= 0
            vm.writes += 1000 * (cost >= 0)
            if not settle(st, v, cost):
                break


@kernel
def finish_boot(st: HostState, v: int) -> None:
    """After a step: the program starts once boot time is over and all memory is in place."""
    vm = st.vms[v]
    scrubbed = vm.windows == 0 or vm.scrub_cursor == vm.size_slots
    if vm.clock_ns >= vm.boot_end_ns and vm.brk >= vm.footprint and scrubbed:
        vm.booted = 1
        vm.boot_end_ns = vm.clock_ns
        vm.cycle_start_ms = 0
        vm.grow_carry = 0
        row = st.programs[select_row(st, v)]
        if row.memory_pages == KEEP:  # what is active now lies last, so that drift finds new pages
            vm.window = max(vm.brk - vm.kernel - row.active_pages, 0)


@kernel
def grow(st: HostState, v: int, n: int) -> None:
    """The guest starts to use its next `n` pages."""
    vm = st.vms[v]
    for _ in range(n):
        cost = guest.populate(st, v, vm.brk)
        vm.brk += cost >= 0
        vm.writes += 1000 * (cost >= 0)
        if not settle(st, v, cost):
            return


@kernel
def shrink(st: HostState, v: int, n: int) -> None:
    """The guest frees its last `n` pages in use."""
    vm = st.vms[v]
    for _ in range(n):
        cost = guest.free_page(st, v, vm.brk - 1)
        vm.brk -= cost >= 0
        if not settle(st, v, cost):
            return


@kernel
def resize(st: HostState, v: int, memory: int, rate: int) -> None:
    """Grow or free towards the memory that the program wants in use."""
    vm = st.vms[v]
    vm.grow_carry += rate * st.host[0].dt_ms
    due = vm.grow_carry // slot_unit(st)
    vm.grow_carry %= slot_unit(st)
    if vm.brk < memory:
        grow(st, v, min(due, memory - vm.brk))
    else:
        shrink(st, v, min(due, vm.brk - max(memory, vm.kernel)))


@kernel
def play(st: HostState, v: int) -> None:
    """What the VM replays and has come due on its own clock. What stalls is tried again."""
    vm = st.vms[v]
    until_ms = (vm.clock_ns - vm.boot_end_ns) // NS_PER_MS + st.host[0].dt_ms
    while vm.event < vm.replay_len and vm.left_ns > 0:
        event = st.replay[vm.replay + vm.event]
        if event.at_ms > until_ms:
            return
        cost = guest.relive(st, v, i64(event.page), i64(event.word))
        vm.event += cost >= 0
        vm.touches += cost >= 0
        vm.writes += 1000 * (cost >= 0)
        if not settle(st, v, cost):
            return


@kernel
def transmit(st: HostState, v: int, n: int, n_slots: int) -> None:
    """The guest transmits `n` times one of its first `n_slots` slots, by rank, while time lasts.

    It reads the slot first, so one that is not in memory is brought in. Ranks are those of pages:
    Zipf's law is not the same for a k-th of them.
    """
    host = st.host[0]
    vm = st.vms[v]
    key = rng.stream(host.seed, rng.TRANSMIT, vm.vm, host.tick)
    n_pages = n_slots * host.sample
    octaves = octaves_of(n_pages)
    for i in range(n):
        ppn = zipf_rank(rng.word(key, i), n_pages, octaves) // host.sample
        cost = guest.access(st, v, ppn, 0)
        going = settle(st, v, cost)
        if cost >= 0:
            lose(st, v, send(st, v, ppn, i) * host.copy_ns * host.sample, CPU)
        if not going or vm.left_ns == 0:
            return


@kernel
def send(st: HostState, v: int, ppn: int, draw: int) -> int:
    """A page in memory, the `draw`-th of this step, goes out. Returns how many pages were copied.

    None when devices reach its frame, as on hosts with memory tiers. Otherwise the page, to a
    bounce buffer; once that has happened too often also to another frame, and a page that makes
    way for it.
    """
    host = st.host[0]
    host.transmits += 1
    if host.tiered == 1 or frames.kind_of(st, st.vms[v].base_slot + ppn) == 0:
        return 0
    host.copies += 1
    copies = remap.count_copy(st, v, ppn)
    if host.remap == remap.NEVER or copies <= host.copy_threshold:
        return 1
    if host.free > host.highmem_free:
        remap.move(st, v, ppn)
        return 2
    if host.remap == remap.RANDOM:
        key = rng.stream(host.seed, rng.REMAP, st.vms[v].vm, host.tick)
        victim = remap.find_victim(st, key, draw)
        if victim >= 0:
            remap.exchange(st, v, ppn, victim)
            return 3
    return 1


@kernel
def work(st: HostState, v: int, dt_ns: int) -> None:
    """One step of the program: resize, drift, replay, transmit, touch."""
    host = st.host[0]
    vm = st.vms[v]
    row = st.programs[select_row(st, v)]
    if row.memory_pages != KEEP and row.memory_pages != vm.brk:
        resize(st, v, min(row.memory_pages, vm.size_slots), row.growth_pages_per_s)
    span = vm.touchable - vm.kernel if row.memory_pages == KEEP else vm.brk - vm.kernel
    vm.span = max(span, 1)
    vm.active = min(row.active_pages, vm.span)
    vm.drift_carry += vm.active * row.drift_permille_per_h * host.dt_ms
    moved = vm.drift_carry // 3_600_000_000
    vm.drift_carry -= moved * 3_600_000_000
    vm.window = (vm.window + moved) % vm.span
    play(st, v)
    if row.transmit_pages_per_s > 0:
        rate = row.transmit_pages_per_s
        left_ms, rest_ns = vm.left_ns // NS_PER_MS, vm.left_ns % NS_PER_MS
        due = rate * left_ms + rate * rest_ns // NS_PER_MS
        owed = vm.transmit_carry % slot_unit(st) + due
        vm.transmit_carry = owed % slot_unit(st)
        n_slots = max(min(row.transmit_set_pages, vm.brk), 1)
        transmit(st, v, owed // slot_unit(st), n_slots)
    if vm.active == 0:
        return
    # On its own clock a guest is due the touches of the time that it has, not of what it lost.
    due_ns = dt_ns if vm.vm_clock == 0 else vm.left_ns
    reach = max(row.data_pages, vm.active)
    interval_us = 1000 * row.touch_interval_ms
    n = (vm.touch_carry + reach * (due_ns // 1000)) // interval_us
    extra = 0
    if vm.vm_clock == 0:
        extra = n * min(vm.backlog_ns, dt_ns) // dt_ns
    done, lost_ns = i64(0), lost_in_all(st, v)
    if n > 0 and due_ns > 0:
        touch_ns = due_ns // (n + extra)
        done = touch_window(st, v, n + extra, touch_ns, row.writes_permille, row.locality, reach)
    vm.touches += done
    vm.writes += done * row.writes_permille
    if vm.vm_clock == 0:
        vm.touch_carry += reach * (dt_ns // 1000) - n * interval_us
        if n > 0:
            vm.backlog_ns = max(0, vm.backlog_ns + dt_ns - done * (dt_ns // n))
            if done >= n + extra and extra < n:
                vm.backlog_ns = 0
    else:
        ran_us = (due_ns + lost_ns - lost_in_all(st, v)) // 1000
        vm.touch_carry = max(vm.touch_carry + reach * ran_us - done * interval_us, 0)


@kernel
def lost_in_all(st: HostState, v: int) -> int:
    """Time in ns that the VM lost since the last measurement, whatever for."""
    total = i64(0)
    for cause in range(N_CAUSES):
        total += st.lost[v, cause]
    return total


@apart
def run(st: HostState, v: int, cpu_lost_ns: int, scan_lost_ns: int) -> None:
    """One step of one VM, within what contention, blocking and old faults leave of it."""
    host = st.host[0]
    vm = st.vms[v]
    dt_ns = host.dt_ms * NS_PER_MS
    vm.on_ns += dt_ns
    vm.left_ns = dt_ns
    before = lost_in_all(st, v)
    if vm.blocked == 1:
        lose(st, v, dt_ns, BLOCKED)
    lose(st, v, min(cpu_lost_ns, vm.left_ns), CPU)
    lose(st, v, min(scan_lost_ns, vm.left_ns), SCAN_CPU)
    pay_debts(st, v)
    if vm.left_ns > 0:
        if vm.booted == 0:
            boot(st, v)
        else:
            work(st, v, dt_ns)
    elif vm.booted == 1 and vm.vm_clock == 0:
        vm.backlog_ns += dt_ns
    vm.clock_ns += dt_ns - (lost_in_all(st, v) - before)
    if vm.booted == 0:
        finish_boot(st, v)
