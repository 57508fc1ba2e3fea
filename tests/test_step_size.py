"""The length of a step: what bounds it, and that results do not depend on the longest one.

A scenario's tick is the longest step; a host makes shorter ones where a whole tick would decide too
late. So five small scenarios, from idle to thrashing, agree at ticks of 1, 10 and 60 s within the
bounds below; README has a table of them.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_builders import (
    MINUTE,
    SECOND,
    counter,
    make_host,
    make_image,
    make_phase,
    make_spec,
    power_on,
    run,
    steps_of,
)
from hypothesis import given
from hypothesis import strategies as st
from in_process import IMAGES, report_of

from hostsim import pace, swap, tick
from hostsim.config import Disk
from hostsim.host import Host
from hostsim.state import HARD, HIGH, SOFT
from hostsim.units import MIB

TICKS, SEEDS = (1, 10, 60), range(1, 25)
STATE_PART, MEMORY_PART, SLOWDOWN_PART = 0.02, 0.05, 0.05
"""Bounds against a tick of 1 s: part of the time in a reclamation state; any quantity of memory, as
a part of what is configured; mean slowdown, relative."""


COARSE, FINE = MINUTE, MINUTE // 2
"""The shortest tick that asks for steps by law: two sampling periods of the tests' hosts; and one
that does not."""


def growing(memory: int, growth: int, tick_ms: int = MINUTE, **options: Any) -> Host:
    """A VM of 64 MiB that starts to grow to `memory` a minute after its boot."""
    phases = [make_phase(duration=MINUTE), make_phase(memory=memory, growth=growth)]
    host = make_host(128 * MIB, tick_ms=tick_ms, **options)
    power_on(host, make_spec(1, 64 * MIB, phases))
    return host


@given(st.integers(1, 3_600_000), st.integers(1, 3_600_000))
def test_a_tick_is_divided_evenly(rest_ms: int, pace_ms: int) -> None:
    """Into as few steps as there must be; no crumb is left at its end."""
    first = pace.part_ms(rest_ms, pace_ms)
    assert 1 <= first <= pace_ms
    assert first == -(-rest_ms // -(-rest_ms // pace_ms))


def test_a_quiet_host_makes_long_steps() -> None:
    """Half the sampling period of 60 s, once its guests have booted; no shorter one."""
    host = make_host(128 * MIB, tick_ms=MINUTE, sampling={"period": MINUTE})
    power_on(host, *(make_spec(vm, 16 * MIB, make_phase(active=4 * MIB)) for vm in (1, 2)))
    run(host, 5 * MINUTE)
    assert steps_of(host, 10 * MINUTE) == [30_000] * 20


def test_a_step_ends_where_a_program_moves_on() -> None:
    """Boot ends at 1 s, the phase 60 s later."""
    host = growing(2 * MIB, MIB)
    ends = np.cumsum(steps_of(host, 3 * MINUTE)).tolist()
    assert 1000 in ends
    assert any(61_000 <= end < 62_000 for end in ends)


@pytest.mark.parametrize(
    ("tick_ms", "shortest_ms", "steps"), [(FINE, pace.STEP_MS_MIN, 6), (COARSE, SECOND, 4)]
)
def test_guests_take_half_of_the_room_in_a_step_at_most(
    tick_ms: int, shortest_ms: int, steps: int
) -> None:
    """60 MiB at 8 MiB a second, of 56 that are free: free memory falls to the first threshold by
    steps none of which takes more than half of what was left above it, or what the shortest step
    takes; a coarse tick makes none below a second."""
    host = growing(60 * MIB, 8 * MIB, tick_ms, reserve=70 * MIB)
    run(host, MINUTE)
    free, level = [], int(HIGH)
    while level == int(HIGH):
        free.append(counter(host, "free") - counter(host, "down_soft"))
        tick.step(host.state)
        level = counter(host, "level")
    taken = [before - after for before, after in pairwise(free)]
    busy = [(n, room) for n, room in zip(taken, free, strict=False) if n > 0]
    smallest = 8 * 256 * shortest_ms // SECOND + 1
    assert len(busy) >= steps
    assert all(n <= max(room / 2, smallest) + 1 for n, room in busy)


@pytest.mark.parametrize("tick_ms", [FINE, COARSE])
def test_a_host_that_pages_makes_steps_of_a_second_at_most(tick_ms: int) -> None:
    """But by law in SOFT, where its guests' pages are alike."""
    host = make_host(64 * MIB, tick_ms=tick_ms, swap=Disk(latency=100_000, iops=200))
    busy = make_phase(active=40 * MIB, memory=40 * MIB, touch_interval=MINUTE)
    power_on(host, *(make_spec(vm, 40 * MIB, busy, balloon="absent") for vm in (1, 2)))
    run(host, 2 * MINUTE)
    short = SOFT if tick_ms == FINE else HARD
    longest = {level: 0 for level in (int(SOFT), int(HARD))}
    for _ in range(200):
        before = counter(host, "level")
        tick.step(host.state)
        longest[before] = max(longest.get(before, 0), counter(host, "dt_ms"))
    assert all(longest[level] <= SECOND for level in longest if level >= short)
    assert longest[int(SOFT)] > (0 if tick_ms == FINE else SECOND)


def test_every_step_has_random_streams_of_its_own() -> None:
    """Their key is the step's start: whole ticks, and what lies between two in other bits."""
    host = growing(60 * MIB, 8 * MIB, reserve=70 * MIB)
    keys = []
    for _ in range(200):
        keys.append(counter(host, "tick"))
        tick.step(host.state)
    assert len(set(keys)) == 200
    assert keys[0] == 0 and tick.key_of(3 * MINUTE, MINUTE) == 3


def test_a_fast_swap_device_keeps_guests_running() -> None:
    """Two guests sweep 80 MiB of 64 as fast as they can. In steps of a second the host went round
    between HARD and LOW, and guests stood still for three quarters of the time; it pages as fast as
    they fault, so a real one stays in SOFT and blocks nobody."""
    host = make_host(64 * MIB, swap=Disk(latency=100_000, iops=1_000_000))
    busy = make_phase(active=40 * MIB, memory=40 * MIB, locality="sweep")
    power_on(host, *(make_spec(vm, 40 * MIB, busy, balloon="absent") for vm in (1, 2)))
    run(host, 20 * SECOND)
    host.measure()
    run(host, 10 * SECOND)
    assert host.state.level_ms[int(HARD) :].sum() < 0.02 * 10 * SECOND
    assert host.state.lost[:, 4].sum() < 0.02 * 2 * 10 * SECOND * 1_000_000


def test_a_touch_that_stalled_is_made_first_in_the_next_step() -> None:
    """With a device of 10 reads a second a guest gets at most 10 pages a second from swap, in order
    of its sweep, however short the steps: it cannot pass over the page that it waits for."""
    done = {}
    for tick_ms in (10, 1000):
        host = make_host(tick_ms=tick_ms, swap=Disk(latency=1000, iops=10))
        image = make_image(4 * MIB)
        power_on(host, make_spec(1, 4 * MIB, make_phase(active=4 * MIB), image=image))
        run(host, 5 * SECOND)
        host.state.host[0].swap_io_left = 1 << 40
        assert swap.page_out_vm(host.state, 0, 300, 1 << 40) == 300
        host.measure()
        run(host, 10 * SECOND)
        done[tick_ms] = int(host.state.vms[0].touches)
        assert counter(host, "swap_ins") in range(95, 101)
    assert done[10] == pytest.approx(done[1000], rel=0.15)


# Scenarios


def _workload(name: str, *phases: dict[str, str], **options: str) -> dict[str, Any]:
    return {"name": name, "phases": [{"touch_interval": "10 s"} | one for one in phases], **options}


GROWING = _workload(
    "growing",
    {"duration": "60 min", "memory": "45 %", "active": "15 %", "cpu": "10 %"},
    {"duration": "60 min", "memory": "90 %", "active": "50 %", "growth": "4 MiB/s"},
    stagger="60 min",
)
STEADY = _workload(
    "steady",
    {"duration": "30 min", "memory": "70 %", "active": "35 %"},
    {"duration": "10 min", "memory": "85 %", "active": "50 %"},
    stagger="40 min",
)
IDLE = _workload("idle", {"duration": "60 min", "memory": "40 %", "active": "4 %", "cpu": "3 %"})


def _vm(name: str, count: int, memory: str, image: str, workload: str, **options: str) -> Any:
    return {
        "name": name, "count": count, "memory": memory, "image": image, "workload": workload,
    } | options  # fmt: skip


def _scenario(duration: str, sample: int, host: dict[str, Any], *vms: Any, **rest: Any) -> Any:
    return {
        "name": "step-size",
        "seed": 3,
        "duration": duration,
        "fidelity": {"sample": sample},
        "hosts": [{"name": "esx", "cpus": 24} | host],
        "images": IMAGES,
        "workloads": [GROWING, STEADY, IDLE],
        "vms": list(vms),
    } | rest


SCENARIOS: dict[str, Any] = {
    "mixed, 2.2 times overcommitted": _scenario(
        "60 min",
        256,
        {"memory": "20 GiB"},
        _vm("a", 6, "2 GiB", "debian-web", "growing", interval="20 s"),
        _vm("b", 8, "2 GiB", "debian-idle", "steady", interval="20 s"),
        _vm("c", 6, "2 GiB", "debian-db", "idle", interval="20 s"),
        _vm("d", 2, "2 GiB", "debian-db", "growing", balloon="absent", start="10 min"),
    ),
    "thrashing, no balloons": _scenario(
        "20 min",
        64,
        {"memory": "8 GiB"},
        _vm("a", 10, "1 GiB", "debian-db", "busy", balloon="absent"),
        workloads=[
            _workload(
                "busy",
                {"duration": "60 min", "memory": "95 %", "active": "85 %", "touch_interval": "5 s"},
            )
        ],
    ),
    "12 Windows guests boot at once": _scenario(
        "20 min",
        64,
        {"memory": "8 GiB"},
        _vm("a", 12, "1 GiB", "windows", "light"),
        images=[{"name": "windows", "os": "windows", "footprint": "300 MiB"}],
        workloads=[_workload("light", {"duration": "60 min", "memory": "50 %", "active": "15 %"})],
    ),
    "idle tax, two guests of 2002": _scenario(
        "40 min",
        16,
        {"memory": "512 MiB", "reserve": "60 MiB", "profile": "osdi02"},
        _vm("one", 1, "256 MiB", "windows", "idle"),
        _vm("two", 1, "256 MiB", "linux", "dbench", start="5 min"),
        images=[
            {"name": "windows", "os": "windows", "footprint": "120 MiB"},
            {"name": "linux", "footprint": "50 MiB"},
        ],
        workloads=[
            _workload("idle", {"duration": "60 min", "active": "4 %"}),
            _workload("dbench", {"duration": "60 min", "memory": "97 %", "active": "90 %"}),
        ],
    ),
    "idle, not overcommitted": _scenario(
        "60 min",
        64,
        {"memory": "24 GiB"},
        _vm("c", 8, "2 GiB", "debian-db", "idle", interval="20 s"),
    ),
}
MEMORY = ("shared_saved", "ballooned", "swapped", "consumed", "active")


def means(folder: Path, name: str, seconds: int) -> dict[str, float]:
    """What a scenario gives at a tick: the mean over SEEDS, by name."""
    rows = []
    for seed in SEEDS:
        report = report_of(folder, SCENARIOS[name] | {"tick": f"{seconds} s", "seed": seed})
        memory, cost = report["memory_gib"], report["cost"]
        row = {key: memory[key]["mean"] for key in (*MEMORY, "configured")}
        row |= report["reclaim_states"]
        rows.append(
            row | {"swap_in": cost["swap_in_pages"] / 1e6, "slowdown": cost["slowdown"]["mean"]}
        )
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def row_of_table(name: str, found: dict[int, dict[str, float]]) -> str:
    """A row of README's table: 1 s / 10 s / 60 s in every column."""
    columns = {"high": "{:.1%}", "shared_saved": "{:.2f}", "ballooned": "{:.2f}"}
    columns |= {"swapped": "{:.2f}", "swap_in": "{:.1f}", "slowdown": "{:.3f}"}
    cells = [
        " / ".join(text.format(row[key]) for row in found.values()) for key, text in columns.items()
    ]
    return "| " + " | ".join([name, *cells]) + " |"


@pytest.mark.parametrize("name", SCENARIOS)
def test_results_agree_at_ticks_of_1_10_and_60_s(name: str, tmp_path: Path) -> None:
    """Within the bounds at the head of this file."""
    found = {seconds: means(tmp_path, name, seconds) for seconds in TICKS}
    first = found[1]
    for row in found.values():
        for state in ("high", "soft", "hard", "low"):
            assert row[state] == pytest.approx(first[state], abs=STATE_PART), state
        for key in MEMORY:
            apart = MEMORY_PART * first["configured"]
            assert row[key] == pytest.approx(first[key], abs=apart), key
        assert row["slowdown"] == pytest.approx(first["slowdown"], rel=SLOWDOWN_PART)


@pytest.mark.slow
def test_readme_shows_what_the_scenarios_give(tmp_path: Path) -> None:
    """Where it does not, the rows that belong there."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    rows = [
        row_of_table(name, {seconds: means(tmp_path, name, seconds) for seconds in TICKS})
        for name in SCENARIOS
    ]
    missing = [row for row in rows if row not in readme]
    assert not missing, "\n" + "\n".join(missing)
