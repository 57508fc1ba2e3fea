"""The literal twin's workload: what a guest does with the time that is left to it in a step.

A guest is a closed loop: boot, then resize, drift and touch the active set, as long as time lasts.
Lost time is kept by cause; what does not fit into a step is a debt for the next one. Every touch is
made, the unobservable ones too.
"""

from __future__ import annotations

import contextlib
from fractions import Fraction

import naive_guest as guests
import naive_remap as remap
import naive_touch
from naive_lost import CAUSES, StepOver, charge, lose, stall
from naive_machine import Draws, Stall
from naive_state import Esx, Row, Vm

from hostsim import rng

MS = 1_000_000
HALF = 1 << 32
BOOT_CPU_PERMILLE = 1000


def time_in_program(vm: Vm, now_ms: int) -> int:
    """How far into its program it is by the VM's own clock (phases) or the wall clock (traces)."""
    at_ms = now_ms - vm.start_ms
    if vm.spec.vm_clock:
        at_ms = (vm.clock_ns - vm.guest.boot_end_ns) // MS
    at_ms += vm.spec.offset_ms
    return at_ms % vm.program[-1].until_ms if vm.spec.repeat else at_ms


def row_at(vm: Vm, now_ms: int) -> Row:
    at_ms = time_in_program(vm, now_ms)
    return next((row for row in vm.program if at_ms < row.until_ms), vm.program[-1])


def row_in_force(esx: Esx, vm: Vm) -> Row:
    """The program's row as the step started."""
    return row_at(vm, esx.now_ms - esx.dt_ms)


def cpu_demand(esx: Esx, vm: Vm) -> int:
    """In permille of a core. A VM that may not run uses nothing."""
    if vm.blocked:
        return 0
    if not vm.guest.booted:
        return BOOT_CPU_PERMILLE
    return row_in_force(esx, vm).cpu_permille * vm.spec.config.vcpus


# Boot


def boot(esx: Esx, vm: Vm) -> None:
    """The footprint comes in at an even rate; a Windows-like guest zeroes all its memory."""
    guest, image = vm.guest, vm.spec.image
    part = Fraction(esx.dt_ms, image.boot)
    windows = image.os == "windows"
    due = guest.growth.due(guest.footprint * part)
    try:
        grow(esx, vm, min(due, guest.footprint - guest.brk))
        if vm.left_ns > 0 and windows:
            due = guest.scrubbing.due(vm.size * part)
            scrub_all(esx, vm, min(due, vm.size - guest.scrub_cursor))
    except StepOver:
        # Growing may use up the step; scrubbing is then not even due in it.
        pass


def finish_boot(esx: Esx, vm: Vm) -> None:
    """The program starts once boot time is over and all memory is in place."""
    guest = vm.guest
    scrubbed = vm.spec.image.os != "windows" or guest.scrub_cursor == vm.size
    if vm.clock_ns >= guest.boot_end_ns and guest.brk >= guest.footprint and scrubbed:
        guest.booted = True
        guest.boot_end_ns = vm.clock_ns
        guest.growth.owed = Fraction(0)
        row = vm.last_row = row_in_force(esx, vm)
        if row.memory is None:
            guest.window = max(guest.brk - guest.kernel - row.active, 0)


def scrub_all(esx: Esx, vm: Vm, n: int) -> None:
    for _ in range(n):
        try:
            cost = guests.scrub(esx, vm, vm.guest.scrub_cursor)
        except Stall as why:
            stall(esx, vm, why)
        vm.guest.scrub_cursor += 1
        vm.writes += 1000
        charge(vm, cost)


def grow(esx: Esx, vm: Vm, n: int) -> None:
    for _ in range(n):
        try:
            cost = guests.populate(esx, vm, vm.guest.brk)
        except Stall as why:
            stall(esx, vm, why)
        vm.guest.brk += 1
        vm.writes += 1000
        charge(vm, cost)


def shrink(esx: Esx, vm: Vm, n: int) -> None:
    for _ in range(n):
        try:
            cost = guests.free_page(esx, vm, vm.guest.brk - 1)
        except Stall as why:
            stall(esx, vm, why)
        vm.guest.brk -= 1
        charge(vm, cost)


# Work


def work(esx: Esx, vm: Vm, dt_ns: int) -> None:
    """One step of the program: resize, drift, replay, transmit, touch."""
    guest, row = vm.guest, row_in_force(esx, vm)
    if row.memory is not None and row.memory != guest.brk:
        resize(esx, vm, row)
    last = vm.touchable if row.memory is None else guest.brk
    guest.span = max(last - guest.kernel, 1)
    guest.active = min(row.active, guest.span)
    hours = Fraction(esx.dt_ms, 3_600_000)
    moved = guest.drift.due(guest.active * Fraction(row.drift_permille_per_h, 1000) * hours)
    guest.window = (guest.window + moved) % guest.span
    with contextlib.suppress(StepOver):
        replay(esx, vm)
    if row.transmit_milli_per_s > 0:
        millionths = row.transmit_milli_per_s * vm.left_ns // MS
        rate = Fraction(millionths, 1_000_000 * esx.sample)
        n_slots = max(min(row.transmit_set, guest.brk), 1)
        transmit(esx, vm, guest.transmit.due(rate), n_slots)
    if guest.active > 0:
        touch_active_set(esx, vm, row, dt_ns)


def replay(esx: Esx, vm: Vm) -> None:
    """What a real guest did up to now, by the VM's own clock; a stalled event is tried again."""
    guest = vm.guest
    until_ms = (vm.clock_ns - guest.boot_end_ns) // MS + esx.dt_ms
    for event in vm.replay[guest.replayed :]:
        if event.at_ms > until_ms or vm.left_ns == 0:
            return
        try:
            cost = guests.relive(esx, vm, event.ppn, event.content)
        except Stall as why:
            stall(esx, vm, why)
        guest.replayed += 1
        vm.touches += 1
        vm.writes += 1000
        charge(vm, cost)


def resize(esx: Esx, vm: Vm, row: Row) -> None:
    guest = vm.guest
    assert row.memory is not None
    memory = min(row.memory, vm.size)
    due = guest.growth.due(Fraction(row.growth_milli_per_s * esx.dt_ms, 1_000_000 * esx.sample))
    try:
        if guest.brk < memory:
            grow(esx, vm, min(due, memory - guest.brk))
        else:
            shrink(esx, vm, min(due, guest.brk - max(memory, guest.kernel)))
    except StepOver:
        pass


def transmit(esx: Esx, vm: Vm, n: int, n_slots: int) -> None:
    """Transmit `n` times one of the first pages, the first most often, while time lasts. A slot
    counts for the ranks of all pages that it stands for."""
    draws = esx.draws(rng.TRANSMIT, vm.spec.vm, esx.tick)
    for i in range(n):
        ppn = zipf_rank(draws.word(i), n_slots * esx.sample) // esx.sample
        try:
            try:
                cost = guests.access(esx, vm, ppn, False)
            except Stall as why:
                stall(esx, vm, why)
            charge_copies(esx, vm, ppn, i, cost)
        except StepOver:
            return


def charge_copies(esx: Esx, vm: Vm, ppn: int, i: int, cost: int) -> None:
    """The page is there and goes out, even where bringing it in took the rest of the step."""
    lose(vm, cost, vm.cause)
    copies = remap.send(esx, vm, ppn, i)
    lose(vm, copies * esx.config.costs.page_copy * esx.sample, "cpu")
    if vm.left_ns == 0:
        raise StepOver


def touch_active_set(esx: Esx, vm: Vm, row: Row, dt_ns: int) -> None:
    """As many touches as are due in the time that the guest has, spread evenly over it."""
    guest, has_ns, lost_ns = vm.guest, vm.left_ns, vm.lost.total()
    if not vm.spec.vm_clock:
        touch_on_the_wall_clock(esx, vm, row, dt_ns)
        return
    reach, interval_us = max(row.data, guest.active), row.touch_interval_ms * 1000
    n = (guest.touch_credit + reach * (has_ns // 1000)) // interval_us
    done = 0
    if n and has_ns:
        done = touch_pages(esx, vm, row, n, has_ns // n)
        count_touches(vm, row, done)
    ran_us = (has_ns - (vm.lost.total() - lost_ns)) // 1000
    credit = guest.touch_credit + reach * ran_us - done * interval_us
    guest.touch_credit = max(credit, 0)


def touch_on_the_wall_clock(esx: Esx, vm: Vm, row: Row, dt_ns: int) -> None:
    """What the step makes due, and what earlier ones left undone, at most twice the usual."""
    guest, interval_us = vm.guest, row.touch_interval_ms * 1000
    guest.touch_credit += max(row.data, guest.active) * esx.dt_ms * 1000
    n, guest.touch_credit = divmod(guest.touch_credit, interval_us)
    if n == 0:
        return
    extra = n * min(vm.backlog_ns, dt_ns) // dt_ns
    done = touch_pages(esx, vm, row, n + extra, dt_ns // (n + extra))
    count_touches(vm, row, done)
    vm.backlog_ns = max(0, vm.backlog_ns + dt_ns - done * (dt_ns // n))
    if done >= n + extra and extra < n:
        vm.backlog_ns = 0


def count_touches(vm: Vm, row: Row, done: int) -> None:
    vm.guest.sweep = (vm.guest.sweep + done) % vm.guest.active
    vm.touches += done
    vm.writes += done * row.writes_permille


def touch_pages(esx: Esx, vm: Vm, row: Row, n: int, touch_ns: int) -> int:
    """Touch `n` pages of the active set, `touch_ns` apart, while time lasts. How many were."""
    if row.locality == "uniform" and row.data <= vm.guest.active:
        return naive_touch.touch_uniformly(esx, vm, row.writes_permille, n, touch_ns)
    draws = esx.draws(rng.TOUCH, vm.spec.vm, esx.tick)
    was_done, goes_on = naive_touch.try_again(esx, vm, touch_ns)
    if not goes_on:
        return int(was_done)
    for done in range(was_done, n):
        if vm.left_ns < touch_ns:
            return done
        offset = choose_offset(vm, row, draws, done)
        is_write = draws.word(done) % HALF * 1000 // HALF < row.writes_permille
        is_done, goes_on = naive_touch.touch(esx, vm, offset, is_write, touch_ns)
        if not goes_on:
            return done + is_done
    return n


def choose_offset(vm: Vm, row: Row, draws: Draws, i: int) -> int:
    """Place in the active set of touch `i` of this step. By rank, the page used last is the most
    popular; ranks that the active set has no page for are at places below 0."""
    active = vm.guest.active
    if row.locality == "sweep":
        return (vm.guest.sweep + i) % active
    word, n = Draws(draws.word(i)).word(1), max(row.data, active)
    by = {"zipf": zipf_rank, "linear": linear_rank, "uniform": uniform_rank}
    return active - 1 - by[row.locality](word, n)


def uniform_rank(word: int, n: int) -> int:
    return word // HALF * n // HALF


def linear_rank(word: int, n: int) -> int:
    """The lower of two ranks, from the halves of the word: popularity falls linearly."""
    return min(half * n // HALF for half in divmod(word, HALF))


def zipf_rank(word: int, n: int) -> int:
    """Ranks fall into octaves of 1, 2, 4, ... ranks, each as likely as the others: about 1 / rank.
    The last octave counts by its part. High half of the word: which octave; low half: where."""
    octaves = [range((1 << o) - 1, min((2 << o) - 1, n)) for o in range(n.bit_length())]
    octaves = [octave for octave in octaves if octave]
    full = 1 << (len(octaves) - 1)  # ranks that the last octave would have if it were whole
    weights = [full] * (len(octaves) - 1) + [len(octaves[-1])]
    pick = word // HALF * sum(weights) // HALF
    for octave, weight in zip(octaves, weights, strict=True):
        if pick < weight:
            return octave[word % HALF * len(octave) // HALF]
        pick -= weight
    raise AssertionError("the weights do not sum to the total")


# A step of one VM


def run(esx: Esx, vm: Vm, cpu_lost_ns: int, scan_lost_ns: int) -> None:
    """What contention, blocking and old debts leave of the step is the guest's."""
    dt_ns = esx.dt_ms * MS
    lost_before = vm.lost.total()
    vm.on_ns += dt_ns
    vm.left_ns = dt_ns
    if vm.blocked:
        lose(vm, dt_ns, "blocked")
    lose(vm, min(cpu_lost_ns, vm.left_ns), "cpu")
    lose(vm, min(scan_lost_ns, vm.left_ns), "scan")
    for cause in CAUSES:
        lose(vm, vm.debts.pop(cause, 0), cause)
    if vm.left_ns > 0:
        if vm.guest.booted:
            work(esx, vm, dt_ns)
        else:
            boot(esx, vm)
    elif vm.guest.booted and not vm.spec.vm_clock:
        vm.backlog_ns += dt_ns
    vm.clock_ns += dt_ns - (vm.lost.total() - lost_before)
    if not vm.guest.booted:
        finish_boot(esx, vm)
