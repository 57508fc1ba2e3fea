"""Hot I/O page remapping [P 7]: a page that is copied at transmits often moves to low memory.

The host counts copies in a direct-mapped table, as ESX does in the cache of its transmit path: one
counter where a page's name hashes to, lost when another page that is copied needs the place. A
page's count ends when the page moves or leaves memory. A shared frame moves for all its holders;
only the count of the one that was transmitted ends. Nothing here decides whether a page moves.
"""

from __future__ import annotations

import numpy as np

from hostsim import large, rng
from hostsim.frames import set_kind
from hostsim.jit import i64, kernel, small
from hostsim.ranks import Kind, place_of
from hostsim.state import KIND, PPN_BITS, RESIDENT, STATE, HostState, count_vms

REMAP = ("never", "free", "random")
NEVER, FREE_ONLY, RANDOM = map(i64, range(3))
"""Whether pages move, and what happens when low memory is full."""
LOOKS = 256
"""Random pages looked at for one that makes way, before a draw among all there are."""
_RESIDENT = np.uint8(RESIDENT)
PRIVATE_LOW: Kind = (np.uint8(STATE | KIND), _RESIDENT, _RESIDENT, _RESIDENT, _RESIDENT)
"""Pages that may make way: private ones, whose frame lies low."""


@small
def _name(st: HostState, v: int, ppn: int) -> int:
    return st.vms[v].vm << PPN_BITS | ppn


@small
def _counter_of(st: HostState, name: int) -> int:
    """Where a page's counter is, if it has one. By VM id: rows depend on who was here before."""
    return i64(rng.mix(np.uint64(name)) % np.uint64(st.copied.shape[0]))


@kernel
def forget(st: HostState, v: int, ppn: int) -> None:
    """The count of a page ends."""
    if st.host[0].highmem == 0:  # nothing is copied
        return
    name = _name(st, v, ppn)
    i = _counter_of(st, name)
    if st.copied[i, 0] == name:
        st.copied[i, 0] = -1
        st.copied[i, 1] = -1


@kernel
def count_copy(st: HostState, v: int, ppn: int) -> int:
    """One copy more of a page. Returns how many there are since its count began."""
    name = _name(st, v, ppn)
    i = _counter_of(st, name)
    if st.copied[i, 0] != name:
        st.copied[i, 0] = name
        st.copied[i, 1] = 0
    st.copied[i, 1] += 1
    return st.copied[i, 1]


@kernel
def move(st: HostState, v: int, ppn: int) -> None:
    """A page's frame moves to a free one of low memory. The caller saw that there is one."""
    large.split(st, v, ppn)
    set_kind(st, v, ppn, 0)
    st.host[0].highmem_free += 1
    st.host[0].remaps += 1
    forget(st, v, ppn)


@kernel
def exchange(st: HostState, v: int, ppn: int, victim: int) -> None:
    """A page's frame, which lies high, and that of `victim`, from `find_victim`, change places."""
    other_v, other_ppn = victim >> PPN_BITS, victim & ((1 << PPN_BITS) - 1)
    large.split(st, v, ppn)
    large.split(st, other_v, other_ppn)
    set_kind(st, v, ppn, 0)
    set_kind(st, other_v, other_ppn, KIND)
    st.host[0].remaps += 1
    forget(st, v, ppn)
    forget(st, other_v, other_ppn)


@small
def _n_private_low(st: HostState, v: int) -> int:
    return st.vms[v].resident - st.vms[v].highmem


@kernel
def find_victim(st: HostState, key: np.uint64, draw: int) -> int:
    """A random private page in low memory of any VM, as row << PPN_BITS | ppn, or -1."""
    n = count_vms(st)
    total, n_low = i64(0), i64(0)
    for i in range(n):
        total += st.vms[st.order[i]].size_slots
        n_low += _n_private_low(st, st.order[i])
    if n_low == 0:
        return -1
    first_draw = draw * (LOOKS + 1)
    for look in range(LOOKS):
        ppn = rng.below(key, first_draw + look, total)
        i = i64(0)
        while ppn >= st.vms[st.order[i]].size_slots:
            ppn -= st.vms[st.order[i]].size_slots
            i += 1
        v = st.order[i]
        if i64(st.page[st.vms[v].base_slot + ppn]) & (STATE | KIND) == RESIDENT:
            return v << PPN_BITS | ppn
    rank = rng.below(key, first_draw + LOOKS, n_low)
    i = i64(0)
    while rank >= _n_private_low(st, st.order[i]):
        rank -= _n_private_low(st, st.order[i])
        i += 1
    vm = st.vms[st.order[i]]
    page = st.page[vm.base_slot : vm.base_slot + vm.size_slots]
    return st.order[i] << PPN_BITS | place_of(page, PRIVATE_LOW, rank)
