"""The scenario: everything that decides a run's result, as frozen models with every default.

A scenario says what is simulated, never how it is run (processes, addresses, folders): that is the
command line's. Models check values one by one; what must hold between values, and between a
scenario and its files, is in `scenario_checks`. Bare numbers for quantities are refused in files:
models are validated with `units.FILE` in their context there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from cluster import scenario_text
from cluster.scenario_policies import (
    Availability,
    Balancing,
    Migration,
    Name,
    Placement,
    Power,
    ResourcePool,
    Rule,
    Watts,
)
from hostsim.config import DISKS, FrozenModel, HostConfig, IdleTax, VmConfig
from hostsim.guest_config import ContentMix, ContentTable, GuestImage, TraceGuest, Workload
from hostsim.profiles import PROFILES
from hostsim.units import MIB, Bytes, Milliseconds, Permille

HOSTS_MAX = 100_000
"""Hosts of a scenario; beyond lies a slip of the finger."""
VMS_MAX = 1_000_000
"""VMs of a scenario, those of the trace included."""
SAMPLE_MAX = 4096
SLOTS_MIN = 256
"""Fewer slots than this are too few to stand for a VM's pages (design: miniature simulation)."""

Weight = Annotated[int, Field(ge=0, le=1_000_000)]
Shares = Annotated[int, Field(ge=0, le=1 << 40)] | Literal["low", "normal", "high"]


class Fidelity(FrozenModel):
    """How faithfully memory is simulated."""

    sample: int = Field(1, ge=1, le=SAMPLE_MAX)
    """One page in this many is simulated, a power of two; 1 is every page."""

    @field_validator("sample")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two, such as 64")
        return value


class HostGroup(HostConfig):
    """Equal hosts: `name` when there is one, else name-1 to name-count."""

    name: Name
    count: int = Field(1, ge=1, le=HOSTS_MAX)
    watts: Watts = Watts()

    @model_validator(mode="before")
    @classmethod
    def _profile_is_a_name(cls, data: Any) -> Any:
        # Runs before the inherited look-up of the profile, which needs something hashable.
        if isinstance(data, dict) and not isinstance(data.get("profile", ""), str):
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}")
        return data


class ImageContent(ContentTable):
    """What pages hold: a table, or the page hashes of real guests, recorded in a file."""

    hashes: str | None = Field(None, max_length=1000)
    """A file of page hashes (.npz or .parquet) in the scenario's folder, or in `data`: the i-th VM
    of a group holds what the i-th guest of the file held. VMs then simulate every page
    (fidelity.sample 1), and a workload, if they have any, only reads (writes 0 %)."""
    data: str | None = Field(None, max_length=200)
    """The name of a folder inside the folder of data that the user points to: the file is there."""
    guest: str | None = Field(None, max_length=100)
    """Only this guest of the file: 03, or the name it has in a time series, or a VM's number."""
    trace: str | None = Field(None, max_length=100)
    """Of a .parquet file: which trace."""
    snapshot: int | None = Field(None, ge=0)
    """Of a .parquet file: which snapshot of the trace."""
    others: bool = False
    """Whether a guest's VM also has the other pages of its hypervisor process that are recorded, as
    unmovable pages beyond the guest's own."""
    interval: Milliseconds = Field(15_000, ge=1000, le=86_400_000)
    """Of a time series: from one dump to the next, on the VM's own clock."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.hashes is None:
            wrong = sorted(self.model_fields_set & HASH_KEYS)
            if wrong:
                raise ValueError(f"{wrong[0]} needs hashes, the file that it is about")
            self.require_whole()
        elif self.model_fields_set & ContentTable.model_fields.keys():
            raise ValueError("must be either a table (kernel, cache, anon, free) or hashes")
        return self

    def table(self) -> ContentTable:
        """The table alone; where hashes say what pages hold, it means nothing."""
        fields: dict[str, Any] = dict(self.mixes())
        return ContentTable.model_construct(**fields)


HASH_KEYS = ImageContent.model_fields.keys() - ContentTable.model_fields.keys() - {"hashes"}
FROM_HASHES = ("footprint", "application", "copies", "structures", "growth", "pool")
"""Keys of an image that say nothing where its pages hold what real guests' did."""


class NamedImage(GuestImage):
    """A guest image that VMs refer to."""

    name: Name
    content: ImageContent = ImageContent(kernel=ContentMix(unique=100), anon=ContentMix(unique=900))

    @model_validator(mode="after")
    def _one_source(self) -> NamedImage:
        if self.content.hashes is not None:
            given = [key for key in FROM_HASHES if key in self.model_fields_set]
            if given:
                raise ValueError(f"{given[0]} must not be given beside content.hashes")
            if self.os != "linux":
                raise ValueError("os must be linux beside content.hashes: others zero their pages")
        return self


class NamedWorkload(Workload):
    """A workload that VMs refer to."""

    name: Name


class VmGroup(VmConfig):
    """Equal VMs: `name` when there is one, else name-1 to name-count."""

    name: Name
    count: int = Field(1, ge=1, le=VMS_MAX)
    image: str
    application: str | None = None
    """What these VMs run: those that run the same have their pages of class `application` in
    common, whatever their images. Default: the image's."""
    workload: str | None = None
    """Required, unless the image's content is hashes: what the file says is then all they do."""
    pool: str | None = None
    """The resource pool that these VMs are in; none: the root."""
    start: Milliseconds | Literal["never"] = 0
    """When the first of the group arrives; `never` leaves it to an event."""
    stop: Milliseconds | None = None
    """When the first leaves again; the others do after as long a stay."""
    interval: Milliseconds = 0
    """Each next VM of the group arrives this much later."""

    @model_validator(mode="after")
    def _leaves_after_arrival(self) -> VmGroup:
        if self.stop is not None:
            if isinstance(self.start, str):
                raise ValueError("stop needs a start: VMs that events start, events stop")
            if self.stop <= self.start:
                raise ValueError("stop must come after start")
        return self


class TraceSource(FrozenModel):
    """VMs from a real trace: sizes, arrivals, departures and demand come from there."""

    path: str | None = None
    """A trace inside the scenario's folder."""
    data: str | None = None
    """The name of a folder inside the folder of trace data that the user points to."""
    start: Milliseconds = 0
    """Where in the trace the simulation begins; VMs already running then start at once."""
    vms: int | None = Field(None, ge=1, le=VMS_MAX)
    """How many to take of those that run in the simulated time: a choice that the seed makes."""
    images: dict[str, Weight]
    """Image name -> weight: how often VMs of the trace have it."""
    workloads: dict[str, Weight] | None = None
    """Workload name -> weight; VMs follow these rather than the trace's own usage."""
    guest: TraceGuest = TraceGuest()
    shares: Shares = "normal"
    reservation: Permille = 0
    """Of each VM's size."""
    overhead: Bytes = 32 * MIB
    balloon: Literal["present", "absent", "disabled"] = "present"
    sharing: bool = True
    pool: str | None = None
    """The resource pool of the trace's VMs."""

    @field_validator("images", "workloads")
    @classmethod
    def _weights(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        if value is not None and not any(value.values()):
            raise ValueError("must give at least one name a weight above 0, such as {NAME: 1}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> TraceSource:
        if (self.path is None) == (self.data is None):
            raise ValueError("must give either path or data")
        return self


class EventValues(FrozenModel):
    """What `set` changes; keys that are not given stay."""

    reservation: Bytes | None = None
    """Of a VM, as limit and shares are."""
    limit: Bytes | None = Field(None, gt=0)
    shares: Shares | None = None
    idle_tax: IdleTax | None = None
    """Of a host."""
    host: Name | None = None
    """Where `migrate` takes a VM."""
    repair: Milliseconds | None = Field(None, gt=0)
    """After `fail` or `maintenance` of a host: it is on again after so long; else `power_on` does
    it."""


class Event(FrozenModel):
    """Something that happens to a VM, or to a host, at a stated time."""

    at: Milliseconds
    target: str = Field(max_length=1000)
    """Name of a VM or a host; of a group with a count, one member (web-3)."""
    action: Literal["power_on", "power_off", "reset", "set", "migrate", "fail", "maintenance"]
    """Of a VM: all but the last two. Of a host: set, fail, maintenance, and power_on after them."""
    values: EventValues | None = None

    @model_validator(mode="after")
    def _values_belong_to_the_action(self) -> Event:
        given = set() if self.values is None else set(self.values.model_dump(exclude_none=True))
        if self.action == "migrate":
            if given != {"host"}:
                raise ValueError("migrate needs values: {host: NAME}, and no others")
        elif self.action in ("fail", "maintenance"):
            if not given <= {"repair"}:
                raise ValueError(f"{self.action} takes no values but repair")
        elif self.action != "set":
            if self.values is not None:
                raise ValueError(f"{self.action} takes no values")
        elif not given:
            raise ValueError("set needs values: reservation, limit, shares, or a host's idle_tax")
        elif given & {"host", "repair"}:
            raise ValueError(f"{min(given & {'host', 'repair'})} is no value that set changes")
        return self


class Scenario(FrozenModel):
    """One run."""

    name: str = Field(min_length=1, max_length=200)
    question: str = Field("", max_length=2000)
    """What the run is meant to answer, for the report."""
    seed: int = Field(1, ge=0, lt=1 << 63)
    duration: Milliseconds = Field(gt=0)
    """Simulated time, a multiple of the epoch."""
    tick: Milliseconds = Field(1000, ge=10, le=3_600_000)
    """Longest step of a host; it makes shorter ones where a whole tick would decide too late."""
    epoch: Milliseconds = Field(60_000, ge=10, le=86_400_000)
    """Interval at which the coordinator looks and decides; a multiple of the tick."""
    fidelity: Fidelity = Fidelity()
    detail: Literal["none", "vms"] = "none"
    """`vms` also keeps a row per epoch and VM."""
    hosts: tuple[HostGroup, ...] = Field(min_length=1, max_length=10_000)
    images: tuple[NamedImage, ...] = Field((), max_length=10_000)
    """Or the name of a file in the scenario's folder that holds `images:`."""
    workloads: tuple[NamedWorkload, ...] = Field((), max_length=10_000)
    vms: tuple[VmGroup, ...] = Field((), max_length=100_000)
    trace: TraceSource | None = None
    placement: Placement = Placement()
    migration: Migration = Migration()
    balancing: Balancing = Balancing()
    rules: tuple[Rule, ...] = Field((), max_length=10_000)
    pools: tuple[ResourcePool, ...] = Field((), max_length=10_000)
    availability: Availability = Availability()
    power: Power = Power()
    events: tuple[Event, ...] = Field((), max_length=100_000)

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise ValueError("must be one line of text")
        return value


def member_names(group: HostGroup | VmGroup) -> list[str]:
    """Names of the members of a group, in the order of their arrival."""
    if group.count == 1:
        return [group.name]
    return [f"{group.name}-{number}" for number in range(1, group.count + 1)]


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all models inside it."""
    yield model
    for field in model.model_fields.values():
        annotation = scenario_text.of_field(field)
        for inside in (annotation, scenario_text.at(annotation, (0,))):
            found = scenario_text.model_in(inside)
            if found is not None:
                yield from _models(found)


def schema() -> dict[str, Any]:
    """JSON Schema of the scenario format, for editors."""
    found = Scenario.model_json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "esxsim scenario"
    for model in _models(Scenario):
        keys = (found if model is Scenario else found["$defs"][model.__name__])["properties"]
        for name, field in model.model_fields.items():
            if "default" in keys[name]:
                words = scenario_text.in_words(scenario_text.of_field(field), field.default)
                keys[name]["default"] = words
    images = found["properties"]["images"]
    del images["default"]
    found["properties"]["images"] = {
        "anyOf": [images, {"type": "string", "examples": ["images.yaml"]}],
        "description": "Images, or the name of a file in the scenario's folder that holds them.",
    }
    hosts = found["$defs"]["HostGroup"]["properties"]
    for key in sorted({key for profile in PROFILES.values() for key in profile}):
        del hosts[key]["default"]  # the profile's, and profiles differ
    for of, key in (("HostGroup", "swap"), ("NamedImage", "disk")):  # or a disk by its name
        disk = found["$defs"][of]["properties"][key]
        disk["anyOf"] = [{"$ref": disk.pop("$ref")}, {"type": "string", "enum": sorted(DISKS)}]
    return found
