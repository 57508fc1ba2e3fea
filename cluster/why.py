"""The story of one VM or one host, in time order, from the decisions that a run wrote down.

A VM's story has what befell the host it was on at the time, too. Lines are sentences with the
numbers that decided; what has no sentence of its own is told key by key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.files import OutputError
from cluster.scenario_problems import closest, listed
from cluster.summary import clock, percent, plain
from cluster.yaml_input import InputError, Problem, shown
from hostsim.units import GIB

Event = Mapping[str, Any]

ARRIVES = ("power_on", "restart")
LEAVES = ("power_off", "vm_failed")
OF_THE_HOST = ("level", "host_failed", "maintenance", "host_clears")
"""What befalls a host that its VMs feel."""


def _gib(event: Event, key: str) -> str:
    return f"{plain(event[key] / GIB)} GiB"


def _power_on(event: Event) -> str:
    left = event.get("hosts_left", {})
    words = f"placed on {event['host']}"
    if "policy" in event:
        words += f" by {event['policy']} of {event['by']} memory: with it "
        words += f"{_gib(event, 'taken_bytes')} of {_gib(event, 'host_bytes')} are taken"
    if left:
        words += f"; {min(left.values())} hosts had room"
    if "waited_s" in event:
        words += f" after waiting {plain(event['waited_s'])} s"
    return words + _content(event)


def _restart(event: Event) -> str:
    words = f"starts again on {event['host']} after {plain(event['waited_s'])} s"
    return words + _content(event)


def _content(event: Event) -> str:
    """What a VM would share, where placement goes by that."""
    if "common_bytes" not in event:
        return ""
    words = f"; it may share {_gib(event, 'common_bytes')} with VMs there"
    if event["blind_host"] == event["host"]:
        return words + ", where it would go without that, too"
    words += f", {_gib(event, 'blind_common_bytes')} on {event['blind_host']}, where it would go "
    return words + f"without that (weight {percent(event['content_permille'] / 1000)})"


def _refused(event: Event) -> str:
    before = list(event.get("hosts_left", {}).items())
    steps = ", ".join(f"{name}: {n} left" for name, n in before)
    return f"refused: {event['reason']} ({steps})"


def _migrate(event: Event) -> str:
    words = f"sets out from {event['host']} to {event['to']} for {event['why']}, with "
    words += f"{_gib(event, 'memory_bytes')} in memory, {_gib(event, 'spare_bytes')} free there"
    if "imbalance" in event:
        words += f"; imbalance {plain(event['imbalance'])} -> {plain(event['imbalance_after'])}, "
        words += f"{plain(event['tolerated'])} is tolerated"
    if "common_before_bytes" in event:
        words += f"; it may share {_gib(event, 'common_bytes')} with VMs there, "
        words += f"{_gib(event, 'common_before_bytes')} where it was"
    return words


def _migrated(event: Event) -> str:
    return (
        f"goes on at {event['to']}: {event['rounds']} rounds, {_gib(event, 'sent_bytes')} sent in "
        f"{plain(event['duration_s'])} s, stopped for {plain(1000 * event['downtime_s'])} ms, "
        f"slowed for {plain(event['slowed_s'])} s"
    )


def _level(event: Event) -> str:
    words = f"{event['host']} goes from {event['before'].upper()} to {event['after'].upper()}"
    return f"{words} with {_gib(event, 'free_bytes')} free"


def _host_clears(event: Event) -> str:
    words = f"{event['host']} is emptied to save power: load {percent(event['load'])} for "
    words += f"{plain(event['low_for_s'])} s; the others will have "
    return words + percent(event["load_of_others_after"])


def _because(event: Event) -> str:
    return f": {event['reason']}" if "reason" in event else ""


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "power_on": _power_on,
    "restart": _restart,
    "refused": _refused,
    "waits": lambda e: f"waits: {e['reason']}",
    "power_off": lambda e: "powered off" + (" as planned" if e.get("planned") else " by an event"),
    "migrate": _migrate,
    "migrated": _migrated,
    "migration_failed": lambda e: f"stays on {e['host']}, not {e['to']}: {e['reason']}",
    "refused_migrate": lambda e: f"may not move to {e['to']}: {e['reason']}",
    "refused_set": lambda e: f"keeps its values: {e['reason']}",
    "vm_failed": lambda e: f"is lost with its host {e['host']}",
    "reset": lambda e: "boots again",
    "level": _level,
    "host_failed": lambda e: (
        f"{e['host']} fails with {e['vms']} VMs in {_gib(e, 'consumed_bytes')}"
    ),
    "host_on": lambda e: f"{e['host']} is open to VMs{_because(e)}",
    "host_off": lambda e: f"{e['host']} is empty and off: {e['reason']}",
    "host_wakes": lambda e: f"{e['host']} boots: {e['reason']}",
    "host_clears": _host_clears,
    "maintenance": lambda e: f"{e['host']} is emptied for maintenance, {e['vms']} VMs leave",
}


def sentence(event: Event) -> str:
    """What happened, in words. Never fails: files come from other versions, too."""
    kind = str(event.get("kind"))
    try:
        return _SENTENCES[kind](event)
    except (KeyError, TypeError, ValueError, AttributeError):
        rest = {key: value for key, value in event.items() if key not in ("at_s", "kind")}
        return f"{kind}: " + ", ".join(f"{key} {value}" for key, value in rest.items())


def read(folder: Path) -> Iterator[Event]:
    """Events of a run in file order. Raises OutputError where there is no such file."""
    path = folder / "events.jsonl"
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a line that was torn with the run
                if isinstance(event, dict):
                    yield event
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error


def of_host(folder: Path, name: str) -> list[Event]:
    """All that concerns a host: its own states, and VMs that come and go. Raises InputError."""
    found = [one for one in read(folder) if name in (one.get("host"), one.get("to"))]
    if not found:
        known = dict.fromkeys(str(one["host"]) for one in read(folder) if "host" in one)
        raise _unknown(folder, "--host", name, list(known))
    return found


def of_vm(folder: Path, name: str) -> list[Event]:
    """All that concerns a VM, and what its host went through meanwhile. Raises InputError."""
    host: str | None = None
    found: list[Event] = []
    known = False
    for event in read(folder):
        if event.get("vm") == name:
            known = True
            found.append(event)
            if event.get("kind") in ARRIVES:
                host = event.get("host")
            elif event.get("kind") == "migrated":
                host = event.get("to")
            elif event.get("kind") in LEAVES:
                host = None
        elif host is not None and event.get("host") == host and event.get("kind") in OF_THE_HOST:
            found.append(event)
    if not known:
        named = dict.fromkeys(str(one["vm"]) for one in read(folder) if "vm" in one)
        raise _unknown(folder, "--vm", name, list(named))
    return found


def _unknown(folder: Path, option: str, name: str, known: list[str]) -> InputError:
    why = f"is in none of the run's decisions: {closest(name, known)}known: {listed(known)}"
    return InputError(str(folder), [Problem(option, None, shown(name), why)])


def lines(events: list[Event]) -> list[str]:
    """A line for each event, by time; ties in file order."""
    ordered = sorted(events, key=lambda event: float(event.get("at_s") or 0.0))
    return [f"{clock(float(event.get('at_s') or 0.0)):>12}  {_about(event)}" for event in ordered]


def _about(event: Event) -> str:
    vm = event.get("vm")
    return sentence(event) if vm is None else f"{vm} {sentence(event)}"
