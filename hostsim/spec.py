"""One VM as a host receives it: configuration, image and program; nothing is drawn later."""

from __future__ import annotations

from dataclasses import dataclass

from hostsim.config import VmConfig
from hostsim.guest_config import GuestImage
from hostsim.program import Rows
from hostsim.replay import Replay
from hostsim.units import VmId


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A VM to power on. `vm` is its cluster-wide id; content ranges are cluster-wide too."""

    vm: VmId
    name: str
    config: VmConfig
    image: GuestImage
    image_range: int
    """Id of the content range of the image family; equal for all VMs of one image."""
    application_range: int
    """Id of the content range of the application group; 0 = none."""
    program: Rows
    """(n_rows,) ROW, see hostsim.program."""
    repeat: bool
    """Start again after the last row; otherwise it holds for ever."""
    vm_clock: bool
    """True: rows end on the VM's own clock (phases). False: on the wall clock (traces)."""
    offset_ms: int = 0
    """Where in the program the VM starts (stagger)."""
    replay: Replay | None = None
    """Instead of what `image` plans for pages, and beside the program: what a real guest's held."""
