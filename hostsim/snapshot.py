"""A whole host as bytes and back, and the digest of its state.

A snapshot continues exactly as the original would. The digest is of what the state means, not of
how it lies in memory: VMs in id order, contents by their place in a cluster-wide range, so that it
does not depend on which rows and ranges earlier VMs left free.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from hostsim import contents, invariants
from hostsim.arrays import empty, stale_size, window_space
from hostsim.composition import class_base, compose
from hostsim.config import HostConfig
from hostsim.contents import Key, Range
from hostsim.guest_config import GuestImage
from hostsim.host import Host
from hostsim.load import content_lengths, copy_counters, fill_vms, program_slots
from hostsim.naming import VmRanges, local_names, named, ranges_of
from hostsim.packing import (
    CONFIGURED,
    SPECIFIED,
    PackingError,
    out_of_range,
    pack_array,
    pack_spec,
    require_equal,
    require_keys,
    seal,
    unpack_array,
    unpack_spec,
    unseal,
    whole,
)
from hostsim.records import VM
from hostsim.replay import EVENT
from hostsim.spec import VmSpec
from hostsim.state import (
    ARRAYS,
    INDEX,
    N_CAUSES,
    N_CLASSES,
    PPN_BITS,
    SHARED,
    STATE,
    UNIQUE,
    Array,
    HostState,
    count_vms,
)
from hostsim.units import HostId, VmId

KIND = "host"
WINDOW_SPACE = ("loud", "heard", "heard_at", "n_heard", "powers", "ahead")
DERIVED = (
    *("easier", "kinds", "ranks", "class_counts", "periods", "scratch", "active"),
    *WINDOW_SPACE,
)
"""Arrays that follow from the rest, or hold nothing between two calls."""
POSITIONS = (
    *("base_slot", "program", "replay", "pattern", "large_base"),
    *("zero", "image_base", "app_base", "dup_base"),
)
"""Fields of a VM row that say where on this host something lies."""
_PLACES_OF_POSITIONS = [(VM.names or ()).index(name) for name in POSITIONS]
assert VM.itemsize == 8 * len(VM.names or ()), "each field of a VM row is 8 bytes"
TICK_MS_MAX = 3_600_000


# Digest


def digest(host: Host) -> str:
    """SHA-256, hex, of the host's state. Of each VM: its row without positions, pages, contents,
    kinds of the shared ones, sample, lost time, debts, program, replay."""
    st = host.state
    total = hashlib.sha256(st.host.tobytes() + st.level_ms.tobytes())
    names = local_names(host.ranges)
    vms = st.vms.view(VM, np.ndarray)
    plain = vms.view(np.int64).reshape(len(vms), -1).copy()
    plain[:, _PLACES_OF_POSITIONS] = 0
    programs, replay = st.programs.view(np.ndarray), st.replay.view(np.ndarray)
    for v in st.order[: count_vms(st)].tolist():
        row = vms[v]
        cut = slice(row["base_slot"], row["base_slot"] + row["size_slots"])
        pages, words = st.page[cut], st.content[cut].astype(np.int64)
        shared = words[pages & int(STATE) == int(SHARED)] & INDEX
        for part in (
            plain[v],
            pages,
            named(words, names),
            st.shared_kind[shared],
            st.sampled[v, : row["samples"]],
            st.lost[v],
            st.debts[v],
            st.by_age[cut],
            st.large[row["large_base"] : row["large_base"] + row["regions"]],
            programs[row["program"] : row["program"] + row["program_len"]],
            replay[row["replay"] : row["replay"] + row["replay_len"]],
        ):
            total.update(part.data)
    total.update(_stale_hints(host).tobytes() + st.copied.tobytes())
    return total.hexdigest()


def _stale_hints(host: Host) -> Array:
    """(n, 6) int64, sorted: VM id and page, then kind, family, salt and place of the content."""
    st = host.state
    at = st.stale_contents
    pages = st.hints[at]
    if len(pages) == 0:
        return np.zeros((0, 6), np.int64)
    keys = np.array(list(host.ranges), np.int64)
    bases = np.array([one.base for one in host.ranges.values()], np.int64)
    # An empty range lies where the next one does: the last one at that base holds the content.
    which = np.searchsorted(bases, at, side="right") - 1
    vms = st.vms["vm"][pages >> PPN_BITS]
    ppns = pages & ((1 << int(PPN_BITS)) - 1)
    found = np.column_stack([vms, ppns, keys[which], at - bases[which]])
    return found[np.lexsort(found.T[::-1])]


# Snapshot


def save(host: Host) -> bytes:
    """The host as bytes."""
    st = host.state
    return seal(
        KIND,
        {
            "host": host.host,
            "config": host.config.model_dump(),
            "seed": host.seed,
            "sample": host.sample,
            "tick_ms": host.tick_ms,
            "images": [image.model_dump() for image in host.images],
            "specs": [pack_spec(host.specs[vm]) for vm in sorted(host.specs)],
            "ranges": [[*key, at.length, at.users] for key, at in host.ranges.items()],
            "arrays": {
                name: pack_array(getattr(st, name)) for name in ARRAYS if name not in DERIVED
            },
        },
    )


def load(data: bytes) -> Host:
    """The host that `save` wrote. Raises PackingError for anything else."""
    return unseal(KIND, data, _read)


def _read(body: dict[str, Any]) -> Host:
    require_keys(body, BODY_KEYS)
    if not 1 <= whole(body["tick_ms"]) <= TICK_MS_MAX or whole(body["sample"]) < 1:
        raise ValueError("tick or sampling factor out of range")
    host = Host(
        host=HostId(whole(body["host"])),
        config=HostConfig.model_validate(body["config"]),
        seed=whole(body["seed"]),
        sample=whole(body["sample"]),
        tick_ms=whole(body["tick_ms"]),
    )
    host.images = [GuestImage.model_validate(image) for image in body["images"]]
    host.specs = {spec.vm: spec for spec in map(unpack_spec, body["specs"])}
    host.ranges = _ranges(body["ranges"])
    expected = host.state.host[0]
    host.state = _state(body["arrays"], host)
    require_equal(host.state.host[0], expected, CONFIGURED)
    _require_sound(host)
    return host


BODY_KEYS = (
    *("host", "config", "seed", "sample", "tick_ms", "images", "specs", "ranges", "arrays"),
)


def _ranges(packed: list[list[int]]) -> dict[Key, Range]:
    found: dict[Key, Range] = {}
    base = 0
    for kind, family, salt, length, users in packed:
        found[Key(int(kind), int(family), int(salt))] = Range(base, whole(length), whole(users))
        base += length
    return found


def _state(packed: Mapping[str, Any], host: Host) -> HostState:
    """The arrays, each of the shape that the others ask for."""
    require_keys(packed, [name for name in ARRAYS if name not in DERIVED])
    n_rows = whole(packed["vms"]["shape"][0])
    n_contents = sum(at.length for at in host.ranges.values())
    shapes: dict[str, tuple[int | None, ...]] = {
        name: (None,) * ndim for name, (_, ndim) in ARRAYS.items()
    }
    per_row = {"vms": (), "order": (), "class_base": (3, N_CLASSES)}
    per_row |= dict.fromkeys(("lost", "debts"), (N_CAUSES,))
    shapes |= {name: (n_rows, *rest) for name, rest in per_row.items()}
    shapes |= {"sampled": (n_rows, host.config.sampling.pages), "host": (1,), "level_ms": (5,)}
    n_aged = len(packed["page"]["data"]) if host.config.compression.enabled else 0
    shapes |= {"by_age": (n_aged, 2)}
    shapes |= dict.fromkeys(("indexed", "shared_kind"), (n_contents,))
    shapes |= {"copied": (copy_counters(host.config, host.sample), 2)}
    shapes |= {"stale": (stale_size(n_contents),)}
    arrays = {
        name: unpack_array(packed[name], dtype, shapes[name])
        for name, (dtype, _) in ARRAYS.items()
        if name not in DERIVED
    }
    blank = empty(n_rows, host.config.sampling.pages)
    layouts = [compose(image, host.seed, host.sample) for image in host.images]
    for name in ("kinds", "ranks", "class_counts", "periods"):
        rows = [getattr(layout, name) for layout in layouts]
        arrays[name] = np.stack(rows) if rows else getattr(blank, name)
    sizes = arrays["vms"]["size_slots"]
    arrays |= {name: getattr(blank, name) for name in DERIVED if name not in arrays}
    arrays |= window_space(int(min(max(sizes.max(initial=0), 0), len(arrays["page"]))))
    return contents.with_ranks(HostState(**arrays), host.ranges)


def _require_sound(host: Host) -> None:
    """Every index that compiled code will follow lies inside its array; every truth holds."""
    st = host.state
    on = np.flatnonzero(st.vms["vm"] >= 0)
    rows = st.vms[on]
    if sorted(host.specs) != sorted(rows["vm"].tolist()):
        raise PackingError("host: VMs and their specs differ")
    if len(st.vms) == 0 or not 0 <= st.host[0].level < len(st.level_ms):
        raise PackingError("host: no rows, or no such level")
    row = st.host[0]
    if not (1 <= row.dt_ms <= row.tick_ms and 1 <= row.pace_ms <= row.tick_ms and row.intake >= 0):
        raise PackingError("host: a step out of range")
    expected = on[np.argsort(rows["vm"])]
    if st.order.tolist() != [*expected.tolist(), *[-1] * (len(st.order) - len(on))]:
        raise PackingError("host: VMs are not in id order")
    for start, length, total in (
        ("base_slot", "size_slots", len(st.page)),
        ("program", "program_len", len(st.programs)),
        ("replay", "replay_len", len(st.replay)),
        ("large_base", "regions", len(st.large)),
    ):
        by_start = rows[rows[length] > 0]  # a VM that replays nothing lies nowhere
        by_start = by_start[np.argsort(by_start[start], kind="stable")]
        ends = np.cumsum(by_start[length])
        tiled = np.concatenate([[0], ends[:-1]])[: len(ends)]
        whole_size = int(ends[-1]) if len(ends) else 0
        if by_start[start].tolist() != tiled.tolist() or whole_size != total:
            raise PackingError(f"host: {start} does not divide {total}")
    if len(st.content) != len(st.page):
        raise PackingError("host: pages and contents differ in number")
    users = Counter(key for row in rows for key in contents.keys_of(row))
    if users != {key: at.users for key, at in host.ranges.items()}:
        raise PackingError("host: ranges and their users differ")
    for v in on.tolist():
        _require_sound_vm(host, v)
    if (st.stale > len(st.indexed)).any():
        raise PackingError("host: a stale hint on no content")
    try:
        invariants.check(st)
    except invariants.BrokenInvariantError as error:
        raise PackingError(f"host: {error}") from None


def _require_sound_vm(host: Host, v: int) -> None:
    st, row = host.state, host.state.vms[v]
    spec = host.specs[VmId(int(row.vm))]
    layout = compose(spec.image, host.seed, host.sample)
    kernel, footprint = int(row.kernel), int(row.footprint)
    expected = np.zeros(1, VM)
    fill_vms(expected, [spec], [layout], st.host[0])
    require_equal(row, expected[0], SPECIFIED)
    n = int(row.size_slots)
    ranges, lengths = ranges_of(host, v), content_lengths(row, spec, layout)
    words = st.content[row.base_slot : row.base_slot + n].astype(np.int64)
    program = st.programs[row.program : row.program + row.program_len].view(np.ndarray)
    kept = [row.zero, row.image_base, row.app_base, row.dup_base]
    in_range = {
        "ranges": ranges.bases.tolist() == kept
        and bool((ranges.lengths >= contents.lengths_of(lengths)).all()),
        "contents": bool(_are_of(words, ranges).all()),
        "program": np.array_equal(program, program_slots(spec.program, host.sample)),
        "row": 0 <= row.row < row.program_len,
        "replay": _is_replay(spec, st.replay[row.replay : row.replay + row.replay_len]),
        "pattern": host.images.index(spec.image) == row.pattern,
        "classes": np.array_equal(st.class_base[v], class_base(layout, kernel, footprint)),
        "ages": bool((st.by_age[row.base_slot : row.base_slot + n] <= n).all())
        and 0 <= min(row.oldest, row.newest) <= max(row.oldest, row.newest) <= n,
        "samples": 0 <= row.samples <= st.sampled.shape[1],
    }
    wrong = [name for name, holds in in_range.items() if not holds]
    wrong = wrong or out_of_range(row, st.sampled[v, : row.samples], spec)
    if wrong:
        raise PackingError(f"host: {wrong[0]} of VM {row.vm} out of range")


def _is_replay(spec: VmSpec, events: Array) -> bool:
    """Whether a host has of a VM what its spec says that it replays."""
    expected = np.zeros(0, EVENT) if spec.replay is None else spec.replay.events
    return np.array_equal(events.view(np.ndarray), expected)


def _are_of(words: Array, ranges: VmRanges) -> Array:
    """Which content words of a VM name something in one of its ranges, or are unique."""
    after = (words & INDEX)[:, None] - ranges.bases
    return (words & UNIQUE != 0) | ((after >= 0) & (after < ranges.lengths)).any(axis=1)
