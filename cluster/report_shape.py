"""What readers of a report.json rely on, held against a file that anybody may have written.

Keys that nobody reads are not asked for, so that a report may grow. A number may be null where
nothing was there to measure.
"""

from __future__ import annotations

from typing import Any

from cluster.aggregate import MEMORY
from cluster.messages import CAUSES, LEVELS

SCHEMA = 2
"""Version of report.json: raised when a key is renamed or removed."""
_EACH = "*"
"""Stands for every key of an object, whatever its name."""
_NUMBER = "a number"
_COUNT = "a whole number"
_TEXT = "text"
_ANY = "anything"
_KINDS: dict[str, tuple[type, ...]] = {
    _NUMBER: (int, float, type(None)),
    _COUNT: (int,),
    _TEXT: (str, type(None)),
    _ANY: (object,),
}
_SPREAD = dict.fromkeys(("mean", "p50", "p95", "p99", "max"), _NUMBER)
_COST = (
    *("swap_in_pages", "swap_out_pages", "double_paging_pages", "guest_paging_pages"),
    *("compressions", "decompressions", "cache_evictions", "large_breaks"),
    *("host_cache_out_pages", "host_cache_in_pages"),
    *("tier_touches", "tier_up_pages", "tier_down_pages"),
    *("cow_breaks", "blocked_s", "migration_downtime_s"),
)
_FIT = ("vms_per_host_mean", "vms_per_host_max", "overcommit_configured", "overcommit_peak")
_VMS = ("submitted", "placed", "refused", "waiting", "completed")
_MIGRATIONS = ("count", "gib", "mean_s", "rounds_mean", "slowed_s", "failed")
_FAILURES = (
    *("hosts", "vms_restarted", "vms_lost", "downtime_s", "steady_s"),
    *("sharing_broken_gib", "storm_host_s"),
)
_ERRORS = ("shared_saved_rel_std", "consumed_rel_std", "swapped_rel_std")
SHAPE: dict[str, Any] = {
    "scenario": {"name": _TEXT, "seed": _COUNT, "digest": _TEXT},
    "digest": _TEXT,
    "partial": _ANY,
    "simulated_s": _NUMBER,
    "hosts": {"count": _COUNT, "memory_gib": _NUMBER, "powered_on_mean": _NUMBER},
    "vms": dict.fromkeys(_VMS, _COUNT) | {"refused_by": {_EACH: _COUNT}},
    "consolidation": dict.fromkeys(_FIT, _NUMBER),
    "memory_gib": dict.fromkeys(MEMORY, dict.fromkeys(("mean", "p95", "max"), _NUMBER)),
    "reclaim_states": dict.fromkeys([level for level in LEVELS if level != "clear"], _NUMBER),
    "cost": dict.fromkeys(_COST, _NUMBER)
    | {
        "slowdown": _SPREAD,
        "slowdown_epoch": _SPREAD,
        "slowdown_by_cause": dict.fromkeys(CAUSES, _NUMBER),
    },
    "migrations": dict.fromkeys(_MIGRATIONS, _NUMBER),
    "failures": dict.fromkeys(_FAILURES, _NUMBER),
    "energy": {"kwh": _NUMBER},
    "error": {"sample": _COUNT} | dict.fromkeys(_ERRORS, _NUMBER),
    "assumptions": {_EACH: _ANY},
}


def fault(report: dict[str, Any]) -> str | None:
    """What is wrong with a report, in words; None where it can be read."""
    schema = report.get("schema")
    if schema != SCHEMA:
        return f"schema must be {SCHEMA}, not {schema!r}"
    return _fault(report, SHAPE, "")


def _fault(value: Any, shape: Any, path: str) -> str | None:
    """The first place at which `value` is not of the shape."""
    if isinstance(shape, str):
        return None if isinstance(value, _KINDS[shape]) else f"{path} must be {shape}"
    if not isinstance(value, dict):
        return f"{path} must be an object"
    for key in value if _EACH in shape else shape:
        inside = f"{path}.{key}" if path else key
        if key not in value:
            return f"{inside} is missing"
        found = _fault(value[key], shape.get(key, shape.get(_EACH)), inside)
        if found is not None:
            return found
    return None
