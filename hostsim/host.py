"""Host: one simulated ESX host. The façade that everyone else uses.

Powers VMs on and off, runs steps, measures. It owns the arrays (`state`), the content ranges and
what its VMs were promised (`specs`); all behaviour is in the modules that it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from hostsim import allocate, contents, measure, tick
from hostsim.composition import Composition, class_base, compose
from hostsim.config import Allocation, HostConfig, VmConfig
from hostsim.contents import Ranges
from hostsim.fault import leave_memory
from hostsim.guest import reset as reset_guest
from hostsim.guest_config import GuestImage, Phase, Workload
from hostsim.jit import is_warm, kernel
from hostsim.load import (
    content_lengths,
    copy_counters,
    fill_bounds,
    fill_host,
    fill_tax,
    fill_vm,
    program_slots,
)
from hostsim.pace import STEP_MS_MIN
from hostsim.program import from_workload
from hostsim.replay import EVENT
from hostsim.spec import VmSpec
from hostsim.state import (
    RESIDENT,
    SHARED,
    UNTOUCHED,
    VM,
    Array,
    HostState,
    count_vms,
    empty,
    state_of,
    window_space,
)
from hostsim.units import MIB, HostId, VmId, pages

_ROWS = 8
"""Rows of a new host; doubled when they run out."""


@dataclass
class Host:
    """One host. `state` is replaced, never shared, when VMs come and go."""

    host: HostId
    config: HostConfig
    """As last set."""
    seed: int
    sample: int
    tick_ms: int
    state: HostState = field(init=False)
    ranges: Ranges = field(init=False, default_factory=dict)
    images: list[GuestImage] = field(init=False, default_factory=list)
    specs: dict[VmId, VmSpec] = field(init=False, default_factory=dict)
    """The VMs that are on, as last configured."""

    def __post_init__(self) -> None:
        n_counters = copy_counters(self.config, self.sample)
        self.state = empty(_ROWS, self.config.sampling.pages, n_counters)
        fill_host(self.state.host[0], self.config, self.host, self.seed, self.sample, self.tick_ms)

    # Powering on and off

    def why_refused(self, vm: VmSpec) -> str | None:
        """Admission control: the reason to refuse `vm` beside the other VMs, or None."""
        others = [other.config for key, other in self.specs.items() if key != vm.vm]
        return allocate.refuse_power_on(
            memory=self.config.memory - self.config.reserve,
            reserved=sum(other.reservation + other.overhead for other in others),
            swap_space=self.config.swap_space_bytes,
            swap_reserved=sum(other.memory - other.reservation for other in others),
            size=vm.config.memory,
            reservation=vm.config.reservation,
            overhead=vm.config.overhead,
        )

    def power_on(self, vm: VmSpec) -> None:
        """Start a VM; it boots once its overhead memory is free.

        Raises ValueError, and changes nothing, when admission control refuses it, when it is on
        already, or when it has too few pages for what it replays.
        """
        if vm.vm in self.specs:
            raise ValueError(f"VM {vm.vm} is already on host {self.host}")
        reason = self.why_refused(vm)
        if reason is not None:
            raise ValueError(f"host {self.host} refuses VM {vm.vm}: {reason}")
        filled = np.zeros(1, VM).view(np.recarray)
        fill_vm(filled[0], vm, compose(vm.image, self.seed, self.sample), self.state.host[0])
        self.specs[vm.vm] = vm
        v = self._free_row()
        pattern, composition = self._pattern(vm.image)
        self.state.vms[v] = filled[0]
        row = self.state.vms[v]
        row.pattern = pattern
        row.salt = vm.vm + 1 if self.config.sharing.salting == "vm" else 0
        row.image_family, row.app_family = vm.image_range, vm.application_range
        if vm.application_range == 0:  # no group: its application contents are the image's own
            row.app_family = -1 - vm.image_range
        kernel_slots, footprint = int(row.kernel), int(row.footprint)
        self.state.class_base[v] = class_base(composition, kernel_slots, footprint)
        lengths = content_lengths(row, vm, composition)
        self._append(v, vm)
        keys = contents.keys_of(row)
        wanted = dict(zip(keys, contents.lengths_of(lengths), strict=True))
        self._change_ranges(contents.acquire(self.ranges, wanted))
        self.state.content[row.base_slot : row.base_slot + row.size_slots] = row.zero
        self._reorder()

    def power_off(self, vm: VmId) -> None:
        """Stop a VM: its frames, swap slots and overhead are free at once."""
        v = self.row_of(vm)
        row = self.state.vms[v]
        free_vm(self.state, v)
        self.state.host[0].free += row.overhead
        self.state.host[0].highmem_free += row.overhead_highmem
        self.state.host[0].overhead -= row.overhead
        base, size = int(row.base_slot), int(row.size_slots)
        first, length = int(row.program), int(row.program_len)
        first_event, n_events = int(row.replay), int(row.replay_len)
        keys = contents.keys_of(row)
        self.state.vms[v] = np.zeros(1, VM)[0]
        self.state.vms["vm"][v] = -1
        self.state.lost[v] = self.state.debts[v] = 0
        cut = np.s_[base : base + size]
        self.state = replace(
            self.state,
            page=np.delete(self.state.page, cut),
            content=np.delete(self.state.content, cut),
            programs=np.delete(self.state.programs, np.s_[first : first + length]),
            replay=np.delete(self.state.replay, np.s_[first_event : first_event + n_events]),
        )
        vms = self.state.vms
        vms["base_slot"][vms["base_slot"] > base] -= size
        vms["program"][vms["program"] > first] -= length
        vms["replay"][vms["replay"] > first_event] -= n_events
        del self.specs[vm]
        self._change_ranges(contents.release(self.ranges, keys))
        self._reorder()

    def reset(self, vm: VmId) -> None:
        """Guest reset: the guest boots again in the memory that it has."""
        reset_guest(self.state, self.row_of(vm))

    def set_vm(
        self,
        vm: VmId,
        *,
        reservation: int | None = None,
        limit: int | None = None,
        shares: int | None = None,
    ) -> None:
        """Change the allocation parameters of a running VM; bytes, and a number of shares.

        Raises ValueError, and changes nothing, when the new reservation is not admitted (a lower
        one needs more swap space), or when the values do not go together.
        """
        row, spec = self.state.vms[self.row_of(vm)], self.specs[vm]
        given = {"reservation": reservation, "limit": limit, "shares": shares}
        changed = {name: value for name, value in given.items() if value is not None}
        config = VmConfig.model_validate(spec.config.model_dump() | changed)
        spec = replace(spec, config=config)
        reason = self.why_refused(spec)
        if reason is not None:
            raise ValueError(f"host {self.host} refuses VM {vm}: {reason}")
        self.specs[vm] = spec
        fill_bounds(row, config, self.sample)
        self.state.host[0].rebalance = 1

    def set_host(self, *, idle_tax: int) -> None:
        """Change the idle-memory tax, in permille; the next step recomputes targets [P 6.3].

        Raises ValueError, and changes nothing, for a tax that is not allowed.
        """
        changed = self.config.allocation.model_dump() | {"idle_tax": idle_tax}
        allocation = Allocation.model_validate(changed)
        self.config = self.config.model_copy(update={"allocation": allocation})
        fill_tax(self.state.host[0], allocation)
        self.state.host[0].rebalance = 1

    # Running

    def advance(self, duration_ms: int) -> Array:
        """Run `duration_ms`, a multiple of the tick. Returns the level changes in it.

        (n, 4) int64: start of the step in ms, level before, level after, free slots that decided.
        """
        steps_of_tick = 2 * self.tick_ms // STEP_MS_MIN + 1
        changes = np.zeros((duration_ms // self.tick_ms * steps_of_tick, 4), np.int64)
        n_changes = tick.advance(self.state, duration_ms, changes)
        return changes[:n_changes]

    def measure(self) -> tuple[measure.Rows, measure.Rows]:
        """Rows of this host and its VMs since the last measurement; see `measure.measure`."""
        return measure.measure(self.state, self.zero_pages())

    def zero_pages(self) -> list[int]:
        """Content indexes of the zero pages, one per salt group."""
        return [at.base for key, at in self.ranges.items() if key.kind == contents.ZERO_RANGE]

    def vm_ids(self) -> list[VmId]:
        """Ids of the VMs that are on, ascending."""
        n = count_vms(self.state)
        return [VmId(int(vm)) for vm in self.state.vms["vm"][self.state.order[:n]]]

    # Arrays

    def row_of(self, vm: VmId) -> int:
        """Row of a VM that is on. Raises ValueError."""
        rows = np.flatnonzero(self.state.vms["vm"] == vm)
        if len(rows) == 0:
            raise ValueError(f"VM {vm} is not on host {self.host}")
        return int(rows[0])

    def _free_row(self) -> int:
        free = np.flatnonzero(self.state.vms["vm"] == -1)
        if len(free):
            return int(free[0])
        st, n = self.state, len(self.state.vms)
        more = empty(n, st.sampled.shape[1])
        per_row = ("vms", "order", "lost", "debts", "sampled", "class_base")
        grown = {name: np.concatenate([getattr(st, name), getattr(more, name)]) for name in per_row}
        grown["scratch"] = np.concatenate([st.scratch, more.scratch], axis=1)
        grown["active"] = np.concatenate([st.active, more.active])
        self.state = replace(st, **grown)
        return n

    def _pattern(self, image: GuestImage) -> tuple[int, Composition]:
        """Index of the image's pattern in the state, laid out when it is first seen."""
        composition = compose(image, self.seed, self.sample)
        if image not in self.images:
            self.images.append(image)
            st = self.state
            self.state = replace(
                st,
                kinds=np.concatenate([st.kinds, composition.kinds[None]]),
                ranks=np.concatenate([st.ranks, composition.ranks[None]]),
                class_counts=np.concatenate([st.class_counts, composition.class_counts[None]]),
                periods=np.concatenate([st.periods, composition.periods[None]]),
            )
        return self.images.index(image), composition

    def _append(self, v: int, vm: VmSpec) -> None:
        st = self.state
        row, n = st.vms[v], int(st.vms[v].size_slots)
        row.base_slot, row.program = len(st.page), len(st.programs)
        row.program_len = len(vm.program)
        programs = np.concatenate([st.programs, program_slots(vm.program, self.sample)])
        row.replay = len(st.replay) if vm.replay is not None else 0
        replayed = vm.replay.events if vm.replay is not None else np.zeros(0, EVENT)
        self.state = replace(
            st,
            page=np.concatenate([st.page, np.zeros(n, np.uint8)]),
            content=np.concatenate([st.content, np.zeros(n, np.uint32)]),
            programs=programs,
            replay=np.concatenate([st.replay, replayed]),
            **window_space(max(n, len(st.loud))),
        )

    def _change_ranges(self, ranges: Ranges) -> None:
        self.state = contents.move(self.state, self.ranges, ranges)
        self.ranges = ranges
        for v in np.flatnonzero(self.state.vms["vm"] >= 0):
            row = self.state.vms[v]
            row.zero, row.image_base, row.app_base, row.dup_base = (
                ranges[key].base for key in contents.keys_of(row)
            )

    def _reorder(self) -> None:
        st = self.state
        on = np.flatnonzero(st.vms["vm"] >= 0)
        st.order[:] = -1
        st.order[: len(on)] = on[np.argsort(st.vms["vm"][on])]
        st.host[0].rebalance = 1


@kernel
def free_vm(st: HostState, v: int) -> None:
    """Give back every frame of a VM."""
    for ppn in range(st.vms[v].size_slots):
        state = state_of(st, st.vms[v].base_slot + ppn)
        if state == RESIDENT or state == SHARED:
            leave_memory(st, v, ppn, UNTOUCHED)


def warm(note: Callable[[str], None]) -> None:
    """Compile the kernels, or load them from the cache; `note` is told when that will take long."""
    if not is_warm():
        note("compiling the memory manager, once for this installation")
    host = Host(HostId(0), HostConfig(), seed=0, sample=256, tick_ms=1000)
    workload = Workload(phases=(Phase(duration=1000),))
    config = VmConfig(memory=64 * MIB)
    vm = VmSpec(
        vm=VmId(0),
        name="",
        config=config,
        image=GuestImage(),
        image_range=1,
        application_range=0,
        program=from_workload(workload, pages(config.memory)),
        repeat=True,
        vm_clock=True,
    )
    host.power_on(vm)
    host.measure()
    host.reset(vm.vm)
    host.power_off(vm.vm)
    host.power_on(vm)
    host.advance(1000)  # last: `is_warm` looks for it
