"""From a scenario file to a finished run: load, check that it fits, choose where, run, watch.

Everything here is about *how* a run is done; what it computes depends on the scenario alone.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster import (
    budget,
    charts,
    checkpoint,
    html,
    log,
    progress,
    ray_environment,
    recovery,
    resumption,
    tables,
)
from cluster.checkpoint import CheckpointError
from cluster.coordinator import Coordinator, Keep, Outcome, Watch
from cluster.errors import ClusterError, NoClusterError
from cluster.fleet import LocalFleet
from cluster.host_set import HostSet, census_epochs, sketching
from cluster.log import LOG
from cluster.population import Population, populate
from cluster.resumption import Resumption
from cluster.scenario_file import Loaded, load
from cluster.stopping import Stop
from cluster.watch.live import run_id
from hostsim.host import warm
from hostsim.jit import is_warm

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
    resumes: bool = False
    """Go on from the last checkpoint in `out`; wrong where there is none."""
    continues: bool = False
    """The same, or begin where there is none."""
    checkpoint_s: float = checkpoint.EVERY_S
    """Wall time from one checkpoint to the next; 0: none are made."""
    n_cpus: int | None = None
    """CPUs that the cluster's autoscaler is to bring first."""


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
        if options.resumes or options.continues:
            whole = resumption.whole_report(out, loaded)
            if whole is not None and options.resumes:
                raise CheckpointError(f"{out}: the run came to its end, there is nothing to resume")
            if whole is not None:
                if not (out / "report.html").exists():  # killed before the page was made
                    html.build(out)
                return Outcome(whole, stopped=False), out
        start = _start(options, loaded, population, out)
        _check_beforehand(options, loaded, population, out)
        job = Job(options, loaded, population, out.resolve(), stop)
        place = _run_local if options.address is None else _run_on_ray
        outcome = place(job, start)
        html.build(out)
    return outcome, out


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is to be made, and what may stop it."""

    options: Options
    loaded: Loaded
    population: Population
    out: Path
    stop: Stop


def _start(
    options: Options, loaded: Loaded, population: Population, out: Path
) -> Resumption | None:
    """Where the run goes on, None for its beginning. Raises CheckpointError."""
    has_some = checkpoint.exists(out)
    if options.resumes or (options.continues and has_some):
        found = resumption.find(out, loaded, population)
        for problem in found.problems:
            LOG.warning(f"an older checkpoint is used: {problem}")
        LOG.info(f"going on from epoch {found.standing.epoch} in {out}")
        return found
    if has_some:
        LOG.warning(f"the checkpoints of an unfinished run in {out} are replaced")
    return None


def _check_beforehand(options: Options, loaded: Loaded, population: Population, out: Path) -> None:
    """What can be refused at once, before compiling and starting Ray take their time."""
    tables.check_usable(out)
    processes = LOCAL_PROCESSES
    if options.address is not None:  # how many actors `auto` makes is known once Ray runs
        hosts = len(population.hosts)
        processes = RAY_PROCESSES + -(-hosts // (options.hosts_per_actor or hosts))
    _check_memory(options, loaded, population, processes)
    check_reachable(options.address)


def check_reachable(address: str | None) -> None:
    """Raises NoClusterError at once, where Ray would try for minutes."""
    if address not in (None, "local"):
        why = ray_environment.why_unreachable(address)
        if why is not None:
            raise NoClusterError(f"no Ray cluster at {address}: {why}")


def default_out(loaded: Loaded) -> Path:
    """runs/NAME-SEED below the current folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", loaded.scenario.name).strip("-.") or "run"
    return Path("runs") / f"{name}-{loaded.scenario.seed}"


def _run_local(job: Job, start: Resumption | None) -> Outcome:
    with progress.shown(job.loaded.scenario) as watch:
        with job.stop.leaving():
            warm(watch.note)
        how_run = how(job.options.check, {"fleet": "local"})
        job.stop.begin()
        return in_process(
            *(job.loaded, job.population, job.out, how_run, watch, job.stop),
            check=job.options.check,
            start=start,
            checkpoint_s=job.options.checkpoint_s,
        )


def in_process(
    loaded: Loaded,
    population: Population,
    out: Path,
    how_run: dict[str, Any],
    watch: Watch,
    should_stop: Callable[[], bool],
    *,
    check: bool = False,
    start: Resumption | None = None,
    checkpoint_s: float = 0.0,
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
    where = None
    if start is not None:
        where = start.standing
        hosts.restore(start.checkpoint.hosts(hosts.ids()), where.off())
    fleet, keep = LocalFleet(hosts), Keep(where, checkpoint_s)
    return Coordinator(loaded, population, fleet, out, how_run, watch, should_stop, keep).run()


def _run_on_ray(job: Job, start: Resumption | None) -> Outcome:
    """Run, and go on from the last checkpoint as often as a process is lost."""
    with progress.shown(job.loaded.scenario) as watch:
        if not is_warm():  # once, before many processes would do it at the same time
            with job.stop.leaving():
                warm(watch.note)
        watch.note("starting Ray")
        ray_environment.prepare(own_cluster=job.options.address == "local")
        try:
            if job.options.checkpoint_s == 0:
                return _attempt(job, watch, start, 0)
            return recovery.run(
                lambda start, restarts: _attempt(job, watch, start, restarts),
                start,
                lambda: resumption.find_any(job.out, job.loaded, job.population),
                LOG.warning,
            )
        except ClusterError as error:
            tables.note_reason(job.out, f"the run failed: {error}")
            raise


def _attempt(job: Job, watch: progress.Watch, start: Resumption | None, restarts: int) -> Outcome:
    """Run on a connection of its own to Ray: where a node was lost, an old one may be no good."""
    from cluster import actors, ray_session  # takes a second to import, and --local does without

    options, scenario = job.options, job.loaded.scenario
    check_reachable(options.address)
    address = None if options.address == "local" else options.address
    with (
        job.stop.listening_again(),
        ray_session.session(address, job.stop.waiting()) as facts,
        ray_session.having(options.n_cpus),
    ):
        facts |= {"cpus": ray_session.cpus()}
        packed = actors.pack(len(job.population.hosts), facts["cpus"], options.hosts_per_actor)
        n_actors = -(-len(job.population.hosts) // packed)
        if restarts == 0:  # later, what was lost may not have given its memory back yet
            _check_memory(options, job.loaded, job.population, RAY_PROCESSES + n_actors)
        off = () if start is None else start.standing.off()
        setup = actors.HostSetup(
            job.population.hosts,
            scenario.seed,
            scenario.fidelity.sample,
            scenario.tick,
            scenario.epoch,
            options.check,
            census_epochs(scenario),
            sketching(scenario, job.population),
            off,
        )
        fleet = {"fleet": "ray", "actors": n_actors, "hosts_per_actor": packed}
        attempt = actors.Attempt(
            # The coordinator needs what was decided from the files, not what they hold.
            replace(job.loaded, trace=None, trace_vms=None, hashes={}),
            job.population,
            setup,
            packed,
            job.out,
            how(options.check, {**fleet, "ray_cluster": facts}),
            Keep(every_s=options.checkpoint_s, restarts=restarts),
            None if start is None else start.checkpoint,
            job.stop.begin,
            charts.prepare,
        )
        return actors.run(attempt, watch, job.stop)


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
