"""`esxsim top`: what it says of runs in every state, and how it looks on terminals of any size."""

from __future__ import annotations

import io
import json
import os
import platform
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cluster_builders import PRESSED, pressed, recorded, simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scenario_files import write
from typer.testing import CliRunner

from cluster.cli import app
from cluster.coordinator import Progress
from cluster.files import OutputError
from cluster.messages import CAUSES, LEVELS
from cluster.watch import live, top
from cluster.watch.live import FILE, HostView, View, VmView
from cluster.watch.looking import ENDED, LOST, QUIET, RUNS, Look, into
from cluster.watch.view import Screen
from hostsim.invariants import BrokenInvariantError
from hostsim.units import GIB

MAIN = [sys.executable, "-c", "from cluster.cli import main; main()"]
VIEW = View(
    run="quickstart-2002-7e720812",
    simulated_s=3720.0,
    duration_s=21600.0,
    host_ticks_per_s=594.2,
    simulated_s_per_s=185.6,
    left_s=96.3,
    hosts=16,
    hosts_on=15,
    machine_bytes=300 * GIB,
    queue=3,
    migrations=2,
    pressed=tuple(
        HostView(f"esx-{i}", LEVELS[4 - i % 5], 9, 20 * GIB, i * GIB // 8, 8 * GIB, GIB, 175)
        for i in range(20)
    ),
    slowest=tuple(
        VmView(f"vm-{i}", f"esx-{i % 16}", 2 - i / 20, 2 * GIB, {"swap_in": 0.3, "cow": 0.0001})
        for i in range(20)
    ),
)
NOW = Progress(
    epoch=62,
    epochs=360,
    host_ticks=11904,
    wall_s=20.0,
    memory_bytes={
        "configured": 673 * GIB,
        "consumed": 294 * GIB,
        "active": 210 * GIB,
        "shared_saved": 47 * GIB,
        "ballooned": 199 * GIB,
        "swapped": 9 * GIB,
        "free": 26 * GIB,
        "compressed": 0,
        "untouched": 124 * GIB,
        "overhead": 6 * GIB,
    },
    levels={"high": 11, "clear": 0, "soft": 3, "hard": 0, "low": 1},
    vms=197,
    checkpoint_age_s=12.0,
    restarts=1,
    view=VIEW,
)
SEEN = Look("runs/quickstart", VIEW.run, RUNS, NOW)


def screen(look: Look, width: int = 80, height: int = 24) -> list[str]:
    """Lines on a terminal of this size."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None
    )
    console.print(Screen(look))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def command(*arguments: Any, code: int = 0) -> Result:
    found = CliRunner().invoke(app, ["top", *map(str, arguments)])
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found


# The screen


def test_a_small_terminal_shows_all_that_matters() -> None:
    lines = screen(SEEN)
    assert len(lines) == 24
    assert lines[0] == "quickstart-2002-7e720812  running  runs/quickstart"
    assert re.fullmatch(r"1:02:00 of 6:00:00 ━+╸? + 17\.2 %, 0:01:36 left", lines[1])
    assert lines[2] == "594 host-ticks/s, 186 simulated s/s; checkpoint 12 s ago; 1 restarts"
    who = "197 VMs on, 3 waiting, 2 migrating; 15 of 16 hosts on: 11 high 3 soft 1 low"
    assert lines[3] == who
    memory = "Memory: 673 GiB configured, 210 active; hosts 300, 26.0 free"
    assert lines[5].rstrip() == memory
    rows = [re.split(r"  +|━+╸?", line.strip()) for line in lines[6:11]]
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [
        ("consumed", "43.7 %"),
        ("saved by sharing", "7.0 %"),
        ("ballooned", "29.6 %"),
        ("swapped", "1.3 %"),
        ("untouched", "18.4 %"),
    ]
    heads = [i for i, line in enumerate(lines) if line.startswith(("Hosts by", "Slowest"))]
    assert heads == [12, 19]
    assert lines[13].split() == ["esx-0", "low", "0.00", "0", "%", "8.00", "1.00", "9", "17.5", "%"]
    slow = "vm-0 esx-0 2.00 host swap-in 30.0 %, copy-on-write < 0.1 %"
    assert lines[20].split() == slow.split()
    assert lines[23].startswith("vm-3 ")


def test_a_large_terminal_shows_more_of_each() -> None:
    lines = screen(SEEN, 140, 40)
    assert len(lines) == 40
    assert sum(line.startswith("esx-") for line in lines) == 13
    assert sum(line.startswith("vm-") for line in lines) == 12
    assert "memory" in lines[12] and "GiB" in next(one for one in lines if "Slowest" in one)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(60, 250),
    height=st.integers(19, 90),
    n_hosts=st.integers(1, 20),
    n_vms=st.integers(0, 20),
    name=st.text(min_size=1, max_size=40),
    state=st.sampled_from([RUNS, QUIET, LOST]),
    compressed=st.sampled_from([0, 3 * GIB]),
)
def test_it_never_overflows(
    width: int, height: int, n_hosts: int, n_vms: int, name: str, state: str, compressed: int
) -> None:
    hosts = [replace(one, name=name) for one in VIEW.pressed[:n_hosts]]
    vms = [replace(one, name=name, host=name) for one in VIEW.slowest[:n_vms]]
    view = replace(VIEW, run=name, pressed=tuple(hosts), slowest=tuple(vms))
    memory = NOW.memory_bytes | {"compressed": compressed}
    now = replace(NOW, view=view, memory_bytes=memory)
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None
    )
    lines = console.render_lines(Screen(Look("somewhere", name, state, now)), pad=False)
    assert len(lines) <= height
    assert all(sum(part.cell_length for part in line) <= width for line in lines)


def test_every_cause_and_state_has_words() -> None:
    lost = dict.fromkeys(CAUSES, 0.01)
    view = replace(VIEW, slowest=(replace(VIEW.slowest[0], lost=lost),))
    text = "\n".join(screen(Look("d", "r", RUNS, replace(NOW, view=view)), 250, 60))
    assert text.count("1.0 %") >= len(CAUSES)
    for level in LEVELS:
        assert f" {level} " in text


def test_names_are_text_not_markup() -> None:
    view = replace(VIEW, pressed=(replace(VIEW.pressed[0], name="[red]esx[/red]"),))
    assert any(
        "[red]esx[/red]" in line for line in screen(replace(SEEN, progress=replace(NOW, view=view)))
    )


def test_what_is_not_known_is_not_made_up() -> None:
    none = replace(NOW, checkpoint_age_s=None, view=replace(VIEW, left_s=None, slowest=()))
    lines = screen(replace(SEEN, progress=none))
    assert lines[1].endswith("17.2 %") and "no checkpoint" in lines[2]
    assert lines[-1] == "No VM lost time in this epoch."
    assert screen(Look("d", "r", RUNS)) == ["r  running  d", "No epoch has ended yet."]


def test_a_run_that_stands_still_says_since_when() -> None:
    quiet = replace(SEEN, state=QUIET, age_s=33.0, since="2026-01-02 03:04:05")
    assert screen(quiet)[0].startswith(
        "quickstart-2002-7e720812  stands still since 2026-01-02 03:04:05, 33 s ago"
    )
    lost = replace(quiet, state=LOST, age_s=4000.0)
    assert "gone since 2026-01-02 03:04:05, 1:06:40 ago" in screen(lost, 120)[0]
    assert "left" not in screen(lost)[1]
    unknown = replace(lost, reason="it has ended, or was lost")
    assert "gone since 2026-01-02 03:04:05: it has ended, or was" in screen(unknown)[0]


def test_the_end_is_near_when_all_epochs_are_done() -> None:
    done = replace(NOW, epoch=360, view=replace(VIEW, simulated_s=21600.0))
    assert screen(replace(SEEN, progress=done))[1].endswith("100 %, writing the report")


# Folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    simulate(pressed(folder), folder / "out")
    return folder / "out"


def left_by(folder: Path, **changes: Any) -> Path:
    """A run's folder as a run that was lost leaves it, with other contents of progress.json."""
    fleet, _ = recorded(fails_at=4)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BrokenInvariantError):
        patch.setattr(live, "EVERY_S", 0.0)
        simulate(pressed(folder), folder / "out", fleet=fleet)
    out = folder / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["reason"] = "the run was killed, or still goes on"
    (out / "manifest.json").write_text(json.dumps(manifest))
    told = json.loads((out / FILE).read_text()) | changes
    (out / FILE).write_text(json.dumps(told))
    return out


def gone_pid() -> int:
    """Id of a process that was there."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_whole_run_shows_its_summary(whole: Path) -> None:
    found = command(whole)
    assert found.stdout.splitlines()[0] == f"pressed, seed 7  done  {whole}"
    digest = json.loads((whole / "report.json").read_text())["digest"]
    assert f"Digest         {digest}" in found.stdout.splitlines()


def test_a_stopped_run_shows_what_it_had(tmp_path: Path) -> None:
    simulate(pressed(tmp_path), tmp_path / "out", should_stop=lambda: True)
    found = command(tmp_path / "out").stdout
    assert "the run was stopped before its end" in found and "PARTIAL" in found


def test_a_failed_run_shows_why_and_where_it_stood(tmp_path: Path) -> None:
    fleet, _ = recorded(fails_at=4)
    with pytest.raises(BrokenInvariantError):
        simulate(pressed(tmp_path), tmp_path / "out", fleet=fleet)
    seen = into(tmp_path / "out")
    assert seen.state == ENDED and seen.is_over and seen.progress is not None
    assert "the run failed: host 0, epoch 7: frames" in screen(seen, 200)[0]


def test_a_killed_run_is_gone_since_its_last_news(tmp_path: Path) -> None:
    out = left_by(tmp_path, pid=gone_pid())
    written_s = (out / FILE).stat().st_mtime - 3600
    os.utime(out / FILE, (written_s, written_s))
    seen = into(out)
    assert seen.state == LOST and seen.is_over and seen.age_s > 3600
    assert seen.progress is not None and seen.progress.epoch == 4
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written_s))
    assert f"gone since {since}, 1:00:" in command(out).stdout  # it ends by itself


def test_a_killed_run_may_be_taken_up_again_for_a_minute(tmp_path: Path) -> None:
    seen = into(left_by(tmp_path, pid=gone_pid()))
    assert seen.state == LOST and not seen.is_over


def test_a_process_that_is_there_is_not_gone_however_long_it_takes(tmp_path: Path) -> None:
    out = left_by(tmp_path)
    os.utime(out / FILE, (1, 1))
    assert into(out).state == RUNS


def test_of_a_process_elsewhere_only_the_age_of_its_news_is_known(tmp_path: Path) -> None:
    out = left_by(tmp_path, node=platform.node() + "x")
    assert into(out).state == RUNS
    os.utime(out / FILE, (1, 1))
    assert into(out).state == QUIET


def test_before_the_first_epoch_ends_there_is_nothing_to_show(tmp_path: Path) -> None:
    out = left_by(tmp_path)
    (out / FILE).unlink()
    seen = into(out)
    assert (seen.state, seen.progress, seen.report) == (RUNS, None, None)
    assert "No epoch has ended yet." in command(out, "--once").stdout


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1, "node": "a", "progress": 3}'])
def test_a_broken_progress_file_is_refused(tmp_path: Path, text: str) -> None:
    out = left_by(tmp_path)
    (out / FILE).write_text(text)
    assert f"cannot read {out / FILE}" in command(out, code=2).stderr


@settings(max_examples=30)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_whatever_it_holds_it_is_read_or_refused(value: Any) -> None:
    told: dict[str, Any] = {"pid": 1, "node": "n", "progress": asdict(NOW)}
    told["progress"]["view"]["slowest"] = value
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"esxsim-top-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text('{"esxsim": "1", "partial": true}')
    (folder / FILE).write_text(json.dumps(told))
    if value == []:
        assert into(folder).progress is not None
    else:
        with pytest.raises(OutputError, match="slowest"):
            into(folder)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    why = f"esxsim: {tmp_path} is not a run folder: it has no manifest.json of esxsim\n"
    assert command(tmp_path, code=2).stderr == why
    assert command(tmp_path / "none", code=2).stderr == why.replace(
        str(tmp_path), f"{tmp_path}/none"
    )


# Following


def test_elsewhere_it_prints_what_is_new_until_the_run_has_ended(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(top.time, "sleep", waits.append)
    later = replace(SEEN, progress=replace(NOW, epoch=63))
    looks = iter(
        [SEEN, SEEN, replace(SEEN, age_s=1.0), later, replace(later, state=QUIET), into(whole)]
    )
    console = Console(file=io.StringIO(), width=100)
    top._show(lambda: next(looks), console, 2.5, once=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    states = re.findall(r"^(?:quickstart|pressed)\S+  (?:seed 7  )?(\w+)", text, re.MULTILINE)
    assert states == ["running", "running", "stands"] and "pressed, seed 7  done" in text
    assert waits == [2.5] * 5 and next(looks, None) is None


def test_once_is_once() -> None:
    looks = iter([SEEN])
    console = Console(file=io.StringIO(), width=80)
    top._show(lambda: next(looks), console, 1.0, once=True)
    assert console.file.getvalue().count("running") == 1  # type: ignore[attr-defined]


# Clusters


def test_of_several_runs_one_is_named() -> None:
    names = ["a-1-00", "a-1-00-2", "b-1-00"]
    assert top._chosen(names, "auto", "a-1-00") == "a-1-00"
    assert top._chosen(names, "auto", "b") == "b-1-00"
    assert top._chosen(["b-1-00"], "auto", None) == "b-1-00"
    for run, words in ((None, "3 runs go on at auto; name one"), ("a", "'a' is not one of")):
        with pytest.raises(top.ClusterError, match=words) as caught:
            top._chosen(names, "auto", run)
        assert str(caught.value).endswith("a-1-00, a-1-00-2, b-1-00")
    with pytest.raises(top.ClusterError, match="no run goes on at auto"):
        top._chosen([], "auto", None)


def test_a_head_that_does_not_answer_is_told() -> None:
    found = command("127.0.0.1:1", code=1).stderr
    assert found.startswith("esxsim: no Ray cluster at 127.0.0.1:1: nothing answers")


@pytest.mark.parametrize("where", ["http://head:8265", "ray://head:10001"])
def test_only_a_head_can_be_asked(where: str) -> None:
    found = command(where, code=2).stderr
    assert found.startswith(f"esxsim: ADDRESS|DIR: {where!r} must be the folder of a run, auto")


# Real runs


@contextmanager
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run in a process of its own that would take for ever, and its folder."""
    path = write(folder, PRESSED | {"duration": "3650 d"}, "long.yaml")
    with subprocess.Popen(
        [*MAIN, "run", str(path), "--local", "--out", str(folder / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "VMs" in line)
        try:
            yield process, folder / "out"
        finally:
            process.kill()


def read_until(terminal: int, words: bytes) -> bytes:
    """What a terminal showed until these words, for a minute at most."""
    shown = b""
    while words not in shown:
        assert select.select([terminal], [], [], 60)[0], shown
        shown += os.read(terminal, 1 << 16)
    return shown


def test_on_a_terminal_it_follows_the_run_until_ctrl_c_and_sees_it_killed(tmp_path: Path) -> None:
    with running(tmp_path) as (process, out):
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with subprocess.Popen(
            [*MAIN, "top", str(out), "--interval", "0.1"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm-256color"},
            start_new_session=True,
        ) as watching:
            os.close(theirs)
            first = read_until(ours, b"Slowest VMs")
            assert b"\x1b[?1049h" in first and b"running" in first  # a screen of its own
            process.kill()
            process.wait()
            read_until(ours, b"gone since")
            watching.send_signal(signal.SIGINT)
            read_until(ours, b"\x1b[?1049l")
            assert watching.wait(60) == 0
        os.close(ours)
        assert "Slowest VMs" in command(out, "--once").stdout
