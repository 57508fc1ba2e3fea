"""Contrasts of a host's slots: against a literal twin, and that they add up over VMs and hosts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from host_builders import make_host, make_image, make_spec, power_on, run_until_booted
from test_measure import busy_host

from hostsim import rng, spread
from hostsim.guest_config import ContentMix, ContentTable
from hostsim.host import Host
from hostsim.state import INDEX, RESIDENT, SHARED, STATE, SWAPPED
from hostsim.units import MIB


def contrasts(host: Host) -> Any:
    found = spread.no_contrasts()
    spread.add_to(found, host.state)
    return found


def values(host: Host, v: int, ppn: int) -> tuple[int, int, int]:
    """What a page counts as: saved, in memory, swapped."""
    st, vm = host.state, host.state.vms[v]
    slot = vm.base_slot + ppn
    state, content = st.page[slot] & STATE, int(st.content[slot]) & INDEX
    if state == SHARED:
        alone = content in (vm.zero, vm.zero + 1)
        own = 0 if alone else spread.PARTS // st.refs[content]
        return int(spread.PARTS - own), int(spread.PARTS), 0
    return 0, int(spread.PARTS * (state == RESIDENT)), int(spread.PARTS * (state == SWAPPED))


def literal(host: Host) -> Any:
    """The same, page by page and kind by kind."""
    st, found = host.state, spread.no_contrasts()

    def step(row: int, by: int, word: int) -> None:
        for i in range(spread.CONTRASTS):
            found[row, i] += -by if word >> i & 1 else by

    for v in st.order[: len(host.specs)]:
        vm = st.vms[v]
        pages = [values(host, v, ppn) for ppn in range(vm.size_slots)]
        found[:, spread.TOTAL] += np.sum(pages, axis=0)
        bounds = [0, vm.kernel, vm.footprint, vm.size_slots]
        for section, (first, end) in enumerate(pairwise(bounds)):
            key = np.uint64(rng.stream(st.host[0].seed, rng.SPREAD, vm.image_family, section))
            with np.errstate(over="ignore"):
                words = [int(rng.word(key, i)) for i in range(end - first + spread.N_KINDS)]
            kinds = st.kinds[vm.pattern, section]
            period = st.periods[vm.pattern, section]
            for kind in range(spread.N_KINDS):
                its = [i for i in range(end - first) if kinds[i % period] == kind]
                for row in (spread.SAVED, spread.OUT):
                    steps = np.diff([0, *(pages[first + i][row] for i in its), 0])
                    if len(its) > 1:  # ends that are known but for a slot
                        steps[0] = steps[0] * spread.EDGE // spread.EDGE_UNIT
                        steps[-1] = -(-steps[-1] * spread.EDGE // spread.EDGE_UNIT)
                    for i, by in zip([*its, end - first + kind], steps.tolist(), strict=True):
                        step(row, by, words[i])
            for i in range(end - first):
                before = pages[max(first + i - 1, 0)]
                step(spread.ALLOCATED, pages[first + i][1] - before[1], words[i])
    return found


@pytest.mark.parametrize("sample", [1, 16])
def test_contrasts_are_those_of_the_literal_twin(sample: int) -> None:
    host = busy_host(sample)
    host.advance(30_000)
    found = contrasts(host)
    assert (found != 0).any(axis=1).all()
    assert found.tolist() == literal(host).tolist()


def test_totals_are_what_is_measured() -> None:
    host = busy_host()
    host.advance(30_000)
    row = host.measure()[0][0]
    saved, allocated, swapped = contrasts(host)[:, spread.TOTAL] / spread.PARTS
    assert (allocated, swapped) == (row.allocated_pages, row.swapped_pages)
    zeros = host.state.refs[host.zero_pages()]  # one frame each, which a sample does not show
    assert saved == pytest.approx(row.shared_saved_pages + (zeros > 0).sum(), abs=0.01)
    assert allocated - saved == pytest.approx(row.consumed_pages - (zeros > 0).sum(), abs=0.01)


def test_vms_of_an_image_are_one_draw_wherever_they_run() -> None:
    """Equal VMs on two hosts: contrasts are equal, so that their sum is twice one's."""
    mix = ContentMix(zero=100, image=200, unique=200)
    image = make_image(4 * MIB, content=ContentTable(anon=mix, cache=mix))

    def booted(vm: int, family: int) -> Any:
        host = make_host(64 * MIB, sample=4)
        power_on(host, make_spec(vm, memory=8 * MIB, image=image, image_range=family))
        run_until_booted(host)
        return contrasts(host)[spread.ALLOCATED]

    one, same, other = booted(1, 1), booted(2, 1), booted(1, 2)
    assert one.any() and one.tolist() == same.tolist()
    assert one[spread.TOTAL] == other[spread.TOTAL] and one.tolist() != other.tolist()
