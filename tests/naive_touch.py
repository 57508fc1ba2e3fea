"""The literal twin's touches of an active set in which all pages are equally likely.

A touch is loud when it would change something that can be observed. The number of quiet ones before
the next loud one is geometric, and all of them are made here, too, each a random quiet one: nothing
may come of it.
"""

from __future__ import annotations

import math
from itertools import count

import naive_guest as guests
import naive_tier as tier
from naive_index import TRUNCATED, HintFrame
from naive_lost import StepOver, charge, stall
from naive_machine import Draws, Stall
from naive_pages import content_hash
from naive_state import Esx, Use, Vm

from hostsim import rng

HALF = 1 << 32
QUIET_DRAWS = 1 << 40
"""Index of the first draw for quiet touches, beyond all others."""


def touch(esx: Esx, vm: Vm, offset: int, is_write: bool, touch_ns: int) -> tuple[bool, bool]:
    """One touch; a place below 0 is data that is not cached, whose read is drawn anew when it
    stalls. Whether it was done, and whether the step goes on."""
    ppn = ppn_at(vm, offset) if offset >= 0 else None
    try:
        cost = guests.read_data(esx, vm) if ppn is None else guests.access(esx, vm, ppn, is_write)
    except Stall as why:
        if ppn is not None:
            vm.guest.stalled = ppn, is_write
        try:
            stall(esx, vm, why)
        except StepOver:
            return False, False
    vm.left_ns -= touch_ns
    if ppn is not None:
        vm.guest.brk = max(vm.guest.brk, ppn + 1)
    try:
        charge(vm, cost)
    except StepOver:
        return True, False
    return True, True


def try_again(esx: Esx, vm: Vm, touch_ns: int) -> tuple[bool, bool]:
    """The touch that stalled comes first, unless the active set has left its page. As `touch`."""
    if vm.guest.stalled is None:
        return False, True
    if vm.left_ns < touch_ns:
        return False, False
    (ppn, is_write), vm.guest.stalled = vm.guest.stalled, None
    for offset in range(vm.guest.active):
        if ppn_at(vm, offset) == ppn:
            return touch(esx, vm, offset, is_write, touch_ns)
    return False, True


def ppn_at(vm: Vm, offset: int) -> int:
    """The page at a place of the active set."""
    return vm.guest.kernel + (vm.guest.window + offset) % vm.guest.span


def is_heard(esx: Esx, vm: Vm, ppn: int) -> bool:
    """Whether any touch of the page is noticed: it is not in memory, or lies on
    NVMe, has no mapping, or is new."""
    is_new = vm.guest.use[ppn] is Use.FREE
    is_far = tier.is_far(esx, vm, ppn)
    return vm.frame(ppn) is None or ppn not in vm.mapped or is_new or is_far


def is_write_heard(esx: Esx, vm: Vm, ppn: int) -> bool:
    """Whether a write is: it breaks sharing, makes common content unique or a hint stale."""
    if vm.guest.use[ppn] is not Use.ANON:
        return False
    entry = vm.frame(ppn)
    if entry is None or entry.cow:
        return True
    record = esx.index.record_of(entry.mpn)
    if record is not None:
        assert isinstance(record, HintFrame)
        if record.truncated_hash == content_hash(esx, entry.mpn) & TRUNCATED:
            return True
    return not esx.read(vm, ppn).startswith(b"written")


class Loud:
    """Places of the active set that a touch, or only a write, is heard at.

    In order at first; a place that leaves its list is replaced by the last one there.
    """

    def __init__(self, esx: Esx, vm: Vm) -> None:
        self.esx, self.vm = esx, vm
        self.any: list[int] = []
        self.write: list[int] = []
        for offset in range(vm.guest.active):
            if ppn_at(vm, offset) >= vm.guest.brk:
                self.any.append(offset)
            else:
                self._add(offset)

    def _add(self, offset: int) -> None:
        ppn = ppn_at(self.vm, offset)
        if is_heard(self.esx, self.vm, ppn):
            self.any.append(offset)
        elif is_write_heard(self.esx, self.vm, ppn):
            self.write.append(offset)

    def look_again(self, ppn: int) -> None:
        """A touch changed this page, which may lie in the active set."""
        guest = self.vm.guest
        if not guest.kernel <= ppn < guest.kernel + guest.span:
            return
        offset = (ppn - guest.kernel - guest.window) % guest.span
        if offset >= guest.active:
            return
        for listed in (self.any, self.write):
            if offset in listed:
                last = listed.pop()
                if last != offset:
                    listed[listed.index(offset)] = last
        self._add(offset)


def unit(word: int) -> float:
    """In [0, 1), 53 bits."""
    return (word >> 11) * 2.0**-53


def quiet_before(quiet: float, draw: float, most: int) -> int:
    """A geometric number by inversion: the largest g with draw < quiet ** g."""
    if draw >= quiet:
        return 0
    if draw == 0.0:
        return most
    return min(math.ceil(math.log(draw) / math.log(quiet)) - 1, most)


def touch_uniformly(esx: Esx, vm: Vm, writes: int, n: int, touch_ns: int) -> int:
    """Touch `n` random pages of the active set, `touch_ns` apart, while time lasts."""
    draws = esx.draws(rng.TOUCH, vm.spec.vm, esx.tick)
    loud, total = Loud(esx, vm), 1000 * vm.guest.active
    quiet_draws = count(QUIET_DRAWS)
    again = vm.guest.stalled
    done, goes_on = try_again(esx, vm, touch_ns)
    if not goes_on:
        return int(done)
    if again is not None:
        loud.look_again(again[0])
        loud.look_again(vm.given)
    for draw in count(step=3):
        most = min(n - done, vm.left_ns // touch_ns)
        by_any = 1000 * len(loud.any)
        weight = by_any + writes * len(loud.write)
        quiet = most
        if weight > 0:
            quiet = quiet_before((total - weight) / total, unit(draws.word(draw)), most)
        for _ in range(quiet):
            touch_quiet_page(esx, vm, loud, writes, draws, quiet_draws)
        vm.left_ns -= quiet * touch_ns
        done += quiet
        if quiet == most:
            return done
        which = loud.any if unit(draws.word(draw + 1)) * weight < by_any else loud.write
        word = draws.word(draw + 2)
        offset = which[draws.below(draw + 2, len(which))]
        is_write = which is loud.write or word % HALF * 1000 // HALF < writes
        is_done, goes_on = touch(esx, vm, offset, is_write, touch_ns)
        done += is_done
        loud.look_again(ppn_at(vm, offset))
        loud.look_again(vm.given)
        if not goes_on:
            return done
    raise AssertionError("unreachable")


def touch_quiet_page(
    esx: Esx, vm: Vm, loud: Loud, writes: int, draws: Draws, indexes: count[int]
) -> None:
    """One of the touches that change nothing: drawn as all are, until it is a quiet one."""
    while True:
        i = next(indexes)
        offset = draws.below(i, vm.guest.active)
        is_write = draws.word(i) % HALF * 1000 // HALF < writes
        if offset not in loud.any and not (is_write and offset in loud.write):
            assert guests.access(esx, vm, ppn_at(vm, offset), is_write) == 0
            return
