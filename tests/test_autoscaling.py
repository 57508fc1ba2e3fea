"""A run has a cluster's autoscaler bring the nodes that it is to have, and lets them go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray_nodes
from chaos import BOUND_S, Voyage, scenario
from cluster_builders import manifest_of
from ray_nodes import Nodes
from typer.testing import CliRunner

from cluster.cli import app

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(ray_nodes.why_not() is not None, reason=str(ray_nodes.why_not())),
]
RAYLET = "raylet/raylet"


def test_a_run_gets_the_nodes_that_it_asks_for(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(voyage: Voyage, driver: int) -> None:
        seen.append(len(nodes.pids(1, RAYLET)))

    with ray_nodes.cluster(tmp_path, 1, scales=True) as nodes:
        options = ["--address", nodes.address, "--cpus", "4"]
        run = Voyage(
            *(scenario(tmp_path), tmp_path / "out", options), nodes.prefix, nodes.environment
        )
        run.sail(look)
        found = manifest_of(run.out)["ray_cluster"]
        assert (found["cpus"], seen) == (4, [3])  # the head, and two nodes of two
        assert_let_go(nodes)


def assert_let_go(nodes: Nodes) -> None:
    give_up_s = time.monotonic() + BOUND_S
    while len(nodes.pids(1, RAYLET)) > 1:
        assert time.monotonic() < give_up_s
        time.sleep(0.5)


def test_a_cluster_of_our_own_is_not_asked_for_more(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["run", str(scenario(tmp_path)), "--cpus", "4"])
    assert found.exit_code == 2 and "--cpus: is for a cluster that exists" in found.stderr
