"""From real guests' page hashes to what VMs replay: contents numbered, events timed, reads drawn.

Contents are numbered cluster-wide when the scenario is loaded, in order of their hashes, over all
guests with hashes of one kind: equal hashes are one content whichever image names the file. Which
pages a guest only read between two dumps is known as a number, so they are drawn here, from the
seed and the VM's name, and a host draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster import hash_counts, page_hashes
from cluster.page_hashes import Guest, Hashes
from cluster.scenario import NamedImage, VmGroup, member_names
from cluster.scenario_file import Loaded
from cluster.trace_vms import draw
from hostsim.replay import EVENT, READ, USE_BITS, ZERO_PLACE, Replay
from hostsim.state import ANON, CACHE, FREE, KERNEL

Ints = npt.NDArray[np.int64]

_USE = np.full(256, ANON, np.int64)
_USE[[page_hashes.FREE]] = FREE
_USE[[page_hashes.MAPPED, page_hashes.CACHED]] = CACHE
_USE[[page_hashes.SLAB, page_hashes.KERNEL, page_hashes.RESERVED]] = KERNEL
"""Guest use of a page by its class; shared memory and what is not known count as anonymous."""


class Pages(NamedTuple):
    """A guest's touched pages, in the order in which a simulated guest numbers them.

    hashes (n_dumps, n) uint64; uses (n,) int64 guest use. Unmovable pages come first, those that
    the guest left free last; otherwise by address. Other pages of the hypervisor process, where
    they are asked for, are unmovable and come after the guest's own.
    """

    hashes: Hashes
    uses: Ints


def pages_of(guest: Guest, *, others: bool) -> Pages:
    """The pages that the VM of a guest will touch."""
    at = np.flatnonzero(guest.touched)
    uses = _USE[guest.classes[at]]
    hashes = guest.hashes[:, at]
    if others:
        n_dumps = len(hashes)
        hashes = np.hstack([hashes, np.tile(guest.others, (n_dumps, 1))])
        uses = np.concatenate([uses, np.full(len(guest.others), KERNEL)])
    order = np.argsort(np.select([uses == KERNEL, uses == FREE], [0, 2], 1), kind="stable")
    return Pages(hashes[:, order], uses[order])


def number(guests: Iterable[Pages]) -> Hashes:
    """(n_contents,) uint64: the hashes in order, without the zero page; place - 1 = position."""
    found = np.unique(np.concatenate([np.unique(pages.hashes) for pages in guests]))
    return np.asarray(found[found != 0], np.uint64)


def replay_of(
    guest: Guest, pages: Pages, contents: Hashes, seed: int, vm_name: str, interval_ms: int
) -> Replay:
    """What a VM replays: its boot is the first dump, the others follow at even intervals."""
    n_dumps, n = pages.hashes.shape
    places = np.where(
        pages.hashes == 0, ZERO_PLACE, np.searchsorted(contents, pages.hashes) + 1
    ).astype(np.int64)
    boot = np.zeros(n, EVENT)
    boot["page"], boot["word"] = np.arange(n), pages.uses << USE_BITS | places[0]
    parts = [boot]
    for dump in range(1, n_dumps):
        key = draw(seed, f"dump {dump}", vm_name)
        changed = places[dump] != places[dump - 1]
        at = _accessed(changed, int(guest.referenced[dump]), key)
        later = np.zeros(len(at), EVENT)
        later["page"] = at
        later["word"] = np.where(changed[at], places[dump][at], READ)
        # Evenly over the interval; the last one at its end.
        ranks = np.arange(1, len(at) + 1)
        later["at_ms"] = (dump - 1) * interval_ms - (-ranks * interval_ms // max(len(at), 1))
        parts.append(later)
    free, kernel = (int((pages.uses == use).sum()) for use in (FREE, KERNEL))
    return Replay(np.concatenate(parts), n, n - free, kernel, len(contents))


def _accessed(changed: npt.NDArray[np.bool_], referenced: int, key: int) -> Ints:
    """Pages accessed between two dumps, in random order: those that changed, and as many others as
    make up the number that is known."""
    words = _words(key, len(changed))
    # Changed pages first, then the others in random order: the first ones are those accessed.
    chosen = np.lexsort((words, ~changed))[: max(referenced, int(changed.sum()))]
    return chosen[np.argsort(words[chosen], kind="stable")]


def _words(key: int, n: int) -> npt.NDArray[np.uint64]:
    """(n,) uint64 draws of the stream `key`, as hostsim.rng makes them."""
    word = np.uint64(key) + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)


class Member(NamedTuple):
    """A VM that stands for a real guest."""

    name: str
    image: NamedImage
    guest: Guest
    pages: Pages


def members(loaded: Loaded) -> Iterator[tuple[VmGroup, Member]]:
    """Every VM with hashes, with its group, in the scenario's order: the i-th member of a group has
    the i-th guest of its image's file."""
    images = {image.name: image for image in loaded.scenario.images}
    known: dict[tuple[str, int], Pages] = {}
    for group in loaded.scenario.vms:
        found = loaded.hashes.get(group.image)
        if found is None:
            continue
        image = images[group.image]
        for i, (name, guest) in enumerate(zip(member_names(group), found.guests, strict=False)):
            if (image.name, i) not in known:
                known[image.name, i] = pages_of(guest, others=image.content.others)
            yield group, Member(name, image, guest, known[image.name, i])


def all_replays(loaded: Loaded) -> dict[str, Replay]:
    """VM name -> what it replays."""
    found = [member for _, member in members(loaded)]
    kind_of = {member.name: loaded.hashes[member.image.name].kind for member in found}
    contents = {
        kind: number(member.pages for member in found if kind_of[member.name] == kind)
        for kind in sorted(set(kind_of.values()))
    }
    return {
        one.name: replay_of(
            one.guest,
            one.pages,
            contents[kind_of[one.name]],
            loaded.scenario.seed,
            one.name,
            one.image.content.interval,
        )
        for one in found
    }


def held(loaded: Loaded) -> dict[str, Hashes]:
    """VM name -> (n_touched,) uint64: the hashes that its touched pages hold after boot."""
    return {member.name: member.pages.hashes[0] for _, member in members(loaded)}


def saved(loaded: Loaded) -> hash_counts.Saved:
    """What sharing saves after boot by the hash count, with all VMs on one unsalted host."""
    return hash_counts.saved(list(held(loaded).values()))
