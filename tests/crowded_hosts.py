"""A host that starves, for tests of what must survive anything: saving, moving, damage, a step.

Everything at once: sharing, balloons, paging by host and guests, compression, stalls, all page
states, hints that went stale, frames of both kinds and pages that change places. `starved` is one
such host as bytes; `snapshot.load(starved())` gives a new one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import naive_scenes as scenes
from host_builders import counter, make_spec, power_on

from hostsim import invariants, snapshot
from hostsim.host import Host
from hostsim.spec import VmSpec
from hostsim.state import STATES
from hostsim.units import MIB, HostId, VmId

FRAMES, LOW, SIZE = 420, 90, 256
VMS = (1, 2, 3, 4)
SENDS = {"transmit": 30, "transmit_set": 120}
SECOND = 1000


def crowded_host(
    host: int = 0, frames: int = FRAMES, seed: int = 1, vms: tuple[int, ...] = VMS, **options: Any
) -> Host:
    """A host that starves: sharing, slow balloons, paging, stalls; frames for a third of its VMs.

    VMs in the order given, by id: odd ones run phases, even ones a trace; every third is Windows,
    every fourth has no balloon driver.
    """
    slow = {"inflate": scenes.amount(4, 1)}
    fast = {"scan_pages_per_s_vm": 50, "scan_pages_per_s_total": 150}
    io = {"low_memory": scenes.amount(LOW, 1), "copy_threshold": 1, "remap": "random"}
    small = {"enabled": True, "maximum": 20}
    merged = {"balloon": slow, "sharing": fast, "io": io, "compression": small}
    merged |= {"host_cache": {"size": scenes.amount(30, 1)}} | options
    made = Host(HostId(host), scenes.host(1, frames, **merged), seed, 1, SECOND)
    power_on(made, *(crowded_spec(vm) for vm in vms))
    return made


def crowded_spec(vm: int) -> VmSpec:
    """A VM of a crowded host."""
    does = scenes.phases(
        1,
        {"active": 90, "drift": 1000, "writes": 400, "locality": "zipf"} | SENDS,
        {"active": 40, "writes": 800, "memory": 190, "locality": "sweep"} | SENDS,
    )
    trace = scenes.trace(1, (15, 160, 70), (10, 200, 90), (15, 90, 30), writes=600)
    return make_spec(
        vm,
        scenes.amount(SIZE, 1),
        trace if vm % 2 == 0 else does.phases,
        image=scenes.image(1, 150, os="windows" if vm % 3 == 0 else "linux"),
        image_range=1 + vm % 3,
        application_range=7,
        repeat=True,
        reservation=scenes.amount(20, 1),
        overhead=scenes.amount(3, 1),
        balloon="absent" if vm % 4 == 0 else "present",
    )


def grown(host: Host, seconds: int) -> Host:
    host.advance(seconds * SECOND)
    return host


@cache
def starved() -> bytes:
    """A crowded host in which every state of a page and every kind of hint occurs."""
    host = grown(crowded_host(), 20)
    for _ in range(300):
        totals = {name: int(host.state.vms[name].sum()) for name in (*STATES, "guest_swapped")}
        stale = len(host.state.stale_contents)
        totals |= {
            "high and shared": host.state.shared_kind.any(),
            "copied": counter(host, "copies"),
            "in the host cache": counter(host, "ssd_used"),
        }
        if all(totals.values()) and stale and counter(host, "hint_frames") > stale:
            return snapshot.save(host)
        host.advance(SECOND)
    raise AssertionError("the set-up does not starve as it should")


def target_host(salting: str = "none", frames: int = 2000) -> Host:
    """Another host with other VMs, so with other ranges in other places, some time into its run."""
    host = crowded_host(7, frames, seed=1, vms=(), sharing={"salting": salting})
    power_on(host, *(make_spec(vm, MIB, image_range=vm) for vm in (30, 31)))
    power_on(host, crowded_spec(6), crowded_spec(5))
    host.power_off(VmId(30))
    return grown(host, 20)


def run_checked(host: Host, seconds: int) -> None:
    """Step by step, checking every truth."""
    for _ in range(seconds):
        host.advance(SECOND)
        invariants.check(host.state)
