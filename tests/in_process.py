"""Whole scenarios in this process, without a folder for results: only the report.

`report_of` runs a mapping such as a scenario file holds; images may be those of scenarios/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from cluster_builders import host_set
from scenario_files import write

from cluster import planner, reports, state
from cluster.aggregate import Aggregator
from cluster.fleet import LocalFleet
from cluster.population import populate
from cluster.rows import HostFacts, VmFacts
from cluster.scenario_file import load

SCENARIOS = Path(__file__).parent.parent / "scenarios"
IMAGES: list[Any] = yaml.safe_load((SCENARIOS / "images.yaml").read_text("utf-8"))["images"]


def report_of(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The report of a scenario without events that VMs are refused for; `folder` is scratch."""
    loaded = load(write(folder, data, "in-process.yaml"))
    scenario, population = loaded.scenario, populate(loaded)
    hosts = [HostFacts(h.host, h.name, h.config.memory, h.config.cpus) for h in population.hosts]
    specs = [vm.spec for vm in population.vms]
    vms = [
        VmFacts(s.vm, s.name, s.config.memory, s.config.reservation, s.config.vcpus) for s in specs
    ]
    seen = Aggregator(hosts, vms, epoch_ms=scenario.epoch, sample=scenario.fidelity.sample)
    fleet = LocalFleet(host_set(loaded, population.hosts))
    now, due = state.initial(population), planner.agenda(population, scenario)
    for epoch in range(scenario.duration // scenario.epoch):
        plan = planner.plan(now, due.at(epoch), population, scenario, epoch)
        report = fleet.run(plan.orders, epoch, 1)
        now = state.learn(plan.after, report)
        seen.add(report)
    about = {"name": scenario.name, "seed": scenario.seed, "digest": loaded.digest}
    return reports.build(seen, about, [], loaded.assumptions)
