"""Sweeps as they run: every point is a run like any other, and none is done twice or half."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from cluster_builders import PRESSED
from scenario_files import write
from test_cli import MAIN, command

from cluster import coordinator
from cluster.studies import jobs, store
from cluster.studies.results import summarised
from cluster.studies.store import Store
from hostsim.invariants import BrokenInvariantError

ROOT = Path(__file__).parents[1]
SCENARIOS, README = ROOT / "scenarios", ROOT / "README.md"
TINY = {key: value for key, value in PRESSED.items() if key != "events"} | {
    "duration": "2 min",
    "vms": [PRESSED["vms"][0] | {"interval": "0 s"}],
}
VARY = {"vms.web.count": [2, 6], "hosts.esx.allocation.idle_tax": ["0 %", "75 %"]}


def swept(folder: Path, name: str = "swept.yaml", **sweep: Any) -> Path:
    return write(folder, TINY | {"sweep": {"vary": VARY, "seeds": 2} | sweep}, name)


def results_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text("utf-8"))
    return found


def runs_of(out: Path) -> list[dict[str, Any]]:
    return [run for point in results_of(out)["points"] for run in point["runs"]]


def stamps(out: Path) -> dict[str, int]:
    """When each run of a study was written."""
    reports = sorted((out / "points").glob("*/report.json"))
    return {path.parent.name: path.stat().st_mtime_ns for path in reports}


@contextmanager
def begun(path: Path, out: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once its first run is done."""
    command_line = [*MAIN, "run", str(path), "--out", str(out), *options]
    with subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(" runs done: " in line for line in process.stderr)
        yield process


def interrupted(path: Path, out: Path, *options: str) -> str:
    """What the command says after Ctrl-C."""
    with begun(path, out, *options) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait() == 1 and "Traceback" not in rest
    return rest


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that is done."""
    folder = tmp_path_factory.mktemp("done")
    command("run", swept(folder), "--local", "--out", folder / "out")
    return folder / "out"


def test_a_sweep_is_a_table(done: Path) -> None:
    found = results_of(done)
    assert [axis["name"] for axis in found["axes"]] == list(VARY)
    assert found["axes"][0]["numbers"] == [2, 6] and found["seeds"] == [7, 8]
    assert [list(point["values"].values()) for point in found["points"]] == [
        ["2", "0 %"],
        ["2", "75 %"],
        ["6", "0 %"],
        ["6", "75 %"],
    ]
    table = pq.read_table(done / "results.parquet").to_pydict()
    assert table["point"] == [0, 0, 1, 1, 2, 2, 3, 3] and table["seed"] == [7, 8] * 4
    assert table["vary.vms.web.count"] == ["2"] * 4 + ["6"] * 4
    assert table["status"] == ["done"] * 8 and set(table["reason"]) == {""}
    for row, folder in enumerate(table["folder"]):
        report = json.loads((done / folder / "report.json").read_text("utf-8"))
        assert table["digest"][row] == report["digest"]
        assert table["cost.slowdown.p95"][row] == report["cost"]["slowdown"]["p95"]
        assert table["memory_gib.swapped.max"][row] == report["memory_gib"]["swapped"]["max"]
        assert table["vms.placed"][row] == report["vms"]["placed"]
    assert not any(name.startswith(("scenario", "assumptions", "schema")) for name in table)
    summary = pq.read_table(done / "summary.parquet").to_pydict()
    at = list(zip(summary["point"], summary["number"], strict=True)).index(
        (2, "cost.slowdown.mean")
    )
    pair = [row["numbers"]["cost.slowdown.mean"] for row in found["points"][2]["runs"]]
    assert summary["mean"][at] == pytest.approx(sum(pair) / 2) and summary["n"][at] == 2
    assert summary["std"][at] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    assert summary["high"][at] == pytest.approx(
        summary["mean"][at] + 12.706 * abs(pair[0] - pair[1]) / 2
    )


def test_a_point_is_the_plain_run_of_its_scenario(done: Path, tmp_path: Path) -> None:
    """What was written as the point's scenario gives, run alone, the point's digest; so does the
    scenario with the values put in by hand."""
    run = runs_of(done)[7]
    folder = done / run["folder"]
    command("run", folder / "scenario.yaml", "--local", "--out", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "report.json").read_text("utf-8"))
    assert again["digest"] == run["digest"]
    by_hand = json.loads(json.dumps(TINY))
    by_hand["vms"][0]["count"] = 6
    by_hand["hosts"][0]["allocation"] = {"idle_tax": "75 %"}
    path = write(tmp_path, by_hand)
    command("run", path, "--local", "--seed", 8, "--out", tmp_path / "hand")
    again = json.loads((tmp_path / "hand" / "report.json").read_text("utf-8"))
    assert again["digest"] == run["digest"]
    command("report", folder)
    assert (folder / "report.html").exists()


def test_the_command_shows_points_or_all_of_it(done: Path) -> None:
    path = done.parent / "swept.yaml"
    found = command("run", path, "--local", "--out", done)
    lines = found.stdout.splitlines()
    assert lines[0].split()[:3] == ["count", "idle_tax", "runs"]
    assert [line.split()[0] for line in lines[1:5]] == ["2", "2", "6", "6"]
    assert all(" 2/2 " in line for line in lines[1:5])
    found = command("run", path, "--local", "--json", "--out", done)
    assert json.loads(found.stdout) == results_of(done)


def test_nothing_is_run_twice(done: Path) -> None:
    before, table = stamps(done), (done / "results.parquet").read_bytes()
    found = command("run", done.parent / "swept.yaml", "--local", "--out", done)
    assert stamps(done) == before and (done / "results.parquet").read_bytes() == table
    assert "runs done" not in found.stderr


def test_a_wider_sweep_takes_the_runs_that_are_there(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = stamps(out)
    more = {"vms.web.count": [6, 3], "hosts.esx.allocation.idle_tax": ["75 %"]}
    found = command("run", swept(tmp_path, vary=more), "--local", "--out", out)
    assert "2 of 2 runs done" in found.stderr
    assert len(runs_of(out)) == 4
    after = stamps(out)
    assert len(after) == len(before) + 2 and before.items() <= after.items()


def test_equal_points_are_run_once(tmp_path: Path) -> None:
    vary = {"vms.web.count": [2, 2], "hosts.esx.allocation.idle_tax": ["75 %", "75.0 %"]}
    found = command("run", swept(tmp_path, vary=vary), "--local", "--out", tmp_path / "out")
    assert "2 of 2 runs done" in found.stderr
    runs = runs_of(tmp_path / "out")
    assert len(runs) == 8 and len({run["digest"] for run in runs}) == 2
    assert len({run["folder"] for run in runs}) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "report.json").unlink(),
        lambda folder: (folder / "report.json").write_text("{"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"simulator": "0.0-older"}'),
        shutil.rmtree,
        lambda folder: folder.rename(folder.with_name(f".{folder.name}.tmp")),
    ],
)
def test_what_is_not_whole_or_of_another_simulator_is_run_again(
    done: Path, tmp_path: Path, damage: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    damage(out / runs_of(out)[3]["folder"])
    found = command("run", done.parent / "swept.yaml", "--local", "--out", out)
    assert "1 of 1 runs done" in found.stderr
    assert runs_of(out) == runs_of(done)
    assert not list((out / "points").glob(".*"))


def test_a_failed_point_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = coordinator.Coordinator._epochs

    def fails(self: coordinator.Coordinator) -> bool:
        if len(self.population.vms) == 6 and self.loaded.scenario.seed == 8:
            raise BrokenInvariantError("host 0: frames: 3 used + 4 free != 8")
        return epochs(self)

    path, out = swept(tmp_path), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(coordinator.Coordinator, "_epochs", fails)
        found = command("run", path, "--local", "--out", out, code=1)
    why = "BrokenInvariantError: host 0: frames: 3 used + 4 free != 8"
    assert found.stderr.splitlines()[-1] == f"esxsim: 2 of 8 runs failed: {why}"
    runs = runs_of(out)
    assert [run["status"] for run in runs] == ["done"] * 5 + ["failed", "done", "failed"]
    assert runs[5]["reason"] == why and runs[5]["folder"] is None
    assert results_of(out)["points"][2]["summary"]["cost.slowdown.p95"]["n"] == 1
    table = pq.read_table(out / "results.parquet").to_pydict()
    assert table["cost.slowdown.p95"][5] is None and table["cost.slowdown.p95"][4] is not None
    found = command("run", path, "--local", "--out", out)
    assert "2 of 2 runs done" in found.stderr


def test_a_killed_sweep_goes_on_where_it_was(done: Path, tmp_path: Path) -> None:
    path, out = done.parent / "swept.yaml", tmp_path / "out"
    with begun(path, out, "--local") as process:
        process.kill()
    n = len(stamps(out))
    assert 1 <= n < 8
    found = command("run", path, "--local", "--out", out)
    assert f"{8 - n} of {8 - n} runs done" in found.stderr
    assert runs_of(out) == runs_of(done)


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    path, out = swept(tmp_path, seeds=200), tmp_path / "out"
    rest = interrupted(path, out, "--local")
    runs = runs_of(out)
    n = sum(run["status"] == "done" for run in runs)
    assert 1 <= n < 800 and n == len(stamps(out))
    assert {run["status"] for run in runs} == {"done", "not run"}
    last = f"esxsim: stopped: {n} of 800 runs are in {out}; the same command goes on from there"
    assert rest.splitlines()[-1] == last
    assert not list((out / "points").glob(".*"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path, done: Path) -> None:
    path = swept(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    plain = tmp_path / "plain"
    command("run", write(tmp_path, TINY), "--local", "--out", plain)
    before = {p.name: p.read_bytes() for p in plain.iterdir() if p.is_file()}
    for out in (other, plain):
        found = command("run", path, "--local", "--out", out, code=2)
        why = f"{out} is not empty and not the folder of a study: name another folder"
        assert found.stderr.splitlines()[-1] == f"esxsim: {why}"
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    assert {p.name: p.read_bytes() for p in plain.iterdir() if p.is_file()} == before
    found = command("run", write(tmp_path, TINY), "--local", "--out", done, code=2)
    assert "is not empty and not a run folder" in found.stderr
    with store.opened(tmp_path / "held"):
        found = command("run", path, "--local", "--out", tmp_path / "held", code=2)
    assert f"{tmp_path / 'held'} is in use by another esxsim" in found.stderr


def test_what_cannot_be_written_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full)
    found = command("run", swept(tmp_path), "--local", "--out", tmp_path / "out", code=1)
    assert "No space left on device" in found.stderr


@pytest.mark.parametrize("option", ["--check", "--hosts-per-actor=2"])
def test_options_of_a_single_run_are_refused(tmp_path: Path, option: str) -> None:
    found = command("run", swept(tmp_path), option, code=2)
    assert "are not for a sweep" in found.stderr


def test_a_wrong_sweep_runs_nothing(tmp_path: Path) -> None:
    path = swept(tmp_path, vary={"vms.web.count": [1, 0], "tack": [1]})
    found = command("run", path, "--local", "--out", tmp_path / "out", code=2)
    assert "sweep.vary.tack: a scenario has no key 'tack'" in found.stderr
    path = swept(tmp_path, vary={"vms.web.count": [1, 0]})
    for how in (["run", path, "--out", tmp_path / "out"], ["validate", path]):
        found = command(*how, code=2)
        assert "vms[0].count: 0: must be at least 1 (at vms.web.count 0)" in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_too_large_for_one_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "available_bytes", lambda: 152 << 20)
    path = swept(tmp_path, vary={"fidelity.sample": [16, 1]}, seeds=1)
    found = command("run", path, "--local", "--out", tmp_path / "out", code=2)
    assert "fidelity.sample: 1: the run needs about 0.1 GiB of memory" in found.stderr
    assert "(at fidelity.sample 1)" in found.stderr
    assert not (tmp_path / "out").exists()


def test_the_sweep_of_the_readme_is_valid() -> None:
    path = SCENARIOS / "studies" / "ablation.yaml"
    found = command("validate", path)
    assert found.stdout == f"{path}: valid: a sweep of 25 points with 3 seeds\n"
    sweep = yaml.safe_load(path.read_text("utf-8"))["sweep"]
    (shown,) = re.findall(r"```yaml\n(sweep:\n.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert yaml.safe_load(shown)["sweep"] == sweep


def test_validate_says_what_a_sweep_is(tmp_path: Path) -> None:
    path = swept(tmp_path)
    assert command("validate", path).stdout == f"{path}: valid: a sweep of 4 points with 2 seeds\n"


def test_a_number_that_a_run_lacks_is_left_out_but_a_reason_for_refusals_is_none() -> None:
    runs: list[dict[str, Any]] = [
        {"status": "done", "numbers": {"a": 1.0, "vms.refused_by.x": 3}},
        {"status": "done", "numbers": {"b": 2.0}},
        {"status": "failed", "numbers": {}},
    ]
    found = summarised(runs)
    assert (found["a"]["n"], found["a"]["mean"], found["a"]["std"]) == (1, 1.0, None)
    assert (found["vms.refused_by.x"]["n"], found["vms.refused_by.x"]["mean"]) == (2, 1.5)


def test_a_runs_name_can_be_read_and_leads_nowhere() -> None:
    name = store.run_name("../count-8, policy-worst fit", 3, "0123456789abcdef" * 4)
    assert name == "count-8-policy-worst-fit-s3-0123456789abcdef"
    assert store.run_name("…", 1, "f" * 64).startswith("run-s1-")
    assert len(store.run_name("x" * 500, 1, "f" * 64)) < 120


def test_a_store_knows_whole_runs_only(tmp_path: Path) -> None:
    digest = "ab" * 32
    with store.opened(tmp_path / "out") as runs:
        assert runs.report(digest) is None and runs.folder(digest) is None
        name = store.run_name("x", 1, digest)
        assert not runs.add(name, digest, lambda out: False)
        with pytest.raises(ZeroDivisionError):
            runs.add(name, digest, lambda out: bool(1 / 0))
        assert list((tmp_path / "out" / "points").iterdir()) == []
        runs.add(name, digest, lambda out: store.write_files(out, {"report.json": b"{}"}))
        assert runs.report(digest) is None  # it is there, and no report
        assert runs.folder(digest) == Path("points") / name
    assert Store(tmp_path / "out").folder(digest) == Path("points") / name


# On Ray


@pytest.mark.ray
def test_a_sweep_on_ray_is_the_sweep_in_process(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = done.parent / "swept.yaml"
    subprocess.run([*MAIN, "run", str(path), "--out", str(out)], check=True, capture_output=True)
    assert (out / "results.json").read_bytes() == (done / "results.json").read_bytes()
    for name in ("results.parquet", "summary.parquet"):
        assert (out / name).read_bytes() == (done / name).read_bytes()
    for run in runs_of(out):
        manifest = json.loads((out / run["folder"] / "manifest.json").read_text("utf-8"))
        assert manifest["fleet"] == "ray task" and not manifest["partial"]
        for name in ("report.json", "events.jsonl", "hosts.parquet", "vms.parquet"):
            one, other = out / run["folder"] / name, done / run["folder"] / name
            assert one.read_bytes() == other.read_bytes()
        written = yaml.safe_load((out / run["folder"] / "scenario.yaml").read_text("utf-8"))
        assert written["seed"] == run["seed"]


def with_deaths(dies: str, path: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The command, on Ray, with runs whose process dies where these lines have it die."""
    code = (
        "import os, pathlib\n"
        "from cluster import ray_environment\n"
        "ray_environment.prepare(own_cluster=True)\n"
        "from cluster.studies import tasks\n"
        "from cluster import cli\n"
        "def simulate(loaded, population, how_run, whole=tasks.simulate):\n"
        f"{dies}"
        "    return whole(loaded, population, how_run)\n"
        "tasks.simulate = simulate\n"
        "cli.main()\n"
    )
    command_line = [sys.executable, "-c", code, "run", str(path), "--out", str(out)]
    return subprocess.run(command_line, capture_output=True, text=True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_task_that_dies_is_one_failed_run(tmp_path: Path) -> None:
    """One of the runs always takes down its process; the rest of the sweep is there."""
    path, out = swept(tmp_path, vary={"vms.web.count": [2, 6]}, seeds=1), tmp_path / "out"
    found = with_deaths("    if len(population.vms) == 6:\n        os._exit(3)\n", path, out)
    assert found.returncode == 1
    assert "1 of 2 runs failed: LostError: a process of the run was lost" in found.stderr
    assert [run["status"] for run in runs_of(out)] == ["done", "failed"]


@pytest.mark.ray
def test_a_task_that_dies_once_is_begun_again(tmp_path: Path) -> None:
    path, out = swept(tmp_path, vary={"vms.web.count": [2, 6]}, seeds=1), tmp_path / "out"
    dies = (
        f"    mark = pathlib.Path({str(tmp_path / 'died')!r})\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os._exit(3)\n"
    )
    found = with_deaths(dies, path, out)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "died").exists()
    assert [run["status"] for run in runs_of(out)] == ["done", "done"]


@pytest.mark.ray
def test_ctrl_c_ends_a_sweep_on_ray(tmp_path: Path) -> None:
    path, out = swept(tmp_path, seeds=200), tmp_path / "out"
    rest = interrupted(path, out)
    assert "runs are in" in rest.splitlines()[-1]
    assert sum(run["status"] == "done" for run in runs_of(out)) == len(stamps(out)) >= 1
