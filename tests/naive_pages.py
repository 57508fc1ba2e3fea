"""The literal twin's pages: sharing by content, faults, copy-on-write, host swap. No policy.

Each function is one paragraph of the paper over the pmap of a VM, the frames of the machine and the
content index. A touch that cannot be served raises the reason why (`Stall`).
"""

from __future__ import annotations

import naive_compress as compress
import naive_large as large
import naive_remap as remap
import naive_tier as tier
from naive_index import TRUNCATED, HintFrame, SharedFrame
from naive_machine import ZERO_PAGE, Content, Draws, NoFrame, NoGuestIo, NoIo
from naive_policy import LOW
from naive_state import Annotation, Backed, Esx, Use, Vm

SCAN_DRAWS = 4
"""Draws for each page of scan budget: pages without a frame are passed over."""
VICTIM_LOOKS = 256
"""Random looks for a swap victim; after them a draw among all victims."""

# Sharing [P 4.3]


def content_hash(esx: Esx, mpn: int) -> int:
    frame = esx.machine.frames[mpn]
    return esx.index.hash_page(frame.salt, frame.content)


def drop_hint(esx: Esx, mpn: int) -> bool:
    """Forget the hint on a private frame, if there is one. Whether it was stale."""
    record = esx.index.record_of(mpn)
    if record is None:
        return False
    assert isinstance(record, HintFrame)
    esx.index.remove(mpn)
    return record.truncated_hash != content_hash(esx, mpn) & TRUNCATED


def become_reference(esx: Esx, vm: Vm, ppn: int, mpn: int) -> None:
    """The page now refers to the shared frame `mpn`; its redundant copy is reclaimed."""
    entry = vm.frame(ppn)
    assert entry is not None and not entry.cow and entry.mpn != mpn
    esx.machine.release(entry.mpn)
    vm.pmap[ppn] = Backed(mpn, cow=True)


def share(esx: Esx, vm: Vm, ppn: int, insert_hint: bool) -> bool:
    """Look for an equal frame, by hash and then byte by byte. Whether the page is shared now.

    A false match (equal hashes, other bytes) makes the page ineligible: it is not even a hint.
    """
    entry = vm.frame(ppn)
    assert entry is not None and not entry.cow
    candidate, page_hash = esx.machine.frames[entry.mpn], content_hash(esx, entry.mpn)
    for record in esx.index.find(page_hash):
        if isinstance(record, SharedFrame):
            if esx.machine.frames[record.mpn] != candidate:
                return False
            if not large.may_share(esx, (vm, ppn)):
                return False
            become_reference(esx, vm, ppn, record.mpn)
            esx.index.change_references(record.mpn, +1)
            return True
        if content_hash(esx, record.mpn) & TRUNCATED != record.truncated_hash:
            esx.index.remove(record.mpn)
            esx.events["stale_hints"] += 1
            continue
        if esx.machine.frames[record.mpn] != candidate:
            return False
        if not large.may_share(esx, (vm, ppn), (esx.vms[record.vm], record.ppn)):
            return False
        hinted = esx.vms[record.vm].frame(record.ppn)
        assert hinted is not None and hinted.mpn == record.mpn and not hinted.cow
        hinted.cow = True
        become_reference(esx, vm, ppn, record.mpn)
        esx.index.make_shared(page_hash, record.mpn)
        return True
    if insert_hint:
        esx.index.insert_hint(page_hash, entry.mpn, vm.spec.vm, ppn)
    return False


def scan_page(esx: Esx, vm: Vm, ppn: int) -> None:
    """A page with a frame becomes the candidate."""
    esx.events["scanned"] += 1
    entry = vm.frame(ppn)
    assert entry is not None
    if not entry.cow:
        esx.events["stale_hints"] += drop_hint(esx, entry.mpn)
        esx.events["shares_made"] += share(esx, vm, ppn, insert_hint=True)


def scan_vm(esx: Esx, vm: Vm, budget: int, draws: Draws) -> int:
    """Scan random pages of a VM. Returns how many were hashed."""
    scanned = 0
    for draw in range(SCAN_DRAWS * budget):
        ppn = draws.below(draw, vm.size)
        if scanned < budget and vm.frame(ppn) is not None:
            scan_page(esx, vm, ppn)
            scanned += 1
    return scanned


def break_large(esx: Esx, vm: Vm, ppn: int) -> None:
    """Small pages are shared first: all parts of the large page become candidates."""
    parts = large.region(esx, vm, ppn)
    large.split(esx, vm, ppn)
    for part in parts:
        scan_page(esx, vm, part)


# Leaving and entering machine memory


def leave_memory(esx: Esx, vm: Vm, ppn: int) -> int:
    """The page gives up its frame; a shared one is freed by its last holder. Frames freed."""
    entry = vm.frame(ppn)
    assert entry is not None
    del vm.pmap[ppn]
    remap.forget(esx, vm, ppn)
    vm.mapped.discard(ppn)
    if not entry.cow:
        large.split(esx, vm, ppn)
        drop_hint(esx, entry.mpn)
    elif esx.index.change_references(entry.mpn, -1) > 0:
        return 0
    else:
        esx.index.remove(entry.mpn)
    esx.machine.release(entry.mpn)
    return 1


def pop(vm: Vm, ppn: int) -> None:
    """A ballooned page is the guest's again, without a frame."""
    assert vm.pmap.pop(ppn) is Annotation.BALLOONED
    vm.backed.discard(ppn)


def require_frame(esx: Esx, vm: Vm) -> None:
    """In LOW no VM grows beyond what it is entitled to."""
    if esx.free == 0 or (esx.level == LOW and vm.held() >= vm.entitled()):
        raise NoFrame


def bring_in(esx: Esx, vm: Vm, ppn: int) -> int:
    """Back the page with a frame. Cost in ns of one page. A fault never reclaims."""
    if vm.frame(ppn) is not None:
        return tier.reach(esx, vm, ppn)
    require_frame(esx, vm)
    if vm.pmap.get(ppn) is Annotation.SWAPPED:
        return swap_in(esx, vm, ppn)
    if vm.pmap.get(ppn) is Annotation.COMPRESSED:
        content, _ = compress.take_out(esx, vm, ppn)
        vm.pmap[ppn] = Backed(esx.machine.take(content, vm.salt))
        esx.events["decompressions"] += 1
        vm.cause = "decompress"
        return esx.config.costs.decompress
    if vm.pmap.get(ppn) is Annotation.BALLOONED:
        pop(vm, ppn)
        esx.events["pops"] += 1
    if large.back(esx, vm, ppn):
        return 0
    vm.pmap[ppn] = Backed(esx.machine.take(ZERO_PAGE, vm.salt))
    esx.events["zero_fills"] += 1
    return 0


def swap_in(esx: Esx, vm: Vm, ppn: int) -> int:
    """Read a page from the device that holds it. Cost in ns of one page."""
    if ppn in vm.dropped:
        if vm.guest.disk_io_left <= 0:
            raise NoGuestIo
        vm.guest.disk_io_left -= 1
        latency = vm.spec.image.disk.latency
    elif ppn in vm.in_host_cache:
        if esx.ssd_io_left <= 0:
            raise NoIo
        esx.ssd_io_left -= 1
        esx.events["ssd_ins"] += 1
        latency = esx.config.host_cache.latency
    else:
        if esx.swap_io_left <= 0:
            raise NoIo
        esx.swap_io_left -= 1
        latency = esx.config.swap.latency
    vm.pmap[ppn] = Backed(esx.machine.take(forget_swapped(vm, ppn), vm.salt))
    esx.events["swap_ins"] += 1
    vm.cause = "swap_in"
    return latency


def forget_swapped(vm: Vm, ppn: int) -> Content:
    """What a page outside memory held, which no device is asked for any more."""
    vm.dropped.discard(ppn)
    vm.in_host_cache.discard(ppn)
    return vm.swap.pop(ppn)


def write(esx: Esx, vm: Vm, ppn: int, content: Content) -> int:
    """The guest writes to a page that has a frame. Cost in ns of one page.

    A shared frame is copied; its sole holder writes in place, and the frame is private again.
    """
    entry = vm.frame(ppn)
    assert entry is not None
    if not entry.cow:
        esx.machine.frames[entry.mpn].content = content
        return 0
    if esx.index.references(entry.mpn) == 1:
        esx.index.remove(entry.mpn)
        entry.cow = False
        esx.machine.frames[entry.mpn].content = content
        esx.events["cow_reuses"] += 1
        return 0
    vm.pmap[ppn] = Backed(esx.machine.take(content, vm.salt))
    esx.index.change_references(entry.mpn, -1)
    esx.events["cow_breaks"] += 1
    vm.cause = "cow"
    return esx.config.costs.cow


def touch(esx: Esx, vm: Vm, ppn: int, content: Content | None) -> int:
    """The guest reads a page (None) or writes `content` to it. Cost in ns of the whole slot.

    The touch establishes a mapping: the sampler sees whether a page without one gets one.
    """
    cost = bring_in(esx, vm, ppn)
    if content is not None:
        cost += write(esx, vm, ppn, content)
    vm.mapped.add(ppn)
    return cost * esx.sample


def overwrite(esx: Esx, vm: Vm, ppn: int, content: Content) -> int:
    """The guest replaces all of a page. A host that skips overwritten pages backs a swapped one
    with any frame. Cost in ns of the whole slot."""
    if esx.config.paging.skip_overwritten and vm.pmap.get(ppn) is Annotation.SWAPPED:
        require_frame(esx, vm)
        forget_swapped(vm, ppn)
        vm.pmap[ppn] = Backed(esx.machine.take(content, vm.salt))
        vm.mapped.add(ppn)
        esx.events["swap_skips"] += 1
        return 0
    return touch(esx, vm, ppn, content)


# Host swap [P 3.3]


def is_victim(esx: Esx, vm: Vm, ppn: int) -> bool:
    """Whether losing the page frees a frame."""
    entry = vm.frame(ppn)
    return entry is not None and (not entry.cow or esx.index.references(entry.mpn) == 1)


def find_victim(esx: Esx, vm: Vm, draws: Draws, draw: int) -> int | None:
    first_draw = draw * (VICTIM_LOOKS + 1)
    for look in range(VICTIM_LOOKS):
        ppn = draws.below(first_draw + look, vm.size)
        if is_victim(esx, vm, ppn):
            return ppn
    victims = [ppn for ppn in range(vm.size) if is_victim(esx, vm, ppn)]
    if not victims:
        return None
    return victims[draws.below(first_draw + VICTIM_LOOKS, len(victims))]


def page_out(esx: Esx, vm: Vm, ppn: int) -> None:
    """Share before swap: only a page that no equal frame is known of leaves. A clean copy of a
    block of the guest's disk need not be written, where hosts know of them."""
    tries = esx.config.paging.share_first and vm.sharing
    if tries and large.is_part(esx, vm, ppn):
        break_large(esx, vm, ppn)
        if vm.state(ppn) == "shared":
            esx.events["shared_before_swap"] += 1
            return
    entry = vm.frame(ppn)
    assert entry is not None
    if not entry.cow:
        esx.events["stale_hints"] += drop_hint(esx, entry.mpn)
        if tries and share(esx, vm, ppn, insert_hint=False):
            esx.events["shared_before_swap"] += 1
            return
    is_clean = esx.config.paging.map_clean and vm.guest.use[ppn] is Use.CACHE
    if not is_clean and keep_compressed(esx, vm, ppn):
        return
    vm.swap[ppn] = esx.read(vm, ppn)
    leave_memory(esx, vm, ppn)
    vm.pmap[ppn] = Annotation.SWAPPED
    if is_clean:
        assert vm.swap[ppn] == vm.guest.home[ppn], "the guest's disk holds something else"
        vm.dropped.add(ppn)
        esx.events["swap_drops"] += 1
        return
    write_to_swap(esx, vm, ppn)


def keep_compressed(esx: Esx, vm: Vm, ppn: int) -> bool:
    """Compress before swap. A full cache swaps what it has held longest; while it cannot, the
    victim stays where it is. False: the page has to be swapped."""
    if not esx.config.compression.enabled:
        return False
    quarters, most = compress.quarters(esx, vm, ppn), compress.most(esx, vm)
    if quarters == 0 or quarters > most:
        return False
    while compress.taken(esx, vm) + quarters > most:
        if not esx.can_write() or len(vm.swap) >= vm.size - vm.reservation:
            return True
        oldest = next(iter(vm.compressed))
        vm.swap[oldest], _ = compress.take_out(esx, vm, oldest)
        vm.pmap[oldest] = Annotation.SWAPPED
        esx.events["cache_evictions"] += 1
        write_to_swap(esx, vm, oldest)
    content = esx.read(vm, ppn)
    leave_memory(esx, vm, ppn)
    compress.put(esx, vm, ppn, content)
    esx.events["compressions"] += 1
    return True


def write_to_swap(esx: Esx, vm: Vm, ppn: int) -> None:
    """To the host's SSD first, then to the datastore, cluster by cluster."""
    esx.events["swap_outs"] += 1
    if esx.has_host_cache():
        esx.ssd_io_left -= 1
        esx.events["ssd_outs"] += 1
        vm.in_host_cache.add(ppn)
        return
    if esx.cluster_room == 0:  # the cluster that was being written is full: a new operation
        esx.swap_io_left -= 1
        esx.cluster_room = esx.config.swap.write_cluster
    esx.cluster_room -= 1


def page_out_vm(esx: Esx, vm: Vm, n: int, free_goal: int, draws: Draws) -> int:
    """Random victims, up to `n`, while memory is short and device and swap space have room."""
    done = 0
    while done < n and esx.free < free_goal and esx.can_write():
        if len(vm.swap) >= vm.size - vm.reservation:
            break
        ppn = find_victim(esx, vm, draws, done)
        if ppn is None:
            break
        page_out(esx, vm, ppn)
        done += 1
    return done
