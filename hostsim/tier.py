"""Memory tiers: DRAM, and NVMe below it (vSphere 8U3). Cold pages go down, those touched come up.

Fresh pages lie in DRAM while it has room. While less of it is free than the goal, a hand goes round
the private pages there, as in CLOCK: one accessed since it was last looked at is marked as not
accessed, one that was not goes down. The hand goes round once in a sampling period at most, so what
is cold is what `sample` would not call active. A quiet host, with DRAM to spare, looks at nothing.
A guest that touches a page on NVMe waits for it; where DRAM has room the page stays there. Shared
frames come up, too, but never go down: nobody knows who else reads them. Nothing here decides
whether memory is short: as on any host, that is for all frames together.
"""

from __future__ import annotations

from hostsim import large
from hostsim.frames import kind_of, set_kind
from hostsim.jit import i64, kernel, small
from hostsim.state import ACCESSED, KIND, RESIDENT, STATE, TIER, HostState, count_vms

BUSY = i64(-5)
"""Why a touch of a page on NVMe stalls: the device has done what it can in this step."""


@small
def is_short(st: HostState) -> bool:
    """Whether less DRAM is free than should be. Never on a host without tiers."""
    return st.host[0].highmem_free < st.host[0].tier_goal


@small
def _move(st: HostState, v: int, ppn: int, kind: int) -> None:
    """A page's frame moves to a free one of the other tier. The caller saw that there is one."""
    if st.host[0].large_slots > 0:
        large.split(st, v, ppn)
    set_kind(st, v, ppn, kind)
    st.host[0].highmem_free += -1 if kind == KIND else 1
    st.host[0].tier_io_left -= 1


@kernel
def reach(st: HostState, v: int, ppn: int) -> int:
    """A page in memory is touched: the price in ns of one page, 0 in DRAM, or BUSY."""
    host = st.host[0]
    if kind_of(st, st.vms[v].base_slot + ppn) == KIND:
        return i64(0)
    if host.tier_io_left <= 0:
        return BUSY
    host.tier_touches += 1
    st.vms[v].cause = TIER
    if host.highmem_free > 0:
        _move(st, v, ppn, KIND)
        host.tier_ups += 1
    else:
        host.tier_io_left -= 1
    return host.tier_latency_ns


@small
def _goes_on(st: HostState) -> bool:
    """Whether one more cold page should go down, and can."""
    host = st.host[0]
    return is_short(st) and host.free > host.highmem_free and host.tier_io_left > 0


@kernel
def _set_aside(st: HostState, v: int) -> None:
    """Pages of the running sample are the sampler's: they look accessed, and are noted as 2 * PPN,
    + 1 for those that are."""
    vm = st.vms[v]
    for i in range(vm.samples):
        ppn = st.sampled[v, i]
        st.sampled[v, i] = 2 * ppn + (i64(st.page[vm.base_slot + ppn]) & ACCESSED != 0)
    for i in range(vm.samples):
        slot = vm.base_slot + st.sampled[v, i] // 2
        st.page[slot] = i64(st.page[slot]) | ACCESSED


@kernel
def _put_back(st: HostState, v: int) -> None:
    """End of `_set_aside`."""
    vm = st.vms[v]
    for i in range(vm.samples):
        noted = st.sampled[v, i]
        slot = vm.base_slot + noted // 2
        st.page[slot] = i64(st.page[slot]) & ~ACCESSED | noted % 2 * ACCESSED
        st.sampled[v, i] = noted // 2


@kernel
def look(st: HostState, v: int, first: int, n: int) -> int:
    """Look at up to `n` pages of a VM from `first` on, while DRAM is short. Returns how many."""
    base, done = st.vms[v].base_slot, i64(0)
    _set_aside(st, v)
    while done < n and _goes_on(st):
        slot = base + first + done
        byte = i64(st.page[slot])
        if byte & (STATE | KIND) == RESIDENT | KIND:
            if byte & ACCESSED != 0:
                st.page[slot] = byte & ~ACCESSED
            else:
                _move(st, v, first + done, i64(0))
                st.host[0].tier_downs += 1
        done += 1
    _put_back(st, v)
    return done


@kernel
def make_room(st: HostState) -> None:
    """Look for cold pages, from where the hand stands in the memory of all VMs, in id order."""
    host, n = st.host[0], count_vms(st)
    total = i64(0)
    for i in range(n):
        total += st.vms[st.order[i]].size_slots
    host.tier_carry = host.tier_carry % host.sample_ms + total * host.dt_ms
    left = min(host.tier_carry // host.sample_ms, total)
    if left == 0:
        return
    hand = host.tier_hand % total
    while left > 0 and _goes_on(st):
        i, ppn = i64(0), hand
        while ppn >= st.vms[st.order[i]].size_slots:
            ppn -= st.vms[st.order[i]].size_slots
            i += 1
        v = st.order[i]
        done = look(st, v, ppn, min(left, st.vms[v].size_slots - ppn))
        left -= done
        hand = (hand + done) % total
    host.tier_hand = hand
