"""How a host's arrays grow and shrink as VMs come and go.

VMs that come at one time are let in together: each array is made anew once, not once for each VM.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from hostsim.composition import Composition, class_base, compose
from hostsim.guest_config import GuestImage
from hostsim.load import fill_vm, program_slots
from hostsim.records import VM
from hostsim.spec import VmSpec
from hostsim.state import Array, HostState, empty, window_space

_NO_VM = dict.fromkeys(VM.names or (), 0)
Row = SimpleNamespace
"""A VM's row of state before it is in the state, with the fields of VM."""


def filled(spec: VmSpec, layout: Composition, host: Any, salt: int) -> Row:
    """A VM's row, but for where its slots, program and contents lie. host: the host's row.

    Raises ValueError for a replay that the VM cannot hold.
    """
    row = SimpleNamespace(**_NO_VM)
    fill_vm(row, spec, layout, host)
    row.salt, row.image_family, row.app_family = salt, spec.image_range, spec.application_range
    if spec.application_range == 0:  # no group: its application contents are the image's own
        row.app_family = -1 - spec.image_range
    return row


@functools.lru_cache(maxsize=64)
def patterns(images: tuple[GuestImage, ...], seed: int, sample: int) -> dict[str, Array]:
    """The layouts of images as the state has them. No kernel writes to them: hosts that know the
    same images have the same arrays, which are a quarter of a MiB."""
    layouts = [compose(image, seed, sample) for image in images]
    names = ("kinds", "ranks", "class_counts", "periods")
    return {name: np.stack([getattr(layout, name) for layout in layouts]) for name in names}


def with_rows(st: HostState, n: int) -> HostState:
    """The arrays with `n` free rows for VMs at least; their number doubles until there are."""
    n_free, n_rows = int((st.vms["vm"] == -1).sum()), len(st.vms)
    n_more = 0
    while n_free + n_more < n:
        n_more += n_rows + n_more
    if n_more == 0:
        return st
    more = empty(n_more, st.sampled.shape[1])
    per_row = ("vms", "order", "lost", "debts", "sampled", "class_base", "active")
    grown = {name: np.concatenate([getattr(st, name), getattr(more, name)]) for name in per_row}
    return replace(st, **grown, scratch=np.concatenate([st.scratch, more.scratch], axis=1))


def let_in(
    st: HostState, specs: Sequence[VmSpec], rows: Sequence[Row], layouts: Sequence[Composition]
) -> HostState:
    """The arrays with VMs more, whose rows are filled but for where their slots and programs lie.

    Rows go to the first free ones, in order.
    """
    st, sample = with_rows(st, len(rows)), int(st.host["sample"][0])
    programs = [program_slots(spec.program, sample) for spec in specs]
    replays = [spec.replay.events for spec in specs if spec.replay is not None]
    vms, free = st.vms.view(np.ndarray), np.flatnonzero(st.vms["vm"] == -1).tolist()
    n_slots, n_rows, n_events = len(st.page), len(st.programs), len(st.replay)
    for v, spec, row, layout, program in zip(free, specs, rows, layouts, programs, strict=False):
        row.base_slot, row.program, row.program_len = n_slots, n_rows, len(program)
        row.replay = n_events if spec.replay is not None else 0
        n_slots, n_rows = n_slots + row.size_slots, n_rows + len(program)
        n_events += len(spec.replay.events) if spec.replay is not None else 0
        vms[v] = tuple(getattr(row, name) for name in _NO_VM)
        st.class_base[v] = class_base(layout, row.kernel, row.footprint)
    more = n_slots - len(st.page)
    largest = max((row.size_slots for row in rows), default=0)
    return replace(
        st,
        page=np.concatenate([st.page, np.zeros(more, np.uint8)]),
        content=np.concatenate([st.content, np.zeros(more, np.uint32)]),
        programs=np.concatenate([st.programs, *programs]),
        replay=np.concatenate([st.replay, *replays]),
        **window_space(max(largest, len(st.loud))),
    )


def let_out(st: HostState, v: int) -> HostState:
    """The arrays without a VM, which has given back its frames."""
    row = st.vms[v]
    cuts = {
        ("page", "content"): ("base_slot", int(row.base_slot), int(row.size_slots)),
        ("programs",): ("program", int(row.program), int(row.program_len)),
        ("replay",): ("replay", int(row.replay), int(row.replay_len)),
    }
    st.vms[v] = np.zeros(1, VM)[0]
    st.vms["vm"][v] = -1
    st.lost[v] = st.debts[v] = 0
    left: dict[str, Any] = {}
    for names, (place, first, n) in cuts.items():
        left |= {name: np.delete(getattr(st, name), np.s_[first : first + n]) for name in names}
        st.vms[place][st.vms[place] > first] -= n
    return replace(st, **left)
