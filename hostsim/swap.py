"""Host swap [P 3.3]: random victims, shared before they are swapped, within the device's budget.

Victims are drawn uniformly from the pages whose loss frees a frame: RESIDENT, and SHARED with one
reference. Before a page is written it is tried for sharing [P 4.3]; a miss leaves no hint. Clean
cache may be dropped instead, see `config.Paging`, and what compresses kept so, see `compress`. A
victim is taken only while the device takes a page, as it may have to. Which VMs are paged, and how
much, is decided by the pipeline and `reclaim`.
"""

from __future__ import annotations

import numpy as np

from hostsim import breaking, compress, fault, large, rng, share
from hostsim.ahead import FAR, NEAR, fetch_frame, fetch_page
from hostsim.jit import i64, kernel, small
from hostsim.state import (
    ACCESSED,
    CACHE,
    COMPRESSED,
    INDEX,
    KIND,
    RESIDENT,
    SHARED,
    SWAPPED,
    HostState,
    refs_of,
    set_state,
    state_of,
    use_of,
)

LOOKS = 256
"""Random pages looked at for one victim, before victims are counted to draw among them."""


@small
def is_victim(st: HostState, slot: int) -> bool:
    """Whether swapping this page would free a frame."""
    state = state_of(st, slot)
    if state == SHARED:
        return refs_of(st, i64(st.content[slot]) & INDEX) == 1
    return state == RESIDENT


@small
def _first_look(st: HostState, v: int, key: np.uint64, draw: int) -> int:
    """Slot of the page that is looked at first for victim number `draw`."""
    vm = st.vms[v]
    return vm.base_slot + rng.below(key, draw * (LOOKS + 1), vm.size_slots)


@small
def find_victim(st: HostState, v: int, key: np.uint64, draw: int) -> int:
    """A random victim, or -1 when no page of the VM would free a frame."""
    vm = st.vms[v]
    first_draw = draw * (LOOKS + 1)
    for look in range(LOOKS):
        ppn = rng.below(key, first_draw + look, vm.size_slots)
        if is_victim(st, vm.base_slot + ppn):
            return ppn
    n_victims = 0
    for ppn in range(vm.size_slots):
        n_victims += is_victim(st, vm.base_slot + ppn)
    if n_victims == 0:
        return -1
    rank = rng.below(key, first_draw + LOOKS, n_victims)
    ppn = -1
    while rank >= 0:
        ppn += 1
        rank -= is_victim(st, vm.base_slot + ppn)
    return ppn


@small
def _has_host_cache(st: HostState) -> bool:
    """Whether the host cache takes one more page in this step."""
    return st.host[0].ssd_used < st.host[0].ssd_slots and st.host[0].ssd_io_left > 0


@small
def can_write(st: HostState) -> bool:
    """Whether a swap device takes one more page in this step."""
    host = st.host[0]
    return host.swap_cluster_left > 0 or host.swap_io_left > 0 or _has_host_cache(st)


@small
def write_one(st: HostState, slot: int) -> None:
    """A page that is SWAPPED goes to the host cache, if that takes it. Otherwise it joins the
    cluster being written; a new cluster is one operation."""
    host = st.host[0]
    host.swap_outs += 1
    if _has_host_cache(st):
        st.page[slot] = i64(st.page[slot]) | KIND
        host.ssd_used += 1
        host.ssd_io_left -= 1
        host.ssd_outs += 1
        return
    if host.swap_cluster_left == 0:
        host.swap_io_left -= 1
        host.swap_cluster_left = host.swap_cluster
    host.swap_cluster_left -= 1


@small
def has_swap_space(st: HostState, v: int) -> bool:
    """Whether one more page of the VM fits into its swap file (size - reservation)."""
    vm = st.vms[v]
    return vm.swapped < vm.size_slots - vm.reservation


@kernel
def keep_compressed(st: HostState, v: int, ppn: int) -> bool:
    """Put the victim into its VM's cache, if it compresses. False: it has to be swapped.

    Where the cache is full, its oldest pages make way: they are decompressed and swapped. While
    they cannot, as the device is busy or swap space full, the victim stays as it is.
    """
    vm = st.vms[v]
    quarters = compress.quarters_of(st, v, ppn)
    if quarters == 0 or quarters > vm.compressed_max:
        return False
    while vm.compressed_quarters + quarters > vm.compressed_max:
        if not can_write(st) or not has_swap_space(st, v):
            return True
        old = vm.oldest - 1
        compress.take_out(st, v, old)
        set_state(st, vm.base_slot + old, SWAPPED)
        vm.swapped += 1
        st.host[0].cache_evictions += 1
        write_one(st, vm.base_slot + old)
    fault.leave_memory(st, v, ppn, COMPRESSED)
    compress.put(st, v, ppn)
    st.host[0].compressions += 1
    return True


@small
def page_out(st: HostState, v: int, ppn: int) -> None:
    """Share the victim if an equal frame is indexed, drop it if the guest's disk has it, keep it
    compressed if the host does that, otherwise write it to swap."""
    host = st.host[0]
    slot = st.vms[v].base_slot + ppn
    tries = host.share_first == 1 and st.vms[v].sharing == 1
    if host.large_slots > 0 and tries and large.is_large(st, v, ppn):
        breaking.break_large(st, v, ppn)
        if state_of(st, slot) == SHARED:
            host.shared_before_swap += 1
            return
    if state_of(st, slot) == RESIDENT:
        host.stale_hints += share.drop_hint(st, v, ppn)
        if tries and share.match(st, v, ppn, 0) == 1:
            host.shared_before_swap += 1
            return
    is_clean = host.map_clean == 1 and use_of(st, slot) == CACHE
    if host.compression == 1 and not is_clean and keep_compressed(st, v, ppn):
        return
    fault.leave_memory(st, v, ppn, SWAPPED)
    if is_clean:
        st.page[slot] = i64(st.page[slot]) | ACCESSED
        host.swap_drops += 1
        return
    write_one(st, slot)


@kernel
def page_out_vm(st: HostState, v: int, n: int, free_goal: int) -> int:
    """Take up to `n` victims of one VM until `free_goal` slots are free. Returns how many.

    Ends early when the device's budget or the VM's swap space (size - reservation) is used up.
    """
    host = st.host[0]
    vm = st.vms[v]
    key = rng.stream(host.seed, rng.SWAP, vm.vm, host.tick)
    done = 0
    for draw in range(min(n, FAR)):
        fetch_page(st, _first_look(st, v, key, draw))
    while done < n and host.free < free_goal and can_write(st):
        if not has_swap_space(st, v):
            break
        fetch_page(st, _first_look(st, v, key, done + FAR))
        fetch_frame(st, _first_look(st, v, key, done + NEAR))
        ppn = find_victim(st, v, key, done)
        if ppn < 0:
            break
        page_out(st, v, ppn)
        done += 1
    return done
