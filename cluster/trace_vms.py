"""VMs of a trace as a scenario sees them: which take part, from when to when, and what they do.

A choice about a VM is drawn from the seed and the VM's name alone, so it does not depend on which
other VMs there are. Work is on whole columns: a trace has millions of readings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.scenario import TraceSource
from cluster.trace import Trace
from hostsim.guest_config import TraceGuest
from hostsim.program import KEEP, LOCALITIES, ROW, Rows
from hostsim.units import PAGE_SIZE

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FOREVER_MS = 1 << 62
"""End of a program's last row."""


@dataclass(frozen=True, slots=True)
class TraceVms:
    """The VMs of a trace that take part, in order of their names.

    index (n,) int64 position in the trace. start_ms, stop_ms (n,) int64 ms of simulated time;
    start 0 for those that run already, stop -1 exactly when running at the trace's end.
    images, workloads: name per VM; workloads is empty where VMs follow their own usage.
    has_active, has_cpu (n,) bool: whether any reading of it is known.
    """

    index: Ints
    start_ms: Ints
    stop_ms: Ints
    images: tuple[str, ...]
    workloads: tuple[str, ...]
    has_active: Mask
    has_cpu: Mask


def draw(seed: int, purpose: str, name: str) -> int:
    """64 uniform bits for one purpose of one VM."""
    text = f"{purpose}\0{name}".encode()
    digest = hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big")


def below(seed: int, purpose: str, name: str, bound: int) -> int:
    """A uniform draw from [0, bound)."""
    return draw(seed, purpose, name) * bound >> 64


def pick(weights: Mapping[str, int], seed: int, purpose: str, name: str) -> str:
    """A name with odds by weight; the order in which weights are written does not matter."""
    point = below(seed, purpose, name, sum(weights.values()))
    for choice in sorted(weights):
        point -= weights[choice]
        if point < 0:
            return choice
    raise AssertionError("a draw lies below the sum of the weights")


def running(trace: Trace, start_ms: int, duration_ms: int) -> Ints:
    """Positions of the VMs that run at some time of the simulation."""
    arrives = trace.start_s * 1000 < start_ms + duration_ms
    stays = (trace.stop_s < 0) | (trace.stop_s * 1000 > start_ms)
    return np.flatnonzero(arrives & stays)


def choose(trace: Trace, found: Ints, count: int | None, seed: int) -> Ints:
    """`count` of the VMs in `found`: those with the lowest draws (ties: the lower name)."""
    if count is None or count >= len(found):
        return found
    draws = [draw(seed, "choice", name) for name in trace.names[found]]
    lowest = np.argsort(np.array(draws, np.uint64), kind="stable")[:count]
    return np.sort(found[lowest])


def take(trace: Trace, source: TraceSource, seed: int, found: Ints) -> TraceVms:
    """The VMs in `found` with their times, images and workloads."""
    names: Sequence[str] = trace.names[found].tolist()
    starts, stops = trace.start_s[found] * 1000, trace.stop_s[found] * 1000
    workloads = source.workloads or {}
    return TraceVms(
        index=found,
        start_ms=np.maximum(starts - source.start, 0),
        stop_ms=np.where(stops < 0, -1, stops - source.start),
        images=tuple(pick(source.images, seed, "image", name) for name in names),
        workloads=tuple(pick(workloads, seed, "workload", name) for name in names if workloads),
        has_active=_any_known(trace.active_bytes, trace.offsets)[found],
        has_cpu=_any_known(trace.cpu_permille, trace.offsets)[found],
    )


def _any_known(readings: Ints, offsets: Ints) -> Mask:
    known = np.concatenate(([0], np.cumsum(readings >= 0)))
    mask: Mask = known[offsets[1:]] > known[offsets[:-1]]
    return mask


def _filled(readings: Ints, first: Ints, end: Ints) -> Ints:
    """Unknown readings as the last known one of the same VM, or before it as its first.

    first, end (n,): where the readings of this reading's VM begin and end. What stays -1 belongs to
    a VM without any.
    """
    here = np.arange(len(readings))
    known = readings >= 0
    last = np.maximum.accumulate(np.where(known, here, -1))
    after = np.where(known, here, len(readings))
    following = np.minimum.accumulate(after[::-1])[::-1]
    source = np.where(last >= first, last, following)
    usable = source < end
    return np.where(usable, readings[np.where(usable, source, 0)], -1)


def programs(
    trace: Trace, vms: TraceVms, guest: TraceGuest, start_ms: int, duration_ms: int
) -> list[Rows]:
    """A program per VM, on the wall clock since its start, for a run from `start_ms` of the trace.

    Every VM has known readings. A reading holds until the next, the last for ever, and the first
    back to the start. The active memory is what was read, or by the CPU where nothing was. Rows
    KEEP the memory in use: the active window starts in the boot footprint and slides on to pages
    never used before, so what the guest holds grows with its drift and with its peaks, up to its
    size, and it frees nothing.
    """
    low, high = trace.offsets[vms.index], trace.offsets[vms.index + 1]
    counts = high - low
    ends = np.cumsum(counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    at = np.arange(ends[-1] if len(ends) else 0) + (low - (ends - counts))[owner]
    first, end = (ends - counts)[owner], ends[owner]
    active = _filled(trace.active_bytes[at], first, end)
    cpu = np.maximum(_filled(trace.cpu_permille[at], first, end), 0)
    size = (-(-trace.memory_bytes[vms.index] // PAGE_SIZE))[owner]
    idle, busy = guest.active_idle, guest.active_busy
    by_cpu = size * (idle * 1000 + cpu * (busy - idle)) // 1_000_000
    pages = np.minimum(np.where(active < 0, by_cpu, -(-active // PAGE_SIZE)), size)

    # Time 0 of a VM's program is its own start in the simulation.
    zero = np.maximum(trace.start_s[vms.index] * 1000, start_ms)[owner]
    begin = trace.t_s[at] * 1000 - zero
    is_last = np.append(owner[1:] != owner[:-1], True)[: len(owner)]
    until = np.where(is_last, FOREVER_MS, np.append(begin[1:], 0)[: len(owner)])
    begin = np.where(np.arange(len(owner)) == first, 0, begin)
    kept = (until > 0) & (begin < start_ms + duration_ms - zero)
    owner, pages, cpu, until = owner[kept], pages[kept], cpu[kept], until[kept]

    # A run of equal rows is one row, ending with the last of them.
    ends_run = np.ones(len(owner), np.bool_)
    same = (owner[1:] == owner[:-1]) & (pages[1:] == pages[:-1]) & (cpu[1:] == cpu[:-1])
    ends_run[:-1] = ~same
    rows = np.zeros(int(ends_run.sum()), ROW)
    rows["until_ms"] = until[ends_run]
    rows["memory_pages"] = KEEP
    rows["active_pages"] = pages[ends_run]
    rows["touch_interval_ms"] = guest.touch_interval
    rows["writes_permille"] = guest.writes
    rows["locality"] = LOCALITIES.index(guest.locality)
    rows["drift_permille_per_h"] = guest.drift
    rows["cpu_permille"] = cpu[ends_run]
    parts = np.cumsum(np.bincount(owner[ends_run], minlength=len(counts)))[:-1]
    return list(np.split(rows, parts)) if len(counts) else []
