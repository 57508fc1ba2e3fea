"""What one guest can be told: its image, what its pages hold, and what it does after boot.

Frozen models like those of `config`, which has what the host and the VM can be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hostsim.config import SSD, Disk, FrozenModel, named_disk
from hostsim.units import GIB, MIB, Amount, Bytes, BytesPerSecond, Milliseconds, Permille

TRANSMIT_MAX = 100 * GIB
"""Bytes a second that one guest sends at most: eight ports of 100 Gbit/s."""


class ContentMix(FrozenModel):
    """Content classes of pages of one guest use, in permille of all pages of the table."""

    zero: Permille = 0
    image: Permille = 0
    application: Permille = 0
    duplicate: Permille = 0
    unique: Permille = 0
    pool: Permille = 0


class ContentTable(FrozenModel):
    """Guest use x content class. The entries sum to 1000 permille."""

    kernel: ContentMix = ContentMix()
    cache: ContentMix = ContentMix()
    anon: ContentMix = ContentMix()
    free: ContentMix = ContentMix()

    def mixes(self) -> Iterator[tuple[str, ContentMix]]:
        """Each guest use with its row of the table."""
        for use in ContentTable.model_fields:
            yield use, getattr(self, use)

    def require_whole(self) -> None:
        """Raises ValueError."""
        total = sum(sum(mix.model_dump().values()) for _, mix in self.mixes())
        if total != 1000:
            raise ValueError(f"entries must sum to 100 %, got {total / 10:g} %")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.require_whole()
        return self


class Compressible(FrozenModel):
    """Parts of an image's contents by how far they compress; the others not to a half.

    The zero page always compresses to a quarter. What a guest writes to a page compresses as well
    as what it wrote there before.
    """

    quarter: Permille = 200
    """To 1 KiB of 4 at most."""
    half: Permille = 490
    """To more than that, and to 2 KiB at most. 31 % of cold pages in Google's data centres do not
    compress (to 73 %), jobs' other pages to a third in the median (Lagar-Cavilla et al., ASPLOS
    2019); how these divide into quarter and half is an assumption."""

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if self.quarter + self.half > 1000:
            raise ValueError("quarter and half must not exceed 100 % together")
        return self


class GuestImage(FrozenModel):
    """A guest OS image with its applications: how it boots and what its pages hold."""

    os: Literal["linux", "windows"] = "linux"
    """Windows-like guests zero all their memory at boot and scrub freed pages [P 6.3, 5.4]."""
    footprint: Bytes = Field(256 * MIB, gt=0)
    """Memory in use once booted."""
    boot: Milliseconds = Field(30_000, ge=1000)
    """Boot time; the balloon driver is not started while booting [P 3.2]."""
    application: str | None = None
    """Names the group of images that share the `application` class."""
    copies: float = Field(2.0, ge=1.0, le=1e6)
    """Mean copies of a duplicate content inside one VM."""
    pool: Bytes = Field(0, le=256 * GIB)
    """Distinct contents of the pool that pages of class `pool` draw from at random, each VM for
    itself and with replacement: what VMs of the image hold in common, but not all at one time, as
    code and data of phases and programs that not every one of them is in."""
    structures: Permille = 0
    """Kernel structures that the guest sizes by its memory at boot, as a part of it, over and above
    the footprint: a guest that lives in less, because of a balloon, still has those of its size
    [P 3.2]."""
    content: ContentTable = ContentTable(kernel=ContentMix(unique=100), anon=ContentMix(unique=900))
    """Pages of the boot footprint."""
    growth: ContentTable = ContentTable(anon=ContentMix(unique=1000))
    """Pages used later than boot; no kernel pages."""
    compressible: Compressible = Compressible()
    """How far its contents compress, where the host keeps pages compressed."""
    disk: Disk = SSD
    """The guest's own virtual disk, for its paging."""

    @field_validator("disk", mode="before")
    @classmethod
    def _named_disk(cls, value: Any) -> Any:
        return named_disk(value)

    @model_validator(mode="after")
    def _no_kernel_growth(self) -> GuestImage:
        if sum(self.growth.kernel.model_dump().values()):
            raise ValueError("growth holds no kernel pages: the kernel is in place after boot")
        if self.structures and not sum(self.content.kernel.model_dump().values()):
            raise ValueError("structures are kernel pages: content must say what those hold")
        return self

    @model_validator(mode="after")
    def _pool_is_drawn_from(self) -> GuestImage:
        drawn = sum(mix.pool for table in (self.content, self.growth) for _, mix in table.mixes())
        if drawn and not self.pool:
            raise ValueError("pages of class pool need a pool: state its size, as in pool: 10 MiB")
        if self.pool and not drawn:
            raise ValueError(
                "pool is of no use: neither content nor growth has pages of that class"
            )
        return self


class Phase(FrozenModel):
    """A stretch of a workload. Memory may be given as a part of the VM's size."""

    duration: Milliseconds = Field(gt=0)
    """By the workload's clock."""
    memory: Amount | None = None
    """Memory in use; the guest grows or frees towards it. None: as it stands."""
    growth: BytesPerSecond = 16 * MIB
    """How fast it does so."""
    active: Amount = ("permille", 100)
    """Size of the active set."""
    touch_interval: Milliseconds = Field(5_000, ge=10)
    """Mean time between two touches of one active page, or page of `data`."""
    data: Bytes = 0
    """File data that the guest works on through its page cache; touches are spread over so much.
    The hottest part, as large as the active set is, lies in memory; a touch of the rest is read
    from the guest's disk over a cold page. 0: the active set is all there is."""
    writes: Permille = 300
    """Touches of anonymous pages that write."""
    locality: Literal["uniform", "sweep", "zipf", "linear"] = "uniform"
    """Uniform over the active set; in sequence; or by rank: popularity falling as 1 / rank (Zipf),
    or linearly to nothing at the last rank."""
    drift: Permille = 50
    """Part of the active set that moves, each hour, to pages not in it before."""
    cpu: Permille = 200
    """CPU demand, of all the VM's vCPUs."""
    transmit: BytesPerSecond = Field(0, le=TRANSMIT_MAX)
    """Sent over the network in the VM's own time, page by page: of the set below, the first pages
    of the guest's memory in use, where its kernel has its buffers; rank-skewed (Zipf, exponent 1).
    """
    transmit_set: Amount = ("permille", 10)
    """Size of that set; 1 %, for want of a measured one."""

    @model_validator(mode="after")
    def _has_what_to_send(self) -> Phase:
        if self.transmit > 0 and self.transmit_set[1] == 0:
            raise ValueError("transmit needs a transmit_set above 0")
        return self

    @model_validator(mode="after")
    def _no_sweep_of_data(self) -> Phase:
        if self.data and self.locality == "sweep":
            raise ValueError("data is touched at random: locality must be uniform, zipf or linear")
        return self


class Workload(FrozenModel):
    """What a guest does after boot."""

    phases: tuple[Phase, ...] = Field(min_length=1, max_length=10_000)
    repeat: bool = True
    """Start again after the last phase; otherwise the last one goes on."""
    clock: Literal["vm", "wall"] = "vm"
    """`vm`: from the end of boot, in the VM's own time: a slowed guest does its work later. `wall`:
    from power-on, as load comes from outside: a slowed guest falls behind."""
    stagger: Milliseconds = 0
    """Each VM enters the cycle up to this much later than its start, drawn from its own stream."""


class TraceGuest(FrozenModel):
    """From trace to guest: what a VM does whose active memory, or only CPU, is known."""

    touch_interval: Milliseconds = Field(5_000, ge=10)
    """Mean time between two touches of one active page."""
    drift: Permille = 50
    """Part of the active memory that moves, each hour, to pages never used before."""
    writes: Permille = 300
    locality: Literal["uniform", "sweep", "zipf", "linear"] = "uniform"
    active_idle: Permille = 50
    """Without a memory trace: active memory at no CPU load, of the VM's size."""
    active_busy: Permille = 400
    """Without a memory trace: active memory at full CPU load, of the VM's size."""
