"""Compiling in two processes: what the child makes is used, and no child is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
from crowded_hosts import SECOND, crowded_host

from hostsim import beside, dispatch, jit, snapshot

TESTS = Path(__file__).parent
COMPILED = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="runs uncompiled")
DURATION_MS = 12 * SECOND

RUN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from crowded_hosts import crowded_host
from hostsim import beside, snapshot
from hostsim.host import warm
os.cpu_count = lambda: 2
children = []
start = beside._start
beside._start = lambda: children.append(start()) or children[0]
warm(lambda text: None)
host = crowded_host(frames=200, vms=(1, 2))
host.advance(int(sys.argv[2]))
hits = [sum(one.stats.cache_hits.values()) for one in beside.APART]
print([child.returncode for child in children], hits, snapshot.digest(host))
"""


def said(cache: Path) -> str:
    """By a process with that cache: how children ended, what was loaded, and a digest."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(TESTS), str(DURATION_MS)],
        env=os.environ | {jit.CACHE_VARIABLE: str(cache)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@COMPILED
def test_the_digest_is_the_same_whoever_compiled(tmp_path: Path) -> None:
    """All that the child makes is used: types that parts declare are those of a step's calls. With
    a part missing, as after a child that failed, the process compiles it."""
    host = crowded_host(frames=200, vms=(1, 2))
    host.advance(DURATION_MS)
    digest = snapshot.digest(host)
    assert said(tmp_path) == f"[0] [1, 1] {digest}"
    assert said(tmp_path) == f"[] [1, 1] {digest}"
    lost = list(tmp_path.glob("*/balloon.run-*"))
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    assert said(tmp_path) == f"[] [1, 0] {digest}"
    assert said(tmp_path) == f"[] [1, 1] {digest}"


@COMPILED
def test_callers_of_what_lies_apart_would_not_know_that_it_returns_something() -> None:
    def returns(much: int) -> int:
        return much

    with pytest.raises(AssertionError):
        beside.declared(dispatch.Apart(returns, jit._OPTIONS))


def child(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script instead of Python."""
    path = folder / "child"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def waits() -> list[bool]:
    return [getattr(one, "wait", None) is not None for one in beside.APART]


@COMPILED
@pytest.mark.parametrize("script", ["exit 0", "exit 1", "kill -9 $$"])
def test_a_child_that_fails_holds_nothing_up(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(tmp_path, script, monkeypatch)
    with beside.helped():
        assert waits() == [True, True]
        for one in beside.APART:
            one.wait()
    assert waits() == [False, False]


def test_a_child_that_is_not_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(sys, "executable", os.devnull)
    assert beside._start() is None
    with beside.helped():
        assert waits() == [False, False]


@pytest.mark.parametrize(("cpus", "caches"), [(1, True), (None, True), (2, False)])
def test_no_child_without_a_second_processor_or_a_cache(
    cpus: int | None, caches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(beside, "CACHES", caches)
    monkeypatch.setattr(beside, "_start", lambda: pytest.fail("a child"))
    with beside.helped():
        assert waits() == [False, False]


@COMPILED
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_child_is_gone_whatever_happens(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(tmp_path, "exec sleep 600", monkeypatch)
    started: list[Any] = []
    start = beside._start
    monkeypatch.setattr(beside, "_start", lambda: (started.append(start()), started[0])[1])
    with pytest.raises(error), beside.helped():
        assert started[0].poll() is None
        raise error
    assert started[0].returncode == -9 and waits() == [False, False]


@COMPILED
def test_a_child_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jit.CACHE_VARIABLE, str(tmp_path))
    started = beside._start()
    assert started is not None
    started.communicate()  # closes the other end of its standard input
    assert started.returncode == 1 and not list(tmp_path.glob("*/*.nbi"))
