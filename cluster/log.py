"""What esxsim says on stderr: plain text for people, or JSON lines for those who collect logs.

`ESXSIM_LOG=json`, or the option `--log json`, chooses; both forms say the same. A line of JSON has
`time` (UTC), `level`, `message`, and, where known, `run`, `epoch` and `host`. Python's logging does
the rest: everything goes through the logger LOG, to whatever stderr is at that moment.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

LOG = logging.getLogger("esxsim")
VARIABLE = "ESXSIM_LOG"
FORMS = ("text", "json")
FIELDS = ("run", "epoch", "host")
"""What a line may say beside its message, in this order."""


class _Text(logging.Formatter):
    """`esxsim: MESSAGE`."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        warning = "warning: " * (record.levelno == logging.WARNING)
        return f"esxsim: {warning}{record.getMessage()}"


class _Json(logging.Formatter):
    """One JSON object."""

    def __init__(self) -> None:
        super().__init__()
        self.context: dict[str, Any] = {}

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        known = self.context | vars(record)
        return json.dumps(said | {name: known[name] for name in FIELDS if name in known})


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is when something is said."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        print(self.format(record), file=sys.stderr, flush=True)


def form() -> str:
    """text or json, as asked for."""
    return "json" if isinstance(_handler.formatter, _Json) else "text"


def use(name: str | None = None) -> None:
    """Speak in this form from now on; None: in that which the environment asks for, or text.

    Raises ValueError for any other.
    """
    source, name = ("--log", name) if name is not None else (VARIABLE, os.environ.get(VARIABLE))
    if name not in (None, "", *FORMS):
        raise ValueError(f"{source}: {name!a} must be {' or '.join(FORMS)}")
    _handler.setFormatter(_Json() if name == "json" else _Text())


def about(**fields: Any) -> None:
    """What is said from now on is about this run, or this epoch of it."""
    if isinstance(_handler.formatter, _Json):
        _handler.formatter.context |= fields


def line(message: str, level: int = logging.ERROR) -> str:
    """A line as it would be written, for those who may not use a stream."""
    return _handler.format(LOG.makeRecord(LOG.name, level, "", 0, message, (), None))


_handler = _Stderr()
_handler.setFormatter(_Text())
LOG.addHandler(_handler)
LOG.setLevel(logging.INFO)
LOG.propagate = False
