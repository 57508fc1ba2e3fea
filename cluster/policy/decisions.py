"""What a plan is made of: orders, the state that they lead to, and why.

A plan is the sum of its parts, each of which sees what those before it did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.messages import Order
from cluster.policy.state import ClusterState
from cluster.population import Population
from cluster.scenario import Scenario
from hostsim.units import HostId, VmId


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the run's history: what was decided, about which VM, on which numbers."""

    at_ms: int
    kind: str
    vm: VmId | None
    """None: it is about `host` itself."""
    host: HostId | None = None
    target: HostId | None = None
    """Where a VM migrates to."""
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders of an epoch, the state that they lead to, and why."""

    orders: tuple[Order, ...]
    after: ClusterState
    decisions: tuple[Decision, ...]

    def then(self, later: Plan) -> Plan:
        """This plan and one that was made on the state after it."""
        orders, decisions = self.orders + later.orders, self.decisions + later.decisions
        return Plan(orders, later.after, decisions)


@dataclass(frozen=True, slots=True)
class Sight:
    """What every part of a plan may look at beside the state."""

    population: Population
    scenario: Scenario
    epoch: int

    @property
    def at_ms(self) -> int:
        """The moment at which the plan acts."""
        return self.epoch * self.scenario.epoch

    def next_look(self, interval_ms: int) -> int:
        """The next epoch that begins an interval; intervals are rounded up to whole epochs."""
        every = whole_epochs(self.scenario, interval_ms)
        return self.epoch - self.epoch % every + every

    def looks(self, interval_ms: int) -> bool:
        """Whether this epoch begins an interval, but for the first one."""
        return self.epoch > 0 and self.epoch % whole_epochs(self.scenario, interval_ms) == 0


def whole_epochs(scenario: Scenario, interval_ms: int) -> int:
    """Epochs of an interval, rounded up."""
    return -(-interval_ms // scenario.epoch)
