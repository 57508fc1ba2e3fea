"""Study: whether a host can reclaim a guest's memory without a driver in the guest [P 3.1 to 3.3].

VSwapper is Amit, Tsafrir and Schuster, ASPLOS 2014. On a disk of 2002 the host reads pages at
random, the guest reads files ahead; on an SSD both devices are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.reproduction.claims import Claim, Observation, band, exactly, within
from cluster.reproduction.experiment import Experiment, Panel, bars, mean_curve
from cluster.reproduction.lab import Changes, Lab, Series, room_for

ROOM_MB = 160
WARM_MIN, END_MIN = 4.0, 12.0
"""Minutes that are measured: from when memory has been reclaimed."""
OPTIONS = ("share_first", "map_clean", "skip_overwritten")


def _paged(*on: str) -> Changes:
    """No driver, on a host that has room for so much; these options of its paging."""
    return {
        **room_for(ROOM_MB),
        "vms.0.balloon": "absent",
        "hosts.0.paging": {name: name in on for name in OPTIONS},
    }


VARIANTS: dict[str, tuple[str, Changes]] = {
    "full": ("nothing reclaimed", {}),
    "balloon": ("balloon", {"vms.0.limit": f"{ROOM_MB} MiB"}),
    "random": ("host swap", _paged()),
    "share": ("+ sharing first", _paged("share_first")),
    "clean": ("+ clean pages dropped", _paged("map_clean")),
    "skip": ("+ overwritten not read", _paged("skip_overwritten")),
    "all": ("host swap, all three", _paged(*OPTIONS)),
}
LABELS = [words for words, _ in VARIANTS.values()]
GUESTS = {
    "reading": "files only read",
    "files": "files read and written",
    "programs": "programs' own memory",
}
DEVICES: dict[str, Changes] = {
    "disk": {},
    "ssd": {"hosts.0.swap": "ssd"} | {f"images.{at}.disk": "ssd" for at in range(len(GUESTS))},
}
EVENTS = ("swap_in", "swap_out", "swap_dropped", "double_paging", "stale_read")


def _run(lab: Lab, seed: int, guest: str, changes: Changes) -> tuple[float, Series]:
    """Throughput in MiB/s, and the host, in the minutes that are measured."""
    workload = "programs" if guest == "programs" else "files"
    what = {"vms.0.image": guest, "vms.0.workload": workload}
    run = lab.run("study-driverless", seed, {**changes, **what})
    return run.vm("vm").between(WARM_MIN, END_MIN).throughput(), run.host()


def observe(lab: Lab, seed: int) -> Observation:
    """Every variant, for each kind of guest, on both devices."""
    values: dict[str, float] = {}
    curves: dict[str, Any] = {}
    pages: dict[tuple[str, str, str], dict[str, float]] = {}
    for device, on_device in DEVICES.items():
        for guest in GUESTS:
            rates = {}
            for key, (_, changes) in VARIANTS.items():
                rates[key], host = _run(lab, seed, guest, {**changes, **on_device})
                pages[guest, device, key] = {name: host.total(f"{name}_pages") for name in EVENTS}
            at = f"{guest}.{device}"
            values[f"V1.{at}"] = rates["random"] / rates["balloon"]
            values[f"V2.{at}"] = rates["all"] / rates["balloon"]
            values[f"V3.{at}"] = rates["all"] / rates["random"]
            values[f"V4.balloon.{at}"] = pages[guest, device, "balloon"]["double_paging"]
            values[f"V4.{at}"] = pages[guest, device, "random"]["double_paging"]
            if guest != "programs":
                values[f"V5.{at}"] = pages[guest, device, "random"]["stale_read"]
                values[f"V5.skip.{at}"] = pages[guest, device, "skip"]["stale_read"]
            gone = pages[guest, device, "clean"]
            out = gone["swap_dropped"] + gone["swap_out"]
            values[f"V6.{at}"] = 100 * gone["swap_dropped"] / out
            relative = [100 * rates[key] / rates["full"] for key in VARIANTS]
            curves[at] = range(len(VARIANTS)), relative
    plain = pages["programs", "ssd", "random"]
    values["V7"] = pages["programs", "ssd", "skip"]["swap_in"] / plain["swap_in"]
    values["V8"] = pages["programs", "ssd", "share"]["swap_out"] / plain["swap_out"]
    return Observation(values, curves)


def _paint(device: str) -> Any:
    def paint(axes: Any, seen: Sequence[Observation]) -> None:
        parts = {words: mean_curve(seen, f"{at}.{device}")[1] for at, words in GUESTS.items()}
        bars(axes, LABELS, parts)
        axes.set_xlabel("throughput, % of full memory's")

    return paint


_V = "[VSwapper]"
_DEVICE = {"disk": "on a disk", "ssd": "on an SSD"}
_CLEAN = {"reading": 100, "files": 50, "programs": 0}
"""% of a guest's pages that are clean copies of its disk's blocks."""


def _speeds(guest: str, device: str) -> list[Claim]:
    """How fast one kind of guest is on one device: never faster than with a balloon."""
    at, words = f"{guest}.{device}", f"{GUESTS[guest]}, {_DEVICE[device]}"
    on_disk, is_clean = device == "disk", guest == "reading"
    worse, most = ("clearly worse", 0.8) if on_disk else ("not better", 1.0)
    close, least = ("close", 0.7) if is_clean or not on_disk else ("not better", 0.0)
    gain, low = (
        ("up to an order of magnitude", 5.0) if is_clean and on_disk else ("not worse", 0.98)
    )
    return [
        band(f"V1.{at}", f"{words}: host swap against balloon", "[P 3.2]", worse, 0, most, "times"),
        band(f"V2.{at}", f"{words}: all remedies against balloon", _V, close, least, 1.02, "times"),
        band(f"V3.{at}", f"{words}: all remedies against none", _V, gain, low, 20, "times"),
    ]


def _paging(guest: str, device: str) -> list[Claim]:
    """What was paged for nothing."""
    at, words = f"{guest}.{device}", f"{GUESTS[guest]}, {_DEVICE[device]}"
    some, ever = "above 0", {"every_seed": True}
    twice, stale = f"{words}: paged twice", f"{words}: read to be overwritten"
    claims = [exactly(f"V4.balloon.{at}", f"{twice} with a balloon", "[P 3.1]", 0, "pages")]
    if guest == "files":
        claims.append(band(f"V4.{at}", twice, "[P 3.1]", some, 1, np.inf, "pages", **ever))
    else:
        claims.append(exactly(f"V4.{at}", twice, "[nothing dirty is evicted]", 0, "pages"))
    if guest != "programs":
        claims += [
            band(f"V5.{at}", stale, _V, some, 1, np.inf, "pages", **ever),
            exactly(f"V5.skip.{at}", f"{stale}, where skipped", _V, 0, "pages"),
        ]
    clean = f"{words}: leave without a write where clean pages are dropped"
    return [*claims, within(f"V6.{at}", clean, "[what is clean]", _CLEAN[guest], 5, "%")]


CLAIMS = (
    *(claim for device in DEVICES for guest in GUESTS for claim in _speeds(guest, device)),
    *(claim for device in DEVICES for guest in GUESTS for claim in _paging(guest, device)),
    band(
        "V7",
        "programs' pages read back, where overwritten ones are not",
        _V,
        "fewer",
        0,
        0.9,
        "times",
    ),
    band("V8", "programs' pages written, where shared first", "[P 4.3]", "fewer", 0, 0.99, "times"),
)

EXPERIMENT = Experiment(
    name="driverless",
    title="Study: reclamation without a driver",
    question="Can the host reclaim a guest's memory as well without a balloon driver in the guest?",
    observe=observe,
    claims=CLAIMS,
    panels=(
        Panel("driverless-disk", "Throughput, 96 of 256 MB reclaimed, disk", _paint("disk"), 4.6),
        Panel("driverless-ssd", "Throughput, 96 of 256 MB reclaimed, SSD", _paint("ssd"), 4.6),
    ),
)
