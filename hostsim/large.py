"""Large pages: a region of 2 MiB of a guest's memory, backed by one page of the machine's.

One bit a region of consecutive slots says that it is. All its pages are RESIDENT then, and none is
shared or reclaimed before the large page is broken into small ones, which never grow together
again. Machine memory is taken as never fragmented: where enough is free, a large page can be had.
Nothing here decides when one is broken.
"""

from __future__ import annotations

from hostsim.frames import own, take_frame
from hostsim.jit import i64, kernel, small
from hostsim.state import HIGH, RESIDENT, HostState, set_state

LARGE_PAGES = 512
"""Pages in a large one: 2 MiB of 4 KiB."""


@small
def region_of(st: HostState, v: int, ppn: int) -> int:
    """Which bit of `large` is of the region that a page lies in, or -1: the host has no large
    pages, or it is in what is left of the VM behind its last whole region."""
    size = st.host[0].large_slots
    if size == 0 or ppn // size >= st.vms[v].regions:
        return i64(-1)
    return st.vms[v].large_base + ppn // size


@kernel
def is_large(st: HostState, v: int, ppn: int) -> bool:
    """Whether a page is part of a large one."""
    region = region_of(st, v, ppn)
    return region >= 0 and st.large[region] == 1


@kernel
def split(st: HostState, v: int, ppn: int) -> None:
    """If a page is part of a large one, that is broken into small ones."""
    if is_large(st, v, ppn):
        st.large[region_of(st, v, ppn)] = 0
        st.vms[v].large -= 1
        st.host[0].large_breaks += 1


@kernel
def back(st: HostState, v: int, ppn: int) -> bool:
    """Back the whole region of an UNTOUCHED page by a large page of zeros. Whether that was done.

    Not where the guest has used one of its pages before, nor where memory would be below the high
    boundary after it: then the page gets a small one.
    """
    host, vm = st.host[0], st.vms[v]
    size, region = host.large_slots, region_of(st, v, ppn)
    if region < 0 or host.level != HIGH or host.free - size < host.large_floor:
        return False
    first = vm.base_slot + ppn - ppn % size
    for slot in range(first, first + size):
        if st.page[slot] != 0:  # UNTOUCHED, and of no use to the guest
            return False
    for slot in range(first, first + size):
        set_state(st, slot, RESIDENT)
        own(st, v, slot, take_frame(st))
        st.content[slot] = vm.zero
    vm.untouched -= size
    host.zero_fills += size
    st.large[region] = 1
    vm.large += 1
    return True
