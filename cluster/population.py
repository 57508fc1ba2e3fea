"""Hosts and VMs of a run, numbered: the last step that knows names, files and traces.

Ids are dense and given here, once, in the order of sorted names (web-2 before web-10): never by a
host and never in order of arrival, so they do not depend on how a run is spread or interrupted.
Nothing here is random that was not drawn from the seed and the VM's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.scenario import HostGroup, VmGroup, member_names
from cluster.scenario_file import Loaded
from cluster.trace_vms import below, programs
from hostsim.config import HostConfig, VmConfig
from hostsim.guest_config import GuestImage, Workload
from hostsim.program import Rows, from_workload
from hostsim.spec import VmSpec
from hostsim.units import PAGE_SIZE, HostId, VmId, pages

_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One simulated host."""

    host: HostId
    name: str
    config: HostConfig


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """A VM and when it is due, in simulated time."""

    spec: VmSpec
    start_ms: int | None
    """None: only an event powers it on."""
    stop_ms: int | None
    """None: it stays."""


@dataclass(frozen=True, slots=True)
class Population:
    """Who takes part; position in each tuple = id."""

    hosts: tuple[HostSpec, ...]
    vms: tuple[PlannedVm, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A VM before it has an id."""

    config: VmConfig
    image: GuestImage
    family: str
    program: Rows
    start_ms: int | None
    stop_ms: int | None
    repeat: bool = False
    vm_clock: bool = False
    offset_ms: int = 0


@dataclass(slots=True)
class _Shared:
    """What VMs have in common is made once: programs by workload and size, images by footprint."""

    loaded: Loaded
    workloads: dict[str, Workload] = field(default_factory=dict)
    images: dict[str, GuestImage] = field(default_factory=dict)
    _programs: dict[tuple[str, int], Rows] = field(default_factory=dict)
    _smaller: dict[tuple[str, int], GuestImage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scenario = self.loaded.scenario
        self.workloads = {workload.name: workload for workload in scenario.workloads}
        self.images = {
            image.name: GuestImage.model_construct(
                **{key: getattr(image, key) for key in GuestImage.model_fields}
            )
            for image in scenario.images
        }

    def program(self, workload: str, size_bytes: int) -> Rows:
        """Rows of a workload in a VM of this size."""
        key = workload, pages(size_bytes)
        if key not in self._programs:
            self._programs[key] = from_workload(self.workloads[workload], key[1])
        return self._programs[key]

    def offset_ms(self, workload: str, vm_name: str) -> int:
        """Where in the workload's cycle a VM enters."""
        bound = self.workloads[workload].stagger + 1
        return below(self.loaded.scenario.seed, "stagger", vm_name, bound)

    def image_within(self, name: str, size_bytes: int) -> GuestImage:
        """An image whose boot footprint takes half of this size at most; for the trace's VMs.

        `assumptions` says how many VMs are concerned.
        """
        half = max(size_bytes // 2 // PAGE_SIZE, 1) * PAGE_SIZE
        image = self.images[name]
        if image.footprint <= size_bytes // 2:
            return image
        if (name, half) not in self._smaller:
            self._smaller[name, half] = image.model_copy(update={"footprint": half})
        return self._smaller[name, half]


def populate(loaded: Loaded) -> Population:
    """All hosts and VMs of a scenario."""
    shared = _Shared(loaded)
    plans = dict(_from_groups(loaded, shared))
    plans |= _from_trace(loaded, shared)
    families = {name: at for at, name in enumerate(sorted(shared.images), start=1)}
    # One numbering for both kinds of range, so that no two ranges have one id.
    groups = sorted({name for image in shared.images.values() if (name := application_of(image))})
    applications = {name: at for at, name in enumerate(groups, start=len(families) + 1)}
    vms = []
    for vm, name in enumerate(sorted(plans, key=by_number)):
        plan = plans[name]
        spec = VmSpec(
            vm=VmId(vm),
            name=name,
            config=plan.config,
            image=plan.image,
            image_range=families[plan.family],
            application_range=applications.get(application_of(plan.image) or "", 0),
            program=plan.program,
            repeat=plan.repeat,
            vm_clock=plan.vm_clock,
            offset_ms=plan.offset_ms,
        )
        vms.append(PlannedVm(spec, plan.start_ms, plan.stop_ms))
    return Population(_hosts(loaded.scenario.hosts), tuple(vms))


def by_number(name: str) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """Sort key of a name: its text, then its numbers as numbers, so that esx-2 precedes esx-10."""
    return tuple(_NUMBER.split(name)), tuple(map(int, _NUMBER.findall(name))), name


def application_of(image: GuestImage) -> str | None:
    """The application group of an image; `none` in a file is none."""
    return None if image.application in (None, "none", "") else image.application


def _hosts(groups: tuple[HostGroup, ...]) -> tuple[HostSpec, ...]:
    configs: dict[str, HostConfig] = {}
    for group in groups:
        # Validated already, profile included.
        fields = {key: getattr(group, key) for key in HostConfig.model_fields}
        config = HostConfig.model_construct(**fields)
        configs |= dict.fromkeys(member_names(group), config)
    ordered = enumerate(sorted(configs, key=by_number))
    return tuple(HostSpec(HostId(host), name, configs[name]) for host, name in ordered)


def _from_groups(loaded: Loaded, shared: _Shared) -> Iterator[tuple[str, _Plan]]:
    for group in loaded.scenario.vms:
        fields = {key: getattr(group, key) for key in VmConfig.model_fields}
        config = VmConfig.model_construct(**fields)
        program = shared.program(group.workload, group.memory)
        for place, name in enumerate(member_names(group)):
            start_ms, stop_ms = _times(group, place)
            yield (
                name,
                _Plan(
                    config=config,
                    image=shared.images[group.image],
                    family=group.image,
                    program=program,
                    start_ms=start_ms,
                    stop_ms=stop_ms,
                    repeat=shared.workloads[group.workload].repeat,
                    vm_clock=shared.workloads[group.workload].clock == "vm",
                    offset_ms=shared.offset_ms(group.workload, name),
                ),
            )


def _times(group: VmGroup, place: int) -> tuple[int | None, int | None]:
    """When the member at `place` of its group arrives and leaves."""
    if isinstance(group.start, str):
        return None, None
    later = place * group.interval
    return group.start + later, None if group.stop is None else group.stop + later


def _from_trace(loaded: Loaded, shared: _Shared) -> Iterator[tuple[str, _Plan]]:
    trace, vms, source = loaded.trace, loaded.trace_vms, loaded.scenario.trace
    if trace is None or vms is None or source is None:
        return
    follows = source.workloads is not None
    rows: list[Rows] = []
    if not follows:
        rows = programs(trace, vms, source.guest, source.start, loaded.scenario.duration)
    for place, at in enumerate(vms.index.tolist()):
        name, size = trace.names[at], int(trace.memory_bytes[at])
        workload = vms.workloads[place] if follows else ""
        stop_ms = int(vms.stop_ms[place])
        yield (
            name,
            _Plan(
                config=VmConfig(
                    memory=size,
                    reservation=size * source.reservation // 1000,
                    shares=source.shares,
                    vcpus=int(trace.vcpus[at]),
                    overhead=source.overhead,
                    sharing=source.sharing,
                    balloon=source.balloon,
                ),
                image=shared.image_within(vms.images[place], size),
                family=vms.images[place],
                program=shared.program(workload, size) if follows else rows[place],
                start_ms=int(vms.start_ms[place]),
                stop_ms=None if stop_ms < 0 else stop_ms,
                repeat=shared.workloads[workload].repeat if follows else False,
                vm_clock=follows and shared.workloads[workload].clock == "vm",
                offset_ms=shared.offset_ms(workload, name) if follows else 0,
            ),
        )
