"""PURE: what keeps more from fitting, from the report of the first run in which it did not.

VMs that were refused are bound by what they were refused for. Otherwise it is what the guests lost
their time to: guest paging, blocking and copies are memory; waiting for the host's swap is memory
too, unless its device was as busy as it can be, then it is swap I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.messages import CAUSES
from cluster.scenario import Scenario, member_names
from cluster.studies.figures import REFUSED_BY
from cluster.summary import CAUSE_WORDS, count, percent
from hostsim.units import PAGE_SIZE

BUSY = 0.9
"""A device that does this part of the operations it sustains is at its limit."""
OF_REASON = {
    "no host has the memory reserved": "memory reservations",
    "no host has the swap space": "swap space",
    "no host is within the memory overcommit limit": "the limit placement.overcommit",
    "no host is within the CPU overcommit limit": "the limit placement.cpu_overcommit",
    "its pool has not the memory reserved": "a resource pool's reservation",
    "no host keeps the rules": "the rules of where VMs may be",
    "the room for host failures would be taken": "the room kept for host failures",
}
"""Reason of a refusal -> what binds."""
OVERSIZED = f"{REFUSED_BY}larger than any host"
"""VMs that no number of hosts or VMs makes fit: what fits is asked of the others."""
OF_CAUSE = {"cpu": "CPU", "scan": "CPU", "migration": "migration"}
"""Cause of lost time -> what binds; memory for all others."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Something that binds, and the numbers that say so."""

    what: str
    evidence: str


def bounds(numbers: Mapping[str, float], busy: float) -> list[Bound]:
    """What binds, what would next, and so on, the tightest first; ties in a fixed order.

    numbers: the report's. busy: the part of swapped-in pages that came while the host's swap device
    was at its limit.
    """
    refused = [
        (name.removeprefix(REFUSED_BY), int(n))
        for name, n in numbers.items()
        if name.startswith(REFUSED_BY) and n
    ]
    refused.sort(key=lambda one: (-one[1], one[0]))
    found = [
        Bound(OF_REASON.get(reason, reason), f"{count(n)} VM{'s' * (n > 1)} refused: {reason}")
        for reason, n in refused
    ]
    lost = {cause: numbers.get(f"cost.slowdown_by_cause.{cause}", 0.0) for cause in CAUSES}
    of = {cause: OF_CAUSE.get(cause, "memory") for cause in CAUSES}
    if busy > 0.5:
        of["swap_in"] = "swap I/O"
    whole = fsum(lost.values())
    parts = {
        what: fsum(lost[cause] for cause in CAUSES if of[cause] == what)
        for what in dict.fromkeys(of.values())
    }
    for what in sorted(parts, key=lambda what: -parts[what]):
        if parts[what] > 0:
            mine = [cause for cause in CAUSES if of[cause] == what]
            most = max(mine, key=lambda cause: lost[cause])
            text = f"{percent(parts[what] / whole)} of the time lost, most of it "
            found.append(Bound(what, text + CAUSE_WORDS[most]))
    return found


def device_busy(folder: Path, scenario: Scenario) -> float:
    """Of the pages that a run swapped in, the part that came in host-epochs in which the swap
    device did at least BUSY of the operations that it sustains. 0 where none came."""
    disks = {name: group.swap for group in scenario.hosts for name in member_names(group)}
    names = ["host_name", "swap_in_bytes", "swap_out_bytes"]
    table = pq.read_table(folder / "hosts.parquet", columns=names)
    hosts, at = np.unique(table["host_name"].to_numpy(zero_copy_only=False), return_inverse=True)
    iops = np.array([disks[name].iops for name in hosts])[at]
    cluster = np.array([disks[name].write_cluster for name in hosts])[at]
    into, out = (table[name].to_numpy() / PAGE_SIZE for name in names[1:])
    is_busy = into + out / cluster >= BUSY * iops * scenario.epoch / 1000
    total = into.sum()
    return float(into[is_busy].sum() / total) if total else 0.0


def told(found: list[Bound]) -> dict[str, Any]:
    """For files: what binds, and the runner-up."""
    named = [{"what": one.what, "evidence": one.evidence} for one in found]
    return {"binds": named[0] if named else None, "next": named[1] if len(named) > 1 else None}
