"""From a scenario file to a checked scenario with all its inputs, or all that is wrong with it.

A scenario comes from somebody else: it may name files in its own folder and traces in the folder
that the user points to, and nothing outside them. The digest covers what decides the result (the
scenario with its defaults, the contents of its files) and no name of any file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster import (
    assumptions,
    outages,
    scenario_checks,
    scenario_events,
    scenario_hashes,
    yaml_input,
)
from cluster.outages import NamedOutage
from cluster.page_hashes import PageHashes
from cluster.page_hashes import content_digest as hashes_digest
from cluster.scenario import HASH_KEYS, Scenario
from cluster.scenario_checks import Parts
from cluster.scenario_paths import data_folder, inside
from cluster.scenario_problems import errors_of, from_validation, problem
from cluster.trace import Trace, TraceError, content_digest
from cluster.trace_vms import TraceVms, choose, running, take
from cluster.yaml_input import Document, InputError, Problem
from hostsim.units import FILE

_STAND_IN: dict[str, Any] = {"name": "unknown", "duration": "60 s", "hosts": ({"name": "unknown"},)}
"""For required keys that are broken, so that the rest can be checked; never part of a message."""
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LISTS = ("hosts", "images", "workloads", "vms", "pools", "rules", "events")
_CHECKS = (
    scenario_checks.time_grid,
    scenario_checks.names,
    scenario_checks.references,
    scenario_checks.sizes,
    scenario_checks.applications,
    scenario_checks.pools,
    scenario_checks.rules,
    scenario_checks.arrivals,
    scenario_checks.demand,
    scenario_hashes.check,
    scenario_events.check,
)
"""In this order: `names` finds the VMs that events may name."""


class ScenarioError(InputError):
    """A scenario, or a file that it names, is wrong."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A scenario that may run."""

    scenario: Scenario
    trace: Trace | None
    scenario_yaml: str
    """As run: the file, with the seed and the images that were used."""
    digest: str
    assumptions: dict[str, Any]
    warnings: tuple[str, ...]
    trace_vms: TraceVms | None
    """Exactly where there is a trace: which of its VMs take part, and what was drawn for each."""
    hashes: Mapping[str, PageHashes] = field(default_factory=dict)
    """Image name -> the real guests whose pages it stands for, where its content is hashes."""
    outages: tuple[NamedOutage, ...] = ()
    """Failures of hosts that a file names."""


def load(
    path: Path,
    *,
    data_root: Path | None = None,
    seed: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read and check the scenario at `path`; `seed` replaces the file's.

    data_root: the folder in which `trace.data` and `content.data` name a folder. changes: places in
    the file, such as "vms.0.memory", and values to put there; None takes a key away.
    """
    document, problems = read(path)
    for place, value in {**(changes or {}), **({} if seed is None else {"seed": seed})}.items():
        _change(document.data, place, value)
    changed = seed is not None or bool(changes) or bool(document.included)
    return check(document, problems, path.parent, data_root, changed=changed)


def read(path: Path) -> tuple[Document, list[Problem]]:
    """The file at `path` as plain data, a mapping, with the images that it names; what is wrong
    with these. Raises ScenarioError."""
    try:
        document = yaml_input.read(path)
    except InputError as error:
        raise ScenarioError(error.file, error.problems) from None
    if not isinstance(document.data, dict):
        keys = ", ".join(Scenario.model_fields)
        fault = Problem("", document.line(()), "", f"must be a mapping with some of: {keys}")
        raise ScenarioError(document.file, [fault])
    return document, list(_read_images(document, path.parent))


def check(
    document: Document,
    problems: Sequence[Problem],
    folder: Path,
    data_root: Path | None,
    *,
    changed: bool,
) -> Loaded:
    """The scenario that a document holds, or ScenarioError with `problems` and all that it finds.

    folder: the scenario's. changed: the document's data is no longer what its text says.
    """
    parts, found = _validate(document)
    # A list that could not be read is reported by its reader, not for being no list.
    found = [item for item in found if not (problems and item.path == "images")]
    found = [*problems, *found]
    found += _read_trace(parts, folder, data_root)
    found += scenario_hashes.read(parts, folder, data_root)
    found += [item for holds in _CHECKS for item in holds(parts)]
    named, unreadable = outages.read(parts, folder)
    found += unreadable
    if found:
        raise ScenarioError(document.file, sorted(found, key=_in_file_order))
    return _loaded(parts, named, changed=changed)


def _change(data: Any, place: str, value: Any) -> None:
    """Put `value` at a place of the file as read. Raises LookupError where the way is not there."""
    *way, last = [int(step) if step.isdecimal() else step for step in place.split(".")]
    for step in way:
        data = data.setdefault(step, {}) if isinstance(data, dict) else data[step]
    if value is None:
        data.pop(last, None)
    else:
        data[last] = value


def _in_file_order(item: Problem) -> tuple[bool, int]:
    """By line; stable. Those of other files come last."""
    return item.file is not None, item.line or 0


def _loaded(parts: Parts, named: tuple[NamedOutage, ...], *, changed: bool) -> Loaded:
    scenario, trace, vms = parts.scenario, parts.trace, parts.trace_vms
    stated = parts.document.data
    assumed = assumptions.of_scenario(scenario, stated)
    if trace is not None and vms is not None:
        assumed |= assumptions.of_trace(scenario, trace, vms)
    assumed |= assumptions.of_hashes(scenario, parts.hashes)
    text = parts.document.text
    if changed:
        text = yaml.dump(stated, Dumper=_DUMPER, sort_keys=False, width=100)
    warned = scenario_checks.warnings(scenario, trace, vms)
    digest = digest_of(scenario, trace, parts.hashes, named)
    warnings = tuple(warned)
    return Loaded(scenario, trace, text, digest, assumed, warnings, vms, parts.hashes, named)


def digest_of(
    scenario: Scenario,
    trace: Trace | None,
    hashes: Mapping[str, PageHashes] | None = None,
    named: tuple[NamedOutage, ...] = (),
) -> str:
    """SHA-256 of everything that decides the result."""
    values = scenario.model_dump(mode="json", exclude={"trace": {"path", "data"}})
    if scenario.availability.trace is not None:
        values["availability"]["trace"] = [[one.at_ms, one.host, one.repair_ms] for one in named]
    for image in values["images"]:
        found = (hashes or {}).get(image["name"])
        for key in ("hashes", *HASH_KEYS):
            if found is None or key not in ("others", "interval"):
                del image["content"][key]
        if found is not None:
            image["content"]["hashes"] = hashes_digest(found)
    content = None if trace is None else content_digest(trace)
    text = json.dumps({"scenario": values, "trace": content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def tuples(data: Any) -> Any:
    """Lists as tuples: strict models take nothing else."""
    if isinstance(data, dict):
        return {key: tuples(value) for key, value in data.items()}
    return tuple(map(tuples, data)) if isinstance(data, list) else data


def _model(data: Any) -> Scenario:
    # Strict: no "5" for 5, no true for 1.
    return Scenario.model_validate(tuples(data), strict=True, context={FILE: True})


def _validate(document: Document) -> tuple[Parts, list[Problem]]:
    """The scenario, or its valid part and what is wrong with the rest."""
    data = document.data
    try:
        scenario = _model(data)
    except ValidationError as error:
        broken = {_element(found["loc"]) for found in errors_of(error, data)}
        keys = {str(place[0]) for place in broken}
        kept: dict[str, Any] = {key: value for key, value in data.items() if key not in keys}
        places = {key: list(range(len(kept.get(key, ())))) for key in _LISTS}
        for key in _LISTS:
            if key in keys and (key,) not in broken:
                places[key] = [at for at in range(len(data[key])) if (key, at) not in broken]
                kept[key] = [data[key][at] for at in places[key]]
        missing = {key: value for key, value in _STAND_IN.items() if not kept.get(key)}
        scenario = _model(kept | missing)
        if "hosts" in missing:
            scenario = scenario.model_copy(update={"hosts": ()})
        parts = Parts(document, scenario, places, keys)
        return parts, from_validation(error, Scenario, document)
    places = {key: list(range(len(getattr(scenario, key)))) for key in _LISTS}
    return Parts(document, scenario, places, set()), []


def _element(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The smallest thing that is left out when what lies at `loc` is invalid."""
    in_list = loc[0] in _LISTS and len(loc) > 1 and isinstance(loc[1], int)
    return loc[:2] if in_list else loc[:1]


def _read_images(document: Document, folder: Path) -> Iterator[Problem]:
    """Where `images` names a file, take its list."""
    name = document.data.get("images")
    if not isinstance(name, str):
        return
    try:
        other = yaml_input.read(inside(folder, name))
    except ValueError as error:
        yield problem(document, ("images",), str(error))
    except InputError as error:
        for found in error.problems:
            if found.line is None:  # of the file as a whole: shown where it is named
                yield problem(document, ("images",), found.message)
            else:
                yield Problem(found.path, found.line, found.value, found.message, error.file)
    else:
        if isinstance(other.data, dict) and isinstance(other.data.get("images"), list):
            document.include("images", other)
            for key in sorted(other.data.keys() - {"images"}):
                line = other.line((key,))
                yield Problem(key, line, "", "unknown key: allowed here: images", other.file)
        else:
            yield Problem("images", other.line(("images",)), "", "must be a list", other.file)


def _load_trace(path: Path) -> Trace:
    """What reads traces takes a while to import, and what reads published ones as long again."""
    from cluster.trace_store import VMS, load_trace

    if (path / VMS).exists():
        return load_trace(path)
    from cluster.traces import load_input

    return load_input(path)


def _read_trace(parts: Parts, folder: Path, data_root: Path | None) -> Iterator[Problem]:
    """Load the trace into `parts`."""
    given = parts.document.data.get("trace")
    sources = [
        (key, given[key])
        for key in ("path", "data")
        if isinstance(given, dict) and isinstance(given.get(key), str)
    ]
    if len(sources) != 1:
        return
    key, name = sources[0]
    try:
        trace = _load_trace(_trace_path(key, name, folder, data_root))
    except (ValueError, TraceError) as error:
        yield parts.problem("trace", key, why=_trace_reason(error))
        parts.broken.add("trace")
        return
    source = parts.scenario.trace
    if source is not None and parts.whole("duration", "seed"):
        parts.trace = trace
        seed = parts.scenario.seed
        found = running(parts.trace, source.start, parts.scenario.duration)
        found = choose(parts.trace, found, source.vms, seed)
        parts.trace_vms = take(parts.trace, source, seed, found)


def _trace_path(key: str, name: str, folder: Path, data_root: Path | None) -> Path:
    return inside(folder, name) if key == "path" else data_folder(name, data_root)


def _trace_reason(error: ValueError | TraceError) -> str:
    return f"{error.path.name}: {error.message}" if isinstance(error, TraceError) else str(error)
