"""How much memory a run will take, before it takes any.

What grows is state per page slot and per content that a host's VMs can hold; both shrink with the
sampling factor, so a run that is too large has one knob that makes it fit. The estimate is for the
busiest moment of the plan, with every VM placed, and errs upwards: contents are counted for each
host as if every image family came to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.population import PlannedVm, Population
from cluster.scenario import SAMPLE_MAX
from cluster.yaml_input import InputError, Problem
from hostsim.guest_config import ContentTable, GuestImage
from hostsim.load import copy_counters
from hostsim.program import ROW
from hostsim.replay import EVENT
from hostsim.spec import VmSpec
from hostsim.units import GIB, MIB, slots

SLOT_BYTES = 5
"""4 B of content id and 1 B of state."""
WINDOW_BYTES = 9
"""Working space of a host, for a slot of its largest VM: loudness, and two places."""
CONTENT_BYTES = 14
"""A hint or a count of references, a kind, and 5/4 entries of the table of stale hints."""
COUNTER_BYTES = 16
"""A page and how often it was copied, on a host whose devices reach a part of memory only."""
PROCESS_BYTES = 150 * MIB
"""Python with NumPy, compiled kernels and an actor's own needs."""
VM_BYTES = 4096
"""A VM's objects and rows of scalars, in the coordinator and on its host."""
AGED_BYTES, RANK_BYTES = 8, 2
"""More for a slot and a content on hosts that compress: its neighbours by age; how far it does."""
_HELD_TWICE = 2
"""Programs and replays lie in the coordinator and, loaded, on the host."""
_SHARED_CLASSES = ("image", "application")


class TooLargeError(InputError):
    """The run needs more memory than there is; `sample` would make it fit, None if nothing does."""

    def __init__(self, file: str, problem: Problem, needed_bytes: int, sample: int | None) -> None:
        super().__init__(file, [problem])
        self.needed_bytes, self.sample = needed_bytes, sample


def estimate(population: Population, sample: int, processes: int) -> int:
    """Bytes that all processes of a run take together, at its busiest moment."""
    at_peak = busiest(population.vms, sample)
    sizes = sorted((slots(spec.config.memory, sample) for spec in at_peak), reverse=True)
    programs = {id(vm.spec.program): len(vm.spec.program) for vm in population.vms}
    replays = [vm.spec.replay for vm in population.vms]
    events = sum(len(replay.events) for replay in replays if replay is not None)
    compress = any(host.config.compression.enabled for host in population.hosts)
    return (
        sum(sizes) * (SLOT_BYTES + AGED_BYTES * compress)
        + sum(sizes[: len(population.hosts)]) * WINDOW_BYTES
        + _contents(population, at_peak, sample) * (CONTENT_BYTES + RANK_BYTES * compress)
        + (sum(programs.values()) * ROW.itemsize + events * EVENT.itemsize) * _HELD_TWICE
        + sum(copy_counters(host.config, sample) for host in population.hosts) * COUNTER_BYTES
        + len(population.vms) * VM_BYTES
        + processes * PROCESS_BYTES
    )


def check(
    population: Population, sample: int, processes: int, available_bytes: int, file: str = ""
) -> int:
    """The estimate, or TooLargeError with the least sampling factor that would fit."""
    needed = estimate(population, sample, processes)
    if needed <= available_bytes:
        return needed
    usable = sample * 2
    while usable <= SAMPLE_MAX and estimate(population, usable, processes) > available_bytes:
        usable *= 2
    fits = usable if usable <= SAMPLE_MAX else None
    advice = f"{fits} would fit" if fits else "no value makes it fit: take fewer VMs or hosts"
    message = f"the run needs about {_gib(needed)} of memory, {_gib(available_bytes)} are "
    message += f"available; {advice}"
    raise TooLargeError(file, Problem("fidelity.sample", None, str(sample), message), needed, fits)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def busiest(vms: Sequence[PlannedVm], sample: int) -> list[VmSpec]:
    """The VMs that are on when most slots are; those that events start count as always on.

    Ties: the earliest moment.
    """
    start = np.array([vm.start_ms or 0 for vm in vms], np.int64)
    never = np.iinfo(np.int64).max
    stop = np.array([never if vm.stop_ms is None else vm.stop_ms for vm in vms], np.int64)
    stop[[vm.start_ms is None for vm in vms]] = never
    size = np.array([slots(vm.spec.config.memory, sample) for vm in vms], np.int64)
    if not len(vms):
        return []
    times = np.concatenate((stop, start))
    changes = np.concatenate((-size, size))
    # Departures come before arrivals of the same time.
    order = np.lexsort((np.repeat([0, 1], len(vms)), times))
    peak_ms = times[order][np.argmax(np.cumsum(changes[order]))]
    on = (start <= peak_ms) & (stop > peak_ms)
    return [vms[at].spec for at in np.flatnonzero(on).tolist()]


def _permille(table: ContentTable, classes: Sequence[str]) -> int:
    return sum(getattr(mix, kind) for _, mix in table.mixes() for kind in classes)


def _contents(population: Population, vms: Sequence[VmSpec], sample: int) -> int:
    """Distinct contents that hosts must count: shared ranges per host, duplicates per VM."""
    salted = any(host.config.sharing.salting == "vm" for host in population.hosts)
    common: dict[tuple[int, int], list[int]] = {}
    rates: dict[int, tuple[int, float]] = {}
    own = 0
    for spec in vms:
        if spec.replay is not None:
            common.setdefault((spec.image_range, 0), []).append(spec.replay.contents)
            continue
        key = id(spec.image)
        if key not in rates:
            rates[key] = _rates(spec.image)
        shared_permille, duplicates = rates[key]
        count = slots(spec.config.memory, sample)
        own += int(count * duplicates) + 1
        common.setdefault((spec.image_range, spec.application_range), []).append(
            -(-count * shared_permille // 1000) + slots(spec.image.pool, sample)
        )
    if salted:
        return own + sum(sum(counts) for counts in common.values())
    hosts = len(population.hosts)
    return own + sum(min(hosts, len(counts)) * max(counts) for counts in common.values())


def _rates(image: GuestImage) -> tuple[int, float]:
    """Of a VM's pages at most: permille of shared ranges; contents per page of duplicates."""
    tables = image.content, image.growth
    shared = max(_permille(table, _SHARED_CLASSES) for table in tables)
    duplicates = max(_permille(table, ("duplicate",)) for table in tables)
    return shared, duplicates / 1000 / image.copies
