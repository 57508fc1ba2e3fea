"""What a VM replays, for tests: a few pages, their contents, and what happens to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as some

from hostsim.replay import EVENT, READ, USE_BITS, Replay
from hostsim.state import ANON, CACHE, FREE, KERNEL

CONTENTS = 12
"""Contents of the tests' source: few, so that pages hold the same."""


def make_replay(
    boot: Sequence[tuple[int, int]],
    later: Sequence[tuple[int, int, int]] = (),
    contents: int = CONTENTS,
) -> Replay:
    """boot: use and place of each page, ordered as a replay is; later: ms, page, place or READ."""
    events = np.zeros(len(boot) + len(later), EVENT)
    for row, (page, (use, place)) in zip(events, enumerate(boot), strict=False):
        row["page"], row["word"] = page, use << USE_BITS | place
    for row, (at_ms, page, place) in zip(events[len(boot) :], sorted(later), strict=True):
        row["at_ms"], row["page"], row["word"] = at_ms, page, place
    uses = [use for use, _ in boot]
    free, kernel = uses.count(int(FREE)), uses.count(int(KERNEL))
    return Replay(events, len(boot), len(boot) - free, kernel, contents)


ORDER = (int(KERNEL), int(CACHE), int(ANON), int(FREE))


@some.composite
def replays(draw: some.DrawFn, pages_max: int = 60, ends_ms: int = 12_000) -> Replay:
    """Any guest of up to so many pages: its boot, then writes and reads until `ends_ms`."""
    place = some.integers(0, CONTENTS)
    uses = draw(some.lists(some.sampled_from(ORDER), min_size=1, max_size=pages_max))
    is_used = sorted(uses, key=lambda use: 2 if use == FREE else use != KERNEL)
    boot = [(use, draw(place)) for use in is_used]
    event = some.tuples(
        some.integers(1, ends_ms), some.integers(0, len(boot) - 1), place | some.just(READ)
    )
    return make_replay(boot, draw(some.lists(event, max_size=80)))
