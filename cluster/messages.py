"""What the coordinator and its hosts say to each other: orders down, columns of numbers up.

Orders are decided at the end of epoch e and act at the start of e + 1. Reports are NumPy columns,
one row per (epoch, host) and one per (epoch, VM), because bulk data must not travel as objects.
Page quantities in reports are already multiplied back from slots to pages, so nobody above a host
knows the sampling factor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hostsim.rows import CAUSES, HOST_ROW, LEVELS, VM_ROW, Rows
from hostsim.spec import VmSpec
from hostsim.spread import no_contrasts
from hostsim.units import HostId, VmId

__all__ = [
    "CAUSES",
    "HOST_ROW",
    "LEVELS",
    "VM_ROW",
    "Delay",
    "Entitle",
    "EpochReport",
    "Hold",
    "LevelChange",
    "MoveIn",
    "MoveOut",
    "Order",
    "PowerOff",
    "PowerOn",
    "Reset",
    "Rows",
    "SetHost",
    "SetVm",
    "SwitchOff",
    "SwitchOn",
]


@dataclass(frozen=True, slots=True)
class PowerOn:
    """Start `vm` on `host`: admission was checked by the planner and is checked again there."""

    host: HostId
    vm: VmSpec


@dataclass(frozen=True, slots=True)
class PowerOff:
    """Stop `vm`; its frames, swap slots and overhead are free at once."""

    host: HostId
    vm: VmId


@dataclass(frozen=True, slots=True)
class Reset:
    """Guest reset: the guest boots again in the memory that it has."""

    host: HostId
    vm: VmId


@dataclass(frozen=True, slots=True)
class SetVm:
    """New reservation, limit (bytes) or shares of a running VM; None leaves a value."""

    host: HostId
    vm: VmId
    reservation: int | None = None
    limit: int | None = None
    shares: int | None = None


@dataclass(frozen=True, slots=True)
class Entitle:
    """What a VM's pools entitle it to: so many MiB, as its shares, and its limit in bytes."""

    host: HostId
    vm: VmId
    entitled_mib: int
    limit: int
    shares: int


@dataclass(frozen=True, slots=True)
class SetHost:
    """New idle-memory tax of a host, in permille."""

    host: HostId
    idle_tax: int


@dataclass(frozen=True, slots=True)
class MoveOut:
    """`vm` leaves `host`, for another one: its image goes there without passing the coordinator."""

    host: HostId
    vm: VmId


@dataclass(frozen=True, slots=True)
class MoveIn:
    """`vm` goes on at `host`; its image comes from `source`, which has a MoveOut beside it."""

    host: HostId
    vm: VmId
    source: HostId


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep frames for VMs on their way to `host`: so many pages in all, from now on."""

    host: HostId
    pages: int


@dataclass(frozen=True, slots=True)
class Delay:
    """`vm` loses time to its migration: stopped while the last pages were sent, or slowed."""

    host: HostId
    vm: VmId
    lost_ns: int


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """`host` is off from now on; the VMs that it still had are gone."""

    host: HostId


@dataclass(frozen=True, slots=True)
class SwitchOn:
    """`host` is on again."""

    host: HostId


Order = (
    PowerOn
    | PowerOff
    | Entitle
    | Reset
    | SetVm
    | SetHost
    | MoveOut
    | MoveIn
    | Hold
    | Delay
    | SwitchOff
    | SwitchOn
)


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A host's reclamation state changed with the step that began then, and on which number."""

    epoch: int
    at_ms: int
    host: HostId
    before: int
    after: int
    free_pages: int


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one barrier returns, hosts in id order.

    hosts: (n_hosts x n_epochs,) HOST_ROW, by epoch then host. vms: (n_vms x n_epochs,) VM_ROW, by
    epoch, host, VM: the same VMs in each epoch, as they come and go between barriers.
    """

    hosts: Rows
    vms: Rows
    level_changes: tuple[LevelChange, ...]
    busy_s: float
    """CPU seconds that host ticks took: how we ran, never part of the result."""
    contrasts: Rows = field(default_factory=no_contrasts)
    """What the hosts' slots differ by, added up over hosts and censuses: see `hostsim.spread`."""
    sketches: Rows | None = None
    """(n,) SKETCH, by VM and name: what booted VMs hold, see `hostsim.sketch`; of the last epoch at
    whose end it was due. None: it was not."""
