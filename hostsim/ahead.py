"""Random pages that a kernel will come to, asked of memory in time.

Draws are counter-based: which page comes in which turn does not depend on the turns before. So a
kernel asks for a page FAR turns before its own, and NEAR turns before, when its content is there,
for what that says will be needed. What is done, and in which order, stays the same. Nothing of this
branches on what pages hold: a branch that is guessed wrong costs as much as the miss that it saves.
A page is drawn again each time: keeping draws in a ring saved 3 ns of 40 a victim, and would tie
the search for one to its caller.
"""

from __future__ import annotations

from hostsim.jit import fetch, i64, small
from hostsim.state import INDEX, HostState

FAR, NEAR = map(i64, (32, 16))
"""Turns ahead."""


@small
def fetch_page(st: HostState, slot: int) -> None:
    """Ask for a page's state and content."""
    fetch(st.page, slot)
    fetch(st.content, slot)


@small
def fetch_frame(st: HostState, slot: int) -> None:
    """Ask for what a page's content is indexed by; where it is unique, for nothing of use."""
    fetch(st.indexed, i64(st.content[slot]) & INDEX)
