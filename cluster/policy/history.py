"""What decisions add up to over a run: what became of each VM, and how often what was done.

Known to the planner alone: hosts report none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster.policy import agenda, flights, hosts
from cluster.policy.decisions import Decision
from cluster.policy.restarts import RESTART
from cluster.rows import VmFate
from hostsim.units import HostId, VmId


@dataclass(slots=True)
class History:
    """`add` every decision in order; read the fields at any time after."""

    fates: dict[VmId, VmFate] = field(default_factory=dict)
    migrations: int = 0
    migrations_failed: int = 0
    sent_bytes: int = 0
    """By migrations that ended well, as the next three."""
    migrating_s: list[float] = field(default_factory=list)
    rounds: int = 0
    slowed_s: float = 0.0
    failures: list[int] = field(default_factory=list)
    """When hosts failed, in ms."""
    restarts: list[tuple[int, int]] = field(default_factory=list)
    """When the host of each VM that was restarted failed, and when the VM was."""

    def add(self, decision: Decision) -> None:
        """Take one more decision."""
        if decision.vm is not None:
            fate = self.fates.get(decision.vm) or VmFate(decision.vm, decision.at_ms)
            if decision.kind == RESTART and fate.failed_ms is not None:
                self.restarts.append((fate.failed_ms, decision.at_ms))
            self.fates[decision.vm] = _fate(fate, decision)
        if decision.kind == hosts.HOST_FAILED:
            self.failures.append(decision.at_ms)
        if decision.kind == flights.FAILED:
            self.migrations_failed += 1
        if decision.kind == flights.MIGRATED:
            self.migrations += 1
            self.sent_bytes += decision.facts["sent_bytes"]
            self.migrating_s.append(decision.facts["duration_s"])
            self.rounds += decision.facts["rounds"]
            self.slowed_s += decision.facts["slowed_s"]

    def by_vm(self) -> Sequence[VmFate]:
        """Fates in id order."""
        return [self.fates[vm] for vm in sorted(self.fates)]


def _fate(fate: VmFate, decision: Decision) -> VmFate:
    """What is known of a VM after one more decision about it."""
    if decision.kind in (agenda.POWER_ON, RESTART) and decision.host is not None:
        start_ms = decision.at_ms if fate.start_ms is None else fate.start_ms
        begun = replace(fate, start_ms=start_ms, stop_ms=None, failed_ms=None)
        return _seen_on(begun, decision.host)
    if decision.kind == hosts.VM_FAILED:
        return replace(fate, failed_ms=decision.at_ms)
    if decision.kind == flights.MIGRATED and decision.target is not None:
        return _seen_on(fate, decision.target)
    if decision.kind == agenda.POWER_OFF:
        return replace(fate, stop_ms=decision.at_ms)
    if decision.kind == "refused":
        return replace(fate, refused=decision.reason)
    return fate


def _seen_on(fate: VmFate, host: HostId) -> VmFate:
    """Where it ran, each host once, in order."""
    return fate if host in fate.hosts else replace(fate, hosts=(*fate.hosts, host))
