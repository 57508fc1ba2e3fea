"""`esxsim capacity`: how much of a scenario fits, found by bisection over seeds.

The first seed is searched from the scenario as it stands; the others, all at the same time, from
what the first one found. Runs are kept as those of a sweep, so that a search that was stopped, or
is made again with another goal, runs only what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.errors import StudyError
from cluster.execute import check_reachable
from cluster.files import write_json, write_table, write_text
from cluster.log import LOG
from cluster.population import populate
from cluster.scenario import Scenario
from cluster.stopping import Stop
from cluster.studies import binding, jobs, pages, scales, store, watching
from cluster.studies.figures import REFUSED_BY, numbers
from cluster.studies.jobs import DONE, Job, Runner
from cluster.studies.scales import Kind, Scale
from cluster.studies.search import Loads, knee_of, next_loads, probes
from cluster.studies.slo import Slo, parse
from cluster.studies.store import Store
from cluster.studies.sweep import Options, default_out, fits_here, runner
from cluster.studies.sweep_file import Base, read_base
from cluster.studies.verdict import Answer, Facts, answer, knees_of, sentence
from cluster.yaml_input import InputError, Problem

SCHEMA = 1
LIMITED = f"{REFUSED_BY}no host is within the memory overcommit limit"
"""Refusals that a search for overcommit makes on purpose: VMs are offered up to its limit."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a search."""

    seed: int
    load: int
    holds: bool
    why: tuple[str, ...]
    """What did not hold."""
    folder: str
    digest: str
    numbers: Mapping[str, float]


@dataclass(slots=True)
class Search:
    """A search as it goes on: what is asked, and every trial so far by seed and load."""

    base: Base
    scale: Scale
    slos: Sequence[Slo]
    runs: Store
    watch: watching.Watch
    trials: dict[tuple[int, int], Trial] = field(default_factory=dict)
    asked: int = 0

    @property
    def expected(self) -> tuple[str, ...]:
        """Refusals that say nothing of what fits."""
        limited = self.scale.kind == "overcommit"
        return (binding.OVERSIZED, LIMITED) if limited else (binding.OVERSIZED,)

    def held(self, seed: int) -> dict[int, bool]:
        """Load -> whether it held, of one seed, by load."""
        return {load: trial.holds for (s, load), trial in sorted(self.trials.items()) if s == seed}

    def job(self, seed: int, load: int) -> Job:
        """The run of a load. Raises ScenarioError."""
        level = self.scale.level(load)
        changes, about = self.scale.changes(level), self.scale.words(level)
        digest = self.base.load(changes, seed).digest
        name = store.run_name(about, seed, digest)
        return Job(f"{about}, seed {seed}", name, changes, seed, digest)

    def run(self, wanted: Sequence[tuple[int, int]], some: Runner) -> None:
        """Try loads, (seed, load) each. Raises StoppedError, and StudyError for a failed run."""
        made = {at: self.job(*at) for at in wanted}
        asked = {job.digest: job for job in made.values()}
        missing = [job for digest, job in asked.items() if self.runs.report(digest) is None]
        self.asked += len(missing)
        self.watch.expect(self.asked)
        done = 0
        for result in some.run(missing):
            if result.status != DONE:
                raise StudyError(f"{result.job.words} failed: {result.reason}")
            done += 1
            self.watch.done(result.job.words)
        if done < len(missing):
            raise jobs.stopped(f"what was tried is in {self.runs.out}")
        for (seed, load), job in made.items():
            self.trials[seed, load] = self._trial(seed, load, job)

    def _trial(self, seed: int, load: int, job: Job) -> Trial:
        report = self.runs.report(job.digest)
        assert report is not None, f"{job.folder} was run"
        found = numbers(report)
        why = [slo.measured(found) for slo in self.slos if not slo.holds(found)]
        refused = int(found["vms.refused"] - sum(found.get(name, 0) for name in self.expected))
        if refused:
            why.insert(0, f"{refused} VM{'s' * (refused > 1)} refused")
        folder = str(self.runs.folder(job.digest))
        digest = str(report["digest"])
        return Trial(seed, load, not why, tuple(why), folder, digest, found)


def search(one: Search, seeds: Sequence[int], some: Runner) -> None:
    """Try until every seed's knee is known. `one` has all trials."""
    first, loads = seeds[0], one.scale.loads()
    _settle(one, {first: loads}, some, some.width)
    while wanted := probes(one.held(first), loads):
        one.run([(first, load) for load in wanted], some)
        _settle(one, {first: loads}, some, some.width)
    after = loads.from_knee(knee_of(one.held(first)))
    _settle(one, dict.fromkeys(seeds[1:], after), some, 1)


def _settle(one: Search, where: Mapping[int, Loads], some: Runner, width: int) -> None:
    """Try all seeds' next loads at the same time, until none has any."""

    def wanted() -> list[tuple[int, int]]:
        return [
            (seed, load)
            for seed, loads in where.items()
            for load in next_loads(one.held(seed), loads, width)
        ]

    while asked := wanted():
        one.run(asked, some)


def run(
    options: Options, kind: Kind, goals: Sequence[str], n_seeds: int
) -> tuple[dict[str, Any], Path]:
    """Search. Returns all of capacity.json, and the folder.

    Raises the errors that `cluster.errors` knows.
    """
    slos = parse(goals)
    stop = Stop(jobs.NOT_BEGUN)
    with stop.listening():
        base, sweep = read_base(options.scenario, options.data_root)
        if sweep is not None:
            why = "is not for a search: capacity says what varies"
            raise InputError(str(options.scenario), [Problem("sweep", None, "", why)])
        seed = base.seed if options.seed is None else options.seed
        loaded = base.load((), seed)
        fits_here(options.address)(loaded)
        for warning in loaded.warnings:
            LOG.warning("%s", warning)
        scale = scales.scale_of(kind, loaded, populate(loaded), str(options.scenario))
        seeds = range(seed, seed + n_seeds)
        out = options.out or default_out(loaded.scenario.name, seed)
        store.check_free(out)
        check_reachable(options.address)
        with store.opened(out) as runs, watching.shown() as watch:
            write_text(out / "scenario.yaml", base.document.text)
            one = Search(base, scale, slos, runs, watch)
            with runner(options.address, base, runs, stop, watch) as some:
                search(one, seeds, some)
            found = concluded(one, loaded.scenario, seeds)
            write(found, out)
            pages.build(out)
    return found, out


def concluded(one: Search, scenario: Scenario, seeds: Sequence[int]) -> dict[str, Any]:
    """All of capacity.json."""
    scale = one.scale
    tried = {seed: one.held(seed) for seed in seeds}
    said = answer(tried)
    bound: dict[str, Any] = {"binds": None, "next": None}
    if said.first is not None:
        failed = one.trials[said.first]
        as_run = one.base.load(scale.changes(scale.level(failed.load)), failed.seed).scenario
        busy = binding.device_busy(one.runs.out / failed.folder, as_run)
        seen = {name: n for name, n in failed.numbers.items() if name not in one.expected}
        bound = binding.told(binding.bounds(seen, busy))
    facts = _facts(one, scenario, said, len(seeds))
    knees = {
        str(seed): {"holds": _level(scale, knee.holds), "fails": _level(scale, knee.fails)}
        for seed, knee in knees_of(tried).items()
    }
    return {
        "schema": SCHEMA,
        "name": scenario.name,
        "question": scenario.question,
        "sentence": sentence(facts, bound),
        "vary": scale.kind,
        "goals": [{"text": slo.text, "path": slo.path, "bound": slo.bound} for slo in one.slos],
        "seeds": list(seeds),
        "level": facts.level,
        "interval": [facts.least, facts.most],
        "at_end": said.at_end,
        "knees": knees,
        **bound,
        "first": None if said.first is None else [said.first[0], scale.level(said.first[1])],
        "violations": [
            {"seed": seed, "level": scale.level(load)} for seed, load in said.violations
        ],
        "trials": [
            {
                "seed": trial.seed,
                "level": scale.level(trial.load),
                "holds": trial.holds,
                "why": list(trial.why),
                "folder": trial.folder,
                "digest": trial.digest,
                "numbers": dict(trial.numbers),
            }
            for _, trial in sorted(one.trials.items())
        ],
    }


def _level(scale: Scale, load: int | None) -> int | None:
    return None if load is None else scale.level(load)


def _facts(one: Search, scenario: Scenario, said: Answer, n_seeds: int) -> Facts:
    scale = one.scale
    ends = sorted(scale.level(load) for load in (said.least, said.most) if load is not None)
    at = [trial for (_, load), trial in sorted(one.trials.items()) if load == said.holds]
    level = _level(scale, said.holds)
    hosts = sum(group.count for group in scenario.hosts)
    return Facts(
        kind=scale.kind,
        level=level,
        least=ends[0] if ends else None,
        most=ends[-1] if ends else None,
        seeds=n_seeds,
        hosts=level if scale.kind == "hosts" and level is not None else hosts,
        vms=fmean(trial.numbers["vms.placed"] for trial in at) if at else 0.0,
        each=_mean(at, "consolidation.vms_per_host_mean"),
        overcommit=_mean(at, "consolidation.overcommit_peak"),
        slos=[slo.text for slo in one.slos],
        oversized=max((int(one.numbers.get(binding.OVERSIZED, 0)) for one in at), default=0),
        open_end=said.open_end,
        at_end=said.at_end,
        why_end=scale.why_high if scale.kind != "hosts" else "there must be a host in each group",
        lowest=scale.high if scale.kind == "hosts" else scale.low,
    )


def _mean(trials: Sequence[Trial], path: str) -> float | None:
    known = [trial.numbers[path] for trial in trials if path in trial.numbers]
    return fmean(known) if known else None


def write(found: Mapping[str, Any], out: Path) -> None:
    """capacity.json, and its trials as a table."""
    from cluster.studies.results import column

    trials = found["trials"]
    names = list(dict.fromkeys(name for trial in trials for name in trial["numbers"]))
    columns: dict[str, Any] = {
        key: column([trial[key] for trial in trials]) for key in ("seed", "level")
    }
    columns["holds"] = ["yes" if trial["holds"] else "no" for trial in trials]
    columns["why"] = ["; ".join(trial["why"]) for trial in trials]
    for name in ("folder", "digest"):
        columns[name] = [trial[name] for trial in trials]
    for name in names:
        columns[name] = column([trial["numbers"].get(name) for trial in trials])
    write_json(out / "capacity.json", found)
    write_table(out / "capacity.parquet", columns)
