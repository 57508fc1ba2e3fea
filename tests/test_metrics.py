"""What a run tells Prometheus, as a cluster's exporter has it; the dashboard asks for no more.

One cluster, started as a user does, and one run on it for all tests; `esxsim top` finds it there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import ANY

import promql_parser as promql
import pytest
import ray_head
from cluster_builders import MOVES, PRESSED
from prometheus_client.parser import text_string_to_metric_families
from scenario_files import write
from test_top import NOW, VIEW

from cluster import ray_environment
from cluster.scenario_file import load
from cluster.watch.live import run_id
from cluster.watch.looking import ENDED, LOST, RUNS, Look, OnCluster

pytestmark = pytest.mark.ray
MAIN = [sys.executable, "-c", "from cluster.cli import main; main()"]
DASHBOARD = Path(__file__).parents[1] / "k8s/overlays/monitoring/dashboard.json"
EXPORT_S = 60
"""For something that hangs."""
LAST = "ray_esxsim_migrations_total"
"""What a run exports last: when a migration has ended."""


# Without Ray's exporter


class Kept:
    """Stands for a metric of Ray's."""

    def __init__(self, name: str, meaning: str, keys: tuple[str, ...]) -> None:
        self.values: dict[tuple[str, ...], list[float]] = {}
        self._keys = keys

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0 and tuple(tags) == self._keys
        self.values.setdefault(tuple(tags.values()), []).append(value)


class KeptGauge(Kept):
    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self._keys
        self.values.setdefault(tuple(tags.values()), []).append(value)


@pytest.fixture(scope="module")
def metrics() -> Iterator[ModuleType]:
    """`cluster.watch.metrics`, imported as the command does it: Ray reads its environment then."""
    before = dict(os.environ)
    ray_environment.prepare(own_cluster=True)
    from cluster.watch import metrics

    yield metrics
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def exporter(metrics: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(metrics.metrics, "Counter", Kept)
    monkeypatch.setattr(metrics.metrics, "Gauge", KeptGauge)
    return metrics.Exporter()


COUNTS = {
    "epochs": 2,
    "host_ticks": 20,
    "simulated_ms": 90_500,
    "migrated": 0,
    "migration_failed": 0,
    "zero_fills": 5,
    "cow_breaks": 0,
    "decompressions": 0,
    "swap_in_pages": 1,
    "swap_out_pages": 2,
    "inflated_pages": 3,
    "deflated_pages": 0,
}


def test_counters_grow_by_what_was_new_since_the_last_view(exporter: Any) -> None:
    first = replace(NOW, view=replace(VIEW, counts=COUNTS))
    exporter.show(first)
    exporter.show(replace(first, epoch=63))  # no new view
    more = COUNTS | {"epochs": 5, "swap_in_pages": 11, "migrated": 1}
    exporter.show(replace(first, view=replace(VIEW, counts=more)))
    seen: dict[str, Any] = {name: one.values for name, one in exporter._counters.items()}
    run = VIEW.run
    assert seen["esxsim_epochs_total"] == {(run,): [2, 3]}
    assert seen["esxsim_simulated_seconds_total"] == {(run,): [90.5]}
    assert seen["esxsim_swapped_bytes_total"] == {(run, "out"): [8192], (run, "in"): [4096, 40960]}
    assert seen["esxsim_ballooned_bytes_total"] == {(run, "inflate"): [12288]}
    assert seen["esxsim_faults_total"] == {(run, "zero_fill"): [5], (run, "swap_in"): [1, 10]}
    assert seen["esxsim_migrations_total"] == {(run, "done"): [1]}


def test_gauges_are_what_there_is_now(exporter: Any) -> None:
    exporter.show(replace(NOW, view=replace(VIEW, counts=COUNTS)))
    seen: dict[str, Any] = {name: one.values for name, one in exporter._gauges.items()}
    run = VIEW.run
    assert seen["esxsim_progress_ratio"] == {(run,): [62 / 360]}
    assert seen["esxsim_hosts"][run, "soft"] == [3] and seen["esxsim_hosts_off"] == {(run,): [1]}
    assert seen["esxsim_memory_bytes"] == {(run, n): [b] for n, b in NOW.memory_bytes.items()}
    assert seen["esxsim_vms"] == {(run, "on"): [197], (run, "waiting"): [3]}
    assert seen["esxsim_checkpoint_age_seconds"] == {(run,): [12.0]}
    assert seen["esxsim_actor_restarts"] == {(run,): [1]}
    assert all(seen.values())  # every gauge is set


def test_without_a_checkpoint_all_that_was_done_is_at_risk(exporter: Any) -> None:
    exporter.show(replace(NOW, checkpoint_age_s=None, view=replace(VIEW, counts=COUNTS)))
    age: Any = exporter._gauges["esxsim_checkpoint_age_seconds"]
    assert age.values == {(VIEW.run,): [NOW.wall_s]}


def test_names_say_units_as_prometheus_has_them(metrics: ModuleType) -> None:
    names = [one.name for one in (*metrics.COUNTERS, *metrics.GAUGES)]
    assert len({*names}) == len(names)
    for one in metrics.COUNTERS:
        assert re.fullmatch(r"esxsim_[a-z_]+_total", one.name)
    for one in metrics.GAUGES:
        assert re.fullmatch(r"esxsim_[a-z_]+(?<!_total)", one.name)
    assert {one.label for one in (*metrics.COUNTERS, *metrics.GAUGES)} == {
        *(None, "kind", "direction", "outcome", "state", "level")
    }, "a label for each VM, host or epoch would be too many"


# A real run


@dataclass
class Scraped:
    """What the exporter had of a run, and what `top` said of it."""

    run: str
    families: dict[str, Any]
    top: list[str]


def scrape(head: ray_head.Head) -> dict[str, Any]:
    with urllib.request.urlopen(head.metrics, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    ours = [one for one in families if one.name.startswith("ray_esxsim_")]
    # The parser takes the suffix of counters away.
    return {one.name + "_total" * (one.type == "counter"): one for one in ours}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Scraped:
    folder = tmp_path_factory.mktemp("metrics")
    hosts = [PRESSED["hosts"][0] | {"memory": "400 MiB"}]
    moving = PRESSED | {"duration": "3650 d", "hosts": hosts, "events": MOVES}
    path = write(folder, moving, "moving.yaml")
    with ray_head.started() as head:
        out, where = str(folder / "out"), ["--address", head.address]
        options: dict[str, Any] = {"env": head.environment, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            [*MAIN, "run", str(path), "--hosts-per-actor", "3", "--out", out, *where], **options
        ) as process:
            try:
                give_up_s = time.monotonic() + EXPORT_S
                while LAST not in (found := scrape(head)):
                    assert process.poll() is None and time.monotonic() < give_up_s, found.keys()
                    time.sleep(0.2)
                looking = [*MAIN, "top", head.address, "--once"]
                seen = subprocess.run(looking, stdout=subprocess.PIPE, **options)
            finally:
                process.kill()
    assert (seen.returncode, seen.stderr) == (0, "")
    return Scraped(run_id(load(path)), found, seen.stdout.splitlines())


@pytest.mark.slow
def test_every_metric_is_exported_with_its_labels_and_meaning(
    metrics: ModuleType, scraped: Scraped
) -> None:
    declared = {f"ray_{one.name}": one for one in (*metrics.COUNTERS, *metrics.GAUGES)}
    assert scraped.families.keys() == declared.keys()
    counters = {f"ray_{one.name}" for one in metrics.COUNTERS}
    for name, family in scraped.families.items():
        assert family.type == ("counter" if name in counters else "gauge"), name
        assert family.documentation == declared[name].meaning
        for sample in family.samples:
            assert sample.labels["run"] == scraped.run
            assert declared[name].label is None or sample.labels[declared[name].label]


@pytest.mark.slow
def test_what_is_exported_is_true(scraped: Scraped) -> None:
    value = {
        (name, sample.labels.get("state") or sample.labels.get("level")): sample.value
        for name, family in scraped.families.items()
        for sample in family.samples
    }
    memory = {state: n for (name, state), n in value.items() if name == "ray_esxsim_memory_bytes"}
    parts = ("consumed", "shared_saved", "compressed", "ballooned", "swapped", "untouched")
    assert sum(memory[part] for part in parts) == memory["configured"] > 0
    assert value["ray_esxsim_machine_memory_bytes", None] == 3 * 400 << 20
    hosts = [n for (name, _), n in value.items() if name == "ray_esxsim_hosts"]
    assert sum(hosts) == 3
    epochs = value["ray_esxsim_epochs_total", None]
    assert value["ray_esxsim_simulated_seconds_total", None] == 60 * epochs > 0
    assert value["ray_esxsim_host_ticks_total", None] == 36 * epochs


@pytest.mark.slow
def test_top_finds_the_run_on_its_cluster(scraped: Scraped) -> None:
    assert scraped.top[0].startswith(f"{scraped.run}  running  127.0.0.1:")
    assert any(line.startswith("Hosts by pressure") for line in scraped.top)
    assert "esx-1" in " ".join(scraped.top)


def test_a_run_that_is_no_more_had_ended_or_was_lost(
    metrics: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.watch import attach

    told: list[Any] = [(NOW, True), (None, False)]
    monkeypatch.setattr(attach, "progress", lambda name: told.pop(0))
    look = OnCluster("auto", "a")
    assert look() == Look("auto", "a", RUNS, NOW, ANY, ANY)
    lost = look()
    assert (lost.state, lost.progress, lost.is_over) == (LOST, NOW, False)
    assert lost.reason == "it has ended, or was lost"
    done = replace(NOW, epoch=NOW.epochs)
    told += [(done, True), (None, False)]
    assert look().state == RUNS
    ended = look()
    assert (ended.state, ended.progress, ended.is_over) == (ENDED, done, True)


# The dashboard

PANELS = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
TARGETS = [(panel["title"], one) for panel in PANELS for one in panel["targets"]]


def parsed(expression: str) -> Any:
    return promql.parse(expression.replace("$__rate_interval", "1m"))


Labels = frozenset[str]


def selectors(node: Any, labels: Labels = frozenset()) -> Iterator[tuple[Any, Labels]]:
    """Each selector of a query, and the labels that are asked of it by what is around it."""
    match node:
        case promql.VectorSelector():
            yield node, labels
        case promql.MatrixSelector():
            yield node.vector_selector, labels
        case promql.AggregateExpr():
            assert node.modifier.type == promql.AggModifierType.By
            yield from selectors(node.expr, frozenset(node.modifier.labels))
        case promql.Call():
            for argument in node.args:
                yield from selectors(argument, labels)
        case promql.BinaryExpr():
            for side in (node.lhs, node.rhs):
                yield from selectors(side, labels | {*node.modifier.matching.labels})
        case _:
            raise AssertionError(f"no test knows {type(node).__name__}")


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=str)
@pytest.mark.slow
def test_a_panel_asks_for_what_runs_export(
    title: str, target: dict[str, Any], scraped: Scraped
) -> None:
    asked = list(selectors(parsed(target["expr"])))
    assert asked
    shown = {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])}
    for selector, labels in asked:
        samples = scraped.families[selector.name].samples
        for label in labels:
            assert all(label in sample.labels for sample in samples), label
        matchers = {one.name: one for one in selector.matchers.matchers}
        assert matchers.pop("run").value == "$run"
        for label, matcher in matchers.items():
            exported = {sample.labels[label] for sample in samples}
            assert {*matcher.value.split("|")} <= exported
    assert shown <= asked[0][1], "a legend's labels are those of the result"


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    assert board["schemaVersion"] >= 39 and board["uid"] == "esxsim"
    datasource, run = board["templating"]["list"]
    assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
    assert run["name"] == "run" and run["datasource"]["uid"] == "${datasource}"
    assert re.fullmatch(r"label_values\((ray_esxsim_\w+), run\)", run["definition"])
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}" and panel["description"]
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


@pytest.mark.slow
def test_the_list_of_runs_asks_for_what_they_export(scraped: Scraped) -> None:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    name = board["templating"]["list"][1]["definition"].split("(")[1].split(",")[0]
    assert name in scraped.families


def test_every_metric_is_on_the_dashboard(metrics: ModuleType) -> None:
    asked = {one.name for _, target in TARGETS for one, _ in selectors(parsed(target["expr"]))}
    assert asked == {f"ray_{one.name}" for one in (*metrics.COUNTERS, *metrics.GAUGES)}
