"""Frames of machine memory by kind: high ones, and low ones.

High frames are those that devices cannot reach; or, on a host with memory tiers, those of DRAM,
with NVMe as the low ones. No host has both.

Free frames are counts: `free` of both kinds, `highmem_free` of the high ones; so are those held for
VMs that are on their way from another host. A frame in use has
its kind with what names it: the KIND bit of a private page, `shared_kind` of a shared content; a
VM's overhead is a count again. A fresh frame is a high one while there is one, so that low memory
is left to those who need it, and DRAM is used first; a frame that is given back is free of the
same kind.
"""

from __future__ import annotations

from hostsim.jit import i64, kernel, small
from hostsim.state import INDEX, KIND, SHARED, STATE, HostState


@kernel
def take_frames(st: HostState, n: int) -> int:
    """`n` free frames are used; the caller saw that there are. Returns how many lie high."""
    high = min(n, st.host[0].highmem_free)
    st.host[0].free -= n
    st.host[0].highmem_free -= high
    return high


@kernel
def hold(st: HostState, n: int) -> None:
    """`n` frames are kept for VMs on their way here; the caller saw that as many are free."""
    host = st.host[0]
    host.free += host.held
    host.highmem_free += host.held_highmem
    host.held_highmem = take_frames(st, n)
    host.held = n


@small
def take_frame(st: HostState) -> int:
    """One free frame is used; the caller saw that there is one. Returns its kind: KIND or 0."""
    return take_frames(st, 1) * KIND


@small
def own(st: HostState, v: int, slot: int, kind: int) -> None:
    """A page that has become RESIDENT has a frame of its own, of this kind."""
    st.page[slot] = i64(st.page[slot]) | kind
    st.vms[v].resident += 1
    st.vms[v].highmem += i64(kind == KIND)


@small
def disown(st: HostState, v: int, slot: int) -> int:
    """A RESIDENT page, about to be something else, has no frame of its own. Returns its kind."""
    kind = i64(st.page[slot]) & KIND
    st.vms[v].resident -= 1
    st.vms[v].highmem -= i64(kind == KIND)
    return kind


@small
def release_frame(st: HostState, kind: int) -> None:
    """A frame of this kind, KIND or 0, is free."""
    st.host[0].free += 1
    st.host[0].highmem_free += i64(kind == KIND)


@small
def kind_of(st: HostState, slot: int) -> int:
    """Kind of the frame that a RESIDENT or SHARED page has: KIND when it is a high one, or 0."""
    byte = i64(st.page[slot])
    if byte & STATE == SHARED:
        return i64(st.shared_kind[i64(st.content[slot]) & INDEX])
    return byte & KIND


@small
def set_kind(st: HostState, v: int, ppn: int, kind: int) -> None:
    """The frame that a RESIDENT or SHARED page has moved, to the other kind of memory."""
    slot = st.vms[v].base_slot + ppn
    byte = i64(st.page[slot])
    if byte & STATE == SHARED:
        st.shared_kind[i64(st.content[slot]) & INDEX] = kind
    else:
        st.page[slot] = byte & ~KIND | kind
        st.vms[v].highmem += 1 if kind == KIND else -1
