"""What one host and one VM can be told: frozen models with every default and its source.

A profile names an era of ESX and fills in the mechanism options that the user left out, see
`profiles`. Reference tags: [P] the paper by section, [ADM2] ESX Server 2 Administration Guide,
[KSM/GPL] Linux sources.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from hostsim.profiles import PROFILES, merged
from hostsim.units import (
    GIB,
    MIB,
    Bytes,
    BytesPerSecond,
    Milliseconds,
    Nanoseconds,
    Permille,
    parse_permille,
)

MinFree = Annotated[int, BeforeValidator(parse_permille), Field(ge=0, le=10_000)]
"""A part of minFree in thousandths, which may be more than one whole."""
TierSize = Annotated[int, BeforeValidator(parse_permille), Field(ge=0, le=4000)]
IdleTax = Annotated[Permille, Field(le=990)]
"""tau [P 5.2]: at 100 % an idle page would cost infinitely much."""


class FrozenModel(BaseModel):
    """Immutable, strict about keys: an unknown key is an error, never ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Sharing(FrozenModel):
    """Content-based page sharing [P 4.2, 4.3]."""

    enabled: bool = True
    salting: Literal["none", "vm"] = "none"
    """`vm` limits sharing to within a VM (ShareForceSalting = 2, ESXi 5.0 U3d and later)."""
    scan_pages_per_s_vm: int = Field(50, ge=0, le=10_000_000)
    """Pages scanned a second per VM; 50 in [ADM2 p355]."""
    scan_pages_per_s_total: int = Field(200, ge=0, le=100_000_000)
    """Pages scanned a second on the host; 200 in [ADM2 p355]."""
    scan_time: Milliseconds | None = None
    """When set, each VM's rate is size / scan_time, capped by `scan_pages_per_s_vm`
    (ShareScanTime 60 min and ShareRateMax 1024 of ESXi 4-8)."""


class Balloon(FrozenModel):
    """Ballooning [P 3.2]."""

    poll: Milliseconds = Field(1000, ge=100)
    """How often the driver asks for its target [P 3.2: once a second]."""
    inflate: BytesPerSecond = Field(4 * MIB)
    """Bound on inflation per VM; 4.0 MB/s seen in the paper's figures 7 and 8."""
    deflate: BytesPerSecond = Field(4 * MIB)
    """Bound on deflation per VM; up to 3.2 MB/s seen in figure 8, one poll quantum above."""
    maximum: Permille = 500
    """Largest balloon as a part of VM size: half in [ADM2 p353], 65 % in ESX 3-8."""


class Allocation(FrozenModel):
    """Share-based allocation with the idle-memory tax [P 5]."""

    idle_tax: IdleTax = 750
    """tau; default 75 % [P 5.2, ADM2 p355]. Price factor of an idle page: k = 1 / (1 - tau)."""
    balance_period: Milliseconds = Field(15_000, ge=1000)
    """BalancePeriod 15 s [ADM2 p355]."""
    claim: Literal["configured", "touched"] = "touched"
    """What a VM counts for when M is divided: its size, or what it has touched."""
    deadband_sigmas: int = Field(2, ge=0, le=10)
    """A new target within this many standard errors of the idle estimate leaves the balloon
    where it stands, so that sampling noise does not pump it. 0 follows every wiggle [FIG 7]."""


class Sampling(FrozenModel):
    """Statistical sampling of active memory [P 5.3]."""

    pages: int = Field(100, ge=1, le=1000)
    period: Milliseconds = Field(30_000, ge=1000)
    """SamplePeriod: 30 s of VM time [P 5.3], 60 s from ESX 3 on."""


class Reclaim(FrozenModel):
    """Reclamation states [P 6.3]: thresholds in permille of host memory, or of minFree."""

    minfree: Literal["fixed", "sliding"] = "fixed"
    """`fixed`: the four thresholds are parts of host memory. `sliding`: parts of minFree = 6 % of
    the first 4 GiB + 4 % of the next 8 + 2 % of the next 16 + 1 % of the rest (vSphere 5)."""
    reading: Literal["a", "b"] = "b"
    """(b) a level is entered below its own threshold; (a) below that of the level above it."""
    high: MinFree = 60
    """Left upwards into HIGH above it, and, in reading (a) or without `clear`, left below it."""
    clear: Permille | None = None
    """Boundary of a state between high and soft, of ESXi 6 on, in which large pages are broken and
    their parts shared; targets and paging then aim for this much free memory."""
    soft: Permille = 40
    hard: Permille = 20
    low: Permille = 10
    margin: Permille | None = None
    """Extra free memory, in permille of host memory, before a level is left upwards; default 0 in
    reading (b), whose thresholds already leave a gap, and 5 in (a)."""

    @model_validator(mode="after")
    def _ordered(self) -> Reclaim:
        falling = [self.high, self.soft, self.hard, self.low, 0]
        if self.clear is not None:
            falling.insert(1, self.clear)
        if falling != sorted(set(falling), reverse=True):
            raise ValueError("thresholds must fall: high > clear > soft > hard > low > 0")
        if self.minfree == "fixed" and self.high > 1000:
            raise ValueError("high is a part of host memory where minfree is fixed: 100 % at most")
        return self


class Disk(FrozenModel):
    """A device for host swap or for a guest's own paging."""

    latency: Nanoseconds = 90_000
    """Time of one 4 KiB random read: 90 us, a data-centre NAND SSD at queue depth 1."""
    iops: int = Field(50_000, ge=1, le=100_000_000)
    """Operations a second that the device sustains, reads and writes together."""
    write_cluster: int = Field(1, ge=1, le=4096)
    """Pages that the host swaps out in one operation: ESX clusters its writes [P 3.3], reads are of
    single pages. On an SSD a write of many pages is as many operations."""


class HostCache(FrozenModel):
    """Swap to host cache (ESXi 5): what the host swaps out goes to a part of a local SSD while that
    has room and is not busy, the rest to the swap files on the datastore."""

    size: Bytes = 0
    """0: no host cache. vSphere takes what the administrator gives it."""
    latency: Nanoseconds = 90_000
    """As of `Disk`, whose default is an SSD."""
    iops: int = Field(50_000, ge=1, le=100_000_000)
    """Operations a second, reads and writes together; a page is one."""


class Tier(FrozenModel):
    """Memory tiering over NVMe (vSphere 8 U3): machine memory is DRAM, `memory`, and this."""

    nvme: TierSize = 0
    """As a part of DRAM: 25 % where 8 U3 has it on, 100 % in vSphere 9 (Mem.TierNvmePct), 400 % at
    most. 0: no tier."""
    latency: Nanoseconds = 90_000
    """Of a touch of a page on NVMe, which is read: as of `Disk`; VMware states no number."""
    iops: int = Field(100_000, ge=1, le=100_000_000)
    """Pages read and written a second: what VMware's performance class F asks of a device."""


class Paging(FrozenModel):
    """How the host pages [P 3.3]: what it writes to swap, and what it reads back."""

    share_first: bool = True
    """A page is tried for sharing before it is paged out [P 4.3]."""
    map_clean: bool = False
    """Clean copies of blocks of the guest's own disk are dropped instead of written to swap, and
    read back from that disk: the Mapper of VSwapper (Amit et al., ASPLOS 2014)."""
    skip_overwritten: bool = False
    """A page that the guest overwrites as a whole is not read back first: VSwapper's False Reads
    Preventer; here of blocks read over it as well, which its Mapper sees."""


class Compression(FrozenModel):
    """Pages chosen for host swap are kept compressed instead, in a cache of each VM (ESX 4.1).

    A page goes in if it compresses to 2 KiB at most, and then takes 1 or 2 KiB. When the cache is
    full the page that has been in it longest is decompressed and swapped. Its frames count as
    memory of the VM, towards its target; it is taken as never fragmented.
    """

    enabled: bool = False
    """Mem.MemZipEnable, on from ESX 4.1 on."""
    maximum: Permille = 100
    """Largest cache as a part of VM size: Mem.MemZipMaxPct, 10 %."""


SSD = Disk()
DISK_2002 = Disk(latency=8_000_000, iops=120, write_cluster=16)
"""A 10 k rpm SCSI disk of 2002: 5 ms seek + 3 ms half a turn; about 120 random I/Os a second, the
largest of 64 KiB (128 sectors in Linux 2.4)."""
DISKS = {"ssd": SSD, "disk-2002": DISK_2002}


class Costs(FrozenModel):
    """CPU prices of the mechanisms, in the time of one core of 2013-2020."""

    cow: Nanoseconds = 3_000
    """A copy-on-write break: exit, fault handling and a 4 KiB copy."""
    scan: Nanoseconds = 2_000
    """Hash and table look-up of one scanned page: 4 KiB at 2-4 GB/s plus cache misses."""
    decompress: Nanoseconds = 20_000
    """A touch of a compressed page: exit, fault handling and decompression, about 20 us in ESX 4.1
    (virtualizationeh.ca 2010/07/14, after VMware). Compressing takes no time of a guest."""
    page_copy: Nanoseconds = 1_500
    """Copy of a page through a bounce buffer, or to another frame: 4 KiB at 2-4 GB/s. The core that
    does it is missed by the VM that transmits: part of the time that it loses to `cpu`."""


class Io(FrozenModel):
    """Devices that reach low memory only, and remapping of the pages they are given [P 7].

    Fresh pages lie in high memory while that has free frames. One that is transmitted from there is
    copied to a bounce buffer each time.
    """

    low_memory: Bytes | None = Field(None, gt=0)
    """Machine memory that devices reach: 4 GiB with 32-bit PCI [P 7]. None: all of it. The
    hypervisor's reserve and the VMs' overheads lie in high memory as far as that goes."""
    copy_threshold: int = Field(4, ge=0, le=1_000_000)
    """A page that was copied more often than this is moved to low memory. [P 7] has no number. The
    dearest move, an exchange, copies two pages: twice as many are a sign of more to come."""
    remap: Literal["never", "free", "random"] = "free"
    """`never` moves no page. `free` moves it to a free frame of low memory, if there is one. With
    `random` a random private page makes way when there is none. [P 7] had this under study; where
    hotness is steady it makes more copies than `free` does (tests/test_remap_claims.py)."""


class HostConfig(FrozenModel):
    """One ESX host."""

    memory: Bytes = Field(64 * GIB, ge=64 * MIB)
    cpus: int = Field(16, ge=1, le=4096)
    profile: Literal["osdi02", "vsphere", "vsphere-5", "vsphere-8"] = "vsphere"
    """The era that fills in what is not stated: ESX of the paper; vSphere's rates with the paper's
    mechanisms; ESXi 5.0 to 5.5 as it came; ESXi 8 as it comes."""
    reserve: Bytes = 0
    """Hypervisor's own memory, off the top of machine memory."""
    sharing: Sharing = Sharing()
    large_pages: bool = False
    """Guests' memory is backed by pages of 2 MiB where it can be (Mem.AllocGuestLargePage = 1, with
    nested paging): at the first touch of a region, and while memory stays above the high boundary.
    They are not shared; below that boundary one is broken where a part could be, in CLEAR and below
    at the VM's full scanning rate, and where the balloon or the host takes a part."""
    balloon: Balloon = Balloon()
    allocation: Allocation = Allocation()
    sampling: Sampling = Sampling()
    reclaim: Reclaim = Reclaim()
    paging: Paging = Paging()
    compression: Compression = Compression()
    swap: Disk = SSD
    host_cache: HostCache = HostCache()
    tier: Tier = Tier()
    swap_space: Bytes | None = None
    """Room for all swap files together; see `swap_space_bytes` for the default."""
    costs: Costs = Costs()
    io: Io = Io()

    @model_validator(mode="before")
    @classmethod
    def _profile_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("profile", "vsphere")
        profile = PROFILES.get(name) if isinstance(name, str) else None
        return data if profile is None else merged(profile, data)

    @field_validator("swap", mode="before")
    @classmethod
    def _named_disk(cls, value: Any) -> Any:
        return named_disk(value)

    @property
    def swap_space_bytes(self) -> int:
        """As large as memory in ESX 2 [ADM2 p406]; later, swap files lie on datastores beside the
        virtual disks, taken as four times memory."""
        if self.swap_space is not None:
            return self.swap_space
        return self.machine_bytes if self.profile == "osdi02" else 4 * self.machine_bytes

    @property
    def machine_bytes(self) -> int:
        """All machine memory: DRAM and what lies on NVMe."""
        return self.memory + self.memory * self.tier.nvme // 1000

    @model_validator(mode="after")
    def _memory_is_sound(self) -> HostConfig:
        if self.reserve >= self.memory:
            raise ValueError("reserve must be below memory")
        if self.tier.nvme > 0 and self.io.low_memory is not None:
            raise ValueError("tier.nvme and io.low_memory exclude each other: leave one out")
        return self


def named_disk(value: Any) -> Any:
    """ "ssd" or "disk-2002" -> its Disk; other values pass to the model's own validation."""
    if isinstance(value, str):
        if value not in DISKS:
            raise ValueError(f"must be one of {', '.join(DISKS)}, or a mapping of latency and iops")
        return DISKS[value]
    return value


class VmConfig(FrozenModel):
    """One VM as the memory manager sees it [P 6.1]."""

    memory: Bytes = Field(ge=1 * MIB)
    """Configured size, the paper's max."""
    reservation: Bytes = 0
    """The paper's min."""
    limit: Bytes | None = Field(None, gt=0)
    """Cap of the target; default = memory."""
    shares: int | Literal["low", "normal", "high"] = "normal"
    """5 / 10 / 20 shares a MiB of size [ADM2 p353]; 0 pins the target at the reservation."""
    vcpus: int = Field(1, ge=1, le=1024)
    overhead: Bytes = 32 * MIB
    """Machine memory for frame buffer, pmap and shadow tables [P 6.2]."""
    sharing: bool = True
    balloon: Literal["present", "absent", "disabled"] = "present"
    guest_swap: Bytes | None = None
    """The guest's own swap space; default = size - reservation [ADM2 p408]."""

    @field_validator("shares")
    @classmethod
    def _shares_range(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 0 <= value <= 1 << 40:
            raise ValueError("must be low, normal, high or a whole number from 0")
        return value

    @model_validator(mode="after")
    def _bounds(self) -> VmConfig:
        limit = self.memory if self.limit is None else self.limit
        if limit > self.memory:
            raise ValueError("limit must not exceed memory")
        if self.reservation > limit:
            raise ValueError("reservation must not exceed limit")
        return self

    @property
    def share_count(self) -> int:
        """Shares as a number."""
        if isinstance(self.shares, int):
            return self.shares
        per_mib = {"low": 5, "normal": 10, "high": 20}[self.shares]
        return per_mib * (self.memory // MIB)
