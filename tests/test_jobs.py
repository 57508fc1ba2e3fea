"""Jobs on a real cluster, from outside: the same results, no more said than must be, and no token
anywhere that people look."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from cluster_builders import PRESSED, manifest_of, simulate
from ray_clusters import Cluster, started
from scenario_files import make_trace, save, write
from test_cli import MAIN
from typer.testing import CliRunner

from cluster.cli import app
from cluster.jobs import actions
from cluster.scenario_file import load

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_ready")]

TOO_LONG_S = 240
LONG = {"duration": "400 d"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with started() as found:
        yield found


def environment(cluster: Cluster, **more: str) -> dict[str, str | None]:
    """Of a user who has the token in a file; None takes a variable away."""
    path = cluster.folder / "token"
    path.write_text(more.pop("token", cluster.token))
    values: dict[str, str | None] = {name: None for name in os.environ if name[:4] == "RAY_"}
    values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    values |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return values | {"RAY_API_SERVER_ADDRESS": cluster.dashboard} | more


def variables(cluster: Cluster, **more: str) -> dict[str, str]:
    """The same, whole."""
    values = os.environ | environment(cluster, **more)
    return {name: value for name, value in values.items() if value is not None}


def command(cluster: Cluster, *arguments: Any, code: int = 0, **more: str) -> str:
    """What `esxsim` prints, in this process, or what it says of its failure."""
    found = CliRunner().invoke(
        app, [str(argument) for argument in arguments], env=environment(cluster, **more)
    )
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found.stderr if code else found.stdout


def process(cluster: Cluster, *arguments: Any, code: int = 0, **more: str) -> str:
    """The same in a process of its own: with Ray connected."""
    clean = variables(cluster, **more)
    found = subprocess.run(
        [*MAIN, *map(str, arguments)], env=clean, capture_output=True, text=True, timeout=TOO_LONG_S
    )
    assert found.returncode == code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found.stderr if code else found.stdout


@dataclass(frozen=True)
class Job:
    """A job that was submitted, waited for, and fetched."""

    id: str
    path: Path
    out: Path
    logs: str
    seen: str
    """Command lines of all processes while it ran."""


@pytest.fixture(scope="module")
def job(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    # Ray puts a job's folder on the search path: were the file in it, `import yaml` would find it.
    write(folder, json.dumps({"images": PRESSED["images"]}), "yaml.py")
    save(folder, make_trace())
    path = write(folder, PRESSED | {"images": "yaml.py"}, "pressed one.yaml")
    name = command(cluster, "submit", path, "--seed", 9).strip()
    seen: dict[str, None] = {}
    with subprocess.Popen([*MAIN, "wait", name], env=variables(cluster)) as waiting:
        while waiting.poll() is None:
            seen |= dict.fromkeys(cluster.processes.values())
    assert waiting.returncode == 0
    out = folder / "fetched"
    assert command(cluster, "fetch", name, "--out", out).split() == [
        "Report",
        str(out / "report.html"),
    ]
    return Job(name, path, out, command(cluster, "logs", name), "\n".join(seen))


def test_a_job_gives_what_a_run_here_gives(job: Job, tmp_path: Path) -> None:
    here = simulate(load(job.path, seed=9), tmp_path / "here").report
    report = json.loads((job.out / "report.json").read_text("utf-8"))
    assert report["digest"] == here["digest"]
    assert manifest_of(job.out)["fleet"] == "ray"
    for name in ("hosts.parquet", "vms.parquet", "events.jsonl", "scenario.yaml"):
        assert (job.out / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


@pytest.mark.slow
def test_what_a_job_printed_is_its_log(cluster: Cluster, job: Job) -> None:
    assert re.fullmatch(r"pressed-[0-9a-f]{8}", job.id)
    assert f"esxsim: results go to {cluster.results / job.id} on the head\n" in job.logs
    assert "pressed (seed 9): " in job.logs
    assert command(cluster, "logs", job.id, "--follow").endswith(job.logs[-200:])
    # Nothing of it lies about once it was fetched.
    assert list(cluster.folder.glob("ray/session_*/logs/esxsim/*")) == []


def test_the_token_is_nowhere_to_be_seen(cluster: Cluster, job: Job) -> None:
    assert "cluster.jobs.head" in job.seen and "dashboard.py" in job.seen
    assert cluster.token not in job.seen
    assert cluster.token not in job.logs
    token = cluster.token.encode()
    logs = [path for path in cluster.folder.glob("ray/session_*/logs/**/*") if path.is_file()]
    assert any(path.name == f"job-driver-{job.id}.log" for path in logs)
    for path in (*logs, *cluster.results.rglob("*"), *job.out.rglob("*")):
        assert path.is_dir() or token not in path.read_bytes(), path
    code = (
        "import sys; from ray.job_submission import JobSubmissionClient as C; import json;"
        "print([one.json() for one in C(sys.argv[1]).list_jobs()])"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    listed = subprocess.run(
        [sys.executable, "-c", code, cluster.dashboard],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert job.id in listed and cluster.token not in listed


@pytest.mark.slow
def test_a_job_that_fails_tells_why_and_ends_so(cluster: Cluster, tmp_path: Path) -> None:
    # Valid, and more than any machine has.
    hosts = [PRESSED["hosts"][0] | {"memory": "4 TiB"}]
    vms = [PRESSED["vms"][0] | {"memory": "1 TiB", "count": 8}]
    path = write(tmp_path, PRESSED | {"hosts": hosts, "vms": vms, "events": [], "fidelity": {}})
    errors = command(cluster, "submit", path, "--wait", code=2).splitlines()
    assert re.search(r"^esxsim: job pressed-[0-9a-f]{8} failed with exit code 2:$", errors[-99:][0])
    assert any("the run needs about" in line for line in errors)
    name = errors[0].split()[2]
    assert "holds no results" in command(cluster, "fetch", name, "--out", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_job_that_is_stopped_keeps_what_it_has(cluster: Cluster, tmp_path: Path) -> None:
    path = write(tmp_path, PRESSED | LONG)
    name = command(cluster, "submit", path, "--name", "mine").strip()
    assert re.fullmatch(r"mine-[0-9a-f]{8}", name)
    for _ in range(TOO_LONG_S):
        if (cluster.results / "mine" / "manifest.json").exists():
            break
        Event().wait(1)
    assert f"job {name} has not ended" in command(cluster, "fetch", name, code=1)
    again = command(cluster, "submit", path, "--name", "mine", code=2)
    assert again == f"esxsim: --name: job {name} is writing to mine\n"
    assert command(cluster, "stop", name) == f"job {name} is stopped\n"
    assert command(cluster, "stop", name) == f"job {name} had ended already: stopped\n"
    assert f"job {name} was stopped" in command(cluster, "wait", name, code=1)
    command(cluster, "fetch", name, "--out", tmp_path / "out")
    assert manifest_of(tmp_path / "out")["reason"] == "the run was stopped before its end"


def test_wrong_tokens_and_unknown_jobs_are_told(cluster: Cluster, tmp_path: Path) -> None:
    path, out, wrong = write(tmp_path, PRESSED), tmp_path / "out", "0" * 64
    said = process(
        cluster, "run", path, "--out", out, "--address", cluster.head, code=2, token=wrong
    )
    assert said.splitlines() == [
        "esxsim: starting Ray",
        f"esxsim: the Ray cluster at {cluster.head} refuses the token: it has another one",
    ]
    for arguments in (["submit", path], ["wait", "x"], ["fetch", "x"]):
        said = command(cluster, *arguments, code=2, token=wrong)
        assert (
            said == f"esxsim: {cluster.dashboard} refuses the token: the cluster has another one\n"
        )
    assert not out.exists()
    for name in ("wait", "logs", "fetch", "stop"):
        said = command(cluster, name, "nix", code=2)
        assert said == f"esxsim: {cluster.dashboard} knows no job nix\n"


@pytest.mark.slow
def test_run_on_a_cluster_by_its_address(cluster: Cluster, tmp_path: Path) -> None:
    path, out = write(tmp_path, PRESSED), tmp_path / "out"
    process(cluster, "run", path, "--out", out, "--address", cluster.head)
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["digest"] == simulate(load(path), tmp_path / "here").report["digest"]


@pytest.mark.slow
def test_run_on_a_cluster_that_the_environment_names(cluster: Cluster, tmp_path: Path) -> None:
    arguments = ["run", write(tmp_path, PRESSED), "--out", tmp_path / "out", "--address", "auto"]
    process(cluster, *arguments, RAY_ADDRESS=cluster.head)
    said = process(cluster, *arguments, code=2, RAY_ADDRESS=cluster.head, RAY_AUTH_MODE="disabled")
    assert "asks for a token: set RAY_AUTH_MODE=token" in said


@pytest.mark.slow
def test_a_sweep_is_a_job_like_any_other(cluster: Cluster, tmp_path: Path) -> None:
    sweep = {"vary": {"vms.web.count": [2, 4]}, "seeds": 2}
    path = write(
        tmp_path, {key: PRESSED[key] for key in PRESSED if key != "events"} | {"sweep": sweep}
    )
    here = json.loads(process(cluster, "run", path, "--json", "--out", tmp_path / "here"))
    name = command(cluster, "submit", path, "--wait").strip()
    out = tmp_path / "out"
    said = command(cluster, "fetch", name, "--out", out)
    assert said == f"Report         {out / 'sweep.html'}\n"
    found = json.loads((out / "results.json").read_text("utf-8"))
    for results in (here, found):
        digests = [[run["digest"] for run in point["runs"]] for point in results["points"]]
        assert len(digests) == 2
    assert found["points"] == here["points"]


@pytest.mark.slow
def test_half_a_gigabyte_comes_back_in_little_memory(cluster: Cluster, job: Job) -> None:
    large = cluster.results / job.id / "large.parquet"
    with large.open("wb") as stream:
        for number in range(500):
            stream.write(hashlib.sha256(b"%d" % number).digest() * (1 << 15))
    code = (
        "import sys; from typer.testing import CliRunner; from cluster.cli import app\n"
        "found = CliRunner().invoke(app, sys.argv[1:])\n"
        # Not ru_maxrss, in which is what the process that started this one had.
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(found.exit_code, status['VmHWM'].split()[0])\n"
    )
    clean = variables(cluster)
    out = job.out.with_name("large")
    said = subprocess.run(
        [sys.executable, "-c", code, "fetch", job.id, "--out", str(out)],
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exit_code, kib = map(int, said.split())
    assert exit_code == 0 and kib < 400 * 1024
    with large.open("rb") as sent, (out / "large.parquet").open("rb") as came:
        assert hashlib.file_digest(sent, "sha256").digest() == (
            hashlib.file_digest(came, "sha256").digest()
        )
    large.unlink()


@pytest.mark.slow
def test_a_cluster_without_tokens_is_used_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, PRESSED)
    with started(token=False) as cluster:
        found = CliRunner().invoke(app, ["submit", str(path), "--wait"], env=environment(cluster))
        assert found.exit_code == 0, found.output
        assert f"warning: {cluster.dashboard} asks for no token" in found.stderr
        clean = variables(cluster, RAY_AUTH_MODE="disabled")
        ran = subprocess.run(
            [*MAIN, "run", str(path), "--out", str(tmp_path / "out"), "--address", cluster.head],
            env=clean,
            capture_output=True,
            text=True,
        )
    assert ran.returncode == 0, ran.stderr
    assert f"warning: the Ray cluster at {cluster.head} asks for no token" in ran.stderr


@pytest.mark.slow
def test_a_head_without_esxsim_is_told(tmp_path: Path) -> None:
    """Its `python` is one that knows nothing of us: as on an image of Ray alone."""
    bare = tmp_path / "bin"
    bare.mkdir()
    with started(path=bare) as cluster:
        path = write(tmp_path, PRESSED)
        said = command(cluster, "submit", path, "--wait", code=2)
        assert actions.NOT_THERE in said
        (bare / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        (bare / "python").chmod(0o755)
        said = command(cluster, "submit", path, "--wait", code=2)
        assert actions.NOT_THERE in said
