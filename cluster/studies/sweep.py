"""`esxsim run` of a scenario with a sweep: what is missing runs, and all of it becomes a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import ray_environment
from cluster.errors import StudyError
from cluster.execute import check_reachable
from cluster.files import write_text
from cluster.log import LOG
from cluster.stopping import Stop
from cluster.studies import jobs, pages, results, store, watching
from cluster.studies.jobs import DONE, Job, Runner
from cluster.studies.store import Store
from cluster.studies.sweep_file import Base, SweepPlan, load_sweep, words
from hostsim.host import warm
from hostsim.jit import is_warm

REASONS_SHOWN = 3
"""Reasons of failures that the last line tells; results.json has all."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a study."""

    scenario: Path
    out: Path | None
    address: str | None
    """As in `execute.Options`."""
    seed: int | None
    data_root: Path


def default_out(name: str, seed: int) -> Path:
    """runs/NAME-SEED-study below the current folder: all studies of a scenario share its runs."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    return Path("runs") / f"{slug}-{seed}-study"


def run(options: Options) -> tuple[dict[str, Any], Path]:
    """Run what is missing of a sweep. Returns all of results.json, and the folder.

    Raises the errors that `cluster.errors` knows: StoppedError and StudyError once what there is
    has been written.
    """
    stop = Stop(jobs.NOT_BEGUN)
    with stop.listening():
        plan = load_sweep(
            options.scenario,
            data_root=options.data_root,
            seed=options.seed,
            fits=fits_here(options.address),
        )
        for warning in plan.warnings:
            LOG.warning("%s", warning)
        out = options.out or default_out(plan.name, plan.seeds[0])
        store.check_free(out)
        check_reachable(options.address)
        with store.opened(out) as runs, watching.shown() as watch:
            write_text(out / "scenario.yaml", plan.text)
            failures = _run_missing(options, plan, runs, stop, watch)
            found = results.collect(plan, runs, failures)
            results.write(found, out)
            pages.build(out)
    return found, out


def ended(found: dict[str, Any], out: Path) -> None:
    """Raises StoppedError or StudyError where not all of the sweep is done."""
    every = [run for point in found["points"] for run in point["runs"]]
    done = sum(run["status"] == DONE for run in every)
    failed = [run for run in every if run["status"] == jobs.FAILED]
    if any(run["status"] == results.NOT_RUN for run in every):
        raise jobs.stopped(f"{done} of {len(every)} runs are in {out}")
    if failed:
        reasons = list(dict.fromkeys(run["reason"] for run in failed))
        more = f"; and {len(reasons) - REASONS_SHOWN} more" * (len(reasons) > REASONS_SHOWN)
        what = f"{len(failed)} of {len(every)} runs failed"
        raise StudyError(f"{what}: {'; '.join(reasons[:REASONS_SHOWN])}{more}")


def fits_here(address: str | None) -> Callable[[Any], object]:
    """The check of a run's size, where it is this machine that runs it."""
    return jobs.fits if address in (None, "local") else lambda loaded: None


def _run_missing(
    options: Options, plan: SweepPlan, runs: Store, stop: Stop, watch: watching.Watch
) -> dict[str, str]:
    """Runs what is not there yet. Returns why some could not be run, by scenario digest."""
    missing = list(_missing(plan, runs))
    watch.expect(len(missing))
    failures: dict[str, str] = {}
    if missing:
        with runner(options.address, plan.base, runs, stop, watch) as some:
            for result in some.run(missing):
                failed = f": {result.status}: {result.reason}" if result.reason else ""
                watch.done(f"{result.job.words}{failed}")
                if result.status != DONE:
                    failures[result.job.digest] = result.reason
    return failures


def _missing(plan: SweepPlan, runs: Store) -> Iterable[Job]:
    """Jobs of what is not done, each scenario once: all points with the first seed come first."""
    seen: dict[str, None] = {}
    for i, seed in enumerate(plan.seeds):
        for point, digests in zip(plan.points, plan.digests, strict=True):
            digest = digests[i]
            if digest in seen or runs.report(digest) is not None:
                continue
            seen[digest] = None
            about = words(plan.axes, point)
            short = ",".join(
                f"{axis.name.rpartition('.')[2]}-{label}"
                for axis, label in zip(plan.axes, point.labels, strict=True)
            )
            name = store.run_name(short, seed, digest)
            yield Job(f"{about}, seed {seed}", name, point.changes, seed, digest)


@contextmanager
def runner(
    address: str | None, base: Base, runs: Store, stop: Stop, watch: watching.Watch
) -> Iterator[Runner]:
    """What runs jobs: this process (address None), or Ray."""
    if address is None:
        with jobs.local(base, runs, stop, watch.note) as here:
            yield here
        return
    if not is_warm():  # once, before many processes would do it at the same time
        with stop.leaving():
            warm(watch.note)
    watch.note("starting Ray")
    ray_environment.prepare(own_cluster=address == "local")
    from cluster.studies import tasks  # takes a second to import, and --local does without

    with tasks.session(None if address == "local" else address, base, runs, stop) as there:
        yield there
