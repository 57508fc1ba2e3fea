"""What a sweep's file means: paths, ranges, axes, and the points that come of them, in order."""

from __future__ import annotations

import contextlib
import copy
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario_files import SMALL, STEADY, changed, make_trace, save, trace_of, write

from cluster.scenario_file import ScenarioError
from cluster.studies.axes import Axis, count, points
from cluster.studies.places import NoPlaceError, clash, get, put, resolve
from cluster.studies.spec import RUNS_MAX, Sweep, schema
from cluster.studies.sweep_file import SweepPlan, has_sweep, load_sweep, words
from cluster.yaml_input import InputError, Problem, path_text

DATA = changed(
    vms=[SMALL["vms"][0], SMALL["vms"][0] | {"name": "web.v2", "count": 5}],
    trace={"path": "trace", "images": {"linux": 1, "a.b": 2}},
)


def plan(folder: Path, sweep: dict[str, Any], **values: Any) -> SweepPlan:
    return load_sweep(write(folder, changed(sweep=sweep, **values)), data_root=None)


def problems(folder: Path, sweep: Any, **values: Any) -> list[tuple[str, str]]:
    """(path, message) of each problem."""
    with pytest.raises(ScenarioError) as caught:
        plan(folder, sweep, **values)
    return [(problem.path, problem.message) for problem in caught.value.problems]


# Paths


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("duration", ("duration",)),
        ("hosts.esx.count", ("hosts", 0, "count")),
        ("hosts.0.count", ("hosts", 0, "count")),
        ("hosts.esx.allocation.idle_tax", ("hosts", 0, "allocation", "idle_tax")),
        ("vms.web.memory", ("vms", 0, "memory")),
        ("vms.web.v2.memory", ("vms", 1, "memory")),
        ("vms.web", ("vms", 0)),
        ("vms", ("vms",)),
        ("workloads.steady.phases.0.active", ("workloads", 0, "phases", 0, "active")),
        ("images.linux.content.anon.zero", ("images", 0, "content", "anon", "zero")),
        ("placement.policy", ("placement", "policy")),
        ("trace.images.a.b", ("trace", "images", "a.b")),
        ("trace.images.new", ("trace", "images", "new")),
    ],
)
def test_a_path_leads_to_a_place(path: str, place: tuple[str | int, ...]) -> None:
    assert resolve(path, DATA) == place


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("host.esx", "a scenario has no key 'host': did you mean 'hosts'? known: name, question"),
        ("hosts.esxi.count", "hosts has no element 'esxi': did you mean 'esx'? known: esx"),
        ("hosts.1.count", "hosts has no element '1': known: esx"),
        ("hosts.²", "hosts has no element '²': known: esx"),
        ("hosts.esx.cpu", "hosts[0] has no key 'cpu': did you mean 'cpus'?"),
        ("hosts.esx.allocation.tax", "hosts[0].allocation has no key 'tax'"),
        ("hosts.esx.count.x", "hosts[0].count is one value: nothing is inside it"),
        ("workloads.steady.phases.7.cpu", "phases has no element '7': it has 1 elements, from 0"),
        ("events.0.at", "events has no element '0': it has 0 elements"),
        ("", "a scenario has no key ''"),
        ("sweep.seeds", "a scenario has no key 'sweep'"),
        ("hosts..count", "hosts has no element ''"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_there_is(path: str, message: str) -> None:
    with pytest.raises(NoPlaceError) as caught:
        resolve(path, DATA)
    assert message in str(caught.value)


def test_a_value_by_name_has_nothing_inside() -> None:
    data = changed(hosts=[{"name": "esx", "swap": "ssd"}])
    with pytest.raises(NoPlaceError, match=r"hosts\[0\].swap is 'ssd' here: it has no iops"):
        resolve("hosts.esx.swap.iops", data)


def test_what_is_put_is_there() -> None:
    data = copy.deepcopy(DATA)
    for path, value in (("placement.policy", "best-fit"), ("hosts.esx.io.low_memory", "1 GiB")):
        place = resolve(path, data)
        assert get(data, place) is None
        put(data, place, value)
        assert get(data, place) == value
    put(data, ("hosts", 0, "cpus"), None)
    assert data["hosts"][0]["cpus"] is None  # null is a value, not an absence


STEPS = st.lists(st.sampled_from(["a", "b", 0, 1]), min_size=1, max_size=3).map(tuple)


@given(st.lists(STEPS, max_size=5))
def test_places_clash_where_writing_both_depends_on_the_order(places: list[Any]) -> None:
    inside = [
        (i, j)
        for j, second in enumerate(places)
        for i, first in enumerate(places[:j])
        if second[: len(first)] == first or first[: len(second)] == second
    ]
    assert clash(places) == (inside[0] if inside else None)


@given(st.text(st.sampled_from("hostsvmwebxcun0129.² "), max_size=30))
def test_any_text_is_a_path_or_none(path: str) -> None:
    with contextlib.suppress(NoPlaceError):
        place = resolve(path, DATA)
        assert place and all(isinstance(step, str | int) for step in place)


# Ranges


@pytest.mark.parametrize(
    ("path", "ends", "labels"),
    [
        ("hosts.esx.count", (1, 7, 2), ("1", "3", "5", "7")),
        ("hosts.esx.count", (1, 2, 5), ("1",)),
        ("placement.overcommit", (1, 2, 0.25), ("1.0", "1.25", "1.5", "1.75", "2.0")),
        ("placement.overcommit", (0.1, 0.4, 0.1), ("0.1", "0.2", "0.3", "0.4")),
        ("hosts.esx.allocation.idle_tax", ("0 %", "30 %", "12.5 %"), ("0 %", "12.5 %", "25 %")),
        ("vms.web.memory", ("512 MiB", "1 GiB", "256 MiB"), ("512 MiB", "768 MiB", "1 GiB")),
        ("vms.web.interval", ("0 s", "2 min", "60 s"), ("0 s", "1 min", "2 min")),
        ("workloads.steady.phases.0.active", ("5 %", "10 %", "5 %"), ("5 %", "10 %")),
    ],
)
def test_a_range_counts_in_the_units_of_its_path(
    tmp_path: Path, path: str, ends: tuple[Any, ...], labels: tuple[str, ...]
) -> None:
    given = dict(zip(("from", "to", "step"), ends, strict=True))
    found = plan(tmp_path, {"vary": {path: given}})
    assert found.axes[0].labels == labels
    numbers = found.axes[0].numbers
    assert numbers is not None and sorted(numbers) == list(numbers)


@pytest.mark.parametrize(
    ("path", "ends", "at", "message"),
    [
        ("hosts.esx.count", (1, 7, 0), "", "needs a step above 0"),
        ("hosts.esx.count", (7, 1, 1), "", "to at or above from"),
        ("hosts.esx.count", ("1", 7, 1), ".from", "must be a number"),
        ("hosts.esx.count", (1, True, 1), ".to", "must be a number"),
        ("placement.overcommit", (1, 2.0, float("inf")), ".step", "must be a number"),
        ("hosts.esx.count", (1, 10_000_000_000, 1), "", "must have 1 to 1000 values"),
        ("vms.web.memory", ("1 GiB", 2, "1 GiB"), ".to", "a memory size with a unit"),
        ("vms.web.memory", ("1 GiB", "2 GiB", "10 %"), ".step", "a memory size with a unit"),
        (
            "workloads.steady.phases.0.active",
            ("5 %", "1 GiB", "5 %"),
            "",
            "from, to and step must be of one kind",
        ),
    ],
)
def test_a_range_that_is_none(
    tmp_path: Path, path: str, ends: tuple[Any, ...], at: str, message: str
) -> None:
    given = dict(zip(("from", "to", "step"), ends, strict=True))
    found = problems(tmp_path, {"vary": {path: given}})
    assert len(found) == 1
    assert found[0][0] == path_text(("sweep", "vary", path)) + at
    assert message in found[0][1]


# Points


def test_axes_come_in_the_order_of_the_file_and_the_last_changes_fastest(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        {
            "seeds": 2,
            "variants": {"who": {"as is": {}, "large": {"vms.web.memory": "2 GiB"}}},
            "vary": {"vms.web.count": [3, 1], "placement.policy": ["best-fit", "first-fit"]},
        },
        seed=5,
    )
    assert [axis.name for axis in found.axes] == ["vms.web.count", "placement.policy", "who"]
    assert [point.labels for point in found.points] == list(
        itertools.product(("3", "1"), ("best-fit", "first-fit"), ("as is", "large"))
    )
    assert found.seeds == (5, 6)
    assert words(found.axes, found.points[1]) == (
        "vms.web.count 3, placement.policy best-fit, who large"
    )
    assert found.points[1].changes == (
        (("vms", 0, "count"), 3),
        (("placement", "policy"), "best-fit"),
        (("vms", 0, "memory"), "2 GiB"),
    )
    assert len({digest for digests in found.digests for digest in digests}) == 16


def test_zip_takes_the_first_of_all_then_the_second(tmp_path: Path) -> None:
    vary = {"vms.web.count": [1, 2, 3], "vms.web.memory": ["1 GiB", "512 MiB", "256 MiB"]}
    found = plan(tmp_path, {"mode": "zip", "vary": vary})
    assert [point.labels for point in found.points] == [
        ("1", "1 GiB"),
        ("2", "512 MiB"),
        ("3", "256 MiB"),
    ]


def test_a_value_may_be_a_list_or_null(tmp_path: Path) -> None:
    short, long = [{"duration": "10 min"}], [{"duration": "1 h"}, {"duration": "1 h"}]
    vary = {"workloads.steady.phases": [short, long], "placement.overcommit": [1.5, None]}
    found = plan(tmp_path, {"vary": vary})
    assert found.axes[0].labels == (
        '[{"duration": "10 min"}]',
        '[{"duration": "1 h"}, {"duration": "1 h…',
    )
    loaded = [found.base.load(point.changes, 1).scenario for point in found.points]
    assert [len(one.workloads[0].phases) for one in loaded] == [1, 1, 2, 2]
    assert [one.placement.overcommit for one in loaded] == [1.5, None, 1.5, None]
    assert found.axes[1].numbers is None


def test_values_that_look_alike_have_labels_that_do_not() -> None:
    sweep = Sweep.model_validate({"vary": {"name": ["x" * 90, "x" * 91, "1", 1]}})
    from cluster.studies.axes import read_axes
    from cluster.yaml_input import Document

    data = {"name": "a", "sweep": {"vary": {"name": ["x" * 90, "x" * 91, "1", 1]}}}
    (axis,), wrong = read_axes(sweep, Document("f", "", data))
    assert not wrong
    assert axis.labels == ("x" * 39 + "…", "x" * 39 + "… (2)", "1", "1 (4)")


def axes_of(*lengths: int) -> list[Axis]:
    return [
        Axis(
            f"a{i}",
            tuple(map(str, range(length))),
            tuple(((("x", i), at),) for at in range(length)),
            None,
        )
        for i, length in enumerate(lengths)
    ]


LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(LENGTHS)
def test_a_product_is_the_product(lengths: list[int]) -> None:
    axes = axes_of(*lengths)
    sweep = Sweep.model_construct(mode="product", points=None)
    found = points(axes, sweep, 1)
    assert [point.labels for point in found] == list(
        itertools.product(*(axis.labels for axis in axes))
    )
    assert count(axes, sweep) == len(found)


@given(LENGTHS, st.integers(0, 1 << 62), st.data())
def test_a_sample_is_a_part_of_the_product_in_its_order(
    lengths: list[int], seed: int, data: st.DataObject
) -> None:
    axes = axes_of(*lengths)
    whole = points(axes, Sweep.model_construct(mode="product", points=None), seed)
    n = data.draw(st.integers(1, len(whole)))
    sweep = Sweep.model_construct(mode="sample", points=n)
    found = points(axes, sweep, seed)
    at = [whole.index(point) for point in found]
    assert len(at) == n and at == sorted(set(at))
    assert found == points(axes, sweep, seed)


def test_a_sample_takes_any_point_and_follows_the_seed() -> None:
    axes = axes_of(4, 5)
    sweep = Sweep.model_construct(mode="sample", points=5)
    times = [0] * 20
    for seed in range(400):
        for point in points(axes, sweep, seed):
            times[int(point.labels[0]) * 5 + int(point.labels[1])] += 1
    # 400 draws of 5 in 20: 100 each, standard deviation 8.7
    assert min(times) > 65 and max(times) < 135


def test_a_sample_of_more_than_memory_holds() -> None:
    axes = axes_of(*[1000] * 12)
    sweep = Sweep.model_construct(mode="sample", points=3)
    assert len(points(axes, sweep, 1)) == 3


# What is wrong


@pytest.mark.parametrize(
    ("sweep", "path", "message"),
    [
        (None, "sweep", "must be a mapping with some of: seeds, mode, points, vary, variants"),
        ([], "sweep", "must be a mapping"),
        ({}, "sweep", "needs vary or variants"),
        ({"vary": {}}, "sweep", "needs vary or variants"),
        ({"vary": []}, "sweep.vary", "must be a mapping"),
        ({"vary": {"seed": [1]}, "seeds": 0}, "sweep.seeds", "must be at least 1"),
        ({"vary": {"seed": [1]}, "sedes": 0}, "sweep.sedes", "unknown key: did you mean 'seeds'?"),
        ({"vary": {"seed": [1]}, "mode": "grid"}, "sweep.mode", "must be 'product', 'zip' or"),
        ({"vary": {"seed": [1]}, "mode": "sample"}, "sweep", "points must be given with mode"),
        ({"vary": {"seed": [1]}, "points": 3}, "sweep", "points must be given with mode sample"),
        ({"vary": {"seed": [1]}}, "sweep.vary.seed", "seed does not vary as other values do"),
        ({"vary": {"tick": 5}}, "sweep.vary.tick", "must be a list"),
        ({"vary": {"tick": {"from": "1 s"}}}, "sweep.vary.tick", "must be a list of values, or a"),
        ({"vary": {"tick": None}}, "sweep.vary.tick", "must be a list of values, or a range"),
        ({"vary": {"tick": []}}, "sweep.vary.tick", "must have 1 to 1000 values, not 0"),
        ({"vary": {"tock": [1]}}, "sweep.vary.tock", "a scenario has no key 'tock'"),
        ({"variants": {"a": {}}}, "sweep.variants.a", "must have at least one variant"),
        ({"variants": {"a": {"b": {"tock": 1}}}}, "sweep.variants.a.b.tock", "no key 'tock'"),
        (
            {"variants": {"a": {"b": {"vms.web.count": 1, "vms.0.count": 2}}}},
            "sweep.variants.a.b.vms.0.count",
            "vms.0.count is vms.web.count, or inside the other",
        ),
        (
            {"vary": {"hosts.esx.count": [1], "hosts": [[]]}},
            "sweep",
            "axis 'hosts' varies hosts, and axis 'hosts.esx.count' hosts[0].count: one value",
        ),
        (
            {"mode": "zip", "vary": {"tick": ["1 s"], "hosts.esx.count": [1, 2]}},
            "sweep.mode",
            "zip needs axes with equally many values, not tick 1, hosts.esx.count 2",
        ),
        (
            {"mode": "sample", "points": 3, "vary": {"hosts.esx.count": [1, 2]}},
            "sweep.points",
            "must be at most the 2 combinations that there are",
        ),
        (
            {"seeds": 11, "vary": {"hosts.esx.count": {"from": 1, "to": 1000, "step": 1}}},
            "sweep",
            f"1000 points with 11 seeds are more than {RUNS_MAX} runs",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep(tmp_path: Path, sweep: Any, path: str, message: str) -> None:
    found = problems(tmp_path, sweep)
    assert len(found) == 1, found
    assert found[0][0] == path, found
    assert message in found[0][1]


def test_a_problem_of_every_point_is_the_scenarios(tmp_path: Path) -> None:
    found = problems(tmp_path, {"vary": {"hosts.esx.count": [1, 2]}}, duration="90 s")
    assert found == [("duration", "must be a multiple of epoch (1 min)")]


def test_each_problem_of_points_is_told_once_with_where_it_is(tmp_path: Path) -> None:
    vary = {"vms.web.count": [1, -1], "vms.web.memory": ["1 GiB", "9 GiB", "64 MiB"]}
    assert problems(tmp_path, {"vary": vary}) == [
        (
            "vms[0].memory",
            "is larger than any host: the largest has 8 GiB "
            "(at vms.web.count 1, vms.web.memory 9 GiB)",
        ),
        (
            "vms[0].memory",
            "is less than the boot footprint of linux, 128 MiB "
            "(at vms.web.count 1, vms.web.memory 64 MiB)",
        ),
        (
            "vms[0].count",
            "must be at least 1 (at 3 of 6 points, first at vms.web.count -1, "
            "vms.web.memory 1 GiB)",
        ),
    ]


def test_a_point_that_cannot_be_run_is_refused_like_one_that_is_wrong(tmp_path: Path) -> None:
    def fits(loaded: Any) -> None:
        if loaded.scenario.hosts[0].count > 1:
            raise InputError("f", [Problem("fidelity.sample", None, "1", "too large")])

    path = write(tmp_path, changed(sweep={"vary": {"hosts.esx.count": [1, 2]}}))
    with pytest.raises(ScenarioError, match=r"too large \(at hosts.esx.count 2\)"):
        load_sweep(path, data_root=None, fits=fits)


VALUES = st.recursive(
    st.sampled_from([None, True, 0, 1, 3, -1, 2.5, float("inf"), "1 GiB", "5 %", "x", ""]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "to", "step", "hosts.esx.count", "a"]), inside)
    ),
    max_leaves=6,
)
PATHS = st.sampled_from(
    ["hosts.esx.count", "hosts.esx", "vms.web.memory", "placement.overcommit", "seed", "x", "vms"]
)
SWEEPS = VALUES | st.fixed_dictionaries(
    {},
    optional={
        "vary": VALUES | st.dictionaries(PATHS, VALUES, max_size=3),
        "variants": VALUES | st.dictionaries(st.just("v"), st.dictionaries(PATHS, VALUES)),
        "mode": st.sampled_from(["product", "zip", "sample", 3]),
        "points": st.sampled_from([1, 2, -1, None, "2"]),
        "seeds": st.sampled_from([1, 2, 0, None]),
    },
)


@given(SWEEPS)
def test_any_sweep_is_points_or_problems(sweep: Any) -> None:
    """Whatever a file holds under `sweep`, it is run or refused with a reason, never worse."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = plan(Path(folder), sweep)
        except ScenarioError as error:
            assert error.problems and all(problem.message for problem in error.problems)
        else:
            assert len(found.digests) == len(found.points) >= 1


def test_digests_are_those_of_the_scenarios_loaded(tmp_path: Path) -> None:
    save(tmp_path, make_trace())
    values = {"trace": trace_of(vms=2, workloads=STEADY), "hosts": [{"name": "esx"}]}
    found = plan(tmp_path, {"seeds": 3, "vary": {"vms.web.count": [1, 2]}}, **values)
    for point, digests in zip(found.points, found.digests, strict=True):
        for seed, digest in zip(found.seeds, digests, strict=True):
            assert found.base.load(point.changes, seed).digest == digest


def test_a_file_without_a_sweep_has_none(tmp_path: Path) -> None:
    assert not has_sweep(write(tmp_path, SMALL))
    assert not has_sweep(write(tmp_path, "["))
    assert not has_sweep(write(tmp_path, "[1]"))
    assert not has_sweep(tmp_path / "none.yaml")
    assert has_sweep(write(tmp_path, "sweep: 3"))


def test_images_of_another_file_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, {"images": SMALL["images"]}, "images.yaml")
    vary = {"images.linux.footprint": ["64 MiB", "128 MiB"]}
    found = plan(tmp_path, {"vary": vary}, images="images.yaml")
    assert found.axes[0].labels == ("64 MiB", "128 MiB")


def test_the_schema_has_the_sweep() -> None:
    found = schema()
    assert found["properties"]["sweep"]["$ref"] == "#/$defs/Sweep"
    sweep = found["$defs"]["Sweep"]
    assert set(sweep["properties"]) == set(Sweep.model_fields)
    listed, ranged = sweep["properties"]["vary"]["additionalProperties"]["anyOf"]
    assert listed["type"] == "array" and ranged["required"] == ["from", "to", "step"]
