"""The epoch loop on a small run that hurts: nothing of how it runs shows, nothing gets lost."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_builders import (
    PRESSED,
    host_set,
    json_lines,
    manifest_of,
    packed,
    pressed,
    recorded,
    simulate,
)

from cluster import coordinator, html, tables
from cluster.coordinator import Outcome, Progress
from cluster.errors import exit_code
from cluster.fleet import Fleet, LocalFleet
from cluster.population import Population
from cluster.scenario_file import Loaded
from hostsim.invariants import BrokenInvariantError
from hostsim.units import GIB, MIB

EPOCHS, HOSTS = 15, 3
TABLES = ("hosts.parquet", "vms.parquet", "epochs.parquet")
EQUAL = ("report.json", "events.jsonl", "scenario.yaml", *TABLES)
"""Files that two equal runs have alike, byte by byte."""
REFUSED = "no host is within the memory overcommit limit"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The run as it is meant, every invariant checked after every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    return simulate(pressed(folder), folder / "out", check=True), folder / "out"


def equal(one: tuple[Outcome, Path], two: tuple[Outcome, Path]) -> None:
    assert one[0] == two[0]
    for name in EQUAL:
        assert (one[1] / name).read_bytes() == (two[1] / name).read_bytes(), name


def test_a_run_says_how_it_ended_and_leaves_its_folder(whole: tuple[Outcome, Path]) -> None:
    outcome, out = whole
    assert not outcome.stopped
    assert outcome.report == json.loads((out / "report.json").read_text("utf-8"))
    assert not outcome.report["partial"]
    assert len(bytes.fromhex(outcome.report["digest"])) == 32
    names = {*EQUAL, "manifest.json"}
    assert {path.name for path in out.iterdir()} == names
    manifest = manifest_of(out)
    assert (manifest["partial"], manifest["fleet"]) == (False, "test")
    assert manifest["wall_s"] > manifest["epochs_wall_s"] > 0
    assert manifest["host_busy_share"] == pytest.approx(
        manifest["host_cpu_s"] / manifest["epochs_wall_s"], abs=0.01
    )


def test_the_run_hurts(whole: tuple[Outcome, Path]) -> None:
    """Or the other tests here would compare runs in which nothing happened."""
    report = whole[0].report
    cost, states = report["cost"], report["reclaim_states"]
    for name in ("swap_in_pages", "swap_out_pages", "cow_breaks", "guest_paging_pages"):
        assert cost[name] > 0, name
    assert all(states[level] > 0 for level in ("high", "soft", "hard"))
    assert sum(states.values()) == pytest.approx(1)
    assert report["memory_gib"]["shared_saved"]["max"] > 0
    assert report["consolidation"]["overcommit_peak"] > 1.2
    assert cost["slowdown"]["max"] > 1.05


# How it is run does not show.


def test_two_runs_are_equal(whole: tuple[Outcome, Path], tmp_path: Path) -> None:
    equal(whole, (simulate(pressed(tmp_path), tmp_path / "out"), tmp_path / "out"))


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_epochs_per_barrier_do_not_show(
    whole: tuple[Outcome, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(coordinator, "EPOCHS_PER_BARRIER", most)
    equal(whole, (simulate(pressed(tmp_path), tmp_path / "out"), tmp_path / "out"))


@pytest.mark.parametrize("packs", [[[0], [1], [2]], [[1, 2], [0]], [[2], [0, 1]]])
def test_packing_does_not_show(
    whole: tuple[Outcome, Path], tmp_path: Path, packs: list[list[int]]
) -> None:
    def fleet(loaded: Loaded, population: Population) -> Fleet:
        return packed(loaded, population, packs)

    outcome = simulate(pressed(tmp_path), tmp_path / "out", fleet=fleet)
    equal(whole, (outcome, tmp_path / "out"))


def test_another_seed_is_another_run(whole: tuple[Outcome, Path], tmp_path: Path) -> None:
    other = simulate(pressed(tmp_path, seed=8), tmp_path / "out").report
    assert other["digest"] != whole[0].report["digest"]
    assert other["cost"] != whole[0].report["cost"]
    assert other["vms"] == whole[0].report["vms"]


def test_the_digest_sees_the_final_state_of_every_host(
    whole: tuple[Outcome, Path], tmp_path: Path
) -> None:
    class Last(LocalFleet):
        """Nudges one host when all rows are written."""

        def digests(self) -> dict[Any, str]:
            found = super().digests()
            return found | {max(found): "0" * 64}

    def fleet(loaded: Loaded, population: Population) -> Fleet:
        return Last(host_set(loaded, population.hosts))

    other = simulate(pressed(tmp_path), tmp_path / "out", fleet=fleet).report
    assert other["digest"] != whole[0].report["digest"]
    assert other | {"digest": ""} == whole[0].report | {"digest": ""}


def test_the_rows_of_one_barrier_at_a_time_are_held(tmp_path: Path) -> None:
    """They take as much memory as anything: the last ones are gone when hosts run again."""
    before: list[weakref.ref[Any]] = []

    class Watching(LocalFleet):
        """Looks which rows still live when the next ones are asked for."""

        def run(self, orders: Any, first_epoch: int, n_epochs: int) -> Any:
            assert all(rows() is None for rows in before)
            report = super().run(orders, first_epoch, n_epochs)
            before.append(weakref.ref(report.vms))
            return report

    def fleet(loaded: Loaded, population: Population) -> Fleet:
        return Watching(host_set(loaded, population.hosts))

    simulate(pressed(tmp_path), tmp_path / "out", fleet=fleet)
    assert len(before) > 2


# Nothing gets lost.


def test_every_vm_has_one_fate(whole: tuple[Outcome, Path]) -> None:
    outcome, out = whole
    vms = outcome.report["vms"]
    assert vms["submitted"] == vms["placed"] + vms["refused"] + vms["waiting"] == 13
    assert vms["refused"] == sum(vms["refused_by"].values())
    assert list(vms["refused_by"]) == [REFUSED]
    table = pq.read_table(out / "vms.parquet").to_pylist()
    status = Counter(row["status"] for row in table)
    assert (status["placed"], status["refused"]) == (vms["placed"], vms["refused"])
    gone = [row["name"] for row in table if row["stop_s"] is not None]
    assert len(gone) == vms["completed"] and "web-4" in gone and "batch-1" in gone
    assert [row["name"] for row in table] == sorted(row["name"] for row in table)


def test_a_vm_is_on_from_its_start_to_its_stop(whole: tuple[Outcome, Path]) -> None:
    for row in pq.read_table(whole[1] / "vms.parquet").to_pylist():
        if row["status"] == "placed":
            end_s = EPOCHS * 60 if row["stop_s"] is None else row["stop_s"]
            assert row["on_s"] == end_s - row["start_s"], row["name"]
            assert row["hosts"] in ("esx-1", "esx-2", "esx-3")
        else:
            assert row["on_s"] == 0 and row["hosts"] in (None, "")
            assert row["refused"] == REFUSED


def test_every_decision_is_a_line_with_its_reason(whole: tuple[Outcome, Path]) -> None:
    outcome, out = whole
    lines = [line for line in json_lines(out) if line["kind"] != "level"]
    kinds = Counter(line["kind"] for line in lines)
    vms = outcome.report["vms"]
    assert kinds["power_on"] == vms["placed"]
    assert kinds["refused"] == vms["refused"]
    assert kinds["power_off"] == vms["completed"]
    assert (kinds["reset"], kinds["set"]) == (1, 3)
    for line in lines:
        assert line["at_s"] % 60 == 0
        assert ("reason" in line) == (line["kind"] in ("refused", "ignored")), line
        assert ("host" in line) == (line["kind"] not in ("refused", "ignored")), line
    assert {"at_s": 300, "kind": "set", "idle_tax_permille": 0, "host": "esx-2"} in lines
    wide = next(line for line in lines if line.get("vm") == "wide")
    assert (wide["at_s"], wide["kind"], wide["reason"]) == (480.0, "refused", REFUSED)
    assert wide["memory_bytes"] == 200 * MIB
    assert wide["hosts_left"][REFUSED] == 0


def test_level_changes_agree_with_the_time_in_each_state(whole: tuple[Outcome, Path]) -> None:
    """Replaying the lines gives the rows: each host's time in each level, epoch by epoch."""
    spent = np.zeros((HOSTS, 4), np.int64)
    levels = ("high", "soft", "hard", "low")
    for host in range(HOSTS):
        level, since_ms = "high", 0
        mine = [one for one in json_lines(whole[1]) if one["kind"] == "level"]
        for one in (one for one in mine if one["host"] == f"esx-{host + 1}"):
            assert one["before"] == level
            spent[host, levels.index(level)] += round(one["at_s"] * 1000) - since_ms
            level, since_ms = one["after"], round(one["at_s"] * 1000)
        spent[host, levels.index(level)] += EPOCHS * 60_000 - since_ms
    table = pq.read_table(whole[1] / "hosts.parquet")
    rows = np.array([table[f"{level}_s"].to_numpy() for level in levels])
    of_host = table["host"].to_numpy()
    found = [rows[:, of_host == host].sum(axis=1) * 1000 for host in range(HOSTS)]
    assert np.rint(found).astype(int).tolist() == spent.tolist()


def test_there_is_a_row_per_epoch_and_host(whole: tuple[Outcome, Path]) -> None:
    table = pq.read_table(whole[1] / "hosts.parquet")
    pairs = list(zip(table["epoch"].to_pylist(), table["host"].to_pylist(), strict=True))
    assert pairs == [(epoch, host) for epoch in range(EPOCHS) for host in range(HOSTS)]
    epochs = pq.read_table(whole[1] / "epochs.parquet")
    assert epochs["epoch"].to_pylist() == list(range(EPOCHS))
    for name in ("vms", "configured_bytes", "consumed_bytes", "free_bytes", "swap_out_bytes"):
        sums = np.array(table[name]).reshape(EPOCHS, HOSTS).sum(axis=1)
        assert np.array(epochs[name]).tolist() == sums.tolist(), name


def test_memory_is_accounted_for_in_every_row(whole: tuple[Outcome, Path]) -> None:
    outcome, out = whole
    parts = ("consumed", "shared_saved", "ballooned", "swapped", "compressed", "untouched")
    table = pq.read_table(out / "hosts.parquet")
    column = {name: np.array(table[f"{name}_bytes"]) for name in (*parts, "configured", "free")}
    assert sum(column[name] for name in parts).tolist() == column["configured"].tolist()
    overhead = np.array(table["overhead_bytes"])
    used = column["consumed"] + overhead + column["free"]
    assert set(used.tolist()) == {(256 - 16) * MIB}
    memory = outcome.report["memory_gib"]
    mean = sum(memory[name]["mean"] for name in parts)
    assert mean == pytest.approx(memory["configured"]["mean"], rel=1e-12)
    most = column["configured"].reshape(EPOCHS, HOSTS).sum(axis=1).max() / GIB
    assert memory["configured"]["max"] == most


def test_detail_keeps_a_row_per_epoch_and_vm(tmp_path: Path) -> None:
    simulate(pressed(tmp_path, detail="vms"), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "vms_epochs.parquet")
    totals = pq.read_table(tmp_path / "out" / "vms.parquet")
    assert len(rows) == sum(on_s // 60 for on_s in totals["on_s"].to_pylist())
    touches = np.zeros(len(totals), np.int64)
    np.add.at(touches, np.array(rows["vm"]), np.array(rows["touches"]))
    assert touches.tolist() == totals["touches"].to_pylist()


# The loop.


def test_a_barrier_spans_the_epochs_in_which_nothing_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at first, four times as many each time."""
    monkeypatch.setattr(coordinator, "BARRIER_S", 1e9)
    few = [PRESSED["vms"][0] | {"count": 2, "interval": "3 min"}]
    fleet, made = recorded()
    loaded = pressed(tmp_path, vms=few, events=PRESSED["events"][:1], duration="30 min")
    simulate(loaded, tmp_path / "out", fleet=fleet)
    assert made[0].calls == [(0, 1, 1), (1, 2, 0), (3, 1, 1), (4, 26, 1)]


@pytest.mark.parametrize(
    ("before", "n_epochs", "took_s", "n_rows", "most"),
    [
        (1, 1, 0.001, 10, 4),  # four times the last
        (64, 3, 0.001, 10, 100),  # the last might have been longer; EPOCHS_PER_BARRIER
        (20, 20, 10.0, 10, 2),  # by time
        (20, 1, 60.0, 10, 1),
        (64, 10, 0.01, 100_000, 26),  # by rows
        (64, 1, 0.01, 1_000_000, 1),
        (2, 2, 0.0, 0, 8),  # no VMs, and a clock that stood still
    ],
)
def test_how_far_the_next_barrier_spans(
    before: int, n_epochs: int, took_s: float, n_rows: int, most: int
) -> None:
    assert coordinator._most(before, n_epochs, took_s, n_rows) == most


def test_the_watcher_is_told_after_every_barrier(tmp_path: Path) -> None:
    seen: list[Progress] = []
    fleet, made = recorded()
    outcome = simulate(pressed(tmp_path), tmp_path / "out", fleet=fleet, watch=seen.append)
    assert [now.epoch for now in seen] == [first + n for first, n, _ in made[0].calls]
    assert {now.epochs for now in seen} == {EPOCHS}
    last = seen[-1]
    assert last.host_ticks == EPOCHS * 12 * HOSTS
    assert sum(last.levels.values()) == HOSTS
    vms = outcome.report["vms"]
    assert last.vms == vms["placed"] - vms["completed"]
    table = pq.read_table(tmp_path / "out" / "epochs.parquet")
    for name, held in last.memory_bytes.items():
        assert held == table[f"{name}_bytes"].to_pylist()[-1]


def test_what_was_measured_decides_the_next_placement(tmp_path: Path) -> None:
    """`small` uses all its 64 MiB, `large` a third of its 192: by consumed `large`'s is emptier."""
    busy, idle = (
        PRESSED["workloads"][0],
        PRESSED["workloads"][0]
        | {
            "name": "idle",
            "phases": [{"duration": "5 min", "memory": "40 MiB", "active": "1 %"}],
        },
    )
    one = PRESSED["vms"][0] | {"count": 1}
    vms = [
        one | {"name": "large", "memory": "192 MiB", "workload": "idle"},
        one | {"name": "small", "memory": "96 MiB"},
        one | {"name": "next", "memory": "64 MiB", "start": "6 min"},
    ]
    hosts = [PRESSED["hosts"][0] | {"count": 2}]
    for by, beside in (("configured", "small"), ("consumed", "large")):
        rules = {"policy": "worst-fit", "by": by}
        folder = tmp_path / by
        folder.mkdir()
        values = {"vms": vms, "hosts": hosts, "workloads": [busy, idle], "placement": rules}
        simulate(pressed(folder, events=[], **values), folder / "out")
        rows = pq.read_table(folder / "out" / "vms.parquet").to_pylist()
        at = {row["name"]: row["hosts"] for row in rows}
        assert at["large"] != at["small"]
        assert at["next"] == at[beside], by


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_stopped_run_keeps_what_it_has_and_says_so(tmp_path: Path, after: int) -> None:
    barriers = iter(range(100))
    outcome = simulate(
        pressed(tmp_path), tmp_path / "out", should_stop=lambda: next(barriers) >= after
    )
    assert outcome.stopped
    manifest = manifest_of(tmp_path / "out")
    assert manifest["partial"] and manifest["reason"] == "the run was stopped before its end"
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["partial"], report["digest"]) == (True, None)
    assert report["simulated_s"] == after * 60
    rows = pq.read_table(tmp_path / "out" / "hosts.parquet")
    assert len(rows) == after * HOSTS
    assert len(pq.read_table(tmp_path / "out" / "vms.parquet")) == 13
    assert "PARTIAL" in html.build(tmp_path / "out").read_text("utf-8").upper()
    assert outcome.report == report  # what the command prints is marked as well


def test_a_failed_run_raises_and_keeps_what_it_had(tmp_path: Path) -> None:
    fleet, _ = recorded(fails_at=7)
    with pytest.raises(BrokenInvariantError, match="frames"):
        simulate(pressed(tmp_path), tmp_path / "out", fleet=fleet)
    manifest = manifest_of(tmp_path / "out")
    assert manifest["partial"]
    why = "the run failed: host 0, epoch 7: frames: 3 used + 4 free != 8"
    assert manifest["reason"] == why
    assert len(pq.read_table(tmp_path / "out" / "hosts.parquet")) == 7 * HOSTS
    assert not (tmp_path / "out" / "report.json").exists()
    assert len(json_lines(tmp_path / "out")) > 10


def test_a_run_without_vms_to_place_is_a_run(tmp_path: Path) -> None:
    never = [PRESSED["vms"][0] | {"start": "never"}]
    del never[0]["interval"]
    outcome = simulate(pressed(tmp_path, vms=never, events=[]), tmp_path / "out")
    report = outcome.report
    assert report["vms"]["submitted"] == 0
    assert report["memory_gib"]["free"]["mean"] == HOSTS * 240 / 1024
    assert report["cost"]["slowdown"]["mean"] is None
    status = pq.read_table(tmp_path / "out" / "vms.parquet")["status"].to_pylist()
    assert status == ["not submitted"] * 8


def test_a_run_that_finds_the_disk_full_failed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table = tables.write_table

    def full(path: Path, values: Any) -> None:
        if path.name == "vms.parquet":
            raise tables.WriteError(f"cannot write {path}: No space left on device")
        write_table(path, values)

    monkeypatch.setattr(tables, "write_table", full)
    with pytest.raises(tables.WriteError, match=r"vms\.parquet") as caught:
        simulate(pressed(tmp_path), tmp_path / "out")
    assert exit_code(caught.value) == 1
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["partial"], manifest["reason"]) == (True, f"the run failed: {caught.value}")
    assert len(pq.read_table(tmp_path / "out" / "hosts.parquet")) == EPOCHS * HOSTS
