"""How far a miniature's totals may be from those of all pages: relative standard errors.

What chance decides. A miniature simulates n slots of N = k n pages. They are not drawn one by one:
each section of an image is laid out so evenly that any n consecutive slots have the floor or the
ceiling of what is due of each kind (`hostsim.composition`), and the seed draws where that begins,
for all VMs of the cluster at once. So slots of a kind are a *systematic sample*, and variance
between kinds there is none. Left is how slots of one kind differ among themselves: by bounds that
fall between two of them (of a section, of memory in use, of an active set), alike in all VMs; and
by chance of their own (written, scanned, swapped out), in each VM anew.

Variance. Let y_j be what slot j of a kind adds to a total, in all VMs of its image together: all
keep the same slots, so that is one draw. The variance of the sum over a systematic sample of an
ordered population is estimated from successive differences (K. M. Wolter, Introduction to Variance
Estimation, 2nd ed., Springer 2007, section 8.2; von Neumann et al., Ann. Math. Stat. 12, 1941):

    V = (1 - 1/k) / 2 * sum over kinds and j of (y_j - y_(j-1))^2,  y = 0 outside of a section

Slots that are independent give the variance of their sum, and a kind so rare that it has one slot
or none that of a count of rare things. At a bound y steps by some m, which adds m^2 / 2, while
rounding to whole slots has the variance m^2 f (1 - f) with f the fraction, m^2 / 6 in the mean. For
the ends of a section, which are known, both steps together are made to add that m^2 / 6. Bounds
within a section are not known as such: there this is an upper estimate, by a factor of 1.7 in the
standard error where they are all there is.

`consumed` is what is in memory less what sharing saves. How much is in memory does not depend on
which slots are drawn, so its slots are compared in the order of pages, whatever their kind.

Contrasts. Hosts cannot square a sum over hosts. They send contrasts, sums of the differences with
signs s_rj = +-1 that are equal on all hosts: C_r = sum of s_rj (y_j - y_(j-1)). These add up over
hosts, and the mean of their squares over random signs is the sum of squares above: the half-samples
of surveys (P. J. McCarthy, Rev. Int. Stat. Inst. 37, 1969; Wolter, chapter 3). Signs stay over
time, so that contrasts of several censuses add up to those of the mean over time.

Left out is what every run does by chance, with all pages, too. And where hosts reclaim, memory
consumed follows their thresholds, whatever slots hold: there its true error is smaller still.
"""

from __future__ import annotations

from math import sqrt

from cluster.messages import Rows
from hostsim.spread import ALLOCATED, CONTRASTS, OUT, SAVED, TOTAL


def relative_errors(contrasts: Rows, sample: int) -> dict[str, float | None]:
    """Relative standard errors of shared_saved, consumed and swapped when one page in `sample` is
    simulated: 0 where that is all, None of a total of nothing.

    contrasts: (3, CONTRASTS + 1) int64, of all hosts and censuses, see `hostsim.spread`.
    """
    rows = {
        "shared_saved": contrasts[SAVED],
        "consumed": contrasts[ALLOCATED] - contrasts[SAVED],
        "swapped": contrasts[OUT],
    }
    return {name: _relative(row, sample) for name, row in rows.items()}


def _relative(row: Rows, sample: int) -> float | None:
    if sample == 1:
        return 0.0
    total = int(row[TOTAL])
    squares = sum(one * one for one in row[:CONTRASTS].tolist())  # exact: they do not fit int64
    variance = (1 - 1 / sample) / 2 * squares / CONTRASTS
    return sqrt(variance) / total if total else None
