"""The same work done on whole batches with NumPy, as one would without a compiler.

Draws are the same, but a batch cannot have its pages one after the other. Where the outcome does
not depend on their order the arrays become equal: scan, write, swap-in, touches by rank, sampling.
Not so the victims of reclaim (a batch takes them before it shares any, so another page may be
chosen instead; as many frames get free), and uniform touches (all are made, from other draws, where
hostsim draws the gaps between those that matter). The table of stale hints keeps entries that were
removed, whose contents have no hint. All guests are booted and frames are of one kind.
"""

from __future__ import annotations

import numpy as np
from numpy_draws import (
    ACCESSED,
    HINT,
    INDEX,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    SWAPPED,
    UNIQUE,
    USE,
    WEYL,
    below,
    is_in_memory,
    is_write_of,
    loudness,
    mix,
    place_of,
    words_of,
    zipf_ranks,
)

from hostsim import rng, swap
from hostsim.loud import LOUD, QUIET
from hostsim.sample import FAST_GAIN, SLOW_GAIN
from hostsim.state import COW, PPN_BITS, Array, HostState, count_vms

GONE = -1
"""Instead of a content: there is none."""


class NumpyKernels:
    """Methods as the C twins. Owns working space, one entry a slot."""

    def __init__(self, st: HostState) -> None:
        self._at = np.zeros(len(st.page), np.int32)

    def _first(self, places: Array) -> Array:
        """Where each different place occurs first. Faster than np.unique, which sorts."""
        order = np.arange(len(places) - 1, -1, -1, dtype=np.int32)
        self._at[places[::-1]] = order
        return self._at[places] == order[::-1]

    def scan_vm(self, st: HostState, v: int, budget: int) -> int:
        """All pages are in memory, so that every draw is one page scanned."""
        host, vm = st.host[0], st.vms[v]
        key = rng.stream(host.seed, rng.SCAN, vm.vm, host.tick)
        slots = vm.base_slot + below(key, np.arange(budget), vm.size_slots)
        host.scanned += budget
        slots = slots[st.page[slots] & STATE == RESIDENT]
        slots = slots[self._first(slots)]
        host.stale_hints += self._drop_hints(st, slots)
        words = st.content[slots]
        is_unique = words & UNIQUE != 0
        self._hint(st, slots[is_unique])
        slots, words = slots[~is_unique], words[~is_unique].astype(np.int64)
        host.shares_made += self._match(st, v, slots, words, insert=True)
        return budget

    def _hint(self, st: HostState, slots: Array) -> None:
        st.page[slots] |= HINT
        st.host[0].hint_frames += len(slots)

    def _drop_hints(self, st: HostState, slots: Array) -> int:
        """Returns how many were stale."""
        slots = slots[st.page[slots] & HINT != 0]
        words = st.content[slots]
        st.page[slots] &= ~HINT
        st.host[0].hint_frames -= len(slots)
        is_stale = words & STALE != 0
        st.indexed[words[~is_stale & (words & UNIQUE == 0)]] = 0
        stale = slots[is_stale]
        st.content[stale] &= ~STALE
        contents = self._stale_find(st, self._names(st, stale))
        st.indexed[contents[contents != GONE]] = 0
        return len(stale)

    @staticmethod
    def _names(st: HostState, slots: Array) -> Array:
        rows = np.searchsorted(st.vms.base_slot[: count_vms(st)], slots, side="right") - 1
        return rows << PPN_BITS | (slots - st.vms.base_slot[rows])

    @staticmethod
    def _home(st: HostState, names: Array) -> Array:
        return place_of(mix(names.astype(np.uint64)), len(st.stale))

    def _stale_find(self, st: HostState, names: Array) -> Array:
        """Contents with stale hints of pages, GONE where there is none. Their entries stay: until
        such a content has a hint again, no page is found by them."""
        at = self._home(st, names)
        found = np.full(len(names), GONE)
        open_ = np.arange(len(names))
        while len(open_):
            entries = st.stale[at[open_]].astype(np.int64)
            open_, entries = open_[entries > 0], entries[entries > 0]
            is_found = st.indexed[entries - 1] - 1 == names[open_]
            found[open_[is_found]] = entries[is_found] - 1
            open_ = open_[~is_found]
            at[open_] = (at[open_] + 1) % len(st.stale)
        return found

    def _stale_put(self, st: HostState, contents: Array) -> None:
        at = self._home(st, st.indexed[contents] - 1)
        open_ = np.arange(len(contents))
        while len(open_):
            is_empty = st.stale[at[open_]] == 0
            st.stale[at[open_[is_empty]]] = contents[open_[is_empty]] + 1
            open_ = open_[st.stale[at[open_]] != contents[open_] + 1]
            at[open_] = (at[open_] + 1) % len(st.stale)

    def _match(self, st: HostState, v: int, slots: Array, words: Array, *, insert: bool) -> int:
        """Share pages with common contents where an equal frame is indexed, or among themselves
        where hints are inserted. Returns how many."""
        host = st.host[0]
        is_shared = st.indexed[words] < 0
        made = self._to_shared(st, slots[is_shared])
        slots, words = slots[~is_shared], words[~is_shared]
        hints = st.indexed[words] - 1
        hinting = hints >= 0
        hints = hints[hinting]
        others = st.vms.base_slot[hints >> PPN_BITS] + (hints & ((1 << PPN_BITS) - 1))
        is_equal = np.zeros(len(slots), bool)
        is_equal[hinting] = st.content[others] == words[hinting]
        others = others[self._first(others)]
        keeps = st.content[others] & STALE == 0
        host.stale_hints += self._drop_hints(st, others)
        host.distinct += self._to_shared(st, others[keeps])
        made += self._to_shared(st, slots[is_equal])
        host.free += made
        slots, words = slots[~is_equal], words[~is_equal]
        if insert:
            made += self._share_among(st, v, slots, words)
        return made

    def _share_among(self, st: HostState, v: int, slots: Array, words: Array) -> int:
        """No equal frame is indexed: pages of one content share a new one, a single page hints."""
        host = st.host[0]
        order = np.argsort(words)
        slots, words = slots[order], words[order]
        starts = np.ones(len(words), bool)
        starts[1:] = words[1:] != words[:-1]
        ends = np.append(starts[1:], True)
        is_single = starts & ends
        single = slots[is_single]
        st.indexed[words[is_single]] = 1 + (v << PPN_BITS | (single - st.vms[v].base_slot))
        self._hint(st, single)
        made = self._to_shared(st, slots[~is_single])
        n_new = int((starts & ~is_single).sum())
        host.distinct += n_new
        host.free += made - n_new
        return made - n_new

    @staticmethod
    def _to_shared(st: HostState, slots: Array) -> int:
        st.page[slots] = st.page[slots] & (ACCESSED | USE) | SHARED
        np.subtract.at(st.indexed, st.content[slots] & INDEX, 1)
        n = count_vms(st)
        rows = np.searchsorted(st.vms.base_slot[:n], slots, side="right") - 1
        counts = np.bincount(rows, minlength=n)
        st.vms.shared[:n] += counts
        st.vms.resident[:n] -= counts
        return len(slots)

    def touch_many(self, st: HostState, v: int, n: int, is_write: int) -> int:
        host, vm = st.host[0], st.vms[v]
        key = rng.stream(host.seed, rng.TOUCH, vm.vm, host.tick)
        slots = vm.base_slot + below(key, np.arange(n), vm.size_slots)
        if is_write == 0:
            return self._read(st, v, slots[self._first(slots)])
        last = self._first(slots[::-1])[::-1]
        words = UNIQUE | (vm.serial + 1 + np.flatnonzero(last)).astype(np.uint32) & INDEX
        vm.serial += n
        return self._write(st, v, slots[last], words)

    @staticmethod
    def _read(st: HostState, v: int, slots: Array) -> int:
        """Different pages are read; those in swap come in. Returns the cost in ns."""
        host, vm = st.host[0], st.vms[v]
        bytes_ = st.page[slots]
        is_out = bytes_ & STATE == SWAPPED
        bytes_[is_out] = bytes_[is_out] & USE | RESIDENT
        st.page[slots] = bytes_ | ACCESSED
        n = int(is_out.sum())
        vm.swapped -= n
        vm.resident += n
        host.free -= n
        host.swap_ins += n
        host.swap_io_left -= n
        return n * int(host.swap_latency_ns)

    def _write(self, st: HostState, v: int, slots: Array, words: Array) -> int:
        """Different pages in memory are written. Returns the cost in ns."""
        host, vm = st.host[0], st.vms[v]
        bytes_, old = st.page[slots], st.content[slots]
        is_shared = bytes_ & STATE == SHARED
        index = old[is_shared] & INDEX
        np.add.at(st.indexed, index, 1)
        emptied = index[st.indexed[index] == 0]
        reused = len(np.unique(emptied))
        broken = len(index) - reused
        host.distinct -= reused
        host.cow_reuses += reused
        host.cow_breaks += broken
        host.free -= broken
        vm.shared -= len(index)
        vm.resident += len(index)
        vm.cause = COW if broken else vm.cause
        bytes_[is_shared] = bytes_[is_shared] & (ACCESSED | USE) | RESIDENT
        st.page[slots] = bytes_ | ACCESSED
        hinted = bytes_ & HINT != 0
        fresh = hinted & (old & (STALE | UNIQUE) == 0)
        self._stale_put(st, old[fresh])
        st.content[slots] = words | (hinted * STALE)
        return broken * int(host.cow_ns)

    def page_out_vm(self, st: HostState, v: int, n: int, free_goal: int) -> int:
        """Victims of one look each; who finds none, or one that is taken, looks again."""
        host, vm = st.host[0], st.vms[v]
        key = rng.stream(host.seed, rng.SWAP, vm.vm, host.tick)
        assert host.share_first and host.free + n <= free_goal
        waiting, look = np.arange(n), 0
        while len(waiting):
            assert look < swap.LOOKS
            draw = waiting * (swap.LOOKS + 1) + look
            slots = vm.base_slot + below(key, draw, vm.size_slots)
            state = st.page[slots] & STATE
            is_shared = state == SHARED
            found = state == RESIDENT
            found[is_shared] = st.indexed[st.content[slots[is_shared]] & INDEX] == -1
            found &= self._first(slots)
            self._page_out(st, v, slots[found])
            waiting, look = waiting[~found], look + 1
        return n

    def _page_out(self, st: HostState, v: int, slots: Array) -> None:
        host, vm = st.host[0], st.vms[v]
        is_shared = st.page[slots] & STATE == SHARED
        index = st.content[slots[is_shared]] & INDEX
        st.indexed[index] += 1
        host.distinct -= len(index)
        vm.shared -= len(index)
        host.free += len(index)
        st.page[slots[is_shared]] = st.page[slots[is_shared]] & USE | SWAPPED
        own = slots[~is_shared]
        host.stale_hints += self._drop_hints(st, own)
        words = st.content[own]
        common = words & UNIQUE == 0
        made = self._match(st, v, own[common], words[common].astype(np.int64), insert=False)
        host.shared_before_swap += made
        out = own[st.page[own] & STATE == RESIDENT]
        st.page[out] = st.page[out] & USE | SWAPPED
        vm.resident -= len(out)
        vm.swapped += len(out) + len(index)
        host.free += len(out)
        host.swap_outs += len(out) + len(index)

    def touch_uniform(self, st: HostState, v: int, n: int, writes: int) -> int:
        host, vm = st.host[0], st.vms[v]
        words = words_of(rng.stream(host.seed, rng.TOUCH, vm.vm, host.tick), n)
        return self._touch(st, v, place_of(words, vm.active), is_write_of(words, writes))

    def touch_by_rank(self, st: HostState, v: int, n: int, writes: int) -> int:
        host, vm = st.host[0], st.vms[v]
        words = words_of(rng.stream(host.seed, rng.TOUCH, vm.vm, host.tick), n)
        ranks = zipf_ranks(mix(words + WEYL), int(vm.active))
        return self._touch(st, v, vm.active - 1 - ranks, is_write_of(words, writes))

    def _touch(self, st: HostState, v: int, offsets: Array, is_write: Array) -> int:
        """Touches of the window in order, of which few change anything. Returns how many."""
        vm = st.vms[v]
        assert vm.window + vm.active <= vm.span and vm.brk == vm.kernel + vm.span
        start = vm.base_slot + vm.kernel + vm.window
        window = slice(start, start + vm.active)
        volume = loudness(st.page[window], st.content[window])[offsets]
        is_loud = volume + is_write >= LOUD
        offsets, volume, is_write = offsets[is_loud], volume[is_loud], is_write[is_loud]
        st.page[start + offsets[volume >= LOUD]] |= ACCESSED
        changes = is_write & (volume & np.uint8(1) != QUIET)
        written = start + offsets[changes]
        written = written[self._first(written)]
        words = UNIQUE | (vm.serial + 1 + np.arange(len(written))).astype(np.uint32) & INDEX
        vm.serial += len(written)
        self._write(st, v, written, words)
        return len(is_loud)

    @staticmethod
    def sample_all(st: HostState) -> None:
        host = st.host[0]
        for v in st.order[: count_vms(st)]:
            vm = st.vms[v]
            page = st.page[vm.base_slot : vm.base_slot + vm.size_slots]
            n = int(vm.samples)
            if n > 0:
                bytes_ = page[st.sampled[v, :n]]
                in_memory = is_in_memory(bytes_)
                touched = int((in_memory & (bytes_ & ACCESSED != 0)).sum())
                host.minor_faults += touched
                fraction = touched / n
                vm.slow = fraction if vm.periods == 0 else _moved(vm.slow, fraction, SLOW_GAIN)
                vm.fast = fraction if vm.periods == 0 else _moved(vm.fast, fraction, FAST_GAIN)
                vm.periods += 1
            vm.samples = host.sample_pages
            key = rng.stream(host.seed, rng.SAMPLE, vm.vm, host.tick)
            ranks = np.sort(below(key, np.arange(vm.samples), vm.resident + vm.shared))
            in_memory = is_in_memory(page)
            st.sampled[v, : vm.samples] = np.flatnonzero(in_memory)[ranks]
            page[st.sampled[v, : vm.samples]] &= ~ACCESSED
            past_ns = vm.clock_ns - vm.period_start_ns
            vm.period_start_ns = vm.clock_ns - past_ns % (host.sample_ms * 1_000_000)


def _moved(average: float, value: float, gain: float) -> float:
    return average + gain * (value - average)
