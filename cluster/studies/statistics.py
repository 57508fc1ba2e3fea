"""PURE: what seeds say together: means with their confidence, and whether two sides differ.

Few seeds are normal here, so intervals are Student's and the comparison is Welch's, which does not
take both sides' variances for equal. Nothing is assumed beyond that runs of different seeds are
independent, and their mean about normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt

T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook of
Statistical Methods, 1.3.6.7.2)."""
_BEYOND = ((40, 2.021), (60, 2.000), (120, 1.980))
"""The same for more degrees of freedom, from there on; those between take the wider one."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity over seeds. std, low, high: None where there are fewer than two.

    std: the sample's standard deviation; low to high: the 95 % confidence interval of the mean.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What `after` is beyond `before`, in the mean; low to high as in Spread.

    beyond_noise: whether 0 lies outside that interval; None where a side has a single seed.
    """

    mean: float
    low: float | None
    high: float | None
    beyond_noise: bool | None


def t_95(degrees: float) -> float:
    """The 97.5 % quantile of Student's t, or of fewer degrees of freedom: never too small."""
    if degrees < 1:
        return T_95[0]
    if degrees <= len(T_95):
        return T_95[int(degrees) - 1]
    return next((t for least, t in reversed(_BEYOND) if degrees >= least), T_95[-1])


def variance(values: Sequence[float]) -> float:
    """Of a sample of two values or more."""
    mean = fsum(values) / len(values)
    return fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def spread(values: Sequence[float]) -> Spread:
    """One value or more, one for each seed."""
    n, mean = len(values), fsum(values) / len(values)
    if n < 2:
        return Spread(n, mean, None, None, None)
    var = variance(values)
    half = t_95(n - 1) * sqrt(var / n)
    return Spread(n, mean, sqrt(var), mean - half, mean + half)


def difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    """Welch's t test at 5 %. Where no seed differs on either side, any difference is beyond noise.

    Degrees of freedom by Welch and Satterthwaite, rounded down.
    """
    mean = fsum(after) / len(after) - fsum(before) / len(before)
    if min(len(before), len(after)) < 2:
        return Difference(mean, None, None, None)
    parts = [(variance(side) / len(side), len(side) - 1) for side in (before, after)]
    total = fsum(part for part, _ in parts)
    if total == 0:
        return Difference(mean, mean, mean, mean != 0)
    degrees = 1 / fsum((part / total) ** 2 / n for part, n in parts)
    half = t_95(degrees) * sqrt(total)
    return Difference(mean, mean - half, mean + half, abs(mean) > half)
