"""What may be wrong with address, token or head is told in one line, before Ray is asked."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from fake_heads import TOKEN, dashboard
from scenario_files import changed, write
from typer.testing import CliRunner

from cluster import ray_environment
from cluster.cli import app
from cluster.errors import ClusterError
from cluster.jobs import actions, client

pytestmark = pytest.mark.usefixtures("ray_ready")
RAY = metadata.version("ray")
VERSION = {"version": "4", "ray_version": RAY}
ASKS = {"/api/authentication_mode": {"authentication_mode": "token"}, "/api/version": VERSION}
OPEN = ASKS | {"/api/authentication_mode": {"authentication_mode": "disabled"}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a token, and no address."""
    for name in (*client.ADDRESSES, ray_environment.TOKEN, ray_environment.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path


def refusal(*arguments: Any, code: int = 2) -> str:
    """The one line on stderr of a command that must fail."""
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == code, found.output
    (line,) = found.stderr.splitlines()
    assert not found.stdout and TOKEN not in line
    return line


@pytest.mark.parametrize(
    "address",
    [
        "head:8265",
        "ray://head:1",
        "http://",
        "http://h:0",
        "http://h:x",
        "http://h/?a=1",
        "ftp://h",
    ],
)
def test_an_address_is_that_of_a_dashboard(address: str) -> None:
    for command in ("wait", "logs", "fetch", "stop"):
        line = refusal(command, "job", "--address", address)
        assert line.startswith(f"esxsim: --address: {address!a} must be http://HEAD:8265")


def test_an_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("logs", "job").startswith("esxsim: --address is missing, and so is RAY_API")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert refusal("logs", "job").startswith("esxsim: RAY_ADDRESS: 'head:6379' must be")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head/")
    assert client.address_of(None) == "http://head"
    assert client.address_of("https://other") == "https://other"


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    line = refusal("logs", "job", "--address", f"http://me:{TOKEN}@head:8265")
    assert "'http://...@head:8265' must be" in line


@pytest.mark.parametrize("job", ["../x", "a/b", "", "-x", "a b", "x" * 121])
def test_a_job_is_named_by_its_id(job: str) -> None:
    with dashboard(OPEN) as (address, asked):
        assert refusal("logs", "--address", address, "--", job).startswith("esxsim: JOB: ")
    assert asked == []


def test_a_head_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(client, "READ_S", 0.2)
        assert "does not answer in time" in refusal("logs", "job", "--address", address, code=1)
    line = refusal("logs", "job", "--address", address, code=1)
    assert line.startswith(f"esxsim: no Ray dashboard answers at {address}: Connection refused")
    assert "Traceback" not in line


@pytest.mark.parametrize("version", [{}, {"ray_version": "?"}, []])
def test_a_dashboard_says_its_version(version: Any) -> None:
    with dashboard(OPEN | {"/api/version": version}) as (address, _):
        line = refusal("logs", "job", "--address", address)
    assert line.startswith(f"esxsim: what answers at {address} is no Ray dashboard")


@pytest.mark.parametrize("answer", [None, [], {"other": 1}, "text"])
def test_what_is_no_dashboard_is_told_and_shown_no_token(
    monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setenv(ray_environment.TOKEN, TOKEN)
    answers = {} if answer is None else {"/api/authentication_mode": answer}
    with dashboard(answers) as (address, asked):
        line = refusal("logs", "job", "--address", address)
    assert line.startswith(f"esxsim: what answers at {address} is no Ray dashboard")
    assert asked == [("/api/authentication_mode", None)]


def test_a_token_is_missing_wrong_or_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard(ASKS, TOKEN) as (address, asked):
        line = refusal("logs", "job", "--address", address)
        assert line.startswith(f"esxsim: no token for {address}: set RAY_AUTH_MODE=token, and")
        monkeypatch.setenv(ray_environment.TOKEN_PATH, "/nowhere/token")
        line = refusal("logs", "job", "--address", address)
        assert line == "esxsim: RAY_AUTH_TOKEN_PATH: '/nowhere/token' cannot be read"
        monkeypatch.setenv(ray_environment.TOKEN, "wrong")
        line = refusal("logs", "job", "--address", address)
        assert line == f"esxsim: {address} refuses the token: the cluster has another one"
    assert [shown for path, shown in asked if path == "/api/version"] == ["Bearer wrong"]


def test_a_cluster_that_asks_for_no_token_is_shown_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_environment.TOKEN, TOKEN)
    monkeypatch.setenv(ray_environment.MODE, "token")
    with dashboard(OPEN) as (address, asked):
        board = client.Dashboard(address)
        assert board.warnings[0].startswith(f"{address} asks for no token: whoever reaches it")
    assert asked and not any(shown for _, shown in asked)


def test_a_token_in_clear_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_environment.TOKEN, TOKEN)
    with dashboard(ASKS, TOKEN) as (address, asked):
        assert client.Dashboard(address).warnings == []  # stays on this machine
        monkeypatch.setattr(client, "_is_loopback", lambda address: False)
        (warning,) = client.Dashboard(address).warnings
    assert warning.startswith(f"{address} is not encrypted: token, scenario and results")
    assert asked[-1][1] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("version", ["2.9.3", "3.60.0"])
def test_another_ray_is_refused_before_anything_is_sent(tmp_path: Path, version: str) -> None:
    answers = OPEN | {"/api/version": VERSION | {"ray_version": version}}
    with dashboard(answers) as (address, asked):
        found = CliRunner().invoke(
            app, ["submit", str(write(tmp_path, changed())), "--address", address]
        )
    assert found.exit_code == 2
    last = found.stderr.splitlines()[-1]
    if version == "?":
        assert "Traceback" not in found.output
    else:
        assert last == (
            f"esxsim: {address} runs Ray {version}, and this is Ray {RAY}: install the same on both"
        )
    assert all(path in answers for path, _ in asked)


def test_a_wrong_scenario_is_refused_before_the_head_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path, changed(images="../../etc/passwd"))
    with dashboard(OPEN) as (address, asked):
        line = refusal("submit", path, "--address", address)
    assert "images: '../../etc/passwd': must be the name of a file in the scenario's" in line
    assert asked == []


def test_help_and_wrong_addresses_do_without_ray() -> None:
    assert client.__name__ in sys.modules  # and yet, in a process of its own:
    import subprocess

    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cluster.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert not {'ray', 'requests', 'pyarrow', 'numba'} & set(sys.modules)\n"
        "assert CliRunner().invoke(app, ['logs', 'x', '--address', 'y']).exit_code == 2\n"
        "assert 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Endings


class Info:
    """As JobDetails."""

    def __init__(self, status: str, code: int | None = None, message: str = "") -> None:
        self.status, self.driver_exit_code, self.message = status, code, message


TAIL = "Job entrypoint command failed with exit code {}, " + actions.TAIL


@pytest.mark.parametrize(
    ("info", "code", "words"),
    [
        (Info("SUCCEEDED", 0), 0, None),
        (Info("STOPPED"), 1, "job j was stopped: esxsim fetch brings what it has"),
        (
            Info("FAILED", 2, TAIL.format(2) + "a\nb\n"),
            2,
            "job j failed with exit code 2:\n  a\n  b",
        ),
        (Info("FAILED", 1, TAIL.format(1) + "a"), 1, "job j failed with exit code 1:\n  a"),
        (Info("FAILED", -9, TAIL.format(-9)), 1, "job j was killed by signal 9:"),
        (Info("FAILED", 3, TAIL.format(3)), 1, "job j failed with exit code 3:"),
        (Info("FAILED", None, "no node"), 1, "job j failed before it ran:\n  no node"),
        (Info("FAILED", 127, "sh: python: not found"), 2, f"job j: {actions.NOT_THERE}"),
        (
            Info("FAILED", 1, TAIL.format(1) + "ModuleNotFoundError: No module named 'cluster'"),
            2,
            f"job j: {actions.NOT_THERE}",
        ),
    ],
)
def test_the_exit_code_of_a_job_is_that_of_its_run(
    info: Info, code: int, words: str | None
) -> None:
    assert actions.ending(info, "j") == (code, words)


class Board:
    """A dashboard that answers with these, one after the other."""

    def __init__(self, *answers: Info | ClusterError) -> None:
        self.answers = list(answers)

    def info(self, job: str) -> Info:
        found = self.answers.pop(0)
        if isinstance(found, ClusterError):
            raise found
        return found


def test_a_head_that_is_away_for_a_while_does_not_end_the_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actions.time, "sleep", lambda s: None)
    monkeypatch.setattr(actions, "LOST_MAX", 2)
    running, away, ended = Info("RUNNING"), ClusterError("away"), Info("FAILED", 2, "why")
    answers = [running, away, away, running, away, away, ended]
    assert actions.wait(Board(*answers), "j")[0] == 2
    with pytest.raises(ClusterError, match="away"):
        actions.wait(Board(running, away, away, away, ended), "j")
    with pytest.raises(ClusterError, match="away"):
        actions.wait(Board(away, ended), "j")
