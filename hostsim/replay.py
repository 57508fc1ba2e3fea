"""A real guest's pages, replayed: what each held once booted, then when which was written or read.

One list of events, in order of time on the VM's own clock. The first are the boot: event i is what
page i holds at its first use, and what the guest uses it for. Those after it are due at a time
since the end of boot: a write of another content, or a read. So nothing is drawn while it runs.
Pages are numbered as guests number them here: unmovable ones first, then what else is in use, then
those that the guest left dirty but free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

EVENT = np.dtype([("at_ms", np.int64), ("page", np.int32), ("word", np.uint32)], align=True)
"""at_ms: since the end of boot, 0 exactly for the boot. page: its PPN. word: bits 30-31 guest use
(of boot events), bits 0-29 the place of a content in the range of its source, or READ."""

USE_BITS = 30
"""Where a word's guest use begins."""
ZERO_PLACE = 0
"""Place of the zero page, which belongs to no source; the contents of a source count from 1."""
READ = (1 << USE_BITS) - 1
"""In place of a content: the page is only read."""
CONTENTS_MAX = 1 << 28
"""Contents of one source: a snapshot names them with 28 bits."""

Events = npt.NDArray[Any]
"""(n_events,) EVENT."""


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What one guest replays. Its VM simulates every page, and has at least `pages` of them."""

    events: Events
    """The boot of every page in order, then what came later."""
    pages: int
    """Pages that the guest ever touches; all others of its VM stay untouched."""
    used: int
    """Of these, the first are in use; the rest is free to the guest."""
    unmovable: int
    """Of those in use, the first are kernel pages."""
    contents: int
    """Contents of the source, without the zero page; equal for all VMs that share its range."""


def require_sound(replay: Replay) -> None:
    """Nothing leads compiled code astray. Raises ValueError."""
    events, n = replay.events, replay.pages
    place = events["word"].astype(np.int64) & READ
    boot, later = events[:n], events[n:]
    holds = {
        "pages": 0 < n <= len(events) and 0 <= replay.unmovable <= replay.used <= n,
        "boot": bool((boot["at_ms"] == 0).all()) and np.array_equal(boot["page"], np.arange(n)),
        "times": bool((np.diff(later["at_ms"], prepend=1) >= 0).all()),
        "page": bool(((later["page"] >= 0) & (later["page"] < n)).all()),
        "contents": 0 <= replay.contents < CONTENTS_MAX
        and bool((place[:n] <= replay.contents).all())
        and bool(((place[n:] <= replay.contents) | (place[n:] == READ)).all()),
    }
    wrong = [name for name, is_right in holds.items() if not is_right]
    if wrong:
        raise ValueError(f"a replay with wrong {wrong[0]}")
