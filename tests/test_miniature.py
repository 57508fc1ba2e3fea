"""Miniature simulation against exact simulation: is there a bias, and does the stated error cover?

One slot stands for k pages; the report states relative standard errors of what that makes of
shared_saved, consumed and swapped. Here the same overcommitted scenario runs exactly and in 1/16,
1/64, 1/256 and 1/1024 (of which the last leaves 64 slots to a VM).

The seed decides which slots are simulated, but phases of the guests, touches, scans, samples and
victims, too, with all pages as well. For the bias it may decide all of that. Where errors are
compared, guests start one after the other instead, so that what exact runs do by chance is small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from in_process import IMAGES, report_of

Array = npt.NDArray[np.float64]

QUANTITIES = ("shared_saved", "consumed", "swapped")
CHANCE = np.array([0.0054, 0.0039])
"""Relative standard deviation of shared_saved and consumed of exact runs in turn, 200 seeds."""


def _vm(name: str, count: int, image: str, workload: str, **options: str) -> dict[str, Any]:
    found = {"name": name, "count": count, "memory": "256 MiB", "image": image}
    return found | {"workload": workload} | options


SCENARIO: dict[str, Any] = {
    "name": "miniature",
    "duration": "6 min",
    "tick": "5 s",
    # Sampling periods end inside a step: at its very end a lost microsecond would put them off.
    "hosts": [
        {
            "name": "esx",
            "count": 3,
            "memory": "1 GiB",
            "reserve": "64 MiB",
            "sharing": {"scan_time": "4 min"},
            "sampling": {"period": "58 s"},
        }
    ],
    "images": IMAGES,
    "workloads": [
        {
            "name": "steady",
            "stagger": "4 min",
            "phases": [
                {"duration": "3 min", "memory": "70 %", "active": "30 %", "touch_interval": "10 s"},
                {"duration": "2 min", "memory": "95 %", "active": "45 %", "touch_interval": "10 s"},
            ],
        },
        {
            "name": "idle",
            "phases": [
                {"duration": "1 h", "memory": "60 %", "active": "5 %", "touch_interval": "10 s"}
            ],
        },
    ],
    "vms": [
        _vm("web", 3, "debian-web", "steady"),
        _vm("bare", 3, "debian-idle", "steady", balloon="absent"),
        _vm("py", 6, "debian-py", "idle"),
        _vm("db", 3, "debian-db", "steady"),
    ],
}


def _in_turn() -> dict[str, Any]:
    """The scenario with guests that start 10 s apart, and phases that begin when they do."""
    workloads = [{k: v for k, v in one.items() if k != "stagger"} for one in SCENARIO["workloads"]]
    vms = [one | {"interval": "10 s"} for one in SCENARIO["vms"]]
    return SCENARIO | {"workloads": workloads, "vms": vms}


class Runs:
    """Runs of one scale over seeds: means over time in GiB, and the errors that reports state.

    found, stated (n_seeds, 3) float64, by QUANTITIES.
    """

    def __init__(
        self, folder: Path, sample: int, seeds: int, scenario: dict[str, Any] = SCENARIO
    ) -> None:
        found, stated = [], []
        for seed in range(1, seeds + 1):
            data = scenario | {"seed": seed, "fidelity": {"sample": sample}}
            report = report_of(folder, data)
            found.append([report["memory_gib"][name]["mean"] for name in QUANTITIES])
            stated.append([report["error"][f"{name}_rel_std"] for name in QUANTITIES])
        self.found, self.stated = np.array(found), np.array(stated)

    def mean(self) -> Array:
        return np.array(self.found.mean(axis=0))

    def variance(self) -> Array:
        return np.array(self.found.var(axis=0, ddof=1))


def test_a_miniature_is_within_what_it_states(tmp_path: Path) -> None:
    """1/64, two seeds each: within twice the standard error, as 95 % should be, with what seeds do
    by chance; and what is about sharing and swap does happen. Two seeds say little of swapped: see
    below."""
    exact, mini = (Runs(tmp_path, sample, 2, _in_turn()) for sample in (1, 64))
    assert (exact.mean() > [0.1, 1.0, 0.05]).all()
    assert (exact.stated == 0).all()
    apart = np.abs(mini.mean() / exact.mean() - 1)
    assert (apart[:2] <= 2 * np.sqrt(mini.stated.mean(axis=0)[:2] ** 2 + CHANCE**2)).all()
    assert (mini.stated > 0).all()


@pytest.mark.slow
def test_miniatures_are_unbiased(tmp_path: Path) -> None:
    """30 seeds. No mean is further from the exact one than 2 standard errors."""
    seeds = 30
    exact = Runs(tmp_path, 1, seeds)
    for sample in (16, 64, 256):
        mini = Runs(tmp_path, sample, seeds)
        bias = (mini.mean() - exact.mean()) / exact.mean()
        error = np.sqrt((mini.variance() + exact.variance()) / seeds) / exact.mean()
        told = f"1/{sample}: bias {bias}, standard errors {error}"
        print(told)
        assert (np.abs(bias) <= 2 * error).all(), told


@pytest.mark.slow
def test_the_stated_error_covers_and_is_no_more_than_needed(tmp_path: Path) -> None:
    """60 seeds. What the variance over seeds has beyond that of exact runs is at most what is
    stated, as far as 60 seeds can tell, and for shared_saved at least a fourth of it (half of the
    error). Of the runs of a scale at least 50 % lie within one standard error, exact runs'
    included, and 86 % within two, where 68 % and 95 % are to be expected: three standard errors of
    60 draws less. README has the figures of 240 seeds.

    swapped is a small difference of large numbers, and varies by chance by 8 % in exact runs, by
    10 % in miniatures, of 1/4 as of 1/256, and is 6 % more in them: neither is sampling's, which
    would grow with k, and up to 1/64 it hides what is.
    """
    seeds, scenario = 60, _in_turn()
    exact = Runs(tmp_path, 1, seeds, scenario)
    own = exact.variance() / exact.mean() ** 2
    for sample in (16, 64, 256, 1024):
        mini = Runs(tmp_path, sample, seeds, scenario)
        variance = mini.variance() / mini.mean() ** 2
        observed = np.maximum(variance - own, 0)
        unsure = np.sqrt(2 / (seeds - 1) * (variance**2 + own**2))
        stated = (mini.stated**2).mean(axis=0)
        off = np.abs(mini.found / mini.mean() - 1) / np.sqrt(mini.stated**2 + own)
        told = f"1/{sample}: observed {np.sqrt(observed)}, stated {np.sqrt(stated)}, "
        told += f"within one {(off <= 1).mean(axis=0)}, two {(off <= 2).mean(axis=0)}"
        print(told)
        assert (observed[:2] <= stated[:2] + 2 * unsure[:2]).all(), told
        assert stated[0] <= 4 * observed[0], told
        assert ((off[:, :2] <= 1).mean(axis=0) >= 0.5).all(), told
        assert ((off <= 2).mean(axis=0) >= 0.86).all(), told
