"""Ctrl-C and SIGTERM: what they do before a run begins, and while it goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cluster import log
from cluster.errors import StoppedError
from cluster.log import LOG

NOT_BEGUN = "stopped before the run began: nothing was written"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Ctrl-C and SIGTERM end the command until the run begins; from then on they ask for a stop at
    the next barrier. A second one interrupts at once."""

    def __init__(self, not_begun: str = NOT_BEGUN) -> None:
        """not_begun: what is said of a stop before the run began."""
        self._not_begun = not_begun
        self._asked = threading.Event()
        self._begun = False
        self._react = self._interrupt

    def __call__(self) -> bool:
        return self._asked.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals while inside. Raises StoppedError for one before the run began."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self._begun:
                raise
            raise StoppedError(self._not_begun) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """While inside, a signal ends the process on the spot.

        For the compiler: an exception in one of its callbacks would be lost, or break it.
        """
        self._react = self._leave
        yield
        self._react = self._interrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A signal acts when this is over: what is half started cannot be taken down."""
        self._react = self._wait
        yield
        self._react = self._say if self._begun else self._interrupt
        self.listen()
        if self._asked.is_set() and not self._begun:
            raise KeyboardInterrupt

    @contextmanager
    def listening_again(self) -> Iterator[None]:
        """Heed the signals after it, when Ray is gone and has taken the handlers along."""
        try:
            yield
        finally:
            self.listen()

    def begin(self) -> None:
        """The run begins: a stop now waits for a barrier, and keeps what there is."""
        self._begun = True
        self._react = self._say

    def listen(self) -> None:
        """Heed the signals from now on, also after Ray took SIGTERM for itself."""
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()
        self._react()

    def _interrupt(self) -> None:
        raise KeyboardInterrupt

    def _wait(self) -> None:
        pass

    def _say(self) -> None:
        LOG.info("stopping at the end of this barrier")

    def _leave(self) -> None:
        shown = "\x1b[?25h\n" if os.isatty(2) else ""  # the bar had hidden the cursor
        os.write(2, f"{shown}{log.line(self._not_begun)}\n".encode())
        os._exit(1)
