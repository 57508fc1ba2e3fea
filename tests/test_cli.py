"""The command: its output, files and exit codes. Errors are one line on stderr and no traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from cluster_builders import PRESSED, json_lines, manifest_of, pressed, simulate
from scenario_files import SMALL, changed, write
from synthetic_run import Synthetic
from typer.testing import CliRunner

from cluster.cli import app
from cluster.errors import ClusterError, StoppedError, exit_code
from cluster.files import OutputError, WriteError
from cluster.scenario import Scenario
from cluster.traces import FORMATS, TraceError
from cluster.yaml_input import InputError, Problem
from hostsim.invariants import BrokenInvariantError

MAIN = [sys.executable, "-c", "from cluster.cli import main; main()"]
"""The console script, wherever it is installed."""


def command(*arguments: Any, code: int = 0) -> Result:
    """Run `esxsim` in this process; its exit code is asserted."""
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write(tmp_path, PRESSED, "pressed.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_run_writes_a_folder_and_prints_a_summary(tmp_path: Path, scenario: Path) -> None:
    found = command("run", scenario, "--local", "--check", "--out", tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    report = json.loads((out / "report.json").read_text("utf-8"))
    lines = found.stdout.splitlines()
    assert lines[0].startswith("pressed (seed 7): ")
    assert lines[-1] == f"Report         {out / 'report.html'}"
    assert f"Digest         {report['digest']}" in lines
    assert (out / "scenario.yaml").read_text("utf-8") == scenario.read_text("utf-8")
    manifest = manifest_of(out)
    assert (manifest["fleet"], manifest["checked"], manifest["partial"]) == ("local", True, False)
    assert manifest["packages"]["esxsim"] == manifest["esxsim"]
    # The same run as without the command.
    assert report == simulate(pressed(tmp_path), tmp_path / "again").report


def test_json_is_the_report_and_alone_on_stdout(tmp_path: Path, scenario: Path) -> None:
    out = tmp_path / "out"
    found = command("run", scenario, "--local", "--json", "--out", out)
    assert json.loads(found.stdout) == json.loads((out / "report.json").read_text("utf-8"))
    assert "esxsim: " in found.stderr


def test_a_run_without_out_goes_to_runs_by_name_and_seed(here: Path) -> None:
    path = write(here, PRESSED | {"name": "../a  wéb tier/"})
    found = command("run", path, "--local", "--seed", 9)
    out = Path("runs/a-w-b-tier-9")
    assert found.stdout.splitlines()[-1] == f"Report         {out / 'report.html'}"
    report = json.loads((here / out / "report.json").read_text("utf-8"))
    assert report["scenario"]["seed"] == 9
    written = yaml.safe_load((here / out / "scenario.yaml").read_text("utf-8"))
    assert written["seed"] == 9
    assert sorted(path.name for path in here.iterdir()) == ["runs", "scenario.yaml"]


def test_a_former_run_is_replaced_and_a_foreign_folder_is_not(
    tmp_path: Path, scenario: Path
) -> None:
    out = tmp_path / "out"
    command("run", scenario, "--local", "--seed", 1, "--out", out)
    command("run", scenario, "--local", "--seed", 2, "--out", out)
    assert json.loads((out / "report.json").read_text("utf-8"))["scenario"]["seed"] == 2
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    found = command("run", scenario, "--local", "--out", foreign, code=2)
    message = f"esxsim: {foreign} is not empty and not a run folder: name another folder"
    assert found.stderr.splitlines()[-1] == message
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    found = command("run", scenario, "--local", "--out", foreign / "thesis.txt", code=2)
    assert f"cannot use {foreign / 'thesis.txt'} for results" in found.stderr


def test_warnings_are_shown_and_do_not_stop(tmp_path: Path) -> None:
    path = write(tmp_path, PRESSED | {"fidelity": {"sample": 256}})
    found = command("run", path, "--local", "--out", tmp_path / "out")
    assert "esxsim: warning: vms[0] (web): 128 MiB are 128 slots" in found.stderr
    assert f"{path}: warning: vms[0] (web)" in command("validate", path).stderr


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "", "²", "1234567890", " 1"])
def test_hosts_per_actor_is_auto_or_a_number(scenario: Path, value: str) -> None:
    found = command("run", scenario, f"--hosts-per-actor={value}", code=2)
    assert found.stderr == (
        f"esxsim: --hosts-per-actor: {value!r} must be auto or a whole number from 1\n"
    )


def test_a_number_of_a_million_digits_is_no_number_of_hosts(scenario: Path) -> None:
    found = command("run", scenario, f"--hosts-per-actor={'9' * 1_000_000}", code=2)
    assert len(found.stderr) < 200 and "(1000000 characters) must be auto or" in found.stderr


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "a", "--seed", "-1"], ["frob"], ["report"], ["validate"], []]
)
def test_a_wrong_command_line_is_wrong_input(arguments: list[str]) -> None:
    found = command(*arguments, code=2)
    assert "sage: " in found.output


# validate, schema


def test_validate_tells_every_problem_of_every_file(tmp_path: Path) -> None:
    good = write(tmp_path, SMALL, "good.yaml")
    bad = write(tmp_path, changed(tick="7 s", seed=-1), "bad.yaml")
    worse = write(tmp_path, "[", "worse.yaml")
    assert command("validate", good).stdout == f"{good}: valid\n"
    found = command("validate", bad, good, worse, code=2)
    assert found.stdout == f"{good}: valid\n"
    problems = found.stderr.splitlines()
    assert len(problems) == 3
    assert all(line.startswith(str(bad)) for line in problems[:2])
    assert {line.split(": ")[1] for line in problems[:2]} == {"tick", "seed"}
    assert problems[2].startswith(f"{worse}:")
    assert not (tmp_path / "runs").exists()


def test_validate_and_run_tell_the_same(tmp_path: Path) -> None:
    bad = write(tmp_path, changed(tick="7 s", seed=-1, extra=1))
    told = command("validate", bad, code=2).stderr
    found = command("run", bad, "--local", "--out", tmp_path / "out", code=2)
    assert found.stderr == f"esxsim: {told}"
    assert not (tmp_path / "out").exists()


def test_schema_is_json_and_knows_every_key() -> None:
    found = json.loads(command("schema").stdout)
    assert set(found["properties"]) == {*Scenario.model_fields, "sweep"}
    assert found["additionalProperties"] is False


# report


def test_report_rebuilds_the_page_and_prints_the_summary(tmp_path: Path) -> None:
    Synthetic().write(tmp_path)
    found = command("report", tmp_path)
    page = (tmp_path / "report.html").read_bytes()
    assert found.stdout.splitlines()[-1] == f"Report         {tmp_path / 'report.html'}"
    assert found.stdout.startswith("web-tier-consolidation (seed 7): ")
    (tmp_path / "report.html").unlink()
    assert command("report", tmp_path).stdout == found.stdout
    assert (tmp_path / "report.html").read_bytes() == page


def test_report_of_a_run_says_what_the_run_said(tmp_path: Path, scenario: Path) -> None:
    ran = command("run", scenario, "--local", "--out", tmp_path / "out")
    assert command("report", tmp_path / "out").stdout == ran.stdout


def test_report_of_a_killed_run_shows_what_it_left(tmp_path: Path) -> None:
    folder = Synthetic().folder(tmp_path)
    found = command("report", tmp_path)
    assert found.stdout.startswith("The run was killed before its report")
    assert (tmp_path / "report.html").exists()
    folder.abandon("end of test")


def test_report_of_something_else_is_wrong_input(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "missing"):
        found = command("report", wrong, code=2)
        assert found.stderr.startswith(f"esxsim: {wrong} ")
        assert len(found.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# import


def bitbrains_csv(folder: Path) -> None:
    cells = ("Timestamp [ms]", "CPU cores", "CPU capacity provisioned [MHZ]", "CPU usage [MHZ]",
             "CPU usage [%]", "Memory capacity provisioned [KB]", "Memory usage [KB]")  # fmt: skip
    rows = [(1_376_314_846 + 300 * i, 2, 5200, 520, 10.0, 1 << 20, 1 << 18) for i in range(4)]
    lines = [";\t".join(map(str, row)) for row in (cells, *rows)]
    (folder / "1.csv").write_text("\n".join(lines) + "\n")


def bitbrains_parquet(folder: Path) -> None:
    vms = {"vm": [1], "cores": [2], "cpu_cap_mhz": [5200.0], "mem_cap_kb": [1048576.0]}
    week = {"vm": [1] * 4, "ts": [1_376_314_846 + 300 * i for i in range(4)]}
    week |= {"cpu_mhz": [520] * 4, "mem_kb": [1 << 18] * 4}
    pq.write_table(pa.table(vms), folder / "vms_2013-08.parquet")
    pq.write_table(pa.table(week), folder / "week_2013-08_5min.parquet")


def azure_v1(folder: Path) -> None:
    (folder / "vmtable.csv").write_text("a,s,d,0,1200,99,3,10,Interactive,2,1\n")
    lines = [f"{300 * i},a,1,9,10" for i in range(4)]
    (folder / "vm_cpu_readings-1.csv").write_text("\n".join(lines) + "\n")


def azure_v1_arrivals(folder: Path) -> None:
    columns = {"split": ["dev"], "t": [0], "censored": [False], "vcpus": [2], "mem_gb": [1.0]}
    columns |= {"dur_min_s": [1200], "dur_max_s": [1200]}
    pq.write_table(pa.table(columns), folder / "arrivals.parquet")


SOURCES: dict[str, Callable[[Path], None]] = {
    "bitbrains-csv": bitbrains_csv,
    "bitbrains-parquet": bitbrains_parquet,
    "azure-v1": azure_v1,
    "azure-v1-arrivals": azure_v1_arrivals,
}


def test_every_format_is_tried() -> None:
    assert list(SOURCES) == list(FORMATS)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_imported_can_be_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    SOURCES[name](tmp_path / "in")
    found = command("import", name, tmp_path / "in", "-o", tmp_path / "trace")
    readings = 0 if name == "azure-v1-arrivals" else 4
    assert found.stdout.startswith(f"1 VMs and {readings} readings of ")
    assert found.stdout.splitlines()[-1] == f"Trace          {tmp_path / 'trace'}"
    source = {"path": "trace", "images": {"linux": 1}, "workloads": {"steady": 1}}
    path = write(tmp_path, changed(vms=None, trace=source, fidelity={"sample": 256}, tick="20 s"))
    command("run", path, "--local", "--out", tmp_path / "out")
    vms = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["vms"]
    assert (vms["submitted"], vms["placed"]) == (1, 1)


def test_import_says_what_it_left_out(tmp_path: Path) -> None:
    azure_v1(tmp_path)
    with (tmp_path / "vmtable.csv").open("a") as lines:
        lines.write("a,s,d,0,300,99,3,10,Unkown,1,1\nb,s,d\n")
    found = command("import", "azure-v1", tmp_path, "-o", tmp_path / "trace")
    assert "  left out: 1 VM with the name of another\n" in found.stdout


def test_import_of_the_wrong_thing_is_wrong_input(tmp_path: Path) -> None:
    azure_v1(tmp_path)
    found = command("import", "azure", tmp_path, "-o", tmp_path / "out", code=2)
    lines = found.stderr.splitlines()
    assert lines[0] == "esxsim: FORMAT: 'azure' is not known; the formats are"
    assert [line.split(":")[0].strip() for line in lines[1:]] == list(FORMATS)
    for name, source in (("bitbrains-csv", tmp_path), ("azure-v1", tmp_path / "missing")):
        found = command("import", name, source, "-o", tmp_path / "out", code=2)
        assert str(source) in found.stderr
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    found = command("import", "azure-v1", tmp_path, "-o", full, code=2)
    assert str(full) in found.stderr
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    assert not (tmp_path / "out").exists()


# Exit codes and signals


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("f", [Problem("a", 1, "", "is wrong")]), 2),
        (TraceError(Path("f"), "is wrong"), 2),
        (OutputError("f"), 2),
        (WriteError("full"), 1),
        (ClusterError("lost"), 1),
        (StoppedError("stopped"), 1),
        (BrokenInvariantError("frames"), 1),
        (ValueError("a bug"), None),
        (AssertionError("a bug"), None),
    ],
)
def test_errors_have_exit_codes_and_bugs_have_tracebacks(
    error: Exception, code: int | None
) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_run_with_what_it_has(tmp_path: Path, number: signal.Signals) -> None:
    path = write(tmp_path, PRESSED | {"duration": "3650 d"})
    arguments = ["run", str(path), "--local", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [*MAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = next(line for line in process.stderr if "VMs" in line)
        assert "of 87600.00 h" in first
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = err.splitlines()
    assert "esxsim: stopping at the end of this barrier" in lines
    folder = tmp_path / "out"
    last = f"esxsim: stopped before the end: partial results are in {folder}"
    assert lines[-1] == f"{last}; --resume goes on from there"
    assert "Traceback" not in err
    assert "PARTIAL: the run ended early" in out
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert (report["partial"], report["digest"]) == (True, None)
    manifest = manifest_of(folder)
    assert (manifest["partial"], manifest["reason"]) == (True, "the run was stopped before its end")
    assert len(pq.read_table(folder / "hosts.parquet")) == 3 * report["simulated_s"] // 60
    assert json_lines(folder)
