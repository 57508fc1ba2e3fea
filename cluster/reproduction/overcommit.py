"""Study: what overcommitting memory buys, and what each mechanism contributes to it.

Slowdowns are over the whole life of each VM, its boot included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.aggregate import slowdowns
from cluster.messages import CAUSES
from cluster.reproduction.claims import Claim, Observation, band, exactly
from cluster.reproduction.experiment import Experiment, Panel, bars, mean_curve, plain_numbers
from cluster.reproduction.lab import Array, Changes, Lab, Run

ABSENT = {f"vms.{group}.balloon": "absent" for group in range(3)}
NOT_FIRST = {"hosts.0.paging": {"share_first": False}}
UNSHARED = {"hosts.0.sharing": {"enabled": False}}
VARIANTS: dict[str, tuple[str, Changes]] = {
    "off": ("no overcommitment", {"placement.overcommit": 1}),
    "all": ("overcommitted, all on", {}),
    "sharing": ("no sharing", UNSHARED),
    "balloon": ("no balloons", ABSENT),
    "tax": ("no idle tax", {"hosts.0.allocation": {"idle_tax": "0 %"}}),
    "first": ("no sharing before swap", NOT_FIRST),
    "swap": ("host swap alone", {**UNSHARED, **ABSENT, **NOT_FIRST}),
}
"""What is switched off, in words and in the scenario."""
LABELS = [words for words, _ in VARIANTS.values()]
WITHOUT = {key: words for key, (words, _) in VARIANTS.items() if key not in ("off", "all")}
SETTLED_MIN = 20.0
"""Minute from which all VMs have booted and grown to what they use, where memory is not short."""
SHOWN = ("blocked", "swap_in", "guest_paging")
"""Causes of lost time in the chart; the others are next to nothing."""


def _times(run: Run, start_min: float = 0.0) -> tuple[list[str], Array, Array]:
    """Names, (vms,) ns powered on and (vms, causes) ns lost since then, of the VMs that ran."""
    rows = run.vms[(run.vms["epoch"] + 0.5) * run.epoch_min > start_min]
    ids, of_row = np.unique(rows["vm"], return_inverse=True)
    on, lost = np.zeros(len(ids), np.int64), np.zeros((len(ids), len(CAUSES)), np.int64)
    np.add.at(on, of_row, rows["on_ns"])
    np.add.at(lost, of_row, rows["lost_ns"])
    names = {vm.spec.vm: vm.spec.name for vm in run.population.vms}
    return [names[one] for one in ids], on, lost


def observe(lab: Lab, seed: int) -> Observation:
    """All variants of the scenario, over the whole life of their VMs."""
    runs = {
        key: lab.run("study-overcommit", seed, changes) for key, (_, changes) in VARIANTS.items()
    }
    slowed, lost_to, vms, kinds = {}, {}, {}, {}
    for key, run in runs.items():
        names, on, lost = _times(run)
        slowed[key], vms[key] = slowdowns(on, lost.sum(axis=1)), float(len(names))
        lost_to[key] = lost.sum(axis=0) / on.sum()
        is_idle = np.array([name.startswith("desktop") for name in names])
        is_busy = np.array([name.startswith("database") for name in names])
        kinds[key] = slowed[key][is_idle].mean(), slowed[key][is_busy].mean()
    total = {
        key: {name: run.host().total(f"swap_{name}_pages") for name in ("in", "out")}
        for key, run in runs.items()
    }
    _, on, lost = _times(runs["all"], SETTLED_MIN)
    mib = 1 / 256
    values = {
        "O1.off": vms["off"],
        "O1.on": vms["all"],
        "O2.off": float(slowed["off"].max()),
        "O2.life": float(np.median(slowed["all"])),
        "O2.settled": float(np.median(slowdowns(on, lost.sum(axis=1)))),
        **{f"O3.{key}": slowed[key].mean() / slowed["all"].mean() for key in WITHOUT},
        "O4": total["sharing"]["out"] / total["all"]["out"],
        "O5": total["balloon"]["in"] / total["all"]["in"],
        "O6.busy": kinds["tax"][1] / kinds["all"][1],
        "O6.idle": kinds["tax"][0] / kinds["all"][0],
        "O7": (total["first"]["out"] - total["all"]["out"]) * mib,
    }
    places = range(len(VARIANTS))
    curves: dict[str, Any] = {
        "median": (places, [float(np.median(one)) for one in slowed.values()]),
        "slowest": (places, [float(one.max()) for one in slowed.values()]),
        "vms": (places, list(vms.values())),
    }
    for cause in SHOWN:
        curves[cause] = places, [float(one[CAUSES.index(cause)]) for one in lost_to.values()]
    return Observation(values, curves)


def _labels(seen: Sequence[Observation]) -> list[str]:
    """Each variant and how many VMs it ran."""
    counts = mean_curve(seen, "vms")[1]
    return [f"{words}: {count:.0f} VMs" for words, count in zip(LABELS, counts, strict=True)]


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """Slowdown of the median and of the slowest VM, per variant."""
    parts = {f"{name} VM": mean_curve(seen, name)[1] for name in ("median", "slowest")}
    bars(axes, _labels(seen), parts)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.set_xlim(0.9)
    axes.set_xlabel("slowdown")


def paint_causes(axes: Any, seen: Sequence[Observation]) -> None:
    """Time lost, by cause, per variant."""
    words = {name: name.replace("_", " ") for name in SHOWN}
    parts = {words[name]: 100 * mean_curve(seen, name)[1] for name in SHOWN}
    bars(axes, _labels(seen), parts, stacked=True)
    axes.set_xlabel("% of time lost")


def _worse(id: str, claim: str, source: str, at_least: float = 1.01) -> Claim:
    """A number that is larger without a mechanism, in parts of what it is with all on."""
    expected = "above 1" if at_least < 2 else "much more"
    return band(id, f"{claim}, in parts of all on", source, expected, at_least, np.inf, "")


CLAIMS = (
    exactly("O1.off", "VMs that run, no overcommitment", "[4 GiB / 512 MiB]", 8, "VMs"),
    exactly("O1.on", "VMs that run overcommitted, of 16", "[P 6.1]", 16, "VMs"),
    band(
        "O2.off",
        "slowdown of the slowest VM, no overcommitment",
        "[P 6.1: all have their max]",
        "1",
        1,
        1.01,
        "",
        every_seed=True,
    ),
    band(
        "O2.life",
        "slowdown of the median VM overcommitted, all on, their boot included",
        "[P 6.4: hard and low at boot only]",
        "above 1",
        1,
        1.5,
        "",
    ),
    band(
        "O2.settled",
        f"slowdown of the median VM overcommitted, all on, after minute {SETTLED_MIN:.0f}",
        "[Banerjee 2013: safe while what is active fits]",
        "close to 1",
        1,
        1.1,
        "",
    ),
    *(
        _worse(f"O3.{key}", f"mean slowdown, {words}", "[P 3 to 6]")
        for key, words in WITHOUT.items()
    ),
    _worse("O4", "pages swapped out, no sharing", "[P 4.3]"),
    _worse("O5", "pages swapped in, no balloons", "[P 3.2]", 2),
    _worse("O6.busy", "slowdown of the busiest VMs, no idle tax", "[P 5.2]"),
    band(
        "O6.idle",
        "slowdown of the idle VMs, no idle tax, in parts of all on",
        "[P 5.2]",
        "below 1",
        0,
        1,
        "",
    ),
    band(
        "O7",
        "written to swap in addition, no sharing before swap",
        "[P 6.4]",
        "200 MB or more",
        200,
        np.inf,
        "MB",
    ),
)

EXPERIMENT = Experiment(
    name="overcommit",
    title="Study: what overcommitting buys",
    question="How many more VMs fit when memory is overcommitted, and what do their guests pay?",
    observe=observe,
    claims=CLAIMS,
    panels=(
        Panel("overcommit", "Slowdown of guests, with one mechanism after the other off", paint),
        Panel("overcommit-causes", "Time that guests lose, by cause", paint_causes),
    ),
)
