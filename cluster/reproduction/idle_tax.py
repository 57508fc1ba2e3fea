"""Figure 7: the idle-memory tax between an idle VM and a busy one of equal shares [P 5.2, 5.4]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.reproduction.claims import Observation, band, relative
from cluster.reproduction.experiment import COLOURS, Experiment, Panel, compare, mean_curve
from cluster.reproduction.lab import Lab, Series
from cluster.reproduction.paper import series

PAPER = series("fig7_idle_tax")
START_MIN, TAX_MIN, WAKE_MIN = 5.2, 1855 / 60, 63.5
"""VM2 is powered on; the tax goes to 75 %; VM1 wakes up (after the figure's end)."""
NO_TAX, TAXED = (12.0, 30.9), (33.0, 60.0)
HALF_MB = 179.0
"""What both have without a tax, and are entitled to when both are active."""


def _time_to(vm: Series, start_min: float, goal: float) -> float:
    """Seconds from `start_min` until 95 % of the way from then to `goal` MB is gone."""
    before = vm.at("allocated", start_min)
    edge = before + 0.95 * (goal - before)
    if goal < before:
        return 60 * vm.first("allocated", start_min, lambda mb: mb <= edge)
    return 60 * vm.first("allocated", start_min, lambda mb: mb >= edge)


def observe(lab: Lab, seed: int) -> Observation:
    """The run of the figure, and a quarter of an hour more."""
    run = lab.run("fig7", seed)
    vm1, vm2 = run.vm("vm1"), run.vm("vm2")
    free, taxed = (
        [vm.between(*span).mean("allocated") for vm in (vm1, vm2)] for span in (NO_TAX, TAXED)
    )
    inflating = np.diff(vm1.mib("ballooned")) / (60 * run.epoch_min)
    values = {
        "E1.vm1": free[0],
        "E1.vm2": free[1],
        "E2": _time_to(vm1, START_MIN, 181.4),
        "E3.vm1": taxed[0],
        "E3.vm2": taxed[1],
        "E4": _time_to(vm1, TAX_MIN, taxed[0]),
        "E5": 100 * (vm2.between(*TAXED).throughput() / vm2.between(*NO_TAX).throughput() - 1),
        "E6": _time_to(vm1, WAKE_MIN, HALF_MB),
        "C4.rate": float(inflating.max()),
        "C4.time": 60 * vm1.first("ballooned", START_MIN, lambda mb: mb >= 0.95 * 77.5),
    }
    curves = {
        f"{name}_{kind}": vm.between(0 if name == "vm1" else START_MIN, 75).curve(column)
        for name, vm in (("vm1", vm1), ("vm2", vm2))
        for kind, column in (("alloc", "allocated"), ("active", "active"))
    }
    return Observation(values, curves)


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """Allocated and active memory of both VMs over time."""
    names = ("vm1_alloc", "vm1_active", "vm2_alloc", "vm2_active")
    for name, colour in zip(names, (*COLOURS[:2], *COLOURS[2:4]), strict=True):
        compare(axes, mean_curve(seen, name), PAPER[name], colour, name.replace("_", " "))
    axes.axvline(TAX_MIN, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xlabel("minutes")
    axes.set_ylabel("MB")
    axes.set_xlim(0, 75)
    axes.set_ylim(0, 330)
    axes.legend(frameon=False, ncols=4, loc="upper center", fontsize="small")


_F = "[P 5.4, Fig 7]"
CLAIMS = (
    band("C4.rate", "fastest inflation of a balloon", "[Fig 7, 8]", "4.0 MB/s", 0, 4, "MB/s"),
    band("C4.time", "time to balloon 77.5 MB", _F, "35 s", 20, 40, "s"),
    relative("E1.vm1", "idle VM without a tax", _F, 178.7, 0.01, "MB"),
    relative("E1.vm2", "busy VM without a tax", _F, 179.0, 0.01, "MB"),
    band("E2", "idle VM gives way to the new one in", _F, "25 s", 15, 50, "s"),
    band("E3.vm1", "idle VM at a tax of 75 %", _F, "101 MB", 95, 110, "MB"),
    band("E3.vm2", "busy VM at a tax of 75 %", _F, "243 MB", 235, 256, "MB"),
    band("E4", "idle VM gives up its memory after the tax in", _F, "35 s", 20, 60, "s"),
    band("E5", "dbench gains", "[P 5.4]", "30 % or more", 15, np.inf, "%"),
    band("E6", "idle VM that wakes up has its share back in", "[P 5.3]", "1 to 2 min", 0, 120, "s"),
)

EXPERIMENT = Experiment(
    name="fig7",
    title="Figure 7: idle-memory tax",
    question="How does the idle-memory tax divide memory between an idle and a busy VM?",
    observe=observe,
    claims=CLAIMS,
    panels=(
        Panel(
            "fig7",
            "Allocated and active memory of an idle and a busy VM, tax from minute 31",
            paint,
        ),
    ),
)
