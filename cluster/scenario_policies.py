"""What a scenario says of the cluster's policies: where VMs go, and when they go elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hostsim.config import FrozenModel
from hostsim.units import MIB, Bytes, BytesPerSecond, Milliseconds, Milliwatts, Permille

Name = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Names appear in file names, logs and tables: letters, digits, dot, underscore, hyphen."""
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
    content: Permille = 0
    """Weight of what a VM would share with those already on a host, as a part of its size, against
    what the policy goes by; 100 %: content alone, and the policy among hosts alike. Balancing
    weighs moves in the same way (Memory Buddies, VEE 2009)."""
    tolerate: int = Field(0, ge=0, le=1000)
    """Host failures after which all reservations must still fit on the other hosts: what HA's
    admission control by cluster resources keeps free."""


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


POOL_SHARES = {"low": 81_920, "normal": 163_840, "high": 327_680}
"""A pool counts as a VM of 16 GiB, with 5, 10 or 20 shares a MiB (vSphere's defaults)."""


class ResourcePool(FrozenModel):
    """Memory that VMs, or pools below it, have in common."""

    name: Name
    parent: str | None = None
    """The pool that it is in; none: it is at the root, which has all hosts' memory."""
    reservation: Bytes = 0
    expandable: bool = True
    """When its VMs reserve more than it has, the rest may come from the pool above."""
    limit: Bytes | None = Field(None, gt=0)
    shares: Annotated[int, Field(ge=1, le=1 << 40)] | Literal["low", "normal", "high"] = "normal"

    @property
    def share_count(self) -> int:
        """Shares as a number."""
        return self.shares if isinstance(self.shares, int) else POOL_SHARES[self.shares]

    @model_validator(mode="after")
    def _bounds(self) -> ResourcePool:
        if self.limit is not None and self.reservation > self.limit:
            raise ValueError("reservation must not exceed limit")
        return self


class Failures(FrozenModel):
    """Hosts that fail at random, each independently of its age and of the others."""

    mean_time: Milliseconds = Field(gt=0)
    """Between two failures of one host, on average."""
    repair: Milliseconds = Field(7_200_000, gt=0)
    """After so long it is on again."""


class Availability(FrozenModel):
    """What happens to VMs whose host fails."""

    restart: bool = True
    """They start again on other hosts, as by vSphere HA; else they are gone."""
    delay: Milliseconds = 30_000
    """From the failure to the restart: HA takes 15 to 18 s to declare a host dead."""
    failures: Failures | None = None
    """Failures drawn from the seed; `events` and `trace` name others."""
    trace: str | None = Field(None, max_length=1000)
    """A file in the scenario's folder: CSV with columns at_s, host, repair_s."""


class Power(FrozenModel):
    """Hosts are switched off while others carry their load, in the manner of DPM."""

    saving: bool = False
    interval: Milliseconds = Field(300_000, gt=0)
    """How often it looks, rounded up to whole epochs."""
    target: Permille = 630
    """Load that hosts should have, of memory or CPU, whichever is more: DPM's 63 %."""
    tolerance: Permille = 180
    """How far from it is left alone: 45 to 81 %."""
    off_after: Milliseconds = 2_400_000
    """A host is emptied after so long below: DPM's 40 min."""
    on_after: Milliseconds = 300_000
    """A host is woken after another has been above for so long: DPM's 5 min."""
    boot: Milliseconds = 180_000
    """From there until it takes VMs."""


class Watts(FrozenModel):
    """What a host takes: linear in its CPU load, nothing when it is off.

    Default: IBM x3550 M3, two Xeon X5675 (SPECpower_ssj2008, result 20110406-00368).
    """

    idle: Milliwatts = 58_400
    peak: Milliwatts = 222_000

    @model_validator(mode="after")
    def _ordered(self) -> Watts:
        if self.peak < self.idle:
            raise ValueError("peak must be at least idle")
        return self
