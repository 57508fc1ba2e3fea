"""Where `esxsim top` looks: a run's folder, or the Ray cluster that it runs on. Only reads."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster import readback
from cluster.coordinator import Progress
from cluster.files import OutputError
from cluster.watch.live import FILE

QUIET_S = 15.0
"""News older than this are told as such: most barriers take a second."""
GONE_S = 60.0
"""A run whose process is gone may be taken up again for so long."""
RUNS, QUIET, LOST, ENDED = "runs", "quiet", "lost", "ended"
"""A run goes on; has told nothing for a while; has lost its coordinator; is over."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a run."""

    where: str
    run: str
    state: str
    progress: Progress | None = None
    """None before the first barrier, and of a run that has ended."""
    age_s: float = 0.0
    """How old the progress is."""
    since: str = ""
    """When it was told, by the clock on the wall here."""
    reason: str | None = None
    """Why it ended, or what is known of that, where that was not as it should."""
    report: dict[str, Any] | None = None
    """Of a run that has ended."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.state == ENDED or (self.state == LOST and self.age_s > GONE_S)


@dataclass(frozen=True, slots=True)
class _Told:
    """progress.json. node and pid: where the coordinator's process was."""

    pid: int
    node: str
    progress: Progress


def into(folder: Path) -> Look:
    """Look at a run's folder. Raises OutputError."""
    manifest = readback.json_object(folder / "manifest.json")
    if manifest is None or "esxsim" not in manifest:
        raise OutputError(f"{folder} is not a run folder: it has no manifest.json of esxsim")
    where, reason = str(folder), manifest.get("reason")
    age_s, since = _age(folder / FILE)
    told = _told(folder / FILE)
    if manifest.get("partial") is False or told is None:
        report = readback.report(folder / "report.json")
        if report is not None:
            run = f"{report['scenario']['name']}, seed {report['scenario']['seed']}"
            return Look(where, run, ENDED, reason=reason, report=report)
    if told is None:  # before the first barrier
        age_s, since = _age(folder / "manifest.json")
        state = RUNS if age_s < QUIET_S else QUIET
        return Look(where, folder.name, state, age_s=age_s, since=since)
    run = told.progress.view.run if told.progress.view is not None else folder.name
    if reason is not None and reason.startswith("the run failed"):
        return Look(where, run, ENDED, told.progress, age_s, since, reason)
    return Look(where, run, _state(told, age_s), told.progress, age_s, since)


def _state(told: _Told, age_s: float) -> str:
    if told.node == platform.node():
        return RUNS if _is_there(told.pid) else LOST
    return RUNS if age_s < QUIET_S else QUIET


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _told(path: Path) -> _Told | None:
    """progress.json; None where there is none."""
    try:
        return TypeAdapter(_Told).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the file"
        raise OutputError(f"cannot read {path}: {at}: {first['msg']}") from error
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def _age(path: Path) -> tuple[float, str]:
    """How old a file is, and when it was written. The clocks of two machines may disagree."""
    try:
        written_s = path.stat().st_mtime
    except OSError:
        return 0.0, ""
    return max(0.0, time.time() - written_s), _clock(written_s)


def _clock(moment_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_s))


class OnCluster:
    """Looks at a run by the name of its coordinator. Within `attach.connected`."""

    def __init__(self, address: str, name: str) -> None:
        self._address, self._name = address, name
        self._seen: Progress | None = None
        self._seen_s = time.monotonic()

    def __call__(self) -> Look:
        """Look. Raises ClusterError."""
        from cluster.watch import attach  # takes a second to import, and folders do without

        progress, goes_on = attach.progress(self._name)
        now_s = time.monotonic()
        if goes_on and progress != self._seen:
            self._seen, self._seen_s = progress, now_s
        age_s = now_s - self._seen_s
        reason = None
        if goes_on:
            state = RUNS if age_s < QUIET_S else QUIET
        elif self._seen is not None and self._seen.epoch == self._seen.epochs:
            state = ENDED
        else:  # the last looks may have missed its end
            state, reason = LOST, "it has ended, or was lost"
        since = _clock(time.time() - age_s)
        return Look(self._address, self._name, state, self._seen, age_s, since, reason)
