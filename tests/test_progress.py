"""Progress for people: what a line says, how often, and that it never mixes with results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cluster_builders import host_set, manifest_of, pressed
from scenario_files import loaded

from cluster import coordinator, progress
from cluster.coordinator import Progress
from cluster.fleet import LocalFleet
from cluster.population import populate
from cluster.scenario import Scenario
from hostsim.units import GIB

NOW = Progress(
    epoch=30,
    epochs=120,
    host_ticks=1_234_567,
    wall_s=10.0,
    memory_bytes={
        "configured": 99 * GIB,
        "consumed": 41 * GIB,
        "active": 20 * GIB,
        "shared_saved": 5 * GIB // 2,
        "ballooned": GIB // 4,
        "swapped": 0,
        "free": 7 * GIB,
    },
    levels={"high": 5, "soft": 2, "hard": 0, "low": 1},
    vms=77,
)


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return loaded(tmp_path, duration="2 h").scenario


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now_s)


def test_a_line_says_time_speed_what_is_left_and_where_memory_went() -> None:
    assert progress.describe(NOW, 60_000) == (
        "0.50 of 2.00 h, 123,457 host-ticks/s, 30 s left, 77 VMs, 41 GiB consumed, "
        "saved: shared 2.5, ballooned 0.2, swapped 0.0; hosts under pressure: 2 soft, 1 low"
    )


def test_hosts_are_mentioned_when_they_are_under_pressure() -> None:
    calm = replace(NOW, levels={"high": 8, "soft": 0, "hard": 0, "low": 0})
    assert progress.describe(calm, 60_000).endswith("swapped 0.0")


def test_a_run_faster_than_the_clock_divides_by_no_zero() -> None:
    assert "0 s left" in progress.describe(replace(NOW, wall_s=0.0), 60_000)


def test_without_a_terminal_there_are_plain_lines_now_and_then(
    scenario: Scenario, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    clock = Clock(monkeypatch)
    with progress.shown(scenario) as watch:
        watch.note("starting")
        for epoch in range(1, 121):
            watch(replace(NOW, epoch=epoch))
            clock.now_s += progress.LINE_S / 10
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "esxsim: starting"
    # Every tenth is far enough from the last one; the end is always told.
    hours = [line.split()[1] for line in lines[1:]]
    assert hours == [f"{epoch / 60:.2f}" for epoch in (*range(1, 121, 10), 120)]
    assert all(line.startswith("esxsim: ") and line.isprintable() for line in lines)


def test_on_a_terminal_there_is_a_bar_that_goes_away(
    scenario: Scenario, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with progress.shown(scenario) as watch:
        watch.note("starting")
        watch(NOW)
    out, err = capsys.readouterr()
    assert out == ""
    assert "small" in err and "25%" in err
    assert "77 VMs, 41 GiB consumed" in err
    # The cursor goes up, and the lines are erased.
    assert err.rstrip().endswith("\x1b[2K")


def test_the_speed_of_a_run_is_measured_from_its_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(coordinator.time, "perf_counter", lambda: now_s[0])
    small, shown = pressed(tmp_path), list[Progress]()
    population = populate(small)
    fleet = LocalFleet(host_set(small, population.hosts))
    out, never = tmp_path / "out", lambda: False
    run = coordinator.Coordinator(small, population, fleet, out, {}, shown.append, never)
    now_s[0] += 1000  # whatever it waits for
    run.run()
    assert {progress.wall_s for progress in shown} == {0.0}
    assert manifest_of(out)["wall_s"] == 1000
