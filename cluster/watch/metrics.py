"""A run in numbers for Prometheus, by Ray's exporter: every name, its unit, what it means.

Set by the coordinator from what it tells of its progress, whenever that has a new view: once a
second. Labels are the run and a few words that are known beforehand, never a host, VM or epoch.
Ray exports every ten seconds, under names that begin with `ray_`, from clusters whose nodes have an
exporter, as those of `ray start` do; a cluster that esxsim starts itself has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray.util import metrics

from cluster.coordinator import Progress
from cluster.watch.live import View
from hostsim.units import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Number:
    """A metric. label: what it is told by beside the run, if anything."""

    name: str
    meaning: str
    label: str | None = None


COUNTERS = (
    Number("esxsim_epochs_total", "Epochs simulated"),
    Number("esxsim_simulated_seconds_total", "Simulated time"),
    Number("esxsim_host_ticks_total", "Hosts times ticks simulated"),
    Number("esxsim_faults_total", "Pages brought in or copied by a guest's touch", "kind"),
    Number("esxsim_swapped_bytes_total", "Memory written to, or read from, host swap", "direction"),
    Number("esxsim_ballooned_bytes_total", "Memory balloons took, or gave back", "direction"),
    Number("esxsim_migrations_total", "Migrations that ended", "outcome"),
)
GAUGES = (
    Number("esxsim_progress_ratio", "Part of the run that is done, 0 to 1"),
    Number("esxsim_memory_bytes", "Memory of all powered-on hosts and VMs by state", "state"),
    Number("esxsim_machine_memory_bytes", "Machine memory of powered-on hosts"),
    Number("esxsim_hosts", "Powered-on hosts by worst reclamation state in an epoch", "level"),
    Number("esxsim_hosts_off", "Hosts that are off"),
    Number("esxsim_vms", "VMs that are on, or wait for a host", "state"),
    Number("esxsim_migrations_in_progress", "VMs on their way to another host"),
    Number("esxsim_checkpoint_age_seconds", "Wall time since a checkpoint, or since the run began"),
    Number("esxsim_actor_restarts", "Processes of the run that were started again"),
    Number("esxsim_time_left_seconds", "Wall time the rest takes at the present rate"),
)
FAULTS = {
    "zero_fill": "zero_fills",
    "swap_in": "swap_in_pages",
    "copy_on_write": "cow_breaks",
    "decompress": "decompressions",
}
"""Kind of fault -> what is counted of it."""


def growth(view: View) -> dict[tuple[str, str], float]:
    """(counter, value of its label) -> how much there was since this process took the run on."""
    counts = view.counts

    def moved(name: str) -> float:
        return float(counts[name] * PAGE_SIZE)

    found = {
        ("esxsim_epochs_total", ""): float(counts["epochs"]),
        ("esxsim_simulated_seconds_total", ""): counts["simulated_ms"] / 1e3,
        ("esxsim_host_ticks_total", ""): float(counts["host_ticks"]),
        ("esxsim_swapped_bytes_total", "out"): moved("swap_out_pages"),
        ("esxsim_swapped_bytes_total", "in"): moved("swap_in_pages"),
        ("esxsim_ballooned_bytes_total", "inflate"): moved("inflated_pages"),
        ("esxsim_ballooned_bytes_total", "deflate"): moved("deflated_pages"),
        ("esxsim_migrations_total", "done"): float(counts["migrated"]),
        ("esxsim_migrations_total", "failed"): float(counts["migration_failed"]),
    }
    faults = {("esxsim_faults_total", kind): float(counts[of]) for kind, of in FAULTS.items()}
    return found | faults


def levels(now: Progress, view: View) -> dict[tuple[str, str], float]:
    """(gauge, value of its label) -> how much there is."""
    age_s = now.wall_s if now.checkpoint_age_s is None else now.checkpoint_age_s
    found = {
        ("esxsim_progress_ratio", ""): now.epoch / now.epochs,
        ("esxsim_machine_memory_bytes", ""): float(view.machine_bytes),
        ("esxsim_hosts_off", ""): float(view.hosts - view.hosts_on),
        ("esxsim_vms", "on"): float(now.vms),
        ("esxsim_vms", "waiting"): float(view.queue),
        ("esxsim_migrations_in_progress", ""): float(view.migrations),
        ("esxsim_checkpoint_age_seconds", ""): age_s,
        ("esxsim_actor_restarts", ""): float(now.restarts),
    }
    if view.left_s is not None:
        found["esxsim_time_left_seconds", ""] = view.left_s
    found |= {("esxsim_memory_bytes", state): float(n) for state, n in now.memory_bytes.items()}
    return found | {("esxsim_hosts", level): float(n) for level, n in now.levels.items()}


class Exporter:
    """Gives Ray what a run tells of its progress. One in the coordinator's process."""

    def __init__(self) -> None:
        self._counters = {
            one.name: metrics.Counter(one.name, one.meaning, _keys(one)) for one in COUNTERS
        }
        self._gauges = {
            one.name: metrics.Gauge(one.name, one.meaning, _keys(one)) for one in GAUGES
        }
        self._labels = {one.name: one.label for one in (*COUNTERS, *GAUGES)}
        self._exported: Mapping[tuple[str, str], float] = {}
        self._view: View | None = None

    def show(self, now: Progress) -> None:
        """Export it, unless its view was exported before."""
        if now.view is None or now.view is self._view:
            return
        self._view = now.view
        grown = growth(now.view)
        for (name, value), total in grown.items():
            more = total - self._exported.get((name, value), 0.0)
            if more > 0:  # Ray takes no others
                self._counters[name].inc(more, self._tags(name, value))
        self._exported = grown
        for (name, value), level in levels(now, now.view).items():
            self._gauges[name].set(level, self._tags(name, value))

    def _tags(self, name: str, value: str) -> dict[str, str]:
        assert self._view is not None
        label = self._labels[name]
        return {"run": self._view.run} | ({} if label is None else {label: value})


def _keys(one: Number) -> tuple[str, ...]:
    return ("run",) if one.label is None else ("run", one.label)
