"""How a host's arrays grow and shrink as VMs come and go.

VMs that come at one time are let in together: each array is made anew once, not once for each VM.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hostsim.arrays import empty, window_space
from hostsim.composition import Composition, class_base, compose
from hostsim.guest_config import GuestImage
from hostsim.load import fill_vms, program_slots
from hostsim.records import VM
from hostsim.replay import EVENT
from hostsim.spec import VmSpec
from hostsim.state import Array, HostState

_NO_EVENTS = np.zeros(0, EVENT)


def filled(
    specs: Sequence[VmSpec], layouts: Sequence[Composition], host: Any, salts: Sequence[int]
) -> Array:
    """(n,) VM, VMs' rows but for where their slots, programs and contents lie. host: the host's.

    Raises ValueError for a replay that its VM cannot hold.
    """
    rows = np.zeros(len(specs), VM)
    fill_vms(rows, specs, layouts, host)
    rows["salt"] = salts
    rows["image_family"] = image = np.array([spec.image_range for spec in specs], np.int64)
    application = np.array([spec.application_range for spec in specs], np.int64)
    # Of no group: its application contents are the image's own.
    rows["app_family"] = np.where(application == 0, -1 - image, application)
    return rows


@functools.lru_cache(maxsize=64)
def patterns(images: tuple[GuestImage, ...], seed: int, sample: int) -> dict[str, Array]:
    """The layouts of images as the state has them. No kernel writes to them: hosts that know the
    same images have the same arrays, which are a quarter of a MiB."""
    layouts = [compose(image, seed, sample) for image in images]
    names = ("kinds", "ranks", "class_counts", "periods")
    return {name: np.stack([getattr(layout, name) for layout in layouts]) for name in names}


def with_rows(st: HostState, n: int) -> HostState:
    """The arrays with `n` free rows for VMs at least; they grow by a fourth until there are."""
    n_free, n_rows = int((st.vms["vm"] == -1).sum()), len(st.vms)
    n_more = 0
    while n_free + n_more < n:
        n_more += max((n_rows + n_more) // 4, 2)
    if n_more == 0:
        return st
    more = _free_rows(n_more, st.sampled.shape[1])
    per_row = ("order", "lost", "debts", "sampled", "class_base", "active")
    grown = {name: np.concatenate([getattr(st, name), getattr(more, name)]) for name in per_row}
    grown["scratch"] = np.concatenate([st.scratch, more.scratch], axis=1)
    return replace(st, **grown, vms=joined([st.vms, more.vms]))


@functools.lru_cache(maxsize=8)
def _free_rows(n: int, n_samples: int) -> HostState:
    """What hosts grow by: to be copied."""
    return empty(n, n_samples)


def let_in(
    st: HostState, specs: Sequence[VmSpec], rows: Array, layouts: Sequence[Composition]
) -> HostState:
    """The arrays with VMs more, whose `rows` are filled but for where slots and programs lie.

    Rows go to the first free ones, in order.
    """
    st, sample = with_rows(st, len(rows)), int(st.host["sample"][0])
    events = [spec.replay.events if spec.replay is not None else _NO_EVENTS for spec in specs]
    sizes, rows["program_len"] = rows["size_slots"], [len(spec.program) for spec in specs]
    for name, lengths, n_before in (
        ("base_slot", sizes, len(st.page)),
        ("program", rows["program_len"], len(st.programs)),
        ("replay", rows["replay_len"], len(st.replay)),
        ("large_base", rows["regions"], len(st.large)),
    ):
        rows[name] = n_before + np.cumsum(lengths) - lengths
    rows["replay"][rows["replay_len"] == 0] = 0
    free = np.flatnonzero(st.vms["vm"] == -1)[: len(rows)]
    st.vms.view(np.ndarray)[free] = rows
    extents = zip(rows["kernel"].tolist(), rows["footprint"].tolist(), strict=True)
    for v, layout, (kernel, footprint) in zip(free.tolist(), layouts, extents, strict=True):
        st.class_base[v] = class_base(layout, kernel, footprint)
    more = int(sizes.sum())
    more_aged = more if st.host[0].compression == 1 else 0
    return replace(
        st,
        large=np.concatenate([st.large, np.zeros(int(rows["regions"].sum()), np.uint8)]),
        by_age=np.concatenate([st.by_age, np.zeros((more_aged, 2), np.uint32)]),
        page=np.concatenate([st.page, np.zeros(more, np.uint8)]),
        content=np.concatenate([st.content, np.zeros(more, np.uint32)]),
        programs=joined([st.programs, program_slots(joined([s.program for s in specs]), sample)]),
        replay=joined([st.replay, *events]),
        **window_space(int(st.vms["size_slots"].max(initial=0))),
    )


def joined(parts: Sequence[Array]) -> Array:
    """Vectors of records, one at least, end to end.

    As bytes: NumPy would look through the fields of each, to find a type that holds them all.
    """
    joined = np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts])
    return joined.view(parts[0].dtype)


def let_out(st: HostState, v: int) -> HostState:
    """The arrays without a VM, which has given back its frames."""
    row = st.vms[v]
    of_slots = ("page", "content", *("by_age",) * len(st.by_age[:1]))
    cuts = {
        of_slots: ("base_slot", int(row.base_slot), int(row.size_slots)),
        ("programs",): ("program", int(row.program), int(row.program_len)),
        ("replay",): ("replay", int(row.replay), int(row.replay_len)),
        ("large",): ("large_base", int(row.large_base), int(row.regions)),
    }
    st.vms[v] = np.zeros(1, VM)[0]
    st.vms["vm"][v] = -1
    st.lost[v] = st.debts[v] = 0
    left: dict[str, Any] = {}
    for names, (place, first, n) in cuts.items():
        cut = np.s_[first : first + n]
        left |= {name: np.delete(getattr(st, name), cut, axis=0) for name in names}
        st.vms[place][st.vms[place] > first] -= n
    return replace(st, **left)
