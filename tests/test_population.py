"""Hosts and VMs of a run: ids, times, configurations, programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenario_files import HOST, STEADY, VM, loaded, make_trace, save, trace_of

from cluster.population import Population, populate
from cluster.trace_vms import FOREVER_MS, below, choose, pick, running
from cluster.traces import Trace
from hostsim.program import KEEP
from hostsim.units import GIB, MIB, PAGE_SIZE

HOUR_MS = 3_600_000


def population(folder: Path, **values: Any) -> Population:
    return populate(loaded(folder, **values))


def usable_trace(**columns: Any) -> Trace:
    """make_trace's `a` and `b` only: both have readings."""
    full = make_trace()
    names = ("names", "start_s", "stop_s", "vcpus", "memory_bytes", "cpu_capacity_mhz")
    two = {name: getattr(full, name)[:2] for name in names}
    return make_trace(**(two | {"offsets": full.offsets[:3]} | columns))


def test_ids_are_dense_and_follow_sorted_names(tmp_path: Path) -> None:
    vms = [VM | {"name": "b", "count": 11}, VM | {"name": "a", "count": 1}]
    found = population(tmp_path, vms=vms, hosts=[HOST | {"name": "y"}, HOST | {"name": "x"}])
    assert [host.name for host in found.hosts] == ["x-1", "x-2", "y-1", "y-2"]
    assert [host.host for host in found.hosts] == [0, 1, 2, 3]
    names = [vm.spec.name for vm in found.vms]
    assert names == ["a", *(f"b-{number}" for number in range(1, 12))]
    assert [vm.spec.vm for vm in found.vms] == list(range(12))


def test_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    vms = [VM | {"name": "b"}, VM | {"name": "a", "memory": "2 GiB"}]
    first, second = population(tmp_path, vms=vms), population(tmp_path, vms=vms[::-1])
    assert [(vm.spec.name, vm.spec.config) for vm in first.vms] == [
        (vm.spec.name, vm.spec.config) for vm in second.vms
    ]


def test_times_of_a_group(tmp_path: Path) -> None:
    group = VM | {"start": "1 min", "stop": "30 min", "interval": "90 s"}
    times = [(vm.start_ms, vm.stop_ms) for vm in population(tmp_path, vms=[group]).vms]
    assert times == [(60_000, 1_800_000), (150_000, 1_890_000), (240_000, 1_980_000)]
    never = population(tmp_path, vms=[VM | {"start": "never"}]).vms[0]
    assert (never.start_ms, never.stop_ms) == (None, None)
    assert population(tmp_path).vms[0].stop_ms is None


def test_configurations_carry_the_profile_and_nothing_of_the_group(tmp_path: Path) -> None:
    found = population(tmp_path, hosts=[HOST | {"profile": "osdi02"}])
    assert found.hosts[0].config.allocation.claim == "configured"
    assert "name" not in found.hosts[0].config.model_dump()
    config = population(tmp_path, vms=[VM | {"shares": "high", "vcpus": 2}]).vms[0].spec.config
    assert (config.memory, config.share_count, config.vcpus) == (GIB, 20 * 1024, 2)
    assert "image" not in config.model_dump()


def test_programs_are_shared_by_workload_and_size(tmp_path: Path) -> None:
    vms = [VM, VM | {"name": "w2"}, VM | {"name": "w3", "memory": "2 GiB"}]
    found = {vm.spec.name: vm.spec for vm in population(tmp_path, vms=vms).vms}
    assert found["web-1"].program is found["w2-3"].program
    assert found["web-1"].program is not found["w3-1"].program
    assert found["web-1"].vm_clock
    assert found["web-1"].repeat


def test_ranges_of_images_and_applications(tmp_path: Path) -> None:
    images = [
        {"name": "z", "application": "pg"},
        {"name": "m", "application": "none"},
        {"name": "a", "application": "pg"},
    ]
    vms = [VM | {"name": name, "image": name, "count": 1} for name in "amz"]
    found = population(tmp_path, images=images, vms=vms).vms
    assert [vm.spec.image_range for vm in found] == [1, 2, 3]
    assert [vm.spec.application_range for vm in found] == [4, 0, 4]


def test_a_vm_may_run_another_application_than_its_image_names(tmp_path: Path) -> None:
    content = {"cache": {"application": "100 %"}}
    images = [{"name": "os", "application": "pg", "content": content}]
    runs = {"a": {"application": "web"}, "b": {"application": "none"}, "c": {}}
    vms = [VM | {"name": name, "image": "os", "count": 1} | more for name, more in runs.items()]
    found = population(tmp_path, images=images, vms=vms).vms
    assert [vm.spec.image_range for vm in found] == [1, 1, 1]
    assert [vm.spec.application_range for vm in found] == [3, 0, 2]


def test_stagger_spreads_the_members_and_ignores_the_rest(tmp_path: Path) -> None:
    staggered = [{"name": "steady", "stagger": "1 h", "phases": [{"duration": "1 h"}]}]

    def offsets(count: int, seed: int = 1) -> dict[str, int]:
        found = population(
            tmp_path, workloads=staggered, vms=[VM | {"count": count}], seed=seed, duration="2 h"
        )
        return {vm.spec.name: vm.spec.offset_ms for vm in found.vms}

    many = offsets(200)
    assert all(0 <= offset <= HOUR_MS for offset in many.values())
    assert abs(np.mean(list(many.values())) / HOUR_MS - 0.5) < 0.1
    assert offsets(5) == {name: many[name] for name in offsets(5)}
    assert offsets(5, seed=2) != offsets(5)
    assert {vm.spec.offset_ms for vm in population(tmp_path).vms} == {0}


def test_draws_are_uniform_and_keyed_by_purpose_and_name() -> None:
    draws = np.array([below(1, "image", f"vm-{n}", 1000) for n in range(4000)])
    assert draws.min() >= 0
    assert draws.max() <= 999
    assert abs(draws.mean() - 499.5) < 5 * 289 / 4000**0.5
    assert below(1, "image", "a", 1 << 62) != below(1, "stagger", "a", 1 << 62)
    # Pinned: a change of the generator changes every result.
    assert below(1, "image", "a", 1000) == 182


def test_pick_follows_weights() -> None:
    weights = {"b": 3, "a": 1, "c": 0}
    picks = [pick(weights, 1, "image", f"vm-{n}") for n in range(4000)]
    assert "c" not in picks
    assert abs(picks.count("b") / 4000 - 0.75) < 0.035
    turned = dict(reversed(weights.items()))
    assert picks == [pick(turned, 1, "image", f"vm-{n}") for n in range(4000)]


def test_choice_of_vms_is_seeded_and_nested() -> None:
    names = np.array(sorted(f"vm-{n}" for n in range(100)), dtype=object)
    trace = make_trace(names=names)
    found = np.arange(100)
    ten, twenty = choose(trace, found, 10, 1), choose(trace, found, 20, 1)
    assert list(ten) == sorted(ten)
    assert set(ten) <= set(twenty)
    assert list(ten) != list(choose(trace, found, 10, 2))
    assert list(choose(trace, found, None, 1)) == list(found)


def test_only_vms_that_run_in_the_simulated_time() -> None:
    trace = make_trace()
    assert list(running(trace, 0, 600_000)) == [0, 2]
    assert list(running(trace, 0, 600_001)) == [0, 1, 2]
    assert list(running(trace, 4_199_999, 1)) == [0, 1, 2]
    assert list(running(trace, 4_200_000, 1)) == [0, 2]


def test_vms_of_a_trace(tmp_path: Path) -> None:
    save(tmp_path, make_trace())
    source = trace_of(start="300 s", workloads=STEADY, reservation="25 %", shares="low")
    vms = {vm.spec.name: vm for vm in population(tmp_path, trace=source, vms=None).vms}
    assert list(vms) == ["a", "b", "c"]
    assert [vm.start_ms for vm in vms.values()] == [0, 300_000, 0]
    assert [vm.stop_ms for vm in vms.values()] == [None, 3_900_000, None]
    config = vms["b"].spec.config
    assert (config.memory, config.reservation, config.vcpus) == (2 * GIB, GIB // 2, 2)
    assert config.shares == "low"
    assert vms["b"].spec.vm_clock


def test_a_trace_with_usage_becomes_rows(tmp_path: Path) -> None:
    save(tmp_path, usable_trace())
    vms = {vm.spec.name: vm.spec for vm in population(tmp_path, trace=trace_of(), vms=None).vms}
    rows = vms["a"].program
    # 64 MiB at 0, 300 s and (unknown: as before) 600 s are one row; then 128 MiB for ever.
    assert rows["until_ms"].tolist() == [900_000, FOREVER_MS]
    assert (rows["active_pages"] * PAGE_SIZE // MIB).tolist() == [64, 128]
    assert rows["cpu_permille"].tolist() == [100, 100]
    assert rows["memory_pages"].tolist() == [KEEP, KEEP]
    assert rows["touch_interval_ms"].tolist() == [5000, 5000]
    assert rows["drift_permille_per_h"].tolist() == [50, 50]
    # b has CPU readings alone: 5 % of its 2 GiB at rest, 40 % at full load.
    rows = vms["b"].program
    assert rows["until_ms"].tolist() == [300_000, FOREVER_MS]
    size = 2 * GIB // PAGE_SIZE
    assert rows["active_pages"].tolist() == [size * 50 // 1000, size * 400 // 1000]
    assert not vms["b"].vm_clock
    assert not vms["b"].repeat


def test_rows_begin_where_the_simulation_does_and_end_with_it(tmp_path: Path) -> None:
    save(tmp_path, usable_trace())
    late = population(tmp_path, trace=trace_of(start="650 s"), vms=None).vms
    assert late[0].spec.program["until_ms"].tolist() == [250_000, FOREVER_MS]
    assert late[1].spec.program["until_ms"].tolist() == [250_000, FOREVER_MS]
    short = population(tmp_path, trace=trace_of(), vms=None, duration="15 min").vms
    assert len(short[0].spec.program) == 1
    assert short[0].spec.program["until_ms"][0] >= 900_000


def test_footprints_of_small_vms_of_a_trace_are_halved_sizes(tmp_path: Path) -> None:
    sizes = np.array([100 * MIB, GIB], np.int64)
    readings = np.full(6, MIB, np.int64)
    save(tmp_path, usable_trace(memory_bytes=sizes, active_bytes=readings))
    small, large = population(tmp_path, trace=trace_of(), vms=None).vms
    assert small.spec.image.footprint == 50 * MIB
    assert large.spec.image.footprint == 128 * MIB
    assert small.spec.image_range == large.spec.image_range


@pytest.mark.parametrize("follows", [False, True])
def test_a_week_of_500_vms_is_there_at_once(tmp_path: Path, follows: bool) -> None:
    count, steps = 500, 2016
    readings = np.arange(count * steps) % 977
    trace = make_trace(
        names=np.array(sorted(f"vm-{n:03}" for n in range(count)), dtype=object),
        start_s=np.zeros(count, np.int64),
        stop_s=np.full(count, -1, np.int64),
        vcpus=np.full(count, 2, np.int64),
        memory_bytes=np.full(count, 4 * GIB, np.int64),
        cpu_capacity_mhz=np.full(count, np.nan),
        offsets=np.arange(count + 1) * steps,
        t_s=np.tile(np.arange(steps) * 300, count),
        active_bytes=readings * MIB,
        cpu_permille=readings,
    )
    save(tmp_path, trace)
    source = trace_of(workloads=STEADY) if follows else trace_of()
    ready = loaded(tmp_path, trace=source, duration="7 d", vms=None)
    start = time.perf_counter()
    found = populate(ready)
    assert time.perf_counter() - start < 2
    assert len(found.vms) == count
    assert sum(len(vm.spec.program) for vm in found.vms) == (count if follows else count * steps)
