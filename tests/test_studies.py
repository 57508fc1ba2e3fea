"""The studies of `esxsim reproduce`: their variants do what they say, and their claims hold."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.reproduction import command, driverless, overcommit, sharing_scope
from cluster.reproduction.claims import Observation, judge
from cluster.reproduction.experiment import Experiment
from cluster.reproduction.lab import Lab
from cluster.reproduction.page import page

REPO = Path(__file__).parents[1]
DATA = REPO.parent / "shared" / "data"
LAB = Lab(command.SCENARIOS, DATA)
SIMULATED = (overcommit.EXPERIMENT, driverless.EXPERIMENT, sharing_scope.EXPERIMENT)
STUDIES = (*SIMULATED, sharing_scope.MEASURED)


def runnable(experiment: Experiment) -> Experiment:
    """The experiment, unless its data is not here: then the test says so."""
    why = experiment.missing(LAB)
    if why is not None:
        pytest.skip(why)
    return experiment


@cache
def seen(experiment: Experiment, seed: int = 1) -> Observation:
    """What a seed gave, simulated once."""
    return experiment.observe(LAB, seed)


def ids(experiment: Experiment) -> str:
    return experiment.name


@pytest.mark.parametrize("experiment", STUDIES, ids=ids)
def test_every_claim_of_a_study_holds_at_one_seed(experiment: Experiment) -> None:
    one = seen(runnable(experiment))
    rows = [judge(claim, [one]) for claim in experiment.claims]
    assert [(row["id"], row["simulated"]["mean"]) for row in rows if not row["holds"]] == []
    assert set(one.values) == {claim.id for claim in experiment.claims}


@pytest.mark.parametrize("experiment", STUDIES, ids=ids)
def test_the_page_of_a_study_has_its_charts(experiment: Experiment) -> None:
    one = [seen(runnable(experiment))]
    rows = [judge(claim, one) for claim in experiment.claims]
    text = page([(experiment, rows, one)], {})
    assert text.count("<svg") == 2 * len(experiment.panels)
    assert all(panel.label in text for panel in experiment.panels)


@pytest.mark.parametrize("name", ["overcommit", "driverless", "sharing-scope"])
def test_scenarios_of_studies_are_valid_on_their_own(name: str) -> None:
    path = command.SCENARIOS / f"study-{name}.yaml"
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0, result.stderr


def test_sources_in_brackets_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A word in brackets is no markup of the terminal's."""
    claim = sharing_scope.MEASURED_CLAIMS[6]
    assert claim.source == "[page cache]"
    command._show([judge(claim, [Observation({claim.id: 0.3})])], {"A title": "[why]"})
    text = capsys.readouterr().out
    assert "[page cache]" in text and "[why]" in text


# What does overcommit buy?


def test_without_overcommitment_the_placement_refuses() -> None:
    _, changes = overcommit.VARIANTS["off"]
    run = LAB.run("study-overcommit", 1, {**changes, "duration": "12 min"})
    assert len(set(run.vms["vm"])) == 8
    refusals = [one for one in run.decisions if one.kind == "refused"]
    assert len(refusals) == 8


@pytest.mark.parametrize(
    ("variant", "never", "still"),
    [
        ("sharing", "shared", "ballooned"),
        ("balloon", "ballooned", "shared"),
        ("swap", "ballooned", "swapped"),
    ],
)
def test_a_mechanism_that_is_off_does_nothing(variant: str, never: str, still: str) -> None:
    _, changes = overcommit.VARIANTS[variant]
    host = LAB.run("study-overcommit", 1, {**changes, "duration": "12 min"}).host()
    assert host.mib(never).max() == 0 < host.mib(still).max()


# Can reclamation do without a driver in the guest?


def test_host_swap_reclaims_as_much_as_the_balloon() -> None:
    """160 of 256 MB are left to the guest: to the page with a balloon, and but for the memory that
    is free on the way round, a SOFT threshold of 20 MB at most, with paging."""
    left = {}
    for key, (_, changes) in driverless.VARIANTS.items():
        changes = {**changes, "duration": "6 min"}
        run = LAB.run("study-driverless", 1, changes)
        left[key] = run.vm("vm").between(4, 6).mean("allocated")
    assert left.pop("full") == 256
    assert left.pop("balloon") == 160
    assert all(160 - 1 <= mb <= 160 + 20 for mb in left.values()), left


def test_only_remedies_that_are_on_work() -> None:
    for key, names in {
        "random": (),
        "clean": ("swap_dropped",),
        "skip": ("swap_skipped",),
        "all": ("swap_dropped", "swap_skipped"),
    }.items():
        _, changes = driverless.VARIANTS[key]
        host = LAB.run("study-driverless", 1, {**changes, "duration": "6 min"}).host()
        worked = [n for n in ("swap_dropped", "swap_skipped") if host.total(f"{n}_pages") > 0]
        assert tuple(worked) == names


# Why across VMs?


def test_missing_fingerprints_are_said_to_be_missing(tmp_path: Path) -> None:
    why = sharing_scope.missing(Lab(command.SCENARIOS, tmp_path))
    assert why is not None and "kvm-fingerprints" in why


def test_two_clones_share_what_the_image_says() -> None:
    """62.0 % of debian-web's pages are the image's or its application's: of two clones half of that
    is saved, 31.0 %, and 0.1 points for duplicates inside. Within the rounding of the mix."""
    counts, across = seen(sharing_scope.EXPERIMENT).curves["none"]
    assert counts[1] == 2
    assert across[1] == pytest.approx(31.0 + 0.1, abs=0.3)
    inside = seen(sharing_scope.EXPERIMENT).curves["vm"][1]
    assert max(inside) - min(inside) < 0.05


# Everything


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SIMULATED, ids=ids)
def test_every_claim_holds_over_all_seeds(experiment: Experiment) -> None:
    observations = [seen(experiment, seed) for seed in range(1, experiment.seeds + 1)]
    rows = [judge(claim, observations) for claim in experiment.claims]
    assert [(row["id"], row["simulated"]) for row in rows if not row["holds"]] == []
