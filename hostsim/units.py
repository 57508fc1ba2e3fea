"""Quantities with their unit, and the one place that converts them.

Scenario files say "64 GiB", "30 s", "75 %"; models hold bytes, milliseconds, nanoseconds and
permille as integers; the engine counts page slots. One slot stands for k pages under miniature
simulation (design: fidelity), so `slots` is the only function that divides memory by k.
"""

from __future__ import annotations

import re
from fractions import Fraction as Ratio
from typing import Annotated, Any, Literal, NewType

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

PAGE_SIZE = 4096
"""Bytes of one guest page and of one machine frame (small pages, paper section 2)."""

FILE = "file"
"""Validation context key: values come from a scenario file, where bare numbers are refused."""

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

Ppn = NewType("Ppn", int)
VmId = NewType("VmId", int)
HostId = NewType("HostId", int)

_BYTES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%/]*)\s*$")
_LONGEST_TEXT = 40
_TOO_MUCH = {
    "memory size": "is larger than any machine",
    "rate": "is faster than any machine",
    "duration": "is longer than 100 years",
    "power": "is more than any machine takes",
}
"""What is said of a quantity that no integer of the engine holds."""


def _parse(value: Any, units: dict[str, int], what: str, example: str) -> int:
    """Text with one of `units` -> integer in the smallest of them, or ValueError."""
    allowed = f"a {what} with a unit ({', '.join(units)}), such as {example!r}"
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise ValueError(f"must be {allowed}")
    match = _QUANTITY.match(value)
    if match is None or match[2] not in units:
        raise ValueError(f"must be {allowed}")
    exact = Ratio(match[1]) * units[match[2]]
    if exact.denominator != 1:
        raise ValueError(f"must be a whole number of {next(iter(units))}")
    if exact.numerator >= 1 << 62:
        raise ValueError(_TOO_MUCH[what])
    return exact.numerator


def _bare(value: Any, info: ValidationInfo) -> bool:
    """Whether `value` is a bare number that may pass: code says bytes, a file says "64 GiB"."""
    in_file = bool(info.context and info.context.get(FILE))
    return isinstance(value, int) and not isinstance(value, bool) and not in_file


def parse_bytes(value: Any, info: ValidationInfo) -> int:
    """64 GiB -> bytes."""
    return value if _bare(value, info) else _parse(value, _BYTES, "memory size", "64 GiB")


def parse_bytes_per_s(value: Any, info: ValidationInfo) -> int:
    """4 MiB/s -> bytes a second."""
    if _bare(value, info):
        return int(value)
    rates = {f"{unit}/s": factor for unit, factor in _BYTES.items()}
    return _parse(value, rates, "rate", "4 MiB/s")


def parse_ns(value: Any, info: ValidationInfo) -> int:
    """250 us -> nanoseconds."""
    return value if _bare(value, info) else _parse(value, _NANOSECONDS, "duration", "100 us")


def parse_ms(value: Any, info: ValidationInfo) -> int:
    """30 s -> milliseconds."""
    if _bare(value, info):
        return int(value)
    ns = _parse(value, _NANOSECONDS, "duration", "30 s")
    if ns % 1_000_000:
        raise ValueError("must be a whole number of milliseconds")
    return ns // 1_000_000


def parse_watts(value: Any, info: ValidationInfo) -> int:
    """58.4 W -> milliwatts."""
    units = {"mW": 1, "W": 1000, "kW": 1_000_000}
    return value if _bare(value, info) else _parse(value, units, "power", "58.4 W")


def parse_permille(value: Any, info: ValidationInfo) -> int:
    """75 % or 12.5 % -> permille of one whole."""
    if _bare(value, info):
        return int(value)
    text = value if isinstance(value, str) and len(value) <= _LONGEST_TEXT else ""
    match = _QUANTITY.match(text)
    if match is None or match[2] != "%":
        raise ValueError("must be a percentage, such as '75 %'")
    exact = Ratio(match[1]) * 10
    if exact.denominator != 1:
        raise ValueError("must be a percentage with at most one decimal, such as '12.5 %'")
    return exact.numerator


def parse_amount(value: Any, info: ValidationInfo) -> tuple[str, int]:
    """512 MiB -> ("bytes", n), 25 % -> ("permille", n) of the VM's size."""
    if isinstance(value, tuple) and len(value) == 2:
        return value
    if isinstance(value, str) and value.rstrip().endswith("%"):
        return ("permille", parse_permille(value, info))
    if isinstance(value, str):
        return ("bytes", parse_bytes(value, info))
    raise ValueError("must be a memory size or a part of the VM's, '512 MiB' or '25 %'")


def _text(*examples: str) -> WithJsonSchema:
    """What editors see: text with a unit, not the integer that the model holds."""
    return WithJsonSchema({"type": "string", "examples": list(examples)})


MEMORY_BYTES_MAX = 1 << 50

Bytes = Annotated[
    int, BeforeValidator(parse_bytes), Field(ge=0, le=MEMORY_BYTES_MAX), _text("64 GiB", "512 MiB")
]
"""Memory in bytes, from "64 GiB"."""
BytesPerSecond = Annotated[
    int,
    BeforeValidator(parse_bytes_per_s),
    Field(ge=0, le=MEMORY_BYTES_MAX),
    _text("4 MiB/s"),
]
"""Bytes a second, from "4 MiB/s"."""
Milliseconds = Annotated[
    int,
    BeforeValidator(parse_ms),
    Field(ge=0, le=100 * 366 * 86_400_000),
    _text("30 s", "6 h"),
]
"""Simulated time in milliseconds, from "30 s"."""
Nanoseconds = Annotated[
    int, BeforeValidator(parse_ns), Field(ge=0, le=3_600_000_000_000), _text("90 us")
]
"""A latency in nanoseconds, from "90 us"."""
Milliwatts = Annotated[
    int, BeforeValidator(parse_watts), Field(ge=0, le=1_000_000_000), _text("58.4 W")
]
"""Electric power in milliwatts, from "58.4 W"."""
Permille = Annotated[int, BeforeValidator(parse_permille), Field(ge=0, le=1000), _text("75 %")]
"""A part of one whole in thousandths, from "75 %"."""
Amount = Annotated[
    tuple[Literal["bytes", "permille"], Annotated[int, Field(ge=0, le=MEMORY_BYTES_MAX)]],
    BeforeValidator(parse_amount),
    _text("512 MiB", "25 %"),
]
"""Memory in bytes, or in permille of the VM's size."""


def pages(size_bytes: int) -> int:
    """Bytes -> whole pages, rounded up."""
    return -(-size_bytes // PAGE_SIZE)


def slots(size_bytes: int, sample: int) -> int:
    """Bytes -> page slots at one slot per `sample` pages, rounded to nearest (ties up)."""
    return (2 * size_bytes + PAGE_SIZE * sample) // (2 * PAGE_SIZE * sample)
