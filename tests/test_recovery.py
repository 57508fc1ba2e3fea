"""How often a run is begun again, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from cluster import recovery
from cluster.coordinator import Outcome
from cluster.errors import ClusterError, LostError, NoClusterError

DONE = Outcome({}, stopped=False)


@dataclass
class Standing:
    epoch: int


@dataclass
class Found:
    standing: Standing


class Script:
    """Attempts that fail as told, each having got to an epoch whose checkpoint is there then."""

    def __init__(self, *attempts: tuple[Exception | None, int]) -> None:
        self.attempts = list(attempts)
        self.begun: list[tuple[int, int]] = []
        self.said: list[str] = []
        self.slept: list[float] = []
        self.at = 0

    def attempt(self, start: Any, restarts: int) -> Outcome:
        self.begun.append((0 if start is None else start.standing.epoch, restarts))
        error, self.at = self.attempts.pop(0)
        if error is not None:
            raise error
        return DONE

    def run(self, monkeypatch: pytest.MonkeyPatch) -> Outcome:
        monkeypatch.setattr(recovery.time, "sleep", self.slept.append)
        find: Any = lambda: Found(Standing(self.at)) if self.at else None  # noqa: E731
        attempt: Any = self.attempt
        return recovery.run(attempt, None, find, self.said.append)


LOST = LostError("a process of the run was lost: HostActor on 10.0.0.2 died")


def test_it_goes_on_from_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script((LOST, 0), (LOST, 7), (LOST, 9), (None, 20))
    assert script.run(monkeypatch) == DONE
    assert script.begun == [(0, 0), (0, 1), (7, 2), (9, 3)]
    assert script.said[1] == f"{LOST}: going on from epoch 7"


def test_a_run_that_gets_on_is_begun_as_often_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(*((LOST, epoch) for epoch in range(1, 50)), (None, 50))
    assert script.run(monkeypatch) == DONE and len(script.begun) == 50
    assert set(script.slept) == {1.0}


def test_a_host_that_always_dies_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(*[(LOST, 3)] * 20)
    with pytest.raises(ClusterError, match=r"HostActor on .* died .5 times in a row after epoch 3"):
        script.run(monkeypatch)
    assert script.begun == [(0, 0), *[(3, at) for at in range(1, recovery.TRIES + 1)]]
    assert script.slept == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_cluster_that_never_was_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script((NoClusterError("no Ray cluster"), 0))
    with pytest.raises(NoClusterError):
        script.run(monkeypatch)
    assert len(script.begun) == 1


def test_a_cluster_that_was_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script((LOST, 3), (NoClusterError("no Ray cluster"), 3), (None, 9))
    assert script.run(monkeypatch) == DONE and script.begun[-1] == (3, 2)


@pytest.mark.parametrize("error", [ClusterError("it did not stop"), ValueError("a bug")])
def test_other_errors_end_the_run(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)):
        Script((error, 5)).run(monkeypatch)
