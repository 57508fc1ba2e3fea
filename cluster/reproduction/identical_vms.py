"""Figure 4: what identical VMs share, how fast the scan finds it, and what it costs [P 4.3].

The image's composition is fitted to the figure's N = 1, 2 and 10 alone: least squares over their
claims D1 to D5, each in units of its tolerance, on the closed forms in tests/sharing_forms.py. Per
VM of 39.1 MB: zero pages 6.4 %, contents of the image 39.7 %, and 22.4 % drawn from a pool of 13.9
MB, which stands for what only some of the VMs have in memory at one time. N = 3 to 9 follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.reproduction.claims import Claim, Observation, band, exactly, relative, within
from cluster.reproduction.experiment import COLOURS, Experiment, Panel, compare, mean_curve
from cluster.reproduction.lab import Changes, Lab, Run, Series
from cluster.reproduction.paper import table
from hostsim.units import PAGE_SIZE

FIGURE = table("fig4_identical_vms")
COUNTS = [int(n) for n in FIGURE.numbers("n_vms")]
FITTED = (1, 2, 10)
SLOPES = {"shared": 26.8, "shared_saved": 25.7, "zero_saved": 2.4}
"""MB per VM, from N = 2 to 10."""
COLUMNS = {
    "shared": "shared_cow_mb",
    "shared_saved": "reclaimed_mb",
    "zero_saved": "zero_pages_mb",
}
"""Columns of a host's rows -> of the figure."""
WORDS = {"shared": "shared", "shared_saved": "reclaimed", "zero_saved": "zero pages reclaimed"}
PAPER = {name: np.array(FIGURE.numbers(column)) for name, column in COLUMNS.items()}
PAPER_PERCENT = {
    name: 100 * mb / np.array(FIGURE.numbers("vm_memory_mb")) for name, mb in PAPER.items()
}
WORKS_MIN = 3.0, 10.0
"""Minutes between which throughput is measured: the guests of all runs have booted."""

ALL_ZERO: Changes = {
    "images.0": {
        "name": "redhat72",
        "boot": "1 s",
        "footprint": "40 MiB",
        "content": {"kernel": {"zero": "100 %"}},
    }
}
"""Pages that all match: what is shared is what was scanned, but for one page."""
NOT_SHARING: Changes = {"duration": "10 min", "hosts.0.sharing.enabled": False}
SCANNED_THROUGH: Changes = {
    "duration": "4 min",
    "hosts.0.sharing.scan_pages_per_s_vm": 1000,
    "hosts.0.sharing.scan_pages_per_s_total": 10_000,
    "hosts.0.sharing.salting": "vm",
}


def _percent(run: Run, name: str) -> float:
    """A column of the host, at the end, of its VMs' allocated memory."""
    last = run.host().rows[-1]
    return 100 * float(last[f"{name}_pages"] / last["allocated_pages"])


def _amiss(run: Run) -> float:
    """Pages by which shared - reclaimed ever differed from the distinct shared frames, counted as
    frames in use less those of pages that are not shared."""
    rows = run.host().rows
    machine = run.loaded.scenario.hosts[0].memory // PAGE_SIZE
    frames = machine - rows["overhead_pages"] - rows["free_pages"]
    distinct = frames - (rows["allocated_pages"] - rows["shared_pages"])
    return float(np.abs(rows["shared_pages"] - rows["shared_saved_pages"] - distinct).max())


def _touches(run: Run) -> float:
    """Work of all VMs once they have booted."""
    return Series(run.vms, run.epoch_min).between(*WORKS_MIN).total("touches")


def observe(lab: Lab, seed: int) -> Observation:
    """N = 1 to 10, each also without sharing; then the scan's progress and salting."""
    mb: dict[str, list[float]] = {name: [] for name in COLUMNS}
    values: dict[str, float] = {}
    gains, amiss = [], []
    for n in COUNTS:
        run = lab.run("fig4", seed, {"vms.0.count": n})
        last = run.host().between(30, 31)
        for name, curve in mb.items():
            curve.append(last.mean(name))
        values[f"D2.{n}"] = _percent(run, "shared")
        values[f"D3.{n}"] = _percent(run, "shared_saved")
        values[f"D5.{n}"] = mb["shared"][-1] - mb["shared_saved"][-1]
        amiss.append(_amiss(run))
        off = lab.run("fig4", seed, {**NOT_SHARING, "vms.0.count": n})
        gains.append(100 * (_touches(run) / _touches(off) - 1))
    values["D1.reclaimed"] = mb["shared_saved"][0]
    values["D1.zero"] = 100 * mb["zero_saved"][0] / mb["shared_saved"][0]
    for name, curve in mb.items():
        values[f"D4.{name}"] = float(np.polyfit(COUNTS[1:], curve[1:], 1)[0])
    values |= {"D6": max(amiss), "D9.mean": float(np.mean(gains))}
    values |= {"D9.lowest": min(gains), "D9.highest": max(gains)}
    scanned = _coverage(lab, seed)
    values |= {f"D7.{minute}": float(scanned[minute - 1]) for minute in (17, 30)}
    values |= _salted(lab, seed)
    curves = {name: (COUNTS, curve) for name, curve in mb.items()}
    return Observation(values, curves | {"coverage": (np.arange(1, 32), scanned)})


def _coverage(lab: Lab, seed: int) -> Any:
    """(31,) percent of the pages of ten VMs that the scan has visited, after each minute."""
    rows = lab.run("fig4", seed, ALL_ZERO).host().rows
    return 100 * rows["shared_pages"] / rows["allocated_pages"]


def _salted(lab: Lab, seed: int) -> dict[str, float]:
    """The first VM among ten and alone, scanned through, with sharing inside VMs only."""
    among, alone = (lab.run("fig4", seed, {**SCANNED_THROUGH, "vms.0.count": n}) for n in (10, 1))
    shared = [
        float(run.vm(name).rows["shared_pages"][-1])
        for run, name in ((among, "vm-1"), (alone, "vm"))
    ]
    return {"D10.inter": shared[0] - shared[1], "D10.self": _percent(among, "shared_saved")}


def visited(minute: Any) -> Any:
    """Percent of 102 400 pages that 200 random visits a second have reached."""
    return 100 * (1 - np.exp(-np.asarray(minute) * 60 * 200 / 102_400))


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """Memory shared and reclaimed against the number of VMs."""
    for (name, paper), colour in zip(PAPER.items(), COLOURS, strict=False):
        axes.plot(COUNTS, paper, "o", color=colour, alpha=0.4, markeredgewidth=0)
        axes.plot(*mean_curve(seen, name), color=colour, label=WORDS[name])
    axes.set_xlabel("VMs")
    axes.set_ylabel("MB")
    axes.set_ylim(0)
    axes.legend(frameon=False)


def paint_coverage(axes: Any, seen: Sequence[Observation]) -> None:
    """Pages visited by the scan over time."""
    minutes = np.linspace(0, 31, 63)
    curve = mean_curve(seen, "coverage")
    compare(axes, curve, (minutes, visited(minutes)), COLOURS[0], "visited by the scan")
    axes.set_xlabel("minutes")
    axes.set_ylabel("% of pages")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, loc="lower right")


_P = "[P 4.3, Fig 4]"
_ADM = "[P 4.3, ADM2 p355]"


def _per_count() -> tuple[Claim, ...]:
    """D2, D3 and D5: what grows with N, from 2 on."""
    claims: list[Claim] = []
    for id, name, words in (("D2", "shared", "shared"), ("D3", "shared_saved", "reclaimed")):
        claims += [
            within(
                f"{id}.{n}",
                f"memory of {n} VMs that is {words}",
                _P,
                round(float(percent), 1),
                2,
                "%",
                calibrated=n in FITTED,
            )
            for n, percent in zip(COUNTS, PAPER_PERCENT[name], strict=True)
            if n > 1
        ]
    single = PAPER["shared"] - PAPER["shared_saved"]
    claims += [
        within(
            f"D5.{n}",
            f"single copies of what {n} VMs share",
            _P,
            round(float(mb), 1),
            3,
            "MB",
            calibrated=n in FITTED,
        )
        for n, mb in zip(COUNTS, single, strict=True)
        if n > 1
    ]
    return tuple(claims)


CLAIMS = (
    within("D1.reclaimed", "reclaimed of one VM", _P, 4.9, 0.5, "MB", calibrated=True),
    within("D1.zero", "part of it that is zero pages", _P, 55, 5, "%", calibrated=True),
    *(one for one in _per_count() if one.id.startswith("D2")),
    *(one for one in _per_count() if one.id.startswith("D3")),
    *(
        relative(
            f"D4.{name}",
            f"{WORDS[name]} with each VM more, fit from 2 to 10",
            _P,
            slope,
            0.05,
            "MB",
            calibrated=True,
        )
        for name, slope in SLOPES.items()
    ),
    *(one for one in _per_count() if one.id.startswith("D5")),
    exactly("D6", "shared - reclaimed, less distinct shared frames", _P, 0, "pages"),
    *(
        within(
            f"D7.{minute}",
            f"pages of 10 VMs visited in {minute} min at 200 pages/s",
            _ADM,
            round(float(visited(minute)), 1),
            1,
            "%",
        )
        for minute in (17, 30)
    ),
    band("D9.mean", "throughput with sharing against without, mean", _P, "+0.5 %", -0.5, 0.5, "%"),
    band("D9.lowest", "the same, lowest of 10", _P, "-1.6 %", -1.8, 1.8, "%", every_seed=True),
    band("D9.highest", "the same, highest of 10", _P, "+1.8 %", -1.8, 1.8, "%", every_seed=True),
    exactly(
        "D10.inter",
        "pages that a VM with a salt of its own shares among 10, less those alone",
        "[KB 2080735]",
        0,
        "pages",
    ),
    within("D10.self", "reclaimed of 10 VMs with salts of their own", _P, 12.6, 2, "%"),
)

EXPERIMENT = Experiment(
    name="fig4",
    title="Figure 4: identical VMs",
    question="How much memory do N identical VMs share, and how much of it is reclaimed?",
    observe=observe,
    claims=CLAIMS,
    panels=(
        Panel("fig4", "memory shared and reclaimed against the number of VMs", paint),
        Panel("fig4-scan", "pages visited by the scan over time", paint_coverage, height=2.8),
    ),
)
