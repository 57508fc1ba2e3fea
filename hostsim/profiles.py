"""Eras of ESX: what a profile fills in of a host's options. Nothing else knows their names.

`osdi02` is the paper's system (ESX 1.5, option defaults from the ESX 2 manual). `vsphere` has the
rates of ESXi 5 and later with the paper's mechanisms, on small pages, shared between all VMs.
`vsphere-5` and `vsphere-8` are ESXi 5.0 to 5.5 and ESXi 8 with the defaults that they came with.
"""

from __future__ import annotations

from typing import Any


def merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, one level of mappings deep per key."""
    found = dict(defaults)
    for key, value in given.items():
        base = found.get(key)
        found[key] = (
            {**base, **value} if isinstance(base, dict) and isinstance(value, dict) else value
        )
    return found


_VSPHERE: dict[str, Any] = {
    "reserve": "1 GiB",
    "sharing": {
        "scan_pages_per_s_vm": 1024,
        "scan_pages_per_s_total": 16_384,
        "scan_time": "60 min",
    },
    # The GPL Linux driver: up to 16384 pages a cycle while the guest is not under pressure.
    "balloon": {"inflate": "64 MiB/s", "deflate": "64 MiB/s", "maximum": "65 %"},
    "sampling": {"period": "60 s"},
    "reclaim": {
        "minfree": "sliding",
        "high": "100 %",
        "soft": "64 %",
        "hard": "32 %",
        "low": "16 %",
    },
}
_VSPHERE_5 = merged(_VSPHERE, {"compression": {"enabled": True}, "large_pages": True})

PROFILES: dict[str, dict[str, Any]] = {
    "osdi02": {
        "allocation": {"claim": "configured", "deadband_sigmas": 0},
        "swap": "disk-2002",
    },
    "vsphere": _VSPHERE,
    "vsphere-5": _VSPHERE_5,
    # Mem.ShareForceSalting is 2 since ESXi 5.0 U3d, 5.1 U3, 5.5 U2d and 6.0 (VMware KB 2080735).
    "vsphere-8": merged(
        _VSPHERE_5,
        # ESXi 6 on: high at 400 % of minFree (running-system.com, prohoster.info), clear below it.
        {"sharing": {"salting": "vm"}, "reclaim": {"high": "400 %", "clear": "100 %"}},
    ),
}
