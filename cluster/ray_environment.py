"""What Ray reads from the environment, once, when it is imported: call `prepare` before that."""

from __future__ import annotations

import os
import secrets


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
        # Means, on every system: one machine only. Or Ray takes 127.0.0.1 for the machine's
        # outward address, and its processes listen on all devices.
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
