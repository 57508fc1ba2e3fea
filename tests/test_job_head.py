"""What a job runs on the head, where it is not what it should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import __version__
from cluster.jobs import bundle, head


def arguments(what: str, *more: str, version: str = __version__) -> list[str]:
    return ["--esxsim", version, "--name", "mine", "--", what, *more]


@pytest.mark.parametrize("what", ["run", "pack"])
def test_another_esxsim_on_the_head_is_refused(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert head.main(arguments(what, version="0.0.7")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"esxsim: the head has esxsim {__version__}, and the job was submitted")
    assert "0.0.7" in said and len(said.splitlines()) == 1


def test_results_lie_where_the_head_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(head.RESULTS, raising=False)
    assert head.results("mine") == tmp_path / ".esxsim" / "runs" / "mine"
    monkeypatch.setenv(head.RESULTS, "/volume")
    assert head.results("mine") == Path("/volume/mine")


def test_what_is_no_run_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(head.RESULTS, str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert head.main(arguments("pack")) == 1
    assert "mine on the head holds no results" in capsys.readouterr().err


def test_what_was_packed_is_kept_until_it_was_fetched(tmp_path: Path) -> None:
    """As Ray starts it: its output is a file in the folder of logs."""
    (tmp_path / "results" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "mine" / "manifest.json").write_text("{}")
    log = tmp_path / "logs" / "job-driver.log"
    log.parent.mkdir()
    command = [sys.executable, "-m", "cluster.jobs.head", *arguments("pack")]
    with log.open("w") as printed:
        process = subprocess.Popen(
            command, stdout=printed, env={head.RESULTS: str(tmp_path / "results")}, cwd=head_root()
        )
    while not log.read_text().endswith("\n"):
        assert process.poll() is None
    told = bundle.Bundle(**json.loads(log.read_text().removeprefix(bundle.PACKED)))
    packed = log.parent / bundle.BUNDLES / told.file
    assert packed.stat().st_size == told.size and told.unpacked == 2
    process.terminate()
    assert process.wait(60) == 0
    assert not packed.exists()


def head_root() -> Path:
    """Where `python -m` finds this esxsim."""
    return Path(__file__).parents[1]


def test_packing_is_for_ray_to_start(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    command = [sys.executable, "-m", "cluster.jobs.head", *arguments("pack")]
    environment = {head.RESULTS: str(tmp_path)}
    found = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=head_root()
    )
    assert found.returncode == 1
    assert found.stderr.startswith("esxsim: this is for Ray to start")
