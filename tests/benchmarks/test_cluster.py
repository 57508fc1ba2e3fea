"""What a host costs for an epoch as clusters grow: by hosts, by VMs a host, by actors on Ray.

scenarios/scale-1000.yaml, with fewer hosts and VMs in the same proportions, in this process. The
first epochs, in which guests power on and boot, come before the measured ones. Flat rows are the
goal: a host must not cost more for having others, or other VMs, beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cluster_builders import host_set
from measuring import Tables, cpu_s

from cluster import execute
from cluster.fleet import LocalFleet
from cluster.policy import agenda, planner, state
from cluster.policy.decisions import Plan, Sight
from cluster.population import Population, populate
from cluster.scenario_file import Loaded, load

SCENARIO = Path(__file__).parents[2] / "scenarios" / "scale-1000.yaml"
GROUPS = {0: 1, 1: 4, 2: 1, 3: 1, 4: 3}
"""VMs of each of the scenario's groups, of ten."""
HOSTS = (100, 1000, 10_000)
VMS_PER_HOST = (5, 10, 20, 40)
HOSTS_OF_VMS = 20
HOST_MIB = 27_306
"""Memory of a host with ten VMs, as in the scenario."""
BOOT_EPOCHS = 2
HOST_EPOCHS, SPAN = 10_000, 10
"""Measured, at least, in each row, at most a day; epochs that a host runs on."""
WEIGHTS = ("0 %", "50 %", "100 %")
ACTORS = (1, 2)
RAY_HOSTS = 100
RAY_SAMPLE = 64
"""Finer than the scenario's: or a day were over in a second."""

pytestmark = pytest.mark.benchmark


def changes_for(n_hosts: int, vms_per_host: int, **more: Any) -> dict[str, Any]:
    """What of the scenario must be different for so many hosts and VMs."""
    changes = {"hosts.0.count": n_hosts, "hosts.0.memory": f"{HOST_MIB * vms_per_host // 10} MiB"}
    counts = {f"vms.{i}.count": part * n_hosts * vms_per_host // 10 for i, part in GROUPS.items()}
    return changes | counts | more


def scaled(n_hosts: int, vms_per_host: int) -> Loaded:
    """The scenario with so many hosts and VMs."""
    return load(SCENARIO, changes=changes_for(n_hosts, vms_per_host))


class Run:
    """A scenario in this process; nothing is written."""

    def __init__(self, loaded: Loaded) -> None:
        self._scenario = scenario = loaded.scenario
        self._population = populate(loaded)
        self._fleet = LocalFleet(host_set(loaded, self._population.hosts))
        self._due = agenda.agenda(self._population, scenario)
        self._now = state.initial(self._population)
        self._epoch = 0
        self.host_s = 0.0
        """CPU time of the hosts, the rest is the coordinator's."""

    def advance(self, n_epochs: int) -> None:
        """Nothing is due after the first epoch."""
        end = self._epoch + n_epochs
        while self._epoch < end:
            due, span = self._due.at(self._epoch), min(SPAN, end - self._epoch)
            sight = Sight(self._population, self._scenario, self._epoch)
            plan = planner.plan(self._now, due, sight)
            report = self._fleet.run(plan.orders, self._epoch, span)
            self._now = state.learn(plan.after, report)
            self.host_s += report.busy_s
            self._epoch += span

    def running(self) -> int:
        """VMs that are on."""
        return int((self._now.host_of != state.NOWHERE).sum())


def measured(n_hosts: int, vms_per_host: int) -> dict[str, float]:
    """CPU of a host-epoch, in ms: in all, and the hosts' part; what starting took, in s."""
    runs: list[Run] = []
    start_s = cpu_s(lambda: runs.append(Run(scaled(n_hosts, vms_per_host))))
    run = runs[0]
    start_s += cpu_s(lambda: run.advance(BOOT_EPOCHS))
    assert run.running() == n_hosts * vms_per_host
    before_s = run.host_s
    n_epochs = min(max(-(-HOST_EPOCHS // n_hosts), SPAN), 24 * 12 - BOOT_EPOCHS)
    all_s = cpu_s(lambda: run.advance(n_epochs))
    per = 1000 / (n_hosts * n_epochs)
    return {
        "all_ms": all_s * per,
        "host_ms": (run.host_s - before_s) * per,
        "start_ms": start_s * 1000 / (n_hosts * vms_per_host),
    }


def add_row(tables: Tables, table: str, what: dict[str, int], first: float, n_vms: int) -> float:
    """Measure, and add to a table. Returns what a VM costs; `first`: what it did in row one."""
    found = measured(what["hosts"], n_vms)
    per_vm_us = found["all_ms"] * 1000 / n_vms
    row = {
        "host-epoch, CPU ms": found["all_ms"],
        "of that in hosts": f"{100 * found['host_ms'] / found['all_ms']:.0f} %",
        "a VM-epoch, to the first row": per_vm_us / (first or per_vm_us),
        "to start and boot a VM, CPU ms": found["start_ms"],
    }
    tables.add(table, what | row)
    return first or per_vm_us


def test_cost_of_a_host_by_number_of_hosts(tables: Tables) -> None:
    first = 0.0
    for n_hosts in HOSTS:
        what = {"hosts": n_hosts, "VMs": 10 * n_hosts}
        first = add_row(tables, "Cluster: by hosts, ten VMs each", what, first, 10)


def test_cost_of_a_host_by_its_vms(tables: Tables) -> None:
    first = 0.0
    for n_vms in VMS_PER_HOST:
        what = {"hosts": HOSTS_OF_VMS, "VMs a host": n_vms}
        first = add_row(tables, "Cluster: by VMs of a host", what, first, n_vms)


def placed(weight: str) -> dict[str, float]:
    """CPU seconds: to number all VMs of the scenario and know what they hold, and to place them."""
    loaded = load(SCENARIO, changes={"placement.content": weight})
    found: list[Population] = []
    plans: list[Plan] = []
    number_s = cpu_s(lambda: found.append(populate(loaded)))
    now, sight = state.initial(found[0]), Sight(found[0], loaded.scenario, 0)
    due = agenda.agenda(found[0], loaded.scenario).at(0)
    place_s = cpu_s(lambda: plans.append(planner.plan(now, due, sight)))
    assert len(plans[0].orders) == len(due)
    return {"to number VMs, CPU s": number_s, "to place them": place_s}


def test_cost_of_placing_by_content(tables: Tables) -> None:
    """10,000 VMs on 1,000 hosts at once. Goal: a few per cent of the 11 s that the day takes."""
    for weight in WEIGHTS:
        tables.add("Cluster: placing by content", {"content": weight} | placed(weight))


@pytest.mark.ray
def test_speed_up_by_actors_on_ray(tables: Tables, tmp_path: Path) -> None:
    """As `esxsim run` does it, coordinator, tables and report included. Goal: twice the actors,
    nearly half the time, as far as there are cores."""
    path = tmp_path / "scale.yaml"
    path.write_text(load(SCENARIO, changes=changes_of_ray()).scenario_yaml, encoding="utf-8")
    first_s, cores = 0.0, os.cpu_count() or 1
    for n_actors in ACTORS:
        out = tmp_path / str(n_actors)
        execute.run(
            execute.Options(
                scenario=path,
                out=out,
                address="local",
                hosts_per_actor=RAY_HOSTS // n_actors,
                seed=None,
                check=False,
                data_root=tmp_path,
            )
        )
        told = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        first_s = first_s or told["wall_s"]
        used_s = told["host_cpu_s"] + told["coordinator_cpu_s"]
        tables.add(
            f"Cluster: {RAY_HOSTS} hosts on Ray, {cores} cores",
            {
                "actors": n_actors,
                "speed-up": first_s / told["wall_s"],
                "hosts' CPU / (actors x wall)": told["host_cpu_s"] / (n_actors * told["wall_s"]),
                "hosts' CPU / all CPU of the run": told["host_cpu_s"] / used_s,
                "wall s": told["wall_s"],
            },
        )


def changes_of_ray() -> dict[str, Any]:
    """The scenario for RAY_HOSTS hosts, finer."""
    return changes_for(RAY_HOSTS, 10, **{"fidelity.sample": RAY_SAMPLE})
