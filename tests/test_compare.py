"""Runs side by side: what differs is found, seeds make a group, and noise is told from effect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scenario_files import changed, loaded, write
from test_cli import command
from test_sweeps import TINY, swept

from cluster.files import OutputError
from cluster.studies.compare import (
    Run,
    compared,
    flat,
    grouped,
    in_words,
    read_run,
    run_folders,
    verdict,
)


def run(folder: str, seed: int, scenario: dict[str, Any], **numbers: float) -> Run:
    return Run(Path(folder), seed, f"{folder} {seed} {numbers}", scenario, numbers)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight VMs with and without sharing, three seeds each, and a plain run beside it."""
    folder = tmp_path_factory.mktemp("study")
    variants = {"sharing": {"on": {}, "off": {"hosts.esx.sharing.enabled": False}}}
    path = swept(folder, vary={}, variants=variants, seeds=3)
    command("run", path, "--local", "--out", folder / "out")
    command("run", write(folder, TINY), "--local", "--seed", 9, "--out", folder / "plain")
    return folder / "out"


def test_a_scenario_is_flat_and_in_equal_words(tmp_path: Path) -> None:
    one = in_words(changed(duration="60 min", hosts=[{"name": "esx", "memory": "8192 MiB"}]))
    other = in_words(changed(duration="1 h", hosts=[{"name": "esx", "memory": "8 GiB"}]))
    assert one == other
    assert one["hosts.esx.memory"] == "8 GiB" and one["vms.web.count"] == 3
    assert one["hosts.esx.allocation.idle_tax"] == "75 %"  # a default
    assert in_words({"name": "x", "of": "another version"}) == {
        "name": "x",
        "of": "another version",
    }
    assert loaded(tmp_path).scenario.hosts[0].memory == 8 << 30


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ({"a": {"b": 1}}, {"a.b": 1}),
        (
            {"a": [{"name": "x", "v": 1}, {"name": "y", "v": 2}]},
            {"a.x.name": "x", "a.x.v": 1, "a.y.name": "y", "a.y.v": 2},
        ),
        ({"a": [{"name": "x"}, {"name": "x"}]}, {"a.0.name": "x", "a.1.name": "x"}),
        ({"a": [1, 2]}, {"a.0": 1, "a.1": 2}),
        ({"a": [], "b": {}}, {"a": [], "b": {}}),
    ],
)
def test_elements_of_lists_are_named(value: Any, paths: dict[str, Any]) -> None:
    assert dict(flat(value)) == paths


def test_runs_that_differ_in_their_seed_are_a_group() -> None:
    small, large = {"x": 1}, {"x": 2}
    runs = [run("a", 1, small, n=1), run("b", 1, large, n=2), run("c", 2, small, n=3)]
    groups = grouped(runs)
    assert [(group.label, [one.folder.name for one in group.runs]) for group in groups] == [
        ("A", ["a", "c"]),
        ("B", ["b"]),
    ]
    # The same run again adds nothing; one that should be equal, and is not, is another group.
    same = Run(Path("d"), 1, runs[0].digest, small, {"n": 1})
    assert [len(group.runs) for group in grouped([*runs, same])] == [2, 1]
    assert [len(group.runs) for group in grouped([*runs, run("e", 1, small, n=9)])] == [2, 1, 1]
    many = grouped([run("a", 1, {"x": x}) for x in range(28)])
    assert [group.label for group in many[24:]] == ["Y", "Z", "A2", "B2"]


def test_what_differs_is_told_and_nothing_else() -> None:
    groups = grouped([run("a", 1, {"x": 1, "y": 1}), run("b", 1, {"x": 1, "y": 2, "z": None})])
    assert compared(groups)["scenario"] == [
        {"path": "y", "values": [1, 2]},
        {"path": "z", "values": ["not given", None]},
    ]


def test_key_figures_come_first_and_noise_is_known_with_two_seeds() -> None:
    key, reason = "cost.slowdown.p95", "vms.refused_by.x"
    names = {"other": (1, 2, 3, 4), key: (1.0, 1.1, 2.0, 2.1)}
    runs = [
        run("a", 1, {"x": 1}, **{name: values[0] for name, values in names.items()}),
        run("b", 2, {"x": 1}, **{name: values[1] for name, values in names.items()}),
        run("c", 1, {"x": 2}, **{name: values[2] for name, values in names.items()}),
        run(
            "d", 2, {"x": 2}, **{name: values[3] for name, values in names.items()}, **{reason: 4.0}
        ),
    ]
    rows = compared(grouped(runs))["outcome"]
    assert [row["path"] for row in rows] == [key, "other", reason]
    p95 = rows[0]
    assert p95["groups"][0]["mean"] == pytest.approx(1.05)
    assert p95["differences"][0]["mean"] == pytest.approx(1.0)
    assert verdict(p95["differences"][0]) == "beyond noise"
    assert verdict(rows[1]["differences"][0]) == "within noise"
    assert rows[2]["groups"][0]["mean"] == 0 and rows[2]["groups"][1]["mean"] == 2
    single = compared(grouped([runs[0], runs[2]]))["outcome"]
    assert verdict(single[0]["differences"][0]) == "noise unknown"


def test_a_number_that_a_side_lacks_is_not_compared() -> None:
    found = compared(grouped([run("a", 1, {"x": 1}, n=1), run("b", 1, {"x": 2})]))["outcome"][0]
    assert found["groups"][1] is None and found["differences"] == [None]
    assert verdict(None) == "not known"


def test_a_study_is_compared_point_by_point(study: Path) -> None:
    shown = command("compare", study)
    found = json.loads(command("compare", study, "--json").stdout)
    assert [group["seeds"] for group in found["groups"]] == [[7, 8, 9]] * 2
    assert found["scenario"] == [{"path": "hosts.esx.sharing.enabled", "values": [True, False]}]
    by_path = {row["path"]: row for row in found["outcome"]}
    assert verdict(by_path["memory_gib.shared_saved.mean"]["differences"][0]) == "beyond noise"
    assert verdict(by_path["vms.placed"]["differences"][0]) == "equal"
    lines = shown.stdout.splitlines()
    assert lines[0].endswith(" and 2 more, 3 seeds")
    assert any(line.split() == ["hosts.esx.sharing.enabled", "true", "false"] for line in lines)
    (placed,) = [line for line in lines if line.startswith("VMs placed")]
    assert placed.split() == ["VMs", "placed", "8", "8", "0", "equal"]


def test_a_plain_run_is_one_of_the_group_of_its_scenario(study: Path) -> None:
    plain = read_run(study.parent / "plain")
    assert [plain.digest] == [
        one.digest for one in map(read_run, run_folders([study])) if one.digest == plain.digest
    ]
    found = command("compare", study.parent / "plain", study.parent / "plain", code=2)
    assert "there is one scenario only" in found.stderr


def test_a_study_without_a_table_is_all_its_runs(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "copy")
    (tmp_path / "copy" / "results.json").unlink()
    assert len(run_folders([tmp_path / "copy"])) == 6
    shutil.rmtree(tmp_path / "copy" / "points")
    with pytest.raises(OutputError, match="without any run"):
        run_folders([tmp_path / "copy"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a run folder"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "is not a run folder"),
        (lambda folder: (folder / "report.json").unlink(), "ended early"),
        (lambda folder: (folder / "report.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "report.json").write_text("{}"), "is not a report"),
        (lambda folder: (folder / "scenario.yaml").write_text("["), "is not YAML"),
        (lambda folder: (folder / "scenario.yaml").write_text("a: &a [*a]"), "are not read"),
        (lambda folder: (folder / "scenario.yaml").write_text("[1]"), "holds no scenario"),
    ],
)
def test_what_is_no_run_is_refused(study: Path, tmp_path: Path, damage: Any, message: str) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(study.parent / "plain", plain)
    damage(plain)
    found = command("compare", plain, study, code=2)
    assert message in found.stderr and str(plain) in found.stderr


@pytest.mark.parametrize(
    "table",
    [
        '{"points": 3}',
        '{"points": [{"runs": [{"folder": 3}]}]}',
        '{"points": [{"runs": [{"folder": "../plain"}]}]}',
        '{"points": [{"runs": [{"folder": "/etc"}]}]}',
    ],
)
def test_a_table_leads_nowhere_else(study: Path, tmp_path: Path, table: str) -> None:
    shutil.copytree(study, tmp_path / "copy")
    (tmp_path / "copy" / "results.json").write_text(table)
    found = command("compare", tmp_path / "copy", code=2)
    assert "results.json is not what this esxsim wrote" in found.stderr


def test_a_page_is_written_where_it_may_be(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    for _ in range(2):
        command("compare", study, "--out", out)
    assert json.loads((out / "compare.json").read_text("utf-8"))["groups"][0]["label"] == "A"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    found = command("compare", study, "--out", other, code=2)
    assert "is not empty and holds no comparison" in found.stderr
    found = command("compare", study, "--out", other / "thesis.txt", code=2)
    assert "cannot use" in found.stderr
