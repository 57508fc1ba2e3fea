"""Scenario files that are refused: what is wrong, where, and all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scenario_files import (
    HOST,
    IMAGE,
    VM,
    WORKLOAD,
    changed,
    problems_of,
    write,
)

from cluster.scenario_file import ScenarioError, load


def vm(**values: Any) -> dict[str, Any]:
    return {"vms": [VM | values]}


def host(**values: Any) -> dict[str, Any]:
    return {"hosts": [HOST | values]}


def event(**values: Any) -> dict[str, Any]:
    return {"events": [{"at": "10 min", "target": "web-1", "action": "reset"} | values]}


def set_values(**values: Any) -> dict[str, Any]:
    return event(action="set", values=values)


def set_host(target: str = "esx-1", **values: Any) -> dict[str, Any]:
    return event(target=target, action="set", values=values)


BAD = [
    # change of the small scenario, path of the problem, part of its message
    ({"tock": 1}, "tock", "unknown key: did you mean 'tick'? allowed here: name, question"),
    (vm(memry="1 GiB"), "vms[0].memry", "did you mean 'memory'? allowed here: memory, reserv"),
    (host(sharing={"salt": 1}), "hosts[0].sharing.salt", "did you mean 'salting'?"),
    (host(paging={"map_cleen": True}), "hosts[0].paging.map_cleen", "did you mean 'map_clean'?"),
    (host(paging={"map_clean": "clean"}), "hosts[0].paging.map_clean", "true or false"),
    ({"name": None}, "name", "is required"),
    ({"duration": None}, "duration", "is required"),
    ({"hosts": None}, "hosts", "is required"),
    ({"hosts": []}, "hosts", "must have at least 1 of them"),
    ({"hosts": 5}, "hosts", "must be a list"),
    ({"hosts": ["esx"]}, "hosts[0]", "must be a mapping with some of: memory"),
    ({"vms": None}, "vms", "is required, unless there is a trace"),
    (vm(image=None), "vms[0].image", "must be text"),
    ({"name": 5}, "name", "must be text (in quotes"),
    ({"name": "a\nb"}, "name", "must be one line of text"),
    ({"seed": -1}, "seed", "must be at least 0"),
    ({"seed": 1.5}, "seed", "must be a whole number"),
    ({"seed": True}, "seed", "must be a whole number"),
    (vm(memory="64 GiBB"), "vms[0].memory", "must be a memory size with a unit"),
    (vm(memory="64 GB"), "vms[0].memory", "must be a memory size with a unit"),
    (vm(memory=64), "vms[0].memory", "must be a memory size with a unit"),
    (vm(memory="-1 GiB"), "vms[0].memory", "must be a memory size with a unit"),
    (vm(memory="0 B"), "vms[0].memory", "must be at least 1 MiB"),
    (vm(memory="2048 TiB"), "vms[0].memory", "must be at most 1024 TiB"),
    (vm(memory="9999999999 TiB"), "vms[0].memory", "is larger than any machine"),
    (vm(count=0), "vms[0].count", "must be at least 1"),
    (vm(count=10**9), "vms[0].count", "must be at most 1000000"),
    (vm(count="3"), "vms[0].count", "must be a whole number"),
    (host(count=10**6), "hosts[0].count", "must be at most 100000"),
    (
        {"hosts": [HOST | {"count": 60_000}, HOST | {"name": "b", "count": 60_000}]},
        "hosts",
        "120000",
    ),
    (vm(name="../x"), "vms[0].name", "must be letters, digits and ._-"),
    (vm(name="x" * 101), "vms[0].name", "must have at most 100 characters"),
    (vm(shares="hi"), "vms[0].shares", "must be a whole number; or must be 'low', 'normal' or"),
    (vm(shares=-1), "vms[0].shares", "must be low, normal, high or a whole number from 0"),
    (
        vm(reservation="2 GiB"),
        "vms[0]",
        "reservation must not exceed limit (reservation 2 GiB; limit, as memory, 1 GiB)",
    ),
    (
        vm(limit="512 MiB", reservation="600 MiB"),
        "vms[0]",
        "reservation must not exceed limit (reservation 600 MiB; limit 512 MiB)",
    ),
    (vm(memory="9 GiB"), "vms[0].memory", "is larger than any host: the largest has 8 GiB"),
    (vm(memory="8 GiB", reservation="7 GiB"), "vms[0]", "fit on no host: at most 7 GiB"),
    (vm(application="web"), "vms[0].application", "no use: image linux has no pages of class"),
    (vm(memory="100 MiB"), "vms[0].memory", "boot footprint of linux, 128 MiB"),
    (vm(image="linus"), "vms[0].image", "did you mean 'linux'? known: linux"),
    (vm(workload="x"), "vms[0].workload", "workloads has none of this name: known: steady"),
    (
        vm(start="nevr"),
        "vms[0].start",
        "with a unit (ns, us, ms, s, min, h, d), such as '30 s'; or",
    ),
    (vm(start="1 h"), "vms[0].start", "must come before the end of the run (1 h)"),
    (
        vm(start="10 min", stop="10 min"),
        "vms[0]",
        "stop must come after start (stop 10 min; start 10 min)",
    ),
    ({"duration": "99999999999 d"}, "duration", "is longer than 100 years"),
    (vm(start="never", stop="10 min"), "vms[0]", "stop needs a start"),
    (host(memory="1 GiB", reserve="1 GiB"), "hosts[0]", "reserve must be below memory"),
    (host(swap="floppy"), "hosts[0].swap", "must be one of ssd, disk-2002"),
    (host(reclaim=5), "hosts[0].reclaim", "must be a mapping with some of: minfree"),
    (
        host(profile=["vsphere"]),
        "hosts[0]",
        "profile must be one of osdi02, vsphere",
    ),
    (
        host(profile="esx9"),
        "hosts[0].profile",
        "must be 'osdi02', 'vsphere', 'vsphere-5'",
    ),
    ({"vms": [VM, VM | {"count": 1}, VM]}, "vms[2].name", "'web-1' is also the name of vms[0]"),
    ({"vms": [VM, VM | {"name": "web-2", "count": 1}]}, "vms[1].name", "the name of vms[0]"),
    ({"hosts": [HOST, HOST]}, "hosts[1].name", "'esx-1' is also the name of hosts[0]"),
    ({"images": [IMAGE, IMAGE]}, "images[1].name", "'linux' is also the name of images[0]"),
    ({"workloads": [WORKLOAD, WORKLOAD]}, "workloads[1].name", "is also the name of workloads[0]"),
    ({"workloads": [WORKLOAD | {"phases": []}]}, "workloads[0].phases", "at least 1 of them"),
    ({"images": [IMAGE | {"content": {}}]}, "images[0].content", "must sum to 100 %, got 0 %"),
    ({"images": [IMAGE | {"copies": float("nan")}]}, "images[0].copies", "must be a number"),
    ({"epoch": "7 min"}, "duration", "must be a multiple of epoch (7 min)"),
    ({"tick": "7 s"}, "tick", "epoch (1 min) must be a multiple of tick (7 s)"),
    ({"duration": "0 s"}, "duration", "must be above 0 s"),
    ({"duration": 60}, "duration", "must be a duration with a unit"),
    ({"fidelity": {"sample": 63}}, "fidelity.sample", "must be a power of two, such as 64"),
    ({"fidelity": {"sample": 8192}}, "fidelity.sample", "must be at most 4096"),
    ({"detail": "all"}, "detail", "must be 'none' or 'vms'"),
    ({"placement": {"policy": "random"}}, "placement.policy", "must be 'first-fit', 'best-fit' or"),
    ({"placement": {"overcommit": 0}}, "placement.overcommit", "must be at least 0.1"),
    (event(target="wob-1"), "events[0].target", "is no VM and no host: did you mean 'web-1'?"),
    (set_host("esk-1", idle_tax="5 %"), "events[0].target", "no host: did you mean 'esx-1'?"),
    (set_host("esx", idle_tax="5 %"), "events[0].target", "targets are names of VMs and hosts"),
    (event(target="web"), "events[0].target", "is no VM and no host"),
    (
        {"vms": [VM | {"name": "esx-1", "count": 1}], **set_host(idle_tax="5 %")},
        "events[0].target",
        "is a VM (vms[0]) and a host (hosts[0]): an event needs a name of one thing only",
    ),
    (event(target="esx-1"), "events[0].action", "'esx-1' is a host: allowed for hosts: set"),
    (
        set_host(idle_tax="5 %", shares=1),
        "events[0].values.shares",
        "'esx-1' is a host: allowed for hosts: idle_tax",
    ),
    (set_host(limit="1 GiB"), "events[0].values.limit", "allowed for hosts: idle_tax"),
    (set_host(reservation="0 B"), "events[0].values.reservation", "allowed for hosts: idle_tax"),
    (
        set_values(idle_tax="75 %"),
        "events[0].values.idle_tax",
        "'web-1' is a VM: allowed for VMs: reservation, limit, shares",
    ),
    (set_host(idle_tax="99.1 %"), "events[0].values.idle_tax", "must be at most 99 %"),
    (set_host(idle_tax=75), "events[0].values.idle_tax", "such as '75 %'"),
    (set_host(), "events[0]", "set needs values: reservation, limit, shares, or a host's idle_tax"),
    (set_host(idle_tax="5 %") | {"duration": "10 min"}, "events[0].at", "must come before the end"),
    (event(action="fail"), "events[0].action", "'web-1' is a VM: allowed for VMs: power_on"),
    (event(action="stop"), "events[0].action", "must be 'power_on', 'power_off', 'reset', 'set'"),
    (event(at="1 h"), "events[0].at", "must come before the end of the run (1 h)"),
    (event(values={"shares": 1}), "events[0]", "reset takes no values"),
    (event(action="set"), "events[0]", "set needs values"),
    (event(action="set", values={}), "events[0]", "set needs values"),
    (event(action="power_on"), "events[0].action", "'web-1' is on already at 10 min"),
    (set_values(memory="2 GiB"), "events[0].values.memory", "unknown key: allowed here: reserv"),
    (
        set_values(reservation="2 GiB", limit="512 MiB"),
        "events[0].values",
        "reservation must not exceed limit (reservation 2 GiB; limit 512 MiB)",
    ),
    (
        set_values(limit="2 GiB"),
        "events[0].values",
        "limit must not exceed memory (limit 2 GiB; memory 1 GiB)",
    ),
    (set_values(shares=-5), "events[0].values.shares", "must be at least 0"),
    (event(action="migrate"), "events[0]", "migrate needs values: {host: NAME}"),
    (event(action="migrate", values={"host": "esx-9"}), "events[0].values.host", "is no host"),
    (event(action="migrate", values={"shares": 1}), "events[0]", "migrate needs values"),
    (
        event(target="esx-1", action="fail", values={"shares": 1}),
        "events[0]",
        "fail takes no values but repair",
    ),
    (
        event(target="esx-1", action="fail", values={"repair": "0 s"}),
        "events[0].values.repair",
        "must be above 0",
    ),
    (set_host(repair="1 h"), "events[0]", "repair is no value that set changes"),
    ({"migration": {"bandwidth": "0 B/s"}}, "migration.bandwidth", "must be above 0"),
    ({"migration": {"stalled": "hope"}}, "migration.stalled", "must be 'slow' or 'abandon'"),
    ({"balancing": {"level": 6}}, "balancing.level", "must be at most 5"),
    ({"balancing": {"interval": "0 s"}}, "balancing.interval", "must be above 0"),
    ({"rules": [{"kind": "apart", "vms": ["db"]}]}, "rules[0].vms[0]", "is no VM and no group"),
    (
        {"rules": [{"kind": "hosts", "vms": ["web"], "hosts": ["esx-9"]}]},
        "rules[0].hosts[0]",
        "is no host and no group of hosts",
    ),
    ({"rules": [{"kind": "hosts", "vms": ["web"]}]}, "rules[0]", "hosts are given for kind hosts"),
    (
        {"rules": [{"kind": "apart", "vms": ["web"], "hosts": ["esx-1"]}]},
        "rules[0]",
        "hosts are given for kind hosts, and for no other",
    ),
    ({"availability": {"failures": {}}}, "availability.failures.mean_time", "is required"),
    ({"power": {"target": "101 %"}}, "power.target", "must be at most 100 %"),
    (host(watts={"idle": "3 kW"}), "hosts[0].watts", "peak must be at least idle"),
    (host(watts={"idle": "3 PS"}), "hosts[0].watts.idle", "must be a power with a unit"),
    ({"placement": {"tolerate": -1}}, "placement.tolerate", "must be at least 0"),
    ({"placement": {"content": "101 %"}}, "placement.content", "must be at most 100 %"),
]


@pytest.mark.parametrize(("change", "path", "words"), BAD)
def test_bad_scenarios(tmp_path: Path, change: dict[str, Any], path: str, words: str) -> None:
    (problem,) = problems_of(tmp_path, changed(**change))
    assert problem.path == path
    assert words in problem.message


@pytest.mark.parametrize("text", ["", "# nothing\n", "just text\n", "- a\n- b\n", "5\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert (
        "is empty" in problem.message or "must be a mapping with some of: name" in problem.message
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system [ls]\n", "tags"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "anchors"),
        ("name: a\nname: b\n", "is given twice"),
    ],
)
def test_dangerous_yaml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in problems_of(tmp_path, text)[0].message


def test_a_huge_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    with path.open("wb") as stream:
        stream.truncate(100_000_000)
    with pytest.raises(ScenarioError, match="is larger than 1 MiB"):
        load(path)


MANY = """\
name: many
duration: 1 h
epoch: 7 min
hosts:
  - {name: esx, memory: 16 GiB}
  - {name: esx, memory: 16 GB}
  - name: esx
    memory: 4 GiB
    sharing:
      salting: foo
images: missing.yaml
workloads:
  - name: w
    phases: [{duration: 1 h, active: 5}]
vms:
  - {name: a, memory: 1 GiB, image: linux, workload: ww}
  - name: a
    memory: 1 GiB
    image: linux
    workload: w
  - {memory: 1 GiB, image: linux, workload: w}
trace:
  path: ../elsewhere
  images: {linux: 0}
events:
  - {at: 2 h, target: a, action: reset}
"""


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    found = [(problem.line, problem.path) for problem in problems_of(tmp_path, MANY)]
    assert found == [
        (2, "duration"),
        (6, "hosts[1].memory"),
        (10, "hosts[2].sharing.salting"),
        (11, "images"),
        (14, "workloads[0].phases[0].active"),
        (16, "vms[0].workload"),
        (17, "vms[1].name"),
        (21, "vms[2].name"),
        (23, "trace.path"),
        (24, "trace.images"),
        (26, "events[0].at"),
    ]


def test_an_error_names_file_line_path_value_and_what_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, changed(**vm(memory="64 GiBB")))
    with pytest.raises(ScenarioError) as caught:
        load(path)
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "GiBB" in text)
    assert str(caught.value).startswith(
        f"{path}:{line}: vms[0].memory: '64 GiBB': must be a memory size with a unit (B, KiB,"
    )
