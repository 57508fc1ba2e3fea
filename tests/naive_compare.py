"""Fast host against literal twin: every observable number, and what each guest would read.

`differences` names each disagreement with both values. Unique contents carry different names in the
two hosts, so they are compared by identity: distinct where the other's are distinct, and unchanged
where the other's are unchanged (`Identity`). The estimate of active memory is float64 in one host
and exact in the other: equal within TOLERANCE. All else must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import naive_compress as compress
import naive_large as large
import naive_tier as tier
import numpy as np
from naive_host import active_fraction, limits
from naive_index import TRUNCATED, HintFrame
from naive_machine import ELSEWHERE, ZERO_PAGE, Content
from naive_pages import content_hash
from naive_policy import HARD, LOW, SOFT, slots
from naive_state import Annotation, Copied, Esx, Use, Vm

from hostsim import contents, sample
from hostsim.contents import Key, keys_of
from hostsim.host import Host
from hostsim.rows import CAUSES
from hostsim.state import (
    ACCESSED,
    HINT,
    INDEX,
    KIND,
    PPN_BITS,
    STALE,
    STATE,
    STATES,
    UNIQUE,
    USE_SHIFT,
)

TOLERANCE = 1e-12

EVENTS = [
    "zero_fills",
    "scanned",
    "shares_made",
    "stale_hints",
    "cow_breaks",
    "cow_reuses",
    "inflated",
    "deflated",
    "pops",
    "swap_outs",
    "swap_ins",
    "double_pagings",
    "stale_reads",
    "minor_faults",
    "shared_before_swap",
    "swap_drops",
    "swap_skips",
    "guest_page_ins",
    "guest_page_outs",
    "guest_refusals",
    "stalled_touches",
    "cpu_demand_ms",
    "transmits",
    "copies",
    "remaps",
    "compressions",
    "decompressions",
    "cache_evictions",
    "large_breaks",
    "ssd_outs",
    "ssd_ins",
    "tier_touches",
    "tier_ups",
    "tier_downs",
]
"""Counters of a host since the last measurement."""

MILLIONTHS = 1_000_000

Difference = tuple[str, Any, Any]
"""What differs, in the fast host, in the twin."""


def host_numbers(esx: Esx) -> dict[str, int]:
    """What the fast host keeps in its HOST row, counted in the twin."""
    top = limits(esx)
    numbers = {name: esx.events[name] for name in EVENTS}
    return numbers | {
        "now_ms": esx.now_ms,
        "tick": esx.tick,
        "tick_ms": esx.tick_ms,
        "dt_ms": esx.dt_ms,
        "pace_ms": esx.pace_ms,
        "by_law": int(esx.by_law),
        "intake": esx.intake,
        "machine": slots(esx.config.machine_bytes - esx.config.reserve, esx.sample),
        "overhead": sum(len(vm.overhead) for vm in esx.on()),
        "free": esx.free,
        "highmem_free": len(esx.machine.free_of(high=True)),
        "held": len(esx.held),
        "held_highmem": sum(esx.machine.is_high(mpn) for mpn in esx.held),
        "distinct": len(esx.index.shared_frames()),
        "hint_frames": len(esx.index.hint_frames()),
        "level": esx.level,
        "level_free": esx.level_free,
        "rebalance": int(esx.rebalance),
        "goal": top.goal,
        "down_soft": top.down[SOFT],
        "down_hard": top.down[HARD],
        "down_low": top.down[LOW],
        "up_high": top.up[top.order[1]],
        "up_clear": top.up[SOFT],
        "up_soft": top.up[HARD],
        "up_hard": top.up[LOW],
        "large_slots": large.slots_of_one(esx),
        "large_carry": int(esx.breaking.owed * MILLIONTHS * esx.sample * large.slots_of_one(esx)),
        "scanned_last_step": esx.scanned_last_step,
        "scan_carry": int(esx.scan.owed * MILLIONTHS * esx.sample),
        "swap_io_left": esx.swap_io_left,
        "ssd_io_left": esx.ssd_io_left,
        "ssd_used": sum(len(vm.in_host_cache) for vm in esx.on()),
        "tier_io_left": esx.tier_io_left,
        "tier_hand": esx.hand,
        "tier_goal": tier.goal(esx),
        "swap_cluster_left": esx.cluster_room,
    }


def vm_numbers(esx: Esx, vm: Vm) -> dict[str, int]:
    """What the fast host keeps in a VM row, counted in the twin."""
    guest = vm.guest
    return {
        "size_slots": vm.size,
        "reservation": vm.reservation,
        "limit": vm.limit,
        "shares": vm.shares,
        "overhead": len(vm.overhead),
        "overhead_due": vm.overhead_due,
        "transmit_carry": int(guest.transmit.owed * MILLIONTHS * esx.sample),
        "untouched": len(vm.pages("untouched")),
        "resident": len(vm.pages("resident")),
        "highmem": sum(1 for p in vm.pages("resident") if esx.is_high(vm, p)),
        "shared": len(vm.pages("shared")),
        "ballooned": vm.count(Annotation.BALLOONED),
        "swapped": len(vm.swap),
        "large": len(vm.large),
        "large_carry": int(vm.breaking.owed * MILLIONTHS * esx.sample * large.slots_of_one(esx)),
        "compressed": len(vm.compressed),
        "compressed_quarters": compress.taken(esx, vm),
        "compressed_max": compress.most(esx, vm),
        "compressed_highmem": sum(map(esx.machine.is_high, vm.cache_frames)),
        "oldest": 1 + next(iter(vm.compressed), -1),
        "newest": 1 + next(reversed(vm.compressed), -1),
        "backed": len(vm.backed),
        "target": vm.target,
        "balloon_target": vm.balloon_target,
        "balloon_max": vm.balloon_max,
        "blocked": int(vm.blocked),
        "touched_before": vm.touched_before,
        "gave": vm.gave,
        "kernel": guest.kernel,
        "footprint": guest.footprint,
        "brk": guest.brk,
        "window": guest.window,
        "span": guest.span,
        "active": guest.active,
        "guest_free": len(vm.guest_free()),
        "cache": len(vm.in_guest_memory(Use.CACHE)),
        "anon": len(vm.in_guest_memory(Use.ANON)),
        "guest_swapped": vm.guest_swapped(),
        "guest_swap": vm.guest_swap,
        "booted": int(guest.booted),
        "scrub_cursor": guest.scrub_cursor,
        "touchable": vm.touchable,
        "event": (vm.spec.replay.pages if vm.spec.replay else 0) + guest.replayed,
        "sweep": guest.sweep,
        "touch_carry": guest.touch_credit,
        "stalled": 0 if guest.stalled is None else 1 + 2 * guest.stalled[0] + guest.stalled[1],
        "disk_io_left": guest.disk_io_left,
        "lost_driver": int(vm.driver_lost),
        "boot_end_ns": guest.boot_end_ns,
        "clock_ns": vm.clock_ns,
        "backlog_ns": vm.backlog_ns,
        "on_ns": vm.on_ns,
        "touches": vm.touches,
        "writes": vm.writes,
        "cpu_ms": vm.cpu_ms,
        "samples": len(vm.sampled),
        "periods": vm.periods,
        "period_start_ns": vm.period_start_ns,
        "scan_carry": int(vm.scan.owed * MILLIONTHS * esx.sample),
    }


@dataclass
class Identity:
    """Unique contents of the last comparison: (vm, ppn) -> name in the fast host, in the twin."""

    last: dict[tuple[int, int], tuple[int, Content]] = field(default_factory=dict)

    def differences(self, now: dict[tuple[int, int], tuple[int, Content]]) -> list[Difference]:
        """A name stays while the page is not written. (The fast host may leave it when one unique
        content replaces another: no one can tell.)"""
        found: list[Difference] = []
        names = [(page[0], word) for page, (word, _) in now.items()]
        if len(set(names)) != len(names):
            found.append(("a unique content lies on two pages of a VM", names, None))
        values = [value for _, value in now.values()]
        if len(set(values)) != len(values):
            found.append(("a unique content lies on two pages", None, values))
        for page, (word, value) in now.items():
            before = self.last.get(page)
            if before is not None and before[1] == value and before[0] != word:
                found.append((f"unique content of {page}", (before[0], word), "not written"))
        self.last = now
        return found


def content_of(host: Host, keys: tuple[Key, ...], pool: int, word: int) -> Content | None:
    """What a content word stands for in a VM that draws from `keys`, with so many contents in the
    pool of its image; None = unique."""
    if word & UNIQUE:
        return None
    for key in keys:
        at = host.ranges[key]
        j = (word & INDEX) - at.base
        if 0 <= j < at.length:
            if key.kind == contents.ZERO_RANGE:
                return ELSEWHERE if j else ZERO_PAGE
            family = key.family if key.family >= 0 else f"of image {-1 - key.family}"
            name = ("", "image", "application", "duplicate")[key.kind]
            if name == "image":
                name, j = ("pool", j) if j < pool else ("image", j - pool)
            return f"{name} {family} {j}".encode()
    raise AssertionError(f"content {word & INDEX} lies in none of {keys}")


def differences(host: Host, esx: Esx, identity: Identity) -> list[Difference]:
    """All disagreements; empty when the hosts agree."""
    found = [d for d in _numbers("host", host.state.host[0], host_numbers(esx))]
    for level in range(5):
        found += _unequal(f"ms at level {level}", host.state.level_ms[level], esx.level_ms[level])
    found += _unequal("VMs", host.vm_ids(), sorted(esx.vms))
    found += _unequal("copies", _copied(host), esx.copied)
    unique: dict[tuple[int, int], tuple[int, Content]] = {}
    for vm in esx.on():
        v = int((host.state.vms["vm"] == vm.spec.vm).argmax())
        row = host.state.vms[v]
        bits = host.state.large[row.large_base : row.large_base + row.regions]
        regions = set(np.flatnonzero(bits).tolist())
        found += _unequal(f"large pages of VM {vm.spec.vm}", regions, vm.large)
        found += _vm_differences(host, esx, vm, v)
        found += _pages_differences(host, esx, vm, v, unique)
    return found + identity.differences(unique)


def _copied(host: Host) -> dict[int, Copied]:
    """Pages with a copy counter, by place."""
    table = host.state.copied
    found = {}
    for i in np.flatnonzero(table[:, 0] >= 0).tolist():
        name, copies = table[i].tolist()
        found[i] = Copied(*divmod(name, 1 << int(PPN_BITS)), copies)
    return found


def _unequal(what: str, fast: Any, twin: Any) -> Iterator[Difference]:
    if fast != twin:
        yield what, fast, twin


def _numbers(what: str, row: Any, numbers: dict[str, int]) -> Iterator[Difference]:
    for name, twin in numbers.items():
        yield from _unequal(f"{what} {name}", int(row[name]), twin)


def _vm_differences(host: Host, esx: Esx, vm: Vm, v: int) -> Iterator[Difference]:
    st, name = host.state, f"VM {vm.spec.vm}"
    yield from _numbers(name, st.vms[v], vm_numbers(esx, vm))
    for cause, lost_ns in zip(CAUSES, st.lost[v].tolist(), strict=True):
        yield from _unequal(f"{name} ns lost to {cause}", lost_ns, vm.lost[cause])
    for cause, debt_ns in zip(CAUSES, st.debts[v].tolist(), strict=True):
        yield from _unequal(f"{name} ns still due to {cause}", debt_ns, vm.debts[cause])
    yield from _unequal(f"{name} sample", st.sampled[v, : st.vms[v].samples].tolist(), vm.sampled)
    fast, twin = sample.active_fraction(st, v), active_fraction(vm)
    if abs(fast - twin) > TOLERANCE:
        yield f"{name} active fraction", fast, float(twin)


def _pages_differences(
    host: Host, esx: Esx, vm: Vm, v: int, unique: dict[tuple[int, int], tuple[int, Content]]
) -> Iterator[Difference]:
    """Every page of a VM: where it is, what it holds. Fills `unique`."""
    row = host.state.vms[v]
    keys = keys_of(row)
    cut = slice(int(row.base_slot), int(row.base_slot) + vm.size)
    words = host.state.content[cut].tolist()
    for ppn, byte in enumerate(host.state.page[cut].tolist()):
        yield from _page_differences(host, esx, vm, ppn, byte, words[ppn])
        holds = guest_reads(esx, vm, ppn)
        if holds is None:
            continue
        fast = content_of(host, keys, int(row.pool), words[ppn])
        is_unique = holds.startswith(b"written")
        if fast != (None if is_unique else holds):
            yield f"VM {vm.spec.vm} page {ppn} content", fast, holds
        if is_unique:
            unique[vm.spec.vm, ppn] = (words[ppn] & INDEX, holds)


def guest_reads(esx: Esx, vm: Vm, ppn: int) -> Content | None:
    """What the guest finds in a page, in memory or on a disk; None: it has nothing there."""
    if ppn in vm.guest.away:
        return vm.guest.home[ppn]
    if vm.frame(ppn) is not None or vm.state(ppn) in ("swapped", "compressed"):
        return esx.read(vm, ppn)
    return None


def _page_differences(
    host: Host, esx: Esx, vm: Vm, ppn: int, byte: int, word: int
) -> Iterator[Difference]:
    """State, use and hint of one page, references to its frame."""
    where, state = f"VM {vm.spec.vm} page {ppn}", vm.state(ppn)
    yield from _unequal(f"{where} state", STATES[byte & STATE], state)
    yield from _unequal(f"{where} use", byte >> USE_SHIFT, vm.guest.use[ppn].value)
    entry = vm.frame(ppn)
    if entry is not None:
        yield from _unequal(f"{where} mapped", byte & ACCESSED != 0, ppn in vm.mapped)
    else:
        is_backed = state == "ballooned" and byte & ACCESSED != 0
        yield from _unequal(f"{where} backed", is_backed, ppn in vm.backed)
        is_dropped = state == "swapped" and byte & ACCESSED != 0
        yield from _unequal(f"{where} dropped", is_dropped, ppn in vm.dropped)
        is_cached = state == "swapped" and byte & KIND != 0
        yield from _unequal(f"{where} in the host cache", is_cached, ppn in vm.in_host_cache)
    if entry is not None:
        kind = int(host.state.shared_kind[word & INDEX]) if entry.cow else byte & KIND
        yield from _unequal(f"{where} is high", kind != 0, esx.is_high(vm, ppn))
    yield from _hint_differences(esx, vm, ppn, byte, word)
    if entry is not None and entry.cow:
        refs = int(host.state.refs[word & INDEX])
        yield from _unequal(f"{where} references", refs, esx.index.references(entry.mpn))


def _hint_differences(esx: Esx, vm: Vm, ppn: int, byte: int, word: int) -> Iterator[Difference]:
    entry = vm.frame(ppn)
    record = None if entry is None or entry.cow else esx.index.record_of(entry.mpn)
    where = f"VM {vm.spec.vm} page {ppn}"
    yield from _unequal(f"{where} hint", byte & HINT != 0, record is not None)
    if record is None or entry is None:
        return
    assert isinstance(record, HintFrame)
    yield from _unequal(f"{where} hint owner", (vm.spec.vm, ppn), (record.vm, record.ppn))
    is_stale = content_hash(esx, entry.mpn) & TRUNCATED != record.truncated_hash
    yield from _unequal(f"{where} hint is stale", word & STALE != 0, is_stale)
