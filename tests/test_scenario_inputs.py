"""Files that a scenario names, its events, and a fuzz of the whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_files import (
    HOST,
    SMALL,
    STEADY,
    VM,
    changed,
    loaded,
    make_trace,
    problems_of,
    save,
    trace_of,
    write,
)

from cluster.scenario_file import Loaded, ScenarioError, load


def test_images_from_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"images": SMALL["images"]}, "images.yaml")
    inline, by_file = loaded(tmp_path), loaded(tmp_path, images="images.yaml")
    assert by_file.scenario == inline.scenario
    assert by_file.digest == inline.digest
    # The run folder must not depend on a file beside it.
    assert load(write(tmp_path, by_file.scenario_yaml, "again.yaml")).digest == inline.digest


def test_problems_in_the_images_file_have_its_name_and_line(tmp_path: Path) -> None:
    text = "images:\n  - name: linux\n    footprint: 128 MB\nextra: 1\n"
    write(tmp_path, text, "images.yaml")
    found = problems_of(tmp_path, changed(images="images.yaml"))
    assert [(item.line, item.path) for item in found] == [(3, "images[0].footprint"), (4, "extra")]
    assert all(item.file == str(tmp_path / "images.yaml") for item in found)


@pytest.mark.parametrize("text", ["", "images: 5\n", "x: 1\n", "images: !!x [1]\n", "- 1\n"])
def test_bad_images_files_are_one_problem(tmp_path: Path, text: str) -> None:
    write(tmp_path, text, "images.yaml")
    assert len(problems_of(tmp_path, changed(images="images.yaml"))) == 1


@pytest.mark.parametrize(
    "name",
    ["../images.yaml", "/etc/passwd", "", "a/../../b", "a\0b", "link.yaml", "up/images.yaml"],
)
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    outside = write(tmp_path, {"images": SMALL["images"]}, "images.yaml")
    (inner / "link.yaml").symlink_to(outside)
    (inner / "up").symlink_to(tmp_path)
    (problem,) = problems_of(inner, changed(images=name))
    assert problem.path == "images"
    assert "the scenario's folder" in problem.message
    trace = {"path": name, "images": {"linux": 1}}
    (problem,) = problems_of(inner, changed(trace=trace))
    assert problem.path == "trace.path"
    assert "the scenario's folder" in problem.message


def test_a_trace_folder_with_a_link_out_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    save(tmp_path, make_trace())
    (inner / "trace").mkdir()
    (inner / "trace" / "vms.parquet").symlink_to(tmp_path / "trace" / "vms.parquet")
    (problem,) = problems_of(inner, changed(trace=trace_of()))
    assert "must not lead out" in problem.message


@pytest.mark.parametrize(
    ("source", "path", "words"),
    [
        ({"images": {"linux": 1}}, "trace", "must give either path or data"),
        (trace_of(data="x"), "trace", "must give either path or data"),
        (trace_of(path="missing"), "trace.path", "does not exist"),
        (trace_of(path="scenario.yaml"), "trace.path", "is no trace"),
        (trace_of(path=None, data="../x"), "trace.data", "must be the name of one folder"),
        (trace_of(path=None, data=".."), "trace.data", "must be the name of one folder"),
        (trace_of(path=None, data="missing"), "trace.data", "does not exist"),
        (trace_of(images={"linux": 0}), "trace.images", "at least one name a weight above 0"),
        (trace_of(images={"x": 1}, workloads=STEADY), "trace.images.x", "images has none of this"),
        (trace_of(images={"linux": -1}), "trace.images.linux", "must be at least 0"),
        (trace_of(workloads={"x": 1}), "trace.workloads.x", "workloads has none of this name"),
        (trace_of(), "trace", "1 VMs of the trace have no usage, such as 'c': give workloads"),
        (trace_of(start="2 d", workloads=STEADY, vms=3), "trace.vms", "only 2 VMs"),
        (trace_of(guest={"drift": "5"}), "trace.guest.drift", "must be a percentage"),
        (trace_of(reservation="1 GiB"), "trace.reservation", "must be a percentage"),
    ],
)
def test_bad_traces(tmp_path: Path, source: dict[str, Any], path: str, words: str) -> None:
    save(tmp_path, make_trace())
    source = {key: value for key, value in source.items() if value is not None}
    (problem,) = problems_of(tmp_path, changed(trace=source, vms=None), data_root=tmp_path)
    assert problem.path == path
    assert words in problem.message


def test_a_malformed_trace_is_a_problem_of_the_scenario(tmp_path: Path) -> None:
    save(tmp_path, make_trace())
    (tmp_path / "trace" / "vms.parquet").write_bytes(b"not parquet")
    (problem,) = problems_of(tmp_path, changed(trace=trace_of(), vms=None))
    assert problem.path == "trace.path"
    assert problem.line is not None


def test_trace_data_needs_a_folder_and_its_names_may_not_collide(tmp_path: Path) -> None:
    save(tmp_path, make_trace(), "data")
    source = {"data": "data", "images": {"linux": 1}, "workloads": {"steady": 1}}
    (problem,) = problems_of(tmp_path, changed(trace=source, vms=None))
    assert "none was given" in problem.message
    vms = [VM | {"name": "a", "count": 1}]
    (problem,) = problems_of(tmp_path, changed(trace=source, vms=vms), data_root=tmp_path)
    assert problem.message == "VM 'a' of the trace is also in vms[0]"


def _timeline(*events: tuple[str, str], **values: Any) -> dict[str, Any]:
    listed = [{"at": at, "target": "web", "action": action} for at, action in events]
    return changed(vms=[VM | {"count": 1} | values], events=listed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_timeline(("1 min", "power_on"), start="never"), None),
        (_timeline(("2 min", "power_on"), ("1 min", "power_off")), None),
        (_timeline(("0 s", "reset")), None),
        (_timeline(("5 min", "power_on"), stop="5 min"), None),
        (_timeline(("1 min", "reset"), start="never"), "'web' is off at 1 min"),
        (_timeline(("5 min", "reset"), stop="5 min"), "'web' is off at 5 min"),
        (_timeline(("1 min", "power_off"), ("2 min", "power_off")), "'web' is off at 2 min"),
        (_timeline(("1 min", "power_off"), ("3 min", "power_off"), start="2 min"), "off at 1 min"),
        (_timeline(("1 min", "power_on"), start="2 min"), "starts by itself at 2 min: use `start"),
    ],
)
def test_events_fit_the_planned_life(tmp_path: Path, data: Any, message: str | None) -> None:
    if message is None:
        assert load(write(tmp_path, data)).scenario.events
    else:
        (problem,) = problems_of(tmp_path, data)
        assert message in problem.message


def test_later_events_see_what_earlier_ones_set(tmp_path: Path) -> None:
    lower = {"at": "10 min", "target": "web-1", "action": "set", "values": {"limit": "512 MiB"}}
    higher = lower | {"at": "20 min", "values": {"reservation": "600 MiB"}}
    (problem,) = problems_of(tmp_path, changed(events=[higher, lower]))
    assert problem.path == "events[0].values"
    assert load(write(tmp_path, changed(events=[higher | {"at": "5 min"}]))).scenario.events


NESTED = st.sampled_from(([], {}, [1], {"a": 1}, {"unique": "100 %"}, 10**30, "\0", "trace"))
LEAVES = NESTED | st.sampled_from(
    (None, True, 0, -1, 3, 1.5, "", "x", "web-1", "never", "1 GiB", "5 %", "10 min", "../x")
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """The full scenario with a few values replaced, removed or added anywhere."""
    data = json.loads(json.dumps(FULL))
    for _ in range(draw(st.integers(1, 4))):
        here = data
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(here[key], dict | list) and here[key] and draw(st.integers(0, 3)):
                here = here[key]
                continue
            if isinstance(here, dict) and draw(st.integers(0, 3)) == 0:
                here.pop(key) if draw(st.booleans()) else here.update(extra=1)
            else:
                here[key] = copy.deepcopy(draw(LEAVES))
            break
    return data


FULL: dict[str, Any] = SMALL | {
    "hosts": [HOST, {"name": "old", "profile": "osdi02", "memory": "1 GiB", "swap": "ssd"}],
    "fidelity": {"sample": 4},
    "trace": trace_of(workloads=STEADY, guest={"drift": "5 %"}, vms=2),
    "placement": {"policy": "first-fit", "overcommit": 2},
    "events": [
        {"at": "1 min", "target": "old", "action": "set", "values": {"idle_tax": "0 %"}},
        {"at": "1 min", "target": "web-1", "action": "power_off"},
        {"at": "2 min", "target": "web-2", "action": "set", "values": {"shares": "high"}},
    ],
}


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    save(folder, make_trace())
    return folder


def test_the_full_scenario_is_valid(fuzz_folder: Path) -> None:
    assert isinstance(load(write(fuzz_folder, FULL)), Loaded)


@given(data=mutated())
@settings(max_examples=300)
def test_a_mutated_scenario_loads_or_is_refused(fuzz_folder: Path, data: Any) -> None:
    path = write(fuzz_folder, data, "fuzz.yaml")
    try:
        found = load(path)
    except ScenarioError as error:
        assert all(problem.message for problem in error.problems)
        assert len(str(error).splitlines()) == len(error.problems)
    else:
        assert load(write(fuzz_folder, found.scenario_yaml, "again.yaml")).digest == found.digest
