"""Builders for scenario tests: a small valid scenario, written to disk with changes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.scenario_file import Loaded, ScenarioError, load
from cluster.traces import Trace, save_trace
from cluster.yaml_input import Problem
from hostsim.units import GIB, MIB

SMALL: dict[str, Any] = {
    "name": "small",
    "duration": "1 h",
    "hosts": [{"name": "esx", "count": 2, "memory": "8 GiB"}],
    "images": [{"name": "linux", "footprint": "128 MiB"}],
    "workloads": [{"name": "steady", "phases": [{"duration": "1 h"}]}],
    "vms": [{"name": "web", "count": 3, "memory": "1 GiB", "image": "linux", "workload": "steady"}],
}


VM = SMALL["vms"][0]
HOST = SMALL["hosts"][0]
IMAGE = SMALL["images"][0]
WORKLOAD = SMALL["workloads"][0]
STEADY = {"steady": 1}


def changed(**values: Any) -> dict[str, Any]:
    """SMALL with top-level keys replaced; None removes one."""
    found = copy.deepcopy(SMALL) | values
    return {key: value for key, value in found.items() if value is not None}


def write(folder: Path, data: Any, name: str = "scenario.yaml") -> Path:
    """A YAML file; text is written as it is."""
    # Through JSON, or PyYAML writes aliases for what occurs twice.
    plain = data if isinstance(data, str) else json.loads(json.dumps(data))
    text = plain if isinstance(plain, str) else yaml.safe_dump(plain, sort_keys=False)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path, seed: int | None = None, **values: Any) -> Loaded:
    """The small scenario with changes, loaded."""
    return load(write(folder, changed(**values)), seed=seed)


def problems_of(folder: Path, data: Any, **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(ScenarioError) as caught:
        load(write(folder, data), **options)
    return caught.value.problems


def make_trace(**columns: Any) -> Trace:
    """`a` with memory readings, `b` with CPU readings and a life of 1 h, `c` without any."""
    values: dict[str, Any] = {
        "names": np.array(["a", "b", "c"], dtype=object),
        "start_s": np.array([0, 600, 0], np.int64),
        "stop_s": np.array([-1, 4200, -1], np.int64),
        "vcpus": np.array([1, 2, 4], np.int64),
        "memory_bytes": np.array([GIB, 2 * GIB, 4 * GIB], np.int64),
        "cpu_capacity_mhz": np.array([np.nan, 2000.0, np.nan]),
        "offsets": np.array([0, 4, 6, 6], np.int64),
        "t_s": np.array([0, 300, 600, 900, 600, 900], np.int64),
        "active_bytes": np.array([64 * MIB, 64 * MIB, -1, 128 * MIB, -1, -1], np.int64),
        "cpu_permille": np.array([100, 100, 100, -1, 0, 1000], np.int64),
    }
    return Trace(**(values | columns))


def save(folder: Path, trace: Trace, name: str = "trace") -> str:
    """The trace as a folder beside the scenario; returns its name."""
    save_trace(trace, folder / name, {"format": "test"})
    return name


def trace_of(**values: Any) -> dict[str, Any]:
    """A `trace` key, with changes."""
    return {"path": "trace", "images": {"linux": 1}} | values
