"""A VM on its way to another host: content and state travel, frames do not.

At the source the VM's pages are read as they are; at the target every page that was in memory takes
a frame of its own there, and sharing finds equal pages anew. A compressed page is decompressed: its
content is in the source's memory, not on a disk that both hosts reach, so it is sent as those in
memory are. One in the source's host cache is sent, too, and is swapped on the datastore after that.
Swapped, ballooned and untouched pages stay what they are. Random streams are keyed by the VM, so
the guest goes on as it would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hostsim.frames import hold, take_frames
from hostsim.host import Host
from hostsim.naming import ranges_of, to_host, to_local
from hostsim.packing import (
    SPECIFIED,
    PackingError,
    out_of_range,
    pack_array,
    pack_spec,
    require_equal,
    require_keys,
    seal,
    unpack_array,
    unpack_spec,
    unseal,
)
from hostsim.records import VM
from hostsim.spec import VmSpec
from hostsim.state import (
    COMPRESSED,
    HIGH,
    HINT,
    KIND,
    N_CAUSES,
    RESIDENT,
    SHARED,
    STALE,
    STATE,
    STATES,
    Array,
)
from hostsim.units import VmId

PACKED_AS = "vm"
BELONGS_TO_HOST = (
    *("base_slot", "program", "program_len", "replay", "pattern", "zero", "image_base", "app_base"),
    *("dup_base", "image_family", "app_family", "salt", "sharing", "balloon_max"),
    *("overhead", "overhead_due", "overhead_highmem", "highmem", "target", "balloon_target"),
    *("gave", "blocked", "compressed_max", "regions", "large", "large_base", "large_carry"),
)
"""Fields of a VM row that the target gives anew: where things lie, its options, its policy."""

COMPRESSED_FIELDS = ("compressed", "compressed_quarters", "compressed_highmem", "oldest", "newest")
"""Of a cache that does not travel."""

DTYPES: dict[str, np.dtype[Any]] = {
    "row": VM,
    "page": np.dtype(np.uint8),
    "content": np.dtype(np.uint32),
    "sampled": np.dtype(np.int64),
    "lost": np.dtype(np.int64),
    "debts": np.dtype(np.int64),
}
"""Arrays of a VmImage."""


@dataclass(frozen=True)
class VmImage:
    """One VM without a host. Arrays may be read-only: import copies them.

    row      (1,) VM               scalars, those that belong to a host zero; no page is SHARED or
                           COMPRESSED
    page     (size_slots,) uint8   state bytes, without hints
    content  (size_slots,) uint32  content words as `naming.to_local` names them
    sampled  (n_samples,) int64    PPNs of the running sampling period
    lost     (9,) int64            ns lost since the last measurement, by cause
    debts    (9,) int64            ns still to be lost, by cause
    """

    spec: VmSpec
    row: Array
    page: Array
    content: Array
    sampled: Array
    lost: Array
    debts: Array


def export_vm(host: Host, vm: VmId) -> VmImage:
    """The VM as it is; it stays on until it is powered off. Raises ValueError when it is not on."""
    st, v = host.state, host.row_of(vm)
    row = st.vms[v]
    cut = slice(row.base_slot, row.base_slot + row.size_slots)
    page = st.page[cut].astype(np.int64) & ~(HINT | KIND)
    is_in_memory = (page & STATE == SHARED) | (page & STATE == COMPRESSED)
    page = np.where(is_in_memory, page & ~STATE | RESIDENT, page)
    words = to_local(st.content[cut].astype(np.int64) & ~STALE, ranges_of(host, v))
    plain = st.vms[v : v + 1].copy()
    plain["resident"] += plain["shared"] + plain["compressed"]
    for name in ("shared", *COMPRESSED_FIELDS, *BELONGS_TO_HOST):
        plain[name] = 0
    return VmImage(
        spec=host.specs[vm],
        row=plain.view(np.ndarray),
        page=page.astype(np.uint8),
        content=words.astype(np.uint32),
        sampled=st.sampled[v, : row.samples].copy(),
        lost=st.lost[v].copy(),
        debts=st.debts[v].copy(),
    )


def why_refused(host: Host, image: VmImage) -> str | None:
    """The reason why `host` cannot take the VM now, or None."""
    reason = host.why_refused(image.spec)
    there_are = host.state.host[0].free + host.state.host[0].held
    if reason is None and there_are < int(image.row["resident"][0]):
        return "memory-frames"
    return reason


def import_vm(host: Host, image: VmImage) -> None:
    """The VM goes on here. Raises ValueError, and changes nothing, when it is refused."""
    reason = why_refused(host, image)
    if reason is not None:
        raise ValueError(f"host {host.host} refuses VM {image.spec.vm}: {reason}")
    host.power_on(image.spec)
    st, v = host.state, host.row_of(image.spec.vm)
    row = st.vms[v]
    try:
        require_equal(image.row[0], row, [n for n in SPECIFIED if n not in BELONGS_TO_HOST])
        words = to_host(image.content.astype(np.int64), ranges_of(host, v))
    except ValueError:
        host.power_off(image.spec.vm)
        raise
    for name in VM.names or ():
        if name not in BELONGS_TO_HOST:
            row[name] = image.row[name][0]
    row.samples = min(row.samples, st.sampled.shape[1])
    cut = slice(row.base_slot, row.base_slot + row.size_slots)
    st.content[cut] = words
    in_memory = image.page & int(STATE) == int(RESIDENT)
    hold(st, max(int(st.host[0].held) - int(row.resident), 0))  # it was held for this
    row.highmem = take_frames(st, int(row.resident))
    is_high = in_memory & (np.cumsum(in_memory) <= row.highmem)
    st.page[cut] = np.where(is_high, image.page | int(KIND), image.page)
    _back_by_large_pages(host, v)
    st.sampled[v, : row.samples] = image.sampled[: row.samples]
    st.lost[v], st.debts[v] = image.lost, image.debts


def _back_by_large_pages(host: Host, v: int) -> None:
    """Regions of a VM that has arrived lie in large pages where all of one is in memory, while that
    is above the high boundary."""
    st, row, top = host.state, host.state.vms[v], host.state.host[0]
    if top.large_slots == 0 or top.level != HIGH or top.free < top.large_floor:
        return
    n = int(row.regions * top.large_slots)
    page = st.page[row.base_slot : row.base_slot + n].reshape(-1, top.large_slots)
    whole = (page & int(STATE) == int(RESIDENT)).all(axis=1)
    st.large[row.large_base : row.large_base + row.regions] = whole
    row.large = whole.sum()


def pack(image: VmImage) -> bytes:
    """The VM as bytes."""
    arrays = {name: pack_array(getattr(image, name)) for name in DTYPES}
    return seal(PACKED_AS, {"spec": pack_spec(image.spec), "arrays": arrays})


def unpack(data: bytes) -> VmImage:
    """The VM that `pack` wrote. Raises PackingError for anything else."""
    return unseal(PACKED_AS, data, _read)


def _read(body: dict[str, Any]) -> VmImage:
    require_keys(body, ("spec", "arrays"))
    packed = body["arrays"]
    require_keys(packed, DTYPES)
    row = unpack_array(packed["row"], VM, (1,))
    n = int(row["size_slots"][0])
    shapes: dict[str, tuple[int | None, ...]] = {
        "row": (1,),
        "page": (n,),
        "content": (n,),
        "sampled": (int(row["samples"][0]),),
        "lost": (N_CAUSES,),
        "debts": (N_CAUSES,),
    }
    arrays = {name: unpack_array(packed[name], DTYPES[name], shapes[name]) for name in DTYPES}
    image = VmImage(spec=unpack_spec(body["spec"]), **arrays)
    _require_sound(image)
    return image


def _require_sound(image: VmImage) -> None:
    """Every index that compiled code will follow is in range; counters are what they count."""
    row = image.row[0]
    states = np.bincount(image.page & int(STATE), minlength=8)
    kept = [int(row[name]) for name in STATES]
    wrong = [] if 0 <= row["row"] < len(image.spec.program) else ["program"]
    if (
        states.tolist() != [*kept, 0, 0]
        or kept[int(SHARED)] != 0
        or any(row[name] for name in COMPRESSED_FIELDS)
    ):
        wrong.append("page states")
    if (image.page & int(HINT | KIND)).any():
        wrong.append("hints")
    if int(row["vm"]) != image.spec.vm:
        wrong.append("id")
    wrong += out_of_range(row, image.sampled, image.spec)
    if wrong:
        raise PackingError(f"VM: {wrong[0]} out of range")
