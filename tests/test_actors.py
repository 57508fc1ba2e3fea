"""Hosts in Ray actors: nothing of it shows in a result, and nothing of it stays behind.

One Ray session for all but the tests of the command, which starts its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from cluster_builders import PRESSED, json_lines, manifest_of, pressed, restless, simulate
from processes import TOO_LONG_S, assert_gone, listening, named, processes_below
from scenario_files import write
from typer.testing import CliRunner

from cluster import ray_environment, resumption
from cluster.cli import app
from cluster.coordinator import Keep, Outcome, Progress
from cluster.errors import LostError, exit_code
from cluster.host_set import census_epochs
from cluster.population import populate
from cluster.resumption import Resumption
from cluster.scenario_file import Loaded

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        not Path("/proc/net/tcp").exists(), reason="looks at processes in Linux's /proc"
    ),
]
EQUAL = ("report.json", "events.jsonl", "hosts.parquet", "vms.parquet", "epochs.parquet")
LONG = "3650 d"


# Runs


@pytest.fixture(scope="module")
def actors() -> Iterator[ModuleType]:
    """`cluster.actors`, imported as the command does it, with a session of Ray."""
    before = dict(os.environ)
    ray_environment.prepare(own_cluster=True)
    from cluster import actors, ray_session

    with ray_session.session(None, contextlib.nullcontext()):
        yield actors
    os.environ.clear()
    os.environ.update(before)


def on_ray(
    actors: ModuleType,
    loaded: Loaded,
    out: Path,
    hosts_per_actor: int,
    watch: Callable[[Progress], None] = lambda now: None,
    should_stop: Callable[[], bool] = lambda: False,
    start: Resumption | None = None,
    every_s: float = 0.0,
) -> Outcome:
    """As the command does it."""
    scenario = loaded.scenario
    population = populate(loaded)
    setup = actors.HostSetup(
        population.hosts,
        scenario.seed,
        scenario.fidelity.sample,
        scenario.tick,
        scenario.epoch,
        True,
        census_epochs(scenario),
        off=() if start is None else start.standing.off(),
    )
    how = {"fleet": "ray"}
    keep, from_ = Keep(every_s=every_s), None if start is None else start.checkpoint
    attempt = actors.Attempt(loaded, population, setup, hosts_per_actor, out, how, keep, from_)
    outcome: Outcome = actors.run(attempt, watch, should_stop)
    return outcome


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("local")
    return simulate(restless(folder), folder / "out"), folder / "out"


@pytest.mark.parametrize(("hosts_per_actor", "n_actors"), [(1, 3), (2, 2), (3, 1)])
def test_a_run_in_actors_is_the_run_in_process(
    actors: ModuleType,
    local: tuple[Outcome, Path],
    tmp_path: Path,
    hosts_per_actor: int,
    n_actors: int,
) -> None:
    seen: set[int] = set()

    def watch(now: Progress) -> None:
        seen.update(named("ray::HostActor"))

    outcome = on_ray(actors, restless(tmp_path), tmp_path / "out", hosts_per_actor, watch)
    assert outcome == local[0] and outcome.report["migrations"]["count"] >= 3
    for name in EQUAL:
        assert (tmp_path / "out" / name).read_bytes() == (local[1] / name).read_bytes(), name
    assert len(seen) <= n_actors
    assert_gone({*seen, *named("ray::HostActor"), *named("ray::CoordinatorActor")})


def test_a_run_goes_on_with_ray_and_without(actors: ModuleType, tmp_path: Path) -> None:
    """In this process, in actors, in others, and in this process again."""
    loaded, out, seen = restless(tmp_path, duration="12 h"), tmp_path / "out", list[Progress]()
    whole = simulate(loaded, tmp_path / "whole")
    simulate(loaded, out, watch=seen.append, should_stop=lambda: len(seen) > 5, every_s=3600.0)
    begun = [len(seen)]
    for hosts_per_actor in (2, 1):
        start = resumption.find(out, loaded, populate(loaded))
        outcome = on_ray(
            *(actors, loaded, out, hosts_per_actor),
            should_stop=lambda: True,
            start=start,
            every_s=3600.0,
        )
        begun.append(start.standing.epoch)
        assert outcome.stopped  # at the first barriers
    assert begun == sorted(begun) and begun[-1] < 720
    assert simulate(loaded, out, resumes=True) == whole
    for name in EQUAL:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_that_is_stopped_keeps_what_it_has(actors: ModuleType, tmp_path: Path) -> None:
    shown: list[Progress] = []
    loaded = pressed(tmp_path, duration=LONG)
    outcome = on_ray(actors, loaded, tmp_path / "out", 2, shown.append, lambda: bool(shown))
    assert outcome.stopped and outcome.report["partial"]
    rows = pq.read_table(tmp_path / "out" / "hosts.parquet")
    assert len(rows) == 3 * outcome.report["simulated_s"] // 60
    assert outcome.report["simulated_s"] >= shown[0].epoch * 60
    assert manifest_of(tmp_path / "out")["reason"] == "the run was stopped before its end"


@pytest.mark.parametrize(
    "who", ["HostActor", pytest.param("CoordinatorActor", marks=pytest.mark.slow)]
)
def test_a_process_that_dies_leaves_the_folder_as_it_was(
    actors: ModuleType, tmp_path: Path, who: str
) -> None:
    first: list[Progress] = []

    def shoot(now: Progress) -> None:
        if not first:
            first.append(now)
            os.kill(max(named(f"ray::{who}")), signal.SIGKILL)

    loaded = pressed(tmp_path, duration=LONG)
    said = r"a process of the run was lost: \w+Actor on 127.0.0.1 died"
    with pytest.raises(LostError, match=said) as caught:
        on_ray(actors, loaded, tmp_path / "out", 1, shoot)
    assert exit_code(caught.value) == 1
    manifest = manifest_of(tmp_path / "out")
    assert manifest["partial"] is True
    assert manifest["reason"] == "the run was killed, or still goes on"
    assert json_lines(tmp_path / "out")[0]["kind"] == "power_on"
    page = CliRunner().invoke(app, ["report", str(tmp_path / "out")])
    assert page.exit_code == 0, page.output
    assert_gone({*named("ray::HostActor"), *named("ray::CoordinatorActor")})


def test_an_error_on_a_host_comes_back_as_it_was(actors: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("not a folder")
    from cluster.files import OutputError

    with pytest.raises(OutputError, match="cannot use"):
        on_ray(actors, pressed(tmp_path), out, 3)


def test_packing_follows_what_was_asked_or_the_cpus(actors: ModuleType) -> None:
    assert [actors.pack(n, 4, None) for n in (1, 8, 9, 100, 101)] == [1, 1, 3, 25, 26]
    assert actors.pack(100, 4, 7) == 7
    assert actors.pack(100, 0, None) == 100


def test_actors_go_where_cpus_are(actors: ModuleType) -> None:
    assert actors.spread([1, 1, 1], 6) == [0, 1, 2, 0, 1, 2]
    assert actors.spread([2, 1], 6) == [0, 0, 1, 0, 0, 1]
    assert actors.spread([8], 3) == [0, 0, 0]
    counts = [actors.spread([4, 16, 12], 320).count(node) for node in range(3)]
    assert counts == [40, 160, 120]


# The command


@dataclass
class Command:
    """What was seen of a run of the command until Ctrl-C, and how it ended."""

    out: Path
    processes: dict[int, str]
    listening: set[str]
    stranger: subprocess.CompletedProcess[str]
    """Tried to use its Ray with a token of his own."""
    code: int
    printed: str
    errors: str


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("command")
    path = write(folder, PRESSED | {"duration": LONG}, "long.yaml")
    main = [sys.executable, "-c", "from cluster.cli import main; main()"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [*main, "run", str(path), "--hosts-per-actor", "3", "--out", str(folder / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "VMs" in line)
        below = processes_below(process.pid)
        taken_at = listening(below)
        (address,) = set(re.findall(r"--gcs-address=(\S+)", " ".join(below.values())))
        # What ray.init does first; that goes on trying for more than a minute.
        connect = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
        stranger = subprocess.run(
            [sys.executable, "-c", connect, address],
            env=clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            capture_output=True,
            text=True,
            timeout=TOO_LONG_S,
        )
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
        printed, errors = process.communicate(timeout=TOO_LONG_S)
    code = process.returncode
    return Command(folder / "out", below, taken_at, stranger, code, printed, errors)


def test_the_command_listens_on_the_loopback_device(command: Command) -> None:
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert command.listening and command.listening <= loopback


def test_the_command_starts_no_more_of_ray_than_it_needs(command: Command) -> None:
    commands = " ".join(command.processes.values())
    for spared in ("dashboard/dashboard.py", "autoscaler/_private/monitor.py", "log_monitor.py"):
        assert spared not in commands


def test_the_command_takes_no_stranger(command: Command) -> None:
    assert command.stranger.returncode == 1
    assert "AuthenticationError" in command.stranger.stderr


def test_ctrl_c_ends_the_command_and_all_its_processes(command: Command) -> None:
    assert command.code == 1
    assert sum("ray::" in one for one in command.processes.values()) >= 2
    assert_gone(command.processes)
    last = f"esxsim: stopped before the end: partial results are in {command.out}"
    assert command.errors.splitlines()[-1] == f"{last}; --resume goes on from there"
    assert "Traceback" not in command.errors
    assert "PARTIAL: the run ended early" in command.printed
    assert manifest_of(command.out)["reason"] == "the run was stopped before its end"
    assert len(pq.read_table(command.out / "hosts.parquet")) > 0


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_while_ray_starts_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    main = [sys.executable, "-c", "from cluster.cli import main; main()"]
    path, out = write(tmp_path, PRESSED), tmp_path / "out"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [*main, "run", str(path), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean,
        start_new_session=True,
    ) as process:
        while not named("gcs_server", process.pid):
            assert process.poll() is None
        below = processes_below(process.pid)
        os.killpg(process.pid, signal.SIGINT) if number == signal.SIGINT else process.terminate()
        printed, errors = process.communicate(timeout=TOO_LONG_S)
    assert (process.returncode, printed) == (1, "")
    last = "esxsim: stopped before the run began: nothing was written"
    assert errors.splitlines() == ["esxsim: starting Ray", last]
    assert not out.exists()
    assert_gone(below)


def test_a_node_with_another_esxsim_is_refused(actors: ModuleType) -> None:
    import ray

    from cluster.errors import RefusedError
    from cluster.simulator import simulator

    actors._await_all([ray.put(("10.0.0.2", simulator()))])
    with pytest.raises(RefusedError, match=r"esxsim on node 10\.0\.0\.2 is 0\.0-x, and here"):
        actors._await_all([ray.put(("10.0.0.1", simulator())), ray.put(("10.0.0.2", "0.0-x"))])
