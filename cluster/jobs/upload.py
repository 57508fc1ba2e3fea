"""What a job takes to the cluster: the scenario's file and what it names, and nothing beside them.

Ray puts a job's folder on Python's search path, on every node. So all of it lies in two folders
that no `import` can name: a file that a scenario names `numpy.py` stays data. Traces go in the
normal form, whatever they were published as: read and checked, with the same content digest.
"""

from __future__ import annotations

import copy
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.errors import RefusedError
from cluster.scenario_file import load, read
from cluster.scenario_paths import data_folder, inside
from cluster.studies.places import put
from cluster.studies.sweep_file import has_sweep, load_sweep
from cluster.trace_store import FACTS, save_trace
from cluster.traces import load_input

INPUT, DATA = "esxsim-input", "esxsim-data"
"""Folders of a job: the scenario's own, and the one of trace data."""
UPLOAD_MAX_BYTES = 100 << 20
"""What a Ray head takes in one request (DASHBOARD_CLIENT_MAX_SIZE of Ray 2.60)."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every member: equal input gives an equal package, which Ray then has already."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A scenario that may be submitted."""

    path: Path
    name: str
    warnings: tuple[str, ...]
    variants: tuple[dict[str, Any], ...]
    """The file's data, as each point of its sweep changes them; once where there is no sweep."""
    images: Path | None
    """The file that `images` names."""


@dataclass(frozen=True, slots=True)
class Named:
    """Something that a scenario names: a trace, or else a file."""

    is_trace: bool
    data: str | None
    """The folder of trace data that it lies in; None: in the scenario's folder."""
    name: str
    """Relative to there; for a trace in a data folder, the empty name."""


def check(path: Path, data_root: Path, seed: int | None) -> Checked:
    """Read a scenario, with or without a sweep, and all it names. Raises ScenarioError."""
    document, _ = read(path)
    images = Path(document.included["images"]) if "images" in document.included else None
    if not has_sweep(path):
        loaded = load(path, data_root=data_root, seed=seed)
        return Checked(path, loaded.scenario.name, loaded.warnings, (document.data,), images)
    plan = load_sweep(path, data_root=data_root, seed=seed)
    variants = []
    for point in plan.points:
        data = copy.deepcopy(plan.base.document.data)
        for place, value in point.changes:
            put(data, place, copy.deepcopy(value))
        variants.append(data)
    return Checked(path, plan.name, plan.warnings, tuple(variants), images)


def named(checked: Checked) -> list[Named]:
    """What a valid scenario names, in the file's order, each once."""
    found = []
    if checked.images is not None:
        found.append(Named(False, None, str(checked.images.relative_to(checked.path.parent))))
    for data in checked.variants:
        found += _named_in(data)
    return list(dict.fromkeys(found))


def _named_in(data: dict[str, Any]) -> Iterator[Named]:
    images = data.get("images")
    for image in images if isinstance(images, list) else ():
        content = image.get("content") or {}
        if content.get("hashes") is not None:
            yield Named(False, content.get("data"), content["hashes"])
    trace = data.get("trace") or {}
    if trace.get("path") is not None:
        yield Named(True, None, trace["path"])
    elif trace.get("data") is not None:
        yield Named(True, trace["data"], "")
    outages = (data.get("availability") or {}).get("trace")
    if outages is not None:
        yield Named(False, None, outages)


def pack(checked: Checked, data_root: Path, package: Path) -> int:
    """Write the package of a job as a zip file; its size in bytes.

    Raises RefusedError if it is more than Ray takes.
    """
    members = {f"{INPUT}/{checked.path.name}": checked.path}
    with tempfile.TemporaryDirectory(prefix="esxsim-") as scratch:
        for number, one in enumerate(named(checked)):
            members |= _members(one, checked.path.parent, data_root, Path(scratch) / str(number))
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, source in members.items():
                _add(archive, name, source)
    size = package.stat().st_size
    if size > UPLOAD_MAX_BYTES:
        largest = max(members.values(), key=lambda source: source.stat().st_size)
        raise RefusedError(
            f"{checked.path}: the scenario and what it names are {size / 2**20:.0f} MiB packed "
            f"(most of it {largest.name}), and a Ray head takes {UPLOAD_MAX_BYTES >> 20} MiB: "
            "cut the trace, or copy the files to the head and use esxsim run --address there"
        )
    return size


def _members(one: Named, folder: Path, data_root: Path, scratch: Path) -> dict[str, Path]:
    """Names in the package, and the files that hold their content."""
    base = folder if one.data is None else data_folder(one.data, data_root)
    source = base if not one.name else inside(base, one.name)
    place = PurePosixPath(INPUT) if one.data is None else PurePosixPath(DATA, one.data)
    place /= one.name
    if not one.is_trace:
        return {str(place): source}
    save_trace(load_input(source), scratch, {})
    files = sorted(path for path in scratch.iterdir() if path.name != FACTS)
    return {str(place / path.name): path for path in files}


def _add(archive: zipfile.ZipFile, name: str, source: Path) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    with source.open("rb") as content, archive.open(entry, "w", force_zip64=True) as target:
        while block := content.read(1 << 20):
            target.write(block)
