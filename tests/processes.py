"""Processes that a test started, seen through Linux's /proc: what they are, and that they end."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import Any

PROC = Path("/proc")
TOO_LONG_S = 60
"""For something that hangs."""


def processes_below(parent: int) -> dict[int, str]:
    """A process and all that it started, by id, with their command lines."""
    parents: dict[int, int] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(after_name[1])
    found = {parent}
    while more := {pid for pid, above in parents.items() if above in found} - found:
        found |= more
    names: dict[int, str] = {}
    for pid in sorted(found):
        with contextlib.suppress(OSError):
            command = (PROC / str(pid) / "cmdline").read_bytes()
            names[pid] = command.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return names


def named(word: str, parent: int | None = None) -> list[int]:
    """Ids of our processes, or those below another one, whose command has this word."""
    below = processes_below(os.getpid() if parent is None else parent)
    return [pid for pid, command in below.items() if word in command]


def assert_gone(pids: Any) -> None:
    """Each of these processes has ended, or does so within a minute."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            watched = select.poll()
            watched.register(handle, select.POLLIN)
            ended = watched.poll(TOO_LONG_S * 1000)
            os.close(handle)
            assert ended, f"process {pid} is still there"


def listening(pids: Any) -> set[str]:
    """Hexadecimal addresses at which these processes take connections."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in (PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and cells[9] in inodes:
                found.add(cells[1].split(":")[0])
    return found
