"""Figure 6: statistical sampling of active memory, and its error [P 5.3, 5.4]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.reproduction.claims import Observation, band, relative, within
from cluster.reproduction.experiment import COLOURS, Experiment, Panel, compare, mean_curve
from cluster.reproduction.lab import Array, Lab, Series
from cluster.reproduction.paper import at, series

PAPER = series("fig6_active_memory")
VM_MB = 320
BACKGROUND_MB = 13
"""Windows' own: between the 6 and 16 MB that figure 6 shows while toucher rests."""
PERIOD_MIN = 0.5
RISES = ((8.6, 0, 50), (10.6, 50, 150), (12.6, 150, 200), (14.6, 200, 250), (21.6, 100, 200))
"""Minute, and toucher's MB before and after: steps up that start from a settled estimate."""
PLATEAUS = (
    (10.5, 50),
    (12.5, 150),
    (14.5, 200),
    (17.5, 250),
    (19.5, 200),
    (23.5, 200),
    (27.5, 150),
)
"""End of each plateau but the one of 100 MB, at whose end the paper's own estimate is 163 MB."""
EXIT_MIN = 27.6
DECAY_MB = (140.8, 108.8, 83.2, 60.8, 48.0, 38.4, 28.8, 25.6, 22.4, 16.0, 12.8)
"""The estimate's periods after toucher ended and its memory was scrubbed [Fig 6]."""
STEADY_H = 9
"""Hours of the runs with a steady active set: 1,080 periods a seed, 10,800 in all."""
FRACTIONS = (0.1, 0.5)


def _decay(vm: Series) -> Array:
    """(11,) the estimate at the end of each period after the one in which pages were scrubbed."""
    first = np.ceil(EXIT_MIN / PERIOD_MIN) * PERIOD_MIN + PERIOD_MIN
    return np.array([vm.at("active", first + PERIOD_MIN * i + 0.1) for i in range(len(DECAY_MB))])


def _steady(lab: Lab, seed: int, fraction: float) -> dict[str, float]:
    """Errors of the averages at a steady active fraction, in parts of one sample's error."""
    changes = {
        "duration": f"{STEADY_H} h",
        "epoch": "30 s",
        "workloads.0.phases": [
            {
                "duration": "24 h",
                "memory": "320 MiB",
                "active": f"{round(VM_MB * fraction)} MiB",
                "growth": "1 GiB/s",
                "touch_interval": "2 s",
                "drift": "0 %",
            }
        ],
    }
    vm = lab.run("fig6", seed, changes).vm("vm").between(30, 60 * STEADY_H)
    alloc = vm.mib("allocated")
    fast, slow = vm.mib("active_fast") / alloc, vm.mib("active_slow") / alloc
    raw = (fast[1:] - 0.25 * fast[:-1]) / 0.75
    error = np.sqrt(fraction * (1 - fraction) / 100)
    name = f"{fraction:g}"
    return {
        f"B1.raw.{name}": raw.std() / error,
        f"B1.slow.{name}": slow.std() / error,
        f"B1.fast.{name}": fast.std() / error,
        f"B1.bias.{name}": 100 * float((np.maximum(slow, fast) - fraction).mean()),
    }


def observe(lab: Lab, seed: int) -> Observation:
    """The script of figure 6 for a Windows guest and a Linux one, and two steady guests."""
    run = lab.run("fig6", seed)
    vm, host = run.vm("vm"), run.host()
    values: dict[str, float] = {}
    for minute, mb in PLATEAUS:
        values[f"B2.{minute:g}"] = vm.at("active", minute) - (mb + BACKGROUND_MB)
    values["B2.21.5"] = vm.at("active", 21.5)
    for minute, before, after in RISES:
        old, new = before + BACKGROUND_MB, after + BACKGROUND_MB
        reached = vm.at("active", minute + 10 / 60)
        values[f"B3.{minute:g}"] = reached - (0.25 * old + 0.75 * new)
        values[f"B3.95.{minute:g}"] = 60 * vm.first(
            "active", minute, lambda mb, new=new: mb >= 0.95 * new
        )
    decay = _decay(vm)
    values |= {f"B4.{i + 1}": float(mb) for i, mb in enumerate(decay)}
    above = decay - BACKGROUND_MB
    values["B5"] = float(above[4] / above[0]) ** 0.25 if above[4] > 0 else 0.0
    values["B6"] = float(vm.between(EXIT_MIN, 28.5).mib("active").max())
    linux = lab.run("fig6", seed, {"images.0.os": "linux"}).vm("vm")
    rise = linux.between(EXIT_MIN, 29).mib("active").max() - linux.at("active", EXIT_MIN)
    values["B6.linux"] = float(rise)
    values["B7"] = float(host.rows["minor_faults"].max())
    for fraction in FRACTIONS:
        values |= _steady(lab, seed, fraction)
    curves = {name: vm.curve(name) for name in ("active", "active_slow", "active_fast")}
    return Observation(values, curves | {"linux": linux.curve("active")})


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """The estimates over time, over those of the paper."""
    axes.plot(*PAPER["toucher"], color="#888888", linewidth=1, label="toucher")
    lines = (("slow", "active_slow"), ("fast", "active_fast"), ("max", "active"))
    for (paper, ours), colour in zip(lines, (COLOURS[2], COLOURS[4], COLOURS[0]), strict=True):
        compare(axes, mean_curve(seen, ours), PAPER[paper], colour, paper)
    axes.set_xlabel("minutes")
    axes.set_ylabel("MB")
    axes.set_xlim(0, 47)
    axes.set_ylim(0)
    axes.legend(frameon=False, ncols=4, fontsize="small")


_F = "[P 5.4, Fig 6]"
_D = "[P 5.3, gains derived from Fig 6]"
_SLOW, _FAST = 7**-0.5, 0.6**0.5
CLAIMS = (
    *(
        claim
        for fraction in FRACTIONS
        for claim in (
            relative(
                f"B1.raw.{fraction:g}",
                f"deviation of one sample at f = {fraction:g}, in sqrt(f (1 - f) / 100)",
                "[binomial]",
                1,
                0.05,
                "",
            ),
            relative(
                f"B1.slow.{fraction:g}",
                f"deviation of the slow average at f = {fraction:g}, in the same",
                _D,
                _SLOW,
                0.05,
                "",
            ),
            relative(
                f"B1.fast.{fraction:g}",
                f"deviation of the fast average at f = {fraction:g}, in the same",
                _D,
                _FAST,
                0.05,
                "",
            ),
            band(
                f"B1.bias.{fraction:g}",
                f"bias of the higher of both at f = {fraction:g}, in % of the VM",
                "[Monte Carlo of max(slow, fast)]",
                "0.65 to 1.08 %",
                0.4,
                1.1,
                "%",
            ),
        )
    ),
    *(
        band(
            f"B2.{minute:g}",
            f"estimate less what is touched, at the end of the plateau of {mb} MB",
            _F,
            f"{at(PAPER['max'], minute) - mb - BACKGROUND_MB:+.0f} MB",
            -8,
            25,
            "MB",
        )
        for minute, mb in PLATEAUS
    ),
    within(
        "B2.21.5",
        "estimate at the end of the plateau of 100 MB, two minutes after 200",
        _F,
        at(PAPER["max"], 21.5),
        16,
        "MB",
    ),
    *(
        claim
        for minute, before, after in RISES
        for claim in (
            band(
                f"B3.{minute:g}",
                f"10 s after the step from {before} to {after} MB: above a quarter old, three new",
                _F,
                "0 MB",
                -0.05 * VM_MB,
                np.inf,
                "MB",
            ),
            band(
                f"B3.95.{minute:g}",
                f"time to 95 % after the step from {before} to {after} MB",
                _F,
                "13 to 72 s",
                0,
                2.5 * 60 * PERIOD_MIN,
                "s",
            ),
        )
    ),
    *(
        within(f"B4.{i + 1}", f"estimate in period {i + 1} after the scrubbing", _F, mb, 10, "MB")
        for i, mb in enumerate(DECAY_MB)
    ),
    relative("B5", "decay per period of what is above the background", _D, 0.75, 0.03, ""),
    relative(
        "B6",
        "peak when Windows' zero-page thread scrubs the ended program's memory",
        _F,
        224,
        0.1,
        "MB",
    ),
    band("B6.linux", "rise at the same time in a Linux guest", "[P 5.4]", "none", -np.inf, 8, "MB"),
    band(
        "B7",
        "minor faults in a sampling period",
        "[P 5.3]",
        "at most 100",
        -np.inf,
        100,
        "faults",
        every_seed=True,
    ),
)

EXPERIMENT = Experiment(
    name="fig6",
    title="Figure 6: active memory by sampling",
    question="How fast and how well does statistical sampling follow the active memory of a guest?",
    observe=observe,
    claims=CLAIMS,
    panels=(Panel("fig6", "Active memory: what a program touches, and the estimates", paint),),
)
