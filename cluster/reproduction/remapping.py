"""Hot I/O page remapping: copies saved, and what scarce low memory makes of it [P 7].

Where low memory has room for a part of the transmit set, two readings of "a quarter of it" differ:
by rank a quarter of the pages draws most transmissions, and a few pages draw a quarter of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.reproduction.claims import Claim, Observation, band
from cluster.reproduction.experiment import (
    COLOURS,
    Experiment,
    Panel,
    mean_curve,
    plain_numbers,
)
from cluster.reproduction.lab import Lab, Series

VICTIMS = ("free", "random")
"""Into free low memory only, or in exchange for a random page as well."""
SETTLED_MIN = 10


def observe(lab: Lab, seed: int) -> Observation:
    """How many times fewer pages each host copied than the one that moves none."""
    run = lab.run("remap", seed)
    hosts = {host.name: run.host(host.host) for host in run.population.hosts}
    never = hosts["all-never"]

    def fall(name: str, since_min: float) -> float:
        before, after = (
            one.between(since_min, np.inf).total("copied_pages") for one in (never, hosts[name])
        )
        return before / max(after, 1.0)

    values = {}
    for victims in VICTIMS:
        values[f"R1.{victims}"] = fall(f"all-{victims}", 0)
        values[f"R2.pages.{victims}"] = fall(f"quarter-{victims}", SETTLED_MIN)
        values[f"R2.transmits.{victims}"] = fall(f"busiest-{victims}", SETTLED_MIN)
    return Observation(values, {name: _rate(host) for name, host in hosts.items()})


def _rate(host: Series) -> tuple[Any, Any]:
    """Pages copied a second, over time; at least one, for a logarithmic axis."""
    return host.minutes, np.maximum(host.rows["copied_pages"] / (60 * host.epoch_min), 0.1)


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """Copies a second over time, one line per host."""
    names = {
        "all-never": "never moved",
        "busiest-free": "room for a quarter of the transmissions",
        "quarter-random": "room for a quarter of the pages, random victims",
        "quarter-free": "room for a quarter of the pages",
        "all-free": "room for all",
    }
    for (name, words), colour in zip(names.items(), COLOURS, strict=False):
        axes.plot(*mean_curve(seen, name), color=colour, label=words)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.set_xlabel("minutes")
    axes.set_ylabel("pages copied a second")
    axes.legend(frameon=False, fontsize="small")


def _claims(victims: str) -> tuple[Claim, ...]:
    words = {"free": "", "random": ", with random victims"}[victims]
    return (
        band(
            f"R1.{victims}",
            f"copies fall while low memory holds the transmit set{words}",
            "[P 7]",
            "orders of magnitude",
            100,
            np.inf,
            "times",
        ),
        band(
            f"R2.pages.{victims}",
            f"they fall while it has room for a quarter of the set's pages{words}",
            "[P 7: low memory is scarce]",
            "less than twice",
            1,
            2,
            "times",
        ),
        band(
            f"R2.transmits.{victims}",
            f"they fall while it has room for what draws a quarter of the transmissions{words}",
            "[P 7: low memory is scarce]",
            "less than twice",
            1,
            2,
            "times",
        ),
    )


EXPERIMENT = Experiment(
    name="remap",
    title="Hot I/O page remapping",
    question="What does moving hot pages to low memory save, with room for all or for few of them?",
    observe=observe,
    claims=_claims("free") + _claims("random"),
    panels=(Panel("remap", "Pages copied a second over time, by room in low memory", paint),),
)
