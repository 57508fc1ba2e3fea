"""Measures what a guest's memory consists of, and writes it to `scenarios/images.yaml`.

Input: page fingerprints of real Debian 12 guests (`kvm-fingerprints`: a 64-bit hash and a use class
for every 4 KiB page). A *table* counts touched pages by use (row) and content (column). The content
of a page is `zero`; else `image` if an idle guest other than this one holds it too (so it comes
with the operating system); else `application` if another guest with the same workload holds it;
else `duplicate` if it occurs at least twice in this guest; else `unique`.

Where a workload has one guest only, or no use classes, HEADER says what stands in.
Run: python tests/data_tools/measure_images.py FINGERPRINTS_FOLDER OUTPUT.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Table = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Contents = npt.NDArray[np.int64]
"""(n_pages,) index into CONTENTS, or into USES."""

USES = ("kernel", "cache", "anon", "free")
CONTENTS = ("zero", "image", "application", "duplicate", "unique")
KERNEL, CACHE, ANON, FREE = range(len(USES))
ZERO, IMAGE, APPLICATION, DUPLICATE, UNIQUE = range(len(CONTENTS))
USE_OF_CLASS = np.array([FREE, ANON, CACHE, CACHE, KERNEL, KERNEL, KERNEL, ANON])
"""(8,) use of the classes free, anonymous, mapped file, cached, slab, kernel, reserved, shmem."""

PAGES_PER_MIB = 256

HEADER = """\
# What the memory of a guest consists of, measured: Debian 12 guests (kernel 6.1, 4 KiB pages), each
# cloned from one disk image. Source: the project's own page fingerprints of paused guests
# ("kvm-fingerprints"). Measure again: python tests/data_tools/measure_images.py FOLDER THIS_FILE
#
# zero: all bytes zero. image: also found in another, idle guest of the same system. application:
# not image, but also found in another guest with this workload. duplicate: neither, but
# at least twice in the guest (`copies` = mean copies of such a content). unique: the rest.
# Percentages are of the footprint (touched pages; the 256 MiB guests were backed in 2 MiB steps, so
# their free-and-zero part is an upper bound). `growth` is the composition of pages put to use after
# boot: pages whose content changed between the first and the last of 13 dumps over 3 minutes (idle,
# web, py: {changed} pages), or the cache and anon parts of the footprint (db, file).
# Growth from pages never used before could not be measured: 1 to 127 of 32768 pages per guest.
#
# idle, web: 10 guests of 256 MiB. file: 3 guests of 256 MiB that read their whole disk, so its
# `application` is the disk's files. db, py: 1 guest of 128 MiB each, with a guest that runs
# PostgreSQL and Python as its peer; py also wrote 3.2 MiB that are equal in all py guests,
# which cannot show with one guest and count as unique. The uses of db's pages were not recorded:
# kernel and free are the mean of web and py at 128 MiB, pages with a known content have that
# content's use, the rest is anon where it was rewritten during the dumps and cache where not.
"""


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest, arrays by page number; masks without a series of dumps are all False.

    `hashes` (n_pages,) uint64, 0 exactly for a zero page; `classes` (n_pages,) uint8, 255 unknown;
    `touched` (n_pages,) bool: the host had memory behind the page;
    `changed` (n_pages,) bool: content differs between the first and the last dump;
    `rewritten` (n_pages,) bool: content differs between two consecutive dumps at least once.
    """

    hashes: Hashes
    classes: npt.NDArray[np.uint8]
    touched: Mask
    changed: Mask
    rewritten: Mask


@dataclass(frozen=True, slots=True)
class Profile:
    """One image: mean `pages` (4, 5) and `growth` (4, 5) in pages, `copies` mean copies."""

    name: str
    application: str | None
    pages: Table
    growth: Table
    copies: float


def load_snapshots(path: Path) -> list[Guest]:
    """Guests of an `A_*` or `D_multi` file, in the order of their numbers."""
    guests = []
    with np.load(path, allow_pickle=False) as arrays:
        for key in sorted(name for name in arrays.files if name.startswith("h")):
            hashes = arrays[key]
            touched = np.unpackbits(arrays[f"p{key[1:]}"])[: hashes.size].astype(np.bool_)
            never = np.zeros(hashes.size, dtype=np.bool_)
            guests.append(Guest(hashes, arrays[f"c{key[1:]}"], touched, never, never))
    return guests


def load_series(path: Path) -> dict[str, Guest]:
    """Last dump of each guest in `C_timeseries`, by workload.

    All pages count as touched: the host saw 32,728 of 32,768 accessed before the first dump.
    """
    guests = {}
    with np.load(path, allow_pickle=False) as arrays:
        for workload in ("web", "db", "py", "idle"):
            dumps = arrays[f"h_{workload}"]
            touched = np.ones(dumps.shape[1], dtype=np.bool_)
            changed = dumps[0] != dumps[-1]
            rewritten = (dumps[1:] != dumps[:-1]).any(axis=0)
            classes = arrays[f"c_{workload}"]
            guests[workload] = Guest(dumps[-1], classes, touched, changed, rewritten)
    return guests


@dataclass(frozen=True, slots=True)
class Group:
    """`guests`, their distinct `contents` (n,) uint64, and how many hold each: `holders` (n,)."""

    guests: tuple[Guest, ...]
    contents: Hashes
    holders: npt.NDArray[np.int64]

    def apart_from(self, guest: Guest) -> Hashes:
        """Contents that some guest of the group other than `guest` holds."""
        member = any(other is guest for other in self.guests)
        return self.contents[self.holders > int(member)]


def group_of(guests: Sequence[Guest]) -> Group:
    """The group of `guests`, which may be empty."""
    nothing = np.zeros(0, dtype=np.uint64)
    distinct = [np.unique(guest.hashes[guest.hashes != 0]) for guest in guests]
    contents, holders = np.unique(np.concatenate([nothing, *distinct]), return_counts=True)
    return Group(tuple(guests), contents, holders.astype(np.int64))


def content_classes(guest: Guest, system: Hashes, peers: Hashes) -> Contents:
    """What every page of `guest` holds."""
    _, inverse, counts = np.unique(guest.hashes, return_inverse=True, return_counts=True)
    content = np.where(counts[inverse] > 1, DUPLICATE, UNIQUE)
    content[np.isin(guest.hashes, peers)] = APPLICATION
    content[np.isin(guest.hashes, system)] = IMAGE
    content[guest.hashes == 0] = ZERO
    return content.astype(np.int64)


def table_of(use: Contents, content: Contents, pages: Mask) -> Table:
    """(4, 5) float64 count of the selected `pages` by use and content."""
    cells = use[pages] * len(CONTENTS) + content[pages]
    counts = np.bincount(cells, minlength=len(USES) * len(CONTENTS))
    return counts.reshape(len(USES), len(CONTENTS)).astype(np.float64)


def without(table: Table, *rows: int) -> Table:
    """`table` with these rows set to 0."""
    result = table.copy()
    result[list(rows)] = 0
    return result


def profile_of(
    names: tuple[str, str | None],
    guests: Sequence[Guest],
    idle: Group,
    peers: Group,
    series: Guest | None,
) -> Profile:
    """Mean profile of `guests`, `names` = image and application.

    `series` is a guest whose changed pages give the growth; None takes cache and anon of `pages`.
    """
    tables, duplicate_pages, duplicate_contents = [], 0, 0
    for guest in guests:
        content = content_classes(guest, idle.apart_from(guest), peers.apart_from(guest))
        tables.append(table_of(USE_OF_CLASS[guest.classes], content, guest.touched))
        duplicates = guest.hashes[(content == DUPLICATE) & guest.touched]
        duplicate_pages += duplicates.size
        duplicate_contents += np.unique(duplicates).size
    pages = np.mean(tables, axis=0)
    if series is None:
        growth = without(pages, KERNEL, FREE)
    else:
        content = content_classes(series, idle.apart_from(series), peers.apart_from(series))
        changed = table_of(USE_OF_CLASS[series.classes], content, series.changed)
        growth = without(changed, KERNEL)
    return Profile(*names, pages, growth, duplicate_pages / max(1, duplicate_contents))


def db_table(guest: Guest, content: Contents, known: Sequence[Guest], template: Table) -> Table:
    """(4, 5) table of the guest without recorded classes.

    Kernel and free rows are those of `template` (pages of guests of the same size). What is
    left of image and application is split like the uses of the same contents in `known`; what is
    left of duplicate and unique like rewritten (anon: PostgreSQL's buffers) to not rewritten
    (cache); what is left of zero goes to anon.
    """
    hashes = np.concatenate([other.hashes for other in known])
    uses = USE_OF_CLASS[np.concatenate([other.classes for other in known])]
    table = np.zeros((len(USES), len(CONTENTS)))
    table[[KERNEL, FREE]] = template[[KERNEL, FREE]]
    in_cache = np.isin(guest.hashes, hashes[uses == CACHE])
    in_anon = np.isin(guest.hashes, hashes[uses == ANON]) & ~in_cache
    for column in range(len(CONTENTS)):
        pages = content == column
        rest = max(0.0, float(pages.sum()) - table[:, column].sum())
        if column == ZERO:
            cache, anon = 0, 1
        elif column in (IMAGE, APPLICATION):
            cache, anon = int((pages & in_cache).sum()), int((pages & in_anon).sum())
        else:
            anon = int((pages & guest.rewritten).sum())
            cache = int(pages.sum()) - anon
        table[CACHE, column] = rest * cache / max(1, cache + anon)
        table[ANON, column] = rest * anon / max(1, cache + anon)
    return table


def db_profile(series: dict[str, Guest], idle: Group, web: Group, multi: Group) -> Profile:
    """Profile of the PostgreSQL guest; its peer is the mixed guest of experiment D."""
    guest = series["db"]
    content = content_classes(guest, idle.contents, multi.contents)
    templates = []
    for other, peers in ((series["web"], web), (series["py"], multi)):
        same = content_classes(other, idle.contents, peers.apart_from(other))
        templates.append(table_of(USE_OF_CLASS[other.classes], same, other.touched))
    template = np.mean(templates, axis=0)
    # The applications of web and py are not db's: in a db guest such a page is just unique.
    template[:, UNIQUE] += template[:, APPLICATION]
    template[:, APPLICATION] = 0
    pages = db_table(guest, content, [*idle.guests, *multi.guests], template)
    duplicates = guest.hashes[content == DUPLICATE]
    copies = duplicates.size / max(1, np.unique(duplicates).size)
    return Profile("debian-db", "postgresql", pages, without(pages, KERNEL, FREE), copies)


def measure(folder: Path) -> list[Profile]:
    """All five profiles from the fingerprint files in `folder`."""
    series = load_series(folder / "C_timeseries.npz")
    idles, webs = load_snapshots(folder / "A_idle.npz"), load_snapshots(folder / "A_web.npz")
    files, multi = load_snapshots(folder / "A_file.npz"), load_snapshots(folder / "D_multi.npz")
    idle = group_of([*idles, series["idle"]])
    web, mixed = group_of([*webs, series["web"], *multi]), group_of(multi)
    return [
        profile_of(("debian-idle", None), idles, idle, group_of([]), series["idle"]),
        profile_of(("debian-web", "nginx"), webs, idle, web, series["web"]),
        db_profile(series, idle, web, mixed),
        profile_of(("debian-py", "python"), [series["py"]], idle, mixed, series["py"]),
        profile_of(("debian-file", "disk-files"), files, idle, group_of(files), None),
    ]


def to_permille(table: Table) -> npt.NDArray[np.int64]:
    """`table` as integer per mille of its sum that sum to exactly 1000.

    Largest remainders are rounded up; ties go to the earlier cell (row-major order).
    """
    exact = table.ravel() * 1000 / table.sum()
    result = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - result), kind="stable")
    result[order[: 1000 - int(result.sum())]] += 1
    return result.reshape(len(USES), len(CONTENTS))


def table_lines(table: Table, skip: int) -> list[str]:
    """YAML lines of `table` in percent, from row `skip` on."""
    permille = to_permille(table)
    lines = []
    for row in range(skip, len(USES)):
        cells = zip(CONTENTS, permille[row].tolist(), strict=True)
        text = ", ".join(f"{name}: {value // 10}.{value % 10} %" for name, value in cells)
        lines.append(f"      {USES[row]}: {{{text}}}")
    return lines


def to_yaml(profiles: Sequence[Profile]) -> str:
    """The text of `images.yaml`."""
    grown = {profile.name: int(profile.growth.sum()) for profile in profiles}
    changed = ", ".join(str(grown[f"debian-{name}"]) for name in ("idle", "web", "py"))
    lines = [HEADER.format(changed=changed).rstrip("\n"), "images:"]
    for profile in profiles:
        lines += [
            f"  - name: {profile.name}",
            "    os: linux",
            f"    footprint: {round(profile.pages.sum() / PAGES_PER_MIB)} MiB",
            *([f"    application: {profile.application}"] if profile.application else []),
            f"    copies: {profile.copies:.1f}",
            "    content:",
            *table_lines(profile.pages, skip=KERNEL),
            "    growth:",
            *table_lines(profile.growth, skip=CACHE),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(to_yaml(measure(Path(sys.argv[1]))), encoding="utf-8")
