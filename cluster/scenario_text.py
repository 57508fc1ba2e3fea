"""Model fields and their values in the words of a scenario file: "64 GiB", not 68719476736.

A field's unit is found in its annotation, where `hostsim.units` put it, so there is no second table
of fields to keep. Nothing here knows which models exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from hostsim import units

_BYTES = (("TiB", units.TIB), ("GiB", units.GIB), ("MiB", units.MIB), ("KiB", units.KIB), ("B", 1))
_NS = (
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
)


def _in_largest(value: int, scale: Sequence[tuple[str, int]], zero: str) -> str:
    """`value` as a whole number of the largest unit that divides it."""
    if value == 0:
        return f"0 {zero}"
    unit, factor = next((unit, factor) for unit, factor in scale if value % factor == 0)
    return f"{value // factor} {unit}"


def bytes_text(value: int) -> str:
    """68719476736 -> 64 GiB, exactly."""
    return _in_largest(value, _BYTES, "B")


def ms_text(value: int) -> str:
    """30000 -> 30 s, exactly."""
    return _in_largest(value * 1_000_000, _NS, "s")


def ns_text(value: int) -> str:
    """90000 -> 90 us, exactly."""
    return _in_largest(value, _NS, "ns")


def permille_text(value: int) -> str:
    """125 -> 12.5 %, exactly."""
    return f"{value // 10}.{value % 10} %" if value % 10 else f"{value // 10} %"


def watts_text(value: int) -> str:
    """58400 -> 58.4 W, exactly."""
    return f"{value // 1000} W" if value % 1000 == 0 else f"{value} mW"


def amount_text(value: tuple[str, int] | int) -> str:
    """("permille", 125) -> 12.5 %; ("bytes", 4096) -> 4 KiB."""
    if isinstance(value, int):  # a bound of either kind; only memory is large enough to meet one
        return bytes_text(value)
    return permille_text(value[1]) if value[0] == "permille" else bytes_text(value[1])


_TEXT: dict[Any, Callable[[Any], str]] = {
    units.parse_bytes: bytes_text,
    units.parse_bytes_per_s: lambda value: f"{bytes_text(value)}/s",
    units.parse_ms: ms_text,
    units.parse_ns: ns_text,
    units.parse_permille: permille_text,
    units.parse_watts: watts_text,
    units.parse_amount: amount_text,
}


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation, its alternatives and its metadata, flat."""
    yield annotation
    if get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)


def of_field(field: FieldInfo) -> Any:
    """A field's annotation with its metadata, which pydantic keeps apart."""
    if not field.metadata:
        return field.annotation
    return Annotated[(field.annotation, *field.metadata)]


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a value of this annotation is, if it is one."""
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _step(annotation: Any, key: str | int) -> Any:
    model = model_in(annotation)
    if model is not None and isinstance(key, str) and key in model.model_fields:
        return of_field(model.model_fields[key])
    for part in _parts(annotation):
        if isinstance(key, int) and get_origin(part) is tuple:
            return get_args(part)[0]
        if isinstance(key, str) and get_origin(part) is dict:
            return get_args(part)[1]
    return None


def at(annotation: Any, path: Sequence[str | int]) -> Any:
    """The annotation of what lies at `path` inside a value of `annotation`, or None."""
    for key in path:
        if annotation is None:
            return None
        annotation = _step(annotation, key)
    return annotation


def text(annotation: Any, value: Any) -> str | None:
    """A quantity in words, or None if this annotation has no unit."""
    if value is None:
        return None
    for part in _parts(annotation):
        if isinstance(part, BeforeValidator) and part.func in _TEXT:
            return value if isinstance(value, str) else _TEXT[part.func](value)
    return None


def unit_of(annotation: Any) -> Any:
    """The function of `hostsim.units` that reads a quantity of this annotation, or None."""
    for part in _parts(annotation):
        if isinstance(part, BeforeValidator) and part.func in _TEXT:
            return part.func
    return None


def in_words(annotation: Any, value: Any) -> Any:
    """A field's value as a scenario file would give it, models as mappings."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: in_words(of_field(info), getattr(value, name)) for name, info in fields}
    found = text(annotation, value)
    if found is not None:
        return found
    if isinstance(value, tuple):
        return [in_words(_step(annotation, place), item) for place, item in enumerate(value)]
    return value
