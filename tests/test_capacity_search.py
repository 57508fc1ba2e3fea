"""The search for a knee, apart from any run: on loads that hold by a rule that the test knows."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario_files import SMALL, changed, make_trace, save, trace_of, write

from cluster.population import populate
from cluster.scenario_file import load
from cluster.studies import scales
from cluster.studies.binding import Bound, bounds
from cluster.studies.figures import numbers, paths
from cluster.studies.places import put
from cluster.studies.scales import Scale, apportioned, scale_of
from cluster.studies.search import Knee, Loads, gap_of, knee_of, next_loads, probes, violations
from cluster.studies.slo import parse
from cluster.studies.verdict import Facts, answer, sentence
from cluster.yaml_input import InputError


def searched(
    holds: Callable[[int], bool], loads: Loads, width: int = 1, tried: dict[int, bool] | None = None
) -> tuple[dict[int, bool], int]:
    """Every trial, and in how many rounds."""
    found: dict[int, bool] = {} if tried is None else dict(tried)
    rounds = 0
    while wanted := next_loads(found, loads, width):
        assert len(wanted) <= max(width, 1)
        assert not set(wanted) & set(found), "tried twice"
        assert all(loads.low <= load <= loads.high for load in wanted)
        found |= {load: holds(load) for load in wanted}
        rounds += 1
        assert rounds < 200
    return found, rounds


# The search


@pytest.mark.parametrize("knee", [1, 2, 7, 399, 400, 416, 417, 1000, 99_999])
def test_a_knee_is_found_in_few_trials(knee: int) -> None:
    loads = Loads.around(416, 1, 1_000_000)
    tried, _ = searched(lambda load: load <= knee, loads)
    found = knee_of(tried)
    assert found.holds is not None and found.fails is not None
    assert found.holds <= knee < found.fails and found.fails - found.holds <= gap_of(found.holds)
    assert len(tried) <= 18
    again, _ = searched(lambda load: load <= knee, loads.from_knee(found))
    assert len(again) == 2


@given(st.integers(1, 10_000), st.integers(0, 11_000), st.integers(1, 8))
def test_any_knee_is_found(start: int, knee: int, width: int) -> None:
    loads = Loads.around(start, 1, 10_000)
    tried, rounds = searched(lambda load: load <= knee, loads, width)
    found = knee_of(tried)
    if knee >= 10_000:
        assert found == Knee(10_000, None)
    elif knee < 1:
        assert found == Knee(None, 1)
    else:
        assert found.holds is not None and found.fails is not None
        assert found.holds <= knee < found.fails
        assert found.fails - found.holds <= gap_of(found.holds)
    assert rounds <= 2 * 14 + 1
    assert violations(tried) == []


@given(st.integers(1, 300), st.integers(0, 301), st.integers(1, 4))
def test_fewer_hosts_are_harder(start: int, needed: int, width: int) -> None:
    """Loads below zero: so many hosts are needed."""
    loads = Loads.around(-start, -300, -1)
    found = knee_of(searched(lambda load: -load >= needed, loads, width)[0])
    if needed <= 1:
        assert found == Knee(-1, None)
    elif needed > 300:
        assert found == Knee(None, -300)
    else:
        assert found.holds is not None and found.fails is not None
        assert -found.fails < needed <= -found.holds
        assert -found.holds - -found.fails <= gap_of(found.holds)


@given(st.integers(2, 5000), st.integers(1, 5000))
def test_several_at_a_time_take_fewer_rounds(start: int, knee: int) -> None:
    loads = Loads.around(start, 1, 5000)
    one, four = (searched(lambda load: load <= knee, loads, width)[1] for width in (1, 4))
    assert four <= one


@given(st.dictionaries(st.integers(1, 40), st.booleans(), max_size=30))
def test_what_is_known_is_below_the_lowest_failure(tried: dict[int, bool]) -> None:
    knee = knee_of(tried)
    failures = [load for load, held in tried.items() if not held]
    assert knee.fails == (min(failures) if failures else None)
    below = [n for n, held in tried.items() if held and n < min(failures, default=99)]
    assert knee.holds == max(below, default=None)
    assert violations(tried) == sorted(
        n for n, held in tried.items() if held and any(f < n for f in failures)
    )


@given(st.integers(1, 500), st.sets(st.integers(1, 500), max_size=60))
def test_where_more_is_not_always_harder_the_answer_is_below_a_failure(
    start: int, failing: set[int]
) -> None:
    """Any rule at all: the search ends, and what it gives was tried."""
    loads = Loads.around(start, 1, 500)
    tried, _ = searched(lambda load: load not in failing, loads, 3)
    knee = knee_of(tried)
    assert knee.holds is None or tried[knee.holds]
    assert all(tried[load] for load in tried if knee.fails is None or load < knee.fails)


def test_a_probe_finds_a_dip_and_the_search_goes_below_it() -> None:
    def holds(load: int) -> bool:
        return load <= 100 and not 60 <= load <= 80

    loads = Loads.around(96, 1, 1000)
    tried, _ = searched(holds, loads)
    assert knee_of(tried).holds in (99, 100) and violations(tried) == []
    asked = probes(tried, loads)
    assert 75 in asked
    tried |= {load: holds(load) for load in asked}
    assert violations(tried) != [] and knee_of(tried).fails == 75
    tried, _ = searched(holds, loads, tried=tried)
    knee = knee_of(tried)
    assert knee.holds in (58, 59) and 96 in violations(tried)


def test_probes_are_asked_once_and_stay_within() -> None:
    loads = Loads.around(10, 8, 12)
    tried, _ = searched(lambda load: load <= 10, loads)
    assert sorted(tried) == [8, 10, 11, 12] or sorted(tried) == [10, 11, 12]
    assert probes(tried | {8: True}, loads) == []
    assert probes({8: True, 12: False}, loads) == []
    assert probes({}, loads) == []
    assert probes({12: True}, loads) == [9]


# The answer


def test_the_answer_holds_for_every_seed() -> None:
    said = answer({5: {10: True, 11: False}, 6: {12: True, 13: False}, 7: {9: True, 10: False}})
    assert (said.holds, said.least, said.most) == (9, 9, 12)
    assert said.first == (7, 10) and not said.open_end and said.violations == ()


def test_a_seed_that_never_holds_leaves_no_answer() -> None:
    said = answer({1: {1: False}, 2: {3: True, 4: False}})
    assert (said.holds, said.least, said.most, said.first) == (None, 3, 3, (1, 1))


def test_where_nothing_fails_the_end_is_the_answer() -> None:
    said = answer({1: {20: True}, 2: {20: True}})
    assert (said.holds, said.first, said.at_end) == (20, None, True)
    said = answer({1: {20: True}, 2: {19: True, 20: False}})
    assert (said.holds, said.least, said.most, said.at_end) == (19, 19, 20, False)
    assert said.open_end


def test_ties_go_to_the_lower_seed_and_violations_are_told() -> None:
    said = answer({3: {5: True, 6: False, 9: True}, 2: {5: True, 6: False}})
    assert said.first == (2, 6) and said.violations == ((3, 9),)


FACTS: dict[str, Any] = {
    "kind": "vms",
    "level": 352,
    "least": 352,
    "most": 371,
    "seeds": 5,
    "hosts": 16,
    "vms": 352.0,
    "each": 22.0,
    "overcommit": 2.4,
    "slos": ["slowdown.p95 <= 1.05"],
    "oversized": 0,
    "open_end": False,
    "at_end": False,
    "why_end": "only 416 VMs of the trace run in the simulated time",
    "lowest": 2,
}
BOUND = {
    "binds": {"what": "memory", "evidence": "61.0 % of the time lost, most of it guest paging"},
    "next": {"what": "CPU", "evidence": "39.0 % of the time lost, most of it CPU contention"},
}
NOTHING = {"binds": None, "next": None}


EACH = "22.0 VMs a host on average, overcommit 2.40 at the peak"
LOST = "61.0 % of the time lost, most of it guest paging"


@pytest.mark.parametrize(
    ("change", "bound", "text"),
    [
        (
            {},
            BOUND,
            f"352 VMs fit on 16 hosts ({EACH}) with slowdown.p95 <= 1.05 and no VM refused, for "
            f"each of 5 seeds (352 to 371 by seed); beyond, memory binds ({LOST}), then CPU "
            "(39.0 % of the time lost, most of it CPU contention).",
        ),
        (
            {"kind": "hosts", "level": 1, "hosts": 1, "most": 352, "oversized": 2},
            BOUND | {"next": None},
            f"1 host is needed for 352 VMs ({EACH}) with slowdown.p95 <= 1.05 and no VM refused "
            "but 2 larger than any host, for each of 5 seeds alike; with fewer, memory binds "
            f"({LOST}).",
        ),
        (
            {"kind": "hosts", "level": 9, "least": 8, "most": 9, "open_end": True},
            NOTHING,
            f"9 hosts are needed for 352 VMs ({EACH}) with slowdown.p95 <= 1.05 and no VM refused, "
            "for each of 5 seeds (at most 8 to 9 by seed).",
        ),
        (
            {"kind": "overcommit", "level": 260, "least": 260, "most": 275, "open_end": True},
            NOTHING,
            f"Overcommit is safe up to 2.60 on 16 hosts ({EACH}) with slowdown.p95 <= 1.05, for "
            "each of 5 seeds (2.60 to at least 2.75 by seed).",
        ),
        (
            {"at_end": True, "seeds": 1, "level": 1, "slos": ["a > 1", "b > 1"]},
            NOTHING,
            f"At least 1 VM fit on 16 hosts ({EACH}) with a > 1 and b > 1 and no VM refused, for "
            "the one seed tried; it may be more, but only 416 VMs of the trace run in the "
            "simulated time.",
        ),
        (
            {"level": None, "least": None, "most": None},
            BOUND | {"next": None},
            f"Not even 2 VMs will do with slowdown.p95 <= 1.05; beyond, memory binds ({LOST}).",
        ),
    ],
)
def test_the_sentence(change: dict[str, Any], bound: dict[str, Any], text: str) -> None:
    assert sentence(Facts(**(FACTS | change)), bound) == text


# Goals


@pytest.mark.parametrize(
    ("text", "path", "value", "holds"),
    [
        ("slowdown.p95 <= 1.05", "cost.slowdown.p95", 1.05, True),
        ("slowdown.p95 < 1.05", "cost.slowdown.p95", 1.05, False),
        ("cost.slowdown.p95<=1.05", "cost.slowdown.p95", 1.0501, False),
        (" reclaim_states.high  >=  .95 ", "reclaim_states.high", 0.95, True),
        ("reclaim_states.high > 0.95", "reclaim_states.high", 0.95, False),
        ("memory_gib.swapped.max <= 1e1", "memory_gib.swapped.max", 10.1, False),
        ("vms.refused <= 0", "vms.refused", 0, True),
        ("migrations.mean_s <= 1", "migrations.mean_s", None, True),
        ("vms.refused_by.no host has the swap space <= 0", "", None, True),
        ("vms.refused_by.no host has the swap space >= 1", "", None, False),
    ],
)
def test_a_goal_is_held_against_a_number(
    text: str, path: str, value: float | None, holds: bool
) -> None:
    (slo,) = parse([text])
    assert path in ("", slo.path)
    assert slo.holds({} if value is None else {slo.path: value}) is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be PATH <= NUMBER"),
        ("slowdown.p95", "must be PATH <= NUMBER"),
        ("<= 3", "must be PATH <= NUMBER"),
        ("slowdown.p95 = 3", "must be PATH <= NUMBER"),
        ("slowdown.p95 <= x", "'x' is not a number"),
        ("slowdown.p95 <= nan", "'nan' is not a number"),
        ("slowdown.p95 <= inf", "'inf' is not a number"),
        ("slowdown.p96 <= 1", "no number of a report: did you mean 'slowdown.p9"),
        ("assumptions.x <= 1", "no number of a report"),
        ("digest <= 1", "no number of a report"),
        ("scenario.seed <= 1", "no number of a report"),
    ],
)
def test_a_goal_that_is_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match="--slo") as caught:
        parse(["vms.refused <= 0", text])
    (problem,) = caught.value.problems
    assert message in problem.message


@given(st.text(st.sampled_from("slowdn.p95<=> 1e-nax"), max_size=25))
def test_any_text_is_a_goal_or_none(text: str) -> None:
    try:
        (slo,) = parse([text])
    except InputError as error:
        assert error.problems[0].message
    else:
        assert slo.path in paths()


def test_every_path_is_one_of_a_report() -> None:
    known = paths()
    for path in ("cost.slowdown.p95", "memory_gib.swapped.max", "vms.refused", "energy.kwh"):
        assert path in known
    assert not [path for path in known if path.startswith(("scenario", "assumptions", "schema"))]
    assert numbers({"schema": 2, "a": {"b": 1, "c": None, "d": "x", "e": True}}) == {"a.b": 1}


# What varies


def scale(folder: Path, kind: scales.Kind, **values: Any) -> Scale:
    loaded = load(write(folder, changed(**values)))
    return scale_of(kind, loaded, populate(loaded), "f")


GROUPS = [
    SMALL["vms"][0] | {"name": "a", "count": 6},
    SMALL["vms"][0] | {"name": "b", "count": 3, "memory": "2 GiB"},
    SMALL["vms"][0] | {"name": "c", "count": 1},
]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 300))
def test_counts_keep_their_proportion_and_never_fall(weights: list[int], more: int) -> None:
    total = len(weights) + more
    counts = apportioned(total, weights)
    assert sum(counts) == total and min(counts) >= 1
    assert apportioned(sum(weights) * 3, weights) == [3 * weight for weight in weights]
    after = apportioned(total + 1, weights)
    assert all(a <= b for a, b in zip(counts, after, strict=True))


def test_vms_are_scaled_in_proportion(tmp_path: Path) -> None:
    found = scale(tmp_path, "vms", vms=GROUPS)
    assert (found.low, found.start, found.fixed) == (3, 10, 0)
    assert found.changes(20) == (
        (("vms", 0, "count"), 12),
        (("vms", 1, "count"), 6),
        (("vms", 2, "count"), 2),
    )
    assert found.changes(3) == tuple((("vms", at, "count"), 1) for at in range(3))
    assert found.loads() == Loads(3, found.high, 10, 2)


def test_groups_that_events_name_stay(tmp_path: Path) -> None:
    events = [{"at": "1 min", "target": "b-3", "action": "power_off"}]
    found = scale(tmp_path, "vms", vms=GROUPS, events=events)
    assert (found.low, found.start, found.fixed) == (5, 10, 3)
    assert found.changes(10) == ((("vms", 0, "count"), 6), (("vms", 2, "count"), 1))
    moved = [
        {"at": "1 min", "target": "a-1", "action": "set", "values": {"shares": "high"}},
        {"at": "1 min", "target": "c", "action": "reset"},
    ]
    found = scale(tmp_path, "vms", vms=GROUPS, events=moved)
    assert found.places == (("vms", 1, "count"),) and found.fixed == 7
    only = [{"at": "1 min", "target": "web-1", "action": "power_off"}]
    with pytest.raises(InputError, match="members of all groups of vms are named"):
        scale(tmp_path, "vms", events=only)


def test_hosts_are_scaled_the_other_way(tmp_path: Path) -> None:
    hosts = [{"name": "s", "count": 4, "memory": "8 GiB"}, {"name": "l", "memory": "16 GiB"}]
    found = scale(tmp_path, "hosts", hosts=hosts)
    assert found.changes(10) == ((("hosts", 0, "count"), 8), (("hosts", 1, "count"), 2))
    assert found.loads() == Loads(-found.high, -2, -5, 1)
    assert found.level(-7) == 7 and found.words(7) == "7 hosts"


def test_overcommit_offers_as_many_vms_as_its_limit_takes(tmp_path: Path) -> None:
    """10 VMs of 13 GiB on two hosts of 8 GiB."""
    found = scale(tmp_path, "overcommit", vms=GROUPS)
    assert found.start == 81  # 13 / 16
    assert found.per_level == Fraction(16 * 10, 13 * 100)
    changes = dict(found.changes(162))
    assert changes.pop(("placement", "overcommit")) == 1.62
    assert sum(changes.values()) == 20  # 1.62 x 16 GiB in VMs of 1.3 GiB on average
    assert found.words(162) == "overcommit 1.62"


def test_a_trace_is_scaled_with_the_groups_as_far_as_it_goes(tmp_path: Path) -> None:
    save(tmp_path, make_trace())
    source = trace_of(vms=2, workloads={"steady": 1})
    found = scale(tmp_path, "vms", trace=source, hosts=[{"name": "esx", "memory": "64 GiB"}])
    assert found.places == (("vms", 0, "count"), ("trace", "vms"))
    assert (found.start, found.high, found.in_trace) == (5, 7, 3)
    assert found.why_high == "only 3 VMs of the trace run in the simulated time"
    for level in range(found.low, found.high + 1):
        data = changed(trace=source, hosts=[{"name": "esx", "memory": "64 GiB"}])
        for place, value in found.changes(level):
            put(data, place, value)
        vms = populate(load(write(tmp_path, data))).vms
        assert len(vms) in (level, level - 1)


# What binds


NO_SWAP = "vms.refused_by.no host has the swap space"


def lost(**causes: float) -> dict[str, float]:
    return {f"cost.slowdown_by_cause.{cause}": part for cause, part in causes.items()}


@pytest.mark.parametrize(
    ("found", "busy", "names"),
    [
        (lost(cpu=0.3, guest_paging=0.1), 0.0, ["CPU", "memory"]),
        (lost(cpu=0.3, guest_paging=0.2, swap_in=0.2), 0.0, ["memory", "CPU"]),
        (lost(cpu=0.3, guest_paging=0.2, swap_in=0.4), 0.9, ["swap I/O", "CPU", "memory"]),
        (lost(blocked=0.1), 0.0, ["memory"]),
        (lost(), 0.0, []),
        (lost(cpu=0.1) | {NO_SWAP: 2}, 0.0, ["swap space", "CPU"]),
        (
            {
                "vms.refused_by.no host has the memory reserved": 1,
                "vms.refused_by.no host is within the memory overcommit limit": 3,
                "vms.refused_by.unheard of": 0,
            },
            0.0,
            ["the limit placement.overcommit", "memory reservations"],
        ),
    ],
)
def test_what_binds(found: dict[str, float], busy: float, names: list[str]) -> None:
    assert [one.what for one in bounds(found, busy)] == names


def test_what_binds_comes_with_its_numbers() -> None:
    found = bounds(
        lost(cpu=0.1, guest_paging=0.2, cow=0.1) | {"vms.refused_by.no host has the swap space": 1},
        0,
    )
    assert found == [
        Bound("swap space", "1 VM refused: no host has the swap space"),
        Bound("memory", "75.0 % of the time lost, most of it guest paging"),
        Bound("CPU", "25.0 % of the time lost, most of it CPU contention"),
    ]
