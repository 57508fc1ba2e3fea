"""A run that was cut off goes on from its last checkpoint, and no result shows anything of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_builders import (
    MOVES,
    PRESSED,
    json_lines,
    manifest_of,
    packed,
    pressed,
    restless,
    simulate,
)
from scenario_files import write
from typer.testing import CliRunner

from cluster import checkpoint, resumption, tables
from cluster.checkpoint import CheckpointError
from cluster.cli import app
from cluster.coordinator import Outcome, Progress
from cluster.errors import LostError
from cluster.files import OutputError, WriteError
from cluster.population import populate
from cluster.scenario_file import Loaded

EQUAL = ("report.json", "events.jsonl", "hosts.parquet", "vms.parquet", "epochs.parquet")
ALWAYS = 1e-9
"""Seconds between checkpoints: one at each barrier."""


def lively(folder: Path) -> Loaded:
    """Everything that a coordinator can have in mind: flights, a queue, hosts that are off, pools,
    sketches of what VMs hold, and rows of each VM."""
    hosts = [PRESSED["hosts"][0] | {"memory": "400 MiB", "count": 4}]
    vms = [dict(PRESSED["vms"][0]), *PRESSED["vms"][1:]]
    vms[0] |= {"pool": "web"}
    events = [
        *PRESSED["events"],
        *MOVES,
        {"at": "6 min", "target": "esx-4", "action": "fail", "values": {"repair": "4 min"}},
        {"at": "8 min", "target": "esx-1", "action": "maintenance", "values": {"repair": "2 min"}},
    ]
    return pressed(
        folder,
        hosts=hosts,
        vms=vms,
        events=sorted(events, key=lambda one: int(str(one["at"]).split()[0])),
        detail="vms",
        pools=[{"name": "web", "shares": "high", "limit": "900 MiB"}],
        migration={"bandwidth": "2 MiB/s", "concurrent": 2},
        balancing={"level": 4, "interval": "2 min"},
        placement={"policy": "worst-fit", "by": "consumed", "overcommit": 2.0, "content": "50 %"},
        power={"saving": True, "interval": "2 min"},
        availability={"delay": "90 s"},
    )


@pytest.fixture(autouse=True)
def at_every_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ALWAYS, each barrier has its checkpoint, however long the last one takes."""
    is_due = checkpoint.Keeper.is_due

    def settled(keeper: checkpoint.Keeper, now_s: float) -> bool:
        keeper.wait()
        return is_due(keeper, now_s)

    monkeypatch.setattr(checkpoint.Keeper, "is_due", settled)
    monkeypatch.setattr(checkpoint, "COST_SHARE", 1e9)


class CutError(LostError):
    """The process is gone."""


def cut_at(epoch: int) -> Callable[[Progress], None]:
    """Kill the run once it has come so far."""

    def watch(now: Progress) -> None:
        if now.epoch >= epoch:
            raise CutError("killed")

    return watch


def assert_equal(out: Path, whole: Path, names: tuple[str, ...] = EQUAL) -> None:
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return simulate(lively(folder), folder / "out"), folder / "out"


def test_the_run_has_all_that_may_be_lost(undisturbed: tuple[Outcome, Path]) -> None:
    report = undisturbed[0].report
    assert report["migrations"]["count"] >= 2 and report["failures"]["vms_restarted"] > 0
    kinds = {one["kind"] for one in json_lines(undisturbed[1])}
    assert kinds >= {"migrate", "migrated", "restart", "host_failed"}, kinds


@pytest.mark.parametrize("epoch", range(1, 15))
def test_a_run_cut_off_at_any_barrier_goes_on(
    undisturbed: tuple[Outcome, Path], tmp_path: Path, epoch: int
) -> None:
    loaded, out = lively(tmp_path), tmp_path / "out"
    with pytest.raises(CutError):
        simulate(loaded, out, watch=cut_at(epoch), every_s=ALWAYS)
    outcome = simulate(loaded, out, resumes=True)
    assert outcome == undisturbed[0]
    assert_equal(out, undisturbed[1], (*EQUAL, "vms_epochs.parquet"))
    assert 1 <= manifest_of(out)["begun_at_epoch"] <= epoch
    assert not (out / "checkpoints").exists()


def test_a_run_that_is_cut_off_again_and_again_ends_all_the_same(
    undisturbed: tuple[Outcome, Path], tmp_path: Path
) -> None:
    loaded, out = lively(tmp_path), tmp_path / "out"
    for epoch in range(2, 15, 3):
        with pytest.raises(CutError):
            simulate(loaded, out, watch=cut_at(epoch), every_s=ALWAYS, resumes=epoch > 2)
    assert simulate(loaded, out, resumes=True) == undisturbed[0]
    assert_equal(out, undisturbed[1])


@pytest.mark.parametrize("packs", [[[0, 1, 2, 3]], [[3, 1], [0], [2]]])
def test_it_goes_on_however_its_hosts_are_packed(
    undisturbed: tuple[Outcome, Path], tmp_path: Path, packs: list[list[int]]
) -> None:
    loaded, out = lively(tmp_path), tmp_path / "out"
    with pytest.raises(CutError):
        simulate(
            *(loaded, out),
            fleet=lambda loaded, population: packed(loaded, population, [[2], [0, 1, 3]]),
            watch=cut_at(8),
            every_s=ALWAYS,
        )
    outcome = simulate(
        *(loaded, out),
        fleet=lambda loaded, population: packed(loaded, population, packs),
        resumes=True,
    )
    assert outcome == undisturbed[0]
    assert_equal(out, undisturbed[1])


def test_a_stopped_run_leaves_where_it_stood(tmp_path: Path) -> None:
    whole = simulate(restless(tmp_path), tmp_path / "whole")
    loaded, out, seen = restless(tmp_path), tmp_path / "out", list[Progress]()
    stopped = simulate(
        *(loaded, out), watch=seen.append, should_stop=lambda: len(seen) > 5, every_s=3600.0
    )
    assert stopped.stopped and stopped.report["partial"]
    found = resumption.find(out, loaded, populate(loaded))
    # All that was simulated is kept: it was saved for the stop, not by the clock.
    assert found.standing.epoch * 60 == stopped.report["simulated_s"] == seen[-1].epoch * 60
    assert simulate(loaded, out, resumes=True) == whole
    assert_equal(out, tmp_path / "whole")


def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = simulate(restless(tmp_path), tmp_path / "whole")
    loaded, out, written = restless(tmp_path), tmp_path / "out", [0]
    write_table = tables.write_table

    def full(path: Path, values: Any) -> None:
        written[0] += 1
        if written[0] > 12:
            raise WriteError(f"cannot write {path}: No space left on device")
        write_table(path, values)

    with monkeypatch.context() as patch, pytest.raises(WriteError, match="No space left"):
        patch.setattr(tables, "write_table", full)
        simulate(loaded, out, every_s=ALWAYS)
    assert "No space left" in manifest_of(out)["reason"]
    assert simulate(loaded, out, resumes=True) == whole
    assert_equal(out, tmp_path / "whole")


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_through", refuse)
    seen: list[Progress] = []
    loaded = restless(tmp_path)
    outcome = simulate(loaded, tmp_path / "out", watch=seen.append, every_s=ALWAYS)
    assert outcome == simulate(loaded, tmp_path / "whole")
    warnings = {now.warning for now in seen if now.warning is not None}
    assert any("No space left" in warning for warning in warnings)
    assert {now.checkpoint_age_s for now in seen} == {None}


def test_one_run_at_a_time_writes_to_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LOCK_S", 0.1)
    loaded, out = pressed(tmp_path), tmp_path / "out"

    def another(now: Progress) -> None:
        with pytest.raises(OutputError, match="another run is writing"):
            simulate(loaded, out)

    simulate(loaded, out, watch=another)
    simulate(loaded, out)  # free again


# What is refused


@pytest.fixture
def cut_off(tmp_path: Path) -> tuple[Loaded, Path]:
    """A run that was killed at epoch 9 and has two checkpoints."""
    loaded, out = restless(tmp_path), tmp_path / "out"
    with pytest.raises(CutError):
        simulate(loaded, out, watch=cut_at(9), every_s=ALWAYS)
    assert len(list((out / "checkpoints").iterdir())) == 2
    return loaded, out


def newest(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _forge(path: Path) -> None:
    path.write_bytes(b"\x80")


DAMAGE = {
    "a flipped bit": _flip,
    "a truncated file": _truncate,
    "another file": _forge,
    "no file": Path.unlink,
}


@pytest.mark.parametrize("name", ["run.msgpack", "host-000001.msgpack", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_an_older_checkpoint_stands_in_for_a_damaged_one(
    cut_off: tuple[Loaded, Path], tmp_path: Path, name: str, damage: str
) -> None:
    loaded, out = cut_off
    damaged = newest(out)
    DAMAGE[damage](damaged / name)
    found = resumption.find(out, loaded, populate(loaded))
    assert found.checkpoint.path < damaged
    assert [str(damaged) in problem for problem in found.problems] == [True]
    whole = simulate(loaded, tmp_path / "whole")
    assert simulate(loaded, out, resumes=True) == whole


def test_where_no_checkpoint_is_good_each_one_is_told(cut_off: tuple[Loaded, Path]) -> None:
    loaded, out = cut_off
    for path in (out / "checkpoints").iterdir():
        _flip(path / "run.msgpack")
    with pytest.raises(CheckpointError, match=r"damaged.*damaged"):
        resumption.find(out, loaded, populate(loaded))
    assert resumption.find_any(out, loaded, populate(loaded)) is None


def test_rows_that_were_lost_are_missed(cut_off: tuple[Loaded, Path]) -> None:
    loaded, out = cut_off
    (out / "events.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="shorter than what was written"):
        resumption.find(out, loaded, populate(loaded))


def test_a_checkpoint_names_no_file_elsewhere(cut_off: tuple[Loaded, Path]) -> None:
    loaded, out = cut_off
    for path in (out / "checkpoints").iterdir():
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["../../events.jsonl"] = "0"
        (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="names a file elsewhere"):
        resumption.find(out, loaded, populate(loaded))


@pytest.mark.parametrize(("name", "value"), [("esxsim", "0.0"), ("layout", "0"), ("format", "x")])
def test_a_checkpoint_of_another_release_is_refused(
    cut_off: tuple[Loaded, Path], name: str, value: str
) -> None:
    loaded, out = cut_off
    for path in (out / "checkpoints").iterdir():
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | {name: value}))
    with pytest.raises(CheckpointError, match=f"{name} is {value}, this run's is"):
        resumption.find(out, loaded, populate(loaded))


def test_hosts_of_another_run_are_refused(cut_off: tuple[Loaded, Path], tmp_path: Path) -> None:
    loaded, out = cut_off
    other = restless(tmp_path, seed=8)
    with pytest.raises(CutError):
        simulate(other, tmp_path / "other", watch=cut_at(9), every_s=ALWAYS)
    theirs = resumption.find(tmp_path / "other", other, populate(other))
    mine = resumption.find(out, loaded, populate(loaded))
    stranger = checkpoint.Checkpoint(theirs.checkpoint.path, 9, theirs.checkpoint.files)
    from cluster_builders import host_set

    from hostsim.packing import PackingError

    hosts = host_set(loaded, populate(loaded).hosts)
    with pytest.raises(PackingError, match="another seed"):
        hosts.restore(stranger.hosts(hosts.ids()), mine.standing.off())


# The command


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["run", *map(str, arguments), "--local"])


@pytest.fixture
def half_done(cut_off: tuple[Loaded, Path], tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "pressed.yaml", cut_off[1]


def test_the_command_resumes_in_the_folder(half_done: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = half_done
    found = command(path, "--resume", out)
    assert found.exit_code == 0, found.output
    assert f"esxsim: going on from epoch 9 in {out}" in found.stderr
    assert command(path, "--out", tmp_path / "whole").exit_code == 0
    assert_equal(out, tmp_path / "whole")
    again = command(path, "--resume", out)
    assert again.exit_code == 2
    assert "the run came to its end, there is nothing to resume" in again.stderr


def test_continue_goes_on_begins_or_shows(half_done: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = half_done
    found = command(path, "--out", out, "--continue", "--json")
    assert (found.exit_code, "going on from epoch 9" in found.stderr) == (0, True)
    begun = command(path, "--out", tmp_path / "new", "--continue", "--json")
    assert (begun.exit_code, "going on" in begun.stderr) == (0, False)
    before = (out / "manifest.json").read_bytes()
    shown = command(path, "--out", out, "--continue", "--json")
    assert json.loads(shown.stdout) == json.loads(begun.stdout) == json.loads(found.stdout)
    assert (out / "manifest.json").read_bytes() == before  # nothing ran
    (out / "report.html").unlink()
    assert command(path, "--out", out, "--continue").exit_code == 0
    assert (out / "report.html").exists()


@pytest.mark.parametrize("option", ["--resume", "--out"])
def test_another_scenario_is_not_gone_on_with(
    half_done: tuple[Path, Path], tmp_path: Path, option: str
) -> None:
    _, out = half_done
    other = write(tmp_path, PRESSED | {"seed": 99}, "other.yaml")
    more = ["--continue"] if option == "--out" else []
    found = command(other, option, out, *more)
    assert found.exit_code == 2
    assert "scenario is" in found.stderr and "Traceback" not in found.stderr
    assert len(list((out / "checkpoints").iterdir())) == 2  # nothing is lost


def test_a_whole_run_of_another_scenario_is_not_replaced(tmp_path: Path) -> None:
    path, out = write(tmp_path, PRESSED, "one.yaml"), tmp_path / "out"
    assert command(path, "--out", out).exit_code == 0
    other = write(tmp_path, PRESSED | {"seed": 99}, "other.yaml")
    found = command(other, "--out", out, "--continue")
    assert found.exit_code == 2 and "a run of another scenario, or of another seed" in found.stderr


def test_where_nothing_ran_nothing_is_resumed(tmp_path: Path) -> None:
    path = write(tmp_path, PRESSED, "one.yaml")
    found = command(path, "--resume", tmp_path / "nowhere")
    assert found.exit_code == 2 and "no checkpoint to go on from: there is none" in found.stderr
    both = command(path, "--resume", tmp_path / "a", "--out", tmp_path / "b")
    assert both.exit_code == 2 and "leave --out away" in both.stderr


def test_a_new_run_says_that_it_replaces_an_unfinished_one(half_done: tuple[Path, Path]) -> None:
    path, out = half_done
    found = command(path, "--out", out)
    assert found.exit_code == 0 and "checkpoints of an unfinished run" in found.stderr


def test_resuming_that_was_cut_off_can_be_done_again(
    cut_off: tuple[Loaded, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while tables are cut, wherever that is."""
    loaded, out = cut_off
    whole = simulate(loaded, tmp_path / "whole")
    keep_first = tables.keep_first
    for at in range(3):
        copy = tmp_path / f"copy-{at}"
        shutil.copytree(out, copy)
        calls = iter(range(10))

        def cut(folder: Path, table: str, n_rows: int, calls: Any = calls, at: int = at) -> int:
            if next(calls) == at:
                raise CutError("killed")
            return keep_first(folder, table, n_rows)

        with monkeypatch.context() as patch:
            patch.setattr(tables, "keep_first", cut)
            if at < 2:
                with pytest.raises(CutError):
                    simulate(loaded, copy, resumes=True)
        assert simulate(loaded, copy, resumes=True) == whole
        assert_equal(copy, tmp_path / "whole")
