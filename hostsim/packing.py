"""What outlives a process, as bytes: plain msgpack in an envelope with a digest of its contents.

No extension types and nothing that is executed on reading: numbers, text, bytes, lists, maps. What
is read is checked piece by piece; whatever is wrong with it is one PackingError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgpack
import numpy as np
from pydantic import ValidationError

from hostsim.config import VmConfig
from hostsim.guest_config import GuestImage
from hostsim.program import ROW
from hostsim.spec import VmSpec
from hostsim.state import HOST, VM, Array
from hostsim.units import VmId

Result = TypeVar("Result")

VERSION = 1
LAYOUT = hashlib.sha256(repr([dtype.descr for dtype in (HOST, VM, ROW)]).encode()).hexdigest()[:16]
"""Names the fields of all records: what another release wrote with other fields is refused."""


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
    except (KeyError, TypeError, ValueError, OverflowError, ValidationError) as error:
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
    }


def unpack_spec(packed: Mapping[str, Any]) -> VmSpec:
    """The VmSpec of a map."""
    program = unpack_array(packed["program"], ROW, (None,))
    if len(program) == 0:
        raise ValueError("a program without rows")
    return VmSpec(
        vm=VmId(whole(packed["vm"])),
        name=str(packed["name"]),
        config=VmConfig.model_validate(packed["config"]),
        image=GuestImage.model_validate(packed["image"]),
        image_range=whole(packed["image_range"]),
        application_range=whole(packed["application_range"]),
        program=program,
        repeat=bool(packed["repeat"]),
        vm_clock=bool(packed["vm_clock"]),
        offset_ms=whole(packed["offset_ms"]),
    )


def whole(value: Any) -> int:
    """A whole number from 0. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a whole number from 0")
    return value
