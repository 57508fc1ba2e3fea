"""Pages drawn from a pool: how many contents VMs then have in common, and that nothing but the seed
and the VM decides which."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import numpy as np
import pytest
from host_builders import (
    SECOND,
    counter,
    make_host,
    make_image,
    make_spec,
    power_on,
    row_of,
    run,
    run_until_booted,
)
from pydantic import ValidationError

from hostsim.guest_config import ContentMix, ContentTable, GuestImage
from hostsim.host import Host
from hostsim.state import Array
from hostsim.units import MIB, PAGE_SIZE

DRAWN, POOL = 1000, 1430
"""Pages that each VM draws, and contents of the pool: q / P = 0.7, as in the paper's figure 4."""
CONTENT = ContentTable(kernel=ContentMix(image=250), cache=ContentMix(pool=250, image=500))
PLAIN = ContentTable(anon=ContentMix(unique=1000))


def pooled(n_vms: int, *, seed: int = 1, sample: int = 1, salting: str = "none") -> Host:
    """VMs of one image, scanned through: a quarter of their 4000 slots is drawn from the pool."""
    image = make_image(
        4 * DRAWN * PAGE_SIZE * sample, content=CONTENT, pool=POOL * PAGE_SIZE * sample
    )
    rates = {f"scan_pages_per_s_{of}": 4000 * n_vms * sample for of in ("vm", "total")}
    sharing = {"enabled": True, "salting": salting} | rates
    host = make_host(1024 * MIB, seed=seed, sample=sample, sharing=sharing)
    power_on(host, *(make_spec(vm, 16 * MIB * sample, image=image) for vm in range(n_vms)))
    run_until_booted(host)
    run(host, 30 * SECOND)
    return host


def drawn(host: Host, vm: int) -> Array:
    """Places in the pool that a VM drew, by page."""
    row = row_of(host, vm)
    words = host.state.content[row.base_slot : row.base_slot + 4 * DRAWN].astype(np.int64)
    places = words - int(row.image_base)
    return places[(places >= 0) & (places < POOL)]


def occupancy(n: int, cells: int) -> tuple[float, float, float, float]:
    """Mean and variance of the cells that n balls reach, and of those with just one ball.

    By the first two factorial moments (Feller, An Introduction to Probability Theory I, IV.2)."""
    empty, two_empty = (1 - 1 / cells) ** n, (1 - 2 / cells) ** n
    reached_var = cells * (cells - 1) * two_empty + cells * empty - (cells * empty) ** 2
    singles = n * (1 - 1 / cells) ** (n - 1)
    pairs = n * (n - 1) * (1 - 1 / cells) * (1 - 2 / cells) ** (n - 2)
    return cells * (1 - empty), reached_var, singles, pairs + singles - singles**2


@pytest.mark.parametrize(("n_vms", "sample"), [(1, 1), (2, 1), (5, 1), (2, 16)])
def test_vms_share_what_draws_with_replacement_say(n_vms: int, sample: int) -> None:
    """n = N x 1000 draws of 1430: P (1 - (1 - 1/P)^n) contents, n (1 - 1/P)^(n - 1) of them held
    once; within 5 standard errors. Pages that are shared, and frames that are saved, follow."""
    host = pooled(n_vms, sample=sample)
    counts = Counter(np.concatenate([drawn(host, vm) for vm in range(n_vms)]).tolist())
    assert counts.total() == n_vms * DRAWN
    reached, reached_var, singles, singles_var = occupancy(n_vms * DRAWN, POOL)
    once = sum(count == 1 for count in counts.values())
    assert abs(len(counts) - reached) < 5 * sqrt(reached_var)
    assert abs(once - singles) < 5 * sqrt(singles_var)
    images = 3 * DRAWN if n_vms > 1 else 0
    shared = sum(int(row_of(host, vm).shared) for vm in range(n_vms))
    assert shared == n_vms * images + counts.total() - once
    assert counter(host, "distinct") == images + len(counts) - once


def test_image_contents_lie_behind_the_pool_one_each() -> None:
    host = pooled(2)
    row = row_of(host, 1)
    words = host.state.content[row.base_slot : row.base_slot + 4 * DRAWN].astype(np.int64)
    places = np.sort(words - int(row.image_base))
    assert places[DRAWN:].tolist() == list(range(POOL, POOL + 3 * DRAWN))


def test_seed_and_vm_decide_what_is_drawn_and_nothing_else() -> None:
    alone, among, other = pooled(1), pooled(3), pooled(1, seed=2)
    assert drawn(alone, 0).tolist() == drawn(among, 0).tolist()
    overlaps = [(drawn(alone, 0) == page).mean() for page in (drawn(among, 1), drawn(other, 0))]
    assert max(overlaps) < 5 / POOL  # chance: 1 / 1430


def test_salting_leaves_what_a_vm_drew_twice() -> None:
    host = pooled(3, salting="vm")
    for vm in range(3):
        counts = Counter(drawn(host, vm).tolist())
        assert int(row_of(host, vm).shared) == sum(c for c in counts.values() if c > 1)


@pytest.mark.parametrize(
    ("content", "pool", "message"),
    [(CONTENT, 0, "pages of class pool need a pool"), (PLAIN, MIB, "pool is of no use")],
)
def test_a_pool_and_pages_of_it_go_together(content: ContentTable, pool: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GuestImage(content=content, pool=pool)
