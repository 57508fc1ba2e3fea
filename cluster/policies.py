"""What a scenario says of the cluster's policies: where VMs go, and when they go elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hostsim.config import FrozenModel
from hostsim.units import MIB, BytesPerSecond, Milliseconds, Permille

Ratio = Annotated[float, Field(ge=0.1, le=1000)]


class Placement(FrozenModel):
    """Which host a VM is powered on at."""

    policy: Literal["first-fit", "best-fit", "worst-fit"] = "worst-fit"
    """The first host with room in name order, the fullest with room, or the emptiest."""
    by: Literal["configured", "consumed", "active"] = "configured"
    """What counts as taken: sizes of VMs, frames they occupy, or memory they use actively."""
    overcommit: Ratio | None = 1.5
    """A host has room while what is taken stays below this many times its memory; null: always."""
    cpu_overcommit: Ratio | None = None
    """vCPUs per CPU, in the same way."""


class Migration(FrozenModel):
    """How VMs move from host to host while they run."""

    bandwidth: BytesPerSecond = Field(1192 * MIB, gt=0)
    """Of a host's migration network, divided evenly among the migrations under way: 10 Gbit/s."""
    concurrent: int = Field(8, ge=1, le=1000)
    """Migrations that a host has part in at a time; 8 is what vSphere allows at 10 Gbit/s."""
    downtime: Milliseconds = 500
    """A guest is stopped once what is left to send takes no longer."""
    stalled: Literal["slow", "abandon"] = "slow"
    """A guest that writes faster than the network sends: slow it down, or give up."""


class Balancing(FrozenModel):
    """Moves running VMs from host to host so that load lies evenly, in the manner of DRS."""

    level: int = Field(0, ge=0, le=5)
    """How small an imbalance is worth a move: 1 only keeps rules, 5 balances any; 0 moves nothing.
    3 is DRS's default."""
    interval: Milliseconds = Field(300_000, gt=0)
    """How often it looks, rounded up to whole epochs. 5 min: DRS until vSphere 6.7."""
    idle: Permille = 250
    """Part of the idle memory that a VM holds that counts as demand: PercentIdleMBInMemDemand."""


class Rule(FrozenModel):
    """Where VMs may be, with which others."""

    kind: Literal["together", "apart", "hosts"]
    """All on one host; no two on one; on the hosts listed only."""
    vms: tuple[str, ...] = Field(min_length=1, max_length=10_000)
    """Names of VMs, or of groups: all of their members."""
    hosts: tuple[str, ...] = Field((), max_length=10_000)
    """Names of hosts or groups, for kind hosts."""

    @model_validator(mode="after")
    def _hosts_belong_to_hosts(self) -> Rule:
        if (self.kind == "hosts") != bool(self.hosts):
            raise ValueError("hosts are given for kind hosts, and for no other")
        return self
