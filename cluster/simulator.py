"""Which simulator this is: what decides a result beside the scenario."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from cluster import __version__

_PACKAGES = ("hostsim", "cluster", "cluster/policy")


@cache
def simulator() -> str:
    """Its version, and a digest of the sources of hosts and cluster; equal on all machines."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for source in sorted((root / package).glob("*.py")):
            digest.update(f"{package}/{source.name}\n".encode() + source.read_bytes())
    return f"{__version__}-{digest.hexdigest()[:16]}"
