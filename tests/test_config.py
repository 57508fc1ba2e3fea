"""What a host, a VM and a guest can be told: frozen, strict, bounded; profiles as their sources."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from hostsim.config import (
    DISK_2002,
    PROFILES,
    SSD,
    Allocation,
    Balloon,
    Costs,
    Disk,
    HostConfig,
    Reclaim,
    Sampling,
    Sharing,
    VmConfig,
)
from hostsim.guest_config import (
    ContentMix,
    ContentTable,
    GuestImage,
    Phase,
    TraceGuest,
    Workload,
)
from hostsim.units import FILE, GIB, MIB

PHASE = Phase(duration=1000)
EXAMPLES: list[BaseModel] = [
    Sharing(),
    Balloon(),
    Allocation(),
    Sampling(),
    Reclaim(),
    Disk(),
    Costs(),
    HostConfig(),
    VmConfig(memory=GIB),
    ContentMix(),
    ContentTable(anon=ContentMix(unique=1000)),
    GuestImage(),
    PHASE,
    Workload(phases=(PHASE,)),
    TraceGuest(),
]


def refusal(model: type[BaseModel], **values: Any) -> str:
    """Field and message of the one problem with these values."""
    with pytest.raises(ValidationError) as caught:
        model(**values)
    (error,) = caught.value.errors()
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_a_model_is_frozen_and_hashable(example: BaseModel) -> None:
    name = next(iter(type(example).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(example, name, getattr(example, name))
    assert hash(example) == hash(example.model_copy())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_an_unknown_key_is_refused(example: BaseModel) -> None:
    values = dict(example) | {"colour": 1}
    with pytest.raises(ValidationError) as caught:
        type(example)(**values)
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [
        (("colour",), "extra_forbidden")
    ]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_a_model_survives_being_written_and_read(example: BaseModel) -> None:
    assert type(example).model_validate(example.model_dump()) == example


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (Sharing, {"salting": "host"}, "salting: Input should be 'none' or 'vm'"),
        (Sharing, {"scan_pages_per_s_vm": -1}, "greater than or equal to 0"),
        (Sharing, {"scan_pages_per_s_total": 1.5}, "scan_pages_per_s_total: "),
        (Balloon, {"poll": 99}, "poll: Input should be greater than or equal to 100"),
        (Balloon, {"maximum": 1001}, "maximum: Input should be less than or equal to 1000"),
        (Allocation, {"idle_tax": 991}, "idle_tax: Input should be less than or equal to 990"),
        (Allocation, {"idle_tax": -1}, "idle_tax: Input should be greater than or equal to 0"),
        (Allocation, {"balance_period": 999}, "greater than or equal to 1000"),
        (Allocation, {"claim": "active"}, "claim: Input should be 'configured' or 'touched'"),
        (Allocation, {"deadband_sigmas": 11}, "less than or equal to 10"),
        (Sampling, {"pages": 0}, "pages: Input should be greater than or equal to 1"),
        (Sampling, {"period": 999}, "period: Input should be greater than or equal to 1000"),
        (Reclaim, {"reading": "c"}, "reading: Input should be 'a' or 'b'"),
        (Reclaim, {"minfree": "auto"}, "minfree: Input should be 'fixed' or 'sliding'"),
        (Disk, {"iops": 0}, "iops: Input should be greater than or equal to 1"),
        (Disk, {"latency": -1}, "latency: Input should be greater than or equal to 0"),
        (HostConfig, {"memory": 64 * MIB - 1}, f"greater than or equal to {64 * MIB}"),
        (HostConfig, {"cpus": 0}, "cpus: Input should be greater than or equal to 1"),
        (HostConfig, {"profile": "esx9"}, "profile: Input should be 'osdi02'"),
        (HostConfig, {"swap": "tape"}, "swap: Value error, must be one of ssd, disk-2002"),
        (VmConfig, {"memory": MIB - 1}, f"memory: Input should be greater than or equal to {MIB}"),
        (VmConfig, {"memory": GIB, "limit": 0}, "limit: Input should be greater than 0"),
        (VmConfig, {"memory": GIB, "vcpus": 0}, "vcpus: Input should be greater than"),
        (VmConfig, {"memory": GIB, "balloon": "off"}, "balloon: Input should be 'present'"),
        (VmConfig, {"memory": GIB, "shares": -1}, "must be low, normal, high or a whole number"),
        (VmConfig, {"memory": GIB, "shares": (1 << 40) + 1}, "must be low, normal, high"),
        (GuestImage, {"footprint": 0}, "footprint: Input should be greater than 0"),
        (GuestImage, {"boot": 999}, "boot: Input should be greater than or equal to 1000"),
        (GuestImage, {"copies": 0.5}, "copies: Input should be greater than or equal to 1"),
        (GuestImage, {"copies": float("nan")}, "copies: Input should be a finite number"),
        (GuestImage, {"os": "beos"}, "os: Input should be 'linux' or 'windows'"),
        (GuestImage, {"disk": "tape"}, "disk: Value error, must be one of ssd, disk-2002"),
        (Phase, {"duration": 0}, "duration: Input should be greater than 0"),
        (Phase, {"duration": 1, "touch_interval": 9}, "greater than or equal to 10"),
        (Phase, {"duration": 1, "locality": "random"}, "Input should be 'uniform', 'sweep'"),
        (Workload, {"phases": ()}, "phases: Tuple should have at least 1 item"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(
    model: type[BaseModel], values: dict[str, Any], message: str
) -> None:
    assert message in refusal(model, **values)


def test_a_problem_deep_in_a_host_is_reported_with_its_path() -> None:
    assert refusal(HostConfig, sampling={"pages": 0}).startswith("sampling.pages: ")


# Bounds of a VM


def test_limit_must_not_exceed_memory() -> None:
    assert "limit must not exceed memory" in refusal(VmConfig, memory=GIB, limit=GIB + 1)


def test_reservation_must_not_exceed_memory_or_limit() -> None:
    message = "reservation must not exceed limit"
    assert message in refusal(VmConfig, memory=GIB, reservation=GIB + 1)
    assert message in refusal(VmConfig, memory=GIB, limit=MIB, reservation=MIB + 1)


def test_reservation_limit_and_memory_may_all_be_equal() -> None:
    config = VmConfig(memory=GIB, limit=GIB, reservation=GIB)
    assert (config.reservation, config.limit, config.memory) == (GIB, GIB, GIB)


@pytest.mark.parametrize(
    ("shares", "expected"), [("low", 5120), ("normal", 10_240), ("high", 20_480), (0, 0), (7, 7)]
)
def test_share_presets_are_5_10_and_20_a_mebibyte(shares: Any, expected: int) -> None:
    """A VM of 1 GiB. Exact. Source: ESX 2 guide, p353: normal 10 a MB, low half, high double."""
    assert VmConfig(memory=GIB, shares=shares).share_count == expected


def test_the_default_vm_is_unreserved_unlimited_and_costs_32_mib() -> None:
    """Overhead of 32 MB a VM: the paper, section 6.2."""
    config = VmConfig(memory=GIB)
    assert (config.reservation, config.limit, config.overhead) == (0, None, 32 * MIB)
    assert config.share_count == 10 * 1024
    assert (config.sharing, config.balloon, config.guest_swap) == (True, "present", None)


# Bounds of a host


def test_the_reserve_must_leave_memory() -> None:
    assert "reserve must be below memory" in refusal(HostConfig, memory=GIB, reserve=GIB)
    assert HostConfig(memory=GIB, reserve=GIB - 1).reserve == GIB - 1


@pytest.mark.parametrize("name", ["high", "soft", "hard", "low"])
def test_thresholds_must_fall(name: str) -> None:
    """Each threshold moved onto its neighbour (low onto 0) is refused; one permille above passes.
    The host's defaults are 6, 4, 2 and 1 %."""
    below = {"high": 40, "soft": 20, "hard": 10, "low": 0}[name]
    assert "high > clear > soft > hard > low > 0" in refusal(Reclaim, **{name: below})
    assert getattr(Reclaim(**{name: below + 1}), name) == below + 1


def test_clear_lies_between_high_and_soft_and_high_may_be_more_than_minfree() -> None:
    for clear in (40, 60):
        assert "high > clear > soft" in refusal(Reclaim, clear=clear)
    assert Reclaim(clear=41).clear == 41 and Reclaim(clear=59).clear == 59
    assert Reclaim(minfree="sliding", high=4000).high == 4000
    assert "100 % at most" in refusal(Reclaim, high=1001)


def test_a_disk_is_named_or_spelled_out() -> None:
    assert HostConfig(swap="disk-2002").swap == DISK_2002
    assert HostConfig(swap="ssd").swap == SSD
    assert HostConfig(swap={"latency": 5, "iops": 6}).swap == Disk(latency=5, iops=6)
    assert GuestImage(disk="disk-2002").disk == DISK_2002


def test_named_disks_are_an_ssd_and_a_disk_of_2002() -> None:
    assert (SSD.latency, SSD.iops) == (90_000, 50_000)
    assert (DISK_2002.latency, DISK_2002.iops) == (8_000_000, 120)
    assert (SSD.write_cluster, DISK_2002.write_cluster) == (1, 16)


# Profiles


def test_osdi02_is_the_paper_and_the_esx_2_manual() -> None:
    """Every value as in the reference, sections 1.3 to 1.9 (ESX 2 guide p353-355, p406, and the
    paper's sections 3.2, 5.2, 5.3, 6.3). Exact."""
    config = HostConfig(profile="osdi02", memory=GIB)
    assert (config.sharing.scan_pages_per_s_vm, config.sharing.scan_pages_per_s_total) == (50, 200)
    assert (config.sharing.scan_time, config.sharing.salting) == (None, "none")
    assert (config.balloon.poll, config.balloon.maximum) == (1000, 500)
    assert config.balloon.inflate == 4 * MIB
    assert (config.allocation.idle_tax, config.allocation.balance_period) == (750, 15_000)
    assert (config.allocation.claim, config.allocation.deadband_sigmas) == ("configured", 0)
    assert (config.sampling.pages, config.sampling.period) == (100, 30_000)
    reclaim = config.reclaim
    assert (reclaim.high, reclaim.soft, reclaim.hard, reclaim.low) == (60, 40, 20, 10)
    assert (reclaim.minfree, reclaim.reading, reclaim.margin) == ("fixed", "b", None)
    assert config.swap == DISK_2002
    assert config.swap_space_bytes == GIB


def test_vsphere_is_esxi_5_and_later() -> None:
    """Every value as in the reference, section 3.1: CtlMaxPercent 65, ShareScanTime 60 min,
    ShareRateMax 1024, SamplePeriod 60 s, BalancePeriod 15 s, IdleTax 75, minFree on a sliding scale
    with soft, hard and low at 64, 32 and 16 % of it. Exact."""
    config = HostConfig(memory=64 * GIB)
    assert config.profile == "vsphere"
    sharing = config.sharing
    assert (sharing.scan_pages_per_s_vm, sharing.scan_time) == (1024, 3_600_000)
    assert config.balloon.maximum == 650
    assert (config.sampling.pages, config.sampling.period) == (100, 60_000)
    assert (config.allocation.idle_tax, config.allocation.balance_period) == (750, 15_000)
    assert config.allocation.claim == "touched"
    reclaim = config.reclaim
    assert (reclaim.high, reclaim.soft, reclaim.hard, reclaim.low) == (1000, 640, 320, 160)
    assert reclaim.minfree == "sliding"
    assert config.swap == SSD
    assert config.reserve == GIB
    assert config.swap_space_bytes == 256 * GIB


def test_eras_after_vsphere_differ_in_mechanisms_alone() -> None:
    """ESX 4.1 brought compression; salting by VM came with 5.0 U3d and is the default of 8."""
    plain, five, eight = (HostConfig(profile=f"vsphere{era}") for era in ("", "-5", "-8"))
    assert (plain.compression.enabled, plain.sharing.salting) == (False, "none")
    assert (five.compression.enabled, five.sharing.salting) == (True, "none")
    assert (eight.compression.enabled, eight.sharing.salting) == (True, "vm")
    assert five.compression.maximum == 100
    for config in (five, eight):
        assert config.sharing.scan_time == plain.sharing.scan_time
        assert config.balloon == plain.balloon and config.sampling == plain.sampling


def test_the_driver_of_the_vsphere_era_moves_16384_pages_a_second() -> None:
    """Linux's vmw_balloon, without pressure: 16384 pages in a cycle of one second."""
    balloon = HostConfig().balloon
    assert balloon.inflate == balloon.deflate == 16_384 * 4096
    assert balloon.poll == 1000


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_what_the_user_states_stays_and_the_profile_fills_in_the_rest(name: str) -> None:
    config = HostConfig(profile=name, balloon={"maximum": 300}, reserve=5 * MIB)
    plain = HostConfig(profile=name)
    assert (config.balloon.maximum, config.reserve) == (300, 5 * MIB)
    assert config.balloon.inflate == plain.balloon.inflate
    assert config.sharing == plain.sharing
    assert config.allocation == plain.allocation


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_reads_the_same_from_a_file(name: str) -> None:
    values = {"profile": name, "memory": "64 GiB"}
    from_file = HostConfig.model_validate(values, context={FILE: True})
    assert from_file == HostConfig(profile=name, memory=64 * GIB)


def test_a_profile_does_not_hide_a_wrong_type() -> None:
    assert refusal(HostConfig, profile=3).startswith("profile: ")
    assert refusal(HostConfig, balloon=3).startswith("balloon: ")


def test_swap_space_given_is_taken() -> None:
    assert HostConfig(profile="osdi02", memory=GIB, swap_space=3 * GIB).swap_space_bytes == 3 * GIB
    assert HostConfig(memory=64 * GIB, swap_space=0).swap_space_bytes == 0


# Guests


@pytest.mark.parametrize("total", [999, 1001])
def test_the_entries_of_a_content_table_sum_to_one_whole(total: int) -> None:
    message = refusal(ContentTable, anon=ContentMix(unique=500), cache=ContentMix(zero=total - 500))
    assert f"entries must sum to 100 %, got {total / 10:g} %" in message


def test_a_guest_grows_no_kernel_pages() -> None:
    growth = ContentTable(kernel=ContentMix(unique=1), anon=ContentMix(unique=999))
    assert "growth holds no kernel pages" in refusal(GuestImage, growth=growth)


def test_images_and_phases_have_stated_defaults() -> None:
    image = GuestImage()
    assert (image.os, image.footprint, image.boot) == ("linux", 256 * MIB, 30_000)
    assert (PHASE.touch_interval, PHASE.writes, PHASE.drift, PHASE.cpu) == (5000, 300, 50, 200)
    assert (PHASE.active, PHASE.memory, PHASE.growth) == (("permille", 100), None, 16 * MIB)


def test_costs_are_those_of_a_core_of_2013_to_2020() -> None:
    assert (Costs().cow, Costs().scan) == (3_000, 2_000)
