"""What a run tells of itself while it goes on: true, whole, and without effect on the run."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_builders import Recorded, json_lines, pressed, recorded, restless, simulate
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cluster.coordinator import Progress
from cluster.messages import CAUSES, HOST_ROW, LEVELS, VM_ROW, EpochReport
from cluster.rows import HostFacts
from cluster.scenario_file import Loaded
from cluster.watch import live
from cluster.watch.live import COUNTED, FILE, MOST, View, largest, worst_levels
from hostsim.invariants import BrokenInvariantError
from hostsim.units import PAGE_SIZE


class Kept(Recorded):
    """Keeps what hosts reported."""

    def run(self, orders: Any, first_epoch: int, n_epochs: int) -> EpochReport:
        report = super().run(orders, first_epoch, n_epochs)
        reports.append(report)
        return report


reports: list[EpochReport] = []


@pytest.fixture
def every_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.0)


def views(loaded: Loaded, out: Path) -> list[Progress]:
    """What a run tells, and `reports` what its hosts did."""
    seen: list[Progress] = []
    reports.clear()
    simulate(loaded, out, fleet=Kept, watch=seen.append)
    return seen


@pytest.mark.usefixtures("every_barrier")
def test_a_view_is_the_last_epoch_of_what_hosts_report(tmp_path: Path) -> None:
    seen = views(restless(tmp_path), tmp_path / "out")
    assert len(seen) == len(reports) > 5
    worst = 1.0
    for now, report in zip(seen, reports, strict=True):
        view = now.view
        assert view is not None and view.simulated_s == now.epoch * 60
        rows = report.hosts[report.hosts["epoch"] == now.epoch - 1]
        free = {f"esx-{row['host'] + 1}": int(row["free_pages"]) * PAGE_SIZE for row in rows}
        assert {one.name: one.free_bytes for one in view.pressed} == free
        ranks = [(LEVELS.index(one.level), -one.free_bytes) for one in view.pressed]
        assert ranks == sorted(ranks, reverse=True)
        vms = report.vms[report.vms["epoch"] == now.epoch - 1]
        lost = {int(row["vm"]): row["lost_ns"] / row["on_ns"] for row in vms if row["on_ns"]}
        told = [sum(one.lost.values()) for one in view.slowest]
        assert told == pytest.approx(
            sorted((s for s in map(sum, lost.values()) if s), reverse=True)
        )
        for one in view.slowest:
            assert one.slowdown == pytest.approx(1 / (1 - sum(one.lost.values())))
            assert list(one.lost.values()) == sorted(one.lost.values(), reverse=True)
            assert one.lost.keys() <= set(CAUSES)
            worst = max(worst, one.slowdown)
    assert worst > 1.01


@pytest.mark.usefixtures("every_barrier")
def test_counts_are_of_the_whole_run(tmp_path: Path) -> None:
    last = views(restless(tmp_path), tmp_path / "out")[-1].view
    assert last is not None
    kinds = [event["kind"] for event in json_lines(tmp_path / "out")]
    whole = np.concatenate([report.hosts for report in reports])
    assert last.counts == {
        "epochs": 15,
        "host_ticks": 15 * 12 * 3,
        "simulated_ms": 15 * 60_000,
        "migrated": kinds.count("migrated"),
        "migration_failed": kinds.count("migration_failed"),
        **{name: int(whole[name].sum()) for name in COUNTED},
    }
    assert last.counts["migrated"] >= 3 and last.counts["swap_out_pages"] > 0


def test_between_two_seconds_the_view_stays_and_the_last_one_is_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter(np.arange(0.0, 100.0, 0.08).tolist())
    monkeypatch.setattr(live.time, "perf_counter", lambda: next(now_s))
    seen = [now.view for now in views(restless(tmp_path), tmp_path / "out")]
    made = [view for i, view in enumerate(seen) if i == 0 or view is not seen[i - 1]]
    assert 3 < len(made) < len(seen) - 3
    assert made[-1] is seen[-1] and made[-1] is not None and made[-1].simulated_s == 900
    assert [view.left_s for view in made if view][-1] == 0


def test_rates_are_over_the_last_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch a second, then one in ten."""
    now_s = 0.0
    monkeypatch.setattr(live.time, "perf_counter", lambda: now_s)
    loaded = pressed(tmp_path, duration="100 min")
    one = live.Live(loaded, [HostFacts(0, "esx", 1 << 30, 4)], [], tmp_path)
    rates = []
    for epoch in range(1, 31):
        now_s += 1.0 if epoch <= 15 else 10.0
        hosts = np.zeros(1, HOST_ROW)
        hosts["epoch"] = epoch - 1
        view = one.look(_report(hosts), epoch, queue=0, migrations=0, last=False)
        assert view is not None
        rates.append((view.simulated_s_per_s, view.host_ticks_per_s, view.left_s))
    assert rates[14] == pytest.approx((60, 12, 85)) and rates[29] == pytest.approx((6, 1.2, 700))


def _report(hosts: Any) -> EpochReport:
    return EpochReport(hosts, np.zeros(0, VM_ROW), (), 0.0)


def test_hosts_that_are_off_are_under_no_pressure(tmp_path: Path) -> None:
    """They report zero of everything, as if they had been in no state."""
    hosts = np.zeros(3, HOST_ROW)
    hosts["host"], hosts["on"], hosts["free_pages"] = range(3), [1, 0, 1], [9, 0, 5]
    hosts["high_ms"] = hosts["on"] * 60_000
    facts = [HostFacts(i, f"esx-{i}", 1 << 30, 4) for i in range(3)]
    one = live.Live(pressed(tmp_path), facts, [], tmp_path)
    view = one.look(_report(hosts), 1, queue=2, migrations=1, last=False)
    assert view is not None
    assert (view.hosts, view.hosts_on, view.machine_bytes) == (3, 2, 2 << 30)
    assert (view.queue, view.migrations) == (2, 1)
    assert [(one.name, one.level) for one in view.pressed] == [("esx-2", "high"), ("esx-0", "high")]


def test_a_run_counts_hosts_that_are_on(tmp_path: Path) -> None:
    events = [
        {"at": "2 min", "target": "esx-1", "action": "fail", "values": {"repair": "4 min"}},
    ]
    seen: list[Progress] = []
    simulate(pressed(tmp_path, events=events), tmp_path / "out", watch=seen.append)
    on = {now.view.hosts_on: sum(now.levels.values()) for now in seen if now.view}
    counted = {sum(now.levels.values()) for now in seen}
    assert counted == {2, 3} and all(n >= 2 for n in on.values())


def test_the_worst_state_counts() -> None:
    rows = np.zeros(3, HOST_ROW)
    rows["high_ms"] = [1, 1, 1]
    rows["soft_ms"] = [0, 1, 1]
    rows["low_ms"] = [0, 0, 1]
    assert [LEVELS[i] for i in worst_levels(rows)] == ["high", "soft", "low"]
    assert len(worst_levels(rows[:0])) == 0


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 30))
def test_the_largest_come_first_and_ties_go_to_the_lower_position(
    values: list[int], most: int
) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:most]
    assert largest(np.array(values, np.float64), most).tolist() == expected


def test_of_many_hosts_and_vms_a_view_has_a_few(tmp_path: Path) -> None:
    seen = views(pressed(tmp_path), tmp_path / "out")
    assert all(now.view and len(now.view.slowest) <= MOST for now in seen)
    hosts = np.zeros(50, HOST_ROW)
    hosts["host"], hosts["on"] = range(50), 1
    facts = [HostFacts(i, f"esx-{i}", 1 << 30, 4) for i in range(50)]
    one = live.Live(pressed(tmp_path), facts, [], tmp_path)
    view = one.look(_report(hosts), 1, queue=0, migrations=0, last=False)
    assert view is not None and [host.name for host in view.pressed] == [
        f"esx-{i}" for i in range(MOST)
    ]


# progress.json


@pytest.mark.usefixtures("every_barrier")
def test_the_folder_tells_it_while_the_run_goes_on_and_no_longer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[Any] = []
    shown: list[Progress] = []

    def watch(now: Progress) -> None:
        if (out / FILE).exists():
            told.append(json.loads((out / FILE).read_text())["progress"])
        shown.append(now)

    simulate(restless(tmp_path), out, watch=watch)
    read = TypeAdapter(list[Progress]).validate_python(told)
    assert read == shown[:-1] and isinstance(read[0].view, View)
    assert not (out / FILE).exists()


@pytest.mark.usefixtures("every_barrier")
def test_it_stays_where_a_run_failed(tmp_path: Path) -> None:
    fleet, _ = recorded(fails_at=4)
    with pytest.raises(BrokenInvariantError):
        simulate(pressed(tmp_path), tmp_path / "out", fleet=fleet)
    assert json.loads((tmp_path / "out" / FILE).read_text())["progress"]["epoch"] == 4


def test_a_stopped_run_has_a_report_instead(tmp_path: Path) -> None:
    seen: list[Progress] = []
    outcome = simulate(
        pressed(tmp_path), tmp_path / "out", watch=seen.append, should_stop=lambda: bool(seen)
    )
    assert outcome.stopped and not (tmp_path / "out" / FILE).exists()


def test_it_is_never_torn(tmp_path: Path) -> None:
    """One thread writes as fast as it can, this one reads."""
    now = Progress(1, 2, 3, 4.0, {"consumed": 5}, {"high": 6}, 7)
    one = live.Live(pressed(tmp_path), [HostFacts(0, "esx", 1 << 30, 4)], [], tmp_path)
    hosts = np.zeros(1, HOST_ROW)
    one.look(_report(hosts), 1, queue=0, migrations=0, last=True)
    one.write(now)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            one.write(now)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        inodes = set()
        while len(inodes) < 50:
            with (tmp_path / FILE).open() as file:
                assert json.load(file)["progress"]["wall_s"] == 4.0
                inodes.add((tmp_path / FILE).stat().st_mtime_ns)
    finally:
        done.set()
        writer.join()


def test_a_folder_that_takes_nothing_does_not_end_the_run(tmp_path: Path) -> None:
    one = live.Live(pressed(tmp_path), [HostFacts(0, "esx", 1 << 30, 4)], [], tmp_path / "gone")
    one.look(_report(np.zeros(1, HOST_ROW)), 1, queue=0, migrations=0, last=True)
    one.write(Progress(1, 2, 3, 4.0))
    one.end()
    assert not (tmp_path / "gone").exists()


def test_a_result_does_not_know_whether_anybody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.0)
    looked_at = simulate(restless(tmp_path), tmp_path / "a")
    monkeypatch.setattr(live.Live, "look", lambda *a, **b: None)
    monkeypatch.setattr(live.Live, "write", lambda *a: None)
    assert simulate(restless(tmp_path), tmp_path / "b") == looked_at
    for name in ("events.jsonl", "hosts.parquet", "vms.parquet", "epochs.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_name_of_a_run_is_one_for_files_and_labels(tmp_path: Path) -> None:
    loaded = pressed(tmp_path, name="a b/ü {x}")
    assert live.run_id(loaded) == f"a-b-x-7-{loaded.digest[:8]}"
