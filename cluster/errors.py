"""Which errors mean wrong input (exit code 2), which a failed run (1); others are bugs."""

from __future__ import annotations

from typing import Any

from cluster.files import OutputError, WriteError
from cluster.trace import TraceError
from cluster.yaml_input import InputError
from hostsim.invariants import BrokenInvariantError


class ClusterError(Exception):
    """Ray cannot be started or reached, or lost a process of the run."""


class RefusedError(Exception):
    """What the user said of a Ray cluster is wrong: its address, a token, a version, a job."""


class NoClusterError(ClusterError):
    """There is no cluster of Ray to run on."""


class LostError(ClusterError):
    """A process of the run was lost: it can go on from its last checkpoint."""


class StoppedError(Exception):
    """The user stopped the command before its run began."""


class StudyError(Exception):
    """Some runs of a study failed, or it found no answer; the others are kept."""


class BrokenHostError(BrokenInvariantError):
    """An invariant does not hold on one host, at the end of an epoch."""

    def __init__(self, number: int, host: str, epoch: int, what: str) -> None:
        super().__init__(number, host, epoch, what)
        self.host, self.epoch = host, epoch
        self._said = f"host {number}, epoch {epoch}: {what}"

    def __str__(self) -> str:
        return self._said


def exit_code(error: Exception) -> int | None:
    """The exit code of the command for `error`; None for a bug, which keeps its traceback."""
    if isinstance(error, InputError | TraceError | OutputError | RefusedError):
        return 2
    if isinstance(
        error, ClusterError | StoppedError | StudyError | WriteError | BrokenInvariantError
    ):
        return 1
    return None


def where(error: Exception) -> dict[str, Any]:
    """Host and epoch of an error, where it knows them."""
    known = {name: getattr(error, name, None) for name in ("host", "epoch")}
    return {name: value for name, value in known.items() if value is not None}
