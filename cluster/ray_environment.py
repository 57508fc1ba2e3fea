"""What is to be seen to before Ray is imported: its environment, which it reads once, then; and
whether a head answers, for which Ray itself would try for minutes and fill the screen meanwhile.
And the token that a cluster asks for, found where Ray finds it, and never part of a message.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path

CONNECT_S = 5.0
"""How long a head may take to answer."""
ALLOWED = "auto, local, or HOST:PORT of the head of a Ray cluster"
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
GIVE_TOKEN = f"set {MODE}=token, and {TOKEN}, {TOKEN_PATH} or ~/.ray/auth_token to its token"
"""What to do where a cluster asks for a token."""
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)
_HEAD = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", re.ASCII)


def head_of(address: str) -> tuple[str, int] | None:
    """Host and port of a head's address; None where it is no such address."""
    match = _HEAD.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        return None
    return match[1].strip("[]"), int(match[2])


def why_unreachable(address: str) -> str | None:
    """Why no head answers at `address`; None where one does, or where Ray is to look for it."""
    if address == "auto":  # Ray looks here first, then among the processes of this machine
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address in ("auto", "local"):
        return None
    head = head_of(address)
    if head is None:
        return f"RAY_ADDRESS is {address!a}; it must be {ALLOWED}"
    try:
        socket.create_connection(head, timeout=CONNECT_S).close()
    except OSError as error:
        return f"nothing answers at {address} ({error.strerror or error})"
    return None


def find_token() -> str | None:
    """The token, as Ray looks for it: the variable, the file that another names, the file in the
    user's home. Raises ValueError where it cannot be one; the message does not have it."""
    text, where = os.environ.get(TOKEN, ""), TOKEN
    if not text:
        named = os.environ.get(TOKEN_PATH)
        path = Path(named) if named else Path.home() / ".ray" / "auth_token"
        where = str(path)
        try:
            text = path.read_text("utf-8")
        except (OSError, ValueError):
            if named:
                raise ValueError(f"{TOKEN_PATH}: {named!a} cannot be read") from None
            return None
    text = text.strip()
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{where}: must hold a token, one line of printable characters")
    return text


def prepare(own_cluster: bool) -> None:
    """Set what the user left open; what is set already stays.

    own_cluster: we start Ray ourselves, so all who connect to it must show a token of ours. With
    a cluster that exists, RAY_AUTH_MODE and its token are the user's to give.
    """
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    if own_cluster:
        defaults |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Or hosts run at niceness 15: among other people's work, a run took four times as long on
        # Ray as in one process.
        defaults["RAY_worker_niceness"] = "0"
        # Means, on every system: one machine only. Or Ray takes 127.0.0.1 for the machine's
        # outward address, and its processes listen on all devices.
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
