"""Figure 2: ballooning against booting with less memory, and against host swap [P 3.2]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.reproduction.claims import Observation, band, exactly, relative
from cluster.reproduction.experiment import COLOURS, Experiment, Panel, mean_curve
from cluster.reproduction.lab import Lab, room_for
from cluster.reproduction.paper import table

FIGURE = table("fig2_balloon_dbench")
SIZES = [int(size) for size in FIGURE.numbers("memory_mb")]
NATIVE = FIGURE.numbers("native_mb_per_s")
BALLOONED = FIGURE.numbers("ballooned_mb_per_s")
FULL = 256
WARM_MIN = 4.0
"""Minutes until caches are full and balloons where they should be."""


def _swapped(lab: Lab, seed: int, ballooned: Sequence[float]) -> dict[str, float]:
    """No driver, on hosts that have room for so much: nothing but paging is left.

    Throughput of paging is in parts of that of ballooning.
    """
    values = {}
    for size, rate in zip(SIZES[:-1], ballooned, strict=True):
        run = lab.run("fig2", seed, {**room_for(size), "vms.0.balloon": "absent"})
        values[f"C3.{size}"] = run.vm("vm").between(WARM_MIN, 12).throughput() / rate
        values[f"C3.double.{size}"] = run.host().total("double_paging_pages")
    return values


def _latency_s(lab: Lab, seed: int) -> float:
    """Seconds from a lower limit to the first ballooned page."""
    event = {"at": "60 s", "target": "vm", "action": "set", "values": {"limit": "160 MiB"}}
    changes = {"duration": "90 s", "epoch": "100 ms", "tick": "100 ms", "events": [event]}
    vm = lab.run("fig2", seed, changes).vm("vm")
    return 60 * vm.first("ballooned", 1.0, lambda mb: mb > 0)


def observe(lab: Lab, seed: int) -> Observation:
    """Throughput at every size: native, ballooned to it, paged to it by the host."""
    values: dict[str, float] = {}
    native, ballooned = [], []
    for size in SIZES:
        run = lab.run("fig2", seed, {"vms.0.memory": f"{size} MiB"})
        native.append(run.vm("vm").between(WARM_MIN, 12).throughput())
        values[f"C1.{size}"] = native[-1]
    for size in SIZES[:-1]:
        run = lab.run("fig2", seed, {"vms.0.limit": f"{size} MiB"})
        ballooned.append(run.vm("vm").between(WARM_MIN, 12).throughput())
        values[f"C3.balloon.{size}"] = run.host().total("double_paging_pages")
        values[f"C2.{size}"] = 100 * (1 - ballooned[-1] / native[SIZES.index(size)])
    values |= _swapped(lab, seed, ballooned)
    values["C5"] = _latency_s(lab, seed)
    values["C2.mean"] = float(np.mean([values[f"C2.{size}"] for size in SIZES[:-1]]))
    return Observation(values, {"native": (SIZES, native), "ballooned": (SIZES[:-1], ballooned)})


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """Throughput against memory."""
    axes.plot(SIZES, NATIVE, "o", color=COLOURS[0], alpha=0.4, label="paper, native")
    axes.plot(SIZES, BALLOONED, "s", color=COLOURS[1], alpha=0.4, label="paper, ballooned")
    for name, colour in zip(("native", "ballooned"), COLOURS, strict=False):
        axes.plot(*mean_curve(seen, name), color=colour, label=name)
    axes.set_xlabel("memory, MB")
    axes.set_ylabel("dbench, MB/s")
    axes.set_ylim(0)
    axes.legend(frameon=False)


_P = "[P 3.2, Fig 2]"
CLAIMS = (
    *(
        relative(
            f"C1.{size}", f"native throughput at {size} MB", _P, rate, 0.02, "MB/s", calibrated=True
        )
        for size, rate in zip(SIZES, NATIVE, strict=True)
    ),
    *(
        band(
            f"C2.{size}",
            f"overhead of ballooning from {FULL} to {size} MB",
            _P,
            f"{100 * (1 - slow / fast):.1f} %",
            0.5,
            5,
            "%",
        )
        for size, fast, slow in zip(SIZES[:-1], NATIVE[:-1], BALLOONED[:-1], strict=True)
    ),
    band("C2.mean", "mean of these overheads", _P, "2.4 %", 1.4, 3.4, "%"),
    *(
        claim
        for size in SIZES[:-1]
        for claim in (
            band(
                f"C3.{size}",
                f"throughput when the host pages to {size} MB, in parts of ballooning's",
                "[P 3.1, 3.2]",
                "clearly worse",
                0,
                0.8,
                "",
            ),
            band(
                f"C3.double.{size}",
                f"pages paged twice when the host pages to {size} MB",
                "[P 3.1]",
                "above 0",
                1,
                np.inf,
                "pages",
                every_seed=True,
            ),
            exactly(
                f"C3.balloon.{size}",
                f"pages paged twice when a balloon takes the VM to {size} MB",
                "[P 3.1]",
                0,
                "pages",
            ),
        )
    ),
    band(
        "C5",
        "from a new target to the first page ballooned",
        "[P 3.2]",
        "0 to 1 s: polled once a second",
        0,
        1.1,
        "s",
        every_seed=True,
    ),
)

EXPERIMENT = Experiment(
    name="fig2",
    title="Figure 2: ballooning",
    question="How fast is dbench in a VM ballooned down from 256 MB, against one booted with less?",
    observe=observe,
    claims=CLAIMS,
    panels=(Panel("fig2", "dbench throughput against memory, native and ballooned", paint),),
)
