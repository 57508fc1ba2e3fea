"""The fast host and the literal twin under a hypothesis state machine, on hosts that starve.

Each rule does one thing to both: power on, touch, free, scan, balloon, page out, reset, whole
steps. After it every observable number, every page and what every guest would read must agree, and
the invariants hold. Hosts have a few hundred frames, VMs up to 300 slots: memory runs out early.
"""

from __future__ import annotations

from typing import Any

import naive_scenes as scenes
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from naive_pair import Pair, vm_spec
from naive_state import Annotation, Use, Vm

from hostsim.config import Disk, HostConfig, VmConfig
from hostsim.guest_config import GuestImage, Workload
from hostsim.program import KEEP, Rows

NUMBER = st.integers(0, 1_000_000)
"""Stands for a VM, a page or an amount: taken modulo what there is."""


LOW = (3, 20, 90)
"""Frames that devices reach, of 150 to 400."""
SET_SLOTS = st.sampled_from([3, 60, 200])
"""Pages that a guest transmits: a few of its kernel's, or of all its uses."""


@st.composite
def host_configs(draw: st.DrawFn, k: int) -> HostConfig:
    """Hosts of both profiles, with mechanisms on and off and devices of all speeds."""
    sharing = {
        "enabled": draw(st.sampled_from([True, True, True, False])),
        "salting": draw(st.sampled_from(["none", "none", "vm"])),
        "scan_pages_per_s_vm": draw(st.sampled_from([60, 7, 0])) * k,
        "scan_pages_per_s_total": draw(st.sampled_from([100, 11])) * k,
        "scan_time": draw(st.sampled_from([None, 3000])),
    }
    allocation = {
        "balance_period": draw(st.sampled_from([1000, 4000])),
        "idle_tax": draw(st.sampled_from([0, 500, 750, 990])),
        "claim": draw(st.sampled_from(["configured", "touched"])),
        "deadband_sigmas": draw(st.integers(0, 2)),
    }
    per_poll = scenes.amount(draw(st.sampled_from([30, 4, 0])), k)
    options = ("share_first", "map_clean", "skip_overwritten")
    frames = draw(st.integers(150, 400))
    clear = scenes.with_clear(k, frames) if draw(st.booleans()) else {}
    low = draw(st.sampled_from([None, None, *(scenes.amount(n, k) for n in LOW)]))
    return scenes.host(
        k,
        frames,
        large_pages=draw(st.booleans()),
        paging={name: draw(st.booleans()) for name in options},
        profile=draw(st.sampled_from(["osdi02", "vsphere"])),
        cpus=draw(st.sampled_from([1, 8])),
        sharing=sharing,
        balloon={
            "inflate": per_poll,
            "deflate": per_poll,
            "poll": draw(st.sampled_from([1000, 2500])),
            "maximum": draw(st.sampled_from([650, 250, 1000])),
        },
        allocation=allocation,
        sampling={
            "pages": draw(st.sampled_from([1, 20])),
            "period": draw(st.sampled_from([1000, 3000])),
        },
        reclaim=clear | {"reading": draw(st.sampled_from(["a", "b"]))},
        compression={
            "enabled": draw(st.booleans()),
            "maximum": draw(st.sampled_from([100, 20, 400])),
        },
        io={
            "low_memory": low,
            "copy_threshold": draw(st.sampled_from([0, 1, 3])),
            "remap": draw(st.sampled_from(["never", "free", "random", "random"])),
        },
        swap=Disk(
            latency=500_000,
            iops=draw(st.sampled_from([200 * k, 10 * k, 1])),
            write_cluster=draw(st.sampled_from([1, 5])),
        ),
        host_cache={
            "size": scenes.amount(draw(st.sampled_from([0, 0, 12, 500])), k),
            "latency": 70_000,
            "iops": draw(st.sampled_from([300 * k, 5 * k])),
        },
        tier=scenes.tier(
            k,
            frames,
            draw(st.sampled_from([0, 60, 400])) if low is None else 0,
            iops=draw(st.sampled_from([400 * k, 8 * k])),
        ),
        swap_space=scenes.amount(draw(st.sampled_from([10_000, 10_000, 800])), k),
    )


@st.composite
def vm_configs(draw: st.DrawFn, k: int) -> VmConfig:
    """VMs of 32 to 300 slots, some with a reservation, a limit, no shares, no driver."""
    size = draw(st.integers(max(32, 256 // k), 300))  # no VM is smaller than 1 MiB
    reservation = draw(st.sampled_from([0, 0, size // 8, size // 4]))
    limit = draw(st.sampled_from([None, None, max(reservation, size // 2, 1)]))
    return scenes.guest(
        k,
        size,
        reservation=reservation,
        limit=limit,
        shares=draw(st.sampled_from(["low", "normal", "high", 0, 1])),
        overhead=draw(st.sampled_from([0, 0, 9])),
        vcpus=draw(st.integers(1, 2)),
        sharing=draw(st.sampled_from([True, True, True, False])),
        balloon=draw(st.sampled_from(["present", "present", "absent", "disabled"])),
        guest_swap=draw(st.sampled_from([None, None, 5, 0])),
    )


@st.composite
def images(draw: st.DrawFn, k: int) -> tuple[int, GuestImage]:
    """Number of the image family and the image: one footprint a family, as images are files."""
    family, footprint, content, os = draw(
        st.sampled_from(
            [
                (1, 40, scenes.BOOT_CONTENT, "linux"),
                (2, 90, scenes.BOOT_CONTENT, "windows"),
                (3, 60, scenes.ANON_ONLY, "linux"),
                (4, 30, scenes.ALL_ZERO, "windows"),
                (5, 200, scenes.BOOT_CONTENT, "linux"),
            ]
        )
    )
    disk = Disk(latency=200_000, iops=draw(st.sampled_from([1000, 20, 1])) * k)
    return family, scenes.image(k, footprint, os=os, content=content, boot=2000, disk=disk)


@st.composite
def programs(draw: st.DrawFn, k: int) -> Workload | Rows:
    """What a guest does: phases on its own clock, or a trace on the wall clock."""
    memories = st.sampled_from([None, 20, 60, 150, 280])
    actives = st.sampled_from([0, 5, 40, 200])
    stretches = draw(st.lists(st.tuples(memories, actives), min_size=1, max_size=3))
    locality = draw(st.sampled_from(["uniform", "sweep", "zipf", "linear"]))
    data = draw(st.sampled_from([0, 130])) if locality != "sweep" else 0
    options: dict[str, Any] = {
        "locality": locality,
        "data": data,
        "writes": draw(st.sampled_from([0, 300, 1000])),
        "drift": draw(st.sampled_from([0, 1000])),
        "cpu": draw(st.sampled_from([0, 200, 1000])),
        "touch_interval": draw(st.sampled_from([250, 2000])),
    }
    if draw(st.booleans()):
        rows = [(8, KEEP if memory is None else memory, active) for memory, active in stretches]
        return scenes.trace(k, *rows, **options)
    options |= {"transmit": draw(st.sampled_from([0, 40])), "transmit_set": draw(SET_SLOTS)}
    phases = [{"memory": m, "active": a, "duration": 8000} | options for m, a in stretches]
    return scenes.phases(k, *phases, repeat=draw(st.booleans()))


class TwinMachine(RuleBasedStateMachine):
    """Drives a `Pair`. A rule's numbers are taken modulo what there is at the time."""

    pair: Pair

    @initialize(data=st.data(), k=st.sampled_from([1, 16, 64]), seed=st.integers(0, 1 << 40))
    def start(self, data: st.DataObject, k: int, seed: int) -> None:
        tick_ms = data.draw(st.sampled_from([1000, 1000, 5000]))
        self.pair = Pair(data.draw(host_configs(k)), seed, k, tick_ms)
        for vm in data.draw(st.permutations(range(12)))[:4]:
            self.power_on(data, vm)
        self.pair.step(data.draw(st.integers(0, 6)))

    def pick(self, number: int) -> Vm:
        vms = self.pair.twin.on()
        return vms[number % len(vms)]

    def any_vm(self) -> bool:
        return bool(self.pair.twin.vms)

    def several_vms(self) -> bool:
        return len(self.pair.twin.vms) > 2

    # VMs come and go

    @precondition(lambda self: len(self.pair.twin.vms) < 10)
    @rule(data=st.data(), vm=st.integers(0, 11))
    def power_on(self, data: st.DataObject, vm: int) -> None:
        k = self.pair.sample
        if vm in self.pair.twin.vms:
            return
        family, image = data.draw(images(k))
        spec = vm_spec(
            vm,
            data.draw(vm_configs(k)),
            image,
            data.draw(programs(k)),
            image_range=family,
            application_range=data.draw(st.sampled_from([0, 7])),
            offset_ms=data.draw(st.sampled_from([0, 3500])),
        )
        is_on = self.pair.power_on(spec)
        event("powered on" if is_on else "refused")

    @precondition(several_vms)
    @rule(vm=NUMBER)
    def power_off(self, vm: int) -> None:
        self.pair.power_off(self.pick(vm).spec.vm)

    @precondition(any_vm)
    @rule(vm=NUMBER)
    def reset(self, vm: int) -> None:
        self.pair.reset(self.pick(vm).spec.vm)

    @precondition(any_vm)
    @rule(
        vm=NUMBER, reservation=st.integers(0, 4), limit=st.integers(1, 4), shares=st.integers(0, 9)
    )
    def set_vm(self, vm: int, reservation: int, limit: int, shares: int) -> None:
        """Reservation and limit in quarters of the VM's size."""
        chosen = self.pick(vm)
        size = chosen.spec.config.memory
        self.pair.set_vm(
            chosen.spec.vm, size * min(reservation, limit) // 4, size * limit // 4, shares * 100
        )

    @rule(idle_tax=st.integers(0, 990))
    def set_host(self, idle_tax: int) -> None:
        self.pair.set_host(idle_tax)

    @rule(n=st.sampled_from([0, 1, 30, 500]))
    def hold(self, n: int) -> None:
        """Frames for VMs that are on their way here."""
        if not self.pair.hold(n):
            event("too few frames to hold")

    # The guest

    @precondition(any_vm)
    @rule(vm=NUMBER, first=NUMBER, n=st.integers(1, 80), is_write=st.booleans())
    def touch(self, vm: int, first: int, n: int, is_write: bool) -> None:
        chosen = self.pick(vm)
        for ppn in range(first, first + n):
            if self.pair.access(chosen.spec.vm, ppn % chosen.size, is_write) < 0:
                event("a touch stalled")

    @precondition(any_vm)
    @rule(vm=NUMBER, first=NUMBER, n=st.integers(1, 20), times=st.integers(1, 3))
    def transmit(self, vm: int, first: int, n: int, times: int) -> None:
        chosen = self.pick(vm)
        for draw in range(n * times):
            self.pair.transmit(chosen.spec.vm, (first + draw % n) % chosen.size, draw)

    @precondition(any_vm)
    @rule(vm=NUMBER, first=NUMBER, n=st.integers(1, 80))
    def populate(self, vm: int, first: int, n: int) -> None:
        chosen = self.pick(vm)
        for ppn in range(first, first + n):
            self.pair.populate(chosen.spec.vm, ppn % chosen.size)

    @precondition(any_vm)
    @rule(vm=NUMBER, source=NUMBER, first=NUMBER, n=st.integers(1, 20))
    def copy(self, vm: int, source: int, first: int, n: int) -> None:
        """The guest copies a page of common content over some of its anonymous pages."""
        chosen = self.pick(vm)
        anonymous = chosen.in_guest_memory(Use.ANON)
        common = [
            ppn
            for use in (Use.ANON, Use.CACHE, Use.KERNEL)
            for ppn in chosen.in_guest_memory(use)
            if not self.pair.twin.read(chosen, ppn).startswith(b"written")
        ]
        if not common or not anonymous:
            return
        event("copied a common content")
        for i in range(n):
            ppn = anonymous[(first + i) % len(anonymous)]
            self.pair.copy(chosen.spec.vm, ppn, common[source % len(common)])

    @precondition(any_vm)
    @rule(vm=NUMBER, first=NUMBER, n=st.integers(1, 40))
    def free(self, vm: int, first: int, n: int) -> None:
        chosen = self.pick(vm)
        for ppn in range(first, first + n):
            self.pair.free_page(chosen.spec.vm, ppn % chosen.size)

    # The host

    @precondition(any_vm)
    @rule(vm=NUMBER, first=NUMBER, n=st.integers(1, 80))
    def scan_pages(self, vm: int, first: int, n: int) -> None:
        chosen = self.pick(vm)
        for ppn in range(first, first + n):
            if chosen.frame(ppn % chosen.size) is not None:
                self.pair.scan_page(chosen.spec.vm, ppn % chosen.size)

    @precondition(any_vm)
    @rule(vm=NUMBER, budget=st.integers(1, 200))
    def scan_vm(self, vm: int, budget: int) -> None:
        self.pair.scan_vm(self.pick(vm).spec.vm, budget)

    @precondition(any_vm)
    @rule(vm=NUMBER, n=st.integers(1, 300))
    def inflate(self, vm: int, n: int) -> None:
        chosen = self.pick(vm)
        if chosen.has_driver and not chosen.driver_lost:
            self.pair.inflate(chosen.spec.vm, n)

    @precondition(any_vm)
    @rule(vm=NUMBER, n=NUMBER)
    def deflate(self, vm: int, n: int) -> None:
        chosen = self.pick(vm)
        balloon = chosen.count(Annotation.BALLOONED)
        if balloon > 0 and not chosen.driver_lost:
            self.pair.deflate(chosen.spec.vm, n % balloon + 1)

    @precondition(any_vm)
    @rule(vm=NUMBER, n=st.integers(1, 150), free_goal=st.integers(0, 600))
    def page_out(self, vm: int, n: int, free_goal: int) -> None:
        if self.pair.page_out(self.pick(vm).spec.vm, n, free_goal) > 0:
            event("paged out")

    @rule()
    def retarget(self) -> None:
        self.pair.retarget()

    @rule(n=st.integers(1, 3))
    def step(self, n: int) -> None:
        self.pair.step(n)
        event(f"level {self.pair.twin.level} after a step")

    @rule(n=st.integers(4, 12))
    def run(self, n: int) -> None:
        self.pair.step(n)

    @rule()
    def measure(self) -> None:
        self.pair.measure()

    @invariant()
    def hosts_agree(self) -> None:
        if hasattr(self, "pair"):
            self.pair.check()


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def test_fast_host_and_literal_twin_agree_after_every_operation() -> None:
    """Reproducible: the same examples each time."""
    run_state_machine_as_test(
        TwinMachine,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            derandomize=True,
            suppress_health_check=CHECKS,
        ),
    )


@pytest.mark.slow
def test_fast_host_and_literal_twin_agree_on_new_examples() -> None:
    """Other examples each time; a failure prints the blob that repeats it."""
    run_state_machine_as_test(
        TwinMachine,
        settings=settings(
            max_examples=300,
            stateful_step_count=60,
            print_blob=True,
            database=None,
            suppress_health_check=CHECKS,
        ),
    )
