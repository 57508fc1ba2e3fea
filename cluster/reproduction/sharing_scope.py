"""Study: why content sharing pays across VMs and not across the processes of one system [P 4].

One system holds a block of a file once, whoever reads it, so what its processes have left to share
is little. Each of several VMs holds that block, and none of them can know. Percentages are of pages
that are not zero: those are shared wherever they are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.reproduction.claims import Observation, band, within
from cluster.reproduction.experiment import COLOURS, Experiment, Panel, bars, mean_curve
from cluster.reproduction.lab import Array, Lab
from cluster.reproduction.paper import table

FIGURE = table("fig4_identical_vms")
COUNTS = (1, 2, 4, 6, 8, 10)
END_MIN = 6.0
FOLDER = "kvm-fingerprints"
CLONES = {"web": "A_web", "idle": "A_idle", "idle, fixed addresses": "A_idleera"}
"""Experiments whose guests are clones of one disk, by workload; the last without ASLR."""
USES = {"file pages": (2, 3), "anonymous": (1, 7), "kernel": (4, 5)}
"""Classes of guest use: mapped and unmapped page cache; private and shared; slab and other."""
QUESTION = "Why does content sharing pay across VMs and not across the processes of one system?"
_PAPER = "[P 4.4, Fig 4]"


def _figure() -> tuple[Array, Array]:
    """Figure 4: VMs, and % of their memory reclaimed by sharing, without zero pages."""
    memory, zero = (np.array(FIGURE.numbers(name)) for name in ("vm_memory_mb", "zero_pages_mb"))
    saved = np.array(FIGURE.numbers("reclaimed_mb")) - zero
    return np.array(FIGURE.numbers("n_vms")), 100 * saved / memory


def _reclaimed(lab: Lab, seed: int, count: int, salting: str) -> float:
    """% of what `count` clones have allocated that sharing saves, without zero pages."""
    changes = {"vms.0.count": count, "hosts.0.sharing.salting": salting}
    host = lab.run("study-sharing-scope", seed, changes).host()
    saved = host.at("shared_saved", END_MIN) - host.at("zero_saved", END_MIN)
    return 100 * saved / host.at("allocated", END_MIN)


def observe(lab: Lab, seed: int) -> Observation:
    """Clones of a measured image, one to ten; with salts none shares with another."""
    curves = {
        salting: (COUNTS, [_reclaimed(lab, seed, count, salting) for count in COUNTS])
        for salting in ("none", "vm")
    }
    across, within_one = curves["none"][1], curves["vm"][1]
    values = {
        "S1.one": across[0],
        "S1.ten": across[-1],
        "S1.gain": across[-1] - across[0],
        "S1.salted": within_one[-1] - across[0],
    }
    return Observation(values, curves)


def paint(axes: Any, seen: Sequence[Observation]) -> None:
    """Memory reclaimed against the number of VMs."""
    axes.plot(*_figure(), "o", color=COLOURS[0], alpha=0.4, label="paper, figure 4")
    words = {"none": "shared by all VMs", "vm": "shared inside each VM only"}
    for name, colour in zip(words, COLOURS, strict=False):
        axes.plot(*mean_curve(seen, name), color=colour, label=words[name])
    _label(axes)


def _label(axes: Any) -> None:
    axes.set_xlabel("VMs")
    axes.set_ylabel("% reclaimed, without zero pages")
    axes.set_ylim(0)
    axes.legend(frameon=False, fontsize="small")


def _percent(saved: Any, of: Any) -> Any:
    return 100 * np.asarray(saved, np.float64) / np.asarray(of, np.float64)


def _clones(folder: Path) -> dict[str, tuple[Array, Array, Array]]:
    """By workload: guests, % of touched pages reclaimed without zero ones, % of that across."""
    with (folder / "sharing_vs_vms.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scope"] == "touched"]
    found = {}
    for words, name in CLONES.items():
        mine = [row for row in rows if row["exp"] == name]
        vms, total, saved, across = (
            np.array([int(row[key]) for row in mine])
            for key in ("vms", "total", "nz_reclaim", "inter")
        )
        found[words] = vms, _percent(saved, total), _percent(across, saved)
    return found


def _of_use(folder: Path, classes: Sequence[int]) -> tuple[float, float]:
    """% of web guests' non-zero pages of a use that equal another: in one guest, in all ten."""
    with np.load(folder / "A_web.npz") as data:
        numbers = sorted(name[1:] for name in data.files if name.startswith("h"))
        held = [data[f"h{at}"][np.isin(data[f"c{at}"], classes)] for at in numbers]
    held = [pages[pages != 0] for pages in held]
    inside = sum(len(pages) - len(np.unique(pages)) for pages in held)
    everything = np.concatenate(held)
    saved = len(everything) - len(np.unique(everything))
    return float(_percent(inside, len(everything))), float(_percent(saved, len(everything)))


def _different(folder: Path) -> tuple[float, float]:
    """Four guests with different work: % of non-zero pages reclaimed, and % of that inside one."""
    with np.load(folder / "C_timeseries.npz") as data:
        held = [data[f"h_{name}"][-1] for name in ("web", "db", "py", "idle")]
    held = [pages[pages != 0] for pages in held]
    inside = sum(len(pages) - len(np.unique(pages)) for pages in held)
    everything = np.concatenate(held)
    saved = len(everything) - len(np.unique(everything))
    return float(_percent(saved, len(everything))), float(_percent(inside, saved))


def observe_measured(lab: Lab, seed: int) -> Observation:
    """The page fingerprints of real guests: nothing is simulated, the seed is not used."""
    folder = lab.data / FOLDER
    processes = json.loads((folder / "process_sharing.json").read_text(encoding="utf-8"))
    guest, host = (
        processes["one_guest_39_user_processes/user_all"],
        processes["host_12_processes/all"],
    )
    clones, different = _clones(folder), _different(folder)
    uses = np.array([_of_use(folder, classes) for classes in USES.values()])
    files, anonymous = uses[0], uses[1]
    of_guest = float(_percent(guest["nonzero_reclaim"], guest["frames"]))
    values = {
        "S2.guest": of_guest,
        "S2.host": float(_percent(host["nonzero_reclaim"], host["frames"])),
        "S2.web": float(clones["web"][1][-1]),
        "S2.idle": float(clones["idle"][1][-1]),
        "S2.across": float(clones["web"][2][-1]),
        "S2.ratio": float(clones["web"][1][-1] / of_guest),
        "S3.one": float(files[0]),
        "S3.ten": float(files[1]),
        "S3.anonymous": float(anonymous[1]),
        "S4.four": different[0],
        "S4.self": different[1],
    }
    places = range(len(USES))
    curves: dict[str, Any] = {words: found[:2] for words, found in clones.items()}
    curves |= {"one": (places, uses[:, 0]), "ten": (places, uses[:, 1])}
    return Observation(values, curves)


def paint_measured(axes: Any, seen: Sequence[Observation]) -> None:
    """Memory reclaimed against the number of real guests, and of processes of one."""
    axes.plot(*_figure(), "o", color="#888888", alpha=0.4, label="paper, figure 4")
    for words, colour in zip(CLONES, COLOURS, strict=False):
        axes.plot(*mean_curve(seen, words), "o-", color=colour, markersize=3, label=words)
    level = seen[0].values["S2.guest"]
    axes.axhline(level, color="#888888", linestyle="--", label="39 processes of one guest")
    _label(axes)


def paint_uses(axes: Any, seen: Sequence[Observation]) -> None:
    """What is shared is files, and only across VMs."""
    parts = {
        "in one guest": mean_curve(seen, "one")[1],
        "in ten clones": mean_curve(seen, "ten")[1],
    }
    bars(axes, list(USES), parts)
    axes.set_xlabel("% that equal another")


_FEW = "few: one system holds a file's block once"
_DISK = "most: each clone holds its own copy"
CLAIMS = (
    band("S1.one", "pages reclaimed from one VM, zero ones aside", _PAPER, "5.7 %", 0, 10, "%"),
    band(
        "S1.ten", "pages reclaimed from ten clones, zero ones aside", _PAPER, "53.7 %", 45, 65, "%"
    ),
    band("S1.gain", "of which because they are ten", _PAPER, "48 points", 30, np.inf, "points"),
    within(
        "S1.salted",
        "more from ten than from one, where no VM may share with another",
        "[ESXi 5.0 U3d: salting]",
        0,
        0.1,
        "points",
    ),
)
MEASURED_CLAIMS = (
    band(
        "S2.guest",
        "pages of 39 processes of one guest that equal another",
        _PAPER,
        "5.7 %",
        0,
        6,
        "%",
    ),
    band(
        "S2.host", "pages of 12 processes of a host that equal another", _PAPER, "5.7 %", 0, 6, "%"
    ),
    band("S2.web", "pages of ten web servers that equal another", _PAPER, "53.7 %", 40, 65, "%"),
    band("S2.idle", "pages of ten idle guests that equal another", _PAPER, "53.7 %", 40, 65, "%"),
    band(
        "S2.across", "part of the web servers' that is across guests", _PAPER, "89 %", 80, 100, "%"
    ),
    band("S2.ratio", "web servers against processes", _PAPER, "9.4 times", 5, np.inf, "times"),
    band(
        "S3.one", "file pages that equal another inside one guest", "[page cache]", _FEW, 0, 1, "%"
    ),
    band(
        "S3.ten", "file pages that equal another in ten clones", "[page cache]", _DISK, 50, 90, "%"
    ),
    band(
        "S3.anonymous", "anonymous pages, in ten clones", "[Barker 2012]", "under 15 %", 0, 15, "%"
    ),
    band(
        "S4.four",
        "pages of four guests with different work",
        "[P 4.4, Fig 5]",
        "7 to 33 %",
        5,
        35,
        "%",
    ),
    band(
        "S4.self",
        "part of these that equal another of the same guest",
        "[Barker 2012]",
        "less than the 90 % of users' own machines: one disk image",
        0,
        90,
        "%",
    ),
)


def missing(lab: Lab) -> str | None:
    """The fingerprints are not part of the project."""
    folder = lab.data / FOLDER
    return None if folder.is_dir() else f"there is no folder {FOLDER} in the trace data (--data)"


EXPERIMENT = Experiment(
    name="scope",
    title="Study: sharing across VMs, generated guests",
    question=QUESTION,
    observe=observe,
    claims=CLAIMS,
    panels=(Panel("scope", "Memory reclaimed by sharing against the number of VMs", paint),),
    seeds=1,
)
MEASURED = Experiment(
    name="scope-measured",
    title="Study: sharing across VMs, real guests",
    question=QUESTION,
    observe=observe_measured,
    claims=MEASURED_CLAIMS,
    panels=(
        Panel("scope-measured", "Memory of real guests that sharing would reclaim", paint_measured),
        Panel(
            "scope-uses", "Pages that equal another, by use, in one guest and ten", paint_uses, 2.6
        ),
    ),
    seeds=1,
    missing=missing,
)
