"""What a simulated second of one large host costs, exactly and in miniature, and its memory.

The host is one of 256 GiB with 40 VMs whose guests touch a million pages a second. Goal: about
five bytes of state a simulated page.
"""

from __future__ import annotations

import statistics

import pytest
from host_builders import make_host, make_image, make_phase, make_spec, power_on, run_until_booted
from hosts import CONTENT
from measuring import Tables, cpu_s

from hostsim.host import Host
from hostsim.state import ARRAYS
from hostsim.units import GIB, MIB, PAGE_SIZE

HOST_BYTES, VM_BYTES, N_VMS = 256 * GIB, 6 * GIB, 40
ACTIVE_BYTES = 490 * MIB
TOUCH_INTERVAL_MS = 5_000
TOUCHES_PER_S = N_VMS * ACTIVE_BYTES // PAGE_SIZE * 1000 // TOUCH_INTERVAL_MS
"""1.0 million."""
SAMPLES = (1, 16, 64, 256, 1024)
"""Exact first: the others are compared with it."""
TOUCHES_LOST_MAX = 0.05
"""Part of the touches that guests may lose to the cost of copies on write."""
WARM_S, MEASURED_S, TURNS = 5, 4, 5
"""Simulated seconds before the first measurement, and in each of TURNS."""

TABLE = "Ticks: a 256 GiB host, 40 VMs, 1.0 million touches a simulated second, tick 1 s"

pytestmark = pytest.mark.benchmark


def large_host(sample: int) -> Host:
    """The host, booted and some seconds into its run, in steady state but for the scan."""
    host = make_host(HOST_BYTES, sample=sample, cpus=128, sharing={"enabled": True})
    image = make_image(VM_BYTES * 3 // 4, content=CONTENT)
    phase = make_phase(active=ACTIVE_BYTES, touch_interval=TOUCH_INTERVAL_MS, writes=300)
    power_on(host, *[make_spec(vm, VM_BYTES, phase, image=image) for vm in range(N_VMS)])
    run_until_booted(host)
    host.advance(WARM_S * 1000)
    return host


def bytes_per_slot(host: Host) -> float:
    """Bytes of all arrays of the host, for each simulated page of its VMs."""
    total = sum(getattr(host.state, name).nbytes for name in ARRAYS)
    return total / len(host.state.page)


def test_a_simulated_second_by_sampling(tables: Tables) -> None:
    exact_s = 0.0
    for sample in SAMPLES:
        host = large_host(sample)
        host.measure()
        runs = [cpu_s(lambda host=host: host.advance(MEASURED_S * 1000)) for _ in range(TURNS)]
        second_s = statistics.median(runs) / MEASURED_S
        exact_s = exact_s or second_s
        tables.add(
            TABLE,
            {
                "sample": f"1/{sample}" if sample > 1 else "exact",
                "pages": len(host.state.page),
                "exact / this": exact_s / second_s,
                "CPU ms a second": 1000 * second_s,
                "ns a touch made": second_s * 1e9 * sample / TOUCHES_PER_S,
                "bytes a page": bytes_per_slot(host),
            },
        )
        made = int(host.measure()[1]["touches"].sum())
        assert made == pytest.approx(TOUCHES_PER_S * MEASURED_S * TURNS, rel=TOUCHES_LOST_MAX)
