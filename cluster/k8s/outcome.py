"""PURE: what the status of a RayJob says: how far it is, and the exit code of its command.

KubeRay gives no exit code. Ray's message begins with it where the command failed, and KubeRay hands
that message on (ray/dashboard/modules/job/job_supervisor.py, Ray 2.60).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DONE, FAILED, WRONG = 0, 1, 2
"""Exit codes of `esxsim run`, so of ours."""
_ENDED = ("Complete", "Failed")
_REFUSED = "ValidationFailed"
"""What the operator says of a spec that it does not take."""
_EXIT = re.compile(r"Job entrypoint command failed with exit code (-?[0-9]{1,9})\b")
_MESSAGE_MAX = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a RayJob is."""

    words: str
    exit_code: int | None
    """None until it has ended."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.exit_code is not None


def read(job: Mapping[str, Any]) -> Outcome:
    """The outcome of a RayJob as the API server gives it."""
    status = job.get("status") or {}
    deployment = status.get("jobDeploymentStatus") or "waiting for the operator"
    state = status.get("jobStatus") or ""
    failed = status.get("failed") or 0
    words = f"{deployment}{f', {state}' if state else ''}"
    if deployment == _REFUSED:
        return Outcome(f"{words}: {_first_line(status)}", WRONG)
    if deployment not in _ENDED:
        return Outcome(f"{words}{f', {failed} tries failed' if failed else ''}", None)
    if state == "SUCCEEDED" and deployment == "Complete":
        return Outcome(words, DONE)
    reason = ": ".join(one for one in (status.get("reason"), _first_line(status)) if one)
    code = _exit_code(str(status.get("message") or ""))
    return Outcome(f"{words}{f': {reason}' if reason else ''}", code)


def _exit_code(message: str) -> int:
    """The command's, where it is one of ours; what else ended the job is a failure."""
    found = _EXIT.match(message)
    return WRONG if found is not None and int(found[1]) == WRONG else FAILED


def _first_line(status: Mapping[str, Any]) -> str:
    lines = str(status.get("message") or "").splitlines()
    return lines[0][:_MESSAGE_MAX] if lines else ""
