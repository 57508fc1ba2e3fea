"""Memory tiers in whole scenarios: VMs are placed in both tiers, and the report says the price."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster_builders import packed, simulate
from scenario_files import problems_of, write

from cluster.scenario_file import load

HOST: dict[str, Any] = {
    "name": "esx",
    "count": 2,
    "memory": "1 GiB",
    "reserve": "64 MiB",
    "tier": {"nvme": "100 %"},
}
PHASE = {"duration": "1 h", "memory": "90 %", "active": "20 %", "growth": "8 MiB/s"}
VM = {"name": "web", "count": 6, "memory": "512 MiB", "image": "linux", "workload": "steady"}
SCENARIO: dict[str, Any] = {
    "name": "tiers",
    "duration": "20 min",
    "hosts": [HOST],
    "images": [{"name": "linux", "footprint": "64 MiB"}],
    "workloads": [{"name": "steady", "phases": [PHASE]}],
    "vms": [VM],
    "placement": {"policy": "worst-fit", "by": "configured", "overcommit": 1},
    "fidelity": {"sample": 16},
}


def with_tier(nvme: str) -> dict[str, Any]:
    return SCENARIO | {"hosts": [HOST | {"tier": {"nvme": nvme}}]}


def report_of(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Of a run that checks every truth after every epoch."""
    return simulate(load(write(folder, data)), folder / "run", check=True).report


def test_vms_are_placed_in_both_tiers_and_the_report_says_where_they_lie(tmp_path: Path) -> None:
    """Six VMs of 512 MiB on two hosts of 1 GiB and as much NVMe; on DRAM alone four find room."""
    report = report_of(tmp_path, SCENARIO)
    assert report["hosts"]["memory_gib"] == 4
    assert report["vms"]["placed"] == 6 and report["consolidation"]["overcommit_peak"] == 0.75
    memory, cost = report["memory_gib"], report["cost"]
    assert 0.3 < memory["nvme"]["max"] < memory["consumed"]["max"] + memory["overhead"]["max"]
    assert cost["tier_down_pages"] > 0 and cost["tier_touches"] >= cost["tier_up_pages"]
    assert cost["slowdown_by_cause"]["tier"] < 0.001
    assert "hosts[esx].tier.latency" in report["assumptions"]


def test_without_a_tier_dram_is_all_memory(tmp_path: Path) -> None:
    report = report_of(tmp_path, with_tier("0 %"))
    assert report["hosts"]["memory_gib"] == 2 and report["vms"]["placed"] == 4
    assert report["memory_gib"]["nvme"]["max"] == report["cost"]["tier_touches"] == 0


def test_a_vm_larger_than_dram_fits_the_scenario(tmp_path: Path) -> None:
    vms = [VM | {"memory": "1.5 GiB", "count": 1}]
    found = load(write(tmp_path, SCENARIO | {"vms": vms}))
    assert found.scenario.hosts[0].machine_bytes == 2 << 30
    (problem,) = problems_of(tmp_path, with_tier("25 %") | {"vms": vms})
    assert "larger than any host: the largest has 1280 MiB" in problem.message


def test_vms_move_between_hosts_with_tiers_and_without(tmp_path: Path) -> None:
    hosts = [HOST, {"name": "plain", "memory": "4 GiB"}]
    events = [
        {"at": f"{at} min", "target": "web-1", "action": "migrate", "values": {"host": host}}
        for at, host in ((8, "esx-1"), (14, "plain"))
    ]
    report = report_of(tmp_path, SCENARIO | {"hosts": hosts, "events": events})
    assert report["vms"]["placed"] == 6 and report["migrations"]["count"] == 2


@pytest.mark.parametrize("nvme", ["25 %", "400 %"])
def test_the_digest_depends_neither_on_packing_nor_on_the_run(tmp_path: Path, nvme: str) -> None:
    found = load(write(tmp_path, with_tier(nvme)))
    digests = {simulate(found, tmp_path / "one").report["digest"]}
    for number, packs in enumerate([[(0, 1)], [(1,), (0,)]]):
        fleet = partial(packed, packs=packs)
        report = simulate(found, tmp_path / f"packed-{number}", fleet=fleet).report
        digests.add(report["digest"])
    assert len(digests) == 1
