"""The page of a rank among those of a kind: against a plain look at every page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostsim import ranks
from hostsim.state import (
    ANON,
    BALLOONED,
    CACHE,
    COMPRESSED,
    RESIDENT,
    SHARED,
    STATE,
    SWAPPED,
    USE_SHIFT,
)

BYTES = st.lists(st.integers(0, 255), min_size=1, max_size=400)


def used(use: int) -> tuple[ranks.Kind, set[int], int | None]:
    """The kind, the states it stands for, and the guest use."""
    kind = ranks.used_as(use)
    return kind, {RESIDENT, SHARED, SWAPPED, COMPRESSED}, use


KINDS = {
    "in memory": (ranks.IN_MEMORY, {RESIDENT, SHARED}, None),
    "pinned": (ranks.PINNED, {BALLOONED}, None),
    "cache": used(int(CACHE)),
    "anon": used(int(ANON)),
}


@pytest.mark.parametrize("name", KINDS)
@given(values=BYTES)
def test_every_rank_is_the_page_that_a_plain_count_finds(name: str, values: list[int]) -> None:
    kind, states, use = KINDS[name]
    page = np.array(values, np.uint8)
    places = [
        i
        for i, byte in enumerate(values)
        if byte & int(STATE) in states and use in (None, byte >> int(USE_SHIFT))
    ]
    assert ranks.count(page[: ranks.BLOCK], kind) == sum(i < ranks.BLOCK for i in places)
    assert [ranks.place_of(page, kind, rank) for rank in range(len(places))] == places
