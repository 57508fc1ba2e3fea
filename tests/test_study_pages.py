"""Pages of studies: one file each, no script, any text is safe, and all that was found is there."""

from __future__ import annotations

import copy
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import command
from test_html import HOSTILE, checked
from test_sweeps import swept

from cluster.files import OutputError
from cluster.studies import drawings, pages
from cluster.studies.compare import Run, compared, grouped
from cluster.studies.drawings import Series, Trials
from cluster.studies.pages import EACH, MEAN, OVERCOMMIT, P95
from cluster.studies.results import summarised


def results(axes: dict[str, list[Any]], seeds: int = 3, **more: Any) -> dict[str, Any]:
    """Results of a sweep in which each step of an axis costs 0.1; what is text is no quantity."""
    points = []
    for at, values in enumerate(product(*axes.values())):
        steps = sum(list(axis).index(v) for axis, v in zip(axes.values(), values, strict=True))
        runs = [
            {
                "seed": seed,
                "status": "done",
                "reason": "",
                "folder": f"points/{at}-{seed}",
                "digest": "ab" * 32,
                "numbers": {
                    P95: 1 + 0.1 * steps + 0.01 * seed,
                    MEAN: 1 + 0.05 * steps,
                    OVERCOMMIT: 1.0 + at,
                    EACH: 2.0,
                    "vms.placed": 7,
                },
            }
            for seed in range(seeds)
        ]
        named = dict(zip(axes, map(str, values), strict=True))
        points.append({"point": at, "values": named, "runs": runs, "summary": summarised(runs)})
    return {
        "schema": 1,
        "name": "a study",
        "question": "What if?",
        "axes": [
            {
                "name": name,
                "labels": list(map(str, values)),
                "numbers": None if isinstance(values[0], str) else values,
            }
            for name, values in axes.items()
        ],
        "seeds": list(range(seeds)),
        "points": points,
    } | more


def built(folder: Path, name: str, held: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(held), encoding="utf-8")
    (path,) = pages.build(folder)
    return path


def titles(path: Path) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", path.read_text("utf-8"))


def assert_alone(path: Path, charts: int) -> str:
    """The page needs nothing; it has so many charts, each wide and narrow, told in words."""
    text, found = path.read_text("utf-8"), checked(path)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(found.tags)
    assert "http" not in text and re.findall(r"url\((?!#)", text) == []
    labels = re.findall(r'<svg viewBox="[^"]+" role="img" aria-label="([^"]+)">', text)
    assert len(labels) == text.count("<svg") == 2 * charts
    assert all(len(label) > 20 for label in labels)
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).lower().split()
    return text


# Sweeps


@pytest.mark.parametrize(
    ("axes", "figures"),
    [
        ({"vms.web.count": [2, 4, 8]}, ["Slowdown by vms.web.count", "Consolidation curve"]),
        ({"who": ["all", "no sharing"]}, ["Slowdown, p95", "Slowdown, mean"]),
        (
            {"vms.web.count": [2, 4], "tax": [0, 50, 75]},
            ["Slowdown by vms.web.count", "Consolidation curve", "Both axes"],
        ),
        (
            {"policy": ["a", "b"], "count": [1, 2]},
            ["Slowdown by count", "Consolidation curve", "Both axes"],
        ),
        ({"a": ["x", "y"], "b": ["x", "y"], "c": ["x"]}, ["Slowdown, p95", "Slowdown, mean"]),
        ({"a": [1, 2], "b": [1, 2, 3, 4], "c": [1, 2]}, []),  # eight lines are no chart
        ({"a": [1]}, []),
        ({"a": [str(n) for n in range(30)]}, []),
    ],
)
def test_figures_fit_what_varies(
    tmp_path: Path, axes: dict[str, list[Any]], figures: list[str]
) -> None:
    path = built(tmp_path, "results.json", results(axes))
    assert titles(path) == [*figures, "What varies", "Points"]
    assert_alone(path, len(figures))


def test_a_sweeps_page_has_its_numbers(tmp_path: Path) -> None:
    text = assert_alone(built(tmp_path, "results.json", results({"count": [2, 4, 8]})), 2)
    assert "1.010 or less at the best point (count 2), 1.210 or less at the worst (count 8)" in text
    assert "3 points, 3 seeds each" in text and "9 of 9 runs done" in text
    assert "<td>1.110 ± 0.025</td>" in text  # 4.303 x 0.01 / sqrt(3)
    assert "What if?" in text


def test_what_is_not_done_is_told(tmp_path: Path) -> None:
    held = results({"count": [2, 4]}, seeds=2)
    held["points"][1]["runs"][0] |= {"status": "failed", "reason": "it broke", "numbers": {}}
    held["points"][1]["runs"][1] |= {"status": "not run", "numbers": {}}
    held["points"][1]["summary"] = {}
    text = assert_alone(built(tmp_path, "results.json", held), 1)
    assert "2 of 4 runs are not done." in text and "count 4, seed 0: failed: it broke" in text
    for point in held["points"]:
        for run in point["runs"]:
            run |= {"status": "failed", "reason": "it broke", "numbers": {}}
        point["summary"] = {}
    assert "No point has run yet." in assert_alone(built(tmp_path, "results.json", held), 0)


def test_one_seed_and_numbers_that_are_missing_are_drawn(tmp_path: Path) -> None:
    held = results({"count": [2, 4], "who": ["a", "b"]}, seeds=1)
    for run in held["points"][3]["runs"]:
        del run["numbers"][P95], run["numbers"][MEAN]
    held["points"][3]["summary"] = summarised(held["points"][3]["runs"])
    assert_alone(built(tmp_path, "results.json", held), 3)


def test_a_large_sweep_has_a_page_of_a_bounded_size(tmp_path: Path) -> None:
    held = results({"a": [str(n) for n in range(40)], "b": [str(n) for n in range(40)]}, seeds=1)
    path = built(tmp_path, "results.json", held)
    text = assert_alone(path, 0)
    assert "1100 more points are in results.json" in text and len(text) < 1 << 20


# Searches


CAPACITY: dict[str, Any] = {
    "schema": 1,
    "name": "a search",
    "question": "",
    "sentence": "8 VMs fit.",
    "vary": "vms",
    "goals": [{"text": "slowdown.p95 <= 1.05", "path": P95, "bound": 1.05}] * 2,
    "seeds": [1, 2],
    "level": 8,
    "interval": [8, 9],
    "at_end": False,
    "knees": {"1": {"holds": 8, "fails": 9}, "2": {"holds": 9, "fails": 10}},
    "binds": {"what": "memory", "evidence": "61 % of the time lost"},
    "next": {"what": "CPU", "evidence": "39 % of the time lost"},
    "first": [1, 9],
    "violations": [],
    "trials": [
        {
            "seed": seed,
            "level": level,
            "holds": level < 8 + seed,
            "why": [] if level < 8 + seed else [f"slowdown.p95 1.0{level}"],
            "folder": "points/x",
            "digest": "ab",
            "numbers": {
                P95: 1 + level / 100,
                MEAN: 1.0,
                OVERCOMMIT: 2.0,
                EACH: 4.0,
                "cost.slowdown_by_cause.cpu": 0.02,
                "cost.slowdown_by_cause.guest_paging": 0.04,
            },
        }
        for seed, level in ((1, 8), (1, 9), (2, 8), (2, 9), (2, 10))
    ],
}


def test_a_search_has_a_page(tmp_path: Path) -> None:
    text = assert_alone(built(tmp_path, "capacity.json", CAPACITY), 2)
    assert '<p class="answer">8 VMs fit.</p>' in text and "5 runs, 2 seeds" in text
    assert "<strong>memory</strong>: 61 % of the time lost." in text
    assert "<strong>CPU</strong>" in text and "More was not always harder" not in text
    assert "2 of 2" in text and "1 of 2" in text and "slowdown.p95 1.09" in text
    assert "width:100.0%" in text and "width:50.0%" in text


def test_a_search_may_have_found_nothing_or_no_end(tmp_path: Path) -> None:
    held = copy.deepcopy(CAPACITY) | {"level": None, "interval": [None, None], "first": None}
    held |= {"binds": None, "next": None, "knees": {"1": {"holds": None, "fails": 1}}}
    held["violations"] = [{"seed": 2, "level": 10}]
    text = assert_alone(built(tmp_path, "capacity.json", held), 2)
    assert "Nothing did: every run held." in text
    assert "More was not always harder." in text and "10.0 (seed 2)." in text
    held["vary"] = "overcommit"
    for trial in held["trials"]:
        trial["numbers"].pop(P95)
    text = assert_alone(built(tmp_path, "capacity.json", held), 2)
    assert "0.08" in text


# Comparisons


def test_a_comparison_has_a_page(tmp_path: Path) -> None:
    runs = [
        Run(Path(f"{x}{seed}"), seed, f"{x}{seed}", {"x": x}, {P95: x + seed / 100, "other": x})
        for x in (1, 2)
        for seed in (1, 2)
    ]
    path = built(tmp_path, "compare.json", compared(grouped(runs)))
    text = assert_alone(path, 1)
    assert path.name == "compare.html" and "2 scenarios side by side" in text
    assert '<td class="left beyond">beyond noise</td>' in text and "+1.000" in text
    one = compared(grouped([runs[0], runs[2]]))
    assert "noise unknown" in assert_alone(built(tmp_path, "compare.json", one), 1)
    none = compared(grouped([Run(Path(f"{x}"), 1, f"{x}", {"x": x}, {}) for x in (1, 2)]))
    assert_alone(built(tmp_path, "compare.json", none), 0)


# All of them


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    axes = {HOSTILE: [HOSTILE, "b"], "n": [1, 2]}
    held = results(axes, name=HOSTILE, question=HOSTILE)
    held["points"][0]["runs"][0] |= {"status": "failed", "reason": HOSTILE}
    assert_alone(built(tmp_path / "a", "results.json", held), 3)
    held = results({HOSTILE: [HOSTILE, "b"]})
    assert_alone(built(tmp_path / "a", "results.json", held), 2)
    held = copy.deepcopy(CAPACITY) | {"name": HOSTILE, "sentence": HOSTILE, "question": HOSTILE}
    held["goals"][0] = {"text": HOSTILE, "path": HOSTILE, "bound": 1.0}
    held["trials"][1]["why"] = [HOSTILE]
    assert_alone(built(tmp_path / "b", "capacity.json", held), 2)
    runs = [Run(Path(HOSTILE), x, f"{x}", {HOSTILE: HOSTILE * x}, {HOSTILE: x}) for x in (1, 2)]
    assert_alone(built(tmp_path / "c", "compare.json", compared(grouped(runs))), 0)


def test_equal_files_give_equal_pages(tmp_path: Path) -> None:
    held = results({"count": [2, 4], "who": ["a", "b"]})
    first = built(tmp_path, "results.json", held).read_bytes()
    assert built(tmp_path, "results.json", held).read_bytes() == first


@pytest.mark.parametrize("name", ["results.json", "capacity.json", "compare.json"])
@pytest.mark.parametrize("held", ["{", "[]", "{}", '{"points": 3, "groups": 3, "vary": 3}'])
def test_damaged_files_are_named(tmp_path: Path, name: str, held: str) -> None:
    (tmp_path / name).write_text(held)
    with pytest.raises(OutputError, match=re.escape(name)):
        pages.build(tmp_path)


def test_the_command_builds_pages_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("run", swept(tmp_path, seeds=1), "--local", "--out", out)
    page = (out / "sweep.html").read_bytes()
    (out / "sweep.html").unlink()
    found = command("report", out)
    assert found.stdout == f"Page           {out / 'sweep.html'}\n"
    assert (out / "sweep.html").read_bytes() == page
    command("compare", out, "--out", tmp_path / "compared")
    assert_alone(tmp_path / "compared" / "compare.html", 1)


# Charts alone


def test_a_curve_says_where_it_begins_and_ends() -> None:
    line = Series("a", [1, 2], [1.0, 1.5], [np.nan] * 2, [np.nan] * 2)
    made = drawings.curve("c", [line], "x", [], None)
    assert made.label == "Curve of slowdown, p95 by x: a 1 to 1.5."


def test_bars_say_all_their_numbers() -> None:
    found = [{"mean": 3.0, "std": 1.0, "low": 2.0, "high": 4.0}, None]
    made = drawings.bars("b", ["one", "two"], found, "vms.placed", "VMs placed")
    assert made.label == "Bars of VMs placed: one 3, two no run."
    assert "one" in made.wide and "two" in made.narrow


def test_trials_say_how_many_hold() -> None:
    made = drawings.trials(
        "t", Trials([7, 7], [1, 2], [1.0, 1.1], [True, False], 1.05, None), "VMs", "p95"
    )
    assert made.label == "p95 by VMs in 2 runs, of which 1 hold."
