"""`esxsim capacity` as it runs: it shares its runs with sweeps, goes on where it was, and says
what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scenario_files import loaded, write
from test_cli import command
from test_sweeps import TINY, stamps, swept

from cluster.scenario_file import load
from cluster.studies import capacity
from cluster.studies.binding import device_busy
from hostsim.units import PAGE_SIZE

GOAL = ("--slo", "memory_gib.ballooned.max <= 0.05")
"""What the tiny scenario keeps up to a number of VMs that is not much larger."""


def search(folder: Path, *options: Any, code: int = 0, **values: Any) -> Any:
    path = write(folder, TINY | values, "tiny.yaml")
    arguments = ("--local", "--seeds", 2, "--out", folder / "out", *options)
    goal = () if "--slo" in options else GOAL
    return command("capacity", path, *goal, *arguments, code=code)


def found_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "capacity.json").read_text("utf-8"))
    return found


def test_a_search_ends_with_a_sentence_and_a_table(tmp_path: Path) -> None:
    shown = search(tmp_path, "--vary", "vms")
    found = found_in(tmp_path)
    level = found["level"]
    assert found["sentence"].startswith(f"{level} VMs fit on 3 hosts (")
    assert " ".join(found["sentence"].split()) in " ".join(shown.stdout.split())
    by_seed: dict[int, dict[int, bool]] = {7: {}, 8: {}}
    for trial in found["trials"]:
        by_seed[trial["seed"]][trial["level"]] = trial["holds"]
        report = json.loads((tmp_path / "out" / trial["folder"] / "report.json").read_text("utf-8"))
        assert report["vms"]["submitted"] == trial["level"]
        assert report["digest"] == trial["digest"]
        kept = report["memory_gib"]["ballooned"]["max"] <= 0.05
        assert trial["holds"] == (kept and not report["vms"]["refused"])
        assert bool(trial["why"]) == (not trial["holds"])
    for seed, knee in found["knees"].items():
        assert by_seed[int(seed)][knee["holds"]] and not by_seed[int(seed)][knee["fails"]]
        assert knee["fails"] - knee["holds"] == 1
    holds = [knee["holds"] for knee in found["knees"].values()]
    assert level == min(holds) and found["interval"] == [min(holds), max(holds)]
    table = pq.read_table(tmp_path / "out" / "capacity.parquet").to_pydict()
    assert table["level"] == [trial["level"] for trial in found["trials"]]
    assert table["cost.slowdown.p95"] == [
        trial["numbers"]["cost.slowdown.p95"] for trial in found["trials"]
    ]


def test_a_search_made_again_runs_nothing_and_another_goal_little(tmp_path: Path) -> None:
    search(tmp_path)
    before, found = stamps(tmp_path / "out"), found_in(tmp_path)
    again = search(tmp_path)
    assert "runs done" not in again.stderr
    assert stamps(tmp_path / "out") == before and found_in(tmp_path) == found
    search(tmp_path, "--slo", "vms.refused <= 100")
    after = stamps(tmp_path / "out")
    assert before.items() <= after.items()


def test_a_search_takes_the_runs_of_a_sweep(tmp_path: Path) -> None:
    path = swept(tmp_path, vary={"vms.web.count": list(range(1, 25))})
    command("run", path, "--local", "--out", tmp_path / "out")
    before = stamps(tmp_path / "out")
    shown = search(tmp_path)
    assert "runs done" not in shown.stderr and stamps(tmp_path / "out") == before


def test_a_search_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    search(tmp_path / "whole")
    whole = found_in(tmp_path / "whole")
    left = 3

    def stops(self: Any) -> bool:
        return left <= 0

    done = capacity.Search.run

    def counted(self: capacity.Search, *arguments: Any) -> None:
        nonlocal left
        done(self, *arguments)
        left -= 1

    with monkeypatch.context() as patch:
        patch.setattr("cluster.execute.Stop.__call__", stops)
        patch.setattr(capacity.Search, "run", counted)
        shown = search(tmp_path, code=1)
    assert shown.stderr.splitlines()[-1].startswith("esxsim: stopped: what was tried is in ")
    assert not (tmp_path / "out" / "capacity.json").exists()
    before = stamps(tmp_path / "out")
    search(tmp_path)
    assert before.items() <= stamps(tmp_path / "out").items()
    assert found_in(tmp_path) == whole


def test_fewer_hosts_and_more_overcommit(tmp_path: Path) -> None:
    search(tmp_path, "--vary", "hosts")
    found = found_in(tmp_path)
    assert found["sentence"].startswith(f"{found['level']} hosts are needed for 8 VMs (")
    by_level = {(one["seed"], one["level"]): one["holds"] for one in found["trials"]}
    for seed, knee in found["knees"].items():
        assert by_level[int(seed), knee["holds"]] and not by_level[int(seed), knee["fails"]]
        assert knee["fails"] == knee["holds"] - 1
    search(tmp_path, "--vary", "overcommit", "--slo", "slowdown.p95 <= 1.05")
    found = found_in(tmp_path)
    assert found["sentence"].startswith(f"Overcommit is safe up to {found['level'] / 100:.2f} on 3")


def test_refused_vms_do_not_fit_and_the_limit_binds(tmp_path: Path) -> None:
    placement = {"policy": "worst-fit", "overcommit": 1.0}
    goal = ("--slo", "slowdown.max <= 1000")
    search(tmp_path, *goal, placement=placement)
    found = found_in(tmp_path)
    # 256 MiB hold two VMs of 128 MiB
    assert (found["level"], found["interval"]) == (6, [6, 6])
    assert found["binds"]["what"] == "the limit placement.overcommit"
    assert "1 VM refused" in found["binds"]["evidence"]
    # With more overcommit it is not that limit that counts.
    search(tmp_path, *goal, "--vary", "overcommit", placement=placement)
    assert found_in(tmp_path)["level"] > 100


def test_what_cannot_hold_is_said(tmp_path: Path) -> None:
    search(tmp_path, "--slo", "simulated_s <= 1")
    found = found_in(tmp_path)
    assert found["level"] is None and found["interval"] == [None, None]
    assert found["sentence"].startswith("Not even 1 VM will do with simulated_s <= 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slo", "x <= 1"], "--slo: 'x <= 1': no number of a report"),
        (["--vary", "seeds"], "--vary: 'seeds' must be one of vms, hosts, overcommit"),
        (["--address", "ray://x"], "--address: 'ray://x' must be"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_a_wrong_search_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    path = write(tmp_path, TINY)
    goal = () if "--slo" in options else GOAL
    found = command("capacity", path, *goal, "--out", tmp_path / "out", *options, code=2)
    assert message in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_scenario_with_a_sweep_is_refused(tmp_path: Path) -> None:
    found = command("capacity", swept(tmp_path), *GOAL, code=2)
    assert "sweep: is not for a search: capacity says what varies" in found.stderr
    found = command("capacity", tmp_path / "none.yaml", *GOAL, code=2)
    assert "none.yaml: cannot be read" in found.stderr


def test_a_device_is_busy_where_it_does_all_it_can(tmp_path: Path) -> None:
    """1000 operations a second for epochs of 60 s; writes come 4 pages at a time."""
    hosts = [
        {"name": "esx", "count": 2, "memory": "8 GiB", "swap": {"iops": 1000, "write_cluster": 4}}
    ]
    scenario = loaded(tmp_path, hosts=hosts).scenario
    rows = {
        "host_name": ["esx-1", "esx-2", "esx-1", "esx-2"],
        "swap_in_bytes": np.array([54_000, 50_000, 30_000, 0]) * PAGE_SIZE,
        "swap_out_bytes": np.array([0, 0, 100_000, 240_000]) * PAGE_SIZE,
    }
    pq.write_table(pa.table(rows), tmp_path / "hosts.parquet")
    # Busy are the first (54,000), the third (30,000 + 25,000) and the last, which reads nothing.
    assert device_busy(tmp_path, scenario) == pytest.approx(84 / 134)
    rows["swap_in_bytes"] = np.zeros(4, np.int64)
    pq.write_table(pa.table(rows), tmp_path / "hosts.parquet")
    assert device_busy(tmp_path, scenario) == 0.0


def test_the_base_is_the_scenario(tmp_path: Path) -> None:
    """The level that a scenario has is the scenario: its own run is one of the search's."""
    search(tmp_path, "--slo", "slowdown.p95 <= 2")
    trial = next(one for one in found_in(tmp_path)["trials"] if one["level"] == 8)
    digest = load(tmp_path / "tiny.yaml").digest
    report = json.loads((tmp_path / "out" / trial["folder"] / "report.json").read_text("utf-8"))
    assert report["scenario"]["digest"] == digest
