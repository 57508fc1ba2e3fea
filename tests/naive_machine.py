"""The literal twin's machine memory, rates and random draws, and why a touch must wait."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from fractions import Fraction

WORD = (1 << 64) - 1
Content = bytes
ZERO_PAGE: Content = bytes(16)
ELSEWHERE: Content = b"held by a page outside the sample"


@dataclass
class Meter:
    """What a rate makes due, whole by whole; the fraction that remains is owed."""

    owed: Fraction = Fraction(0)

    def due(self, amount: Fraction) -> int:
        total = self.owed + amount
        whole = int(total // 1)
        self.owed = total - whole
        return whole


@dataclass
class Frame:
    """A machine page: what it holds, and the salt group of the VM it was given to."""

    content: Content
    salt: int


@dataclass
class Machine:
    """Machine memory: frames in use by MPN, and a free list of those that devices reach and one of
    those that lie high, MPNs from `n_low` on."""

    frames: dict[int, Frame]
    n_frames: InitVar[int]
    n_low: int
    free_low: list[int] = field(default_factory=list)
    free_high: list[int] = field(default_factory=list)

    def __post_init__(self, n_frames: int) -> None:
        for mpn in range(n_frames):
            self.free_of(self.is_high(mpn)).append(mpn)

    def is_high(self, mpn: int) -> bool:
        """Whether devices cannot reach the frame."""
        return mpn >= self.n_low

    def free_of(self, high: bool) -> list[int]:
        return self.free_high if high else self.free_low

    def take(self, content: Content, salt: int) -> int:
        """A high frame, while there is one."""
        free = self.free_high or self.free_low
        if not free:
            raise NoFrame
        mpn = free.pop()
        self.frames[mpn] = Frame(content, salt)
        return mpn

    def release(self, mpn: int) -> None:
        del self.frames[mpn]
        self.free_of(self.is_high(mpn)).append(mpn)


@dataclass(frozen=True)
class Draws:
    """One random stream."""

    key: int

    def below(self, index: int, bound: int) -> int:
        return (self.word(index) >> 32) * bound >> 32

    def word(self, index: int) -> int:
        """Draw `index` as 64 bits: SplitMix64."""
        word = (self.key + index * 0x9E3779B97F4A7C15) & WORD
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
        word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
        return word ^ word >> 31


class Stall(Exception):  # noqa: N818 - not an error: the guest tries the touch again later
    """Why a touch cannot be served now."""


class NoFrame(Stall):
    """No free frame of machine memory."""


class NoIo(Stall):
    """The swap device is busy for the rest of this step."""


class NoTierIo(Stall):
    """The NVMe that a page in memory lies on is busy for the rest of this step."""


class NoGuestMemory(Stall):
    """The guest has no page to give up, or no room in its own swap space."""


class NoGuestIo(Stall):
    """The guest's own disk is busy for the rest of this step."""
