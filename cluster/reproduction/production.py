"""Figure 5: what production guests share, and how much of it is reclaimed [P 4.3].

The paper says how many guests each site has, their memory in all, what they run and how much they
share. From that, and from what figure 4's fit says of a Linux guest's system, follows what is
reclaimed: a system of 27 MB is common to all guests of a site, and what they share beyond it is
applications, common to those that run the same. Guests are dealt out evenly to the applications
that the paper names; how large these are is calibrated on the part of memory that is shared, by
tests/sharing_forms.py. Nothing is fitted to what is reclaimed.

Sites B and C come out as in the paper. Site A does not: its guests run Windows NT, whose system is
taken to be as large as Red Hat's for want of anything better, and so too much of what they share is
held by two guests only. Five Windows guests of figure 8 save 200 MB, as if they had 51 MB each in
common; with so much in A's guests 31 % would be reclaimed. Zero pages are those of figure 4, too,
where guests have 40 MB: larger guests have more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.reproduction.claims import Claim, Observation, within
from cluster.reproduction.experiment import COLOURS, Experiment, Panel, mean_curve
from cluster.reproduction.lab import Lab
from cluster.reproduction.paper import table

FIGURE = table("fig5_production_sharing")
SITES = FIGURE.columns["load"]
TOTAL, SHARED, RECLAIMED, ZERO = (
    np.array(FIGURE.numbers(f"{name}_mb"))
    for name in ("total", "shared", "reclaimed", "zero_reclaimed")
)
PAPER = {"shared": 100 * SHARED / TOTAL, "reclaimed": 100 * RECLAIMED / TOTAL}
COLUMNS = {"shared": "shared", "reclaimed": "shared_saved"}


def observe(lab: Lab, seed: int) -> Observation:
    """The three sites, each on its host, once all their memory has been scanned many times."""
    run = lab.run("fig5", seed)
    values: dict[str, float] = {}
    percent: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for at, site in enumerate(SITES):
        last = run.host(at).rows[-1]
        for name, column in COLUMNS.items():
            part = 100 * float(last[f"{column}_pages"] / last["configured_pages"])
            values[f"D8.{site}.{name}"] = part
            percent[name].append(part)
        values[f"D8.{site}.ratio"] = float(last["shared_saved_pages"] / last["shared_pages"])
        if np.isfinite(ZERO[at]):
            values[f"D8.{site}.zero"] = run.host(at).mib("zero_saved")[-1]
    places = np.arange(len(SITES))
    return Observation(values, {name: (places, found) for name, found in percent.items()})


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """Parts of each site's memory: the paper's as bars, ours as points."""
    for (name, paper), colour, aside in zip(PAPER.items(), COLOURS, (-0.2, 0.2), strict=False):
        places, ours = mean_curve(seen, name)
        axes.bar(places + aside, paper, 0.38, color=colour, alpha=0.35)
        axes.plot(places + aside, ours, "o", color=colour, label=name)
    axes.set_xticks(range(len(SITES)), [f"site {site}" for site in SITES])
    axes.set_ylabel("% of memory")
    axes.set_ylim(0)
    axes.legend(frameon=False)


_P = "[P 4.3, Fig 5]"


def _claims(at: int, site: str) -> tuple[Claim, ...]:
    """One site's. A ratio 0.05 off is 2 % of A's memory, as the claim on what is reclaimed."""
    of = f"of the {FIGURE.columns['guests'][at]} guests' memory"
    shared, reclaimed = (round(float(PAPER[name][at]), 1) for name in PAPER)
    ratio = round(float(RECLAIMED[at] / SHARED[at]), 3)
    claims = [
        within(f"D8.{site}.shared", f"shared {of}", _P, shared, 0.5, "%", calibrated=True),
        within(f"D8.{site}.reclaimed", f"reclaimed {of}", _P, reclaimed, 2, "%"),
        within(f"D8.{site}.ratio", f"reclaimed of what {site} shares", _P, ratio, 0.05, ""),
    ]
    if np.isfinite(ZERO[at]):
        points = round(0.02 * float(TOTAL[at]), 1)
        words = f"zero pages reclaimed in {site}"
        claims.append(within(f"D8.{site}.zero", words, _P, float(ZERO[at]), points, "MB"))
    return tuple(claims)


EXPERIMENT = Experiment(
    name="fig5",
    title="Figure 5: production guests",
    question="How much of what production guests share is reclaimed, if one knows what they run?",
    observe=observe,
    claims=tuple(claim for at, site in enumerate(SITES) for claim in _claims(at, site)),
    panels=(Panel("fig5", "memory shared and reclaimed at three production sites", paint),),
)
