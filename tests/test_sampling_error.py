"""The stated error of a miniature: its formula, and against draws of samples from known wholes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cluster.sampling_error import relative_errors
from hostsim.spread import ALLOCATED, CONTRASTS, OUT, SAVED, TOTAL, no_contrasts

NAMES = ["shared_saved", "consumed", "swapped"]


def table(saved: tuple[int, int], allocated: tuple[int, int], out: tuple[int, int]) -> npt.NDArray:
    """Each quantity's contrasts, half of them with the other sign, and its total."""
    found = no_contrasts()
    for row, (size, total) in ((SAVED, saved), (ALLOCATED, allocated), (OUT, out)):
        found[row, : CONTRASTS // 2] = size
        found[row, CONTRASTS // 2 : CONTRASTS] = -size
        found[row, TOTAL] = total
    return found


@pytest.mark.parametrize(
    ("sample", "saved", "allocated", "out", "stated"),
    [
        (1, (7, 100), (9, 300), (5, 50), (0.0, 0.0, 0.0)),
        (1, (0, 0), (0, 0), (0, 0), (0.0, 0.0, 0.0)),
        (2, (20, 100), (20, 300), (0, 50), (0.1, 0.0, 0.0)),
        (2, (20, 100), (100, 300), (10, 50), (0.1, 0.2, 0.1)),
        (16, (20, 100), (0, 300), (0, 0), (0.1369306, 0.0684653, None)),
        (2, (0, 0), (0, 0), (0, 0), (None, None, None)),
        # Squares of the contrasts of a large cluster do not fit 64 bits.
        (2, (2 << 40, 10 << 40), (0, 20 << 40), (0, 1), (0.1, 0.1, 0.0)),
    ],
)
def test_the_formula(
    sample: int,
    saved: tuple[int, int],
    allocated: tuple[int, int],
    out: tuple[int, int],
    stated: tuple[float | None, ...],
) -> None:
    found = relative_errors(table(saved, allocated, out), sample)
    assert list(found) == NAMES
    for one, expected in zip(found.values(), stated, strict=True):
        assert one == (None if expected is None else pytest.approx(expected, rel=1e-5))


def draw(
    rng: np.random.Generator, n: int, part: float, bounds: npt.NDArray, chance: float, sample: int
) -> tuple[float, float]:
    """A kind's slots among `n`, beginning at random, in VMs that use a part `bounds` of theirs,
    each slot with a chance of its own: how far the total is off, and what is stated, in parts."""
    places = (np.arange(int(n * part) + 1) + rng.random()) / part
    places = places[places < n]
    held = (places[:, None] < bounds * n) & (rng.random((len(places), len(bounds))) < chance)
    by_slot = np.concatenate([[0], held.sum(axis=1), [0]]).astype(np.int64)
    signs = rng.choice([-1, 1], (CONTRASTS, len(by_slot) - 1))
    found = no_contrasts()
    steps = np.diff(by_slot).astype(np.float64)
    if len(places) > 1:
        steps[[0, -1]] /= np.sqrt(6)
    found[SAVED, :CONTRASTS] = np.rint(1000 * (signs @ steps))
    found[SAVED, TOTAL] = 1000 * by_slot.sum()
    stated = relative_errors(found, sample)["shared_saved"] or 0.0
    due = n * part * bounds.sum() * chance
    return by_slot.sum() / due - 1, stated * by_slot.sum() / due


@pytest.mark.parametrize(
    ("n", "part", "chance", "loosest"),
    [
        (1024, 0.2, 1.0, 3.0),  # bounds alone, alike in many VMs
        (1000, 0.0371, 1.0, 3.0),
        (1024, 0.2, 0.5, 1.7),  # and chance
        (64, 0.3, 0.1, 1.5),  # chance above all
        (64, 0.01, 0.9, 1.5),  # a kind of one slot or none
    ],
)
def test_the_stated_error_covers_and_is_not_loose(
    n: int, part: float, chance: float, loosest: float
) -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(1000):
        bounds = np.repeat(rng.uniform(0.4, 1.0, 3), (3, 4, 5))  # three workloads of one image
        found.append(draw(rng, n, part, bounds, chance, 1 << 20))
    off, stated = np.array(found).T
    observed, told = np.sqrt((off**2).mean()), np.sqrt((stated**2).mean())
    assert observed <= 1.05 * told
    assert told <= loosest * observed
    if n * part > 1:  # of a rarer kind often nothing is there to tell
        assert (np.abs(off) <= stated).mean() > 0.6
        assert (np.abs(off) <= 2 * stated).mean() > 0.9
