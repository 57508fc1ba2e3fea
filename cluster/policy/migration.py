"""PURE: live migration by pre-copy, as a state machine on the epoch grid.

Orders and hand-over lie on the grid; in between, rounds go on in continuous time. The first round
sends all of a VM's memory, each next one the pages that the guest wrote meanwhile. Once what is
left can be sent within the downtime allowed, the VM stops, and goes on at the target from the next
epoch on. What a guest writes follows from what its host measured in the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hostsim.units import PAGE_SIZE, HostId, VmId

ROUNDS_MAX = 30
"""After so many rounds a migration counts as stalled; Xen's limit (Clark et al., NSDI 2005)."""
NS_PER_S = 1_000_000_000
DIVERGES = "the guest writes faster than the network sends"
TOO_MANY_ROUNDS = f"not converged after {ROUNDS_MAX} rounds"


@dataclass(frozen=True, slots=True)
class Writing:
    """How a guest writes, as measured in the last epoch.

    writes: pages written, one that was written again counted again, in `span_ns` ns. active_pages:
    the pages that they spread over, as its host estimates them [P 5.3].
    """

    writes: int
    span_ns: int
    active_pages: int


@dataclass(frozen=True, slots=True)
class Flight:
    """A VM on its way: it runs on `source` while its memory is copied to `target`."""

    vm: VmId
    source: HostId
    target: HostId
    ordered_ms: int
    why: str
    """What asked for it: balancing, maintenance, an event."""
    round_bytes: int
    """What the round under way has to send."""
    left_bytes: int
    """Of these, not sent yet."""
    rounds: int = 1
    round_ns: int = 0
    """How long the round has been going on."""
    writes: int = 0
    """Pages that the guest wrote in it, as far as it was let."""
    sent_bytes: int = 0
    elapsed_ns: int = 0
    slow_permille: int = 1000
    """Which part of its speed the guest is let."""
    slowed_ns: int = 0
    """Time that the guest lost to being slowed."""
    downtime_ns: int | None = None
    """What the last round takes, with the VM stopped: it is ready. None while copying."""
    stalled: str | None = None
    """Why it was given up."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a flight may proceed: its part of the network, and when to stop the guest."""

    bytes_per_s: int
    downtime_ns: int
    slow: bool
    """Slow a guest that writes too fast; else give up."""


def distinct_pages(n_pages: int, writes: int) -> int:
    """How many of `n_pages` pages `writes` writes hit on average, each page equally likely.

    n (1 - (1 - 1/n)^w), rounded up. By repeated squaring: + - * / give the same on every CPU.
    """
    if n_pages <= 0 or writes <= 0:
        return 0
    missed, factor, left = 1.0, 1.0 - 1.0 / n_pages, writes
    while left:
        if left & 1:
            missed *= factor
        factor *= factor
        left >>= 1
    hit = n_pages * (1.0 - missed)
    return min(-int(-hit // 1), n_pages, writes)


def order(
    vm: VmId, source: HostId, target: HostId, *, at_ms: int, memory_pages: int, why: str
) -> Flight:
    """A migration begins: its first round sends all pages that are in memory."""
    size = memory_pages * PAGE_SIZE
    return Flight(vm, source, target, at_ms, why, round_bytes=size, left_bytes=size)


def copy(flight: Flight, terms: Terms, writing: Writing, span_ns: int) -> Flight:
    """The flight after `span_ns` more: still copying, ready (`downtime_ns`), or stalled."""
    spent_ns = 0
    while flight.downtime_ns is None and flight.stalled is None:
        need_ns = _ns_to_send(flight.left_bytes, terms.bytes_per_s)
        step_ns = min(need_ns, span_ns - spent_ns)
        flight = _during(flight, terms, writing, step_ns, is_whole=step_ns == need_ns)
        spent_ns += step_ns
        if flight.left_bytes > 0:
            return flight
        flight = _next_round(flight, terms, writing)
        if spent_ns == span_ns:
            return flight
    return flight


def _during(
    flight: Flight, terms: Terms, writing: Writing, step_ns: int, *, is_whole: bool
) -> Flight:
    """A part of a round: pages are sent while the guest writes."""
    most = step_ns * terms.bytes_per_s // NS_PER_S
    sent = flight.left_bytes if is_whole else min(most, flight.left_bytes)
    let = step_ns * flight.slow_permille // 1000
    return replace(
        flight,
        left_bytes=flight.left_bytes - sent,
        sent_bytes=flight.sent_bytes + sent,
        round_ns=flight.round_ns + step_ns,
        elapsed_ns=flight.elapsed_ns + step_ns,
        writes=flight.writes + writing.writes * let // max(writing.span_ns, 1),
        slowed_ns=flight.slowed_ns + step_ns - let,
    )


def _next_round(flight: Flight, terms: Terms, writing: Writing) -> Flight:
    """A round is over: what was written meanwhile is left. Stop the guest, go on, or stall."""
    dirty = distinct_pages(writing.active_pages, flight.writes) * PAGE_SIZE
    last_ns = _ns_to_send(dirty, terms.bytes_per_s)
    if last_ns <= terms.downtime_ns:
        return replace(flight, sent_bytes=flight.sent_bytes + dirty, downtime_ns=last_ns)
    stalled = None
    if dirty >= flight.round_bytes:
        stalled = DIVERGES
    elif flight.rounds >= ROUNDS_MAX:
        stalled = TOO_MANY_ROUNDS
    slow = flight.slow_permille
    if stalled is not None:
        if not terms.slow:
            return replace(flight, stalled=stalled)
        # Writes of a round, at most as many pages as they are, then fill half of it. Twice in a
        # row means that this is not enough.
        slow = slow * flight.round_bytes // (2 * PAGE_SIZE * max(flight.writes, 1))
    return replace(
        flight,
        round_bytes=dirty,
        left_bytes=dirty,
        rounds=flight.rounds + 1,
        round_ns=0,
        writes=0,
        slow_permille=min(slow, flight.slow_permille),
    )


def _ns_to_send(size_bytes: int, bytes_per_s: int) -> int:
    return -(-size_bytes * NS_PER_S // bytes_per_s)
