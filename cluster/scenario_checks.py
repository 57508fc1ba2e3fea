"""What must hold between the values of a scenario, and between it and its trace.

Every check takes what is valid so far and yields its problems, so one run of all of them tells the
user everything at once. A check whose own inputs are broken is silent: a guess would mislead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from cluster.page_hashes import PageHashes
from cluster.scenario import (
    HOSTS_MAX,
    SLOTS_MIN,
    VMS_MAX,
    Scenario,
    VmGroup,
    member_names,
)
from cluster.scenario_problems import closest, listed, problem
from cluster.scenario_text import amount_text, bytes_text, ms_text
from cluster.trace import Trace
from cluster.trace_vms import TraceVms
from cluster.yaml_input import Document, Place, Problem, shown
from hostsim import units


@dataclass(slots=True)
class Parts:
    """The valid part of a scenario, and where it stands in the file.

    places: list key -> position in the file of each element of the scenario's list.
    broken: top-level keys of which something is invalid, stand-ins included.
    """

    document: Document
    scenario: Scenario
    places: dict[str, list[int]]
    broken: set[str]
    trace: Trace | None = None
    trace_vms: TraceVms | None = None
    hashes: dict[str, PageHashes] = field(default_factory=dict)
    """Image name -> what was read of its file, where that could be read."""
    vm_names: dict[str, str] = field(default_factory=dict)
    """Name of each VM -> where it comes from, for messages; filled by `names`."""
    host_names: dict[str, str] = field(default_factory=dict)
    """The same of each host."""

    def whole(self, *keys: str) -> bool:
        """Whether nothing of these top-level keys is invalid."""
        return self.broken.isdisjoint(keys)

    def items(self, key: str) -> Iterator[tuple[int, Any]]:
        """The valid elements of a list, each with its position in the file."""
        return zip(self.places[key], getattr(self.scenario, key), strict=True)

    def written_names(self, key: str) -> list[str]:
        """Names of all elements of a list, as far as they have one, valid or not."""
        elements = self.document.data.get(key)
        if not isinstance(elements, list):
            return []
        found = [item.get("name") for item in elements if isinstance(item, dict)]
        return [name for name in found if isinstance(name, str)]

    def problem(self, *path: str | int, why: str) -> Problem:
        """A problem at `path` of the file."""
        return problem(self.document, tuple(path), why)


def time_grid(parts: Parts) -> Iterator[Problem]:
    """Epochs are whole ticks, and the run whole epochs."""
    scenario = parts.scenario
    if parts.whole("epoch", "tick") and scenario.epoch % scenario.tick:
        key = "epoch" if "epoch" in parts.document.data else "tick"
        why = f"epoch ({ms_text(scenario.epoch)}) must be a multiple of tick"
        yield parts.problem(key, why=f"{why} ({ms_text(scenario.tick)})")
    if parts.whole("duration", "epoch") and scenario.duration % scenario.epoch:
        why = f"must be a multiple of epoch ({ms_text(scenario.epoch)})"
        yield parts.problem("duration", why=why)


def names(parts: Parts) -> Iterator[Problem]:
    """Names are unique, of members of groups too; there are VMs, and not too many."""
    data = parts.document.data
    if not data.get("vms") and not data.get("trace"):
        yield parts.problem("vms", why="is required, unless there is a trace")
    for key in ("images", "workloads"):
        yield from _unique(parts, key, ((at, [item.name]) for at, item in parts.items(key)), {})
    kinds = (("hosts", HOSTS_MAX, parts.host_names), ("vms", VMS_MAX, parts.vm_names))
    for key, most, taken in kinds:
        total = sum(group.count for _, group in parts.items(key))
        if total > most:
            yield parts.problem(key, why=f"are {total} in all, more than {most}")
        else:
            members = ((at, member_names(group)) for at, group in parts.items(key))
            yield from _unique(parts, key, members, taken)
    if parts.trace is not None and parts.trace_vms is not None:
        for name in parts.trace.names[parts.trace_vms.index]:
            if name in parts.vm_names:
                why = f"VM {shown(name)} of the trace is also in {parts.vm_names[name]}"
                yield parts.problem("trace", why=why)
            parts.vm_names.setdefault(name, "the trace")


def _unique(
    parts: Parts, key: str, groups: Iterable[tuple[int, list[str]]], taken: dict[str, str]
) -> Iterator[Problem]:
    for at, members in groups:
        twice = next((name for name in members if name in taken), None)
        if twice is not None:
            why = f"{shown(twice)} is also the name of {taken[twice]}"
            yield parts.problem(key, at, "name", why=why)
        for name in members:
            taken.setdefault(name, f"{key}[{at}]")


def references(parts: Parts) -> Iterator[Problem]:
    """Images and workloads that VMs name exist."""
    known = {key: parts.written_names(key) for key in ("images", "workloads")}
    for path, key, name in _named(parts.document.data):
        # An unreadable list of images has been reported already.
        readable = parts.whole(key) or isinstance(parts.document.data.get(key), list)
        if readable and name not in known[key]:
            what = f"{key} has none of this name: {closest(name, known[key])}"
            yield parts.problem(*path, why=f"{what}known: {listed(known[key])}")


def _named(data: dict[str, Any]) -> Iterator[tuple[Place, str, str]]:
    """Where an image or a workload is named, in the file as it is, valid or not."""
    groups, source = data.get("vms"), data.get("trace")
    for at, group in enumerate(groups if isinstance(groups, list) else ()):
        for field_name, key in (("image", "images"), ("workload", "workloads")):
            if isinstance(group, dict) and isinstance(group.get(field_name), str):
                yield ("vms", at, field_name), key, group[field_name]
    for key in ("images", "workloads"):
        weights = source.get(key) if isinstance(source, dict) else None
        for name in weights if isinstance(weights, dict) else ():
            yield ("trace", key, name), key, name


def sizes(parts: Parts) -> Iterator[Problem]:
    """A VM fits into some host, and its guest's boot footprint into the VM."""
    images = {image.name: image for _, image in parts.items("images")}
    hosts = [group for _, group in parts.items("hosts")]
    largest = max((group.machine_bytes for group in hosts), default=0)
    admits = max((group.machine_bytes - group.reserve for group in hosts), default=0)
    for at, group in parts.items("vms"):
        image = images.get(group.image)
        structures = 0 if image is None else group.memory * image.structures // 1000
        # `scenario_hashes` knows how many pages real guests have.
        has_table = image is not None and image.content.hashes is None
        if image is not None and has_table and image.footprint + structures > group.memory:
            why = f"is less than the boot footprint of {group.image}"
            why += f", {bytes_text(image.footprint)}"
            why += f" and {bytes_text(structures)} of structures" * (structures > 0)
            yield parts.problem("vms", at, "memory", why=why)
        if not parts.whole("hosts"):
            continue
        if group.memory > largest:
            why = f"is larger than any host: the largest has {bytes_text(largest)}"
            yield parts.problem("vms", at, "memory", why=why)
        elif group.reservation + group.overhead > admits:
            why = f"reservation and overhead together ({bytes_text(group.reservation)} + "
            why += f"{bytes_text(group.overhead)}) fit on no host: at most {bytes_text(admits)}"
            yield parts.problem("vms", at, why=why)


def applications(parts: Parts) -> Iterator[Problem]:
    """VMs of which it is said what they run have pages of it."""
    images = {image.name: image for _, image in parts.items("images")}
    for at, group in parts.items("vms"):
        image = images.get(group.image)
        if image is None or group.application in (None, "none"):
            continue
        if not any(
            mix.application for table in (image.content, image.growth) for _, mix in table.mixes()
        ):
            why = f"is of no use: image {group.image} has no pages of class application"
            yield parts.problem("vms", at, "application", why=why)


def pools(parts: Parts) -> Iterator[Problem]:
    """Pools that pools and VMs are in exist, and no pool is above itself."""
    yield from _unique(parts, "pools", ((at, [pool.name]) for at, pool in parts.items("pools")), {})
    known = parts.written_names("pools")
    named: list[tuple[Place, str]] = [
        (("pools", at, "parent"), pool.parent) for at, pool in parts.items("pools") if pool.parent
    ]
    named += [(("vms", at, "pool"), group.pool) for at, group in parts.items("vms") if group.pool]
    source = parts.scenario.trace
    if source is not None and source.pool is not None and parts.whole("trace"):
        named.append((("trace", "pool"), source.pool))
    for path, name in named:
        if name not in known:
            why = f"is no pool: {closest(name, known)}known: {listed(known)}"
            yield parts.problem(*path, why=why)
    yield from _overdrawn(parts)
    parents = {pool.name: pool.parent for _, pool in parts.items("pools")}
    for at, pool in parts.items("pools"):
        above, seen = pool.parent, {pool.name}
        while above in parents and above not in seen:
            seen.add(above)
            above = parents[above]
        if above == pool.name:
            yield parts.problem("pools", at, "parent", why="leads back to the pool itself")


def _overdrawn(parts: Parts) -> Iterator[Problem]:
    """Pools in a pool reserve at most what that has, or its limit where it expands."""
    reserved: dict[str | None, int] = {}
    for _, pool in parts.items("pools"):
        reserved[pool.parent] = reserved.get(pool.parent, 0) + pool.reservation
    for at, pool in parts.items("pools"):
        most = pool.limit if pool.expandable else pool.reservation
        if most is not None and reserved.get(pool.name, 0) > most:
            what = "limit" if pool.expandable else "reservation"
            why = f"is less than pools in it reserve together, {bytes_text(reserved[pool.name])}"
            yield parts.problem("pools", at, what, why=why)


def rules(parts: Parts) -> Iterator[Problem]:
    """Rules name VMs and hosts that there are, as members or as groups."""
    groups = {key: parts.written_names(key) for key in ("vms", "hosts")}
    kinds = (("vms", "VM", parts.vm_names), ("hosts", "host", parts.host_names))
    for at, rule in parts.items("rules"):
        for key, what, names in kinds:
            if not parts.whole("vms", "hosts", "trace"):
                continue
            for place, name in enumerate(getattr(rule, key)):
                if name not in names and name not in groups[key]:
                    known = [*groups[key], *islice(names, 10_000)]
                    why = f"is no {what} and no group of {what}s: {closest(name, known)}"
                    why += f"known: {listed(groups[key])}"
                    yield parts.problem("rules", at, key, place, why=why)


def arrivals(parts: Parts) -> Iterator[Problem]:
    """A group's first VM arrives during the run."""
    if not parts.whole("duration"):
        return
    for at, group in parts.items("vms"):
        if not isinstance(group.start, str) and group.start >= parts.scenario.duration:
            why = f"must come before the end of the run ({ms_text(parts.scenario.duration)})"
            yield parts.problem("vms", at, "start", why=why)


def demand(parts: Parts) -> Iterator[Problem]:
    """VMs of the trace can be run: there are some, and each has usage or a workload to follow."""
    trace, vms, source = parts.trace, parts.trace_vms, parts.scenario.trace
    if trace is None or vms is None or source is None:
        return
    if source.vms is not None and len(vms.index) < source.vms:
        why = f"only {len(vms.index)} VMs of the trace run in the simulated time"
        yield parts.problem("trace", "vms", why=why)
    elif not len(vms.index):
        yield parts.problem("trace", why="no VM of it runs in the simulated time: see start")
    without = vms.index[~(vms.has_active | vms.has_cpu)]
    if len(without) and source.workloads is None:
        why = f"{len(without)} VMs of the trace have no usage, such as "
        why += f"{shown(trace.names[without[0]])}: give workloads for the trace's VMs to follow"
        yield parts.problem("trace", why=why)


def warnings(scenario: Scenario, trace: Trace | None, vms: TraceVms | None) -> list[str]:
    """What is allowed, but may not mean what the user thinks."""
    sample = scenario.fidelity.sample
    found = list(_more_active_than_used(scenario))
    for at, group in enumerate(scenario.vms):
        slots = units.slots(group.memory, sample)
        if slots < SLOTS_MIN:
            found.append(f"vms[{at}] ({group.name}): {_too_coarse(slots, group.memory, sample)}")
        found += _late(at, group, scenario.duration)
    if trace is None or vms is None or not len(vms.index):
        return found
    memory = trace.memory_bytes[vms.index]
    smallest = int(memory.min())
    few = sum(units.slots(size, sample) < SLOTS_MIN for size in memory.tolist())
    if few:
        slots = units.slots(smallest, sample)
        found.append(f"trace: {few} VMs, the smallest: {_too_coarse(slots, smallest, sample)}")
    largest = max(host.machine_bytes for host in scenario.hosts)
    large = np.flatnonzero(memory > largest)
    if len(large):
        name = shown(trace.names[vms.index[large[0]]])
        text = f"trace: {len(large)} VMs are larger than any host ({bytes_text(largest)}) and will"
        found.append(f"{text} be refused, such as {name}")
    return found


def _more_active_than_used(scenario: Scenario) -> Iterator[str]:
    """Phases whose active set is larger than the memory in use, where both have the same unit."""
    for at, workload in enumerate(scenario.workloads):
        for number, phase in enumerate(workload.phases):
            memory, active = phase.memory, phase.active
            if memory is not None and memory[0] == active[0] and active[1] > memory[1]:
                where = f"workloads[{at}].phases[{number}] ({workload.name})"
                words = f"active ({amount_text(active)}) is above memory ({amount_text(memory)})"
                yield f"{where}: {words}: what is not in use is not active"


def _too_coarse(slots: int, memory: int, sample: int) -> str:
    usable = sample
    while usable > 1 and units.slots(memory, usable) < SLOTS_MIN:
        usable //= 2
    return (
        f"{bytes_text(memory)} are {slots} slots at fidelity.sample {sample}, too few below "
        f"{SLOTS_MIN}; usable: {usable}"
    )


def _late(at: int, group: VmGroup, duration_ms: int) -> Iterator[str]:
    if isinstance(group.start, str) or not group.interval:
        return
    during = -(-(duration_ms - group.start) // group.interval)
    if during < group.count:
        late = group.count - during
        yield f"vms[{at}] ({group.name}): {late} of {group.count} would arrive after the run's end"
