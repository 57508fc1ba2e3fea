"""`esxsim top`: a running job on the terminal, until it has ended or Ctrl-C; elsewhere as text.

Looking on changes nothing about a run: of one on this file system its folder is read, of one on a
Ray cluster the coordinator is asked, as the command that started it does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live

from cluster import ray_environment
from cluster.errors import ClusterError
from cluster.watch.looking import Look, OnCluster, into
from cluster.watch.view import Screen
from cluster.yaml_input import shown


def watch(where: str, run: str | None, interval_s: float, *, once: bool) -> None:
    """Show a run in the folder, or on the cluster, `where`. Raises OutputError, ClusterError."""
    with _looking(where, run) as look, contextlib.suppress(KeyboardInterrupt):
        _show(look, Console(), interval_s, once=once)


def _show(look: Callable[[], Look], console: Console, interval_s: float, *, once: bool) -> None:
    seen = look()
    if console.is_terminal and not once and not seen.is_over:
        with Live(Screen(seen), console=console, screen=True, auto_refresh=False) as screen:
            while not seen.is_over:
                screen.update(Screen(seen), refresh=True)
                time.sleep(interval_s)
                seen = look()
    console.print(Screen(seen), soft_wrap=seen.report is not None)
    while not console.is_terminal and not once and not seen.is_over:
        time.sleep(interval_s)
        before, seen = seen, look()
        if (seen.progress, seen.state) != (before.progress, before.state):
            console.print()
            console.print(Screen(seen), soft_wrap=seen.report is not None)


@contextlib.contextmanager
def _looking(where: str, run: str | None) -> Iterator[Callable[[], Look]]:
    """How to look at a run there."""
    if where != "auto" and ray_environment.head_of(where) is None:
        yield lambda: into(Path(where))
        return
    why = ray_environment.why_unreachable(where)
    if why is not None:
        raise ClusterError(f"no Ray cluster at {where}: {why}")
    ray_environment.prepare(own_cluster=False)
    from cluster.watch import attach  # takes a second to import, and folders do without

    with attach.connected(where):
        yield OnCluster(where, _chosen(attach.runs(), where, run))


def _chosen(names: list[str], where: str, run: str | None) -> str:
    """The run to look at, of those that go on."""
    if not names:
        raise ClusterError(f"no run goes on at {where}")
    found = [name for name in names if run is None or name == run]
    found = found or [name for name in names if run is not None and name.startswith(run)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(names)
    if run is None:
        raise ClusterError(f"{len(names)} runs go on at {where}; name one by --run: {listed}")
    raise ClusterError(f"--run: {shown(run)} is not one of the runs at {where}: {listed}")
