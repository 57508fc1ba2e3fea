"""Ballooning [P 3.2]: the driver in each guest asks for its target and pins or returns pages.

At every poll a driver moves its balloon towards the target, at a bounded rate; the guest chooses
the pages to give. A driver that was lost in a guest reset starts anew: pages still ballooned then
are popped. Nothing here decides targets.
"""

from __future__ import annotations

import numpy as np

from hostsim import guest, replacement, rng
from hostsim.jit import apart, i64, kernel, small
from hostsim.ranks import PINNED, place_of
from hostsim.state import (
    BALLOONED,
    DRIVER_PRESENT,
    FREE,
    GUEST_PAGING,
    HostState,
    count_vms,
    due,
    slot_unit,
    state_of,
    use_of,
)

LOOKS = 64
"""Random pages looked at for a ballooned one, before a draw among all."""


@small
def can_balloon(st: HostState, v: int) -> bool:
    """Whether the driver could still take pages: it is there, has started, and is not full."""
    vm = st.vms[v]
    is_on = vm.driver == DRIVER_PRESENT and vm.booted == 1
    return is_on and vm.ballooned < vm.balloon_max


@kernel
def _find_ballooned(st: HostState, v: int, key: np.uint64, draw: int) -> int:
    """A random ballooned page. The caller saw that there is one.

    To a real guest the pages of its balloon are all alike. Here some stand for data on the guest's
    disk as well, so that a page that stands for none goes first, of those looked at.
    """
    vm = st.vms[v]
    first_draw = draw * (LOOKS + 1)
    found = i64(-1)
    for look in range(LOOKS):
        ppn = rng.below(key, first_draw + look, vm.size_slots)
        slot = vm.base_slot + ppn
        if state_of(st, slot) == BALLOONED:
            if use_of(st, slot) == FREE:
                return ppn
            if found < 0:
                found = ppn
    if found >= 0:
        return found
    rank = rng.below(key, first_draw + LOOKS, vm.ballooned)
    return place_of(st.page[vm.base_slot : vm.base_slot + vm.size_slots], PINNED, rank)


@kernel
def restart_driver(st: HostState, v: int) -> None:
    """First poll after a guest reset: pages still pinned by the old balloon are popped."""
    vm = st.vms[v]
    ppn = 0
    while vm.ballooned > 0:
        if state_of(st, vm.base_slot + ppn) == BALLOONED:
            replacement.take_back(st, v, ppn)
            st.host[0].pops += 1
        ppn += 1
    vm.lost_driver = 0


@kernel
def inflate(st: HostState, v: int, n: int) -> int:
    """Pin up to `n` pages that the guest gives. Returns how many: it may refuse."""
    done = 0
    while done < n:
        cost = replacement.give_page(st, v)
        if cost < 0:
            break
        if cost > 0:
            st.debts[v, GUEST_PAGING] += cost * st.host[0].sample
        done += 1
    st.host[0].inflated += done
    return done


@kernel
def deflate(st: HostState, v: int, n: int, key: np.uint64) -> int:
    """Return `n` ballooned pages, drawn at random, to the guest. The caller saw that there are.

    The zero-page thread of a Windows-like guest [P 5.4] scrubs what it gets back, which takes a
    frame for it at once; a page that stalls stays as it is.
    """
    for i in range(n):
        ppn = _find_ballooned(st, v, key, i)
        replacement.take_back(st, v, ppn)
        if st.vms[v].windows == 1:
            guest.scrub(st, v, ppn)
    st.host[0].deflated += n
    return n


@kernel
def poll(st: HostState, v: int, polls: int) -> None:
    """`polls` polls of one driver: move towards the target within the rates of that time."""
    host = st.host[0]
    vm = st.vms[v]
    if vm.lost_driver == 1:
        restart_driver(st, v)
    period_ms = polls * host.balloon_poll_ms
    unit = slot_unit(st)
    vm.inflate_carry = vm.inflate_carry % unit + host.inflate_rate * period_ms
    vm.deflate_carry = vm.deflate_carry % unit + host.deflate_rate * period_ms
    missing = vm.balloon_target - vm.ballooned
    if missing > 0:
        inflate(st, v, min(missing, vm.inflate_carry // unit))
    elif missing < 0:
        key = rng.stream(host.seed, rng.DEFLATE, vm.vm, host.tick)
        deflate(st, v, min(-missing, vm.deflate_carry // unit), key)


@apart
def run(st: HostState, first: int) -> None:
    """Poll every driver that has started, in id order from position `first`."""
    polls = due(st, st.host[0].balloon_poll_ms)
    n = count_vms(st)
    for i in range(n):
        v = st.order[(first + i) % n]
        st.vms[v].gave = 0
        if polls > 0 and st.vms[v].driver == DRIVER_PRESENT and st.vms[v].booted == 1:
            poll(st, v, polls)
