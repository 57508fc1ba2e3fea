"""What outlives a process, as bytes: plain msgpack in an envelope with a digest of its contents.

No extension types and nothing that is executed on reading: numbers, text, bytes, lists, maps. What
is read is checked piece by piece; whatever is wrong with it is one PackingError.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import msgpack
import numpy as np

from hostsim.config import VmConfig
from hostsim.guest_config import TRANSMIT_MAX, GuestImage
from hostsim.program import KEEP, LOCALITIES, ROW, Rows
from hostsim.records import HOST, VM
from hostsim.replay import EVENT, Replay, require_sound
from hostsim.spec import VmSpec
from hostsim.state import N_CAUSES, Array
from hostsim.units import VmId, pages

Result = TypeVar("Result")

VERSION = 3
_RECORDS = [dtype.descr for dtype in (HOST, VM, ROW, EVENT)]
LAYOUT = hashlib.sha256(repr(_RECORDS).encode()).hexdigest()[:16]
"""Names the fields of all records: what another release wrote with other fields is refused."""


_WRONG = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, MemoryError)
"""What reading a body of another form raises; pydantic's errors are ValueErrors."""


class PackingError(ValueError):
    """Bytes that are not what they should be."""


def seal(kind: str, body: Mapping[str, Any]) -> bytes:
    """`body`, as `kind`, in bytes."""
    packed = msgpack.packb(body)
    envelope = {
        "format": f"esxsim-{kind}",
        "version": VERSION,
        "layout": LAYOUT,
        "sha256": hashlib.sha256(packed).digest(),
        "body": packed,
    }
    return bytes(msgpack.packb(envelope))


def unseal(kind: str, data: bytes, read: Callable[[dict[str, Any]], Result]) -> Result:
    """What `read` makes of a body that `seal` packed. Raises PackingError."""
    try:
        envelope = _unpacked(data)
        expected = {"format": f"esxsim-{kind}", "version": VERSION, "layout": LAYOUT}
        for name, value in expected.items():
            if envelope.get(name) != value:
                found = str(envelope.get(name))[:80]
                raise PackingError(f"{kind}: {name} is {found!r}, this release reads {value!r}")
        body = envelope.get("body")
        if not isinstance(body, bytes) or hashlib.sha256(body).digest() != envelope.get("sha256"):
            raise PackingError(f"{kind}: the contents do not match their digest")
        return read(_unpacked(body))
    except PackingError:
        raise
    except _WRONG as error:
        raise PackingError(f"{kind}: {type(error).__name__}: {str(error)[:200]}") from None


def _unpacked(data: bytes) -> dict[str, Any]:
    try:
        found = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise PackingError(f"not msgpack: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise PackingError(f"holds {type(found).__name__}, not a map")
    return found


def pack_array(array: Array) -> dict[str, Any]:
    """Shape and bytes; the reader knows the dtype."""
    return {"shape": list(array.shape), "data": np.ascontiguousarray(array).tobytes()}


def unpack_array(
    packed: Mapping[str, Any], dtype: np.dtype[Any], shape: tuple[int | None, ...]
) -> Array:
    """A writable array. None in `shape` stands for any length. Raises ValueError."""
    require_keys(packed, ("shape", "data"))
    found = tuple(packed["shape"])
    fits = len(found) == len(shape) and all(
        isinstance(n, int) and n >= 0 and want in (n, None)
        for n, want in zip(found, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"array of shape {found}, expected {shape}")
    return np.frombuffer(packed["data"], dtype).reshape(found).copy()


def pack_spec(spec: VmSpec) -> dict[str, Any]:
    """A VM's spec as a map."""
    return {
        "vm": spec.vm,
        "name": spec.name,
        "config": spec.config.model_dump(),
        "image": spec.image.model_dump(),
        "image_range": spec.image_range,
        "application_range": spec.application_range,
        "program": pack_array(spec.program),
        "repeat": spec.repeat,
        "vm_clock": spec.vm_clock,
        "offset_ms": spec.offset_ms,
        "replay": None if spec.replay is None else _pack_replay(spec.replay),
    }


def _pack_replay(replay: Replay) -> dict[str, Any]:
    numbers = {name: getattr(replay, name) for name in REPLAY_NUMBERS}
    return {"events": pack_array(replay.events), **numbers}


SPEC_KEYS = (
    *("vm", "name", "config", "image", "image_range", "application_range"),
    *("program", "repeat", "vm_clock", "offset_ms", "replay"),
)
REPLAY_NUMBERS = ("pages", "used", "unmovable", "contents")


def unpack_spec(packed: Mapping[str, Any]) -> VmSpec:
    """The VmSpec of a map."""
    require_keys(packed, SPEC_KEYS)
    program = unpack_array(packed["program"], ROW, (None,))
    _require_program(program)
    return VmSpec(
        vm=VmId(whole(packed["vm"])),
        name=_as(str, packed["name"]),
        config=_config(msgpack.packb(packed["config"])),
        image=_image(msgpack.packb(packed["image"])),
        image_range=whole(packed["image_range"]),
        application_range=whole(packed["application_range"]),
        program=program,
        repeat=_as(bool, packed["repeat"]),
        vm_clock=_as(bool, packed["vm_clock"]),
        offset_ms=whole(packed["offset_ms"]),
        replay=None if packed["replay"] is None else _unpack_replay(packed["replay"]),
    )


@functools.lru_cache(1024)
def _config(packed: bytes) -> VmConfig:
    """VMs that are alike have one, once read as well as before."""
    return VmConfig.model_validate(msgpack.unpackb(packed))


@functools.lru_cache(1024)
def _image(packed: bytes) -> GuestImage:
    return GuestImage.model_validate(msgpack.unpackb(packed))


def _unpack_replay(packed: Mapping[str, Any]) -> Replay:
    require_keys(packed, ("events", *REPLAY_NUMBERS))
    events = unpack_array(packed["events"], EVENT, (None,))
    replay = Replay(events, **{name: whole(packed[name]) for name in REPLAY_NUMBERS})
    require_sound(replay)
    return replay


def require_keys(packed: Mapping[str, Any], keys: Collection[str]) -> None:
    """Exactly these keys. Raises ValueError."""
    if set(packed) != set(keys):
        wrong = sorted(set(packed) ^ set(keys), key=str)
        raise ValueError(f"missing or unknown: {str(wrong)[:80]}")


def _require_program(rows: Rows) -> None:
    """Rows that compiled code can follow to their end. Raises ValueError."""
    holds = {
        "rows": len(rows) > 0,
        "until_ms": bool((np.diff(rows["until_ms"], prepend=0) > 0).all()),
        "memory_pages": bool((rows["memory_pages"] >= KEEP).all()),
        "touch_interval_ms": bool((rows["touch_interval_ms"] > 0).all()),
        "locality": bool(
            (rows["locality"] >= 0).all() and (rows["locality"] < len(LOCALITIES)).all()
        ),
    }
    for name in (
        *("growth_pages_per_s", "active_pages", "data_pages"),
        *("writes_permille", "cpu_permille"),
        *("transmit_pages_per_s", "transmit_set_pages"),
    ):
        holds[name] = bool((rows[name] >= 0).all())
    holds["transmit"] = bool((rows["transmit_pages_per_s"] <= pages(TRANSMIT_MAX)).all())
    wrong = [name for name, is_right in holds.items() if not is_right]
    if wrong:
        raise ValueError(f"a program with wrong {wrong[0]}")


def _as(kind: type[Result], value: Any) -> Result:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def whole(value: Any) -> int:
    """A whole number from 0. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a whole number from 0")
    return value


CONFIGURED = (
    *("host", "seed", "sample", "tick_ms", "machine", "highmem", "goal", "down_clear", "down_soft"),
    *("down_hard", "down_low", "up_high", "up_clear", "up_soft", "up_hard"),
    *("scan_rate_total", "scan_rate_vm"),
    *("scan_time_ms", "sharing", "balloon_poll_ms", "inflate_rate", "deflate_rate"),
    *("balloon_max_permille", "balance_ms", "claim_touched", "deadband_sigmas", "sample_pages"),
    *("sample_ms", "tax_k", "swap_latency_ns", "swap_iops", "swap_cluster", "cpus", "cow_ns"),
    *("scan_ns", "copy_ns", "copy_threshold", "remap"),
    *("share_first", "map_clean", "skip_overwritten"),
    *("compression", "compressed_max_permille", "decompress_ns", "large_slots", "large_floor"),
    *("eager", "ssd_slots", "ssd_latency_ns", "ssd_iops"),
    *("tiered", "tier_latency_ns", "tier_iops", "tier_goal"),
)
"""Fields of a host's row that follow from its configuration."""
SPECIFIED = (
    *("size_slots", "reservation", "limit", "shares", "vcpus", "sharing", "driver", "balloon_max"),
    *("guest_swap", "windows", "copies_permille", "copies_phase", "pool", "footprint", "kernel"),
    *("boot_ms", "disk_latency_ns", "disk_iops", "vm_clock", "repeat", "offset_ms"),
    *("replay_len", "touchable", "compressed_max", "to_quarter", "to_half", "regions"),
)
"""Fields of a VM's row that follow from its spec and its host's configuration."""


def require_equal(found: Any, expected: Any, names: Iterable[str]) -> None:
    """The fields of two rows are equal. Raises ValueError."""
    for name in names:
        if found[name] != expected[name]:
            raise ValueError(f"{name} is {found[name]}, the configuration says {expected[name]}")


def out_of_range(row: Any, sampled: Array, spec: VmSpec) -> list[str]:
    """What of a VM's row, whose size is right, compiled code must not follow."""
    n = int(row["size_slots"])
    in_range = {
        "sampled": bool(((sampled >= 0) & (sampled < n)).all()),
        "guest": 0 <= row["brk"] <= n and 0 <= row["scrub_cursor"] <= n,
        "window": 0 < row["span"] <= n - row["kernel"]
        # Right after boot it may lie beyond the span: `work` wraps it.
        and 0 <= row["window"] <= n - row["kernel"]
        and 0 <= row["active"] <= row["span"],
        "cursors": 0 <= row["free_cursor"] < n and 0 <= row["given"] < n and row["sweep"] >= 0,
        "carry": 0 <= row["touch_carry"] <= 2000 * spec.program["touch_interval_ms"].max(),
        "stalled": 0 <= row["stalled"] <= 2 * n,
        "event": min(row["footprint"], row["replay_len"]) <= row["event"] <= row["replay_len"],
        "cause": 0 <= row["cause"] < N_CAUSES,
        "cycle": row["cycle_start_ms"] >= 0 and row["start_ms"] >= 0,
    }
    return [name for name, holds in in_range.items() if not holds]
