"""Watching a run on Kubernetes: its changes of state, and what it says, over all of its tries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from cluster.errors import ClusterError
from cluster.k8s.api import Cluster, CutError, MissingError
from cluster.k8s.outcome import read
from cluster.k8s.pods import Values

WATCH_S = 60
"""A watch is asked for anew after this, so that one that a proxy has cut is noticed."""
POLL_S = 2.0
"""How often a pod is looked for that is still to come."""
_STARTED = ("Running", "Succeeded", "Failed")


def wait(cluster: Cluster, name: str, timeout_s: float | None, tell: Callable[[str], None]) -> int:
    """Until the RayJob has ended; the exit code. `tell` hears each change. Raises ClusterError,
    also when `timeout_s` is over."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    said = ""
    while True:
        job = cluster.job(name)
        left = WATCH_S if deadline is None else min(WATCH_S, deadline - time.monotonic())
        changes = iter(cluster.job_changes(name, job, max(int(left), 1)))
        found: Values | None = job
        while found is not None:
            outcome = read(found)
            if outcome.words != said:
                said = outcome.words
                tell(said)
            if outcome.exit_code is not None:
                return outcome.exit_code
            found = _next(changes)
        if deadline is not None and time.monotonic() >= deadline:
            raise ClusterError(f"{name} has not ended after {timeout_s:g} s: {said}; it goes on")
        time.sleep(POLL_S)  # or we would ask without end where each watch is cut at once


def _next(changes: Iterator[Values]) -> Values | None:
    """The next change; None where the watch is over, or was cut: who asks anew hears why."""
    try:
        return next(changes, None)
    except CutError:
        return None


def logs(cluster: Cluster, name: str, *, follow: bool, write: Callable[[bytes], None]) -> None:
    """What a run has said; with `follow`, what it says until it has ended, whatever its tries.

    Without, it is what the last of them said. Raises ClusterError.
    """
    if not follow:
        pods = [one for one in cluster.submitters(name) if _phase(one) in _STARTED]
        if not pods:
            raise ClusterError(f"{name} has no pod that says anything: {_state(cluster, name)}")
        for piece in cluster.log(_name(pods[-1]), follow=False):
            write(piece)
        return
    heard: dict[str, int] = {}
    over: list[str] = []
    while True:
        ended = read(cluster.job(name)).ended  # before the pods, or the last one might be missed
        left = [
            pod
            for one in cluster.submitters(name)
            if (pod := _name(one)) not in over and _phase(one) in _STARTED
        ]
        for pod in left:
            if _hear(cluster, pod, heard, write):
                over.append(pod)
        if ended and all(pod in over for pod in left):
            return
        if not left or left[-1] not in over:
            time.sleep(POLL_S)


def _hear(
    cluster: Cluster, pod: str, heard: dict[str, int], write: Callable[[bytes], None]
) -> bool:
    """Pass on what a pod says until it ends, after the bytes of it that were `heard` already.
    Whether it is over; not where the connection was cut, as proxies do with what is silent."""
    skip = heard.get(pod, 0)
    try:
        for piece in cluster.log(pod, follow=True):
            fresh = piece[skip:]
            skip -= len(piece) - len(fresh)
            heard[pod] = heard.get(pod, 0) + len(fresh)
            write(fresh)
    except MissingError:
        return True  # the operator took it away for another try
    except CutError:
        return False
    return True


def until_running(cluster: Cluster, pod: str, timeout_s: float) -> None:
    """Until a pod runs. Raises ClusterError with what keeps it."""
    deadline = time.monotonic() + timeout_s
    while _phase(found := cluster.pod(pod)) != "Running":
        if _phase(found) in _STARTED or time.monotonic() > deadline:
            raise ClusterError(f"pod {pod} does not run: {_why(found)}")
        time.sleep(POLL_S)


def _state(cluster: Cluster, name: str) -> str:
    return read(cluster.job(name)).words


def _name(pod: Values) -> str:
    return str(pod["metadata"]["name"])


def _phase(pod: Values) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def _why(pod: Values) -> str:
    """What Kubernetes says of a pod that does not run."""
    status = pod.get("status") or {}
    states = [one.get("state") or {} for one in status.get("containerStatuses") or ()]
    waits = [one["waiting"] for one in states if one.get("waiting")]
    unmet = [one for one in status.get("conditions") or () if one.get("status") == "False"]
    for found in (*waits, *unmet):
        if found.get("message") or found.get("reason"):
            return f"{found.get('reason') or ''} {found.get('message') or ''}".strip()
    return _phase(pod)
