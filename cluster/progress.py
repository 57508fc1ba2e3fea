"""Progress of a run for people: a bar on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from cluster import coordinator, log
from cluster.log import LOG
from cluster.scenario import Scenario
from hostsim.units import GIB

LINE_S = 5.0
"""Least time between two plain lines."""


class Watch(Protocol):
    """Shows how far a run is."""

    def __call__(self, now: coordinator.Progress) -> None:
        """Show it."""

    def note(self, text: str) -> None:
        """Say what is going on before the first epoch."""


def describe(now: coordinator.Progress, epoch_ms: int) -> str:
    """Simulated time, speed, time left and the cluster's memory, in one line."""
    done = now.epoch - now.begun
    rate = now.host_ticks / now.epoch * done / max(now.wall_s, 1e-9)
    left_s = now.wall_s / done * (now.epochs - now.epoch)
    memory = now.memory_bytes
    parts = [
        f"{now.epoch * epoch_ms / 3_600_000:.2f} of {now.epochs * epoch_ms / 3_600_000:.2f} h",
        f"{rate:,.0f} host-ticks/s",
        f"{left_s:.0f} s left",
        f"{now.vms} VMs",
        f"{memory['consumed'] / GIB:.0f} GiB consumed",
        f"saved: shared {memory['shared_saved'] / GIB:.1f}",
        f"ballooned {memory['ballooned'] / GIB:.1f}",
        f"swapped {memory['swapped'] / GIB:.1f}",
    ]
    pressed = [f"{n} {level}" for level, n in now.levels.items() if n and level != "high"]
    return ", ".join(parts) + (f"; hosts under pressure: {', '.join(pressed)}" if pressed else "")


class _Lines:
    """A line now and then."""

    def __init__(self, scenario: Scenario) -> None:
        self._epoch_ms = scenario.epoch
        self._next_s = 0.0
        self._warned: str | None = None

    def __call__(self, now: coordinator.Progress) -> None:
        log.about(epoch=now.epoch)
        if now.warning not in (None, self._warned):
            LOG.warning("%s", now.warning)
        self._warned = now.warning
        if time.monotonic() >= self._next_s or now.epoch == now.epochs:
            self._next_s = time.monotonic() + LINE_S
            LOG.info("%s", describe(now, self._epoch_ms))

    def note(self, text: str) -> None:
        LOG.info("%s", text)


class _Bar:
    """A bar, and the line under it."""

    def __init__(self, scenario: Scenario, bar: Progress) -> None:
        self._epoch_ms = scenario.epoch
        self._bar = bar
        epochs = scenario.duration // scenario.epoch
        self._task = bar.add_task(scenario.name, total=epochs, line="")

    def __call__(self, now: coordinator.Progress) -> None:
        line = describe(now, self._epoch_ms)
        if now.warning is not None:
            line += f"\nwarning: {now.warning}"
        self._bar.update(self._task, completed=now.epoch, line=line)

    def note(self, text: str) -> None:
        self._bar.update(self._task, line=text)


@contextmanager
def shown(scenario: Scenario) -> Iterator[Watch]:
    """Show progress while inside."""
    console = Console(stderr=True)
    if not console.is_terminal or log.form() == "json":
        yield _Lines(scenario)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("\n{task.fields[line]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(scenario, bar)
