"""The image, really built, and a run on Ray in it: as uid 1000, with no capability, on a root file
system that is read-only, started and asked as the operator does it.

Needs podman, runc and debootstrap, root, and a network that reaches PyPI and Debian. The base is a
Debian of our own, as no registry may be within reach; it is the Debian of the public one.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from manifests import K8S, ROOT, objects, one
from typer.testing import CliRunner

from cluster.cli import app

pytestmark = pytest.mark.container
BASE, IMAGE = "localhost/esxsim-base:test", "localhost/esxsim:test"
DEBIAN = "https://deb.debian.org/debian"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PODMAN = ("podman", "--runtime", "runc")  # crun does not start where cgroups are hybrid
FILES = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65_536)


def podman(*words: str, timeout: float = 900, check: bool = True, **environment: str) -> str:
    """What a command of podman prints."""
    done = subprocess.run(
        [*PODMAN, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=os.environ | environment,
    )
    assert not check or done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    missing = [name for name in ("podman", "runc", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
    if f"{BASE}\n" not in podman("images", "--format", "{{.Repository}}:{{.Tag}}"):
        root = tmp_path_factory.mktemp("base") / "root"
        packages = "python3,python3-venv,ca-certificates,tini"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm"]
        done = subprocess.run(
            [*command, str(root), DEBIAN], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:]
        subprocess.run(
            f"tar -C {root} -c . | podman import - {BASE}", shell=True, check=True, timeout=300
        )
    podman(
        *("build", "--isolation", "chroot", "--network", "host"),
        *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"),
        *("--build-arg", f"BASE={BASE}", "--file", str(K8S / "image" / "Containerfile")),
        *("--tag", IMAGE, str(ROOT)),
    )
    return IMAGE


@pytest.fixture(scope="session")
def token() -> str:
    return secrets.token_hex(32)


LIMITS = ("--ulimit", f"nofile={FILES}:{FILES}", "--ulimit", "nproc=8192:8192")
RESTRICTED = (
    *("--user", "1000:1000", "--cap-drop=all", "--security-opt", "no-new-privileges"),
    *("--read-only", "--tmpfs", "/tmp:rw,size=4g,mode=1777", "--shm-size", "512m", *LIMITS),
)
JOB = one(objects((K8S / "base" / "rayjob" / "rayjob.yaml").read_text()), "RayJob")["spec"]


HEALTHY = "import urllib.request as u; u.urlopen('http://127.0.0.1:8265/api/gcs_healthz')"
"""What the operator's submitter waits for, too."""
SIZES = {"object-store-memory": "200000000", "memory": "1000000000"}
"""Less than the manifest's: the machine that tests may be a small one."""


@dataclass(frozen=True)
class Head:
    """A container, and where its results are here."""

    name: str
    results: Path


@pytest.fixture(scope="session")
def head(image: str, token: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head, as the operator starts it with what the manifest says."""
    folder = tmp_path_factory.mktemp("volume")
    (folder / "results").mkdir()
    os.chown(folder / "results", 1000, 1000)
    cluster = JOB["rayClusterSpec"]["headGroupSpec"]
    container = cluster["template"]["spec"]["containers"][0]
    options = " ".join(f"--{key}={to}" for key, to in (cluster["rayStartParams"] | SIZES).items())
    start = f"ray start --head --block --metrics-export-port=8080 {options}"
    variables = [f"{each['name']}={each['value']}" for each in container["env"]]
    name = "esxsim-test-head"
    podman("rm", "--force", name, check=False)
    podman(
        *("run", "--detach", "--name", name, *RESTRICTED),
        *(word for each in variables for word in ("--env", each)),
        *("--env", "RAY_AUTH_MODE=token", "--env", "RAY_AUTH_TOKEN"),
        *("--volume", f"{folder}/results:/results"),
        *("--volume", f"{K8S}/base/rayjob/scenario.yaml:/scenario/scenario.yaml:ro"),
        *("--entrypoint", "/bin/bash", image, "-c", "--", f"ulimit -n {FILES}; {start}"),
        RAY_AUTH_TOKEN=token,
    )
    try:
        for _ in range(60):
            asked = ("exec", name, "python", "-c", HEALTHY)
            if subprocess.run([*PODMAN, *asked], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(1)
        else:
            pytest.fail(podman("logs", name))
        yield Head(name, folder / "results")
    finally:
        podman("rm", "--force", name, check=False)


@pytest.fixture(scope="session")
def worker(head: Head, image: str, token: str) -> Iterator[str]:
    """A worker beside the head, as the operator starts it once the head answers."""
    inspected = ("inspect", "--format", "{{.NetworkSettings.IPAddress}}", head.name)
    address = f"{podman(*inspected).strip()}:6379"
    group = JOB["rayClusterSpec"]["workerGroupSpecs"][0]
    variables = group["template"]["spec"]["containers"][0]["env"]
    options = [f"--{key}={to}" for key, to in (group["rayStartParams"] | SIZES).items()]
    name = "esxsim-test-worker"
    podman("rm", "--force", name, check=False)
    environment = [f"{each['name']}={each['value']}" for each in variables]
    start = f"ray health-check --address {address} && ray start --address={address} --block"
    podman(
        *("run", "--detach", "--name", name, *RESTRICTED),
        *(word for each in environment for word in ("--env", each)),
        *("--env", "RAY_AUTH_MODE=token", "--env", "RAY_AUTH_TOKEN"),
        *("--entrypoint", "/bin/bash", image, "-c", "--"),
        f"{start} --num-cpus=2 {' '.join(options)}",
        RAY_AUTH_TOKEN=token,
    )
    try:
        for _ in range(60):
            if "/2.0 CPU" in podman("exec", head.name, "ray", "status", check=False):
                break
            time.sleep(1)
        else:
            pytest.fail(podman("logs", name))
        yield name
    finally:
        podman("rm", "--force", name, check=False)


def entrypoint() -> str:
    """The manifest's command, but for an option that this checkout may not have yet."""
    command = str(JOB["entrypoint"])
    source = (ROOT / "cluster" / "cli.py").read_text()
    return command if '"--continue"' in source else command.replace(" --continue", "")


def submitted(head: Head, command: str) -> str:
    """What the operator's submitter says, its command in a shell as the operator puts it there."""
    submit = f"ray job submit --address http://127.0.0.1:8265 -- {command}"
    return podman("exec", head.name, "/bin/bash", "-c", submit, check=False, timeout=300)


def test_it_runs_as_uid_1000_and_has_what_the_operator_calls(image: str) -> None:
    names = "ray esxsim python python3 bash tini"
    for shell in ("-c", "-lc"):  # the operator may ask for a login shell
        words = ("run", "--rm", *RESTRICTED, image, "bash", shell, f"id -u; command -v {names}")
        found = podman(*words).split()
        assert found[0] == "1000"
        assert len(found) == 1 + len(names.split())


def test_it_holds_no_tools_for_tests_and_no_compiler(image: str) -> None:
    names = ("pytest", "mypy", "ruff", "hypothesis", "pip", "setuptools", "kubernetes")
    script = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    words = ("run", "--rm", *LIMITS, image, "/opt/esxsim/bin/python3", "-Ic", script)
    assert podman(*words).strip() == "[]"
    assert podman("run", "--rm", *LIMITS, image, "sh", "-c", "command -v cc gcc; true") == ""


def test_a_run_s_report_comes_out_on_the_volume(head: Head) -> None:
    said = submitted(head, entrypoint())
    assert "succeeded" in said, said
    folder = head.results / "two-hosts"
    report = json.loads((folder / "report.json").read_text())
    assert report["digest"]
    assert (folder / "report.html").stat().st_uid == 1000
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fleet"] == "ray"


def test_the_digest_is_that_of_a_run_here(head: Head, tmp_path: Path) -> None:
    scenario = K8S / "base" / "rayjob" / "scenario.yaml"
    words = ["run", str(scenario), "--local", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    here = json.loads((tmp_path / "run" / "report.json").read_text())["digest"]
    there = json.loads((head.results / "two-hosts" / "report.json").read_text())["digest"]
    assert here == there


def test_wrong_input_is_told_as_such(head: Head) -> None:
    """The exit code is where cluster.k8s.outcome looks for it."""
    said = submitted(head, "esxsim run /scenario/missing.yaml --address auto --out /results/none")
    assert "failed" in said
    listed = podman("exec", head.name, "ray", "job", "list", "--address", "http://127.0.0.1:8265")
    message = re.search(r"Job entrypoint command failed with exit code (\d+)", listed + said)
    assert message is not None, listed
    assert message[1] == "2"


def test_both_commands_of_a_published_run_are_run(head: Head) -> None:
    said = submitted(
        head, "bash -c 'echo first && esxsim publish /results/two-hosts file:///tmp/p'"
    )
    assert "first" in said
    assert "Published" in said
    found = podman("exec", head.name, "ls", "/tmp/p")
    assert "manifest.json" in found.split()


def test_a_worker_takes_part(head: Head, worker: str) -> None:
    """With hosts on two nodes the results are the same."""
    command = entrypoint().replace("/results/two-hosts", "/results/two-nodes")
    said = submitted(head, f"{command} --hosts-per-actor 1")
    assert "succeeded" in said, said
    folder = head.results / "two-nodes"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["ray_cluster"]["nodes"] == 2
    there, here = (
        json.loads((head.results / name / "report.json").read_text())["digest"]
        for name in ("two-hosts", "two-nodes")
    )
    assert here == there


@pytest.mark.parametrize(
    ("port", "path", "without"),
    [
        (8265, "/api/jobs/", "401"),
        (8265, "/api/version", "401"),
        (8265, "/api/gcs_healthz", "200"),
        (52365, "/api/healthz", "200"),
        (8080, "/metrics", "200"),
        (44217, "/metrics", "200"),
        (44227, "/metrics", "200"),
    ],
)
def test_ports_ask_for_a_token_as_the_table_says(
    port: int, path: str, without: str, head: Head, token: str
) -> None:
    """Of README.md, "What listens where"."""
    address = podman("inspect", "--format", "{{.NetworkSettings.IPAddress}}", head.name).strip()
    command = ["curl", "--silent", "--max-time", "5", "--output", "/dev/null"]
    command += ["--write-out", "%{http_code}", f"http://{address}:{port}{path}"]

    def status(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        return done.stdout

    assert status() == without
    assert status("--header", f"Authorization: Bearer {token}") == "200"


def test_gcs_asks_for_a_token(head: Head) -> None:
    words = ("exec", "--env", "RAY_AUTH_TOKEN=wrong", head.name, "ray", "status", "--address")
    assert "InvalidAuthToken" in podman(*words, "127.0.0.1:6379", check=False)


def test_an_empty_token_starts_nothing(image: str) -> None:
    """So the example Secret is of no use as it is."""
    words = ("run", "--rm", *RESTRICTED, "--env", "HOME=/tmp", "--env", "RAY_AUTH_MODE=token")
    start = ("--env", "RAY_AUTH_TOKEN=", image, "ray", "start", "--head", "--block")
    done = subprocess.run([*PODMAN, *words, *start], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0


def test_the_token_shows_nowhere(head: Head, token: str) -> None:
    """Not in command lines, not in what Ray writes to /tmp, not in results."""
    every = 'for each in /proc/[0-9]*; do tr "\\0" " " < $each/cmdline; echo; done'
    lines = podman("exec", head.name, "sh", "-c", every)
    assert "ray" in lines
    assert token not in lines
    assert token not in podman("logs", head.name)
    grep = (
        "exec",
        head.name,
        "grep",
        "--recursive",
        "--files-with-matches",
        token,
        "/tmp",
        "/results",
    )
    assert podman(*grep, check=False).strip() == ""
