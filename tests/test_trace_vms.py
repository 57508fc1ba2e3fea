"""Rows made of a trace's readings, against a plain twin that takes one reading after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_files import make_trace

from cluster.trace_vms import FOREVER_MS, TraceVms, programs, running
from cluster.traces import Trace
from hostsim.guest_config import TraceGuest
from hostsim.units import MIB, PAGE_SIZE


def naive_rows(
    trace: Trace, vm: int, guest: TraceGuest, start_ms: int, duration_ms: int
) -> list[tuple[int, int, int]]:
    """(until_ms, active_pages, cpu_permille) of one VM, one reading after the other."""
    span = range(trace.offsets[vm], trace.offsets[vm + 1])

    def value(readings: Any, at: int) -> int:
        before = [readings[i] for i in span if i <= at and readings[i] >= 0]
        later = [readings[i] for i in span if i > at and readings[i] >= 0]
        return int(before[-1] if before else later[0] if later else -1)

    zero = max(int(trace.start_s[vm]) * 1000, start_ms)
    size = -(-int(trace.memory_bytes[vm]) // PAGE_SIZE)
    found: list[tuple[int, int, int]] = []
    for at in span:
        begin = 0 if at == span[0] else int(trace.t_s[at]) * 1000 - zero
        until = FOREVER_MS if at == span[-1] else int(trace.t_s[at + 1]) * 1000 - zero
        if until <= 0 or begin >= start_ms + duration_ms - zero:
            continue
        cpu, active = max(value(trace.cpu_permille, at), 0), value(trace.active_bytes, at)
        idle, busy = guest.active_idle, guest.active_busy
        by_cpu = size * (idle * 1000 + cpu * (busy - idle)) // 1_000_000
        pages = min(by_cpu if active < 0 else -(-active // PAGE_SIZE), size)
        if found and found[-1][1:] == (pages, cpu):
            found.pop()
        found.append((until, pages, cpu))
    return found


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    readings = draw(
        st.lists(
            st.lists(
                st.tuples(
                    st.integers(0, 20),
                    st.sampled_from([-1, 0, 1, PAGE_SIZE, 3 * MIB]),
                    st.sampled_from([-1, 0, 7, 1000]),
                ),
                min_size=1,
                max_size=8,
                unique_by=lambda reading: reading[0],
            ),
            min_size=1,
            max_size=4,
        )
    )
    flat = [reading for of_vm in readings for reading in sorted(of_vm)]
    count = len(readings)
    columns = np.array(flat, np.int64).T
    return make_trace(
        names=np.array([f"vm-{n}" for n in range(count)], dtype=object),
        start_s=np.array([min(of_vm)[0] * 10 for of_vm in readings], np.int64),
        stop_s=np.full(count, -1, np.int64),
        vcpus=np.ones(count, np.int64),
        memory_bytes=np.array([draw(st.integers(MIB, 4 * MIB)) for _ in readings], np.int64),
        cpu_capacity_mhz=np.full(count, np.nan),
        offsets=np.cumsum([0] + [len(of_vm) for of_vm in readings]),
        t_s=columns[0] * 10,
        active_bytes=columns[1],
        cpu_permille=columns[2],
    )


@given(traces(), st.integers(0, 150), st.integers(1, 150), st.randoms())
@settings(max_examples=300)
def test_rows_agree_with_the_plain_twin(trace: Trace, start: int, length: int, pick: Any) -> None:
    start_ms, duration_ms = start * 1000, length * 1000
    found = running(trace, start_ms, duration_ms)
    found = found[np.array([pick.random() < 0.8 for _ in found], bool)]
    empty = np.zeros(0, np.int64)
    vms = TraceVms(found, empty, empty, (), (), empty > 0, empty > 0)
    guest = TraceGuest()
    rows = programs(trace, vms, guest, start_ms, duration_ms)
    assert len(rows) == len(found)
    for program, vm in zip(rows, found, strict=True):
        fields = (program["until_ms"], program["active_pages"], program["cpu_permille"])
        listed = list(zip(*(field.tolist() for field in fields), strict=True))
        assert listed == naive_rows(trace, int(vm), guest, start_ms, duration_ms)
        assert len(listed) >= 1
        assert (np.diff(program["until_ms"]) > 0).all()
