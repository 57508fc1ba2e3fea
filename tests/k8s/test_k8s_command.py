"""`esxsim k8s submit, wait, logs, fetch, delete` against an API server that plays KubeRay."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemas
from fake_api import TOKEN, FakeApi, kubeconfig, serving
from hypothesis import given
from hypothesis import strategies as st
from manifests import ROOT
from policies import broken
from scenario_files import changed, write
from typer.testing import CliRunner

from cluster.cli import app
from cluster.k8s import follow
from cluster.k8s.fetch import fetch_pod
from cluster.k8s.outcome import read

IMAGE = "registry.example/esxsim:0.1.0"
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
RETRYING = {"jobDeploymentStatus": "Retrying", "failed": 1}


def failed(code: int, **more: Any) -> dict[str, Any]:
    """As KubeRay hands on what Ray says of a command that failed."""
    tail = "last available logs (truncated to 20,000 chars):\nesxsim: what was wrong"
    message = f"Job entrypoint command failed with exit code {code}, {tail}"
    return {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED",
        "reason": "AppFailed",
        "message": message,
        **more,
    }


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    found = FakeApi()
    monkeypatch.setattr(follow, "POLL_S", 0.02)
    with serving(found) as address:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, address)))
        # The client read it on import; what it reads again is the default.
        from kubernetes.config import kube_config

        monkeypatch.setattr(
            kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
        )
        yield found


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["k8s", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert TOKEN not in done.stdout + done.stderr
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    return str(write(tmp_path, changed()))


# submit


def test_submit_makes_what_render_prints(api: FakeApi, scenario: str) -> None:
    code, printed, _ = run("submit", scenario, "--image", IMAGE)
    assert code == 0
    name = printed.strip()
    assert name.startswith("small-1-")
    made = {kind: found for (kind, _), found in api.objects.items()}
    assert set(made) == {"configmaps", "networkpolicies", "rayjobs"}
    assert {found["metadata"]["name"] for found in made.values()} == {name}
    posts = [path for method, path in api.requests if method == "POST"]
    assert all("/namespaces/esxsim/" in path and "fieldValidation=Strict" in path for path in posts)
    assert posts[-1].startswith("/apis/ray.io/v1/")  # what it needs is there before it


def test_submit_takes_back_what_it_made(api: FakeApi, scenario: str) -> None:
    why = 'rayjobs.ray.io is forbidden: User "me" cannot create resource'
    api.refuse["POST", "rayjobs"] = (403, why)
    code, printed, said = run("submit", scenario, "--image", IMAGE)
    assert (code, printed) == (1, "")
    assert why in said
    assert api.objects == {}


def test_submit_twice_says_what_to_do(api: FakeApi, scenario: str) -> None:
    assert run("submit", scenario, "--image", IMAGE)[0] == 0
    before = dict(api.objects)
    code, _, said = run("submit", scenario, "--image", IMAGE)
    assert code == 1
    assert "is there already" in said
    assert "esxsim k8s delete" in said
    assert api.objects == before


def test_submit_without_kuberay_says_so(api: FakeApi, scenario: str) -> None:
    api.refuse["POST", "rayjobs"] = (404, "the server could not find the requested resource")
    code, _, said = run("submit", scenario, "--image", IMAGE)
    assert code == 1
    assert "is KubeRay installed?" in said


@pytest.mark.parametrize(("last", "code"), [(DONE, 0), (failed(1), 1), (failed(2), 2)])
def test_submit_and_wait_shows_the_run_and_ends_as_it_does(
    last: dict[str, Any], code: int, api: FakeApi, scenario: str
) -> None:
    name = "mine"
    api.submitter(name, "mine-abc", b"one\ntwo\n")
    api.states = [last]
    found, printed, said = run("submit", scenario, "--image", IMAGE, "--name", name, "--wait")
    assert found == code
    assert printed == "mine\none\ntwo\n"
    assert last["jobDeploymentStatus"] in said


def test_a_wrong_scenario_makes_nothing(api: FakeApi, tmp_path: Path) -> None:
    path = write(tmp_path, changed(duration="1 parsec"))
    assert run("submit", str(path), "--image", IMAGE)[0] == 2
    assert api.requests == []


def test_out_is_for_waiting(api: FakeApi, scenario: str, tmp_path: Path) -> None:
    assert run("submit", scenario, "--image", IMAGE, "--out", "x")[0] == 2
    words = ("submit", scenario, "--image", IMAGE, "--wait", "--out", str(tmp_path))
    code, _, said = run(*words)
    assert code == 2
    assert "is there already" in said
    assert api.requests == []


# wait


@pytest.mark.parametrize(
    ("states", "code", "words"),
    [
        ([RUNNING, DONE], 0, "Complete, SUCCEEDED"),
        ([RUNNING, RETRYING, RUNNING, DONE], 0, "Retrying, 1 tries failed"),
        ([RUNNING, failed(1)], 1, "exit code 1"),
        ([RUNNING, failed(2)], 2, "exit code 2"),
        ([failed(137)], 1, "exit code 137"),
        ([{**DONE, "jobStatus": "STOPPED"}], 1, "STOPPED"),
        (
            [{"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "late"}],
            1,
            "DeadlineExceeded: late",
        ),
        ([{"jobDeploymentStatus": "ValidationFailed", "message": "bad spec"}], 2, "bad spec"),
    ],
)
def test_wait_ends_with_the_run_s_exit_code(
    states: list[dict[str, Any]], code: int, words: str, api: FakeApi
) -> None:
    api.job("mine")
    api.states = list(states)
    found, printed, said = run("wait", "mine")
    assert (found, printed) == (code, "")
    assert words in said
    assert said.startswith("waiting for the operator\n")


def test_wait_goes_on_when_the_watch_is_cut(api: FakeApi) -> None:
    api.job("mine", **RUNNING)
    api.states = [{"close": True}, RUNNING, {"close": True}, DONE]
    code, _, said = run("wait", "mine")
    assert code == 0
    assert said == "Running, RUNNING\nComplete, SUCCEEDED\n"


@pytest.mark.parametrize("how", ["forgotten", "abort"])
def test_wait_goes_on_when_the_watch_fails(how: str, api: FakeApi) -> None:
    api.job("mine", **RUNNING)
    api.states = [{how: True}, {how: True}, DONE]
    code, _, said = run("wait", "mine")
    assert code == 0, said
    assert said == "Running, RUNNING\nComplete, SUCCEEDED\n"


def test_a_watch_that_is_not_allowed_is_told(api: FakeApi) -> None:
    api.job("mine", **RUNNING)
    api.refuse["GET", "rayjobs?watch"] = (403, "cannot watch resource rayjobs")
    code, _, said = run("wait", "mine")
    assert code == 1
    assert "cannot watch" in said


def test_wait_needs_no_watch_for_a_run_that_has_ended(api: FakeApi) -> None:
    api.job("mine", **failed(2))
    assert run("wait", "mine")[0] == 2
    assert not [path for _, path in api.requests if "watch=" in path]


def test_wait_has_an_end(api: FakeApi) -> None:
    api.job("mine", **RUNNING)
    code, _, said = run("wait", "mine", "--timeout", "1")
    assert code == 1
    assert "has not ended after 1 s" in said


def test_waiting_for_a_run_that_is_deleted_ends(api: FakeApi) -> None:
    api.job("mine", **RUNNING)
    api.states = [{"deleted": True}]
    code, _, said = run("wait", "mine")
    assert code == 1
    assert "was deleted" in said


def test_no_such_run(api: FakeApi) -> None:
    for words in (("wait", "mine"), ("logs", "mine"), ("logs", "mine", "-f"), ("delete", "mine")):
        code, _, said = run(*words)
        assert code == 1
        assert "mine" in said
        assert said.count("\n") == 1


# logs


def test_logs_are_those_of_the_last_try(api: FakeApi) -> None:
    api.job("mine", **RUNNING)
    api.submitter("mine", "mine-2", b"second\n", at=2)
    api.submitter("mine", "mine-1", b"first\n", at=1)
    api.submitter("mine", "mine-3", b"", at=3, phase="Pending")
    api.submitter("other", "other-1", b"other\n", at=9)
    assert run("logs", "mine") == (0, "second\n", "")


def test_logs_follow_over_all_tries(api: FakeApi) -> None:
    """The first try's pod is heard, then the run is tried again and its new pod heard, too."""
    api.job("mine", **RUNNING)
    api.submitter("mine", "mine-1", b"first\n", at=1)
    api.submitter("mine", "mine-2", b"second\n", at=2)
    api.states = [RETRYING, DONE]
    assert run("logs", "mine", "--follow") == (0, "first\nsecond\n", "")


def test_logs_that_are_cut_go_on_where_they_were(api: FakeApi) -> None:
    log = b"".join(b"line %d\n" % n for n in range(100))
    api.job("mine", **RUNNING)
    api.submitter("mine", "mine-1", log)
    api.cuts, api.states = 2, [DONE]
    assert run("logs", "mine", "--follow") == (0, log.decode(), "")
    assert api.cuts == 0


def test_logs_of_a_run_that_has_said_nothing(api: FakeApi) -> None:
    api.job("mine", jobDeploymentStatus="Initializing")
    code, _, said = run("logs", "mine")
    assert code == 1
    assert "Initializing" in said


def test_what_a_run_says_is_passed_on_as_it_is(api: FakeApi) -> None:
    api.job("mine", **DONE)
    api.submitter("mine", "mine-1", "Größe\x1b[0m\n".encode(), phase="Succeeded")
    assert run("logs", "mine")[1] == "Größe\x1b[0m\n"


# fetch


def archive(*entries: tuple[str, bytes], **links: str) -> bytes:
    """A tar archive of files, and of links (name -> target)."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return held.getvalue()


SOURCE = ("--image", IMAGE, "--results-claim", "esxsim-results")
RESULTS = (("./report.json", b"{}"), ("./points/a/hosts.parquet", bytes(range(256)) * 50))


def test_fetch_copies_the_results_and_leaves_no_pod(api: FakeApi, tmp_path: Path) -> None:
    api.output = lambda words: (archive(*RESULTS), b"", 0)
    out = tmp_path / "here" / "mine"
    code, printed, _ = run("fetch", "mine", *SOURCE, "--out", str(out))
    assert code == 0
    assert str(out) in printed
    assert (out / "report.json").read_bytes() == b"{}"
    assert (out / "points/a/hosts.parquet").read_bytes() == RESULTS[1][1]
    assert api.named("pods") == []
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    ((tar, *words),) = api.commands
    assert tar == "tar"
    assert {"--exclude=./checkpoints", "/results/mine"} <= set(words)


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ((b"", b"tar: /results/mine: No such file", 2), "No such file"),
        ((archive(*RESULTS)[:700], b"", 0), "no whole archive"),
        ((archive(*RESULTS), b"", -1), "failed"),
        ((archive(*RESULTS), b"tar: file changed", 1), "file changed"),
        ((archive(("../outside", b"x")), b"", 0), "no whole archive"),
        ((archive(("/etc/outside", b"x"), away="/etc"), b"", 0), "no whole archive"),
    ],
)
def test_what_is_not_whole_does_not_appear(
    output: tuple[bytes, bytes, int], wanted: str, api: FakeApi, tmp_path: Path
) -> None:
    api.output = lambda words: output
    out = tmp_path / "here" / "mine"
    code, _, said = run("fetch", "mine", *SOURCE, "--out", str(out))
    assert code == 1
    assert wanted in said
    assert api.named("pods") == []
    assert not out.exists()
    assert not (tmp_path / "here" / "outside").exists()
    assert list(out.parent.iterdir()) == []


def test_fetch_knows_the_run_s_image_and_volume(
    api: FakeApi, scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("submit", scenario, "--image", IMAGE, "--name", "mine", "--results-claim", "kept.here")
    api.output = lambda words: (archive(*RESULTS), b"", 0)
    assert run("fetch", "mine")[0] == 0
    assert (tmp_path / "runs" / "mine" / "report.json").exists()
    (pod,) = [body for resource, body in api.made if resource == "pods"]
    assert pod["spec"]["containers"][0]["image"] == IMAGE
    assert {"claimName": "kept.here"} in [
        each.get("persistentVolumeClaim") for each in pod["spec"]["volumes"]
    ]


def test_fetch_of_a_run_whose_job_is_gone_needs_to_be_told(api: FakeApi, tmp_path: Path) -> None:
    code, _, said = run("fetch", "mine", "--out", str(tmp_path / "x"))
    assert code == 1
    assert "name --image and --results-claim" in said
    api.job("mine")
    code, _, said = run("fetch", "mine", "--out", str(tmp_path / "x"))
    assert code == 1
    assert "has no results" in said


def test_fetch_overwrites_nothing(api: FakeApi, tmp_path: Path) -> None:
    code, _, said = run("fetch", "mine", *SOURCE, "--out", str(tmp_path))
    assert code == 2
    assert "is there already" in said
    assert api.requests == []


def test_a_pod_that_does_not_start_says_why(api: FakeApi, tmp_path: Path) -> None:
    api.pod_phase = "Failed"
    code, _, said = run("fetch", "mine", *SOURCE, "--out", str(tmp_path / "x"))
    assert code == 1
    assert "does not run" in said
    assert api.named("pods") == []


def test_the_pod_that_fetches_is_let_in() -> None:
    pod = fetch_pod("mine", "esxsim", IMAGE, "esxsim-results")
    assert schemas.faults(pod) == []
    assert broken(pod) == []
    assert pod["spec"]["containers"][0]["volumeMounts"][1]["readOnly"] is True
    assert pod["spec"]["activeDeadlineSeconds"] > 0


# delete


def test_delete_takes_a_run_s_objects(api: FakeApi, scenario: str) -> None:
    name = run("submit", scenario, "--image", IMAGE)[1].strip()
    api.job("other", **RUNNING)
    code, printed, _ = run("delete", name)
    assert code == 0
    assert "RayJob, NetworkPolicy, ConfigMap" in printed
    assert list(api.objects) == [("rayjobs", "other")]


def test_delete_takes_what_is_left(api: FakeApi) -> None:
    api.add("configmaps", {"metadata": {"name": "mine"}})
    assert run("delete", "mine")[:2] == (0, "deleted        ConfigMap\n")
    assert api.objects == {}


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.dictionaries(
            st.sampled_from(("status", "jobDeploymentStatus", "jobStatus", "message", "failed")),
            inner,
        ),
    )
)
def test_any_status_is_read(found: Any) -> None:
    """An operator of another version may say what it likes; only Complete and SUCCEEDED is 0."""
    status = found if isinstance(found, dict) else {}
    outcome = read({"status": status})
    assert outcome.exit_code in (None, 0, 1, 2)
    good = status.get("jobDeploymentStatus"), status.get("jobStatus")
    assert (outcome.exit_code == 0) == (good == ("Complete", "SUCCEEDED"))


# The cluster cannot be asked


def test_an_api_server_that_is_not_there(api: FakeApi) -> None:
    code, _, said = run("wait", "mine", "--context", "nowhere")
    assert code == 1
    assert "RayJob mine" in said


def test_a_context_that_is_not_there(api: FakeApi) -> None:
    code, _, said = run("wait", "mine", "--context", "missing")
    assert code == 1
    assert "no Kubernetes cluster" in said


def test_a_token_that_is_refused_is_not_shown(api: FakeApi, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(path.read_text().replace(TOKEN, "another-token"))
    code, _, said = run("wait", "mine")
    assert code == 1
    assert "Unauthorized (401)" in said
    assert "another-token" not in said


def test_the_client_is_imported_by_those_who_need_it() -> None:
    """Neither help nor any other command takes the time for it."""
    script = (
        "import sys; from cluster.cli import app; import cluster.k8s.command;"
        "sys.exit(bool({'kubernetes', 'fsspec', 'numba', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_render_needs_no_client(monkeypatch: pytest.MonkeyPatch, scenario: str) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert run("render", scenario, "--image", IMAGE)[0] == 0
    code, _, said = run("wait", "mine")
    assert code == 2
    assert "pip install 'esxsim[k8s]'" in said
