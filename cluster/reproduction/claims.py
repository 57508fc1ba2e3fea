"""Claims about reality, and whether what was simulated bears them out.

A claim says what a source found and within which bounds a simulation must come to it. What each
seed gave is judged here, never changed: `holds` is about the mean over the seeds, or, for a claim
that says never, always or exactly, about every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Curve = tuple[Any, Any]
"""x and y of one line of a figure, arrays or lists of equal length."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one seed of an experiment gave.

    values: by id of the claim. curves: by name, for the figure.
    """

    values: Mapping[str, float]
    curves: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table. `low` and `high` bound what may be simulated."""

    id: str
    claim: str
    source: str
    expected: str
    tolerance: str
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    every_seed: bool = False
    calibrated: bool = False
    """The model was fitted to this number, so that it proves nothing: shown as such."""


def _around(
    id: str,
    claim: str,
    source: str,
    expected: float,
    width: float,
    tolerance: str,
    unit: str,
    more: Mapping[str, bool],
) -> Claim:
    return Claim(
        id=id,
        claim=claim,
        source=source,
        expected=quantity(expected, unit),
        tolerance=f"\N{PLUS-MINUS SIGN}{tolerance}",
        low=expected - width,
        high=expected + width,
        unit=unit,
        **more,
    )


def within(
    id: str, claim: str, source: str, expected: float, tolerance: float, unit: str, **more: bool
) -> Claim:
    """A number and how far off the simulated one may be, in its own unit."""
    words = quantity(tolerance, unit)
    return _around(id, claim, source, expected, tolerance, words, unit, more)


def relative(
    id: str, claim: str, source: str, expected: float, part: float, unit: str, **more: bool
) -> Claim:
    """A number and by which part of it the simulated one may be off."""
    width = abs(expected) * part
    return _around(id, claim, source, expected, width, f"{part * 100:g} %", unit, more)


def band(
    id: str,
    claim: str,
    source: str,
    expected: str,
    low: float,
    high: float,
    unit: str,
    **more: bool,
) -> Claim:
    """What a source describes in words or for one run, and a band for the simulated number."""
    if high == math.inf:
        tolerance = f"at least {quantity(low, unit)}"
    elif low == -math.inf:
        tolerance = f"at most {quantity(high, unit)}"
    else:
        tolerance = f"{low:g} to {quantity(high, unit)}"
    return Claim(
        id=id,
        claim=claim,
        source=source,
        expected=expected,
        tolerance=tolerance,
        low=low,
        high=high,
        unit=unit,
        **more,
    )


def exactly(id: str, claim: str, source: str, expected: float, unit: str) -> Claim:
    """A number that every seed must give."""
    return Claim(
        id=id,
        claim=claim,
        source=source,
        expected=quantity(expected, unit),
        tolerance="exact, every seed",
        low=expected,
        high=expected,
        unit=unit,
        every_seed=True,
    )


def quantity(value: float, unit: str) -> str:
    """A number for people, four significant digits, with its unit."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def judge(claim: Claim, observations: Sequence[Observation]) -> dict[str, Any]:
    """The claim's line of the table, as it goes to reproduction.json.

    simulated: mean and spread (standard deviation; 0 for one seed) over the seeds, in `unit`; None
    where a seed gave no number, such as the time of what never happened.
    """
    found = np.array([one.values[claim.id] for one in observations], np.float64)
    judged = found if claim.every_seed else found.mean(keepdims=True)
    slack = 1e-9 * max(abs(bound) for bound in (claim.low, claim.high, 1.0) if math.isfinite(bound))
    holds = bool(((judged >= claim.low - slack) & (judged <= claim.high + slack)).all())
    is_known = bool(np.isfinite(found).all())
    spread = float(found.std(ddof=1)) if is_known and len(found) > 1 else 0.0
    return {
        "id": claim.id,
        "claim": claim.claim + " (calibrated)" * claim.calibrated,
        "source": claim.source,
        "expected": claim.expected,
        "simulated": {
            "mean": float(found.mean()) if is_known else None,
            "spread": spread if is_known else None,
            "unit": claim.unit,
            "seeds": len(found),
        },
        "tolerance": claim.tolerance
        + ", every seed" * (claim.every_seed and "every" not in claim.tolerance),
        "holds": holds,
    }
