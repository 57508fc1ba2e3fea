"""Quantities with units: what is read, what is refused and how, and rounding to slots."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from hostsim.units import (
    FILE,
    GIB,
    KIB,
    MEMORY_BYTES_MAX,
    MIB,
    PAGE_SIZE,
    TIB,
    Amount,
    Bytes,
    BytesPerSecond,
    Milliseconds,
    Nanoseconds,
    Permille,
    pages,
    slots,
)


class Sizes(BaseModel):
    """One value of each kind, all optional."""

    memory: Bytes = 0
    rate: BytesPerSecond = 0
    time: Milliseconds = 0
    latency: Nanoseconds = 0
    part: Permille = 0
    amount: Amount = ("bytes", 0)


def read(field: str, value: Any, in_file: bool = True) -> Any:
    """The value as the model holds it; from a scenario file unless said otherwise."""
    return getattr(Sizes.model_validate({field: value}, context={FILE: in_file}), field)


def refusal(field: str, value: Any, in_file: bool = True) -> str:
    """The one message with which the value is refused."""
    with pytest.raises(ValidationError) as caught:
        read(field, value, in_file)
    (error,) = caught.value.errors()
    return str(error["msg"])


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("memory", "0 B", 0),
        ("memory", "64 GiB", 64 * GIB),
        ("memory", "64GiB", 64 * GIB),
        ("memory", "  512   MiB ", 512 * MIB),
        ("memory", "0.5 KiB", 512),
        ("memory", "1.5 TiB", 3 * TIB // 2),
        ("memory", "1024 TiB", MEMORY_BYTES_MAX),
        ("rate", "4 MiB/s", 4 * MIB),
        ("rate", "1 B/s", 1),
        ("time", "30 s", 30_000),
        ("time", "0.25 s", 250),
        ("time", "5 min", 300_000),
        ("time", "6 h", 21_600_000),
        ("time", "1.5 d", 129_600_000),
        ("time", "1000 us", 1),
        ("latency", "90 us", 90_000),
        ("latency", "1 ns", 1),
        ("latency", "1 h", 3_600_000_000_000),
        ("part", "75 %", 750),
        ("part", "12.5%", 125),
        ("part", "100 %", 1000),
        ("amount", "25 %", ("permille", 250)),
        ("amount", "512 MiB", ("bytes", 512 * MIB)),
    ],
)
def test_text_with_a_unit_is_read_exactly(field: str, text: str, expected: Any) -> None:
    assert read(field, text) == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("memory", "64 GB", "must be a memory size with a unit (B, KiB, MiB, GiB, TiB)"),
        ("memory", "64 gib", "such as '64 GiB'"),
        ("memory", "64", "with a unit"),
        ("memory", "-1 GiB", "with a unit"),
        ("memory", "1e3 MiB", "with a unit"),
        ("memory", "1,5 GiB", "with a unit"),
        ("memory", "GiB", "with a unit"),
        ("memory", "1 GiB " + " " * 40, "with a unit"),
        ("memory", True, "with a unit"),
        ("memory", None, "with a unit"),
        ("memory", 1.5, "with a unit"),
        ("memory", "0.3 KiB", "must be a whole number of B"),
        ("memory", "9999999999 TiB", "is larger than any machine"),
        ("rate", "9999999999 TiB/s", "is faster than any machine"),
        ("time", "99999999999 d", "is longer than 100 years"),
        ("latency", "99999999999 d", "is longer than 100 years"),
        ("memory", "1025 TiB", f"less than or equal to {MEMORY_BYTES_MAX}"),
        ("rate", "4 MiB", "must be a rate with a unit (B/s, KiB/s, MiB/s, GiB/s, TiB/s)"),
        ("rate", "4 MB/s", "such as '4 MiB/s'"),
        ("time", "30", "must be a duration with a unit (ns, us, ms, s, min, h, d), such as '30 s'"),
        ("time", "30 sec", "such as '30 s'"),
        ("time", "0.5 ms", "must be a whole number of milliseconds"),
        ("time", "36601 d", "less than or equal to"),
        ("latency", "0.5 ns", "must be a whole number of ns"),
        ("latency", "61 min", "less than or equal to"),
        ("part", "75", "must be a percentage, such as '75 %'"),
        ("part", "0.75", "must be a percentage"),
        ("part", "12.55 %", "at most one decimal, such as '12.5 %'"),
        ("part", "100.1 %", "less than or equal to 1000"),
        ("amount", "30 s", "must be a memory size with a unit"),
        ("amount", ["bytes", 5], "'512 MiB' or '25 %'"),
    ],
)
def test_a_refusal_says_what_is_allowed(field: str, value: Any, message: str) -> None:
    assert message in refusal(field, value)


def test_a_refusal_carries_the_value_that_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        read("memory", "64 GB")
    (error,) = caught.value.errors()
    assert error["input"] == "64 GB"
    assert error["loc"] == ("memory",)


@pytest.mark.parametrize("field", ["memory", "rate", "time", "latency", "part"])
def test_a_bare_number_passes_in_code_and_is_refused_in_a_file(field: str) -> None:
    assert read(field, 7, in_file=False) == 7
    assert "such as" in refusal(field, 7)


@pytest.mark.parametrize("field", ["memory", "rate", "time", "latency", "part"])
def test_code_cannot_say_a_negative_number_or_a_truth_value(field: str) -> None:
    assert "greater than or equal to 0" in refusal(field, -1, in_file=False)
    assert "such as" in refusal(field, True, in_file=False)


def test_an_amount_in_code_is_a_pair_of_unit_and_number() -> None:
    assert read("amount", ("permille", 250), in_file=False) == ("permille", 250)
    assert "'bytes' or 'permille'" in refusal("amount", ("percent", 25), in_file=False)


def test_the_smallest_and_the_largest_amount_of_each_kind_pass() -> None:
    assert read("memory", MEMORY_BYTES_MAX, in_file=False) == 1 << 50
    assert read("part", "0 %") == 0
    assert "less than or equal to" in refusal("memory", MEMORY_BYTES_MAX + 1, in_file=False)


BYTE_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
NS_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}


@given(st.integers(0, 1024), st.sampled_from(sorted(BYTE_UNITS)))
def test_a_size_written_with_any_unit_is_read_back(n: int, unit: str) -> None:
    assert read("memory", f"{n} {unit}") == n * BYTE_UNITS[unit]
    assert read("rate", f"{n} {unit}/s") == n * BYTE_UNITS[unit]


@given(st.integers(0, 59), st.sampled_from(sorted(NS_UNITS)))
def test_a_latency_written_with_any_unit_is_read_back(n: int, unit: str) -> None:
    if unit == "h":
        n = min(n, 1)
    assert read("latency", f"{n} {unit}") == n * NS_UNITS[unit]


@given(st.integers(0, 1000))
def test_a_part_written_as_a_percentage_is_read_back(permille: int) -> None:
    assert read("part", f"{permille // 10}.{permille % 10} %") == permille


@given(st.integers(0, 10**9), st.integers(0, 3))
def test_decimals_are_exact_and_never_pass_through_a_float(thousandths: int, digits: int) -> None:
    """0.1 s is 100 ms and 0.3 s is 300 ms: no binary fraction comes in between."""
    text = f"{thousandths // 10**digits}.{thousandths % 10**digits:0{max(digits, 1)}d}"
    exact = Fraction(text) * 1000
    if exact.denominator == 1:
        assert read("time", f"{text} s") == exact
    else:
        assert "whole number" in refusal("time", f"{text} s")


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (1, 1), (PAGE_SIZE, 1), (PAGE_SIZE + 1, 2), (GIB, 262_144)]
)
def test_pages_round_up(size: int, expected: int) -> None:
    assert pages(size) == expected


@pytest.mark.parametrize(
    ("size", "sample", "expected"),
    [
        (0, 1, 0),
        (PAGE_SIZE // 2 - 1, 1, 0),
        (PAGE_SIZE // 2, 1, 1),  # ties go up
        (3 * PAGE_SIZE // 2, 1, 2),
        (31 * PAGE_SIZE, 64, 0),
        (32 * PAGE_SIZE, 64, 1),
        (95 * PAGE_SIZE, 64, 1),
        (96 * PAGE_SIZE, 64, 2),
        (64 * GIB, 64, 262_144),
    ],
)
def test_slots_round_to_nearest_with_ties_up(size: int, sample: int, expected: int) -> None:
    assert slots(size, sample) == expected


@given(st.integers(0, MEMORY_BYTES_MAX), st.sampled_from([1, 2, 16, 64, 4096]))
def test_slots_are_within_half_a_slot_of_the_size(size: int, sample: int) -> None:
    exact = Fraction(size, PAGE_SIZE * sample)
    assert -Fraction(1, 2) < slots(size, sample) - exact <= Fraction(1, 2)


@given(st.integers(0, MEMORY_BYTES_MAX), st.integers(0, MEMORY_BYTES_MAX), st.sampled_from([1, 64]))
def test_more_memory_never_has_fewer_slots(one: int, other: int, sample: int) -> None:
    assert (slots(one, sample) - slots(other, sample)) * (one - other) >= 0
