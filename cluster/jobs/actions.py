"""What the commands do: a job's life as its user sees it, from outside the cluster."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import __version__
from cluster.errors import ClusterError, RefusedError
from cluster.jobs import bundle, upload
from cluster.jobs.client import Dashboard
from cluster.log import LOG

GOES_ON = ("--continue",)
"""What makes `esxsim run` on the head go on with the results it finds under the job's name."""
NOT_THERE = (
    "esxsim is not installed where the head of the cluster runs jobs: install it, with its lock "
    "file, in the Python environment that `python` is on the head's PATH, and on every node"
)
STOP_S = 120
"""How long the head lets a job write what it has before it is killed, in seconds: a barrier takes
up to 60 (cluster.actors.STOP_S), and the tables come after it."""
LOST_MAX = 60
"""Times in a row, a second each at least, that the head may not answer while a job is waited for: a
tunnel that breaks, or a head that is restarted, is no failure of the job."""
_POLL_S = 1.0
_FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_NO_MODULE = "No module named 'cluster"
TAIL = "last available logs (truncated to 20,000 chars):\n"


@dataclass(frozen=True, slots=True)
class Submission:
    """What `submit` is asked for. name: of the results on the head; None: the job's id."""

    scenario: Path
    data_root: Path
    seed: int | None
    name: str | None
    cpus: int | None = None
    """That the cluster's autoscaler is to bring first; a sweep's runs ask for theirs themselves."""


def submit(options: Submission, connect: Callable[[], Dashboard]) -> str:
    """Check the scenario, take it to the cluster, start the job; its id.

    connect: called once the scenario is known to be valid. Raises what `cluster.errors` knows.
    """
    checked = upload.check(options.scenario, options.data_root, options.seed)
    for warning in checked.warnings:
        LOG.warning("%s", warning)
    board = connect()
    _same_ray(board)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", checked.name).strip("-._") or "run"
    job = f"{(options.name or slug)[:80]}-{secrets.token_hex(4)}"
    name = options.name or job
    for other in board.jobs():
        if (other.metadata or {}).get("run") == name and _status(other) not in _FINAL:
            raise RefusedError(f"--name: job {other.submission_id} is writing to {name}")
    arguments = [f"{upload.INPUT}/{options.scenario.name}", "--data", upload.DATA, *GOES_ON]
    if options.seed is not None:
        arguments += ["--seed", str(options.seed)]
    if options.cpus is not None:
        arguments += ["--cpus", str(options.cpus)]
    with tempfile.TemporaryDirectory(prefix="esxsim-") as scratch:
        package = Path(scratch) / "job.zip"
        upload.pack(checked, options.data_root, package)
        how = {
            "working_dir": str(package),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
        }
        metadata = {"esxsim": __version__, "run": name, "scenario": checked.name}
        board.submit(_on_head("run", name, arguments), job, metadata, how)
    return job


def _on_head(what: str, name: str, arguments: list[str]) -> str:
    """The line that the head's shell runs."""
    module = ["python", "-m", "cluster.jobs.head"]
    return shlex.join([*module, "--esxsim", __version__, "--name", name, "--", what, *arguments])


def _same_ray(board: Dashboard) -> None:
    """Ray promises its Jobs API within a minor version; the lock file names one."""
    import ray

    theirs, ours = (one.split(".")[:2] for one in (board.ray_version, ray.__version__))
    if theirs != ours:
        raise RefusedError(
            f"{board.address} runs Ray {board.ray_version}, and this is Ray {ray.__version__}: "
            "install the same on both"
        )


def _status(info: Any) -> str:
    return str(getattr(info.status, "value", info.status))


def wait(board: Dashboard, job: str) -> tuple[int, str | None]:
    """Wait for the end of a job; the exit code that it had, and what to say of it."""
    info, lost = board.info(job), 0
    while _status(info) not in _FINAL:
        time.sleep(_POLL_S)
        try:
            info, lost = board.info(job), 0
        except ClusterError:
            lost += 1
            if lost > LOST_MAX:
                raise
    return ending(info, job)


def ending(info: Any, job: str) -> tuple[int, str | None]:
    """Exit code of a job that has ended, 0 to 2, and why where it is not 0."""
    status, code = _status(info), info.driver_exit_code
    if status == "SUCCEEDED":
        return 0, None
    if status == "STOPPED":
        return 1, f"job {job} was stopped: esxsim fetch brings what it has"
    said = info.message or ""
    if code == 127 or (code == 1 and _NO_MODULE in said):
        return 2, f"job {job}: {NOT_THERE}"
    _, found, tail = said.partition(TAIL)
    lines = (tail if found else said).rstrip().splitlines()
    how = f"failed with exit code {code}" if code is not None else "failed before it ran"
    if code is not None and code < 0:
        how = f"was killed by signal {-code}"
    return code if code in (1, 2) else 1, "\n  ".join([f"job {job} {how}:", *lines])


def stop(board: Dashboard, job: str) -> str:
    """End a job at its next barrier; what to say of it."""
    if not board.stop(job):
        return f"job {job} had ended already: {_status(board.info(job)).lower()}"
    for _ in range(round(2 * STOP_S / _POLL_S)):
        if _status(board.info(job)) in _FINAL:
            return f"job {job} is stopped"
        time.sleep(_POLL_S)
    raise ClusterError(f"job {job} was told to stop, and still runs")


def fetch(board: Dashboard, job: str, out: Path | None) -> Path:
    """Bring the results of a job that has ended; the folder they are in.

    A second job packs them where the dashboard gives out logs, and deletes that once we have it.
    """
    info = board.info(job)
    name = (info.metadata or {}).get("run")
    if name is None or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RefusedError(f"job {job} is none of esxsim submit: it has no results to fetch")
    if _status(info) not in _FINAL:
        raise ClusterError(f"job {job} has not ended: esxsim wait {job}, or esxsim stop {job}")
    out = Path("runs") / name if out is None else out
    bundle.check_target(out)
    packing = f"{job[:100]}-fetch-{secrets.token_hex(4)}"
    board.submit(_on_head("pack", name, []), packing, {"esxsim": __version__}, {})
    try:
        told, node = _packed(board, packing, name)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".esxsim-", dir=out.parent) as scratch:
            packed = Path(scratch) / "results.tar.gz"
            board.download(node, f"{bundle.BUNDLES}/{told.file}", packed, told.size)
            bundle.unpack(packed, told, out)
    finally:
        board.stop(packing)
    return out


def _packed(board: Dashboard, packing: str, name: str) -> tuple[bundle.Bundle, str]:
    """What the head says it packed, and the node where it did."""
    while True:
        info = board.info(packing)
        for line in board.logs(packing).splitlines():
            if line.startswith(bundle.PACKED):
                return _told(line.removeprefix(bundle.PACKED), name), str(info.driver_node_id)
        if _status(info) in _FINAL:
            _, why = ending(info, packing)
            raise ClusterError(f"the head cannot pack the results: {why}")
        time.sleep(_POLL_S / 4)


def _told(text: str, name: str) -> bundle.Bundle:
    try:
        told = bundle.Bundle(**json.loads(text))
    except (ValueError, TypeError):
        raise ClusterError("the head says something else than what it packed") from None
    if not re.fullmatch(re.escape(name) + r"-[0-9]+\.tar\.gz", str(told.file)):
        raise ClusterError(f"the head packed another file than it was asked for: {told.file!a}")
    return told
