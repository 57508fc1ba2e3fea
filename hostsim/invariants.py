"""The truths of the memory manager: one named assertion each, over the arrays of one host.

Each function recounts from pages what the state keeps as a number. `check` runs all of them; tests
do so after every step, a run after every epoch when asked to.
"""

from __future__ import annotations

import numpy as np

from hostsim.compress import NEWER, OLDER, count_quarters
from hostsim.state import (
    ACCESSED,
    ANON,
    BALLOONED,
    CACHE,
    COMPRESSED,
    DRIVER_PRESENT,
    FREE,
    HINT,
    INDEX,
    KIND,
    PPN_BITS,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    STATES,
    SWAPPED,
    UNIQUE,
    UNTOUCHED,
    USE_SHIFT,
    Array,
    HostState,
    compressed_frames,
    count_vms,
)


class BrokenInvariantError(AssertionError):
    """A truth of the memory manager does not hold: the run must end."""


def _require(holds: bool, name: str, numbers: str) -> None:
    if not holds:
        raise BrokenInvariantError(f"{name}: {numbers}")


def _pages_of(st: HostState, v: int) -> tuple[Array, Array]:
    """State bytes and content words of a VM, (size,) int64 each."""
    cut = slice(st.vms[v].base_slot, st.vms[v].base_slot + st.vms[v].size_slots)
    return st.page[cut].astype(np.int64), st.content[cut].astype(np.int64)


def page_states_are_exclusive(st: HostState, v: int) -> None:
    """Each counter of a VM is its number of pages in that state, and they sum to its size."""
    pages, _ = _pages_of(st, v)
    counted = np.bincount(pages & STATE, minlength=len(STATES))
    kept = [int(st.vms[v][name]) for name in STATES]
    _require(counted.tolist() == kept, "page states", f"VM row {v}: {counted} counted, {kept} kept")


def balloon_is_accounted(st: HostState, v: int) -> None:
    """`backed` counts the ballooned pages that gave the host something; a balloon has a driver."""
    pages, _ = _pages_of(st, v)
    ballooned = pages & STATE == BALLOONED
    backed = int((ballooned & (pages & ACCESSED != 0)).sum())
    vm = st.vms[v]
    _require(backed == vm.backed, "balloon", f"VM row {v}: {backed} backed, {vm.backed} kept")
    _require(
        vm.driver == DRIVER_PRESENT or vm.ballooned == 0,
        "balloon",
        f"VM row {v}: {vm.ballooned} pages without a driver",
    )


def swap_space_holds(st: HostState, v: int) -> None:
    """A VM's swapped pages fit its swap space, which reaches beyond size - reservation only for
    what was swapped when the reservation was raised."""
    vm = st.vms[v]
    _require(
        vm.swapped <= vm.swap_space, "swap space", f"VM row {v}: {vm.swapped} of {vm.swap_space}"
    )


def compression_cache_is_accounted(st: HostState, v: int) -> None:
    """Each COMPRESSED page lies in the cache once, from the oldest to the newest; they take what
    is kept, which is no more than they may."""
    vm = st.vms[v]
    if st.host[0].compression == 0:
        kept = (vm.compressed, vm.compressed_quarters, vm.oldest, vm.newest)
        _require(not any(kept), "compression cache", f"VM row {v}: {kept} on a host without")
        return
    pages, _ = _pages_of(st, v)
    held = pages & STATE == COMPRESSED
    by_age = st.by_age[vm.base_slot : vm.base_slot + vm.size_slots].astype(np.int64)
    linked = np.flatnonzero(by_age.any(axis=1) & ~held)
    _require(len(linked) == 0, "compression cache", f"VM row {v}: links of pages {linked[:3]}")
    # Each page's place, counted from the newest: how many steps lead beyond it, found by doubling.
    end = int(vm.size_slots)
    newer = np.append(np.where(by_age[:, NEWER] > 0, by_age[:, NEWER] - 1, end), end)
    older = np.append(by_age[:, OLDER] - 1, vm.newest - 1)
    at, place = newer, np.append(held, False).astype(np.int64)
    for _ in range(end.bit_length()):
        at, place = at[at], place + place[at]
    in_order = np.argsort(np.where(held, -place[:-1], 1), kind="stable")[: held.sum()]
    _require(
        np.sort(place[:-1][held]).tolist() == list(range(1, len(in_order) + 1))
        and newer[in_order].tolist() == [*in_order[1:], end][: len(in_order)]
        and older[in_order].tolist() == [-1, *in_order[:-1]][: len(in_order)]
        and [vm.oldest, vm.newest] == ([*(1 + in_order[[0, -1]])] if len(in_order) else [0, 0]),
        "compression cache",
        f"VM row {v}: {len(in_order)} pages are not in one order from {vm.oldest} to {vm.newest}",
    )
    quarters, kept = count_quarters(st, v), vm.compressed_quarters
    _require(
        quarters == kept <= vm.compressed_max,
        "compression cache",
        f"VM row {v}: {quarters} quarters counted, {kept} kept, {vm.compressed_max} at most",
    )


def large_pages_are_whole(st: HostState, v: int) -> None:
    """All pages of a region that a large page backs are RESIDENT; the VM counts such regions."""
    vm, size = st.vms[v], max(int(st.host[0].large_slots), 1)
    bits = st.large[vm.large_base : vm.large_base + vm.regions]
    pages, _ = _pages_of(st, v)
    whole = (pages[: vm.regions * size].reshape(-1, size) & STATE == RESIDENT).all(axis=1)
    wrong = np.flatnonzero((bits > 1) | (bits > whole))
    _require(len(wrong) == 0, "large pages", f"VM row {v}: regions {wrong[:3]} are not whole")
    _require(bits.sum() == vm.large, "large pages", f"VM row {v}: {bits.sum()}, {vm.large} kept")


def dropped_pages_are_on_the_guests_disk(st: HostState, v: int) -> None:
    """What the host dropped was clean cache; the guest may have freed it since."""
    pages, _ = _pages_of(st, v)
    uses = pages[(pages & STATE == SWAPPED) & (pages & ACCESSED != 0)] >> USE_SHIFT
    lost = int(((uses != CACHE) & (uses != FREE)).sum())
    _require(lost == 0, "dropped pages", f"VM row {v}: {lost} that no disk holds")


def guest_use_is_accounted(st: HostState, v: int) -> None:
    """The guest's own counts of free, cache, anonymous and paged-out pages are right."""
    pages, _ = _pages_of(st, v)
    state, use = pages & STATE, pages >> USE_SHIFT
    inside = (state != UNTOUCHED) & (state != BALLOONED)
    free = (state != BALLOONED) & ((state == UNTOUCHED) | (use == FREE))
    outside_anon = ~inside & (use == ANON)
    counted = [
        int(free.sum()),
        int((inside & (use == CACHE)).sum()),
        int((inside & (use == ANON)).sum()),
        int(outside_anon.sum()),
    ]
    kept = [int(st.vms[v][name]) for name in ("guest_free", "cache", "anon", "guest_swapped")]
    _require(counted == kept, "guest use", f"VM row {v}: {counted} counted, {kept} kept")


def references_are_conserved(st: HostState) -> None:
    """References of each content are the pages in state SHARED that hold it; none is unique."""
    kept, refs = st.refs, np.zeros_like(st.refs)
    for v in st.order[: count_vms(st)]:
        pages, words = _pages_of(st, v)
        shared = words[pages & STATE == SHARED]
        _require(not (shared & (UNIQUE | STALE)).any(), "references", f"VM row {v}: not common")
        refs += np.bincount(shared & INDEX, minlength=len(refs))
    bad = np.flatnonzero(refs != kept)
    _require(
        len(bad) == 0,
        "references",
        f"content {bad[:3]}: {refs[bad[:3]]} pages, {kept[bad[:3]]} references",
    )
    distinct = int((refs > 0).sum())
    kept = st.host[0].distinct
    _require(distinct == kept, "distinct shared frames", f"{distinct} counted, {kept} kept")


def frames_are_conserved(st: HostState) -> None:
    """Private frames + shared frames + compression caches + overheads + frames kept for arriving
    VMs + free = machine memory; free is not negative."""
    host = st.host[0]
    rows = st.order[: count_vms(st)]
    used = int(st.vms["resident"][rows].sum()) + int(host.distinct) + int(host.overhead)
    used += sum(int(compressed_frames(st, v)) for v in rows)
    used += int(host.held)
    overhead = int(st.vms["overhead"][rows].sum())
    _require(overhead == host.overhead, "overheads", f"{overhead} of VMs, {host.overhead} kept")
    _require(
        used + host.free == host.machine and host.free >= 0,
        "frames",
        f"{used} used + {host.free} free != {host.machine}",
    )


def highmem_is_conserved(st: HostState) -> None:
    """High frames of private pages, shared contents, compression caches and overheads, held and
    free ones = all there are; low frames likewise. Only what has a frame has a kind."""
    host = st.host[0]
    rows = st.order[: count_vms(st)]
    private = 0
    for v in rows:
        pages, _ = _pages_of(st, v)
        high = (pages & KIND != 0) & (pages & STATE == RESIDENT)
        kept = st.vms[v].highmem
        _require(high.sum() == kept, "kinds", f"VM row {v}: {high.sum()} counted, {kept} kept")
        private += int(kept)
    shared = st.shared_kind != 0
    wrong = np.flatnonzero(shared & ((st.refs == 0) | (st.shared_kind != KIND)))
    _require(len(wrong) == 0, "kinds", f"content {wrong[:3]}: {st.shared_kind[wrong[:3]]}")
    overhead = int(st.vms["overhead_highmem"][rows].sum())
    caches = int(st.vms["compressed_highmem"][rows].sum())
    used = private + int(shared.sum()) + overhead + caches
    used += int(host.held_highmem)
    _require(
        used + host.highmem_free == host.highmem and 0 <= host.highmem_free <= host.free,
        "high frames",
        f"{used} used + {host.highmem_free} free of {host.free} != {host.highmem}",
    )
    beyond = [int(v) for v in rows if not 0 <= st.vms[v].overhead_highmem <= st.vms[v].overhead]
    _require(not beyond, "high frames", f"VM rows {beyond}: of more overhead than there is")
    beyond = [
        int(v) for v in rows if not 0 <= st.vms[v].compressed_highmem <= compressed_frames(st, v)
    ]
    _require(not beyond, "high frames", f"VM rows {beyond}: of more cache than there is")


def host_cache_is_accounted(st: HostState) -> None:
    """Pages with a kind and no frame are SWAPPED, not dropped, and as many as the host cache has in
    use, which is no more than it has."""
    host, used = st.host[0], 0
    for v in st.order[: count_vms(st)]:
        pages, _ = _pages_of(st, v)
        cached = pages[(pages & KIND != 0) & (pages & STATE != RESIDENT)]
        wrong = (cached & STATE != SWAPPED) | (cached & ACCESSED != 0)
        _require(not wrong.any(), "kinds", f"VM row {v}: {wrong.sum()} pages without a frame")
        used += len(cached)
    _require(
        used == host.ssd_used <= host.ssd_slots,
        "host cache",
        f"{used} counted, {host.ssd_used} kept, {host.ssd_slots} at most",
    )


def tiers_are_sound(st: HostState) -> None:
    """Nothing comes up that was not touched; a host without tiers moves nothing, one with them
    copies nothing for devices; no sample is set aside between two looks."""
    host = st.host[0]
    moved = [int(host[name]) for name in ("tier_touches", "tier_ups", "tier_downs", "tier_goal")]
    _require(host.tiered == 1 or not any(moved), "tiers", f"{moved} on a host without")
    _require(moved[1] <= moved[0], "tiers", f"{moved[1]} came up, {moved[0]} touched")
    copied = int((st.copied >= 0).any(axis=1).sum())
    _require(host.tiered == 0 or copied == 0, "tiers", f"{copied} pages copied for devices")
    for v in st.order[: count_vms(st)]:
        vm = st.vms[v]
        sampled = st.sampled[v, : vm.samples]
        inside = (sampled >= 0) & (sampled < vm.size_slots)
        _require(bool(inside.all()), "samples", f"VM row {v}: {sampled[~inside][:3]}")


def hints_are_owned(st: HostState) -> None:
    """Each hint belongs to one RESIDENT page that says so, and holds its content unless stale."""
    owned = 0
    kept = st.hints
    expected = np.full_like(kept, -1)
    stale = st.stale_contents
    stale_of = dict(zip(kept[stale].tolist(), stale.tolist(), strict=True))
    _require(
        len(stale_of) == len(stale), "stale hints", f"{len(stale)} entries, {len(stale_of)} pages"
    )
    for v in st.order[: count_vms(st)].tolist():
        pages, words = _pages_of(st, v)
        hinting = np.flatnonzero(pages & HINT)
        _require(
            bool((pages[hinting] & STATE == RESIDENT).all()), "hints", f"VM row {v}: not resident"
        )
        owned += len(hinting)
        # Most hints are of unique pages: bits alone. A stale hint's content is in the table.
        fresh = hinting[words[hinting] & (STALE | UNIQUE) == 0]
        expected[words[fresh] & INDEX] = v << PPN_BITS | fresh
        for ppn in hinting[words[hinting] & STALE != 0].tolist():
            key = v << PPN_BITS | ppn
            if key in stale_of:
                expected[stale_of.pop(key)] = key
    _require(not stale_of, "stale hints", f"{len(stale_of)} without a page that owns them")
    bad = np.flatnonzero(expected != kept)
    _require(len(bad) == 0, "hints", f"content {bad[:3]}: {kept[bad[:3]]}, {expected[bad[:3]]}")
    _require(
        owned == st.host[0].hint_frames,
        "hint frames",
        f"{owned} counted, {st.host[0].hint_frames} kept",
    )


def check(st: HostState) -> None:
    """Every truth; raises BrokenInvariantError with its name and the numbers."""
    for v in st.order[: count_vms(st)].tolist():
        page_states_are_exclusive(st, v)
        balloon_is_accounted(st, v)
        swap_space_holds(st, v)
        compression_cache_is_accounted(st, v)
        large_pages_are_whole(st, v)
        dropped_pages_are_on_the_guests_disk(st, v)
        guest_use_is_accounted(st, v)
    references_are_conserved(st)
    frames_are_conserved(st)
    highmem_is_conserved(st)
    host_cache_is_accounted(st)
    tiers_are_sound(st)
    hints_are_owned(st)
