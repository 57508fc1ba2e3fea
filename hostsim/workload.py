"""What a guest does in a step: boot, grow or free, touch its active set, all within its time.

A guest is a closed loop: time lost to faults, contention or blocking is work not done. On the VM's
own clock (phases) the work simply comes later; on the wall clock (traces) demand does not wait, so
missed work is a backlog that later steps work off, at most one step's worth extra at a time.
The active set is a window of `active` pages, sliding over the guest's memory.
"""

from __future__ import annotations

import numpy as np

from hostsim import fault, guest, rng
from hostsim.jit import i64, kernel, small
from hostsim.program import KEEP, SWEEP, ZIPF
from hostsim.state import (
    ACCESSED,
    ANON,
    BLOCKED,
    CPU,
    GUEST_PAGING,
    HINT,
    RESIDENT,
    SCAN_CPU,
    SHARED,
    STALE,
    STATE,
    SWAP_IN,
    UNIQUE,
    USE_SHIFT,
    HostState,
    slot_unit,
)

NS_PER_MS = 1_000_000
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_WEYL = np.uint64(0x9E3779B97F4A7C15)


@kernel
def lose(st: HostState, v: int, cost_ns: int, cause: int) -> None:
    """The VM loses time now; what does not fit into this step is a debt for the next."""
    vm = st.vms[v]
    now = min(cost_ns, vm.left_ns)
    st.lost[v, cause] += now
    vm.left_ns -= now
    if cost_ns > now:
        vm.debt_ns += cost_ns - now
        vm.cause = cause


@kernel
def settle(st: HostState, v: int, cost_ns: int) -> bool:
    """Charge what an access cost, or the rest of the step when it stalled. False: stop here."""
    vm = st.vms[v]
    if cost_ns == 0:
        return vm.left_ns > 0
    if cost_ns > 0:
        lose(st, v, cost_ns, vm.cause)
        return vm.left_ns > 0
    st.host[0].stalled_touches += 1
    cause = BLOCKED
    if cost_ns == fault.NO_IO:
        cause = SWAP_IN
    elif cost_ns == fault.NO_GUEST_MEMORY:
        cause = GUEST_PAGING
    lose(st, v, vm.left_ns, cause)
    return False


@kernel
def select_row(st: HostState, v: int) -> int:
    """Advance the program to the row in force as the step starts; its index in `programs`."""
    vm = st.vms[v]
    if vm.vm_clock == 1:
        at_ms = (vm.clock_ns - vm.boot_end_ns) // NS_PER_MS + vm.offset_ms
    else:
        at_ms = st.host[0].now_ms - st.host[0].dt_ms - vm.start_ms + vm.offset_ms
    last = vm.program + vm.program_len - 1
    while at_ms - vm.cycle_start_ms >= st.programs[vm.program + vm.row].until_ms:
        if vm.program + vm.row < last:
            vm.row += 1
        elif vm.repeat == 1:
            vm.cycle_start_ms += st.programs[last].until_ms
            vm.row = 0
        else:
            break
    return vm.program + vm.row


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


@small
def zipf_rank(word: np.uint64, n: int) -> int:
    """Rank in [0, n) from a 64-bit draw, Zipf with exponent 1 up to steps of a factor of two.

    Ranks fall into octaves [0], [1, 2], [3..6], ... of equal weight (the last by its part), and are
    uniform inside one: integers only, so every CPU draws the same.
    """
    octaves = 0
    while (2 << octaves) - 1 < n:
        octaves += 1
    full = i64(1) << octaves
    part = n - (full - 1)
    total = octaves * full + part
    pick = i64(((word >> _SHIFT_32) * np.uint64(total)) >> _SHIFT_32)
    octave = min(pick >> octaves, octaves)
    low = (i64(1) << octave) - 1
    width = min(low + 1, n - low)
    return low + i64(((word & _LOW_32) * np.uint64(width)) >> _SHIFT_32)


LOUD = 2
"""Loudness of a page at which a touch may change something; a write adds 1 to the page's own."""


@small
def loudness(byte: int, word: int) -> int:
    """Whether a touch of a page with this state byte and content word changes anything.

    Not (0) where the page is in memory and marked as accessed already, and not written, or written
    over content that is unique already, with no hint or a stale one. 1: a write may; 2 or 3: any
    touch. Without branches, so that compilers turn a loop over pages into vector code.
    """
    state = byte & STATE
    is_known = (byte & ACCESSED != 0) & (byte >= 1 << USE_SHIFT)  # the lowest use is FREE
    in_memory = (state == RESIDENT) | (state == SHARED)
    is_told = (byte & HINT == 0) | (word & STALE != 0)
    is_own = (state == RESIDENT) & (word & UNIQUE != 0) & is_told
    keeps_writes = (byte >> USE_SHIFT != ANON) | is_own
    return 3 - 2 * i64(is_known & in_memory) - i64(keeps_writes)


@kernel
def listen(st: HostState, v: int) -> None:
    """Note the loudness of every page of the active window.

    One pass in order is much cheaper than to look each random page up in its turn: touches of
    quiet pages, nearly all of them, then read this map alone, which the nearest cache holds.
    """
    vm = st.vms[v]
    loud, first = st.loud, vm.base_slot + vm.kernel
    done = min(vm.active, vm.span - vm.window)
    start = first + vm.window
    page, content = st.page[start : start + done], st.content[start : start + done]
    for i in range(done):
        loud[i] = loudness(i64(page[i]), i64(content[i]))
    rest = vm.active - done
    page, content = st.page[first : first + rest], st.content[first : first + rest]
    for i in range(rest):
        loud[done + i] = loudness(i64(page[i]), i64(content[i]))


@kernel
def listen_again(st: HostState, v: int, ppn: int) -> None:
    """Note the loudness of one page, if it lies in the active window."""
    vm = st.vms[v]
    if not vm.kernel <= ppn < vm.kernel + vm.span:
        return
    offset = ppn - vm.kernel - vm.window
    if offset < 0:
        offset += vm.span
    if offset < vm.active:
        slot = vm.base_slot + ppn
        st.loud[offset] = loudness(i64(st.page[slot]), i64(st.content[slot]))


@kernel
def touch_window(st: HostState, v: int, n: int, touch_ns: int, writes: int, locality: int) -> int:
    """Touch `n` pages of the active window, `touch_ns` apart. Returns how many were done."""
    vm = st.vms[v]
    listen(st, v)
    key = rng.stream(st.host[0].seed, rng.TOUCH, vm.vm, st.host[0].tick)
    loud = st.loud
    size, span, active = vm.size_slots, vm.span, vm.active
    first, window, sweep = vm.kernel, vm.window, vm.sweep
    permille = np.uint64(1000)
    write_bound = np.uint64(writes)
    done = 0
    left = vm.left_ns
    while done < n and left >= touch_ns:
        word = rng.mix(key + np.uint64(done) * _WEYL)
        is_write = i64((((word & _LOW_32) * permille) >> _SHIFT_32) < write_bound)
        if locality == SWEEP:
            offset = sweep + done
            offset -= offset // active * active
        elif locality == ZIPF:
            # A second word: the rank's two halves must not reuse the bits of the write draw.
            offset = active - 1 - zipf_rank(rng.mix(word + _WEYL), active)
        else:
            offset = i64(((word >> _SHIFT_32) * np.uint64(active)) >> _SHIFT_32)
        left -= touch_ns
        if loud[offset] + is_write >= LOUD:
            offset += window
            if offset >= span:
                offset -= span
            ppn = first + offset
            vm.left_ns = left
            cost = guest.access(st, v, ppn, is_write)
            if cost >= 0 and ppn >= vm.brk:
                vm.brk = min(ppn + 1, size)
            listen_again(st, v, ppn)
            listen_again(st, v, vm.given)
            going = settle(st, v, cost)
            left = vm.left_ns
            if cost < 0:
                break
            if not going:
                done += 1
                break
        done += 1
    vm.left_ns = left
    vm.sweep = (sweep + done) % active
    return done


@kernel
def work(st: HostState, v: int, dt_ns: int) -> None:
    """One step of the program: resize, drift, touch."""
    host = st.host[0]
    vm = st.vms[v]
    row = st.programs[select_row(st, v)]
    if row.memory_pages != KEEP and row.memory_pages != vm.brk:
        resize(st, v, min(row.memory_pages, vm.size_slots), row.growth_pages_per_s)
    span = vm.size_slots - vm.kernel if row.memory_pages == KEEP else vm.brk - vm.kernel
    vm.span = max(span, 1)
    vm.active = min(row.active_pages, vm.span)
    vm.drift_carry += vm.active * row.drift_permille_per_h * host.dt_ms
    moved = vm.drift_carry // 3_600_000_000
    vm.drift_carry -= moved * 3_600_000_000
    vm.window = (vm.window + moved) % vm.span
    if vm.active == 0:
        return
    vm.touch_carry += vm.active * host.dt_ms
    n = vm.touch_carry // row.touch_interval_ms
    vm.touch_carry -= n * row.touch_interval_ms
    if n == 0:
        return
    extra = 0
    if vm.vm_clock == 0:
        extra = n * min(vm.backlog_ns, dt_ns) // dt_ns
    touch_ns = dt_ns // (n + extra)
    done = touch_window(st, v, n + extra, touch_ns, row.writes_permille, row.locality)
    vm.touches += done
    if vm.vm_clock == 0:
        vm.backlog_ns = max(0, vm.backlog_ns + dt_ns - done * (dt_ns // n))
        if done >= n + extra and extra < n:
            vm.backlog_ns = 0


@kernel
def run(st: HostState, v: int, cpu_lost_ns: int, scan_lost_ns: int) -> None:
    """One step of one VM, within what contention, blocking and old faults leave of it."""
    host = st.host[0]
    vm = st.vms[v]
    dt_ns = host.dt_ms * NS_PER_MS
    vm.on_ns += dt_ns
    vm.left_ns = dt_ns
    before = i64(0)
    for cause in range(st.lost.shape[1]):
        before += st.lost[v, cause]
    if vm.blocked == 1:
        lose(st, v, dt_ns, BLOCKED)
    lose(st, v, min(cpu_lost_ns, vm.left_ns), CPU)
    lose(st, v, min(scan_lost_ns, vm.left_ns), SCAN_CPU)
    debt = min(vm.debt_ns, vm.left_ns)
    vm.debt_ns -= debt
    lose(st, v, debt, vm.cause)
    if vm.left_ns > 0:
        if vm.booted == 0:
            boot(st, v)
        else:
            work(st, v, dt_ns)
    elif vm.booted == 1 and vm.vm_clock == 0:
        vm.backlog_ns += dt_ns
    for cause in range(st.lost.shape[1]):
        before -= st.lost[v, cause]
    vm.clock_ns += dt_ns + before
    if vm.booted == 0:
        finish_boot(st, v)
