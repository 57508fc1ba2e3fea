"""Hosts and VMs of a run, numbered: the last step that knows names, files and traces.

Ids are dense and given here, once, in the order of sorted names (web-2 before web-10): never by a
host and never in order of arrival, so they do not depend on how a run is spread or interrupted.
Nothing here is random that was not drawn from the seed and the VM's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cluster import outages, rules
from cluster.pools import ROOT, UNLIMITED, Pool, Pools
from cluster.replays import all_replays
from cluster.scenario import HostGroup, Scenario, VmGroup, member_names
from cluster.scenario_file import Loaded
from cluster.scenario_policies import ResourcePool, Watts
from cluster.sketches import Sketches, expected
from cluster.trace_vms import below, programs
from hostsim.config import HostConfig, VmConfig
from hostsim.guest_config import GuestImage, Phase, Workload
from hostsim.program import Rows, from_workload
from hostsim.replay import Replay
from hostsim.spec import VmSpec
from hostsim.units import PAGE_SIZE, HostId, VmId, pages

IDLE = Workload(phases=(Phase(duration=60_000, active=("bytes", 0), cpu=0),))
"""Of VMs that do nothing but what they replay."""
_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One simulated host."""

    host: HostId
    name: str
    config: HostConfig
    watts: Watts = field(default_factory=Watts)


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
    rules: rules.Rules = field(default_factory=rules.Rules)
    pools: Pools = field(default_factory=Pools)
    outages: tuple[outages.Outage, ...] = ()
    """Failures that no event names: drawn from the seed, or from a trace."""
    sketches: Sketches | None = None
    """What VMs are expected to hold; None unless placement goes by content."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A VM before it has an id."""

    config: VmConfig
    image: GuestImage
    family: str
    application: str | None
    program: Rows
    start_ms: int | None
    stop_ms: int | None
    repeat: bool = False
    vm_clock: bool = False
    offset_ms: int = 0
    replay: Replay | None = None
    pool: str | None = None


@dataclass(slots=True)
class _Shared:
    """What VMs have in common is made once: programs by workload and size, images by footprint."""

    loaded: Loaded
    workloads: dict[str, Workload] = field(default_factory=dict)
    images: dict[str, GuestImage] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    _programs: dict[tuple[str | None, int], Rows] = field(default_factory=dict)
    _smaller: dict[tuple[str, int], GuestImage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scenario = self.loaded.scenario
        self.workloads = {workload.name: workload for workload in scenario.workloads}
        for image in scenario.images:
            fields = {key: getattr(image, key) for key in GuestImage.model_fields}
            fields["content"] = image.content.table()
            if image.content.hashes is not None:
                fields["content"] = GuestImage.model_fields["content"].default
            self.images[image.name] = GuestImage.model_construct(**fields)
        self.replays = all_replays(self.loaded)

    def program(self, workload: str | None, size_bytes: int) -> Rows:
        """Rows of a workload, or of none, in a VM of this size."""
        key = workload, pages(size_bytes)
        if key not in self._programs:
            of = IDLE if workload is None else self.workloads[workload]
            self._programs[key] = from_workload(of, key[1])
        return self._programs[key]

    def on_vm_clock(self, workload: str | None) -> bool:
        """Whether a VM does its work, or replays, in its own time."""
        return workload is None or self.workloads[workload].clock == "vm"

    def offset_ms(self, workload: str | None, vm_name: str) -> int:
        """Where in the workload's cycle a VM enters."""
        if workload is None:
            return 0
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
    named = [image.application for image in shared.images.values()]
    named += [plan.application for plan in plans.values()]
    groups = sorted({group for name in named if (group := group_of(name))})
    applications = {name: at for at, name in enumerate(groups, start=len(families) + 1)}
    first = 1 + len(families) + len(applications)
    kinds = sorted({found.kind for found in loaded.hashes.values()})
    sources = {kind: at for at, kind in enumerate(kinds, start=first)}
    vms = []
    for vm, name in enumerate(sorted(plans, key=by_number)):
        plan = plans[name]
        hashes = loaded.hashes.get(plan.family)
        spec = VmSpec(
            vm=VmId(vm),
            name=name,
            config=plan.config,
            image=plan.image,
            # Hashes of one kind are one range of contents, whatever file and image they came by.
            image_range=families[plan.family] if hashes is None else sources[hashes.kind],
            application_range=applications.get(group_of(plan.application) or "", 0),
            program=plan.program,
            repeat=plan.repeat,
            vm_clock=plan.vm_clock,
            offset_ms=plan.offset_ms,
            replay=plan.replay,
        )
        vms.append(PlannedVm(spec, plan.start_ms, plan.stop_ms))
    hosts = _hosts(loaded.scenario.hosts)
    names = [host.name for host in hosts]
    found = outages.drawn(loaded.scenario, names) + outages.traced(loaded.outages, names)
    sketches = None
    if loaded.scenario.placement.content:
        sample, seed = loaded.scenario.fidelity.sample, loaded.scenario.seed
        sketches = expected([vm.spec for vm in vms], seed, sample)
    return Population(
        hosts,
        tuple(vms),
        _rules(loaded.scenario, hosts, vms),
        _pools(loaded.scenario, vms, {name: plan.pool for name, plan in plans.items()}),
        found,
        sketches,
    )


def _rules(scenario: Scenario, hosts: tuple[HostSpec, ...], vms: list[PlannedVm]) -> rules.Rules:
    """The scenario's rules by id; a group's name stands for all of its members."""
    of_vm = {vm.spec.name: [vm.spec.vm] for vm in vms}
    of_host = {host.name: [host.host] for host in hosts}
    for group in scenario.vms:
        of_vm[group.name] = [of_vm[name][0] for name in member_names(group)]
    for host_group in scenario.hosts:
        of_host[host_group.name] = [of_host[name][0] for name in member_names(host_group)]
    return rules.of(
        tuple(
            rules.Rule(
                rule.kind,
                tuple(sorted({vm for name in rule.vms for vm in of_vm[name]})),
                tuple(sorted({host for name in rule.hosts for host in of_host[name]})),
            )
            for rule in scenario.rules
        )
    )


def _pools(scenario: Scenario, vms: list[PlannedVm], pool_of: Mapping[str, str | None]) -> Pools:
    """The tree, parents first, then by name; and where in it each VM is."""
    given = {pool.name: pool for pool in scenario.pools}
    depths = {name: _depth(name, given) for name in given}
    names = sorted(given, key=lambda name: (depths[name], name))
    places: dict[str | None, int] = {name: at for at, name in enumerate(names)} | {None: ROOT}
    pools = tuple(
        Pool(
            name=name,
            parent=places[given[name].parent],
            reservation=given[name].reservation,
            expandable=given[name].expandable,
            limit=UNLIMITED if (limit := given[name].limit) is None else limit,
            shares=given[name].share_count,
        )
        for name in names
    )
    of_vm = [places[pool_of[vm.spec.name]] for vm in vms]
    return Pools(pools, np.array(of_vm, np.int64))


def _depth(name: str, pools: Mapping[str, ResourcePool]) -> int:
    """How many pools are above one."""
    parent = pools[name].parent
    return 0 if parent is None else 1 + _depth(parent, pools)


def by_number(name: str) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """Sort key of a name: its text, then its numbers as numbers, so that esx-2 precedes esx-10."""
    return tuple(_NUMBER.split(name)), tuple(map(int, _NUMBER.findall(name))), name


def group_of(application: str | None) -> str | None:
    """The group that an application's name stands for; `none` in a file is none."""
    return None if application in (None, "none", "") else application


def _hosts(groups: tuple[HostGroup, ...]) -> tuple[HostSpec, ...]:
    configs: dict[str, tuple[HostConfig, Watts]] = {}
    for group in groups:
        # Validated already, profile included.
        fields = {key: getattr(group, key) for key in HostConfig.model_fields}
        config = HostConfig.model_construct(**fields)
        configs |= dict.fromkeys(member_names(group), (config, group.watts))
    ordered = enumerate(sorted(configs, key=by_number))
    return tuple(HostSpec(HostId(host), name, *configs[name]) for host, name in ordered)


def _from_groups(loaded: Loaded, shared: _Shared) -> Iterator[tuple[str, _Plan]]:
    for group in loaded.scenario.vms:
        fields = {key: getattr(group, key) for key in VmConfig.model_fields}
        config = VmConfig.model_construct(**fields)
        program = shared.program(group.workload, group.memory)
        image, runs = shared.images[group.image], group.application
        for place, name in enumerate(member_names(group)):
            start_ms, stop_ms = _times(group, place)
            yield (
                name,
                _Plan(
                    config=config,
                    image=image,
                    family=group.image,
                    application=image.application if runs is None else runs,
                    program=program,
                    start_ms=start_ms,
                    stop_ms=stop_ms,
                    repeat=group.workload is not None and shared.workloads[group.workload].repeat,
                    vm_clock=shared.on_vm_clock(group.workload),
                    offset_ms=shared.offset_ms(group.workload, name),
                    replay=shared.replays.get(name),
                    pool=group.pool,
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
                application=shared.images[vms.images[place]].application,
                program=shared.program(workload, size) if follows else rows[place],
                start_ms=int(vms.start_ms[place]),
                stop_ms=None if stop_ms < 0 else stop_ms,
                repeat=shared.workloads[workload].repeat if follows else False,
                vm_clock=follows and shared.on_vm_clock(workload),
                offset_ms=shared.offset_ms(workload, name) if follows else 0,
                pool=source.pool,
            ),
        )
