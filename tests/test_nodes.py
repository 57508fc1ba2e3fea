"""Several machines: the same result as one process, whatever becomes of nodes and their links.

A head and two workers in network namespaces (`ray_nodes`), with token authentication.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import ray_nodes
from chaos import MAIN, Voyage, assert_same, scenario
from cluster_builders import manifest_of
from ray_nodes import Nodes

from cluster import execute

WORKERS = (2, 3)
FAULTS = 12
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(ray_nodes.why_not() is not None, reason=str(ray_nodes.why_not())),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    data = folder / "no-data"
    options = execute.Options(scenario(folder), folder / "out", None, None, None, False, data)
    return execute.run(options)[1]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with ray_nodes.cluster(tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.fixture(autouse=True)
def whole_cluster(nodes: Nodes) -> Iterator[None]:
    """Each test finds all nodes there."""
    for node in WORKERS:
        if not nodes.is_whole(node):
            nodes.revive(node)
    yield


def voyage(nodes: Nodes, folder: Path, out: str = "out") -> Voyage:
    return Voyage(
        *(scenario(folder), folder / out, ["--address", nodes.address]),
        prefix=nodes.prefix,
        environment=nodes.environment,
    )


def once(fault: Callable[[], str], seen: list[int], nodes: Nodes) -> Callable[..., str | None]:
    """The fault, a moment into the run; seen: how many host actors each node had then."""

    def next_fault(voyage: Voyage, driver: int) -> str | None:
        if voyage.faults:
            return None
        time.sleep(1.0)
        seen[:] = [len(nodes.pids(node, "ray::HostActor")) for node in nodes.ids]
        return fault()

    return next_fault


def test_three_nodes_give_the_result_of_one_process(
    nodes: Nodes, whole: Path, tmp_path: Path
) -> None:
    sailing, seen = voyage(nodes, tmp_path), list[int]()
    sailing.sail(once(lambda: "none", seen, nodes))
    assert_same(sailing.out, whole)
    assert seen == [2, 2, 2]  # six hosts
    manifest = manifest_of(sailing.out)
    assert (manifest["ray_cluster"]["nodes"], manifest["restarts"]) == (3, 0)


@pytest.mark.parametrize("word", ["raylet/raylet", "ray::HostActor", ""])
def test_a_node_that_dies_does_not_show(
    nodes: Nodes, whole: Path, tmp_path: Path, word: str
) -> None:
    """Its raylet; its hosts; all of its processes at once."""

    def fault() -> str:
        assert nodes.kill(3, word) >= 1
        return word

    sailing, seen = voyage(nodes, tmp_path), list[int]()
    sailing.sail(once(fault, seen, nodes))
    assert_same(sailing.out, whole)
    assert [code for code, _ in sailing.endings] == [0] and seen[2] == 2
    manifest = manifest_of(sailing.out)
    assert manifest["restarts"] >= 1
    if word != "ray::HostActor":
        assert manifest["ray_cluster"]["nodes"] == 2


@pytest.mark.parametrize("heals_after_s", [0.5, 8.0, None])
def test_a_link_that_is_cut_does_not_show(
    nodes: Nodes, whole: Path, tmp_path: Path, heals_after_s: float | None
) -> None:
    """For a moment, for longer than a node may be silent, for good."""

    def fault() -> str:
        nodes.link(2, "down")
        if heals_after_s is not None:
            time.sleep(heals_after_s)
            nodes.link(2, "up")
        return "cut"

    sailing, seen = voyage(nodes, tmp_path), list[int]()
    try:
        sailing.sail(once(fault, seen, nodes))
    finally:
        nodes.link(2, "up")
    assert_same(sailing.out, whole)
    assert [code for code, _ in sailing.endings] == [0] and seen[1] == 2
    if heals_after_s is None:
        assert manifest_of(sailing.out)["restarts"] >= 1


def test_faults_of_all_kinds_do_not_show(nodes: Nodes, whole: Path, tmp_path: Path) -> None:
    """Drawn; nodes that died come back."""
    random, done = Random(5), Counter[str]()

    def next_fault(voyage: Voyage, driver: int) -> str | None:
        if done.total() >= FAULTS:
            return None
        time.sleep(random.uniform(0, 1.5))
        kind, node = (
            random.choice(["raylet", "host", "cut", "driver", "back"]),
            random.choice(WORKERS),
        )
        if kind == "raylet":
            nodes.kill(node, "raylet/raylet")
        elif kind == "host":
            nodes.kill(random.choice(nodes.ids), "ray::HostActor")
        elif kind == "cut":
            nodes.link(node, "down")
            time.sleep(random.uniform(0, 6))
            nodes.link(node, "up")
        elif kind == "driver":
            subprocess.run(["kill", "-9", str(driver)], check=False)
        else:
            for worker in WORKERS:
                if not nodes.is_whole(worker):
                    nodes.revive(worker)
        done[kind] += 1
        return kind

    runs = 0
    while done.total() < FAULTS:
        runs += 1
        sailing = voyage(nodes, tmp_path, f"run-{runs}")
        sailing.sail(next_fault)
        assert_same(sailing.out, whole)
        print(sailing.faults, [code for code, _ in sailing.endings])


def test_the_head_that_dies_ends_the_run_which_another_cluster_goes_on_with(
    nodes: Nodes, whole: Path, tmp_path: Path
) -> None:
    """The last test of these: the cluster is another one afterwards."""

    def next_fault(voyage: Voyage, driver: int) -> str | None:
        if voyage.faults:
            return None
        time.sleep(1.0)
        for word in ("gcs/gcs_server", "raylet/raylet"):
            assert nodes.kill(1, word) == 1
        return "head"

    sailing = voyage(nodes, tmp_path)
    with pytest.raises(AssertionError):  # no cluster: it is not tried for ever
        sailing.sail(next_fault)
    assert sailing.faults == ["head"]
    for code, said in sailing.endings:
        assert code != 0 and "Traceback" not in said
    for node in nodes.ids:
        nodes.revive(node)
    again = voyage(nodes, tmp_path)
    again.sail(lambda voyage, driver: None)
    assert_same(again.out, whole)
    assert manifest_of(again.out)["begun_at_epoch"] > 0


def test_a_stranger_is_not_let_in(nodes: Nodes, tmp_path: Path) -> None:
    command = [*nodes.prefix, *MAIN, "run", str(scenario(tmp_path)), "--address", nodes.address]
    wrong = nodes.environment | {"RAY_AUTH_TOKEN": "0" * 64, "PATH": "/usr/bin:/bin"}
    found = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        env=wrong,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "refuses the token" in found.stderr and nodes.token not in found.stderr
    assert not (tmp_path / "out").exists()
