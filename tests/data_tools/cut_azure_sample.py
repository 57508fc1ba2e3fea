"""Cuts the small Azure trace that is shipped in `scenarios/traces/azure-v1-sample`.

Of the VMs that live at any time in one six-hour window of `azure-v1-arrivals`, and are small enough
for a modest host, those with the lowest hashes of seed and name are taken: a simple random sample
that needs no generator, so it is the same everywhere. Sizes and stamps stay as published, but for
the shift that puts the window's start at 0.

Run: python tests/data_tools/cut_azure_sample.py AZURE_V1_ARRIVALS_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cluster.trace_readers import read_azure_arrivals
from cluster.traces import Trace, arrange, save_trace
from hostsim.units import GIB

SEED = 1
SPLIT = "test-"
"""The split to cut from: the one with the longest record of lifetimes before the window."""
WINDOW_FROM_S, WINDOW_S = 2_445_600, 6 * 3600
"""Four days into that split, on the data set's clock: long enough for a settled population."""
MEMORY_MAX = 28 * GIB
VMS = 400

README = """\
# A small part of the Azure VM trace of 2017

Derived from the **Azure Public Dataset V1** by Microsoft
(<https://github.com/Azure/AzurePublicDataset>; Cortez et al., "Resource Central", SOSP 2017),
licensed under [CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/), by way of the arrivals
that `huaweicloud/trace_generation_rnn` derived from its `vmtable`.

{vms} VMs that live at some time in one window of 6 h, {running} of them already running at its
start. At most {peak_vms} run at once, with {peak_gib:g} GiB of configured memory.

| memory | VMs |
|---|---|
{sizes}

Changed against the source: of the {candidates} VMs of up to 28 GiB in the window (another
{large} are larger and were left out) a random sample was taken; time 0 is the window's start
(second {window} of the data set); who was running then has `start_s` 0; who outlives the window
has no `stop_s`. Lifetimes are known to bins: up to 1 h to five minutes, then to an hour, from a
day on to a day; the middle of the bin is used, and 150 s for a lifetime of 0. VMs that started
more than four days before the window are not in the source. There is no usage: the source has
none for memory.

Columns: `vm` split and row in the source; `start_s`, `stop_s` seconds; `vcpus`; `memory_bytes`;
`cpu_capacity_mhz` unknown. Cut again with `tests/data_tools/cut_azure_sample.py`.
"""


def _rank(name: str) -> bytes:
    return hashlib.sha256(f"{SEED} {name}".encode()).digest()


def cut(source: Path) -> tuple[Trace, dict[str, Any]]:
    """The sample, and the numbers of its README."""
    trace, origin_s = arrange(read_azure_arrivals(source), source)
    start = trace.start_s + origin_s - WINDOW_FROM_S
    lasting = np.where(trace.stop_s < 0, WINDOW_S, trace.stop_s + origin_s - WINDOW_FROM_S)
    split = np.array([name.startswith(SPLIT) for name in trace.names.tolist()])
    inside = split & (start < WINDOW_S) & (lasting > 0)
    small = trace.memory_bytes <= MEMORY_MAX
    candidates = np.flatnonzero(inside & small)
    ranked = sorted(candidates.tolist(), key=lambda i: _rank(trace.names[i]))
    kept = np.array(sorted(ranked[:VMS]))
    stop = np.where(lasting[kept] >= WINDOW_S, -1, lasting[kept])
    sample = Trace(
        names=trace.names[kept],
        start_s=np.maximum(start[kept], 0),
        stop_s=stop,
        vcpus=trace.vcpus[kept],
        memory_bytes=trace.memory_bytes[kept],
        cpu_capacity_mhz=trace.cpu_capacity_mhz[kept],
        offsets=np.zeros(len(kept) + 1, np.int64),
        t_s=trace.t_s[:0],
        active_bytes=trace.active_bytes[:0],
        cpu_permille=trace.cpu_permille[:0],
    )
    facts = {
        "candidates": len(candidates),
        "large": int((inside & ~small).sum()),
        "running": int((start[kept] < 0).sum()),
        "window": WINDOW_FROM_S,
    }
    return sample, facts


def peak(trace: Trace) -> tuple[int, int]:
    """Most VMs running at once, and the most memory in bytes (not always at the same time)."""
    ends = np.where(trace.stop_s < 0, WINDOW_S, trace.stop_s)
    at = trace.start_s[:, None]
    runs = (trace.start_s <= at) & (ends > at)
    return int(runs.sum(axis=1).max()), int((runs * trace.memory_bytes).sum(axis=1).max())


def readme(trace: Trace, facts: dict[str, Any]) -> str:
    """What the sample is, with its attribution."""
    counts = Counter(trace.memory_bytes.tolist())
    sizes = "\n".join(f"| {size / GIB:g} GiB | {n} |" for size, n in sorted(counts.items()))
    peak_vms, peak_bytes = peak(trace)
    numbers = {"vms": len(trace.names), "peak_vms": peak_vms, "peak_gib": peak_bytes / GIB}
    return README.format(sizes=sizes, **numbers, **facts)


def main(source: Path, out: Path) -> None:
    """Cut from `source`, replace the sample in `out`."""
    trace, facts = cut(source)
    (out / "README.md").unlink(missing_ok=True)  # else `save_trace` would take it for another's
    about = {
        "format": "azure-v1-arrivals, cut by tests/data_tools/cut_azure_sample.py",
        "sources": ["arrivals.parquet"],
        "attribution": "Azure Public Dataset V1, Microsoft; Cortez et al., SOSP 2017",
        "licence": "CC-BY 4.0",
        "vms": len(trace.names),
        "usage_rows": 0,
        "origin_s": WINDOW_FROM_S,
    }
    save_trace(trace, out, about | {"seed": SEED, "window_s": WINDOW_S, **facts})
    (out / "README.md").write_text(readme(trace, facts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
