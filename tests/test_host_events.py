"""Events that change a host: their place among those of VMs, and the orders that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster_builders import Plans, arrays_of
from scenario_files import VM

from cluster.messages import SetHost
from hostsim.units import HostId


def group(name: str, **values: Any) -> dict[str, Any]:
    return VM | {"name": name, "count": 1} | values


def event(at: str, target: str, action: str, **values: Any) -> dict[str, Any]:
    given = {"values": values} if values else {}
    return {"at": at, "target": target, "action": action} | given


def tax(at: str, target: str, idle_tax: str = "75 %") -> dict[str, Any]:
    return event(at, target, "set", idle_tax=idle_tax)


def test_hosts_come_after_vms_of_the_same_time_by_id(tmp_path: Path) -> None:
    events = [
        tax("80 s", "esx-10"),
        tax("80 s", "esx-2"),
        event("80 s", "b", "reset"),
        event("80 s", "a", "set", shares=5),
        tax("79 s", "esx-3"),
        event("110 s", "b", "power_off"),
    ]
    hosts = [{"name": "esx", "count": 10, "memory": "8 GiB"}]
    vms = [group("a"), group("b"), group("c", stop="120 s")]
    found = Plans(tmp_path, hosts=hosts, vms=vms, events=events)
    assert found.due()[3:] == [
        (2, "power_off", "c"),
        (2, "set", "esx-3"),
        (2, "set", "a"),
        (2, "reset", "b"),
        (2, "set", "esx-2"),
        (2, "set", "esx-10"),
        (2, "power_off", "b"),
    ]


def test_a_host_is_no_vm_of_the_same_number(tmp_path: Path) -> None:
    """What is due for host 0 does not make VM 0's departure its second act of the epoch."""
    events = [tax("70 s", "esx-1"), event("80 s", "a", "power_off")]
    found = Plans(tmp_path, vms=[group("a")], events=events)
    assert found.due()[1:] == [(2, "power_off", "a"), (2, "set", "esx-1")]


def test_a_host_is_set_as_often_as_asked_and_the_state_stays(tmp_path: Path) -> None:
    events = [tax("60 s", "esx-2", "99 %"), tax("60 s", "esx-2", "12.5 %"), tax("59 min", "esx-1")]
    found = Plans(tmp_path, vms=[group("a")], events=events)
    _, first, second = found.all()
    assert first.orders == (SetHost(HostId(1), 990), SetHost(HostId(1), 125))
    assert second.orders == (SetHost(HostId(0), 750),)
    told = first.decisions[1]
    assert (told.at_ms, told.kind, told.vm, told.host) == (60_000, "set", None, 1)
    assert told.facts == {"idle_tax_permille": 125} and told.reason is None
    assert arrays_of(first.after) == arrays_of(second.after)
