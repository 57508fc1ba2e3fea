"""What a job runs on the head of the cluster: `python -m cluster.jobs.head`.

Started by the Ray Jobs API through a shell, in the folder that `upload` packed. It says where the
results go, checks that both sides are the same esxsim, and is `esxsim run` from there on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event
from types import FrameType

from cluster import __version__
from cluster.cli import app
from cluster.errors import RefusedError
from cluster.jobs import bundle

RESULTS = "ESXSIM_RESULTS"
"""Folder on the head that keeps the results of jobs; default: ~/.esxsim/runs."""
KEEP_S = 3600.0
"""How long a bundle is kept for somebody who fetches it, and never says that he is done."""


def results(name: str) -> Path:
    """Where the results of a job lie on the head."""
    root = os.environ.get(RESULTS)
    return (Path(root) if root else Path.home() / ".esxsim" / "runs") / name


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="cluster.jobs.head")
    parser.add_argument("--esxsim", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("what", choices=("run", "pack"))
    parser.add_argument("run", nargs="*")
    given = parser.parse_args(arguments)
    if given.esxsim != __version__:
        return _fail(
            f"the head has esxsim {__version__}, and the job was submitted by {given.esxsim}: "
            "install the same on both",
            2,
        )
    if given.what == "pack":
        return _pack(given.name)
    return _run(results(given.name), given.run)


def _run(out: Path, arguments: Sequence[str]) -> int:
    print(f"esxsim: results go to {out} on the head", file=sys.stderr, flush=True)
    try:
        app(["run", *arguments, "--out", str(out), "--address", "auto"], standalone_mode=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def _pack(name: str) -> int:
    """Pack the results to where the dashboard gives them out, until stopped; then delete that."""
    folder = results(name)
    if not (folder / "manifest.json").exists() and not (folder / "study.json").exists():
        return _fail(f"{folder} on the head holds no results", 1)
    try:
        logs = _logs()
    except RefusedError as error:
        return _fail(str(error), 1)
    done = Event()

    def end(number: int, frame: FrameType | None) -> None:
        done.set()

    signal.signal(signal.SIGTERM, end)
    target = logs / bundle.BUNDLES / f"{name}-{os.getpid()}.tar.gz"
    try:
        target.parent.mkdir(exist_ok=True)
        told = bundle.pack(folder, target)
        print(f"{bundle.PACKED}{json.dumps(asdict(told))}", flush=True)
        done.wait(KEEP_S)
    except OSError as error:
        return _fail(f"the results cannot be packed: {error}", 1)
    finally:
        target.unlink(missing_ok=True)
    return 0


def _logs() -> Path:
    """The folder of Ray's logs: that of our own output, which Ray writes to a file there."""
    if not stat.S_ISREG(os.fstat(1).st_mode):
        raise RefusedError("this is for Ray to start: its output must be a log of Ray")
    return Path(os.readlink("/proc/self/fd/1")).parent


def _fail(message: str, code: int) -> int:
    print(f"esxsim: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
