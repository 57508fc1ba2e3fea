"""The literal twin's VMs come and go: admission control, what a VM is made of, power on and off."""

from __future__ import annotations

import naive_pages as pages
import naive_policy as policy
from naive_index import ContentIndex
from naive_machine import ELSEWHERE, ZERO_PAGE, Content, Machine
from naive_policy import slots
from naive_state import Esx, Event, Guest, Row, Use, Vm

from hostsim import rng
from hostsim.composition import Composition, compose
from hostsim.config import HostConfig
from hostsim.program import KEEP, LOCALITIES
from hostsim.replay import READ, Replay
from hostsim.spec import VmSpec

CLASSES = ("zero", "image", "application", "duplicate", "unique", "pool")


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """Admission control [P 6.2] says no."""


def new_host(host: int, config: HostConfig, seed: int, sample: int, tick_ms: int) -> Esx:
    n_frames = slots(config.machine_bytes - config.reserve, sample)
    low_memory = config.memory if config.io.low_memory is None else config.io.low_memory
    if config.tier.nvme:
        low_memory = config.memory * config.tier.nvme // 1000
    machine = Machine({}, n_frames, slots(low_memory, sample))
    esx = Esx(host, config, seed, sample, tick_ms, machine, ContentIndex(), level_free=n_frames)
    esx.dt_ms = esx.pace_ms = tick_ms
    return esx


def why_refused(esx: Esx, spec: VmSpec) -> str | None:
    """Admission control [P 6.2], in bytes."""
    return why_not_admitted(esx, spec, spec.config.reservation)


def why_not_admitted(esx: Esx, spec: VmSpec, reservation: int) -> str | None:
    """Whether `spec` with this reservation fits beside the other VMs."""
    others = [vm for vm in esx.on() if vm.spec.vm != spec.vm]
    reserved = sum(vm.reservation_bytes + vm.spec.config.overhead for vm in others)
    if (
        reserved + reservation + spec.config.overhead
        > esx.config.machine_bytes - esx.config.reserve
    ):
        return "memory-reservation"
    swap = sum(vm.spec.config.memory - vm.reservation_bytes for vm in others)
    swap += spec.config.memory - reservation
    return "swap-space" if swap > esx.config.swap_space_bytes else None


def planned_pages(
    esx: Esx, spec: VmSpec, composition: Composition, size: int, kernel: int, footprint: int
) -> list[tuple[Use, Content | None]]:
    """Use and content of each page at its first use. The j-th page of a class holds the j-th
    content of its family, or what the VM draws from the family's pool; None = written by the guest
    itself."""
    draws = esx.draws(rng.POOL, spec.vm, 0)
    pool = max(slots(spec.image.pool, esx.sample), 1)
    application = spec.application_range or f"of image {spec.image_range}"
    seen = dict.fromkeys(CLASSES, 0)
    plan: list[tuple[Use, Content | None]] = []
    for ppn in range(size):
        section, first = (
            (0, 0) if ppn < kernel else (1, kernel) if ppn < footprint else (2, footprint)
        )
        period = int(composition.periods[section])
        use, number = divmod(int(composition.kinds[section][(ppn - first) % period]), 8)
        name = CLASSES[number]
        j, seen[name] = seen[name], seen[name] + 1
        group = (1000 * j + composition.copies_phase) // composition.copies_permille
        content = {
            "zero": ZERO_PAGE,
            "image": f"image {spec.image_range} {j}".encode(),
            "application": f"application {application} {j}".encode(),
            "duplicate": f"duplicate {spec.vm} {group}".encode() if group >= 0 else ELSEWHERE,
            "unique": None,
            "pool": f"pool {spec.image_range} {draws.below(j, pool)}".encode(),
        }[name]
        plan.append((Use(use), content))
    return plan


def replayed_content(spec: VmSpec, word: int) -> Content | None:
    """What an event puts into a page: the zero page, a content of the VM's source, or nothing."""
    place = word % (1 << 30)
    if place == READ:
        return None
    return ZERO_PAGE if place == 0 else f"image {spec.image_range} {place - 1}".encode()


def booted_pages(spec: VmSpec, replay: Replay) -> list[tuple[Use, Content | None]]:
    """Use and content of each page that a real guest had, once booted."""
    words = replay.events["word"][: replay.pages].tolist()
    return [(Use(word >> 30), replayed_content(spec, word)) for word in words]


def later_events(spec: VmSpec) -> list[Event]:
    """What a real guest did after its boot."""
    if spec.replay is None:
        return []
    rows = spec.replay.events[spec.replay.pages :].tolist()
    return [Event(at_ms, ppn, replayed_content(spec, word)) for at_ms, ppn, word in rows]


def program_rows(spec: VmSpec, sample: int) -> list[Row]:
    def scaled(amount: int) -> int:
        return max(slots(amount * policy.PAGE_BYTES, sample), 1) if amount > 0 else 0

    return [
        Row(
            until_ms=int(row["until_ms"]),
            memory=None if row["memory_pages"] == KEEP else scaled(int(row["memory_pages"])),
            growth_milli_per_s=int(row["growth_pages_per_s"]) * 1000,
            active=scaled(int(row["active_pages"])),
            data=scaled(int(row["data_pages"])),
            touch_interval_ms=int(row["touch_interval_ms"]),
            writes_permille=int(row["writes_permille"]),
            locality=LOCALITIES[row["locality"]],
            drift_permille_per_h=int(row["drift_permille_per_h"]),
            cpu_permille=int(row["cpu_permille"]),
            transmit_milli_per_s=int(row["transmit_pages_per_s"]) * 1000,
            transmit_set=scaled(int(row["transmit_set_pages"])),
        )
        for row in spec.program
    ]


def new_vm(esx: Esx, spec: VmSpec) -> Vm:
    config, k = spec.config, esx.sample
    composition = compose(spec.image, esx.seed, k)
    size = max(slots(config.memory, k), 1)
    limit = config.memory if config.limit is None else config.limit
    guest_swap = config.guest_swap
    if guest_swap is None:
        guest_swap = config.memory - config.reservation
    structures = size * spec.image.structures // 1000
    footprint = max(min(slots(spec.image.footprint, k), size), 1)
    kernel = footprint * composition.kernel_permille // 1000 + structures
    kernel, footprint = min(kernel, size - 1), min(footprint + structures, size)
    touchable, replay = size, spec.replay
    if replay is not None:  # every page counts: no sampling, no image
        footprint, touchable = replay.pages, max(replay.used, 1)
        kernel = min(replay.unmovable, touchable - 1)
    has_driver = config.balloon == "present"
    vm = Vm(
        spec=spec,
        size=size,
        reservation=min(slots(config.reservation, k), size),
        limit=min(slots(limit, k), size),
        shares=config.share_count,
        overhead_due=slots(config.overhead, k),
        salt=spec.vm + 1 if esx.config.sharing.salting == "vm" else 0,
        sharing=config.sharing and esx.config.sharing.enabled,
        has_driver=has_driver,
        balloon_max=size * esx.config.balloon.maximum // 1000 if has_driver else 0,
        guest_swap=slots(guest_swap, k),
        plan=booted_pages(spec, replay)
        if replay
        else planned_pages(esx, spec, composition, size, kernel, footprint),
        program=program_rows(spec, k),
        replay=later_events(spec),
        touchable=touchable,
        guest=Guest(dict.fromkeys(range(size), Use.FREE), kernel=kernel, footprint=footprint),
        start_ms=esx.now_ms,
        reservation_bytes=config.reservation,
    )
    vm.target = vm.limit
    vm.guest.free_cursor = size - 1
    vm.guest.boot_end_ns = spec.image.boot * 1_000_000
    return vm


def power_on(esx: Esx, spec: VmSpec) -> None:
    reason = why_refused(esx, spec)
    if reason is not None:
        raise Refused(reason)
    esx.vms[spec.vm] = new_vm(esx, spec)
    esx.rebalance = True


def power_off(esx: Esx, vm_id: int) -> None:
    vm = esx.vms[vm_id]
    vm.large.clear()  # which is no break
    for ppn in range(vm.size):
        if vm.frame(ppn) is not None:
            pages.leave_memory(esx, vm, ppn)
    for mpn in vm.overhead + vm.cache_frames:
        esx.machine.release(mpn)
    del esx.vms[vm_id]
    esx.rebalance = True


def set_vm(esx: Esx, vm_id: int, reservation: int, limit: int, shares: int) -> None:
    """New allocation parameters, in bytes; admission was asked before."""
    vm = esx.vms[vm_id]
    vm.reservation_bytes = reservation
    vm.reservation = min(slots(reservation, esx.sample), vm.size)
    vm.limit = min(slots(limit, esx.sample), vm.size)
    vm.shares = shares
    esx.rebalance = True


def hold(esx: Esx, n: int) -> None:
    """Keep `n` frames in all, for VMs on their way here; as many are free."""
    while esx.held:
        esx.machine.release(esx.held.pop())
    esx.held = [esx.machine.take(b"held", 0) for _ in range(n)]
    esx.rebalance = True


def set_host(esx: Esx, idle_tax: int) -> None:
    """A new idle tax, in permille: targets follow [P 6.3]."""
    allocation = esx.config.allocation.model_copy(update={"idle_tax": idle_tax})
    esx.config = esx.config.model_copy(update={"allocation": allocation})
    esx.rebalance = True
