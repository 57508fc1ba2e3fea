"""The first run compiles in two processes: a child what a step does last, this one the rest.

What the child compiles are wholes of their own (`jit.apart`), which it leaves in the cache; this
process takes them from there once its own part is done. A child that fails, or is not there, costs
time alone: this process does not find them there, and compiles them as well.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numba.core import types

from hostsim import balloon, workload
from hostsim.dispatch import Apart
from hostsim.jit import CACHES
from hostsim.state import KERNEL_TYPE

APART: tuple[Any, ...] = (workload.run, balloon.run)
"""About half of the work, with much in common."""
_KINDS = {"HostState": KERNEL_TYPE, "int": types.int64}


def declared(kernel: Apart) -> tuple[Any, ...]:
    """The types of the arguments that a step calls it with: as it declares."""
    kinds = dict(kernel.py_func.__annotations__)
    assert kinds.pop("return") == "None", "callers are not told that it returns something"
    return tuple(_KINDS[kind] for kind in kinds.values())


@contextlib.contextmanager
def helped() -> Iterator[None]:
    """A child compiles its part meanwhile. It is gone afterwards, whatever happens."""
    useful = CACHES and isinstance(APART[0], Apart) and (os.cpu_count() or 1) > 1
    child = _start() if useful else None
    if child is None:
        yield
        return
    for kernel in APART:
        kernel.wait = child.wait
    try:
        yield
    finally:
        for kernel in APART:
            kernel.wait = None
        child.kill()
        child.communicate()


def _start() -> subprocess.Popen[bytes] | None:
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "hostsim.beside"]  # -P: no module of the current folder
    try:
        return subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _end_with_parent() -> None:
    """Reading the standard input ends when the process that holds its other end does."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """In the child."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for kernel in APART:
        kernel.compile(declared(kernel))


if __name__ == "__main__":
    main()
