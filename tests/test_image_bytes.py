"""A VM on its way as arrays of another process, and as bytes: read as it is, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from crowded_hosts import SECOND, SIZE, run_checked, starved, target_host
from host_builders import row_of
from hypothesis import given, settings
from hypothesis import strategies as some

from hostsim import image, packing, snapshot
from hostsim.image import VmImage, export_vm, import_vm
from hostsim.packing import PackingError
from hostsim.state import (
    HINT,
    RESIDENT,
    SHARED,
)
from hostsim.units import VmId

FIELDS = ("spec", "row", "page", "content", "sampled", "lost")


def read_only(taken: VmImage) -> VmImage:
    """As arrays arrive from another process."""
    arrays = {name: getattr(taken, name).copy() for name in image.DTYPES}
    for array in arrays.values():
        array.setflags(write=False)
    return VmImage(spec=taken.spec, **arrays)


def bytes_of(taken: VmImage) -> dict[str, bytes]:
    return {name: getattr(taken, name).tobytes() for name in image.DTYPES}


def test_read_only_arrays_are_taken_and_never_written() -> None:
    taken = read_only(export_vm(snapshot.load(starved()), VmId(2)))
    before = bytes_of(taken)
    hosts = [target_host(), target_host("vm")]
    for host in hosts:
        import_vm(host, taken)
        run_checked(host, 20)
        assert not any(np.shares_memory(host.state.page, getattr(taken, one)) for one in before)
    assert bytes_of(taken) == before
    assert row_of(hosts[0], 2).touches > 0


@pytest.mark.parametrize("vm", [1, 2, 3, 4])
def test_packing_and_unpacking_gives_the_same_image(vm: int) -> None:
    taken = export_vm(snapshot.load(starved()), VmId(vm))
    packed = image.pack(taken)
    again = image.unpack(packed)
    assert bytes_of(again) == bytes_of(taken)
    assert image.pack(again) == packed
    assert again.spec.config == taken.spec.config and again.spec.vm == vm
    hosts = [target_host(), target_host()]
    import_vm(hosts[0], taken)
    import_vm(hosts[1], again)
    for _ in range(2):
        assert snapshot.digest(hosts[0]) == snapshot.digest(hosts[1])
        for host in hosts:
            host.advance(10 * SECOND)


@settings(max_examples=150)
@given(some.data())
def test_damaged_bytes_raise_one_error(data: some.DataObject) -> None:
    damaged = bytearray(image.pack(export_vm(snapshot.load(starved()), VmId(1))))
    place = data.draw(some.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(some.integers(1, 255))
    for wrong in (bytes(damaged), bytes(damaged[:place]), data.draw(some.binary(max_size=100))):
        with pytest.raises(PackingError):
            image.unpack(wrong)


def test_a_host_is_not_a_vm() -> None:
    with pytest.raises(PackingError, match="esxsim-host"):
        image.unpack(starved())


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("row", "resident", 999),
        ("row", "vm", 9),
        ("row", "size_slots", SIZE + 1),
        ("row", "size_slots", 2**62),
        ("row", "samples", 10**6),
        ("row", "span", SIZE + 1),
        ("row", "brk", -1),
        ("row", "row", 99),
        ("row", "cause", 9),
        ("page", None, 7),
        ("page", None, int(RESIDENT | HINT)),
        ("page", None, int(SHARED)),
        ("sampled", None, SIZE),
        ("sampled", None, -1),
    ],
)
def test_a_wrong_image_with_a_right_digest_is_refused(
    name: str, field: str | None, value: int
) -> None:
    taken = export_vm(snapshot.load(starved()), VmId(1))
    arrays = {one: getattr(taken, one).copy() for one in image.DTYPES}
    if field is None:
        arrays[name][0] = value
    else:
        arrays[name][field][0] = value
    with pytest.raises(PackingError):
        image.unpack(image.pack(VmImage(spec=taken.spec, **arrays)))


def test_an_image_with_an_unknown_field_is_refused() -> None:
    taken = export_vm(snapshot.load(starved()), VmId(1))
    arrays = {name: packing.pack_array(getattr(taken, name)) for name in image.DTYPES}
    body = {"spec": packing.pack_spec(taken.spec), "arrays": arrays}
    assert packing.seal(image.PACKED_AS, body) == image.pack(taken)
    for wrong in (body | {"more": 1}, body | {"arrays": arrays | {"more": arrays["page"]}}):
        with pytest.raises(PackingError, match="more"):
            image.unpack(packing.seal(image.PACKED_AS, wrong))
