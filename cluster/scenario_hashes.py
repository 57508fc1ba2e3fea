"""Images whose pages hold what real guests' did: their files read, and checked against the VMs.

A file lies in the scenario's folder, or in a folder of the data that the user points to. What VMs
of such an image may be told beside it: they simulate every page, come in groups of at most as many
as the file has guests, and their workload, if they have one, only reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cluster.page_hashes import Guest, HashesError
from cluster.page_hashes import read as read_file
from cluster.scenario import ImageContent, NamedImage, NamedWorkload, VmGroup
from cluster.scenario_checks import Parts
from cluster.scenario_paths import data_folder, inside
from cluster.scenario_text import bytes_text
from cluster.yaml_input import Problem
from hostsim.units import PAGE_SIZE


def read(parts: Parts, folder: Path, data_root: Path | None) -> Iterator[Problem]:
    """Read the file of each image with hashes into `parts`."""
    for at, image in parts.items("images"):
        content = image.content
        if content.hashes is None:
            continue
        key = "hashes" if content.data is None else "data"
        try:
            within, words = folder, "the scenario's folder"
            if content.data is not None:
                within, words = data_folder(content.data, data_root), "the folder that data names"
            key = "hashes"
            path = inside(within, content.hashes, words)
            parts.hashes[image.name] = read_file(
                path, guest=content.guest, trace=content.trace, snapshot=content.snapshot
            )
        except (ValueError, HashesError) as error:
            yield parts.problem("images", at, "content", key, why=str(error))
            parts.broken.add("images")


def check(parts: Parts) -> Iterator[Problem]:
    """Problems of images with hashes and of the VMs that have them."""
    images = {image.name: image for _, image in parts.items("images")}
    with_hashes = [name for name, image in images.items() if image.content.hashes is not None]
    if with_hashes and parts.whole("fidelity") and parts.scenario.fidelity.sample != 1:
        why = f"must be 1: image {with_hashes[0]} replays every page of real guests"
        yield parts.problem("fidelity", "sample", why=why)
    workloads = {workload.name: workload for _, workload in parts.items("workloads")}
    for at, group in parts.items("vms"):
        image = images.get(group.image)
        if image is not None and image.content.hashes is not None:
            yield from _group(parts, at, group, image, workloads.get(group.workload or ""))
        elif group.workload is None and image is not None:
            yield parts.problem("vms", at, "workload", why="is required")
    source = parts.scenario.trace
    for name in with_hashes if source is not None else ():
        if source is not None and source.images.get(name):
            why = "must not be for VMs of a trace: its content is the hashes of certain guests"
            yield parts.problem("trace", "images", name, why=why)


def _pages(guest: Guest, content: ImageContent) -> int:
    """Pages that a guest's VM has at least: all its memory, touched or not."""
    return int(guest.hashes.shape[1]) + (len(guest.others) if content.others else 0)


def _group(
    parts: Parts, at: int, group: VmGroup, image: NamedImage, workload: NamedWorkload | None
) -> Iterator[Problem]:
    for number, phase in enumerate(workload.phases if workload is not None else ()):
        where = f"{group.workload}, phase {number + 1}, "
        if phase.writes or phase.data:
            why = (
                f"{where}must only read (writes: 0 %, no data): what pages hold, {image.name} says"
            )
            yield parts.problem("vms", at, "workload", why=why)
        elif phase.memory is not None:
            why = f"{where}must not give memory: what is in use, {image.name} says"
            yield parts.problem("vms", at, "workload", why=why)
    found = parts.hashes.get(image.name)
    if found is None:
        return
    n = len(found.guests)
    if group.count > n:
        why = f"is more than the {n} guests that the hashes of {image.name} are of"
        yield parts.problem("vms", at, "count", why=why)
    sizes = [_pages(guest, image.content) for guest in found.guests[: group.count]]
    if group.memory < max(sizes) * PAGE_SIZE:
        why = f"must be at least {bytes_text(max(sizes) * PAGE_SIZE)} for the {max(sizes)} pages"
        yield parts.problem("vms", at, "memory", why=f"{why} of a guest of {image.name}")
