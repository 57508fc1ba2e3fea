"""Statistical sampling of active memory [P 5.3].

At a period's start n pages are drawn from the VM's memory and their mappings dropped (here: the
accessed bits cleared); at its end the fraction touched since is one sample. A sampled page that is
not in memory counts as not touched. Periods count the VM's own time: a VM that does not run is not
sampled. The estimate is the maximum of a slow and a fast moving average and of the fast one updated
with the running period, so that it rises within seconds and falls slowly.

A step by law (`closed_form`) draws what the periods find that end in it from their distribution.
"""

from __future__ import annotations

from hostsim import closed_form, rng
from hostsim.jit import i64, kernel
from hostsim.ranks import BLOCK, IN_MEMORY, count, place_in
from hostsim.state import (
    ACCESSED,
    AHEAD,
    RESIDENT,
    SHARED,
    STATE,
    Array,
    HostState,
    alloc_of,
    count_vms,
)

SLOW_GAIN = 0.25
FAST_GAIN = 0.75
"""Gains of the averages, derived from the curves of [FIG 6]: the paper does not state them."""


@kernel
def touched_samples(st: HostState, v: int) -> int:
    """Samples of the running period that were touched and are in memory."""
    vm = st.vms[v]
    touched = 0
    for i in range(vm.samples):
        byte = i64(st.page[vm.base_slot + st.sampled[v, i]])
        state = byte & STATE
        in_memory = state == RESIDENT or state == SHARED
        touched += in_memory and byte & ACCESSED != 0
    return touched


@kernel
def active_fraction(st: HostState, v: int) -> float:
    """The estimate f: maximum of slow, fast and current average. 1 before the first full period."""
    vm = st.vms[v]
    if vm.periods == 0:
        return 1.0
    fraction = max(vm.slow, vm.fast)
    if vm.samples > 0:
        now = touched_samples(st, v) / vm.samples
        fraction = max(fraction, vm.fast + FAST_GAIN * (now - vm.fast))
    return fraction


@kernel
def _finish_period(st: HostState, v: int) -> None:
    """The period's fraction enters both averages; the first one starts them."""
    vm = st.vms[v]
    if vm.samples == 0:
        return
    _enter(st, v, touched_samples(st, v))


@kernel
def _enter(st: HostState, v: int, touched: int) -> None:
    """A period's samples that were touched enter both averages; the first period starts them."""
    host, vm = st.host[0], st.vms[v]
    host.minor_faults += touched
    fraction = touched / host.sample_pages
    if vm.periods == 0:
        vm.slow = fraction
        vm.fast = fraction
    else:
        vm.slow += SLOW_GAIN * (fraction - vm.slow)
        vm.fast += FAST_GAIN * (fraction - vm.fast)
    vm.periods += 1


@kernel
def _draw_periods(st: HostState, v: int, n: int) -> None:
    """What `n` periods find that lie within one long step. None is running after it."""
    vm = st.vms[v]
    vm.samples = 0
    if n == 0:
        return
    key = rng.stream(st.host[0].seed, rng.SAMPLE, vm.vm, st.host[0].tick)
    part = closed_form.touched_part(st, v)
    for first in range(0, n, AHEAD):
        some = min(AHEAD, n - first)
        draws, touched = st.powers[:some], st.ahead[:some]
        for i in range(some):
            draws[i] = rng.unit(rng.word(key, first + i))
        closed_form.binomials(draws, st.host[0].sample_pages, part, touched)
        for i in range(some):
            _enter(st, v, touched[i])


@kernel
def _sort(values: Array) -> None:
    """Ascending, in place; for a few values."""
    for i in range(1, values.size):
        value = values[i]
        at = i
        while at > 0 and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value


@kernel
def _draw(st: HostState, v: int) -> None:
    """Start a period: draw the sample, with replacement, uniformly from the pages in memory.

    The draws are ranks among those pages, found in one pass over the VM: where few of its pages
    are in memory, to look at random ones would take long, and then favour those after a gap. Pages
    are counted by blocks; only a block that holds a drawn rank is looked into.
    """
    vm = st.vms[v]
    key = rng.stream(st.host[0].seed, rng.SAMPLE, vm.vm, st.host[0].tick)
    n_in_memory = alloc_of(st, v)
    vm.samples = st.host[0].sample_pages if n_in_memory > 0 else 0
    if vm.samples == 0:
        return
    sample = st.sampled[v, : vm.samples]
    for i in range(vm.samples):
        sample[i] = rng.below(key, i, n_in_memory)
    _sort(sample)
    page = st.page[vm.base_slot : vm.base_slot + vm.size_slots]
    found, before, start = i64(0), i64(0), i64(0)
    while found < sample.size:
        block = page[start : start + BLOCK]
        inside = count(block, IN_MEMORY)
        while found < sample.size and sample[found] < before + inside:
            sample[found] = start + place_in(block, IN_MEMORY, sample[found] - before)
            found += 1
        before += inside
        start += BLOCK
    for i in range(sample.size):
        page[sample[i]] = i64(page[sample[i]]) & ~ACCESSED


@kernel
def run(st: HostState) -> None:
    """Turn the page for every VM whose sampling period has ended."""
    period_ns = st.host[0].sample_ms * 1_000_000
    for i in range(count_vms(st)):
        v = st.order[i]
        vm = st.vms[v]
        n = (vm.clock_ns - vm.period_start_ns) // period_ns
        if st.host[0].by_law == 1:
            _draw_periods(st, v, n)
        elif n > 0:
            _finish_period(st, v)
            _draw(st, v)
        vm.period_start_ns += n * period_ns
