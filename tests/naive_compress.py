"""The literal twin's compression cache (ESX 4.1): pages chosen for swap that compress, by age.

`Vm.compressed` holds their contents in the order in which they came: the first is the oldest. They
take quarters of a page (1 KiB), and all of a VM together as few whole frames as hold them.
"""

from __future__ import annotations

from naive_machine import ELSEWHERE, ZERO_PAGE, Content, Draws
from naive_policy import slots
from naive_state import Annotation, Esx, Vm

from hostsim import rng

KINDS = {"image": 1, "pool": 1, "application": 2, "duplicate": 3}
"""Of the ranges that contents are numbered in; images begin with their pool."""


def quarters(esx: Esx, vm: Vm, ppn: int) -> int:
    """Quarters of a page that its content compresses to; 0 where it does not."""
    content = esx.read(vm, ppn)
    if content == ZERO_PAGE:
        return 1
    table, rank = vm.spec.image.compressible, ease(esx, vm, ppn, content)
    if rank < table.quarter:
        return 1
    return 2 if rank < table.quarter + table.half else 0


def ease(esx: Esx, vm: Vm, ppn: int, content: Content) -> int:
    """Permille of contents that compress better: by what the content is, or, of one that no other
    page holds, by where it lies."""
    if content == ELSEWHERE or content.startswith(b"written"):
        return esx.draws(rng.EASE, vm.spec.vm, 0).below(ppn, 1000)
    name, *group, place = content.decode().split()
    at = int(place)
    if name == "image" and vm.spec.replay is None and vm.spec.image.pool:
        at += max(slots(vm.spec.image.pool, esx.sample), 1)
    family = 2 * int(group[-1])
    if group[0] == "of":  # "application of image 3 5": no group's
        family += 1
    return _draws(esx, family, 1 + KINDS[name]).below(at, 1000)


def _draws(esx: Esx, owner: int, kind: int) -> Draws:
    return esx.draws(rng.EASE, owner, kind)


def taken(esx: Esx, vm: Vm) -> int:
    """Quarters of a page that the cache holds."""
    return sum(quarters(esx, vm, ppn) for ppn in vm.compressed)


def fit(esx: Esx, vm: Vm) -> int:
    """Take frames, or give them back, low ones first, until they are as many as needed. Freed."""
    before = len(vm.cache_frames)
    needed = -(-taken(esx, vm) // 4)
    while len(vm.cache_frames) < needed:
        vm.cache_frames.append(esx.machine.take(b"compressed", vm.salt))
    while len(vm.cache_frames) > needed:
        vm.cache_frames.sort(reverse=True)
        esx.machine.release(vm.cache_frames.pop())
    return max(before - needed, 0)


def put(esx: Esx, vm: Vm, ppn: int, content: Content) -> None:
    """A page that has left its frame goes in."""
    vm.pmap[ppn] = Annotation.COMPRESSED
    vm.compressed[ppn] = content
    fit(esx, vm)


def take_out(esx: Esx, vm: Vm, ppn: int) -> tuple[Content, int]:
    """A page goes out. What it held, and how many frames that frees."""
    del vm.pmap[ppn]
    content = vm.compressed.pop(ppn)
    return content, fit(esx, vm)


def most(esx: Esx, vm: Vm) -> int:
    """Quarters of a page that the cache may hold."""
    compression = esx.config.compression
    return 4 * (vm.size * compression.maximum // 1000) if compression.enabled else 0
