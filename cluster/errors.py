"""Which errors mean wrong input (exit code 2), which a failed run (1); others are bugs."""

from __future__ import annotations

from cluster.tables import OutputError, WriteError
from cluster.trace import TraceError
from cluster.yaml_input import InputError
from hostsim.invariants import BrokenInvariantError


class ClusterError(Exception):
    """Ray cannot be started or reached, or lost a process of the run."""


class RefusedError(Exception):
    """What the user said of a Ray cluster is wrong: its address, a token, a version, a job."""


class StoppedError(Exception):
    """The user stopped the command before its run began."""


class StudyError(Exception):
    """Some runs of a study failed, or it found no answer; the others are kept."""


def exit_code(error: Exception) -> int | None:
    """The exit code of the command for `error`; None for a bug, which keeps its traceback."""
    if isinstance(error, InputError | TraceError | OutputError | RefusedError):
        return 2
    if isinstance(
        error, ClusterError | StoppedError | StudyError | WriteError | BrokenInvariantError
    ):
        return 1
    return None
