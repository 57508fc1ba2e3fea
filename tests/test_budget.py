"""The estimate of memory, and the refusal of what is too large."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenario_files import HOST, IMAGE, VM, loaded

from cluster.budget import (
    CONTENT_BYTES,
    COUNTER_BYTES,
    PROCESS_BYTES,
    SLOT_BYTES,
    WINDOW_BYTES,
    TooLargeError,
    check,
    estimate,
)
from cluster.population import Population, populate
from cluster.yaml_input import InputError
from hostsim.arrays import empty, stale_size
from hostsim.program import ROW
from hostsim.state import HostState
from hostsim.units import GIB, MIB, PAGE_SIZE

SLOTS = 3 * GIB // PAGE_SIZE
IN_ALL = SLOTS * SLOT_BYTES + 2 * SLOTS // 3 * WINDOW_BYTES
"""Three VMs of 1 GiB; each of the two hosts has working space for one of them."""


def population(folder: Path, **values: Any) -> Population:
    return populate(loaded(folder, **values))


def test_slots_and_processes_are_counted(tmp_path: Path) -> None:
    found = population(tmp_path)
    one, two = estimate(found, 1, 1), estimate(found, 1, 2)
    assert two - one == PROCESS_BYTES
    assert IN_ALL < one - PROCESS_BYTES < IN_ALL + MIB
    assert estimate(found, 64, 0) < IN_ALL // 64 + MIB


def test_the_constants_are_those_of_the_state() -> None:
    state: HostState = empty(1, 1)
    assert state.page.itemsize + state.content.itemsize == SLOT_BYTES
    window = state.loud.itemsize + state.heard.itemsize + state.heard_at.itemsize
    assert window == WINDOW_BYTES
    content = state.indexed.itemsize + state.shared_kind.itemsize
    assert content * 1000 + stale_size(1000) * state.stale.itemsize == 1000 * CONTENT_BYTES + 4
    assert state.copied.itemsize * state.copied.shape[1] == COUNTER_BYTES


def test_contents_are_counted_per_host_or_per_vm_with_salting(tmp_path: Path) -> None:
    shared = [IMAGE | {"growth": {"cache": {"image": "100 %"}}}]
    per_vm = SLOTS // 3 * CONTENT_BYTES
    base = estimate(population(tmp_path), 1, 0)
    hosts = estimate(population(tmp_path, images=shared), 1, 0)
    assert hosts - base == 2 * per_vm
    salted = [HOST | {"sharing": {"salting": "vm"}}]
    assert estimate(population(tmp_path, images=shared, hosts=salted), 1, 0) - base == 3 * per_vm
    own = [IMAGE | {"copies": 4, "growth": {"cache": {"duplicate": "100 %"}}}]
    found = estimate(population(tmp_path, images=own), 1, 0) - base
    assert found == 3 * per_vm // 4
    pool = [IMAGE | {"pool": "8 MiB", "growth": {"cache": {"pool": "100 %"}}}]
    found = estimate(population(tmp_path, images=pool), 1, 0) - base
    assert found == 2 * (8 * MIB // PAGE_SIZE) * CONTENT_BYTES


def test_only_the_busiest_moment_counts(tmp_path: Path) -> None:
    def vms_of(**values: Any) -> int:
        """How many VMs' slots the estimate is for; working space is for two of them at most."""
        found = population(tmp_path, vms=[VM | values])
        per_slot = round((estimate(found, 1, 0) - 3 * 4096) / (SLOTS // 3), 1)
        costs = [n * SLOT_BYTES + min(n, 2) * WINDOW_BYTES for n in range(4)]
        return costs.index(per_slot)

    assert vms_of() == 3
    assert vms_of(stop="10 min", interval="10 min") == 1
    assert vms_of(stop="10 min", interval="9 min") == 2
    assert vms_of(start="never") == 3


def test_rows_of_programs_are_counted(tmp_path: Path) -> None:
    found = population(tmp_path)
    long = np.zeros(1000, ROW)
    spec = replace(found.vms[0].spec, program=long)
    longer = replace(found, vms=(replace(found.vms[0], spec=spec), *found.vms[1:]))
    # In the coordinator and on the host, whatever the sampling factor. The others share theirs.
    for sample in (1, 64):
        grown = estimate(longer, sample, 0) - estimate(found, sample, 0)
        assert grown == 2 * long.nbytes


def test_what_fits_passes_and_the_rest_learns_what_would(tmp_path: Path) -> None:
    found = population(tmp_path)
    needed = estimate(found, 1, 1)
    assert check(found, 1, 1, needed) == needed
    with pytest.raises(TooLargeError) as caught:
        check(found, 1, 1, needed - 1, "f.yaml")
    assert isinstance(caught.value, InputError)
    assert (caught.value.needed_bytes, caught.value.sample) == (needed, 2)
    assert str(caught.value) == (
        "f.yaml: fidelity.sample: 1: the run needs about 0.2 GiB of memory, 0.2 GiB are available; "
        "2 would fit"
    )


@pytest.mark.parametrize("spare_mib", [1, 2, 3])
def test_the_knob_is_the_least_that_fits(tmp_path: Path, spare_mib: int) -> None:
    found = population(tmp_path)
    available = PROCESS_BYTES + spare_mib * MIB
    with pytest.raises(TooLargeError) as caught:
        check(found, 1, 1, available)
    sample = caught.value.sample
    assert sample is not None
    assert estimate(found, sample, 1) <= available < estimate(found, sample // 2, 1)


def test_no_knob_makes_too_many_processes_fit(tmp_path: Path) -> None:
    with pytest.raises(TooLargeError, match="no value makes it fit: take fewer VMs or hosts"):
        check(population(tmp_path), 1, 100, GIB)


def test_an_absurd_run_is_refused_without_being_built(tmp_path: Path) -> None:
    hosts = [HOST | {"memory": "1024 TiB"}]
    found = population(tmp_path, hosts=hosts, vms=[VM | {"memory": "1024 TiB", "count": 2000}])
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        check(found, 1, 2, 16 * GIB)
    assert tracemalloc.get_traced_memory()[1] < 50 * MIB
    tracemalloc.stop()
