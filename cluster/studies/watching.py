"""Progress of a study for people: a bar on a terminal, a line for each run elsewhere; on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster import log
from cluster.log import LOG


class Watch(Protocol):
    """Shows how far a study is."""

    def note(self, text: str) -> None:
        """Say what is going on."""

    def done(self, text: str) -> None:
        """One run has ended."""

    def expect(self, total: int) -> None:
        """So many runs are to be done in all, as far as is known."""


class _Lines:
    """See Watch."""

    def __init__(self) -> None:
        self._done = self._total = 0

    def note(self, text: str) -> None:
        """See Watch."""
        LOG.info("%s", text)

    def done(self, text: str) -> None:
        """See Watch."""
        self._done += 1
        self.note(f"{self._done} of {self._total} runs done: {text}")

    def expect(self, total: int) -> None:
        """See Watch."""
        self._total = total


class _Bar:
    """See Watch."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)

    def note(self, text: str) -> None:
        """See Watch."""
        self._bar.update(self._task, description=escape(text))

    def done(self, text: str) -> None:
        """See Watch."""
        self._bar.update(self._task, description=escape(text), advance=1)

    def expect(self, total: int) -> None:
        """See Watch."""
        self._bar.update(self._task, total=total)


@contextmanager
def shown() -> Iterator[Watch]:
    """Show progress while inside."""
    console = Console(stderr=True)
    if not console.is_terminal or log.form() == "json":
        yield _Lines()
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar)
