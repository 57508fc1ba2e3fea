"""Host: one simulated ESX host. The façade that everyone else uses.

Powers VMs on and off, runs steps, measures. It owns the arrays (`state`), the content ranges and
what its VMs were promised (`specs`); all behaviour is in the modules that it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hostsim import allocate, beside, compress, contents, epochs, measure, spread, tenancy
from hostsim.arrays import empty
from hostsim.composition import Composition, compose
from hostsim.config import Allocation, HostConfig, VmConfig
from hostsim.contents import Ranges
from hostsim.fault import free_swap_slot, leave_memory
from hostsim.frames import hold
from hostsim.guest import reset as reset_guest
from hostsim.guest_config import GuestImage, Phase, Workload
from hostsim.jit import handles, is_warm, kernel
from hostsim.load import (
    content_lengths,
    copy_counters,
    fill_bounds,
    fill_host,
    fill_tax,
)
from hostsim.program import from_workload
from hostsim.rows import Tables, tables_of
from hostsim.spec import VmSpec
from hostsim.state import (
    COMPRESSED,
    MIGRATION,
    RESIDENT,
    SHARED,
    SWAPPED,
    UNTOUCHED,
    Array,
    HostState,
    count_vms,
    set_state,
    state_of,
)
from hostsim.units import MIB, HostId, VmId, pages

_ROWS = 8
"""Rows of a new host; more when they run out."""
CHANGES = 4096
"""Level changes that one call writes down, at most: then comes another."""


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
        fill_host(self.state.host, self.config, self.host, self.seed, self.sample, self.tick_ms)

    # Powering on and off

    def why_refused(self, vm: VmSpec, beside: Sequence[VmSpec] = ()) -> str | None:
        """Admission control: the reason to refuse `vm` beside the other VMs, or None."""
        others = [other.config for key, other in self.specs.items() if key != vm.vm]
        others += [other.config for other in beside]
        return allocate.refuse_power_on(
            memory=self.config.machine_bytes - self.config.reserve,
            reserved=sum(other.reservation + other.overhead for other in others),
            swap_space=self.config.swap_space_bytes,
            swap_reserved=sum(other.memory - other.reservation for other in others),
            size=vm.config.memory,
            reservation=vm.config.reservation,
            overhead=vm.config.overhead,
        )

    def power_on(self, *vms: VmSpec) -> None:
        """Start VMs, in order; each boots once its overhead memory is free.

        Raises ValueError, and changes nothing, when admission control refuses one, when it is on
        already, or when it has too few pages for what it replays.
        """
        for at, vm in enumerate(vms):
            if vm.vm in self.specs or vm.vm in [other.vm for other in vms[:at]]:
                raise ValueError(f"VM {vm.vm} is already on host {self.host}")
            reason = self.why_refused(vm, vms[:at])
            if reason is not None:
                raise ValueError(f"host {self.host} refuses VM {vm.vm}: {reason}")
        layouts = [compose(vm.image, self.seed, self.sample) for vm in vms]
        salted = self.config.sharing.salting == "vm"
        salts = [vm.vm + 1 if salted else 0 for vm in vms]
        rows = tenancy.filled(vms, layouts, self.state.host[0], salts)
        rows["pattern"] = self._know_images(vms, layouts)
        all_keys = contents.all_keys(rows)
        wanted = [
            dict(zip(keys, contents.lengths_of(content_lengths(row, vm, layout)), strict=True))
            for keys, row, vm, layout in zip(all_keys, rows, vms, layouts, strict=True)
        ]
        n_slots = len(self.state.page)
        self.state = tenancy.let_in(self.state, vms, rows, layouts)
        self.specs |= {vm.vm: vm for vm in vms}
        self._change_ranges(contents.acquire(self.ranges, *wanted))
        zeros = [self.ranges[keys[contents.ZERO_RANGE]].base for keys in all_keys]
        self.state.content[n_slots:] = np.repeat(zeros, rows["size_slots"])
        self._reorder()

    def power_off(self, vm: VmId) -> None:
        """Stop a VM: its frames, swap slots and overhead are free at once."""
        v = self.row_of(vm)
        row = self.state.vms[v]
        self.state.large[row.large_base : row.large_base + row.regions] = 0
        free_vm(self.state, v)
        self.state.host[0].free += row.overhead
        self.state.host[0].highmem_free += row.overhead_highmem
        self.state.host[0].overhead -= row.overhead
        keys = contents.keys_of(row)
        self.state = tenancy.let_out(self.state, v)
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
        if spec.config.guest_swap is None:  # the guest keeps the swap space that it booted with
            changed["guest_swap"] = spec.config.memory - spec.config.reservation
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

    def hold(self, n_pages: int) -> None:
        """Keep frames for VMs on their way here: so many in all, in pages.

        Raises ValueError, and changes nothing, when fewer are free.
        """
        n, host = -(-n_pages // self.sample), self.state.host[0]
        if n > host.free + host.held:
            raise ValueError(f"host {self.host} has {host.free + host.held} frames, not {n}")
        hold(self.state, n)
        host.rebalance = 1

    def delay(self, vm: VmId, lost_ns: int) -> None:
        """The VM loses time to its migration, in the steps to come."""
        self.state.debts[self.row_of(vm), MIGRATION] += lost_ns

    # Running

    def advance(self, duration_ms: int) -> Array:
        """Run `duration_ms`, a multiple of the tick. Returns the level changes in it.

        (n, 4) int64: start of the step in ms, level before, level after, free slots that decided.
        """
        end_ms = int(self.state.host["now_ms"][0]) + duration_ms
        first_vm = np.array([0, len(self.specs)])
        return _run([self], end_ms, 0, first_vm, tables_of(0, 0))[:, 1:]

    def measure(self) -> Tables:
        """Rows of this host and its VMs since the last measurement; see `measure.measure`."""
        rows = tables_of(1, len(self.specs))
        measure.measure_now(self.state, *rows)
        return rows

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

    def _know_images(self, vms: Sequence[VmSpec], layouts: Sequence[Composition]) -> list[int]:
        """Places of the VMs' images; those seen for the first time are laid out in the state."""
        at = {compose(image, self.seed, self.sample): i for i, image in enumerate(self.images)}
        n_known = len(at)
        for vm, layout in zip(vms, layouts, strict=True):
            if layout not in at:
                at[layout] = len(self.images)
                self.images.append(vm.image)
        if len(self.images) > n_known:
            patterns = tenancy.patterns(tuple(self.images), self.seed, self.sample)
            self.state = replace(self.state, **patterns)
        return [at[layout] for layout in layouts]

    def _change_ranges(self, ranges: Ranges) -> None:
        self.state = contents.move(self.state, self.ranges, ranges)
        self.ranges = ranges
        vms = self.state.vms.view(np.ndarray)
        on = np.flatnonzero(vms["vm"] >= 0)
        bases = [[ranges[key].base for key in keys] for keys in contents.all_keys(vms[on])]
        columns = np.array(bases, np.int64).reshape(len(on), 4).T
        for name, column in zip(contents.BASES, columns, strict=True):
            vms[name][on] = column

    def _reorder(self) -> None:
        st = self.state
        on = np.flatnonzero(st.vms["vm"] >= 0)
        st.order[:] = -1
        st.order[: len(on)] = on[np.argsort(st.vms["vm"][on])]
        st.host[0].rebalance = 1


def epoch_tables(hosts: Sequence[Host], n_epochs: int) -> Tables:
    """Tables for what hosts report over some epochs, while no VM comes or goes."""
    n_vms = sum(len(host.specs) for host in hosts)
    return tables_of(n_epochs * len(hosts), n_epochs * n_vms)


def run_epochs(hosts: Sequence[Host], n_epochs: int, epoch_ms: int, rows: Tables) -> Array:
    """Run hosts that have come equally far through whole epochs, and measure each.

    rows: out; HOST_ROW by epoch and host, VM_ROW by epoch, host and VM. Returns the level changes,
    (n, 5) int64, as `epochs.run` gives them.
    """
    first_vm = np.cumsum([0, *(len(host.specs) for host in hosts)])
    end_ms = int(hosts[0].state.host["now_ms"][0]) + n_epochs * epoch_ms
    return _run(hosts, end_ms, epoch_ms, first_vm, rows)


def _run(hosts: Sequence[Host], end_ms: int, epoch_ms: int, first_vm: Array, rows: Tables) -> Array:
    """`epochs.run` as often as there are more level changes than one call writes down."""
    states = handles([host.state for host in hosts])
    found: list[Array] = []
    while not found or len(found[-1]) == CHANGES:
        changes = np.empty((CHANGES, 5), np.int64)
        n = epochs.run(states, end_ms, epoch_ms, first_vm, *rows, changes)
        found.append(changes[:n])
    return np.concatenate(found)


@kernel
def free_vm(st: HostState, v: int) -> None:
    """Give back every frame of a VM, and its part of the host cache."""
    for ppn in range(st.vms[v].size_slots):
        state = state_of(st, st.vms[v].base_slot + ppn)
        if state == RESIDENT or state == SHARED:
            leave_memory(st, v, ppn, UNTOUCHED)
        elif state == SWAPPED:
            free_swap_slot(st, st.vms[v].base_slot + ppn)
        elif state == COMPRESSED:
            compress.take_out(st, v, ppn)
            set_state(st, st.vms[v].base_slot + ppn, UNTOUCHED)


def warm(note: Callable[[str], None]) -> None:
    """Compile the kernels, or load them from the cache; `note` is told when that will take long."""
    if is_warm():
        _call_all()
    else:
        note("compiling the memory manager, once for this installation")
        with beside.helped():
            _call_all()


def _call_all() -> None:
    """Call every kernel that Python calls."""
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
    host.reset(vm.vm)
    host.hold(0)
    host.power_off(vm.vm)
    host.power_on(vm)
    spread.add_to(spread.no_contrasts(), host.state)
    host.advance(1000)  # last: `is_warm` looks for it
