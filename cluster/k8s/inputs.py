"""What of a scenario goes to the cluster: the file and those that it names, checked before they go.

Files of the scenario's folder travel in a ConfigMap, which holds 1 MiB. What the scenario names in
the folder of data does not: in the cluster that is a volume. Which files these are, the scenario
itself says once it is loaded, so nothing but what a run would read is sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import scenario_file, yaml_input
from cluster.scenario_file import Loaded, ScenarioError
from cluster.scenario_paths import inside
from cluster.studies import sweep_file
from cluster.trace_store import USAGE, VMS
from cluster.yaml_input import InputError, Problem

CONFIG_MAP_BYTES = 1 << 20
"""What a ConfigMap may hold (Kubernetes, Concepts: ConfigMap)."""
NAME_MAX = 47
"""Characters of a RayJob's name: KubeRay's MaxRayJobNameLength, or its clusters' services would
have names that are too long."""
_DIGEST_CHARS = 8
_OF_IMAGE = re.compile(r"images\[(\d+)\]\.content\.(?:data|hashes)")


@dataclass(frozen=True, slots=True)
class Inputs:
    """A scenario that may be sent."""

    file: str
    """Name of the scenario file, a key of `files`."""
    files: Mapping[str, bytes]
    """Path below the scenario's folder, with `/` -> content, in order of path."""
    slug: str
    """The scenario's name and seed, as they may be part of a name in Kubernetes."""
    sweep: bool
    needs_data: bool
    """Whether the run reads a folder of data."""
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """Names the run: equal inputs have equal names, so that sending them again goes on with
        the same results, and others never meet them."""
        found = hashlib.sha256()
        for path, content in self.files.items():
            found.update(f"{path}\0{len(content)}\0".encode() + content)
        end = f"-{found.hexdigest()[:_DIGEST_CHARS]}"
        return self.slug[: NAME_MAX - len(end)].rstrip("-") + end


def collect(
    path: Path, *, data_root: Path | None, seed: int | None, data_claim: str | None
) -> Inputs:
    """The scenario at `path` and its files.

    data_root: the folder of data here. data_claim: the volume that holds it in the cluster; then
    it may be missing here, and what lies in it is not checked. Raises InputError.
    """
    documents: list[Any] = []
    warnings = _check(path, data_root, seed, data_claim, documents)
    names: dict[str, None] = {}
    needs_data = False
    for data in documents:
        for is_data, name in _named(data):
            needs_data = needs_data or is_data
            if not is_data:
                names[name] = None
    if needs_data and data_claim is None:
        why = (
            "reads the folder of data, which is too large for a ConfigMap: copy it to a "
            "PersistentVolumeClaim and name that by --data-claim"
        )
        raise InputError(str(path), [Problem("", None, "", why)])
    listed = scenario_file.read(path)[0].included.get("images")
    if listed is not None:
        names[Path(listed).relative_to(path.parent).as_posix()] = None
    files = {path.name: path.read_bytes()}
    for name in names:
        files |= _files(path.parent, name)
    _check_size(path, files)
    scenario = documents[0]
    used = scenario.get("seed", 1) if seed is None else seed
    return Inputs(
        path.name,
        dict(sorted(files.items())),
        slug(f"{scenario.get('name', 'run')}-{used}"),
        sweep_file.has_sweep(path),
        needs_data,
        warnings,
    )


def slug(text: str) -> str:
    """Text as a name in Kubernetes: small letters, digits and `-`, a letter first (RFC 1035)."""
    found = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return found if found[:1].isalpha() else f"run-{found}".rstrip("-")


def _check(
    path: Path,
    data_root: Path | None,
    seed: int | None,
    data_claim: str | None,
    documents: list[Any],
) -> tuple[str, ...]:
    """Load the scenario, or each of a sweep; their plain data goes into `documents`."""

    def keep(loaded: Loaded) -> None:
        documents.append(yaml_input.parse(loaded.scenario_yaml.encode(), path.name).data)

    if sweep_file.has_sweep(path):
        return sweep_file.load_sweep(path, data_root=data_root, seed=seed, fits=keep).warnings
    try:
        loaded = scenario_file.load(path, data_root=data_root, seed=seed)
    except ScenarioError as error:
        data = scenario_file.read(path)[0].data
        rest = [one for one in error.problems if not _is_of_data(one.path, data)]
        if data_claim is None or rest:
            raise ScenarioError(error.file, rest or error.problems) from None
        documents.append(data)
        what = ", ".join(dict.fromkeys(one.path for one in error.problems))
        return (f"{what}: not found here, so it is checked in the cluster only",)
    keep(loaded)
    return loaded.warnings


def _is_of_data(place: str, data: Mapping[str, Any]) -> bool:
    """Whether what stands at a place of a scenario is looked for in the folder of data."""
    image = _OF_IMAGE.fullmatch(place)
    if image is None:
        return place == "trace.data"
    return data["images"][int(image[1])]["content"].get("data") is not None


def _named(data: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Whether it lies in the folder of data, and the name, of each file or folder that a
    scenario names; a list of images in a file of its own is not among them."""
    trace = data.get("trace") or {}
    availability = data.get("availability") or {}
    for key in ("path", "data"):
        if isinstance(trace.get(key), str):
            yield key == "data", trace[key]
    if isinstance(availability.get("trace"), str):
        yield False, availability["trace"]
    for image in data.get("images") or ():
        content = image.get("content") or {}
        if isinstance(content.get("hashes"), str):
            yield content.get("data") is not None, content["hashes"]


def _files(folder: Path, name: str) -> dict[str, bytes]:
    """The file `name` of the folder, or all that is read of a trace's folder."""
    target = inside(folder, name)
    if target.is_file():
        return {Path(name).as_posix(): target.read_bytes()}
    if (target / VMS).exists():
        paths = [target / one for one in (VMS, USAGE) if (target / one).exists()]
    else:
        paths = sorted(one for one in target.rglob("*") if one.is_file())
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in paths}


def _check_size(path: Path, files: Mapping[str, bytes]) -> None:
    """InputError where the files do not fit into a ConfigMap."""
    size = sum(map(len, files.values()))
    if size <= CONFIG_MAP_BYTES:
        return
    largest = sorted(files, key=lambda name: (-len(files[name]), name))[:3]
    shown = ", ".join(f"{name} ({len(files[name])} bytes)" for name in largest)
    why = (
        f"the file and those that it names have {size} bytes, and a ConfigMap holds "
        f"{CONFIG_MAP_BYTES}; largest: {shown}. Put them in a folder NAME on a "
        "PersistentVolumeClaim, name that as `data: NAME`, and give --data-claim"
    )
    raise InputError(str(path), [Problem("", None, "", why)])
