"""What the user did not state and the model filled in, in words: part of every report.

A default counts as stated only where the file gives the key. A host's profile states nothing: its
numbers are listed like other defaults, because readers of a report do not know profiles by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from cluster import scenario_text
from cluster.page_hashes import UNKNOWN, PageHashes
from cluster.scenario import FROM_HASHES, Scenario
from cluster.trace import Trace
from cluster.trace_vms import TraceVms
from hostsim.guest_config import ContentTable

Assumptions = dict[str, Any]
"""Path -> value: text with its unit, number, true or false."""

_NO_VALUE = {
    "limit": "memory of the VM",
    "guest_swap": "memory - reservation",
    "scan_time": "none: the rates hold",
    "low_memory": "all memory",
    "clear": "no such state",
    "margin": "0 % in reading b, 0.5 % in reading a",
    "stop": "never",
    "vms": "all that run in the simulated time",
    "memory": "as it stands",
    "cpu_overcommit": "no limit",
    "application": "the image's own",
    "workload": "none: the VM does what its image's hashes say",
    "workloads": "none: the trace's own usage",
    "pool": "the root",
    "parent": "the root",
    "failures": "none at random",
}
"""What leaving a key out means where its default is null."""
_NO_ASSUMPTION = {
    "question",
    "images",
    "vms",
    "events",
    "trace",
    "path",
    "data",
    "pool",
    "pools",
    "rules",
}
"""Keys of which nothing is simulated when they are left out (`vms` and `images` of a scenario)."""


def of_scenario(scenario: Scenario, given: dict[str, Any]) -> Assumptions:
    """Defaults in force; `given` is the file's data."""
    given = {key: value for key, value in given.items() if key != "events"}
    found = _unstated(scenario, given, "")
    for image in scenario.images:
        if image.content.hashes is not None:
            for key in FROM_HASHES:
                found.pop(f"images[{image.name}].{key}", None)
    idle = tuple(_without_effect(scenario))
    return {key: text for key, text in found.items() if not key.startswith(idle)}


def _without_effect(scenario: Scenario) -> Iterator[str]:
    """Beginnings of keys that decide nothing in this scenario."""
    if scenario.trace is not None and scenario.trace.workloads is not None:
        yield "trace.guest."
    actions = {event.action for event in scenario.events}
    balances, saves = scenario.balancing.level > 0, scenario.power.saving
    if not balances:
        yield "balancing.idle"
        if not scenario.pools:
            yield "balancing.interval"
    if not saves:
        yield from (f"power.{key}" for key in type(scenario.power).model_fields if key != "saving")
    if not (balances or saves or scenario.rules or actions & {"migrate", "maintenance"}):
        yield "migration."
    options = scenario.availability
    if options.failures is None and options.trace is None and "fail" not in actions:
        yield "availability."


def _unstated(model: BaseModel, given: dict[str, Any], prefix: str) -> Assumptions:
    found: Assumptions = {}
    for name, field in type(model).model_fields.items():
        value, path = getattr(model, name), f"{prefix}{name}"
        if value is None and name not in given:
            value = getattr(model, f"{name}_bytes", None)  # a default that the model works out
        stated = given.get(name, {})
        # A table of contents is whole by definition: its entries sum to 100 %.
        if isinstance(value, BaseModel) and not isinstance(value, ContentTable):
            if isinstance(stated, dict):  # else the user named it, as in `swap: ssd`
                found |= _unstated(value, stated, f"{path}.")
        elif name not in given:
            if value is not None or name in _NO_VALUE:
                found |= _default(name, field, value, path, is_root=not prefix)
        elif isinstance(stated, list | tuple):
            for place, (item, raw) in enumerate(zip(value, stated, strict=True)):
                if isinstance(item, BaseModel) and isinstance(raw, dict):
                    label = getattr(item, "name", place)
                    found |= _unstated(item, raw, f"{path}[{label}].")
    return found


def _default(name: str, field: Any, value: Any, path: str, *, is_root: bool) -> Assumptions:
    if name in _NO_ASSUMPTION and (is_root or name in ("path", "data", "pool")):
        return {}
    if is_root and name == "workloads":
        return {}
    if isinstance(value, ContentTable):
        return {path: _table_text(value)}
    words = scenario_text.in_words(scenario_text.of_field(field), value)
    return {path: _NO_VALUE[name] if value is None else words}


def _table_text(table: ContentTable) -> str:
    """kernel unique 10 %, anon unique 90 %."""
    return ", ".join(
        f"{use} {kind} {scenario_text.permille_text(part)}"
        for use, mix in table.mixes()
        for kind, part in mix
        if part
    )


def of_hashes(scenario: Scenario, hashes: Mapping[str, PageHashes]) -> Assumptions:
    """What files of page hashes left open, and defaults that only they make matter."""
    found: Assumptions = {}
    for image in scenario.images:
        file = hashes.get(image.name)
        if file is None:
            continue
        path, given = f"images[{image.name}].content", image.content.model_fields_set
        if len(file.guests[0].hashes) > 1 and "interval" not in given:
            found[f"{path}.interval"] = scenario_text.ms_text(image.content.interval)
        if not file.knows_touched:
            found[f"{path}.touched"] = "all pages of a guest: the file does not say which"
        unknown = sum(int((guest.classes == UNKNOWN).sum()) for guest in file.guests)
        if unknown:
            found[f"{path}.use"] = f"anonymous, for {unknown} pages whose use is not known"
    return found


def of_trace(scenario: Scenario, trace: Trace, vms: TraceVms) -> Assumptions:
    """What the trace left open for how many of its VMs."""
    found: Assumptions = {}
    source = scenario.trace
    assert source is not None, "a trace needs its source"
    footprints = {image.name: image.footprint for image in scenario.images}
    sizes = trace.memory_bytes[vms.index]
    wanted = np.array([footprints[name] for name in vms.images], np.int64)
    small = int((wanted > sizes // 2).sum())
    if small:
        found["trace.footprint"] = f"half the size for {small} VMs too small for their image's"
    if source.workloads is not None:
        return found
    no_active, no_cpu = int((~vms.has_active).sum()), int((~vms.has_cpu).sum())
    if no_active:
        idle, busy = source.guest.active_idle, source.guest.active_busy
        words = f"{scenario_text.permille_text(idle)} to {scenario_text.permille_text(busy)}"
        found["trace.active"] = f"{words} of the size, by CPU, for {no_active} VMs without readings"
    if no_cpu:
        found["trace.cpu"] = f"0 % for {no_cpu} VMs without readings"
    return found
