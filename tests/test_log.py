"""What is said on stderr, as JSON lines: the same as in text, with run, epoch and host."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_builders import PRESSED, pressed
from scenario_files import write
from typer.testing import CliRunner

from cluster import host_set, log, progress
from cluster.cli import app
from cluster.errors import BrokenHostError, exit_code
from cluster.stopping import NOT_BEGUN
from cluster.watch.live import run_id
from hostsim.invariants import BrokenInvariantError

MAIN = [sys.executable, "-c", "from cluster.cli import main; main()"]
COARSE = PRESSED | {"fidelity": {"sample": 128}}
"""With warnings: VMs of few simulated pages."""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    log.use("text")


def said(*arguments: Any, code: int, **environment: str) -> list[dict[str, Any]]:
    """Lines on stderr of a command."""
    found = CliRunner(env=environment).invoke(app, [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return [json.loads(line) for line in found.stderr.splitlines()]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_run_says_all_of_it_in_lines_of_json(tmp_path: Path, how: str) -> None:
    path, out = write(tmp_path, COARSE, "pressed.yaml"), tmp_path / "out"
    option = ["--log", "json"] if how == "option" else []
    environment = {} if how == "option" else {log.VARIABLE: "json"}
    lines = said("run", path, "--local", "--out", out, *option, code=0, **environment)
    text = CliRunner().invoke(app, ["run", str(path), "--local", "--out", str(out)]).stderr
    levels = {"warning": "warning: ", "info": "", "error": ""}
    pace = re.compile(r"[\d,]+ host-ticks/s, \d+ s left")
    assert pace.sub("", text) == "".join(
        pace.sub("", f"esxsim: {levels[one['level']]}{one['message']}\n") for one in lines
    )
    assert {one["level"] for one in lines} == {"warning", "info"}
    (run,) = {one["run"] for one in lines}
    assert re.fullmatch(r"pressed-7-[0-9a-f]{8}", run)
    assert [one["epoch"] for one in lines if "host-ticks" in one["message"]] == [1, 15]
    for one in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"])


def test_an_error_is_a_line_of_json_too(tmp_path: Path) -> None:
    path = write(tmp_path, PRESSED | {"tick": "0 s"})
    (line,) = said("run", path, "--local", code=2, **{log.VARIABLE: "json"})
    assert line["level"] == "error" and str(path) in line["message"] and "run" not in line


def test_a_broken_invariant_names_host_and_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(state: Any) -> None:
        raise BrokenInvariantError("frames: 3 used + 4 free != 8")

    monkeypatch.setattr(host_set.invariants, "check", check)
    path = write(tmp_path, PRESSED, "pressed.yaml")
    arguments = ["run", path, "--local", "--check", "--out", tmp_path / "out", "--log", "json"]
    last = said(*arguments, code=1)[-1]
    assert last["message"] == "host 0, epoch 0: frames: 3 used + 4 free != 8"
    assert (last["host"], last["epoch"]) == ("esx-1", 0)
    assert last["run"] == run_id(pressed(tmp_path))


def test_such_an_error_comes_whole_from_another_process() -> None:
    error = BrokenHostError(3, "esx-4", 7, "frames")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.host, again.epoch) == ("host 3, epoch 7: frames", "esx-4", 7)
    assert exit_code(again) == 1


def test_a_study_says_it_so_too(tmp_path: Path) -> None:
    sweep = {"vary": {"placement.overcommit": [1.5, 2.0]}}
    path = write(tmp_path, PRESSED | {"sweep": sweep})
    lines = said("run", path, "--local", "--out", tmp_path / "out", "--log", "json", code=0)
    assert lines[-1]["message"].startswith("2 of 2 runs done: ")


@pytest.mark.parametrize("how", ["--log", log.VARIABLE])
def test_another_form_is_refused(tmp_path: Path, how: str) -> None:
    path = write(tmp_path, PRESSED)
    option = ["--log", "xml"] if how == "--log" else []
    environment = {} if how == "--log" else {how: "xml"}
    found = CliRunner(env=environment).invoke(app, ["run", str(path), *option])
    assert found.exit_code == 2
    assert found.stderr == f"esxsim: {how}: 'xml' must be text or json\n"


def test_the_option_wins(tmp_path: Path) -> None:
    path = write(tmp_path, PRESSED | {"tick": "0 s"})
    found = CliRunner(env={log.VARIABLE: "json"}).invoke(
        app, ["run", str(path), "--local", "--log", "text"]
    )
    assert found.stderr.startswith("esxsim: ")


def test_json_lines_are_lines_on_a_terminal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich calls a terminal
    log.use("json")
    with progress.shown(pressed(tmp_path).scenario) as watch:
        watch.note("starting")
    assert json.loads(capsys.readouterr().err)["message"] == "starting"


def test_a_signal_while_kernels_are_compiled_is_told_so_too(tmp_path: Path) -> None:
    path = write(tmp_path, PRESSED)
    with subprocess.Popen(
        [*MAIN, "run", str(path), "--local", "--out", str(tmp_path / "out"), "--log", "json"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ESXSIM_CACHE": str(tmp_path / "cache")},
    ) as process:
        assert process.stderr is not None
        assert "compiling" in json.loads(process.stderr.readline())["message"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert json.loads(errors)["message"] == NOT_BEGUN and process.returncode == 1
