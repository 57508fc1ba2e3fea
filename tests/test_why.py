"""The story of a VM or a host: complete, in order, in words for every kind of decision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cluster_builders import MOVES, PRESSED, json_lines, restless, simulate
from typer.testing import CliRunner

from cluster import why
from cluster.cli import app

EVENTS: list[dict[str, Any]] = [
    *MOVES,
    {"at": "8 min", "target": "esx-2", "action": "fail", "values": {"repair": "2 min"}},
    {"at": "12 min", "target": "esx-1", "action": "maintenance"},
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    events = [*PRESSED["events"], *EVENTS]
    simulate(restless(folder, events=events), folder / "run")
    return folder / "run"


def command(*arguments: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["why", *arguments])
    return found.exit_code, found.stdout, found.stderr


def test_every_kind_of_decision_has_a_sentence(told: Path) -> None:
    events = json_lines(told)
    kinds = {one["kind"] for one in events}
    assert len(kinds) > 10
    for one in events:
        text = why.sentence(one)
        assert not text.startswith(f"{one['kind']}: ") or one["kind"] in ("set", "ignored")


def test_a_vm_s_story_is_all_that_it_went_through(told: Path) -> None:
    code, out, _ = command(str(told), "--vm", "web-1")
    lines = out.splitlines()
    assert code == 0
    assert "web-1 placed on" in lines[0]
    assert any("sets out from esx-1 to esx-2 for event" in line for line in lines)
    assert any("goes on at esx-2" in line for line in lines)
    assert any("is lost with its host esx-2" in line for line in lines)
    assert any("starts again on" in line for line in lines)
    mine = [one for one in json_lines(told) if one.get("vm") == "web-1"]
    assert sum("web-1" in line for line in lines) == len(mine)
    assert any("goes from" in line for line in lines), "what its host went through"
    times = [line.split()[0] for line in lines]
    assert times == sorted(times, key=lambda text: tuple(map(int, text.split(":"))))


def test_a_host_s_story_has_its_states_and_its_vms(told: Path) -> None:
    code, out, _ = command(str(told), "--host", "esx-1")
    assert code == 0
    assert "is emptied for maintenance" in out and "placed on esx-1" in out
    mine = [one for one in json_lines(told) if "esx-1" in (one.get("host"), one.get("to"))]
    assert len(out.splitlines()) == len(mine)


def test_wrong_questions_are_refused(told: Path, tmp_path: Path) -> None:
    for arguments in ([], ["--vm", "web-1", "--host", "esx-1"]):
        code, _, err = command(str(told), *arguments)
        assert code == 2 and "either --vm NAME or --host NAME" in err
    code, _, err = command(str(told), "--vm", "web-11")
    assert code == 2 and "'web-11'" in err and "web-1" in err
    code, _, err = command(str(told), "--host", "esx-9")
    assert code == 2 and "esx-1" in err
    code, _, err = command(str(tmp_path), "--vm", "web-1")
    assert code == 2 and "events.jsonl" in err


def test_files_that_are_damaged_or_from_elsewhere_are_told_as_far_as_they_go(
    tmp_path: Path,
) -> None:
    lines = [
        json.dumps({"at_s": 60.0, "kind": "migrated", "vm": "a", "to": "h"}),
        json.dumps({"at_s": None, "kind": "future", "vm": "a", "because": {"x": 1}}),
        '{"at_s": 7, "kind": "torn',
        "[1, 2]",
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines), "utf-8")
    code, out, _ = command(str(tmp_path), "--vm", "a")
    assert code == 0
    assert out.splitlines() == [
        "     0:00:00  a future: vm a, because {'x': 1}",
        "     0:01:00  a migrated: vm a, to h",
    ]
