"""Hosts whose VMs hold the page hashes of a scenario's files, for tests of what sharing finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenario_files import write

from cluster.population import populate
from cluster.scenario_file import Loaded, load
from hostsim.host import Host
from hostsim.state import HINT, RESIDENT, SHARED, STATE
from hostsim.units import HostId

DATA = Path(__file__).parents[2] / "shared" / "data"
FAST_SCAN = {"scan_pages_per_s_vm": 200_000, "scan_pages_per_s_total": 2_000_000}


def need(folder: str) -> None:
    """Skip, visibly, where the data are not."""
    if not (DATA / folder).is_dir():
        pytest.skip(f"needs ../shared/data/{folder}")


def scenario(content: dict[str, Any], count: int = 1, **options: Any) -> dict[str, Any]:
    """VMs of one image with hashes on one host with ample memory. `options`: keys of the scenario,
    or `memory` of a VM, `boot`, and keys of the host's `sharing` and `sampling`."""
    memory, boot = options.pop("memory", "260 MiB"), options.pop("boot", "1 s")
    host = {"name": "esx", "memory": "16 GiB", "cpus": 64, "profile": "osdi02"}
    host |= {key: options.pop(key) for key in ("sharing", "sampling") if key in options}
    return {
        "name": "replayed",
        "duration": "10 min",
        "hosts": [host],
        "images": [{"name": "real", "boot": boot, "content": content}],
        "vms": [{"name": "vm", "count": count, "memory": memory, "image": "real"}],
    } | options


def load_in(folder: Path, data: dict[str, Any], **options: Any) -> Loaded:
    return load(write(folder, data), **({"data_root": DATA} | options))


def host_of(loaded: Loaded) -> Host:
    """The scenario's one host with all its VMs just powered on."""
    population = populate(loaded)
    seed, tick_ms = loaded.scenario.seed, loaded.scenario.tick
    host = Host(HostId(0), population.hosts[0].config, seed, 1, tick_ms)
    for vm in population.vms:
        host.power_on(vm.spec)
    return host


def boot(host: Host) -> None:
    """Until all guests have booted."""
    while not host.state.vms["booted"][host.state.vms["vm"] >= 0].all():
        host.advance(1000)


def coverage(host: Host) -> float:
    """Part of the pages in memory that have been scanned: shared, or known by a hint. True as long
    as nothing is written and nothing leaves memory."""
    state = host.state.page & STATE
    visited = (state == SHARED) | (host.state.page & HINT != 0)
    return float(visited.sum() / ((state == RESIDENT) | (state == SHARED)).sum())


def scan_all(host: Host) -> None:
    """Until every page in memory has been scanned."""
    boot(host)
    while coverage(host) < 1.0:
        host.advance(1000)


def saved(host: Host) -> tuple[int, int]:
    """Pages that sharing saves now: zero pages, and others."""
    rows, _ = host.measure()
    zero = int(rows["zero_saved_pages"][0])
    return zero, int(rows["shared_saved_pages"][0]) - zero


def consumed(host: Host) -> int:
    """Frames in use for VMs."""
    rows, _ = host.measure()
    return int(rows["consumed_pages"][0])


def raw_period(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The fraction that a period's sample found, from the fast average before and after it."""
    return before + (after - before) / 0.75
