"""Compiling in two processes: what the child makes is used, and no child is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from crowded_hosts import SECOND, crowded_host
from numba.core import types

from hostsim import beside, dispatch, jit, snapshot

TESTS = Path(__file__).parent
COMPILED = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="runs uncompiled")
VECTOR = types.Array(types.int64, 1, "C")

COLD = """
import sys
sys.path.insert(0, sys.argv[1])
from crowded_hosts import crowded_host
from hostsim import beside, dispatch, snapshot
from hostsim.host import warm
children = []
start = beside._start
beside._start = lambda: children.append(start()) or children[0]
warm(lambda text: None)
host = crowded_host(frames=200, vms=(1, 2))
host.advance(int(sys.argv[2]))
taken = [isinstance(one._inner.parts.get(args), dispatch._Made) for one, args in beside.wanted()]
print(taken, children[0].returncode, snapshot.digest(host))
"""


@COMPILED
@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor: no child")
def test_a_first_run_uses_all_that_the_child_made_and_has_the_same_digest(tmp_path: Path) -> None:
    """So the types that parts declare are those that a step calls them with."""
    duration_ms = 12 * SECOND
    done = subprocess.run(
        [sys.executable, "-c", COLD, str(TESTS), str(duration_ms)],
        env=os.environ | {jit.CACHE_VARIABLE: str(tmp_path)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    host = crowded_host(frames=200, vms=(1, 2))
    host.advance(duration_ms)
    assert done.stdout.split() == f"{[True] * 4} 0 {snapshot.digest(host)}".split()


def kernel_of(function: Callable[..., Any]) -> Any:
    """A kernel of its own, under a name that it would have in another process, too."""
    function.__module__ = "hostsim.test"
    return dispatch.Kernel(function, jit._OPTIONS)


def add(values: Any, much: int) -> None:
    values[0] += max(much, 3)


def double(values: Any, much: int) -> None:
    values[0] *= 2


def calling(*kernels: Any) -> Any:
    first, second = kernels

    def both(values: Any, much: int) -> None:
        first(values, max(much, 2))
        second(values, much)

    return kernel_of(both)


ARGS = (VECTOR, types.int64)
OFFERS = [("add double", [True, True]), ("add", [True, False]), ("", [False, False])]


@COMPILED
@pytest.mark.parametrize(("offered", "taken"), OFFERS)
def test_kernels_are_the_same_made_here_or_elsewhere(offered: str, taken: list[bool]) -> None:
    """Several of the same types; one that is missing from what was made; nothing made at all."""
    functions = {"add": add, "double": double}
    wanted = [(kernel_of(functions[name]), ARGS) for name in offered.split()]
    first, second = kernel_of(add), kernel_of(double)
    found = dispatch.made(first, dispatch.lowered(wanted)) if wanted else None
    for one in (first, second):
        one.offer(ARGS, lambda: found)
    values = np.array([5])
    calling(first, second)(values, 7)
    assert values.tolist() == [24]
    parts = [one._inner.parts[ARGS] for one in (first, second)]
    assert [isinstance(part, dispatch._Made) for part in parts] == taken
    for one in (first, second):
        one.withdraw()
        assert one._inner.offers == {}


def child(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script instead of Python."""
    path = folder / "child"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


FAILING = {
    "fails": "exit 1",
    "is killed": "kill -9 $$",
    "says nothing": "exit 0",
    "fails late": f"echo {jit.CACHE_FOLDER.name}; exit 1",
    "has other sources": "echo kernels-0123456789abcdef",
}


@pytest.mark.parametrize("script", FAILING.values(), ids=list(FAILING))
def test_of_a_child_that_fails_nothing_is_used(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(tmp_path, script, monkeypatch)
    started = beside._start()
    assert started is not None and beside._finish(started) is None
    started.communicate()


def test_without_a_child_nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", os.devnull)
    assert beside._start() is None
    with beside.helped():
        assert offers() == []


def offers() -> list[Any]:
    return [one for one in beside.PARTS if isinstance(one, dispatch.Kernel) and one._inner.offers]


@COMPILED
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_child_is_gone_whatever_happens(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(tmp_path, "exec sleep 600", monkeypatch)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    started: list[Any] = []
    start = beside._start
    monkeypatch.setattr(beside, "_start", lambda: (started.append(start()), started[0])[1])
    with pytest.raises(error), beside.helped():
        assert started[0].poll() is None and offers() == list(beside.PARTS)
        raise error
    assert started[0].returncode == -9 and offers() == []


def test_one_processor_compiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(beside, "_start", lambda: pytest.fail("a child"))
    with beside.helped():
        assert offers() == []


@COMPILED
def test_a_child_ends_with_its_parent() -> None:
    started = beside._start()
    assert started is not None
    output, _ = started.communicate()  # closes the other end of its standard input
    assert (started.returncode, output) == (1, b"")
