"""One fast host and its literal twin, driven together: each operation is done to both, then
compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import naive_guest
import naive_host
import naive_life
import naive_measure
import naive_pages
import naive_remap
import numpy as np
from naive_compare import Difference, Identity, differences
from naive_machine import NoFrame, NoGuestIo, NoGuestMemory, NoIo, NoTierIo, Stall
from naive_state import Esx, Vm

from hostsim import balloon, fault, guest, invariants, rng, share, swap, tick, workload
from hostsim.config import HostConfig, VmConfig
from hostsim.guest_config import GuestImage, Workload
from hostsim.host import Host
from hostsim.program import Rows, from_workload
from hostsim.replay import Replay
from hostsim.spec import VmSpec
from hostsim.units import HostId, VmId, pages

STALLS = {
    NoFrame: fault.NO_FRAME,
    NoIo: fault.NO_IO,
    NoTierIo: fault.NO_TIER_IO,
    NoGuestMemory: fault.NO_GUEST_MEMORY,
    NoGuestIo: fault.NO_GUEST_IO,
}


class DisagreeError(AssertionError):
    """The hosts differ."""


def vm_spec(
    vm: int,
    config: VmConfig,
    image: GuestImage,
    workload: Workload | Rows,
    image_range: int = 1,
    application_range: int = 0,
    offset_ms: int = 0,
    replay: Replay | None = None,
) -> VmSpec:
    """A VM to power on; rows instead of phases are a trace, on the wall clock."""
    is_phases = isinstance(workload, Workload)
    return VmSpec(
        vm=VmId(vm),
        name=f"vm-{vm}",
        config=config,
        image=image,
        image_range=image_range,
        application_range=application_range,
        program=from_workload(workload, pages(config.memory)) if is_phases else workload,
        repeat=workload.repeat if is_phases else False,
        vm_clock=is_phases,
        offset_ms=offset_ms,
        replay=replay,
    )


def served(operation: Callable[[], int]) -> int:
    """What an operation of the twin costs, or the fast host's word for why it stalls."""
    try:
        return operation()
    except Stall as why:
        return int(STALLS[type(why)])


WITHIN_TICK = 10
"""Steps between two comparisons inside a tick."""


@dataclass
class Pair:
    """`fast` and `twin` see the same operations. After each of them `check` must hold."""

    config: HostConfig
    seed: int
    sample: int
    tick_ms: int = 1000
    fast: Host = field(init=False)
    twin: Esx = field(init=False)
    identity: Identity = field(init=False, default_factory=Identity)

    def __post_init__(self) -> None:
        self.fast = Host(HostId(3), self.config, self.seed, self.sample, self.tick_ms)
        self.twin = naive_life.new_host(3, self.config, self.seed, self.sample, self.tick_ms)

    def check(self) -> None:
        """Both hosts agree, and the fast one is sound."""
        invariants.check(self.fast.state)
        self._require_equal(differences(self.fast, self.twin, self.identity))

    def _require_equal(self, found: list[Difference]) -> None:
        if found:
            lines = [f"{what}: fast {fast}, twin {twin}" for what, fast, twin in found]
            tick_now = self.twin.tick
            raise DisagreeError("\n".join([f"after tick {tick_now}:", *lines[:30]]))

    def _both(self, what: str, fast: int, twin: int) -> int:
        if fast != twin:
            raise DisagreeError(f"{what} at tick {self.twin.tick}: fast {fast}, twin {twin}")
        return fast

    def _row(self, vm: int) -> int:
        return int((self.fast.state.vms["vm"] == vm).argmax())

    def _vm(self, vm: int) -> Vm:
        return self.twin.vms[vm]

    # Life cycle

    def power_on(self, spec: VmSpec) -> bool:
        """Power on if admission control lets it. Whether it did."""
        reason = self.fast.why_refused(spec)
        expected = naive_life.why_refused(self.twin, spec)
        if reason != expected:
            raise DisagreeError(f"admission of VM {spec.vm}: fast {reason}, twin {expected}")
        if reason is None:
            self.fast.power_on(spec)
            naive_life.power_on(self.twin, spec)
        return reason is None

    def power_off(self, vm: int) -> None:
        self.fast.power_off(VmId(vm))
        naive_life.power_off(self.twin, vm)

    def reset(self, vm: int) -> None:
        self.fast.reset(VmId(vm))
        naive_guest.reset(self._vm(vm))

    def set_vm(self, vm: int, reservation: int, limit: int, shares: int) -> bool:
        """New allocation parameters, reservation at most limit, if they are admitted. Whether they
        were; a refusal changes nothing."""
        reason = naive_life.why_not_admitted(self.twin, self._vm(vm).spec, reservation)
        try:
            self.fast.set_vm(VmId(vm), reservation=reservation, limit=limit, shares=shares)
        except ValueError as refusal:
            if reason is None or reason not in str(refusal):
                raise DisagreeError(f"new values for VM {vm}: twin {reason}") from refusal
            return False
        if reason is not None:
            raise DisagreeError(f"new values for VM {vm}: fast admits, twin {reason}")
        naive_life.set_vm(self.twin, vm, reservation, limit, shares)
        return True

    def set_host(self, idle_tax: int) -> None:
        self.fast.set_host(idle_tax=idle_tax)
        naive_life.set_host(self.twin, idle_tax)

    def hold(self, n: int) -> bool:
        """Keep `n` frames, if as many are free. Whether they were."""
        there_are = self.twin.free + len(self.twin.held)
        try:
            self.fast.hold(n * self.twin.sample)
        except ValueError as refusal:
            if n <= there_are:
                raise DisagreeError(f"{n} frames of {there_are} to hold") from refusal
            return False
        if n > there_are:
            raise DisagreeError(f"{n} frames of {there_are} held")
        naive_life.hold(self.twin, n)
        return True

    def measure(self) -> None:
        """End a measuring interval in both; their rows must agree."""
        self._require_equal(list(naive_measure.differences(self.twin, *self.fast.measure())))
        naive_measure.start_again(self.twin)

    # Steps

    def tick(self, n: int = 1) -> None:
        """As many steps as it takes to the `n`-th whole tick from now; compared after each tick,
        and after every WITHIN_TICK-th step inside it, as a pressed host makes a hundred."""
        end_ms = (self.twin.now_ms // self.tick_ms + n) * self.tick_ms
        done = 0
        while self.twin.now_ms < end_ms:
            done += 1
            self._step()
            if done % WITHIN_TICK == 0 or self.twin.now_ms % self.tick_ms == 0:
                self.check()

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            self._step()
            self.check()

    def _step(self) -> None:
        within = {
            vm.spec.vm: len(vm.swap) + len(vm.compressed)
            for vm in self.twin.on()
            if vm.overhead_due == 0 and vm.held() <= vm.reservation
        }
        tick.step(self.fast.state)
        naive_host.step(self.twin)
        for vm, out in within.items():
            self._require_left_alone(self._vm(vm), out)

    def _require_left_alone(self, vm: Vm, out: int) -> None:
        """A VM that had at most its reservation neither stood still nor lost a page to the host."""
        if vm.blocked or len(vm.swap) + len(vm.compressed) > out:
            what = "blocked" if vm.blocked else "paged out"
            raise DisagreeError(f"VM {vm.spec.vm} was {what} within its reservation")

    def retarget(self) -> None:
        tick.retarget(self.fast.state)
        naive_host.retarget(self.twin)

    # Single mechanisms

    def access(self, vm: int, ppn: int, is_write: bool) -> int:
        fast = guest.access(self.fast.state, self._row(vm), ppn, int(is_write))
        twin = served(lambda: naive_guest.access(self.twin, self._vm(vm), ppn, is_write))
        return self._both(f"access to page {ppn} of VM {vm}", fast, twin)

    def populate(self, vm: int, ppn: int) -> int:
        fast = guest.populate(self.fast.state, self._row(vm), ppn)
        twin = served(lambda: naive_guest.populate(self.twin, self._vm(vm), ppn))
        return self._both(f"growth to page {ppn} of VM {vm}", fast, twin)

    def transmit(self, vm: int, ppn: int, draw: int) -> int:
        """The guest transmits a page. How many pages were copied, or why it stalls."""
        fast = self.access(vm, ppn, False)
        if fast >= 0:
            fast = workload.send(self.fast.state, self._row(vm), ppn, draw)
            twin = naive_remap.send(self.twin, self._vm(vm), ppn, draw)
            self._both(f"transmit of page {ppn} of VM {vm}", fast, twin)
        return fast

    def copy(self, vm: int, ppn: int, source: int) -> int:
        """The guest writes what `source`, a page in its memory with common content, holds."""
        row = self._row(vm)
        st = self.fast.state
        word = int(st.content[st.vms[row].base_slot + source]) & ~int(fault.INDEX + 1)
        content = self.twin.read(self._vm(vm), source)
        fast = fault.touch(st, row, ppn, 1, word)
        twin = served(lambda: naive_pages.touch(self.twin, self._vm(vm), ppn, content))
        return self._both(f"write to page {ppn} of VM {vm}", fast, twin)

    def free_page(self, vm: int, ppn: int) -> int:
        fast = guest.free_page(self.fast.state, self._row(vm), ppn)
        twin = served(lambda: naive_guest.free_page(self.twin, self._vm(vm), ppn))
        return self._both(f"free page {ppn} of VM {vm}", fast, twin)

    def scan_page(self, vm: int, ppn: int) -> None:
        share.scan_page(self.fast.state, self._row(vm), ppn)
        naive_pages.scan_page(self.twin, self._vm(vm), ppn)

    def scan_vm(self, vm: int, budget: int) -> int:
        fast = share.scan_vm(self.fast.state, self._row(vm), budget)
        draws = self.twin.draws(rng.SCAN, vm, self.twin.tick)
        twin = naive_pages.scan_vm(self.twin, self._vm(vm), budget, draws)
        return self._both(f"scan of VM {vm}", fast, twin)

    def inflate(self, vm: int, n: int) -> int:
        fast = balloon.inflate(self.fast.state, self._row(vm), n)
        return self._both("inflate", fast, naive_guest.inflate(self.twin, self._vm(vm), n))

    def deflate(self, vm: int, n: int) -> None:
        """`n` at most the size of the balloon."""
        draws = self.twin.draws(rng.DEFLATE, vm, self.twin.tick)
        balloon.deflate(self.fast.state, self._row(vm), n, np.uint64(draws.key))
        naive_guest.deflate(self.twin, self._vm(vm), n, draws)

    def page_out(self, vm: int, n: int, free_goal: int) -> int:
        fast = swap.page_out_vm(self.fast.state, self._row(vm), n, free_goal)
        draws = self.twin.draws(rng.SWAP, vm, self.twin.tick)
        twin = naive_pages.page_out_vm(self.twin, self._vm(vm), n, free_goal, draws)
        return self._both(f"page out VM {vm}", fast, twin)
