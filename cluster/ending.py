"""How a command ends: a known error is one line on stderr and an exit code, without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import typer

from cluster import log

Result = TypeVar("Result")


def fail(message: str, code: int, **about: Any) -> NoReturn:
    """Say why, and end with this exit code. about: fields of the line, if it is JSON."""
    log.LOG.error("%s", message, extra=about)
    raise typer.Exit(code)


def guarded(work: Callable[[], Result], interrupted: str | None = None) -> Result:
    """Do the work; known errors become a message and an exit code. interrupted: what Ctrl-C means
    for it, where it ends the command alone."""
    from cluster.errors import exit_code, where

    try:
        return work()
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        fail(interrupted, 1)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        fail(str(error), code, **where(error))
