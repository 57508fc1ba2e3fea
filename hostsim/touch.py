"""A guest touches its active window. Nearly all touches change nothing, and are not made.

Where touches are uniform, how many quiet ones come before the next loud one is drawn from its
geometric distribution, and then which loud page it is: the outcome is distributed exactly as if
every touch were made (tests/test_thinning.py). A sweep, or touches by rank, look at every touch.
"""

from __future__ import annotations

import numpy as np

from hostsim import guest, rng
from hostsim.ahead import FAR, NEAR, fetch_page
from hostsim.jit import fetch, i64, kernel, small
from hostsim.lost import settle
from hostsim.loud import ANY, LOUD, WRITE, listen, listen_again, slot_of
from hostsim.program import LINEAR, SWEEP, UNIFORM
from hostsim.rng import place_of
from hostsim.state import AHEAD, HostState

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_PERMILLE = np.uint64(1000)


@small
def octaves_of(n: int) -> int:
    """Whole octaves [0], [1, 2], [3..6], ... of which n ranks have more than all."""
    octaves = 0
    while (2 << octaves) - 1 < n:
        octaves += 1
    return octaves


@small
def zipf_rank(word: np.uint64, n: int, octaves: int) -> int:
    """Rank in [0, n) from a 64-bit draw, Zipf with exponent 1 up to steps of a factor of two, for n
    up to 2**27.

    Ranks fall into octaves (`octaves_of` n) of equal weight, the last by its part, and are uniform
    inside one: integers only, so every CPU draws the same.
    """
    full = i64(1) << octaves
    part = n - (full - 1)
    total = octaves * full + part
    pick = i64(((word >> _SHIFT_32) * np.uint64(total)) >> _SHIFT_32)
    octave = min(pick >> octaves, octaves)
    low = (i64(1) << octave) - 1
    width = min(low + 1, n - low)
    return low + i64(((word & _LOW_32) * np.uint64(width)) >> _SHIFT_32)


@small
def linear_rank(word: np.uint64, n: int) -> int:
    """Rank in [0, n) from a 64-bit draw, popularity falling linearly: the lower of two uniform."""
    return min(place_of(word, n), i64(((word & _LOW_32) * np.uint64(n)) >> _SHIFT_32))


@small
def is_write_of(word: np.uint64, writes: int) -> int:
    """1 when the low half of a touch's word says that it writes, `writes` permille of the time."""
    return i64((((word & _LOW_32) * _PERMILLE) >> _SHIFT_32) < np.uint64(writes))


@kernel
def quiet_before(st: HostState, quiet: float, draw: float, most: int) -> int:
    """Quiet touches before the next loud one, `most` if all of so many are quiet.

    quiet: probability that a touch is. The number g has P(G >= g) = quiet ** g, so it is the
    largest g with draw < quiet ** g, found by doubling and bisection: no logarithm, whose last bits
    differ between machines.
    """
    if draw >= quiet:
        return i64(0)
    powers = st.powers
    powers[0] = quiet
    n = 0
    while (2 << n) <= most and draw < powers[n] * powers[n]:
        powers[n + 1] = powers[n] * powers[n]
        n += 1
    g, reached = i64(0), 1.0
    for i in range(n, -1, -1):
        further = reached * powers[i]
        is_further = draw < further  # as likely as not: a branch would be mispredicted
        reached = further if is_further else reached
        g += i64(is_further) << i
    return min(g, most)


@small
def _ppn_of(st: HostState, v: int, offset: int) -> int:
    """The page at a place of the window, which goes on at the start of the span after its end."""
    vm = st.vms[v]
    offset += vm.window
    if offset >= vm.span:
        offset -= vm.span
    return vm.kernel + offset


@kernel
def make(st: HostState, v: int, offset: int, is_write: int, touch_ns: int) -> tuple[bool, bool]:
    """Touch one page of the window. Whether it was done, and whether the step goes on.

    A touch that stalls is what the guest waits for: it will be the first of its next step.
    """
    vm = st.vms[v]
    ppn = _ppn_of(st, v, offset)
    cost = guest.access(st, v, ppn, is_write)
    vm.stalled = 1 + 2 * ppn + is_write
    if cost >= 0:
        vm.stalled = 0
        vm.left_ns -= touch_ns
        vm.brk = max(vm.brk, min(ppn + 1, vm.size_slots))
    listen_again(st, v, ppn)
    listen_again(st, v, vm.given)
    going = settle(st, v, cost)
    return cost >= 0, going


@kernel
def try_again(st: HostState, v: int, touch_ns: int) -> tuple[bool, bool]:
    """Make the touch that stalled, if its page is still in the window. As `make`."""
    vm = st.vms[v]
    if vm.stalled == 0:
        return False, True
    if vm.left_ns < touch_ns:
        return False, False
    ppn, is_write = (vm.stalled - 1) // 2, (vm.stalled - 1) % 2
    vm.stalled = 0
    offset = ppn - vm.kernel - vm.window
    if offset < 0:
        offset += vm.span
    if ppn - vm.kernel >= vm.span or offset >= vm.active:
        return False, True
    return make(st, v, offset, is_write, touch_ns)


@small
def _ask_ahead(st: HostState, v: int, key: np.uint64) -> None:
    """Ask memory for pages that touches after the next ones, with draws from `key` on, will make.

    The list of what only writes change is the long one; where it is empty this asks for nothing of
    use.
    """
    n = st.n_heard[WRITE]
    far = place_of(rng.mix(key + np.uint64(3 * FAR + 2) * _WEYL), n)
    near = place_of(rng.mix(key + np.uint64(3 * NEAR + 2) * _WEYL), n)
    fetch(st.heard, slot_of(st, WRITE, far))
    offset = i64(st.heard[slot_of(st, WRITE, near)])
    slot = st.vms[v].base_slot + _ppn_of(st, v, offset)
    fetch_page(st, slot)
    fetch(st.heard_at, offset)
    fetch(st.loud, offset)


@kernel
def touch_uniform(st: HostState, v: int, done: int, n: int, touch_ns: int, writes: int) -> int:
    """Touches of random pages of the window, `touch_ns` apart, until `n` are done.

    Returns how many were. `done`: how many were before. (Tried: asking ahead only where windows are
    larger than a cache, and `listen_again` only where a page was given, gained nothing.)
    """
    vm = st.vms[v]
    key = rng.stream(st.host[0].seed, rng.TOUCH, vm.vm, st.host[0].tick)
    total = np.float64(1000 * vm.active)
    draw = np.uint64(0)
    while True:
        most = min(n - done, vm.left_ns // max(touch_ns, 1))
        by_any = np.float64(1000 * st.n_heard[ANY])
        loud = by_any + np.float64(writes * st.n_heard[WRITE])
        quiet = most
        if loud > 0.0:
            first = rng.unit(rng.mix(key + draw * _WEYL))
            quiet = quiet_before(st, (total - loud) / total, first, most)
        done += quiet
        vm.left_ns -= quiet * touch_ns
        if quiet == most:
            return done
        second = rng.unit(rng.mix(key + (draw + np.uint64(1)) * _WEYL))
        third = rng.mix(key + (draw + np.uint64(2)) * _WEYL)
        draw += np.uint64(3)
        # Lists hardly change in a few touches, so where a later one looks is nearly known.
        _ask_ahead(st, v, key + draw * _WEYL)
        which = ANY if second * loud < by_any else WRITE
        offset = i64(st.heard[slot_of(st, which, place_of(third, st.n_heard[which]))])
        is_write = is_write_of(third, writes) if which == ANY else i64(1)
        is_done, going = make(st, v, offset, is_write, touch_ns)
        done += is_done
        if not going:
            return done


@kernel
def read_data(st: HostState, v: int, touch_ns: int) -> tuple[bool, bool]:
    """Touch data that is not cached. As `make`, but a read that stalls is drawn anew."""
    cost = guest.read_data(st, v)
    if cost >= 0:
        st.vms[v].left_ns -= touch_ns
    listen_again(st, v, st.vms[v].given)
    going = settle(st, v, cost)
    return cost >= 0, going


@small
def _rank_of(word: np.uint64, locality: int, reach: int, octaves: int) -> int:
    """Rank in [0, reach) of the page that a touch with this word is of; octaves: of reach."""
    # A second word: the rank's two halves must not reuse the bits of the write draw.
    by_rank = rng.mix(word + _WEYL)
    if locality == LINEAR:
        return linear_rank(by_rank, reach)
    if locality == UNIFORM:
        return place_of(by_rank, reach)
    return zipf_rank(by_rank, reach, octaves)


@small
def _choose(
    st: HostState,
    v: int,
    key: np.uint64,
    first: int,
    n: int,
    writes: int,
    locality: int,
    reach: int,
) -> int:
    """Note in `ahead`, for `n` touches, 2 * their page's place in the window, + 1 for a write; and,
    AHEAD entries on, which of them are loud, as far as is known now. Returns how many are.

    A place below zero stands for data that is not in memory. Branches are on counts alone. Asking
    for what contents are indexed by, too, gained nothing: few touches are loud, and fewer need it.
    """
    vm = st.vms[v]
    loud, ahead, active, sweep, octaves = st.loud, st.ahead, vm.active, vm.sweep, octaves_of(reach)
    for i in range(n):
        word = rng.mix(key + np.uint64(first + i) * _WEYL)
        if locality == SWEEP:
            offset = (sweep + first + i) % active
        else:
            offset = active - 1 - _rank_of(word, locality, reach, octaves)
        ahead[i] = 2 * offset + is_write_of(word, writes)
        fetch(loud, offset)
    n_loud = i64(0)
    for i in range(n):
        ahead[AHEAD + n_loud] = i
        offset = ahead[i] >> 1
        n_loud += i64((offset < 0) | (loud[max(offset, 0)] + (ahead[i] & 1) >= LOUD))
    for i in range(n_loud):
        offset = max(ahead[ahead[AHEAD + i]] >> 1, 0)
        slot = vm.base_slot + _ppn_of(st, v, offset)
        fetch_page(st, slot)
        fetch(st.heard_at, offset)
    return n_loud


@kernel
def touch_in_order(
    st: HostState, v: int, done: int, n: int, touch_ns: int, writes: int, locality: int, reach: int
) -> int:
    """The same by sweep or by rank, each touch looked at.

    reach: ranks that touches are spread over; those from vm.active on are not in memory. Touches
    are chosen AHEAD at a time, and quiet ones counted at once. What one touch does can make the
    page of another louder only where its guest gave up a page for it, or where a shared page is
    copied to NVMe: the rest is chosen anew then.
    A ring of touches, each judged in its turn, took a fifth longer.
    """
    vm = st.vms[v]
    key = rng.stream(st.host[0].seed, rng.TOUCH, vm.vm, st.host[0].tick)
    is_tiered = st.host[0].tiered
    while done < n and vm.left_ns >= touch_ns:
        first, end, gifts = done, min(done + AHEAD, n), vm.gifts
        n_loud = _choose(st, v, key, first, end - first, writes, locality, reach)
        for i in range(n_loud + 1):
            quiet = (first + st.ahead[AHEAD + i] if i < n_loud else end) - done
            if quiet * touch_ns > vm.left_ns:
                quiet = vm.left_ns // touch_ns
            vm.left_ns -= quiet * touch_ns
            done += quiet
            if i == n_loud or vm.left_ns < touch_ns:
                break
            offset, is_write = st.ahead[done - first] >> 1, st.ahead[done - first] & 1
            is_louder = False
            if offset < 0:
                is_done, going = read_data(st, v, touch_ns)
                if is_tiered == 0:
                    gifts = vm.gifts
            elif st.loud[offset] + is_write >= LOUD:
                before = st.loud[offset]
                is_done, going = make(st, v, offset, is_write, touch_ns)
                is_louder = before < LOUD and st.loud[offset] >= LOUD
            else:  # since a touch before
                is_done, going = True, True
                vm.left_ns -= touch_ns
            done += is_done
            if not going:
                return done
            if vm.gifts != gifts or is_louder:  # a page that the guest gave up, or this one
                break
    return done


@kernel
def touch_window(
    st: HostState, v: int, n: int, touch_ns: int, writes: int, locality: int, reach: int
) -> int:
    """Touch `n` pages of the active window, and of data beyond it up to `reach` pages in all,
    `touch_ns` apart. Returns how many were done."""
    vm = st.vms[v]
    listen(st, v)
    is_done, going = try_again(st, v, touch_ns)
    done = i64(is_done)
    if going and locality == UNIFORM and reach == vm.active:
        done = touch_uniform(st, v, done, n, touch_ns, writes)
    elif going:
        done = touch_in_order(st, v, done, n, touch_ns, writes, locality, reach)
    vm.sweep = (vm.sweep + done) % vm.active
    return done
