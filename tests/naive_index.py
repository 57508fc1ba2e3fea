"""The literal content index [P 4.3, Fig 3]: 16-byte frame records in one global chained hash table.

A record describes one frame of machine memory. A hint frame is an unshared page that was scanned:
it is not write-protected, so its record goes stale when the guest writes. A shared frame is
copy-on-write and has a reference count of 16 bits; larger counts live in an overflow table. Records
are kept as the 16 bytes that they are, and unpacked at every look: slow, but it shows that the
format holds all that is needed.

    shared frame   hash 64 | reference count 16            | MPN 24 | link 23 | kind 1
    hint frame     truncated hash 48 | VM 12 | PPN 20      | MPN 24 | link 23 | kind 1
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

RECORD_BYTES = 16
REFERENCES_MAX = 0xFFFF
TRUNCATED = (1 << 48) - 1
BUCKETS = 64
"""Few, so that chains are long and their links are exercised."""


def hash64(salt: int, content: bytes) -> int:
    """64-bit hash of a page's content; pages of different salt groups hash apart."""
    digest = hashlib.blake2b(content, digest_size=8, key=salt.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True)
class SharedFrame:
    """Record of a copy-on-write frame. It has no owner."""

    hash: int
    references: int
    mpn: int
    link: int

    def packed(self) -> bytes:
        word = self.hash << 64 | _field(self.references, 16) << 48
        return (word | _tail(self.mpn, self.link, 1)).to_bytes(RECORD_BYTES, "little")


@dataclass(frozen=True)
class HintFrame:
    """Record of a private frame: where its page was, and the hash that it had when scanned."""

    truncated_hash: int
    vm: int
    ppn: int
    mpn: int
    link: int

    def packed(self) -> bytes:
        word = self.truncated_hash << 80 | _field(self.vm, 12) << 68 | _field(self.ppn, 20) << 48
        return (word | _tail(self.mpn, self.link, 0)).to_bytes(RECORD_BYTES, "little")


def _field(value: int, bits: int) -> int:
    assert 0 <= value < 1 << bits, f"{value} does not fit {bits} bits"
    return value


def _tail(mpn: int, link: int, kind: int) -> int:
    return _field(mpn, 24) << 24 | _field(link, 23) << 1 | kind


def unpacked(record: bytes) -> SharedFrame | HintFrame:
    """The 16 bytes of a record, field by field."""
    word = int.from_bytes(record, "little")
    mpn, link = word >> 24 & 0xFFFFFF, word >> 1 & 0x7FFFFF
    if word & 1:
        return SharedFrame(word >> 64, word >> 48 & 0xFFFF, mpn, link)
    return HintFrame(word >> 80, word >> 68 & 0xFFF, word >> 48 & 0xFFFFF, mpn, link)


@dataclass
class ContentIndex:
    """The hash table. Link and head 0 end a chain, so records are numbered from 1.

    records   record number -> its 16 bytes
    heads     bucket -> number of the first record of its chain
    numbers   MPN -> number of its record: the frame table's way into the index
    overflow  MPN -> reference count, for counts above 65 535
    """

    hash_page: Callable[[int, bytes], int] = hash64
    records: dict[int, bytes] = field(default_factory=dict)
    heads: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    overflow: dict[int, int] = field(default_factory=dict)

    def find(self, page_hash: int) -> list[SharedFrame | HintFrame]:
        """Records that match: by the whole hash if shared, by the truncated one if a hint."""
        chain = [unpacked(self.records[n]) for n in self._chain(page_hash)]
        return [record for record in chain if _matches(record, page_hash)]

    def record_of(self, mpn: int) -> SharedFrame | HintFrame | None:
        """The record of a frame, if it is indexed."""
        number = self.numbers.get(mpn)
        return None if number is None else unpacked(self.records[number])

    def insert_hint(self, page_hash: int, mpn: int, vm: int, ppn: int) -> None:
        """A scanned page without a match is remembered, and not write-protected."""
        assert mpn not in self.numbers, f"frame {mpn} is indexed already"
        link = self.heads.get(page_hash % BUCKETS, 0)
        record = HintFrame(page_hash & TRUNCATED, vm, ppn, mpn, link)
        self._put(page_hash, record)

    def make_shared(self, page_hash: int, mpn: int) -> None:
        """A hint frame whose content was found twice becomes a shared frame of two references."""
        assert isinstance(self.record_of(mpn), HintFrame)
        self.remove(mpn)
        link = self.heads.get(page_hash % BUCKETS, 0)
        self._put(page_hash, SharedFrame(page_hash, 2, mpn, link))

    def references(self, mpn: int) -> int:
        """Reference count of a shared frame."""
        record = self.record_of(mpn)
        assert isinstance(record, SharedFrame)
        return self.overflow.get(mpn, record.references)

    def change_references(self, mpn: int, change: int) -> int:
        """One reference more or less. Returns the new count."""
        record = self.record_of(mpn)
        assert isinstance(record, SharedFrame)
        count = self.references(mpn) + change
        if count > REFERENCES_MAX:
            self.overflow[mpn] = count
        else:
            self.overflow.pop(mpn, None)
        kept = replace(record, references=min(count, REFERENCES_MAX))
        self.records[self.numbers[mpn]] = kept.packed()
        return count

    def remove(self, mpn: int) -> None:
        """Take a frame out of the index."""
        number = self.numbers.pop(mpn)
        self.overflow.pop(mpn, None)
        record = unpacked(self.records[number])
        chain = self._chain(_hash_of(record))
        position = chain.index(number)
        if position == 0:
            self.heads[_hash_of(record) % BUCKETS] = record.link
        else:
            before = chain[position - 1]
            linked = replace(unpacked(self.records[before]), link=record.link)
            self.records[before] = linked.packed()
        del self.records[number]

    def renumber(self, mpns: dict[int, int]) -> None:
        """Frames were moved, to MPNs that are free or moved themselves: their records follow."""
        for old, number in [(mpn, self.numbers.pop(mpn, None)) for mpn in mpns]:
            if number is not None:
                record = replace(unpacked(self.records[number]), mpn=mpns[old])
                self.records[number] = record.packed()
                self.numbers[mpns[old]] = number
        counts = {mpn: self.overflow.pop(mpn) for mpn in mpns if mpn in self.overflow}
        self.overflow |= {mpns[mpn]: count for mpn, count in counts.items()}

    def shared_frames(self) -> list[SharedFrame]:
        every = map(unpacked, self.records.values())
        return [record for record in every if isinstance(record, SharedFrame)]

    def hint_frames(self) -> list[HintFrame]:
        every = map(unpacked, self.records.values())
        return [record for record in every if isinstance(record, HintFrame)]

    def metadata_bytes(self) -> int:
        return RECORD_BYTES * len(self.records)

    def _chain(self, page_hash: int) -> list[int]:
        numbers = []
        number = self.heads.get(page_hash % BUCKETS, 0)
        while number != 0:
            numbers.append(number)
            number = unpacked(self.records[number]).link
        return numbers

    def _put(self, page_hash: int, record: SharedFrame | HintFrame) -> None:
        number = 1
        while number in self.records:
            number += 1
        self.records[number] = record.packed()
        self.heads[page_hash % BUCKETS] = number
        self.numbers[record.mpn] = number


def _hash_of(record: SharedFrame | HintFrame) -> int:
    """As much of the hash as the record holds: enough to find its bucket."""
    return record.hash if isinstance(record, SharedFrame) else record.truncated_hash


def _matches(record: SharedFrame | HintFrame, page_hash: int) -> bool:
    if isinstance(record, SharedFrame):
        return record.hash == page_hash
    return record.truncated_hash == page_hash & TRUNCATED
