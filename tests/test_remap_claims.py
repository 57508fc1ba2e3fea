"""What moving hot I/O pages saves: scenarios/osdi02/remap.yaml against closed forms.

[P 7] has one number: for some workloads "several orders of magnitude" fewer copies; and it says
that low memory becomes scarce. Two claims are held here, each against a host that moves nothing.

A page of rank i is drawn with probability p_i (octaves of equal weight, about 1 / i). Where low
memory has room for m pages of the set and a page moves at its fifth copy:

`free`: the first m pages to be copied five times have low memory for ever. After t transmits page i
was drawn more than four times with P_i(t) = P(Poisson(p_i t) > 4); the m are full when the P_i sum
to m, and a part sum p_i (1 - P_i) of all transmits is copied from then on. The best m pages would
leave sum of p_i beyond rank m: for Zipf (H_n - H_m) / H_n, about ln(n / m) / (ln n + 0.58).

`random`: a page lies low until it is the random one to make way, a time of mean 5 / c in transmits,
then high until its fifth copy, 5 / p_i: so it is low for a part 1 / (1 + c / p_i) of the time, with
c such that these sum to m. A part sum p_i c / (p_i + c) = c m of all transmits is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_builders import simulate

from cluster.scenario_file import load
from hostsim.state import Array
from hostsim.units import GIB, KIB, PAGE_SIZE

SCENARIO = Path(__file__).parents[1] / "scenarios" / "osdi02" / "remap.yaml"
SET = GIB // PAGE_SIZE // 100
COPIES = 5
"""Copies after which a page moves: one more than the threshold."""
ROOM = {"quarter": 2620 * KIB // PAGE_SIZE, "busiest": 28 * KIB // PAGE_SIZE}
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 11))]

Runs = dict[str, tuple[Array, Array]]


@pytest.fixture(scope="module", params=SEEDS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Host -> pages transmitted and pages copied in each minute."""
    folder = tmp_path_factory.mktemp("run")
    simulate(load(SCENARIO, seed=request.param), folder)
    table = pq.read_table(folder / "hosts.parquet").to_pydict()
    names = np.array(table["host_name"])
    sent, copied = (np.array(table[f"{name}_bytes"]) for name in ("transmitted", "copied"))
    return {
        name: (sent[names == name] // PAGE_SIZE, copied[names == name] // PAGE_SIZE)
        for name in sorted(set(names.tolist()))
    }


def fall(runs: Runs, host: str, first_minute: int = 0) -> float:
    """How many times fewer pages were copied than on a host that moves none."""
    sent, never = runs["all-never"]
    assert (sent == never).all() and (runs[host][0] == sent).all()
    return float(never[first_minute:].sum() / runs[host][1][first_minute:].sum())


@cache
def odds() -> Array:
    """(SET,) probability of each rank: see touch.zipf_rank."""
    octaves = [range((1 << o) - 1, min((2 << o) - 1, SET)) for o in range(SET.bit_length())]
    weights = [len(octave) / (1 << o) for o, octave in enumerate(octaves)]
    found = np.concatenate(
        [
            np.full(len(octave), weight / len(octave))
            for octave, weight in zip(octaves, weights, strict=True)
        ]
    )
    return found / found.sum()


def root(rising: Callable[[float], float]) -> float:
    """Where a rising function is zero, between 1e-12 and 1e12."""
    low, high = 1e-12, 1e12
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return low


def copied_often(transmits: float) -> Array:
    """(SET,) P_i: probability that a page was drawn COPIES times."""
    mean = odds() * transmits
    return 1 - np.exp(-mean) * sum(mean**j / math.factorial(j) for j in range(COPIES))


def free_fall(room: int) -> float:
    filled = root(lambda t: float(copied_often(t).sum()) - room)
    return float(1 / (odds() * (1 - copied_often(filled))).sum())


def random_fall(room: int) -> float:
    c = root(lambda c: room - float((1 / (1 + c / odds())).sum()))
    return 1 / (c * room)


FALL = {"free": free_fall, "random": random_fall}


@pytest.mark.parametrize("remap", ["free", "random"])
def test_copies_fall_a_hundredfold_while_low_memory_holds_the_set(runs: Runs, remap: str) -> None:
    """Claim 1: over 20 minutes 167 to 176 times fewer in ten seeds (bound: 100), from minute ten on
    over 10 000 times. Each of the 2621 pages is copied five times before it moves; the rest, up to
    9 % (bound: 15 %), is due to pages that share a counter and end each other's count."""
    assert fall(runs, f"all-{remap}") > 100
    sent, copied = runs[f"all-{remap}"]
    assert sent[10:].sum() > 10_000 * copied[10:].sum()
    expected = COPIES * copied_often(float(sent.sum())).sum()
    assert 0.999 * expected < copied.sum() < 1.15 * expected


@pytest.mark.parametrize("remap", ["free", "random"])
def test_a_quarter_of_the_pages_saves_more_than_half_of_the_copies(runs: Runs, remap: str) -> None:
    """Claim 2, "less than a twofold fall", does not hold where low memory has room for a quarter of
    the set's *pages*: by rank they draw most transmits. `free` saves 5.3-fold (the best quarter
    would 5.6-fold), `random` 3.4-fold. Measured from minute ten on, within 2 % of the closed forms;
    over ten seeds 5.26 to 5.37 and 3.42 to 3.44. `free` is the default because it saves more."""
    expected = FALL[remap](ROOM["quarter"])
    assert expected == pytest.approx({"free": 5.33, "random": 3.42}[remap], abs=0.005)
    assert fall(runs, f"quarter-{remap}", 10) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("remap", ["free", "random"])
def test_room_for_a_quarter_of_the_transmits_saves_less_than_half(runs: Runs, remap: str) -> None:
    """Claim 2 holds in the other reading: low memory has room for the pages that draw a quarter of
    the transmits, here seven (27 %). The best seven would
    save 1.36-fold, `free` saves 1.30 to 1.34-fold in ten seeds, `random` 1.10-fold; within 3 % of
    the closed forms."""
    assert odds()[: ROOM["busiest"] - 1].sum() < 0.25 < odds()[: ROOM["busiest"]].sum()
    measured = fall(runs, f"busiest-{remap}", 10)
    assert measured < 2
    assert measured == pytest.approx(FALL[remap](ROOM["busiest"]), rel=0.03)


def test_the_closed_form_for_the_best_pages() -> None:
    """Zipf itself: a quarter of n pages leaves ln 4 / (ln n + 0.58); octaves are within a tenth."""
    best = 1 / odds()[ROOM["quarter"] :].sum()
    zipf = (math.log(SET) + 0.5772) / math.log(SET / ROOM["quarter"])
    assert best == pytest.approx(5.64, abs=0.005) and zipf == pytest.approx(6.09, abs=0.005)
    assert free_fall(ROOM["quarter"]) < best < zipf
