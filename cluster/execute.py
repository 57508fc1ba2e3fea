"""From a scenario file to a finished run: load, check that it fits, choose where, run, watch.

Everything here is about *how* a run is done; what it computes depends on the scenario alone.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from cluster import budget, charts, html, log, progress, ray_environment, tables
from cluster.coordinator import Coordinator, Outcome, Watch
from cluster.errors import ClusterError, StoppedError
from cluster.fleet import HostSet, LocalFleet, census_epochs, sketching
from cluster.live import run_id
from cluster.log import LOG
from cluster.population import Population, populate
from cluster.scenario_file import Loaded, load
from hostsim.host import warm
from hostsim.jit import is_warm

NOT_BEGUN = "stopped before the run began: nothing was written"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOCAL_PROCESSES = 1
RAY_PROCESSES = 6
"""Ray's own processes and the coordinator, beside the host actors."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a run."""

    scenario: Path
    out: Path | None
    address: str | None
    """None: in this process. `local`: a Ray cluster of our own. Else one that exists."""
    hosts_per_actor: int | None
    seed: int | None
    check: bool
    data_root: Path


class Stop:
    """Ctrl-C and SIGTERM end the command until the run begins; from then on they ask for a stop at
    the next barrier. A second one interrupts at once."""

    def __init__(self, not_begun: str = NOT_BEGUN) -> None:
        """not_begun: what is said of a stop before the run began."""
        self._not_begun = not_begun
        self._asked = threading.Event()
        self._begun = False
        self._react = self._interrupt

    def __call__(self) -> bool:
        return self._asked.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals while inside. Raises StoppedError for one before the run began."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self._begun:
                raise
            raise StoppedError(self._not_begun) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """While inside, a signal ends the process on the spot.

        For the compiler: an exception in one of its callbacks would be lost, or break it.
        """
        self._react = self._leave
        yield
        self._react = self._interrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A signal acts when this is over: what is half started cannot be taken down."""
        self._react = self._wait
        yield
        self._react = self._interrupt
        self._listen()  # again: Ray took SIGTERM for itself
        if self._asked.is_set():
            raise KeyboardInterrupt

    def begin(self) -> None:
        """The run begins: a stop now waits for a barrier, and keeps what there is."""
        self._begun = True
        self._react = self._say

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()
        self._react()

    def _interrupt(self) -> None:
        raise KeyboardInterrupt

    def _wait(self) -> None:
        pass

    def _say(self) -> None:
        LOG.info("stopping at the end of this barrier")

    def _leave(self) -> None:
        shown = "\x1b[?25h\n" if os.isatty(2) else ""  # the bar had hidden the cursor
        os.write(2, f"{shown}{log.line(self._not_begun)}\n".encode())
        os._exit(1)


def run(options: Options) -> tuple[Outcome, Path]:
    """Run a scenario. Returns how it ended, and its folder.

    Raises the errors that `cluster.errors` knows.
    """
    stop = Stop()
    with stop.listening():
        loaded = load(options.scenario, data_root=options.data_root, seed=options.seed)
        log.about(run=run_id(loaded))
        for warning in loaded.warnings:
            LOG.warning("%s", warning)
        population = populate(loaded)
        out = options.out or default_out(loaded)
        _check_beforehand(options, loaded, population, out)
        if options.address is None:
            outcome = _run_local(options, loaded, population, out, stop)
        else:
            outcome = _run_on_ray(options, loaded, population, out, stop)
        html.build(out)
    return outcome, out


def _check_beforehand(options: Options, loaded: Loaded, population: Population, out: Path) -> None:
    """What can be refused at once, before compiling and starting Ray take their time."""
    tables.check_usable(out)
    processes = LOCAL_PROCESSES
    if options.address is not None:  # how many actors `auto` makes is known once Ray runs
        hosts = len(population.hosts)
        processes = RAY_PROCESSES + -(-hosts // (options.hosts_per_actor or hosts))
    _check_memory(options, loaded, population, processes)
    if options.address not in (None, "local"):
        why = ray_environment.why_unreachable(options.address)
        if why is not None:
            raise ClusterError(f"no Ray cluster at {options.address}: {why}")


def default_out(loaded: Loaded) -> Path:
    """runs/NAME-SEED below the current folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", loaded.scenario.name).strip("-.") or "run"
    return Path("runs") / f"{name}-{loaded.scenario.seed}"


def _run_local(
    options: Options, loaded: Loaded, population: Population, out: Path, stop: Stop
) -> Outcome:
    with progress.shown(loaded.scenario) as watch:
        with stop.leaving():
            warm(watch.note)
        how_run = how(options.check, {"fleet": "local"})
        stop.begin()
        return in_process(loaded, population, out, how_run, watch, stop, check=options.check)


def in_process(
    loaded: Loaded,
    population: Population,
    out: Path,
    how_run: dict[str, Any],
    watch: Watch,
    should_stop: Callable[[], bool],
    *,
    check: bool = False,
) -> Outcome:
    """A whole run in this process, into the folder `out`; report.html is not part of it."""
    scenario = loaded.scenario
    hosts = HostSet(
        population.hosts,
        seed=scenario.seed,
        sample=scenario.fidelity.sample,
        tick_ms=scenario.tick,
        epoch_ms=scenario.epoch,
        check=check,
        census_epochs=census_epochs(scenario),
        sketching=sketching(scenario, population),
    )
    fleet = LocalFleet(hosts)
    return Coordinator(loaded, population, fleet, out, how_run, watch, should_stop).run()


def _run_on_ray(
    options: Options, loaded: Loaded, population: Population, out: Path, stop: Stop
) -> Outcome:
    scenario = loaded.scenario
    with progress.shown(scenario) as watch:
        if not is_warm():  # once, before many processes would do it at the same time
            with stop.leaving():
                warm(watch.note)
        watch.note("starting Ray")
        ray_environment.prepare(own_cluster=options.address == "local")
        from cluster import actors  # takes a second to import, and --local does without

        address = None if options.address == "local" else options.address
        with actors.session(address, stop.waiting()) as facts:
            packed = actors.pack(len(population.hosts), facts["cpus"], options.hosts_per_actor)
            n_actors = -(-len(population.hosts) // packed)
            _check_memory(options, loaded, population, RAY_PROCESSES + n_actors)
            setup = actors.HostSetup(
                population.hosts,
                scenario.seed,
                scenario.fidelity.sample,
                scenario.tick,
                scenario.epoch,
                options.check,
                census_epochs(scenario),
                sketching(scenario, population),
            )
            fleet = {"fleet": "ray", "actors": n_actors, "hosts_per_actor": packed}
            how_run = how(options.check, {**fleet, "ray_cluster": facts})
            # The coordinator needs what was decided from the files, not what they hold.
            light = replace(loaded, trace=None, trace_vms=None, hashes={})
            out = out.resolve()
            begin, draw = stop.begin, charts.prepare
            return actors.run(
                light, population, setup, packed, out, how_run, watch, begin, stop, draw
            )


def _check_memory(options: Options, loaded: Loaded, population: Population, processes: int) -> None:
    sample = loaded.scenario.fidelity.sample
    budget.check(population, sample, processes, available_bytes(), str(options.scenario))


def available_bytes() -> int:
    """Memory that this machine, or the container around us, still has."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = "".join(_lines(Path("/sys/fs/cgroup/memory.max"))).strip()
    used = "".join(_lines(Path("/sys/fs/cgroup/memory.current"))).strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def how(checked: bool, more: dict[str, Any]) -> dict[str, Any]:
    """What may differ between two equal runs, for manifest.json."""
    packages = ("esxsim", "ray", "numpy", "numba", "pyarrow", "pydantic")
    return {
        **more,
        "checked": checked,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "machine": {"architecture": platform.machine(), "cpus": os.cpu_count()},
    }
