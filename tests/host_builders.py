"""Small hosts, VMs and workloads for tests of one mechanism at a time, with every cost in sight.

A plain host has no sharing, no overheads and a fast swap device; a plain guest boots in one second
into anonymous pages that nobody else holds, then touches its active set steadily and writes half of
the time. A test names only what it is about, and the rest stays out of its way:

    host = make_host(64 * MIB)                                    # a Host, one page a slot
    power_on(host, make_spec(1, 32 * MIB, make_phase(active=8 * MIB)))
    run(host, 30_000)                                             # milliseconds
    row_of(host, 1).target, lost_ns(host, 1)["swap_in"], counter(host, "swap_ins")

Sizes are bytes and times milliseconds, as in the models. Options of `make_host` are those of
HostConfig, mappings merged over the plain host's; use `profile="vsphere"` with care, as it brings a
sliding minFree. `make_rows` gives a program on the wall clock (a trace); pass it as the workload.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hostsim import invariants, snapshot, tick
from hostsim.config import Disk, HostConfig, VmConfig
from hostsim.guest_config import ContentMix, ContentTable, GuestImage, Phase, Workload
from hostsim.host import Host
from hostsim.program import KEEP, LOCALITIES, ROW, Rows, from_workload
from hostsim.rows import CAUSES
from hostsim.spec import VmSpec
from hostsim.state import STATE, Array, HostState, count_vms
from hostsim.units import MIB, PAGE_SIZE, HostId, VmId, pages

SECOND, MINUTE = 1000, 60_000
"""In milliseconds."""

UNIQUE_ANON = ContentTable(anon=ContentMix(unique=1000))
"""No page equals another, and the guest gives up none without paging it out."""
UNIQUE_CACHE = ContentTable(cache=ContentMix(unique=1000))
"""Clean cache: the guest drops it without a cost, and reads it back at one."""
ALL_ZERO = ContentTable(anon=ContentMix(zero=1000))
ALL_IMAGE = ContentTable(anon=ContentMix(image=1000))
"""Every page equals the same page of every other VM of the image."""

FAST_DISK = Disk(latency=100_000, iops=1_000_000)
"""100 us, and never the bottleneck."""


def make_config(memory: int = 64 * MIB, **options: Any) -> HostConfig:
    """A plain host's configuration: the paper's system, `touched` claims, no sharing."""
    merged: dict[str, Any] = {
        "memory": memory,
        "profile": "osdi02",
        "cpus": 64,
        "sharing": {"enabled": False},
        "allocation": {"claim": "touched", "deadband_sigmas": 2},
        "swap": FAST_DISK,
        "swap_space": 64 * memory,
    }
    for key, value in options.items():
        base = merged.get(key)
        is_mapping = isinstance(base, dict) and isinstance(value, dict)
        merged[key] = base | value if is_mapping else value  # type: ignore[operator]
    return HostConfig(**merged)


def make_host(
    memory: int = 64 * MIB, *, seed: int = 1, sample: int = 1, tick_ms: int = SECOND, **options: Any
) -> Host:
    """A plain host. `memory` is machine memory, at least 64 MiB; take less with `reserve`."""
    return Host(HostId(0), make_config(memory, **options), seed, sample, tick_ms)


def make_image(footprint: int = MIB, **options: Any) -> GuestImage:
    """A guest that boots in a second; content and growth are unique anonymous pages."""
    defaults = {"boot": SECOND, "content": UNIQUE_ANON, "growth": UNIQUE_ANON, "disk": FAST_DISK}
    return GuestImage(footprint=footprint, **(defaults | options))


def make_phase(*, active: int = 0, memory: int | None = None, **options: Any) -> Phase:
    """A phase of `active` bytes touched about once a second each. It lasts for ever by default.

    memory: bytes in use; None leaves it as it stands, and the active set lies anywhere in the VM.
    """
    defaults: dict[str, Any] = {
        "duration": 10_000 * MINUTE,
        "growth": 1024 * MIB,
        "touch_interval": SECOND,
        "writes": 500,
        "drift": 0,
        "cpu": 0,
    }
    amount = None if memory is None else ("bytes", memory)
    return Phase(memory=amount, active=("bytes", active), **(defaults | options))


def make_rows(*rows: tuple[int, int, int], **options: Any) -> Rows:
    """A trace: (seconds, memory bytes or KEEP, active bytes) each, on the wall clock."""
    made = np.zeros(len(rows), ROW)
    until_s = 0
    for row, (seconds, memory, active) in zip(made, rows, strict=True):
        until_s += seconds
        row["until_ms"] = until_s * 1000
        row["memory_pages"] = KEEP if memory == KEEP else pages(memory)
        row["active_pages"] = pages(active)
        row["growth_pages_per_s"] = pages(options.get("growth", 1024 * MIB))
        row["touch_interval_ms"] = options.get("touch_interval", SECOND)
        row["writes_permille"] = options.get("writes", 500)
        row["locality"] = LOCALITIES.index(options.get("locality", "uniform"))
        row["drift_permille_per_h"] = options.get("drift", 0)
        row["cpu_permille"] = options.get("cpu", 0)
    return made


def make_spec(
    vm: int,
    memory: int,
    workload: Phase | Sequence[Phase] | Rows | None = None,
    *,
    image: GuestImage | None = None,
    repeat: bool = False,
    image_range: int = 1,
    application_range: int = 0,
    offset_ms: int = 0,
    **options: Any,
) -> VmSpec:
    """A VM of `memory` bytes: idle, phases, or rows of a trace. `options` as in VmConfig."""
    config = VmConfig(**({"memory": memory, "overhead": 0} | options))
    if workload is None:
        workload = make_phase()
    if isinstance(workload, Phase):
        workload = (workload,)
    is_trace = isinstance(workload, np.ndarray)
    program = (
        workload if is_trace else from_workload(Workload(phases=tuple(workload)), pages(memory))
    )
    return VmSpec(
        vm=VmId(vm),
        name=f"vm-{vm}",
        config=config,
        image=image or make_image(min(MIB, memory)),
        image_range=image_range,
        application_range=application_range,
        program=program,
        repeat=repeat,
        vm_clock=not is_trace,
        offset_ms=offset_ms,
    )


def power_on(host: Host, *specs: VmSpec) -> None:
    """Power the VMs on, in the order given."""
    for spec in specs:
        host.power_on(spec)


def run(host: Host, duration_ms: int) -> Array:
    """Advance, then check every truth of the memory manager. Returns the level changes."""
    changes = host.advance(duration_ms)
    invariants.check(host.state)
    return changes


def steps_of(host: Host, duration_ms: int) -> list[int]:
    """Lengths of the steps of so much time, in ms; checks as `run`."""
    found, end_ms = [], counter(host, "now_ms") + duration_ms
    while counter(host, "now_ms") < end_ms:
        tick.step(host.state)
        found.append(counter(host, "dt_ms"))
    invariants.check(host.state)
    return found


def run_until_booted(host: Host, limit_ms: int = 10 * MINUTE) -> int:
    """Advance tick by tick until every guest has booted. Returns the time that took."""
    spent_ms = 0
    while not all(row_of(host, vm).booted for vm in host.vm_ids()):
        assert spent_ms < limit_ms, "the guests do not boot"
        host.advance(host.tick_ms)
        spent_ms += host.tick_ms
    return spent_ms


# Looking into a host


def row_index(host: Host, vm: int) -> int:
    """The VM's row in the host's arrays: what kernels call v."""
    return int((host.state.vms["vm"] == vm).argmax())


def row_of(host: Host, vm: int) -> Any:
    """The VM's row of state (hostsim.state.VM), live: writing to it changes the host."""
    return host.state.vms[row_index(host, vm)]


def counter(host: Host, name: str) -> int:
    """One scalar of the host (hostsim.state.HOST); counters run since the last `measure`."""
    return int(host.state.host[0][name])


def alloc_slots(host: Host, vm: int) -> int:
    """RESIDENT + SHARED slots of a VM."""
    row = row_of(host, vm)
    return int(row.resident + row.shared)


def states_of(host: Host, vm: int) -> Array:
    """(size,) page states of a VM by PPN."""
    row = row_of(host, vm)
    return host.state.page[row.base_slot : row.base_slot + row.size_slots] & STATE


def lost_ns(host: Host, vm: int) -> dict[str, int]:
    """Time that a VM lost since the last measurement, by cause."""
    lost = host.state.lost[row_index(host, vm)]
    return dict(zip(CAUSES, lost.tolist(), strict=True))


def order_of(host: Host) -> list[int]:
    """Ids of the VMs that are on, in the order in which the host keeps them."""
    st = host.state
    return [int(st.vms[v].vm) for v in st.order[: count_vms(st)]]


def arrays_of(state: HostState) -> dict[str, bytes]:
    """Every array of a host, byte for byte, but for working space: equal hosts have equal ones."""
    skipped = ("scratch", "active", *snapshot.WINDOW_SPACE, "table")
    names = [name for name in state.__dataclass_fields__ if name not in skipped]
    return {name: getattr(state, name).tobytes() for name in names}


def in_slots(size: int, sample: int = 1) -> int:
    """Bytes -> slots, for sizes that divide."""
    assert size % (PAGE_SIZE * sample) == 0, f"{size} bytes are no whole number of slots"
    return size // (PAGE_SIZE * sample)
