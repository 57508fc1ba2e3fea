"""What comes before a run's first epoch: what is refused at once, and how a stop is heeded."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_builders import PRESSED
from scenario_files import write
from typer.testing import CliRunner

from cluster import execute, ray_environment, stopping
from cluster.cli import app
from cluster.errors import StoppedError
from cluster.stopping import Stop
from hostsim.units import MIB

MAIN = [sys.executable, "-c", "from cluster.cli import main; main()"]
MODES = {"ray": [], "here": ["--local"]}
NOT_BEGUN = "esxsim: stopped before the run began: nothing was written"


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes to compile has gone too far."""

    def compiles(note: object) -> None:
        raise AssertionError("compiles")

    monkeypatch.setattr(execute, "warm", compiles)


@pytest.fixture
def closed_port() -> str:
    """An address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def open_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusal(*arguments: object, code: int) -> str:
    """The last line on stderr of a run that must fail before it compiles."""
    found = CliRunner().invoke(app, ["run", *map(str, arguments)])
    assert found.exit_code == code, found.output
    return found.stderr.splitlines()[-1]


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("mode", MODES)
def test_an_unusable_out_is_refused_before_anything_starts(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path, PRESSED)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "out"):
        found = refusal(path, "--out", out, *MODES[mode], code=2)
        assert found.startswith("esxsim: ") and str(out) in found


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("mode", MODES)
def test_a_run_too_large_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = write(tmp_path, PRESSED)
    monkeypatch.setattr(execute, "available_bytes", lambda: 100 * MIB)
    assert "the run needs about" in refusal(path, *MODES[mode], code=2)
    # In the way that it is asked for: three actors are more processes than one.
    monkeypatch.setattr(execute, "available_bytes", lambda: 1200 * MIB)
    assert "the run needs about" in refusal(path, "--hosts-per-actor=1", code=2)


@pytest.mark.usefixtures("cold")
def test_a_head_that_does_not_answer_is_told_at_once(tmp_path: Path, closed_port: str) -> None:
    path = write(tmp_path, PRESSED)
    found = refusal(path, "--out", tmp_path / "out", "--address", closed_port, code=1)
    where = f"no Ray cluster at {closed_port}: nothing answers at {closed_port}"
    assert found == f"esxsim: {where} (Connection refused)"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize(
    "value",
    ["ray://head:1", "head", "head:0", "head:65536", "http://head:1", "a b:1", "", ":1"],
)
def test_an_address_is_auto_local_or_that_of_a_head(tmp_path: Path, value: str) -> None:
    found = refusal(write(tmp_path, PRESSED), "--address", value, code=2)
    allowed = "auto, local, or HOST:PORT of the head of a Ray cluster"
    assert found.startswith(f"esxsim: --address: {value!r} must be {allowed}")
    assert ("Ray Client" in found) == value.startswith("ray:")


def test_auto_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, closed_port: str, open_port: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_environment.why_unreachable("auto") is None
    assert ray_environment.why_unreachable(open_port) is None
    for address, words in ((closed_port, "nothing answers at"), ("ray://a:1", "RAY_ADDRESS is")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        found = ray_environment.why_unreachable("auto")
        assert found is not None and found.startswith(words) and address in found
    assert ray_environment.why_unreachable(open_port) is None


def test_heads_have_a_name_or_an_address() -> None:
    assert ray_environment.head_of("head.example:6379") == ("head.example", 6379)
    assert ray_environment.head_of("[::1]:6379") == ("::1", 6379)


# What is loaded

LOADED = """
import contextlib, sys
from cluster.cli import main
with contextlib.suppress(SystemExit):
    main()
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
HEAVY = {"ray", "numba", "pyarrow", "matplotlib"}
"""Each takes longer to import than all the rest that a short command needs."""


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (["--help"], set()),
        (["run", "--help"], set()),
        (["top", "--help"], set()),
        (["validate", "scenarios/osdi02/fig7.yaml"], set()),
        (["validate", "scenarios/quickstart.yaml"], {"pyarrow"}),  # its trace is Parquet
    ],
)
def test_a_short_command_loads_no_heavy_library(arguments: list[str], needs: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert HEAVY & set(done.stdout.splitlines()[-1].split()) == needs


# Signals


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_before_the_run_begins_ends_it(number: signal.Signals) -> None:
    handlers = [signal.getsignal(one) for one in stopping.SIGNALS]
    with pytest.raises(StoppedError, match="nothing was written"), Stop().listening():
        signal.raise_signal(number)
    assert [signal.getsignal(one) for one in stopping.SIGNALS] == handlers


def test_a_signal_once_the_run_has_begun_waits_for_the_barrier_and_a_second_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        stop.begin()
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert capsys.readouterr().err == "esxsim: stopping at the end of this barrier\n"
        signal.raise_signal(signal.SIGINT)


def test_a_signal_while_something_starts_acts_when_it_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop, done = Stop(), []
    with pytest.raises(StoppedError), stop.listening():
        with stop.waiting():
            signal.raise_signal(signal.SIGINT)
            done.append("started")
        done.append("went on")
    assert done == ["started"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_while_kernels_are_compiled_ends_the_command_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    path, out = write(tmp_path, PRESSED), tmp_path / "out"
    with subprocess.Popen(
        [*MAIN, "run", str(path), "--local", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ESXSIM_CACHE": str(tmp_path / "cache")},
    ) as process:
        assert process.stderr is not None
        assert "compiling" in process.stderr.readline()
        process.send_signal(number)
        printed, errors = process.communicate(timeout=10)
    assert (process.returncode, printed, errors) == (1, "", f"{NOT_BEGUN}\n")
    assert not out.exists()
