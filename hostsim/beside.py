"""The first run compiles in two processes: a child makes what this one would come to last.

The child lowers some of a step's parts, with all that they call, and writes their code to its
standard output; this process compiles the rest meanwhile, then links all of it as if it had made
it. Nothing else passes between them, and a child that fails, or is not there, changes nothing but
the time: this process then compiles those parts, too.
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

from hostsim import breaking, sample, share, workload
from hostsim.dispatch import Kernel, lowered, made
from hostsim.jit import CACHE_FOLDER
from hostsim.state import KERNEL_TYPE

PARTS: tuple[Any, ...] = (workload.run, share.scan, breaking.break_large_pages, sample.run)
"""The last parts of a step, half of the work."""
_KINDS = {"HostState": KERNEL_TYPE, "int": types.int64}
_STAMP = f"{CACHE_FOLDER.name}\n".encode()
"""What the child says first: of which sources, numba and processor its code is."""


def wanted() -> list[tuple[Kernel, Any]]:
    """The parts, and the types of the arguments with which a step calls each: as it declares."""
    found = []
    for kernel in PARTS:
        kinds = dict(kernel.py_func.__annotations__)
        assert kinds.pop("return") == "None", "its type would have to be told as well"
        found.append((kernel, tuple(_KINDS[kind] for kind in kinds.values())))
    return found


@contextlib.contextmanager
def helped() -> Iterator[None]:
    """A child compiles the parts meanwhile. It is gone afterwards, whatever happens."""
    child = _start() if (os.cpu_count() or 1) > 1 and isinstance(PARTS[0], Kernel) else None
    if child is None:
        yield
        return
    found: list[Any] = []

    def find() -> Any:
        if not found:
            found.append(_finish(child))
        return found[0]

    for kernel, args in wanted():
        kernel.offer(args, find)
    try:
        yield
    finally:
        for kernel in PARTS:
            kernel.withdraw()
        child.kill()
        child.communicate()


def _start() -> subprocess.Popen[bytes] | None:
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", __spec__.name]  # -P: no module of the current folder
    try:
        return subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _finish(child: subprocess.Popen[bytes]) -> Any:
    """Wait for the child's code; None if it failed, or is of other sources."""
    assert child.stdout is not None
    code = child.stdout.read()
    if child.wait() != 0 or not code.startswith(_STAMP):
        return None
    return made(PARTS[0], code[len(_STAMP) :])


def _end_with_parent() -> None:
    """Reading the standard input ends when the process that holds its other end does."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """In the child."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.buffer.write(_STAMP + lowered(wanted()))


if __name__ == "__main__":
    main()
