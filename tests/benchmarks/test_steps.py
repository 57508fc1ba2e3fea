"""What coarse ticks save, and what they cost in truth: steps by law against steps of a second.

scenarios/scale-1000.yaml with fewer hosts in the same proportions, a day. The finest tick is the
yardstick: pages are touched, sampled and reclaimed second by second. Two rows of it with different
seeds say how far apart runs lie by chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cluster_builders import host_set
from measuring import Tables, cpu_s
from test_cluster import SCENARIO, changes_for

from cluster.coordinator import barriers
from cluster.fleet import LocalFleet
from cluster.messages import LEVELS
from cluster.population import populate
from cluster.scenario_file import load

HOSTS = 20
FINE_S, SEED = 1, 1
RUNS = ((FINE_S, SEED), (FINE_S, SEED + 1), (10, SEED), (60, SEED), (300, SEED))
"""Ticks in seconds, and seeds; the first is what the others are compared with."""
MEMORY = ("active", "shared_saved", "ballooned", "swapped")

pytestmark = pytest.mark.benchmark


def means(tick_s: int, seed: int) -> dict[str, float]:
    """Parts of time in each reclamation state, and of configured memory, in %; CPU in s."""
    more: dict[str, Any] = {"tick": f"{tick_s} s"}
    loaded = load(SCENARIO, seed=seed, changes=changes_for(HOSTS, 10, **more))
    population, scenario = populate(loaded), loaded.scenario
    fleet = LocalFleet(host_set(loaded, population.hosts))
    tables: list[Any] = []

    def run() -> None:
        for barrier in barriers(population, scenario, fleet):
            tables.append(barrier.report.hosts)

    found = {"cpu_s": cpu_s(run)}
    rows = np.concatenate(tables)
    elapsed_ms = sum(int(rows[f"{level}_ms"].sum()) for level in LEVELS)
    found |= {level: 100 * int(rows[f"{level}_ms"].sum()) / elapsed_ms for level in LEVELS}
    configured = int(rows["configured_pages"].sum())
    return found | {name: 100 * int(rows[f"{name}_pages"].sum()) / configured for name in MEMORY}


def test_cost_and_bias_of_coarse_ticks(tables: Tables) -> None:
    fine_s = 0.0
    for tick_s, seed in RUNS:
        found = means(tick_s, seed)
        fine_s = fine_s or found["cpu_s"]
        row: dict[str, str | int | float] = {"tick, s": tick_s, "seed": seed}
        row["CPU, to the first row"] = found["cpu_s"] / fine_s
        row |= {f"{level}, % of time": f"{found[level]:.2f}" for level in LEVELS[:2]}
        row |= {f"{name}, % of memory": f"{found[name]:.2f}" for name in MEMORY}
        tables.add(f"Steps: {HOSTS} hosts for a day, 1/1024, by tick", row)
