"""The studies that are shipped: their files are valid, and what README says of them is so.

Each claim runs two points of a study, whole, with the first of its seeds; the numbers are our own,
as last measured (README, Studies), but for directions that the paper gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_builders import simulate
from in_process import SCENARIOS

from cluster.scenario_file import load
from cluster.studies import sweep_file

STUDIES = SCENARIOS / "studies"
FILES = sorted(path for path in STUDIES.glob("*.yaml") if path.name != "images.yaml")
WITH_TRACE = {"overcommit": None, "azure-hosts": SCENARIOS / "traces"}
"""Studies with a trace, and where it is; None: not part of the repository."""


def test_images_are_those_of_the_other_scenarios() -> None:
    """Scenarios read no file outside their folder, so there are two."""
    images = [folder / "images.yaml" for folder in (SCENARIOS, STUDIES)]
    assert images[0].read_bytes() == images[1].read_bytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_is_valid_and_asks_something(path: Path) -> None:
    text = path.read_text("utf-8")
    data = yaml.safe_load(text)
    assert data["question"].endswith("?") and data["name"] == path.stem
    assert text.startswith("# "), "says what it is"
    if path.stem in WITH_TRACE and WITH_TRACE[path.stem] is None:
        pytest.skip("its trace is not part of the repository")
    _, said = sweep_file.validate(path, WITH_TRACE.get(path.stem))
    assert said.startswith("valid: a sweep of" if "sweep" in data else "valid")


def outcome(folder: Path, study: str, **changes: Any) -> dict[str, Any]:
    """The report of a study's scenario with `changes`: places in the file, and values."""
    path = STUDIES / f"{study}.yaml"
    places = {place.replace("__", "."): value for place, value in changes.items()}
    loaded = load(path, changes={"sweep": None, **places})
    return simulate(loaded, folder / f"{study}-{len(list(folder.iterdir()))}").report


@pytest.mark.slow
def test_taxing_idle_memory_lets_busy_guests_work(tmp_path: Path) -> None:
    """[P 5.2]: idle memory is reclaimed for those who use it; default 75 %."""
    free = outcome(tmp_path, "idle-tax", hosts__0__allocation={"idle_tax": "0 %"})
    taxed = outcome(tmp_path, "idle-tax", hosts__0__allocation={"idle_tax": "75 %"})
    assert free["cost"]["slowdown"]["p95"] > 1.3
    assert taxed["cost"]["slowdown"]["p95"] < 1.05


@pytest.mark.slow
def test_balancing_ends_contention_and_most_moves_come_with_level_5(tmp_path: Path) -> None:
    found = {n: outcome(tmp_path, "balancing", balancing={"level": n}) for n in (0, 2, 5)}
    lost = {n: one["cost"]["slowdown_by_cause"]["cpu"] for n, one in found.items()}
    assert lost[2] < 0.1 * lost[0] and lost[5] < 0.1 * lost[0]
    moves = {n: one["migrations"]["count"] for n, one in found.items()}
    assert moves[0] == 0 and moves[5] > 3 * moves[2] > 0


@pytest.mark.slow
def test_a_failed_host_s_vms_are_back_after_an_epoch(tmp_path: Path) -> None:
    event = {"at": "9 h", "target": "esx-4", "action": "fail", "values": {"repair": "4 h"}}
    few = {"vms__0__count": 40, "vms__1__count": 40, "events": [event]}
    found = outcome(tmp_path, "host-failure", **few)
    restarted = found["failures"]["vms_restarted"]
    assert found["failures"]["vms_lost"] == 0 and 8 <= restarted <= 14, "a tenth of 80 VMs, or so"
    assert found["failures"]["downtime_s"] == 60 * restarted
    assert found["cost"]["slowdown"]["p95"] < 1.01


@pytest.mark.slow
def test_host_swap_alone_costs_what_the_other_mechanisms_save(tmp_path: Path) -> None:
    many = {"vms__0__count": 48, "vms__1__count": 24}
    alone = {
        "hosts__0__sharing": {"enabled": False},
        "hosts__0__allocation": {"idle_tax": "0 %"},
        "vms__0__balloon": "absent",
        "vms__1__balloon": "absent",
    }
    whole = outcome(tmp_path, "ablation", **many)["cost"]["slowdown"]["mean"]
    swap = outcome(tmp_path, "ablation", **many, **alone)["cost"]["slowdown"]["mean"]
    assert swap - 1 > 20 * (whole - 1)
