"""What a long step finds without taking the short ones: drawn from the same distribution.

A guest that touches an active set at random treats its pages alike, so what sampling finds in a
period depends on numbers alone: how many pages the guest has, how many of them it touches. A tick
of two sampling periods or more asks for steps by this law; a host makes them where all its guests
are so, memory is SOFT at worst, and no memory tier looks for cold pages. Then nobody looks which
pages a sample holds, and reclamation decides once a balance period at most
(tests/test_closed_form.py, tests/test_step_size.py).
"""

from __future__ import annotations

from hostsim.jit import i64, kernel, small
from hostsim.program import UNIFORM
from hostsim.ranks import BLOCK, IN_MEMORY, count
from hostsim.state import SOFT, Array, HostState, alloc_of

STEP_MS_PAGING = 1000
"""Longest step while the host pages, but in SOFT by law. No step is shorter for any other reason
than memory in reach of the next threshold."""


@small
def exposure_ms(st: HostState) -> int:
    """The longest step after which a running sample still says what a period of its own would."""
    return max(st.host[0].sample_ms // 2, STEP_MS_PAGING)


@small
def goes_long(st: HostState) -> bool:
    """Whether the scenario asks for steps of several sampling periods, and memory allows them."""
    host = st.host[0]
    return host.level <= SOFT and host.tick_ms >= 2 * host.sample_ms and host.tiered == 0


@kernel
def is_alike(st: HostState, v: int) -> bool:
    """Whether a guest's program treats the pages of its active set alike, and has none beyond."""
    vm = st.vms[v]
    row = st.programs[vm.program + vm.row]
    by_chance = row.locality == UNIFORM and row.data_pages <= row.active_pages
    return vm.replay_len == 0 and by_chance


@kernel
def power(base: float, exponent: int) -> float:
    """base ** exponent for a whole exponent, by squaring: libm differs between machines."""
    result = 1.0
    while exponent > 0:
        if exponent & 1 == 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@kernel
def binomials(draws: Array, n: int, p: float, found: Array) -> None:
    """For each of some uniform draws the least k with P(B <= k) >= draw, B binomial (n, p).

    draws (m,) float64 in [0, 1), changed; found (m,) int64, out. n up to 1000, so that no term that
    matters is too small for a float. Term after term, each compared with all draws at once. (Tried
    when each draw went through the law by itself: 1 / (k + 1) from a table gained nothing.)
    """
    is_from_above = p > 0.5
    if is_from_above:
        p = 1.0 - p
        for j in range(draws.size):
            draws[j] = 1.0 - draws[j]
    last = 0.0
    for j in range(draws.size):
        last = max(last, draws[j])
        found[j] = 0
    odds = p / (1.0 - p)
    term = power(1.0 - p, n)
    upto, k = term, i64(0)
    while last > upto and k < n:
        for j in range(draws.size):
            found[j] += i64(draws[j] > upto)
        term *= odds * (n - k) / (k + 1)
        k += 1
        upto += term
    if is_from_above:
        for j in range(draws.size):
            found[j] = n - found[j]


@kernel
def count_window(st: HostState, v: int) -> int:
    """Pages of the active set that are in memory."""
    vm = st.vms[v]
    first = vm.base_slot + vm.kernel
    done = min(vm.active, vm.span - vm.window)
    start = first + vm.window
    return _count(st, start, done) + _count(st, first, vm.active - done)


@kernel
def _count(st: HostState, start: int, n: int) -> int:
    found = i64(0)
    for at in range(start, start + n, BLOCK):
        found += count(st.page[at : min(at + BLOCK, start + n)], IN_MEMORY)
    return found


@kernel
def touched_part(st: HostState, v: int) -> float:
    """Part of a VM's pages in memory that it touches in a sampling period.

    In the mean. How many it touches varies, too: left out, that is at most samples / pages of the
    variance that the choice of a sample makes (occupancy against binomial), 10 % for 1024 slots.
    """
    vm = st.vms[v]
    row = st.programs[vm.program + vm.row]
    n_in_memory = alloc_of(st, v)
    if n_in_memory == 0 or vm.active == 0:
        return 0.0
    touches = vm.active * st.host[0].sample_ms // row.touch_interval_ms
    touched = 1.0 - power(1.0 - 1.0 / vm.active, touches)
    return min(count_window(st, v) * touched / n_in_memory, 1.0)
