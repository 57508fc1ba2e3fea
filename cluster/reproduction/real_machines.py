"""Real Debian guests, page by page, against the counters of Linux KSM on the same pages.

The hashes are not part of the project: those experiments are skipped where the folder of data has
no `kvm-fingerprints`. What KSM counted is, in scenarios/osdi02/figures/ksm_saved.csv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster import replays
from cluster.reproduction.claims import Claim, Observation, band, exactly, relative
from cluster.reproduction.experiment import COLOURS, Experiment, Panel, mean_curve
from cluster.reproduction.lab import Array, Lab, Run
from cluster.reproduction.paper import table

FINGERPRINTS = "kvm-fingerprints"
KSM = table("ksm_saved")
KINDS = ("idle", "web")
COUNTS = range(1, 11)
COVERED_S = (20, 30, 40)
"""Seconds of slow scanning after which sharing is compared with the formula for its coverage."""
PERIOD_MIN, DUMPS = 0.25, 12
GUESTS = ("web", "db", "py", "idle")
SAMPLES = 100
SIZES = {
    "full": {},
    "native": {"vms.0.memory": "256 MiB"},
    "ballooned": {"vms.0.limit": "256 MiB"},
}


def missing(lab: Lab) -> str | None:
    """Why real guests' pages cannot be replayed here."""
    if (lab.data / FINGERPRINTS).is_dir():
        return None
    return f"{FINGERPRINTS} is not in the folder of data (see --data)"


def _expected(kind: str, column: str) -> list[int]:
    """KSM's numbers for 1 to 10 guests."""
    names = KSM.columns["guests"]
    return [
        int(number) for name, number in zip(names, KSM.columns[column], strict=True) if name == kind
    ]


def _saved(run: Run) -> tuple[Array, Array, Array]:
    """(n_epochs,) non-zero pages saved, frames in use, and pages scanned since the start."""
    rows = run.host().rows
    nonzero = rows["shared_saved_pages"] - rows["zero_saved_pages"]
    return nonzero, rows["consumed_pages"], np.cumsum(rows["scanned_pages"])


def _formula(run: Run, scanned: float) -> float:
    """Non-zero pages saved, on average, after so many random scans, equally many for each VM.

    Of a content, the pages scanned less one are saved, if any is scanned. A VM of n pages has been
    scanned with c = 1 - (1 - 1 / n)^s: each of its pages with probability c.
    """
    guests = list(replays.held(run.loaded).values())
    missed = [(1 - 1 / len(pages)) ** (scanned / len(guests)) for pages in guests]
    every, weights = [], []
    for pages, none in zip(guests, missed, strict=True):
        every.append(pages[pages != 0])
        weights.append(np.full(len(every[-1]), none))
    _, content = np.unique(np.concatenate(every), return_inverse=True)
    unseen = np.concatenate(weights)
    seen = np.bincount(content, 1 - unseen)
    none_seen = np.exp(np.bincount(content, np.log(unseen)))
    return float((seen - 1 + none_seen).sum())


def observe_sharing(lab: Lab, seed: int) -> Observation:
    """N idle and web guests: all scanned, and, for ten of them, while scanning is under way."""
    values: dict[str, float] = {}
    curves = {}
    for kind in KINDS:
        found = []
        for count in COUNTS:
            changes = {"vms.0.count": count, "duration": "150 s"}
            nonzero, frames, _ = _saved(lab.run(f"real-{kind}", seed, changes))
            found.append(int(nonzero[-1]))
            values[f"K1.{kind}.{count}"] = found[-1]
            values[f"K2.{kind}.{count}"] = int(frames[-1])
        curves[kind] = (list(COUNTS), found)
        slow = {"scan_pages_per_s_vm": 2000, "scan_pages_per_s_total": 20_000}
        changes = {"duration": "45 s", "epoch": "1 s", "hosts.0.sharing": slow}
        run = lab.run(f"real-{kind}", seed, changes | {"images.0.boot": "1 s"})
        nonzero, _, scanned = _saved(run)
        for second in COVERED_S:
            expected = _formula(run, float(scanned[second - 1]))
            values[f"K3.{kind}.{second}"] = 100 * (nonzero[second - 1] / expected - 1)
    return Observation(values, curves)


def paint_sharing(axes: Any, seen: Sequence[Observation]) -> None:
    """Non-zero pages saved against the number of guests."""
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        axes.plot(COUNTS, _expected(kind, "nonzero_saved"), "o", color=colour, alpha=0.4)
        axes.plot(*mean_curve(seen, kind), color=colour, label=f"{kind} guests (dots: KSM)")
    axes.set_xlabel("guests")
    axes.set_ylabel("non-zero pages saved")
    axes.set_ylim(0)
    axes.legend(frameon=False)


def observe_active(lab: Lab, seed: int) -> Observation:
    """Error of each sampling period's fraction, in its own standard errors, over the dumps."""
    run = lab.run("real-timeseries", seed)
    values: dict[str, float] = {}
    curves = {}
    for name in GUESTS:
        vm = run.vm(name)
        ends = [PERIOD_MIN * (dump + 1) + 1 / 12 for dump in range(DUMPS + 1)]
        fast = np.array([vm.at("active_fast", end) / vm.at("allocated", end) for end in ends])
        raw = (fast[1:] - 0.25 * fast[:-1]) / 0.75
        pages = np.array([vm.mib("allocated")[-1] * 256])
        referenced = run.loaded.hashes[name].guests[0].referenced[1:]
        true = np.minimum(referenced / pages, 1.0)
        z = (raw - true) / np.sqrt(true * (1 - true) / SAMPLES)
        values[f"K4.{name}"] = float(np.sqrt((z**2).mean()))
        values[f"K5.{name}"] = float(z.mean())
        minutes = [PERIOD_MIN * (dump + 2) for dump in range(DUMPS)]
        curves[f"{name} sampled"] = (minutes, 100 * raw)
        curves[f"{name} true"] = (minutes, 100 * true)
    return Observation(values, curves)


def paint_active(axes: Any, seen: Sequence[Observation]) -> None:
    """Fractions sampled and referenced, dump by dump."""
    for name, colour in zip(GUESTS, COLOURS, strict=False):
        axes.plot(*mean_curve(seen, f"{name} true"), "o", color=colour, alpha=0.4)
        axes.plot(*mean_curve(seen, f"{name} sampled"), color=colour, label=name)
    axes.set_xlabel("minutes")
    axes.set_ylabel("% of memory active in 15 s")
    axes.set_ylim(0)
    axes.legend(frameon=False, ncols=4)


def observe_balloon(lab: Lab, seed: int) -> Observation:
    """Reads a second: full size, natively small, ballooned."""
    rates = {}
    for name, changes in SIZES.items():
        vm = lab.run("real-balloon", seed, changes).vm("vm").between(4, 10)
        rates[name] = vm.total("touches") / (vm.total("on_ns") / 1e9)
    values = {
        "K6.full": rates["full"],
        "K6.native": rates["native"],
        "K6": 100 * (1 - rates["ballooned"] / rates["native"]),
    }
    return Observation(values, {"rates": (list(range(len(SIZES))), list(rates.values()))})


def paint_balloon(axes: Any, seen: Sequence[Observation]) -> None:
    """Rates as bars beside the measured ones."""
    x, ours = mean_curve(seen, "rates")
    axes.bar(np.asarray(x) - 0.2, [74_232, 33_563, 31_215], 0.4, color=COLOURS[1], label="measured")
    axes.bar(np.asarray(x) + 0.2, ours, 0.4, color=COLOURS[0], label="simulated")
    axes.set_xticks(x, ["512 MiB", "256 MiB", "512 ballooned to 256"])
    axes.set_ylabel("reads a second")
    axes.legend(frameon=False)


_K = "[Linux KSM 6.18, measured on the same pages]"
_R = "[accessed bits of the host's page tables]"
_B = "[measured, QEMU guest of Debian 12]"


def _sharing_claims() -> tuple[Claim, ...]:
    claims: list[Claim] = []
    for kind in KINDS:
        saved, distinct = _expected(kind, "nonzero_saved"), _expected(kind, "distinct")
        for n, nonzero, frames in zip(COUNTS, saved, distinct, strict=True):
            words = f"{n} {kind} guests, all pages scanned"
            claims.append(
                exactly(f"K1.{kind}.{n}", f"non-zero pages saved: {words}", _K, nonzero, "pages")
            )
            claims.append(exactly(f"K2.{kind}.{n}", f"frames left: {words}", _K, frames, "pages"))
        claims += [
            band(
                f"K3.{kind}.{second}",
                f"ten {kind} guests after {second} s of scanning, against m c - 1 + (1 - c)^m",
                "[derived]",
                "0 %",
                -1,
                1,
                "%",
            )
            for second in COVERED_S
        ]
    return tuple(claims)


def _active_claims(name: str) -> tuple[Claim, ...]:
    return (
        relative(
            f"K4.{name}",
            f"error of a period's sample of the {name} guest, in sqrt(f (1 - f) / 100)",
            _R,
            1,
            0.2,
            "",
        ),
        band(f"K5.{name}", f"its mean error ({name}), in the same", _R, "0", -0.35, 0.35, ""),
    )


EXPERIMENTS = (
    Experiment(
        name="real-sharing",
        title="Real guests: page sharing against KSM",
        question="Does page sharing save what Linux KSM saved on the very same pages?",
        observe=observe_sharing,
        claims=_sharing_claims(),
        panels=(Panel("real-sharing", "Non-zero pages saved by number of guests", paint_sharing),),
        seeds=1,
        missing=missing,
    ),
    Experiment(
        name="real-active",
        title="Real guests: sampled active memory",
        question="Does sampling 100 pages a period find what real guests reference?",
        observe=observe_active,
        claims=tuple(claim for name in GUESTS for claim in _active_claims(name)),
        panels=(Panel("real-active", "Sampled and referenced memory, dump by dump", paint_active),),
        missing=missing,
    ),
    Experiment(
        name="real-balloon",
        title="A real guest: ballooned against natively small",
        question="Is a guest ballooned to half of its memory as fast as one booted with half?",
        observe=observe_balloon,
        claims=(
            relative("K6.full", "reads a second in 512 MiB", _B, 74_232, 0.02, "", calibrated=True),
            relative(
                "K6.native", "reads a second in 256 MiB", _B, 33_563, 0.05, "", calibrated=True
            ),
            band("K6", "loss of a guest ballooned to 256 MiB", _B, "7 and 11 %", 0, 11, "%"),
        ),
        panels=(
            Panel("real-balloon", "Reads a second: full, natively small, ballooned", paint_balloon),
        ),
    ),
)
