"""What is to be seen to before Ray is imported: its environment, which it reads once, then; and
whether a head answers, for which Ray itself would try for minutes and fill the screen meanwhile.
"""

from __future__ import annotations

import os
import re
import secrets
import socket

CONNECT_S = 5.0
"""How long a head may take to answer."""
ALLOWED = "auto, local, or HOST:PORT of the head of a Ray cluster"
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
