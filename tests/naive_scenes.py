"""Small hosts and VMs for comparing the fast host with its literal twin: images, hosts, programs.

Sizes are given in slots, so that a host of a few hundred frames starves whatever the sampling
factor k is. A host may not have less than 64 MiB: what is too much is the hypervisor's reserve, and
thresholds, parts of the whole, are set for the frames that are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hostsim.config import Disk, HostConfig, VmConfig
from hostsim.guest_config import ContentMix, ContentTable, GuestImage, Phase, Workload
from hostsim.program import KEEP, LOCALITIES, ROW, Rows
from hostsim.units import MIB, PAGE_SIZE

LEAST_BYTES = 64 * MIB

BOOT_CONTENT = ContentTable(
    kernel=ContentMix(zero=40, image=60, unique=40, pool=20),
    cache=ContentMix(zero=20, image=100, application=100, duplicate=40, unique=40, pool=40),
    anon=ContentMix(zero=60, image=40, duplicate=60, unique=200),
    free=ContentMix(zero=60, image=40, unique=40),
)
GROWTH_CONTENT = ContentTable(
    cache=ContentMix(image=150, application=150, duplicate=50),
    anon=ContentMix(zero=100, image=50, duplicate=100, unique=200, pool=50),
    free=ContentMix(zero=50, image=50, unique=50),
)
"""Every use and content class appears, common contents more often than in a real guest."""

ANON_ONLY = ContentTable(kernel=ContentMix(unique=50), anon=ContentMix(unique=950))
ANON_GROWTH = ContentTable(anon=ContentMix(unique=1000))
ALL_ZERO = ContentTable(kernel=ContentMix(zero=100), cache=ContentMix(zero=900))
ALL_KERNEL = ContentTable(kernel=ContentMix(image=500, unique=500))


def amount(slots: int, k: int) -> int:
    """Bytes of so many slots."""
    return slots * PAGE_SIZE * k


def image(k: int, footprint: int, **options: Any) -> GuestImage:
    """A guest image whose footprint is given in slots; it boots in 5 s."""
    defaults = {"boot": 5000, "copies": 2.5, "content": BOOT_CONTENT, "growth": GROWTH_CONTENT}
    given = defaults | options
    if any(mix.pool for table in (given["content"], given["growth"]) for _, mix in table):
        given["pool"] = amount(10, k)
    return GuestImage(footprint=amount(footprint, k), **given)


def thresholds(frames: int, k: int, memory: int) -> dict[str, int]:
    """About 12, 8, 5 and 2 % of the frames, in permille of the whole host as they must be."""
    parts, least = [], 0
    for percent in (2, 5, 8, 12):
        permille = round(amount(frames, k) * percent * 10 / memory)
        least = max(permille, least + 1)
        parts.append(least)
    return dict(zip(("low", "hard", "soft", "high"), parts, strict=True))


def with_clear(k: int, frames: int) -> dict[str, int]:
    """Thresholds for a host with a CLEAR state: entered at 12 % of its frames, left at 24 %."""
    clear = thresholds(frames, k, max(LEAST_BYTES, amount(frames, k)))["high"]
    return {"clear": clear, "high": 2 * clear}


def host(k: int, frames: int, **options: Any) -> HostConfig:
    """A host with so many frames for VMs; mechanisms run often. `options` as in HostConfig."""
    memory = max(LEAST_BYTES, amount(frames, k))
    defaults: dict[str, Any] = {
        "memory": memory,
        "reserve": memory - amount(frames, k),
        "profile": "osdi02",
        "cpus": 8,
        "sharing": {"scan_pages_per_s_vm": 20 * k, "scan_pages_per_s_total": 50 * k},
        "balloon": {"inflate": amount(8, k), "deflate": amount(8, k)},
        "allocation": {"balance_period": 5000},
        "sampling": {"pages": 20, "period": 5000},
        "reclaim": {"minfree": "fixed"} | thresholds(frames, k, memory),
        "swap": Disk(latency=100_000, iops=40 * k),
        "swap_space": 64 * memory,
    }
    for key, value in options.items():
        base = defaults.get(key)
        both = isinstance(base, dict) and isinstance(value, dict)
        defaults[key] = base | value if both else value  # type: ignore[operator]
    return HostConfig(**defaults)


def tier(k: int, frames: int, nvme: int, **options: Any) -> dict[str, int]:
    """NVMe of about so many frames below the DRAM of `host`."""
    memory = max(LEAST_BYTES, amount(frames, k))
    return {"nvme": min(round(amount(nvme, k) * 1000 / memory), 4000), "latency": 60_000} | options


def guest(k: int, size: int, **options: Any) -> VmConfig:
    """A VM; `reservation`, `limit`, `overhead` and `guest_swap` in slots as `size`."""
    for name in ("reservation", "limit", "overhead", "guest_swap"):
        if options.get(name) is not None:
            options[name] = amount(options[name], k)
    return VmConfig(**({"memory": amount(size, k), "overhead": 0} | options))


def phases(k: int, *given: dict[str, Any], repeat: bool = True) -> Workload:
    """Phases whose memory, active set, data, transmit set, and transmits a second, are in slots;
    they grow 20 slots a second."""
    made = []
    for options in given:
        options["data"] = amount(options.get("data", 0), k)
        for name in ("memory", "active", "transmit_set"):
            if options.get(name) is not None:
                options[name] = ("bytes", amount(options[name], k))
        options["transmit"] = amount(options.get("transmit", 0), k)
        defaults = {"duration": 20_000, "growth": amount(20, k), "touch_interval": 1000}
        made.append(Phase(**(defaults | options)))
    return Workload(phases=tuple(made), repeat=repeat)


def trace(k: int, *rows: tuple[int, int, int], **options: Any) -> Rows:
    """Rows of a trace: (seconds, memory slots or KEEP, active slots) each."""
    made = np.zeros(len(rows), ROW)
    until_s = 0
    for row, (seconds, memory, active) in zip(made, rows, strict=True):
        until_s += seconds
        row["until_ms"] = until_s * 1000
        row["memory_pages"] = KEEP if memory == KEEP else memory * k
        row["active_pages"] = active * k
        row["data_pages"] = options.get("data", 0) * k
        row["growth_pages_per_s"] = options.get("growth", 20) * k
        row["touch_interval_ms"] = options.get("touch_interval", 1000)
        row["writes_permille"] = options.get("writes", 300)
        row["locality"] = LOCALITIES.index(options.get("locality", "uniform"))
        row["drift_permille_per_h"] = options.get("drift", 500)
        row["cpu_permille"] = options.get("cpu", 200)
    return made
