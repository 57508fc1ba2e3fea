"""What a guest image's pages hold, laid out slot by slot.

An image says which part of its pages has which use and content class. Here that becomes a pattern
of PATTERN slots per section (kernel, rest of the footprint, growth), spread so evenly that its
first n slots have the floor or the ceiling of each entry's part, whatever n: so under miniature
simulation, too, and equal in every VM of the image. A longer section repeats it after as many slots
as its permille sum to, where every part is whole.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from hostsim import rng
from hostsim.guest_config import ContentTable, GuestImage
from hostsim.state import (
    ANON,
    CACHE,
    DUPLICATE,
    FREE,
    IN_FOOTPRINT,
    IN_GROWTH,
    IN_KERNEL,
    KERNEL,
    N_CLASSES,
    PATTERN,
    POOL,
    Array,
)

_USES = {"kernel": KERNEL, "cache": CACHE, "anon": ANON, "free": FREE}
_CLASSES = ("zero", "image", "application", "duplicate", "unique", "pool")


@dataclass(frozen=True, eq=False)
class Composition:
    """The layout of one guest image. `compose` makes one of each: another object is another layout.

    kinds (3, PATTERN) int64, ranks (3, PATTERN) int64, class_counts (3, 6) int64, periods (3,)
    int64: see HostState.
    kernel_permille: unmovable part of the footprint.
    image: what is laid out.
    copies_permille, copies_phase: the j-th duplicate slot of a VM holds the VM's content
    number (1000 j + copies_phase) // copies_permille; -1 is one whose frame the sample lacks.
    """

    kinds: Array
    ranks: Array
    class_counts: Array
    periods: Array
    kernel_permille: int
    copies_permille: int
    copies_phase: int
    image: GuestImage


def _entries(table: ContentTable, uses: tuple[str, ...]) -> list[tuple[int, int]]:
    """(kind, weight) of the non-empty entries of some uses of a table."""
    return [
        (_USES[use] * 8 + content, weight)
        for use in uses
        for content, name in enumerate(_CLASSES)
        if (weight := getattr(getattr(table, use), name)) > 0
    ]


def _spread(entries: list[tuple[int, int]]) -> Array:
    """(PATTERN,) kinds, such that the first n slots hold the floor or the ceiling of each part.

    The j-th slot of an entry may come once its exact part exceeds j - 1, and must come before that
    exceeds j: of those that may, the one that must come first is next (ties: the first entry).
    """
    if not entries:
        return np.full(PATTERN, FREE * 8 + _CLASSES.index("unique"), np.int64)
    total = sum(weight for _, weight in entries)
    pattern = []
    may_come = [0] * len(entries)
    must_come = [-(-total // weight) for _, weight in entries]
    given = [0] * len(entries)
    for slot in range(total):  # there every part is whole, and all begins anew
        _, entry = min((must, at) for at, must in enumerate(must_come) if may_come[at] <= slot)
        kind, weight = entries[entry]
        pattern.append(kind)
        given[entry] += 1
        may_come[entry] = given[entry] * total // weight
        must_come[entry] = -(-(given[entry] + 1) * total // weight)
    return np.resize(np.array(pattern, np.int64), PATTERN)


def copies_phase(seed: int, copies_permille: int) -> int:
    """Where in a group of duplicates a sample begins: see Composition.

    The last group of a VM is cut short. In a whole VM that is a page or two, in a sample as many
    slots. So slots of a group that began before the sample share a frame that is counted elsewhere;
    then n slots hold n / copies contents in the mean over seeds, for any n.
    """
    key = np.uint64(rng.stream(seed, rng.SLOTS, 3, 0))
    return 999 - rng.below(key, 0, copies_permille)


@functools.cache
def compose(image: GuestImage, seed: int = 0, sample: int = 1) -> Composition:
    """Lay out an image: a function of these alone, so equal on every host.

    Where a slot stands for many pages, which ones it stands for is chance: each section's pattern
    then begins at a place that the seed draws, equal for all VMs. A part of n slots holds about the
    floor or the ceiling of each entry still, and in the mean over seeds exactly what is due.
    """
    kinds = np.zeros((3, PATTERN), np.int64)
    kinds[IN_KERNEL] = _spread(_entries(image.content, ("kernel",)))
    kinds[IN_FOOTPRINT] = _spread(_entries(image.content, ("cache", "anon", "free")))
    kinds[IN_GROWTH] = _spread(_entries(image.growth, ("cache", "anon", "free")))
    kernel_permille = sum(image.content.kernel.model_dump().values())
    # A section's parts are exact after as many slots as its weights sum to: there it repeats.
    periods = np.array([kernel_permille, PATTERN - kernel_permille, PATTERN])
    periods[periods == 0] = PATTERN
    if sample > 1:
        for section, period in enumerate(periods.tolist()):
            first = rng.below(np.uint64(rng.stream(seed, rng.SLOTS, section, 0)), 0, period)
            kinds[section, :period] = np.roll(kinds[section, :period], -first)
    ranks = np.zeros_like(kinds)
    class_counts = np.zeros((3, N_CLASSES), np.int64)
    for section in range(3):
        for content in range(N_CLASSES):
            is_class = kinds[section] % 8 == content
            is_class[periods[section] :] = False
            ranks[section, is_class] = np.arange(is_class.sum())
            class_counts[section, content] = is_class.sum()
    copies = round(image.copies * 1000)
    phase = copies_phase(seed, copies) if sample > 1 else 0
    return Composition(kinds, ranks, class_counts, periods, kernel_permille, copies, phase, image)


def class_slots(composition: Composition, section: int, n_slots: int) -> Array:
    """(6,) int64: slots of each content class among the first `n_slots` of a section."""
    whole, rest = divmod(n_slots, int(composition.periods[section]))
    counts: Array = composition.class_counts[section] * whole
    tail = composition.kinds[section, :rest] % 8
    return counts + np.bincount(tail, minlength=N_CLASSES)


@functools.lru_cache(maxsize=256)
def class_base(composition: Composition, kernel: int, footprint: int) -> Array:
    """(3, 6) int64: slots of each class in the sections before each one. Not to be written to."""
    base = np.zeros((3, N_CLASSES), np.int64)
    base[IN_FOOTPRINT] = class_slots(composition, IN_KERNEL, kernel)
    base[IN_GROWTH] = base[IN_FOOTPRINT] + class_slots(
        composition, IN_FOOTPRINT, footprint - kernel
    )
    return base


@functools.lru_cache(maxsize=256)
def range_lengths(
    composition: Composition, kernel: int, footprint: int, size: int, pool: int
) -> Array:
    """(6,) int64: distinct contents that a VM of `size` slots can hold of each class.

    pool: of the image's pool, in slots. Not to be written to.
    """
    counts = class_base(composition, kernel, footprint)[IN_GROWTH]
    counts = counts + class_slots(composition, IN_GROWTH, size - footprint)
    counts[DUPLICATE] = -(-counts[DUPLICATE] * 1000 // composition.copies_permille) + 1
    counts[POOL] = pool
    return counts
