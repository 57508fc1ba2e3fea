"""Where a run stands at a barrier, as bytes and back: all that the coordinator would know there.

What follows from the scenario is not in it: a run goes on under the scenario that it began with.
What is read is checked like a host's snapshot: any flaw is one PackingError, nothing is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import numpy as np

from cluster.aggregate import PER_EPOCH, SUMMED, Aggregator
from cluster.policy import state
from cluster.policy.history import History
from cluster.policy.migration import Flight
from cluster.policy.state import BOOTING, NOWHERE, ClusterState, Waiting
from cluster.population import Population
from cluster.rows import HostFacts, VmFacts, VmFate
from cluster.scenario_file import Loaded
from cluster.tables import Written
from hostsim.packing import pack_array, require_keys, seal, unpack_array, unseal, whole
from hostsim.units import HostId, VmId

KIND = "run"
STATE_COLUMNS = (*state.OF_HOSTS, "host_of", "entitled", *state.MEASURED, *state.SETTINGS)
SKETCHES = ("starts", "atoms", "weights")
"""What reports change of the sketches."""
PER_VM = ("on_ns", "touches", "work_left_ns", "rows")
COUNTS = ("most_vms", "micro", "slowest_micro")
HISTORY = ("migrations", "migrations_failed", "sent_bytes", "rounds")
_INT64 = np.dtype(np.int64)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands before `epoch`: what has been decided, measured and written."""

    epoch: int
    now: ClusterState
    seen: Aggregator
    history: History
    written: Written

    def off(self) -> tuple[HostId, ...]:
        """Hosts that are off."""
        return tuple(HostId(int(h)) for h in np.flatnonzero(self.now.power > state.RUNS))


def blank(loaded: Loaded, population: Population) -> Aggregator:
    """What a run has seen before its first epoch."""
    hosts = [_host_facts(one) for one in population.hosts]
    vms = [_facts(vm.spec) for vm in population.vms]
    scenario = loaded.scenario
    return Aggregator(hosts, vms, epoch_ms=scenario.epoch, sample=scenario.fidelity.sample)


def _host_facts(one: Any) -> HostFacts:
    config = one.config
    has_clear = config.reclaim.clear is not None
    watts = one.watts
    return HostFacts(
        *(one.host, one.name, config.machine_bytes, config.cpus, watts.idle, watts.peak),
        has_clear=has_clear,
    )


def _facts(spec: Any) -> VmFacts:
    config = spec.config
    return VmFacts(spec.vm, spec.name, config.memory, config.reservation, config.vcpus)


def pack(standing: Standing) -> bytes:
    """As bytes, at once: what is added later does not show."""
    now, history = standing.now, standing.history
    return seal(
        KIND,
        {
            "epoch": standing.epoch,
            "state": {name: pack_array(getattr(now, name)) for name in STATE_COLUMNS},
            "sketches": {name: pack_array(getattr(now.sketches, name)) for name in SKETCHES},
            "flights": [astuple(flight) for flight in now.flights],
            "queue": [astuple(waiting) for waiting in now.queue],
            "seen": _pack_seen(standing.seen),
            "fates": [astuple(fate) for fate in history.by_vm()],
            "history": {name: getattr(history, name) for name in HISTORY},
            "migrating_s": history.migrating_s,
            "slowed_s": history.slowed_s,
            "failures": history.failures,
            "restarts": history.restarts,
            "rows": standing.written.rows,
            "events_bytes": standing.written.events_bytes,
        },
    )


def _pack_seen(seen: Aggregator) -> dict[str, Any]:
    """Of the histogram, whose bins are mostly empty, those that are not."""
    bins = np.flatnonzero(seen.bins)
    return {
        "epochs": {name: kept.tobytes() for name, kept in seen.epochs.items()},
        "sums": seen.sums,
        "counts": {name: getattr(seen, name) for name in COUNTS},
        "per_vm": {name: pack_array(getattr(seen, name)) for name in PER_VM},
        "lost_ns": pack_array(seen.lost_ns),
        "held_sums": {name: pack_array(kept) for name, kept in seen.held_sums.items()},
        "held_maxima": {name: pack_array(kept) for name, kept in seen.held_maxima.items()},
        "bins": pack_array(np.stack([bins, seen.bins[bins]])),
        "contrasts": pack_array(seen.contrasts),
    }


def unpack(data: bytes, loaded: Loaded, population: Population) -> Standing:
    """What `pack` wrote of this scenario. Raises PackingError for anything else."""
    epochs = loaded.scenario.duration // loaded.scenario.epoch
    seen = blank(loaded, population)
    return unseal(KIND, data, lambda body: _read(body, population, seen, epochs))


def _read(body: dict[str, Any], population: Population, seen: Aggregator, epochs: int) -> Standing:
    require_keys(body, BODY_KEYS)
    epoch = whole(body["epoch"])
    if not 0 < epoch <= epochs:
        raise ValueError(f"epoch {epoch} of {epochs}")
    _fill_seen(seen, body["seen"], epoch)
    history = History(
        fates={fate.vm: fate for fate in (_fate(row, population) for row in body["fates"])},
        migrating_s=[float(one) for one in body["migrating_s"]],
        slowed_s=float(body["slowed_s"]),
        failures=[whole(one) for one in body["failures"]],
        restarts=[(whole(failed), whole(at)) for failed, at in body["restarts"]],
        **{name: whole(body["history"][name]) for name in HISTORY},
    )
    rows = {str(table): whole(n) for table, n in body["rows"].items()}
    now = _state(body, population)
    return Standing(epoch, now, seen, history, Written(rows, whole(body["events_bytes"])))


BODY_KEYS = (
    *("epoch", "state", "sketches", "flights", "queue", "seen", "fates", "history", "migrating_s"),
    *("slowed_s", "failures", "restarts", "rows", "events_bytes"),
)


def _state(body: Mapping[str, Any], population: Population) -> ClusterState:
    """The state at the start of the run, with what has changed since."""
    first = state.initial(population)
    require_keys(body["state"], STATE_COLUMNS)
    columns: dict[str, Any] = {
        name: unpack_array(body["state"][name], _INT64, getattr(first, name).shape)
        for name in STATE_COLUMNS
    }
    require_keys(body["sketches"], SKETCHES)
    starts, atoms, weights = (
        unpack_array(body["sketches"][name], _INT64, (None,)) for name in SKETCHES
    )
    now = replace(
        first,
        **columns,
        sketches=replace(first.sketches, starts=starts, atoms=atoms, weights=weights),
        flights=tuple(Flight(*row) for row in body["flights"]),
        queue=tuple(Waiting(*row) for row in body["queue"]),
    )
    _require_sound(now)
    return now


def _require_sound(now: ClusterState) -> None:
    """Every index that will be followed lies inside its array. Raises ValueError."""
    hosts, vms = len(now.power), len(now.host_of)
    atoms, starts = now.sketches.atoms, now.sketches.starts
    within = {
        "power": _all_in(now.power, 0, BOOTING),
        "host_of": _all_in(now.host_of, NOWHERE, hosts - 1),
        "holds": _all_in(now.holds, 0, len(starts) - 2),
        "starts": len(starts) > 0
        and starts[0] == 0
        and starts[-1] == len(atoms)
        and bool((np.diff(starts) >= 0).all()),
        "atoms": _all_in(atoms, 0, len(now.sketches.weights) - 1),
        "flights": all(
            0 <= flight.vm < vms and 0 <= flight.source < hosts and 0 <= flight.target < hosts
            for flight in now.flights
        ),
        "queue": all(0 <= waiting.vm < vms for waiting in now.queue),
    }
    wrong = [name for name, holds in within.items() if not holds]
    if wrong:
        raise ValueError(f"{wrong[0]} out of range")


def _all_in(values: state.Ints, low: int, high: int) -> bool:
    return bool(((values >= low) & (values <= high)).all())


def _fate(row: list[Any], population: Population) -> VmFate:
    names = [one.name for one in fields(VmFate)]
    values = dict(zip(names, row, strict=True))
    hosts = tuple(HostId(whole(host)) for host in values.pop("hosts"))
    fate = VmFate(**values, hosts=hosts)
    if not 0 <= fate.vm < len(population.vms) or max(hosts, default=0) >= len(population.hosts):
        raise ValueError(f"no VM {fate.vm}, or not on hosts {hosts}")
    return replace(fate, vm=VmId(fate.vm))


def _fill_seen(seen: Aggregator, packed: Mapping[str, Any], epoch: int) -> None:
    require_keys(packed, SEEN_KEYS)
    for names, kept in ((PER_EPOCH, "epochs"), (SUMMED, "sums"), (COUNTS, "counts")):
        require_keys(packed[kept], names)
    for name, column in seen.epochs.items():
        column.frombytes(packed["epochs"][name])
        if len(column) != epoch:
            raise ValueError(f"{name}: {len(column)} epochs, expected {epoch}")
    seen.sums |= {name: int(packed["sums"][name]) for name in SUMMED}
    for name in COUNTS:
        setattr(seen, name, whole(packed["counts"][name]))
    for name in PER_VM:
        getattr(seen, name)[:] = unpack_array(packed["per_vm"][name], _INT64, seen.ids.shape)
    seen.lost_ns[:] = unpack_array(packed["lost_ns"], _INT64, seen.lost_ns.shape)
    for kept, columns in (("held_sums", seen.held_sums), ("held_maxima", seen.held_maxima)):
        require_keys(packed[kept], columns)
        for name, held in columns.items():
            held[:] = unpack_array(packed[kept][name], _INT64, held.shape)
    at, counts = unpack_array(packed["bins"], _INT64, (2, None))
    if not _all_in(at, 0, len(seen.bins) - 1):
        raise ValueError("a bin out of range")
    seen.bins[at] = counts
    seen.contrasts[:] = unpack_array(packed["contrasts"], _INT64, seen.contrasts.shape)


SEEN_KEYS = (
    *("epochs", "sums", "counts", "per_vm", "lost_ns", "held_sums", "held_maxima", "bins"),
    "contrasts",
)
