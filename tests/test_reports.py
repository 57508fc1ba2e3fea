"""The consolidation report: its keys, its numbers against NumPy, and what must not show in it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import EPOCH_MS, Synthetic

from cluster import reports
from cluster.aggregate import MEMORY, SLOWDOWN_MAX, Aggregator, slowdowns
from cluster.messages import CAUSES, HOST_ROW, VM_ROW, EpochReport
from cluster.policy.history import History
from cluster.rows import VmFate
from cluster.sampling_error import relative_errors
from cluster.summary import answer, summary_lines
from hostsim.units import GIB, PAGE_SIZE, HostId, VmId

SPREAD = {"mean", "p50", "p95", "p99", "max"}
KEYS: dict[str, set[str]] = {
    "scenario": {"name", "seed", "digest"},
    "hosts": {"count", "powered_on_mean", "memory_gib", "cpus", "cpu_demand_mean"},
    "vms": {"submitted", "placed", "refused", "refused_by", "waiting", "completed"},
    "consolidation": {
        *("vms_per_host_mean", "vms_per_host_max", "overcommit_configured", "overcommit_peak")
    },
    "memory_gib": {
        *("configured", "allocated", "consumed", "active", "shared", "shared_saved", "zero_saved"),
        *("ballooned", "swapped", "compressed", "untouched", "compression_cache", "large"),
        *("overhead", "nvme", "free"),
    },
    "reclaim_states": {"high", "soft", "hard", "low"},
    "cost": {
        *("slowdown", "slowdown_epoch", "slowdown_by_cause", "swap_in_pages", "swap_out_pages"),
        *("double_paging_pages", "cow_breaks", "guest_paging_pages", "blocked_s"),
        *("compressions", "decompressions", "cache_evictions", "large_breaks"),
        *("host_cache_out_pages", "host_cache_in_pages"),
        *("tier_touches", "tier_up_pages", "tier_down_pages"),
        "migration_downtime_s",
    },
    "migrations": {"count", "gib", "mean_s", "rounds_mean", "slowed_s", "failed"},
    "failures": {
        *("hosts", "vms_restarted", "vms_lost", "downtime_s", "steady_s"),
        *("sharing_broken_gib", "storm_host_s"),
    },
    "energy": {"kwh"},
    "error": {
        "sample",
        "shared_saved_rel_std",
        "consumed_rel_std",
        "swapped_rel_std",
    },
}
SCALARS = {"schema", "digest", "partial", "simulated_s", "assumptions"}


def built(run: Synthetic, *, span: int = 1, sample: int = 1) -> dict[str, Any]:
    return reports.build(run.aggregate(span, sample), run.scenario(), run.history(), {"a.b": "c"})


def everything(run: Synthetic) -> tuple[np.ndarray, np.ndarray]:
    """All host rows and VM rows of a run at once."""
    found = list(run.reports())
    return np.concatenate([r.hosts for r in found]), np.concatenate([r.vms for r in found])


def one_vm(on_ns: int, lost_ns: int, epochs: int = 1) -> Aggregator:
    run = Synthetic(n_hosts=1, vms_per_host=1, refused=0)
    found = Aggregator(run.hosts, run.vms, epoch_ms=EPOCH_MS)
    for epoch in range(epochs):
        hosts, vms = np.zeros(1, HOST_ROW), np.zeros(1, VM_ROW)
        hosts["epoch"] = vms["epoch"] = epoch
        vms["on_ns"], vms["lost_ns"][0, CAUSES.index("blocked")] = on_ns, lost_ns
        found.add(EpochReport(hosts, vms, (), 0.0))
    return found


def test_keys_are_those_of_the_contract() -> None:
    report = built(Synthetic())
    assert set(report) == set(KEYS) | SCALARS
    for name, keys in KEYS.items():
        assert set(report[name]) == keys, name
    for row in report["memory_gib"].values():
        assert set(row) == {"mean", "p95", "max"}
    assert set(report["cost"]["slowdown"]) == set(report["cost"]["slowdown_epoch"]) == SPREAD
    assert set(report["cost"]["slowdown_by_cause"]) == set(CAUSES)
    assert report["schema"] == 2
    assert report["assumptions"]["a.b"] == "c"
    assert "linear in CPU load" in report["assumptions"]["report.energy"]


def test_configured_memory_is_conserved() -> None:
    memory = built(Synthetic(epochs=60))["memory_gib"]
    parts = ("consumed", "shared_saved", "ballooned", "swapped", "compressed", "untouched")
    total = math.fsum(memory[name]["mean"] for name in parts)
    assert total == pytest.approx(memory["configured"]["mean"], rel=1e-12)
    assert memory["swapped"]["max"] > 0
    assert memory["ballooned"]["max"] > 0


@pytest.mark.parametrize("epochs", [1, 19, 20, 21, 100])
def test_memory_agrees_with_numpy(epochs: int) -> None:
    run = Synthetic(n_hosts=2, epochs=epochs)
    hosts, _ = everything(run)
    memory = built(run)["memory_gib"]
    for name in MEMORY:
        pages = np.bincount(hosts["epoch"], hosts[f"{name}_pages"])
        gib = pages * PAGE_SIZE / GIB
        p95 = np.percentile(gib, 95, method="inverted_cdf")
        expected = {"mean": gib.mean(), "p95": p95, "max": gib.max()}
        assert memory[name] == pytest.approx(expected, rel=1e-12), name


def test_slowdowns_agree_with_numpy() -> None:
    run = Synthetic(n_hosts=3, vms_per_host=12, epochs=40)
    _, vms = everything(run)
    n = 36
    on, lost = np.bincount(vms["vm"], vms["on_ns"]), np.zeros((n, len(CAUSES)))
    np.add.at(lost, vms["vm"], vms["lost_ns"])
    whole = on / (on - lost.sum(axis=1))
    cost = built(run)["cost"]
    assert cost["slowdown"]["mean"] == pytest.approx(whole.mean())
    assert cost["slowdown"]["max"] == pytest.approx(whole.max())
    for p in (50, 95, 99):
        expected = np.percentile(whole, p, method="inverted_cdf")
        assert cost["slowdown"][f"p{p}"] == pytest.approx(expected)
    by_cause = dict(zip(CAUSES, (lost / on[:, None]).mean(axis=0), strict=True))
    assert cost["slowdown_by_cause"] == pytest.approx(by_cause)
    assert cost["blocked_s"] == pytest.approx(lost[:, CAUSES.index("blocked")].sum() / 1e9)

    each = vms["on_ns"] / (vms["on_ns"] - vms["lost_ns"].sum(axis=1))
    assert cost["slowdown_epoch"]["mean"] == pytest.approx(each.mean(), abs=1e-6)
    assert cost["slowdown_epoch"]["max"] == pytest.approx(each.max(), abs=1e-6)
    for p in (50, 95, 99):
        expected = np.percentile(each, p, method="inverted_cdf")
        assert cost["slowdown_epoch"][f"p{p}"] == pytest.approx(expected, abs=0.00051)


def test_consolidation_agrees_with_numpy() -> None:
    run = Synthetic(n_hosts=3, vms_per_host=11, epochs=10)
    hosts, _ = everything(run)
    ratio = np.bincount(hosts["epoch"], hosts["configured_pages"]) * PAGE_SIZE / (3 * 32 * GIB)
    fit = built(run)["consolidation"]
    assert fit["overcommit_configured"] == pytest.approx(ratio.mean())
    assert fit["overcommit_peak"] == pytest.approx(ratio.max())
    assert (fit["vms_per_host_mean"], fit["vms_per_host_max"]) == (11.0, 11)
    report = built(run)
    assert report["hosts"]["powered_on_mean"] == 3.0
    assert report["hosts"]["cpu_demand_mean"] == pytest.approx(0.4)
    assert report["simulated_s"] == 600.0
    states = {level: hosts[f"{level}_ms"].sum() for level in ("high", "soft", "hard", "low")}
    whole = sum(states.values())
    assert report["reclaim_states"] == pytest.approx({k: v / whole for k, v in states.items()})
    assert report["cost"]["swap_in_pages"] == hosts["swap_in_pages"].sum()


@settings(max_examples=25)
@given(st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_batching_does_not_show(seed: int, spans: list[int]) -> None:
    run = Synthetic(n_hosts=2, vms_per_host=7, epochs=sum(spans), seed=seed)
    one = run.aggregate()
    batched = Aggregator(run.hosts, run.vms, epoch_ms=EPOCH_MS)
    hosts, vms = everything(run)
    first = 0
    for span in spans:
        inside = [(r["epoch"] >= first) & (r["epoch"] < first + span) for r in (hosts, vms)]
        batched.add(EpochReport(hosts[inside[0]], vms[inside[1]], (), 1.0))
        first += span
    found = [reports.build(agg, run.scenario(), run.history(), {}) for agg in (one, batched)]
    assert reports.canonical(found[0]) == reports.canonical(found[1])
    tables = [reports.vm_table(agg, run.fates) for agg in (one, batched)]
    for name, column in tables[0].items():
        assert np.array_equal(np.asarray(column), np.asarray(tables[1][name])), name


def test_adding_leaves_read_only_reports_as_they_are() -> None:
    run = Synthetic(epochs=2)
    aggregator = Aggregator(run.hosts, run.vms, epoch_ms=EPOCH_MS)
    for report in run.reports():
        report.hosts.flags.writeable = report.vms.flags.writeable = False
        aggregator.add(report)
    assert reports.canonical(
        reports.build(aggregator, run.scenario(), run.history(), {"a.b": "c"})
    ) == reports.canonical(built(run))


def test_a_blocked_vm_counts_as_the_stated_maximum() -> None:
    run = one_vm(1000, 1000)
    cost = reports.build(run, Synthetic().scenario(), History(), {})["cost"]
    assert cost["slowdown"]["max"] == cost["slowdown_epoch"]["p99"] == SLOWDOWN_MAX
    assert slowdowns(np.array([10**16]), np.array([10**16 // 2])).tolist() == [2.0]


def test_life_counts_each_vm_once_and_epochs_each_time() -> None:
    run = one_vm(1000, 500)
    hosts, vms = np.zeros(1, HOST_ROW), np.zeros(1, VM_ROW)
    hosts["epoch"] = vms["epoch"] = 1
    vms["on_ns"] = 1000
    run.add(EpochReport(hosts, vms, (), 0.0))
    cost = reports.build(run, Synthetic().scenario(), History(), {})["cost"]
    assert cost["slowdown"]["mean"] == pytest.approx(2000 / 1500)
    assert cost["slowdown_epoch"]["mean"] == 1.5
    assert cost["slowdown_epoch"]["p50"] == 1.0


def test_a_run_without_epochs_or_vms_reports_null_and_no_nan() -> None:
    run = Synthetic(epochs=0)
    report = built(run, sample=64)
    json.dumps(report, allow_nan=False)
    assert report["cost"]["slowdown"]["p50"] is None
    assert report["memory_gib"]["free"]["max"] is None
    assert report["error"]["shared_saved_rel_std"] is None
    assert summary_lines(report)
    assert answer(report).endswith("None of them ran.")
    empty = Aggregator(run.hosts, [], epoch_ms=EPOCH_MS)
    assert reports.build(empty, run.scenario(), History(), {})["vms"]["submitted"] == 0
    assert len(reports.vm_table(empty, [])["vm"]) == 0


def test_fates_become_counts_and_rows(tmp_path: Path) -> None:
    run = Synthetic(n_hosts=2, vms_per_host=2, epochs=3, refused=2)
    run.fates[0] = VmFate(VmId(0), 0, 0, stop_ms=120_000, hosts=(HostId(0), HostId(1)))
    run.fates[5] = VmFate(VmId(5), 60_000)
    report = run.write(tmp_path)
    assert report["vms"] == {
        "submitted": 6,
        "placed": 4,
        "refused": 1,
        "refused_by": {"no host has the memory reserved": 1},
        "waiting": 1,
        "completed": 1,
    }
    rows = pq.read_table(tmp_path / "vms.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["placed"] * 4 + ["refused", "waiting"]
    assert rows[0]["hosts"] == "esx-000, esx-001"
    assert (rows[0]["stop_s"], rows[1]["stop_s"]) == (120.0, None)
    assert rows[4]["refused"] == "no host has the memory reserved"
    assert rows[5]["slowdown"] is None
    assert rows[5]["swapped_max_bytes"] is None
    assert rows[1]["reservation_bytes"] * 4 == rows[1]["size_bytes"]
    assert rows[1]["on_s"] == 180.0
    _, vms = everything(run)
    pages = vms["swapped_pages"][vms["vm"] == 1]
    assert rows[1]["swapped_mean_bytes"] == pytest.approx(pages.mean() * PAGE_SIZE)
    assert rows[1]["swapped_max_bytes"] == pages.max() * PAGE_SIZE
    assert rows[1]["work_left_s"] == vms["work_left_ns"][vms["vm"] == 1][-1] / 1e9


def test_vms_that_never_arrived_are_in_the_table(tmp_path: Path) -> None:
    run = Synthetic(epochs=2)
    found = reports.vm_table(run.aggregate(), run.fates[:3])
    assert found["status"][2:5] == ["placed", "not submitted", "not submitted"]


def test_sampling_error_is_that_of_the_reports_contrasts() -> None:
    run = Synthetic(epochs=2)
    assert built(run)["error"] == dict.fromkeys(KEYS["error"], 0.0) | {"sample": 1}
    seen = run.aggregate(sample=64)
    for report in run.reports():
        seen.add(replace(report, contrasts=np.arange(99).reshape(3, 33)))
    stated = reports.build(seen, run.scenario(), History(), {})["error"]
    expected = relative_errors(2 * np.arange(99).reshape(3, 33), 64)
    assert stated == {"sample": 64} | {f"{name}_rel_std": one for name, one in expected.items()}


def test_digest_depends_on_report_and_states_but_not_on_their_order_or_its_own_value() -> None:
    report = built(Synthetic())
    states = {HostId(0): "aa", HostId(10): "bb", HostId(2): "cc"}
    first = reports.digest(report, states)
    assert len(first) == 64
    assert first == reports.digest({**report, "digest": "x"}, dict(reversed(states.items())))
    assert first == reports.digest(json.loads(json.dumps(report)), states)
    assert first != reports.digest(report, {**states, HostId(2): "cd"})
    assert first != reports.digest({**report, "simulated_s": 1.0}, states)
    # An absent host is not an empty one, and digests do not run into each other.
    assert first != reports.digest(report, {HostId(0): "aa", HostId(10): "bb"})


def test_nearest_rank_is_a_value_that_occurred_and_agrees_with_numpy() -> None:
    draw = np.random.default_rng(3)
    for n in (1, 2, 19, 20, 21, 99, 100, 101):
        values = np.sort(draw.integers(0, 1000, n))
        for p in (50, 95, 99, 100):
            expected = np.percentile(values, p, method="inverted_cdf")
            assert reports.nearest_rank(values, p) == expected


def test_the_aftermath_of_a_failure_is_read_off_the_epochs() -> None:
    """A failure at minute 4: sharing falls from 3 to 1 GiB; two of four hosts are outside HIGH in
    minutes 4 to 6, and one was in minute 3. From minute 7 on it is as calm as before."""
    run = Aggregator([], [], epoch_ms=60_000)
    pressed = [0, 0, 0, 1, 2, 2, 2, 1, 0, 0, 0, 0]
    saved_gib = [3, 3, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2]
    for name in run.epochs:
        run.epochs[name].extend([0] * 12)
    for epoch in range(12):
        run.epochs["hosts"][epoch] = 4
        run.epochs["high_ms"][epoch] = 60_000 * (4 - pressed[epoch])
        run.epochs["shared_saved_pages"][epoch] = saved_gib[epoch] * GIB // PAGE_SIZE
    history = History(failures=[240_000], restarts=[(240_000, 300_000)] * 3)
    found = reports._failures(run, history)
    assert found["sharing_broken_gib"] == 2
    assert found["storm_host_s"] == (2 + 2 + 2 + 1 - 1) * 60
    assert found["steady_s"] == 180
    assert found["downtime_s"] == 180 and found["vms_restarted"] == 3
    never = reports._failures(run, History(failures=[240_000, 660_000]))
    assert never["steady_s"] is None, "the second one has no three epochs left"
