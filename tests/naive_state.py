"""The literal twin's data, in the paper's words: machine memory, pmaps, guests. Dicts and objects.

Machine memory is frames (MPNs) that hold actual contents, and a free list. Each VM has a pmap: PPN
-> the frame that backs the page, or the annotation that it is ballooned or swapped; a page without
an entry was never backed. Every count that the fast host keeps is counted anew here at each look.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

from naive_index import ContentIndex
from naive_machine import Content, Draws, Machine, Meter
from naive_policy import slots

from hostsim import rng
from hostsim.config import HostConfig
from hostsim.spec import VmSpec


class Use(Enum):
    """What the guest uses a page for."""

    FREE = 0
    CACHE = 1
    ANON = 2
    KERNEL = 3


class Annotation(Enum):
    """A pmap entry without a frame."""

    BALLOONED = "ballooned"
    SWAPPED = "swapped"
    COMPRESSED = "compressed"


@dataclass
class Backed:
    """A pmap entry with a frame; `cow` = write-protected, since the frame is shared."""

    mpn: int
    cow: bool = False


@dataclass
class Guest:
    """The guest OS. `use` and `home` by PPN; `away`: pages in use that are only on its disk.

    home    what the guest's own disk holds: the file of a cache page, or a paged-out page
    window  the active set: `active` pages from here, within the first `span` movable ones
    brk     first page never used
    replayed  how many of the events that the VM replays have happened
    """

    use: dict[int, Use]
    home: dict[int, Content] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    kernel: int = 0
    footprint: int = 0
    brk: int = 0
    window: int = 0
    span: int = 1
    active: int = 0
    booted: bool = False
    boot_end_ns: int = 0
    scrub_cursor: int = 0
    replayed: int = 0
    free_cursor: int = 0
    sweep: int = 0
    stalled: tuple[int, bool] | None = None
    """Page of the touch that the guest waits for, and whether it writes."""
    gifts: int = 0
    writes: int = 0
    disk_io_left: int = 0
    disk_io: Meter = field(default_factory=Meter)
    growth: Meter = field(default_factory=Meter)
    scrubbing: Meter = field(default_factory=Meter)
    drift: Meter = field(default_factory=Meter)
    touch_credit: int = 0
    """Page-microseconds of active memory not yet touched."""
    transmit: Meter = field(default_factory=Meter)


@dataclass
class Vm:
    """One VM. `mapped`: pages with a mapping in the shadow page tables, so that touching them
    faults no more; `backed`: ballooned pages that gave the host a frame or a swap slot; `dropped`:
    swapped pages of which not the swap file but the guest's own disk holds the content;
    `touchable`: the first page that the workload does not come to."""

    spec: VmSpec
    size: int
    reservation: int
    limit: int
    shares: int
    overhead_due: int
    salt: int
    sharing: bool
    has_driver: bool
    balloon_max: int
    guest_swap: int
    plan: list[tuple[Use, Content | None]]
    program: list[Row]
    replay: list[Event]
    touchable: int
    guest: Guest
    start_ms: int
    reservation_bytes: int
    pmap: dict[int, Backed | Annotation] = field(default_factory=dict)
    swap: dict[int, Content] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    in_host_cache: set[int] = field(default_factory=set)
    """Swapped pages that lie on the host's SSD."""
    compressed: dict[int, Content] = field(default_factory=dict)
    """By age: see naive_compress."""
    cache_frames: list[int] = field(default_factory=list)
    large: set[int] = field(default_factory=set)
    """Regions, from 0, that lie in a large page: see naive_large."""
    mapped: set[int] = field(default_factory=set)
    backed: set[int] = field(default_factory=set)
    overhead: list[int] = field(default_factory=list)
    driver_lost: bool = False
    last_row: Row = field(init=False)
    """Of the program, when it was last looked at."""
    target: int = 0
    balloon_target: int = 0
    blocked: bool = False
    touched_before: int = 0
    gave: int = 0
    given: int = 0
    inflate: Meter = field(default_factory=Meter)
    deflate: Meter = field(default_factory=Meter)
    scan: Meter = field(default_factory=Meter)
    breaking: Meter = field(default_factory=Meter)
    # Time, all in nanoseconds.
    clock_ns: int = 0
    left_ns: int = 0
    debts: Counter[str] = field(default_factory=Counter)
    cause: str = "swap_in"
    backlog_ns: int = 0
    on_ns: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    touches: int = 0
    cpu_ms: int = 0
    """Permille of a core that it would use x ms."""
    writes: int = 0
    """In thousandths: of touches, as many as are writes on average."""
    # Sampling of idle memory.
    sampled: list[int] = field(default_factory=list)
    period_start_ns: int = 0
    periods: int = 0
    slow: Fraction = Fraction(0)
    fast: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        self.last_row = self.program[0]

    def pages(self, state: str) -> list[int]:
        """PPNs in a state of the accounting."""
        return [ppn for ppn in range(self.size) if self.state(ppn) == state]

    def state(self, ppn: int) -> str:
        entry = self.pmap.get(ppn)
        if entry is None:
            return "untouched"
        if isinstance(entry, Annotation):
            return entry.value
        return "shared" if entry.cow else "resident"

    def frame(self, ppn: int) -> Backed | None:
        """The pmap entry of a page in machine memory."""
        entry = self.pmap.get(ppn)
        return entry if isinstance(entry, Backed) else None

    def alloc(self) -> int:
        return sum(isinstance(entry, Backed) for entry in self.pmap.values())

    def held(self) -> int:
        """What its target bounds: the cache's frames count as its memory."""
        return self.alloc() + len(self.cache_frames)

    def can_balloon(self) -> bool:
        """Whether its driver could take one more page."""
        is_on = self.has_driver and self.guest.booted
        return is_on and self.count(Annotation.BALLOONED) < self.balloon_max

    def entitled(self) -> int:
        """What nobody may keep it from: its target, or a reservation it has not grown to yet."""
        return max(self.target, self.reservation)

    def count(self, annotation: Annotation) -> int:
        return sum(entry is annotation for entry in self.pmap.values())

    # What the guest's own counters would say.

    def guest_free(self) -> list[int]:
        """Pages the guest can hand out: not pinned by the balloon, and holding nothing of it."""
        guest = self.guest
        return [
            ppn
            for ppn in range(self.size)
            if self.pmap.get(ppn) is not Annotation.BALLOONED
            and (guest.use[ppn] is Use.FREE or ppn in guest.away)
        ]

    def in_guest_memory(self, use: Use) -> list[int]:
        guest = self.guest
        return [p for p in range(self.size) if guest.use[p] is use and p not in guest.away]

    def guest_swapped(self) -> int:
        return sum(self.guest.use[ppn] is Use.ANON for ppn in self.guest.away)


@dataclass(frozen=True)
class Event:
    """Something that a real guest did, so long after its boot; content None = it only read."""

    at_ms: int
    ppn: int
    content: Content | None


@dataclass(frozen=True)
class Row:
    """A row of a guest's program, in slots; memory None = as it stands."""

    until_ms: int
    memory: int | None
    growth_milli_per_s: int
    active: int
    data: int
    touch_interval_ms: int
    writes_permille: int
    locality: str
    drift_permille_per_h: int
    cpu_permille: int
    transmit_milli_per_s: int
    transmit_set: int

    @property
    def is_ranked(self) -> bool:
        return self.locality in ("zipf", "linear")


@dataclass
class Copied:
    """How often a page was copied to a bounce buffer."""

    vm: int
    ppn: int
    copies: int = 0


@dataclass
class Esx:
    """The whole machine. `vms` by id; thresholds and rates come from `config` when asked for."""

    host: int
    config: HostConfig
    seed: int
    sample: int
    tick_ms: int
    """The longest step."""
    machine: Machine
    index: ContentIndex = field(default_factory=ContentIndex)
    copied: dict[int, Copied] = field(default_factory=dict)
    """By place in a small table."""
    vms: dict[int, Vm] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    """MPNs kept for VMs on their way here."""
    now_ms: int = 0
    dt_ms: int = 0
    """The last step, and what it could have been at most."""
    pace_ms: int = 0
    by_law: bool = False
    """Whether what sampling finds in it is drawn, not looked at."""
    intake: int = 0
    """Millionths of a frame that guests took in each ms of it, at least half of what it was."""
    tick: int = 0
    """Key of the random streams of the next step."""
    level: int = 0
    level_free: int = 0
    rebalance: bool = True
    scanned_last_step: int = 0
    swap_io_left: int = 0
    ssd_io_left: int = 0
    tier_io_left: int = 0
    cluster_room: int = 0
    swap_io: Meter = field(default_factory=Meter)
    ssd_io: Meter = field(default_factory=Meter)
    tier_io: Meter = field(default_factory=Meter)
    looks: Meter = field(default_factory=Meter)
    hand: int = 0
    """Where looking for cold pages goes on, and looks that are due: see naive_tier."""
    scan: Meter = field(default_factory=Meter)
    breaking: Meter = field(default_factory=Meter)
    level_ms: Counter[int] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    @property
    def free(self) -> int:
        return len(self.machine.free_low) + len(self.machine.free_high)

    def can_write(self) -> bool:
        """Whether one more page can be swapped out in this step."""
        return self.cluster_room > 0 or self.swap_io_left > 0 or self.has_host_cache()

    def has_host_cache(self) -> bool:
        """Whether the host cache has room and time for one more page."""
        used = sum(len(vm.in_host_cache) for vm in self.on())
        return used < slots(self.config.host_cache.size, self.sample) and self.ssd_io_left > 0

    def on(self) -> list[Vm]:
        """VMs by ascending id."""
        return [self.vms[vm] for vm in sorted(self.vms)]

    def rotated(self) -> list[Vm]:
        """VMs in the order of service of this step: nobody is always first at the free list."""
        vms = self.on()
        draws = self.draws(rng.ORDER, self.host, self.tick)
        first = draws.below(0, len(vms)) if vms else 0
        return vms[first:] + vms[:first]

    def shared_saved(self) -> int:
        """Pages in state SHARED less the frames that hold them."""
        pages = sum(len(vm.pages("shared")) for vm in self.on())
        return pages - len(self.index.shared_frames())

    def read(self, vm: Vm, ppn: int) -> Content:
        """What a page holds, wherever it is."""
        entry = vm.frame(ppn)
        if entry is not None:
            return self.machine.frames[entry.mpn].content
        return vm.swap[ppn] if ppn in vm.swap else vm.compressed[ppn]

    def is_high(self, vm: Vm, ppn: int) -> bool:
        """Whether devices cannot reach the frame of a page in machine memory."""
        entry = vm.frame(ppn)
        assert entry is not None
        return self.machine.is_high(entry.mpn)

    def draws(self, purpose: int, owner: int, tick: int) -> Draws:
        return Draws(int(rng.stream(self.seed, purpose, owner, tick)))
