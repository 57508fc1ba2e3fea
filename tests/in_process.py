"""Whole scenarios in this process, without a folder for results: only the report.

`report_of` runs a mapping such as a scenario file holds; images may be those of scenarios/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from cluster_builders import host_set
from scenario_files import write

from cluster import reports
from cluster.aggregate import Aggregator
from cluster.coordinator import barriers
from cluster.fleet import LocalFleet
from cluster.policy.history import History
from cluster.population import populate
from cluster.rows import HostFacts, VmFacts
from cluster.scenario_file import load

SCENARIOS = Path(__file__).parent.parent / "scenarios"
IMAGES: list[Any] = yaml.safe_load((SCENARIOS / "images.yaml").read_text("utf-8"))["images"]


def report_of(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The report of a scenario without events that VMs are refused for; `folder` is scratch."""
    loaded = load(write(folder, data, "in-process.yaml"))
    scenario, population = loaded.scenario, populate(loaded)
    hosts = [
        HostFacts(h.host, h.name, h.config.machine_bytes, h.config.cpus) for h in population.hosts
    ]
    specs = [vm.spec for vm in population.vms]
    vms = [
        VmFacts(s.vm, s.name, s.config.memory, s.config.reservation, s.config.vcpus) for s in specs
    ]
    seen = Aggregator(hosts, vms, epoch_ms=scenario.epoch, sample=scenario.fidelity.sample)
    fleet = LocalFleet(host_set(loaded, population.hosts))
    for barrier in barriers(population, scenario, fleet):
        seen.add(barrier.report)
    about = {"name": scenario.name, "seed": scenario.seed, "digest": loaded.digest}
    return reports.build(seen, about, History(), loaded.assumptions)
