"""The consolidation report: one dict for report.json, one row per VM, and the digest of a run.

All of it comes from an `Aggregator`'s integers and from what the planner decided. Float means are
exact sums (`fsum`). A percentile is always a value that occurred: the smallest one with at least
that part of all values at or below it; over VM-epochs it is rounded to the bins of the histogram.
Where there is nothing to measure a value is null, never NaN. Nothing here reads or writes files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

import numpy as np

from cluster import sampling_error
from cluster.aggregate import (
    BINS_PER_ONE,
    EVENTS,
    HELD,
    MEMORY,
    MICRO,
    SLOWDOWN_MAX,
    Aggregator,
    slowdowns,
)
from cluster.messages import CAUSES, LEVELS, Rows
from cluster.policy.history import History
from cluster.report_shape import SCHEMA
from cluster.rows import Columns, VmFate
from hostsim.units import GIB, PAGE_SIZE, HostId

PERCENTS = (50, 95, 99)
AFTERMATH_MS = 3_600_000
"""How long after a failure reclamation is looked at, against as long before."""
STEADY_EPOCHS, STEADY_SLACK = 3, 0.01
"""After a failure: epochs in a row, and how much more host time outside HIGH than before it."""
UNKNOWN = dict.fromkeys(("mean", *(f"p{percent}" for percent in PERCENTS), "max"))
METHOD = {
    "report.energy": "of hosts that are on, linear in CPU load; not of network, storage, cooling",
    "report.percentile": "nearest rank: the smallest value with at least that part of all values "
    "at or below it",
    "report.slowdown_max": SLOWDOWN_MAX,
    "report.slowdown_epoch_resolution": 1 / BINS_PER_ONE,
}
"""What the report itself assumes."""


def nearest_rank(ordered: Sequence[Any], percent: int) -> Any:
    """The smallest of the sorted values with at least `percent` % of them at or below it."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


def _mean(values: Sequence[float]) -> float | None:
    """The exactly added mean; None where there is nothing to average."""
    return fsum(values) / len(values) if values else None


def build(
    run: Aggregator,
    scenario: Mapping[str, Any],
    history: History,
    assumptions: Mapping[str, Any],
) -> dict[str, Any]:
    """report.json, its digest still null. `scenario` holds name, seed and digest."""
    return {
        "schema": SCHEMA,
        "scenario": {name: scenario[name] for name in ("name", "seed", "digest")},
        "digest": None,
        "partial": False,
        "simulated_s": len(run.epochs["hosts"]) * run.epoch_ms / 1e3,
        "hosts": _hosts(run),
        "vms": _vms(history.by_vm()),
        "consolidation": _consolidation(run),
        "memory_gib": {name: _memory(run, name) for name in MEMORY},
        "reclaim_states": _levels(run),
        "cost": _cost(run),
        "migrations": _migrations(history),
        "failures": _failures(run, history),
        "energy": {"kwh": sum(run.epochs["power_mw"]) * run.epoch_ms / 3.6e12},
        "error": _error(run),
        "assumptions": {**assumptions, **METHOD},
    }


def _hosts(run: Aggregator) -> dict[str, Any]:
    on, demand = run.epochs["hosts"], run.epochs["cpu_demand_permille"]
    return {
        "count": len(run.hosts.ids),
        "powered_on_mean": sum(on) / len(on) if on else None,
        "memory_gib": int(run.hosts.memory_pages.sum()) * PAGE_SIZE / GIB,
        "cpus": int(run.hosts.cpus.sum()),
        "cpu_demand_mean": sum(demand) / len(demand) / 1000 if demand else None,
    }


def _vms(fates: Sequence[VmFate]) -> dict[str, Any]:
    status = Counter(fate.status for fate in fates)
    why = Counter(str(fate.refused) for fate in fates if fate.status == "refused")
    return {
        "submitted": len(fates),
        "placed": status["placed"],
        "refused": status["refused"],
        "refused_by": {reason: why[reason] for reason in sorted(why)},
        "waiting": status["waiting"],
        "completed": sum(f.status == "placed" and f.stop_ms is not None for f in fates),
    }


def _migrations(history: History) -> dict[str, Any]:
    n = history.migrations
    return {
        "count": n,
        "gib": history.sent_bytes / GIB,
        "mean_s": _mean(history.migrating_s),
        "rounds_mean": history.rounds / n if n else None,
        "slowed_s": history.slowed_s,
        "failed": history.migrations_failed,
    }


def _failures(run: Aggregator, history: History) -> dict[str, Any]:
    """Host failures, and what became of their VMs. Downtime is summed over VMs: up to their
    restart, their planned end, or the end of the run."""
    end_ms = len(run.epochs["hosts"]) * run.epoch_ms
    lost = [fate for fate in history.by_vm() if fate.failed_ms is not None]
    downtime_ms = sum(restarted - failed for failed, restarted in history.restarts)
    for fate in lost:
        downtime_ms += min(fate.stop_ms or end_ms, end_ms) - (fate.failed_ms or 0)
    steady_ms = [_steady_after(run, history, at_ms) for at_ms in history.failures]
    known = [found / 1000 for found in steady_ms if found is not None]
    return {
        "hosts": len(history.failures),
        "vms_restarted": len(history.restarts),
        "vms_lost": len(lost),
        "downtime_s": downtime_ms / 1000,
        "steady_s": _mean(known) if len(known) == len(steady_ms) else None,
        "sharing_broken_gib": _mean([_sharing_broken(run, at_ms) for at_ms in history.failures]),
        "storm_host_s": _mean([_storm(run, at_ms) for at_ms in history.failures]),
    }


def _sharing_broken(run: Aggregator, failed_ms: int) -> float:
    """GiB that sharing saved in the epoch before a failure and no longer at the end of its own."""
    first = failed_ms // run.epoch_ms
    saved = run.epochs["shared_saved_pages"]
    before = saved[first - 1] if first else 0
    return max(before - saved[first], 0) * PAGE_SIZE / GIB


def _storm(run: Aggregator, failed_ms: int) -> float:
    """Host seconds outside HIGH in the hour after a failure, beyond those of the hour before."""
    first, span = failed_ms // run.epoch_ms, max(AFTERMATH_MS // run.epoch_ms, 1)

    def pressed_ms(epochs: range) -> int:
        hosts, high = run.epochs["hosts"], run.epochs["high_ms"]
        return sum(hosts[at] * run.epoch_ms - high[at] for at in epochs)

    after = range(first, min(first + span, len(run.epochs["hosts"])))
    before = range(max(first - len(after), 0), first)
    return (pressed_ms(after) - pressed_ms(before)) / 1000


def _steady_after(run: Aggregator, history: History, failed_ms: int) -> int | None:
    """How long after a failure, in ms, the cluster was as calm again as before it.

    Calm: in STEADY_EPOCHS epochs in a row the part of host time outside HIGH was at most what it
    was in the epoch before the failure, and STEADY_SLACK; and all that restart had. None: never.
    """
    first = failed_ms // run.epoch_ms
    hosts, high = run.epochs["hosts"], run.epochs["high_ms"]

    def pressed(epoch: int) -> float:
        return 1 - high[epoch] / (hosts[epoch] * run.epoch_ms) if hosts[epoch] else 0.0

    before = pressed(first - 1) if first else 0.0
    restarted = [at for failed, at in history.restarts if failed == failed_ms]
    calm = 0
    for epoch in range(max(first, max(restarted, default=0) // run.epoch_ms), len(hosts)):
        calm = calm + 1 if pressed(epoch) <= before + STEADY_SLACK else 0
        if calm == STEADY_EPOCHS:
            return (epoch + 1 - STEADY_EPOCHS) * run.epoch_ms - failed_ms
    return None


def _consolidation(run: Aggregator) -> dict[str, Any]:
    def ratios(part: str, whole: str) -> list[float]:
        pairs = zip(run.epochs[part], run.epochs[whole], strict=True)
        return [a / b for a, b in pairs if b]

    overcommit = ratios("configured_pages", "memory_pages")
    return {
        "vms_per_host_mean": _mean(ratios("vms", "hosts")),
        "vms_per_host_max": run.most_vms,
        "overcommit_configured": _mean(overcommit),
        "overcommit_peak": max(overcommit, default=None),
    }


def _memory(run: Aggregator, name: str) -> dict[str, float | None]:
    """Mean, 95th percentile and maximum over epochs, in GiB: pages divided by a power of 2."""
    pages = sorted(run.epochs[f"{name}_pages"])
    if not pages:
        return {"mean": None, "p95": None, "max": None}
    per_gib = GIB // PAGE_SIZE
    mean = sum(pages) / len(pages) / per_gib
    return {"mean": mean, "p95": nearest_rank(pages, 95) / per_gib, "max": pages[-1] / per_gib}


def _levels(run: Aggregator) -> dict[str, float | None]:
    """Part of host time in each reclamation state; clear, where a host has that."""
    whole = sum(run.sums[f"{level}_ms"] for level in LEVELS)
    levels = [
        level
        for level in LEVELS
        if level != "clear" or any(host.has_clear for host in run.hosts.facts)
    ]
    return {level: run.sums[f"{level}_ms"] / whole if whole else None for level in levels}


def _cost(run: Aggregator) -> dict[str, Any]:
    """What the guests paid. By cause: the mean over VMs of time lost / powered-on time."""
    ran = run.on_ns > 0
    on_ns, lost_ns = run.on_ns[ran], run.lost_ns[ran]
    parts = dict(zip(CAUSES, (lost_ns / on_ns[:, None]).T.tolist(), strict=True))
    lost = dict(zip(CAUSES, lost_ns.T.tolist(), strict=True))
    return {
        "slowdown": _spread(slowdowns(on_ns, lost_ns.sum(axis=1))),
        "slowdown_epoch": _slowdown_epoch(run),
        "slowdown_by_cause": {cause: _mean(parts[cause]) for cause in CAUSES},
        **{name: run.sums[name] for name in EVENTS},
        "blocked_s": sum(lost["blocked"]) / 1e9,
        "migration_downtime_s": sum(lost["migration"]) / 1e9,
    }


def _spread(values: Rows) -> dict[str, float | None]:
    """Mean, percentiles and maximum, each value once."""
    ordered: list[float] = np.sort(values).tolist()
    if not ordered:
        return UNKNOWN
    ranks = {f"p{percent}": nearest_rank(ordered, percent) for percent in PERCENTS}
    return {"mean": _mean(ordered), **ranks, "max": ordered[-1]}


def _slowdown_epoch(run: Aggregator) -> dict[str, float | None]:
    """Over VM-epochs: mean and maximum to 1 / MICRO, percentiles by bin."""
    upto = np.cumsum(run.bins)
    count = int(upto[-1])
    if not count:
        return UNKNOWN
    ranks = {f"p{percent}": -(-percent * count // 100) for percent in PERCENTS}
    return {
        "mean": run.micro / count / MICRO,
        **{name: int(np.searchsorted(upto, rank)) / BINS_PER_ONE for name, rank in ranks.items()},
        "max": run.slowest_micro / MICRO,
    }


def _error(run: Aggregator) -> dict[str, Any]:
    """Relative standard errors of simulating one page slot in k: see `cluster.sampling_error`."""
    errors = sampling_error.relative_errors(run.contrasts, run.sample)
    return {"sample": run.sample} | {f"{name}_rel_std": one for name, one in errors.items()}


def vm_table(run: Aggregator, fates: Sequence[VmFate]) -> Columns:
    """The columns of vms.parquet, one row per VM in id order. Unknown is null, never NaN."""
    by_id = {fate.vm: fate for fate in fates}
    fate = [by_id.get(vm.vm) for vm in run.vms]
    ran = run.on_ns > 0
    slowdown = np.ones(len(ran))
    slowdown[ran] = slowdowns(run.on_ns[ran], run.lost_ns[ran].sum(axis=1))
    held: dict[str, Any] = {}
    for name in HELD:
        mean = run.held_sums[name] * PAGE_SIZE / np.maximum(run.rows, 1)
        held[f"{name}_mean_bytes"] = np.ma.masked_array(mean, run.rows == 0)
        maximum = run.held_maxima[name] * PAGE_SIZE
        held[f"{name}_max_bytes"] = np.ma.masked_array(maximum, run.rows == 0)
    return {
        "vm": run.ids,
        "name": [vm.name for vm in run.vms],
        "status": [one.status if one else "not submitted" for one in fate],
        "refused": [one.refused if one and one.status == "refused" else None for one in fate],
        "hosts": [", ".join(map(run.hosts.name, one.hosts)) if one else None for one in fate],
        "submitted_s": _seconds([one.submitted_ms if one else None for one in fate]),
        "start_s": _seconds([one.start_ms if one else None for one in fate]),
        "stop_s": _seconds([one.stop_ms if one else None for one in fate]),
        "size_bytes": np.array([vm.memory_bytes for vm in run.vms], np.int64),
        "reservation_bytes": np.array([vm.reservation_bytes for vm in run.vms], np.int64),
        "vcpus": np.array([vm.vcpus for vm in run.vms], np.int64),
        "on_s": run.on_ns / 1e9,
        **{f"lost_{cause}_s": run.lost_ns[:, i] / 1e9 for i, cause in enumerate(CAUSES)},
        "slowdown": np.ma.masked_array(slowdown, ~ran),
        "touches": run.touches,
        "work_left_s": run.work_left_ns / 1e9,
        **held,
    }


def _seconds(times_ms: Sequence[int | None]) -> Any:
    """Milliseconds or None -> seconds, masked where unknown."""
    unknown = np.array([ms is None for ms in times_ms], bool)
    seconds = np.array([(ms or 0) / 1e3 for ms in times_ms], np.float64)
    return np.ma.masked_array(seconds, unknown)


def canonical(report: Mapping[str, Any]) -> bytes:
    """The report without its digest, in one spelling: sorted keys, floats by repr, no NaN."""
    rest = {name: value for name, value in report.items() if name != "digest"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(report: Mapping[str, Any], state_digests: Mapping[HostId, str]) -> str:
    """SHA-256 over the report and the final integer state of every host (its VMs in it)."""
    found = hashlib.sha256(canonical(report))
    for host in sorted(state_digests):
        found.update(f"\n{host} {state_digests[host]}".encode())
    return found.hexdigest()
