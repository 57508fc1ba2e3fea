"""What loading a valid scenario gives: defaults, digest, assumptions, warnings, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scenario_files import (
    HOST,
    IMAGE,
    SMALL,
    STEADY,
    VM,
    WORKLOAD,
    changed,
    loaded,
    make_trace,
    save,
    trace_of,
    write,
)

from cluster import scenario_text
from cluster.scenario import Scenario, schema
from cluster.scenario_file import load
from hostsim.config import HostConfig, VmConfig
from hostsim.guest_config import ContentTable, Workload
from hostsim.units import MIB


def vm(**values: Any) -> dict[str, Any]:
    return {"vms": [VM | values]}


def host(**values: Any) -> dict[str, Any]:
    return {"hosts": [HOST | values]}


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    scenario = loaded(tmp_path).scenario
    assert (scenario.seed, scenario.tick, scenario.epoch) == (1, 1000, 60_000)
    assert (scenario.fidelity.sample, scenario.detail) == (1, "none")
    assert scenario.placement.policy == "worst-fit"
    assert scenario.placement.by == "configured"
    assert scenario.placement.overcommit == 1.5
    assert scenario.placement.cpu_overcommit is None
    assert scenario.vms[0].start == 0
    # The profile reaches the hosts: vsphere scans by time, osdi02 does not.
    assert scenario.hosts[0].sharing.scan_time == 3_600_000
    old = loaded(tmp_path, hosts=[HOST | {"profile": "osdi02"}]).scenario
    assert old.hosts[0].sharing.scan_time is None


def test_digest_ignores_order_of_keys_names_of_files_and_text(tmp_path: Path) -> None:
    first = loaded(tmp_path)
    turned = dict(reversed(changed().items()))
    turned["vms"] = [dict(reversed(VM.items()))]
    spelled = changed(duration="60 min", seed=1, hosts=[HOST | {"memory": "8192 MiB"}])
    (tmp_path / "other").mkdir()
    assert load(write(tmp_path / "other", turned, "x.yaml")).digest == first.digest
    assert load(write(tmp_path, spelled)).digest == first.digest


@pytest.mark.parametrize(
    "change",
    [
        {"duration": "2 h"},
        {"seed": 2},
        {"placement": {"overcommit": 2}},
        vm(memory="2 GiB"),
        host(sharing={"enabled": False}),
        {"images": [IMAGE | {"footprint": "100 MiB"}]},
    ],
)
def test_digest_covers_every_value(tmp_path: Path, change: dict[str, Any]) -> None:
    assert loaded(tmp_path, **change).digest != loaded(tmp_path).digest


def test_digest_covers_the_content_of_the_trace_but_not_its_name(tmp_path: Path) -> None:
    def digest(name: str, **columns: Any) -> str:
        save(tmp_path, make_trace(**columns), name)
        return loaded(tmp_path, trace=trace_of(path=name, workloads=STEADY)).digest

    assert digest("one") == digest("two")
    assert digest("one") != digest("three", vcpus=make_trace().vcpus + 1)


def test_seed_of_the_command_line_is_part_of_the_run(tmp_path: Path) -> None:
    given, stated = loaded(tmp_path, seed=7), load(write(tmp_path, changed(seed=7)))
    assert given.scenario.seed == 7
    assert given.digest == stated.digest
    assert load(write(tmp_path, given.scenario_yaml)).digest == given.digest
    assert "seed" not in given.assumptions


def test_scenario_as_run_is_the_file_itself_if_nothing_was_replaced(tmp_path: Path) -> None:
    text = "# why\n" + yaml.safe_dump(SMALL)
    assert load(write(tmp_path, text)).scenario_yaml == text


def test_assumptions_are_what_was_not_stated(tmp_path: Path) -> None:
    found = loaded(tmp_path, hosts=[HOST | {"swap": "ssd", "balloon": {"poll": "2 s"}}]).assumptions
    expected = {
        "seed": 1,
        "tick": "1 s",
        "placement.policy": "worst-fit",
        "placement.overcommit": 1.5,
        "placement.cpu_overcommit": "no limit",
        "hosts[esx].cpus": 16,
        "hosts[esx].reserve": "1 GiB",
        "hosts[esx].balloon.inflate": "64 MiB/s",
        "hosts[esx].reclaim.minfree": "sliding",
        "hosts[esx].costs.cow": "3 us",
        "hosts[esx].swap_space": "32 GiB",
        "images[linux].growth": "anon unique 100 %",
        "images[linux].disk.latency": "90 us",
        "vms[web].limit": "memory of the VM",
        "vms[web].overhead": "32 MiB",
        "workloads[steady].phases[0].active": "10 %",
        "workloads[steady].phases[0].drift": "5 %",
    }
    assert {key: found.get(key) for key in expected} == expected
    for stated in ("name", "hosts[esx].memory", "hosts[esx].swap.iops", "hosts[esx].balloon.poll"):
        assert stated not in found
    assert not [key for key in found if key.startswith(("question", "events", "trace"))]
    assert json.dumps(found, allow_nan=False)


def test_assumptions_of_a_trace(tmp_path: Path) -> None:
    names = make_trace().names[:2]
    two = {name: getattr(make_trace(), name)[:2] for name in ("start_s", "stop_s", "vcpus")}
    two |= {"memory_bytes": make_trace().memory_bytes[:2] // 8}
    two |= {"cpu_capacity_mhz": make_trace().cpu_capacity_mhz[:2]}
    two |= {"offsets": make_trace().offsets[:3], "cpu_permille": make_trace().cpu_permille.copy()}
    two["cpu_permille"][:4] = -1
    save(tmp_path, make_trace(names=names, **two))
    found = loaded(tmp_path, trace=trace_of()).assumptions
    assert found["trace.footprint"] == "half the size for 1 VMs too small for their image's"
    assert found["trace.cpu"] == "0 % for 1 VMs without readings"
    assert found["trace.active"] == "5 % to 40 % of the size, by CPU, for 1 VMs without readings"
    assert found["trace.guest.touch_interval"] == "5 s"
    assert found["trace.vms"] == "all that run in the simulated time"
    follows = loaded(tmp_path, trace=trace_of(workloads=STEADY)).assumptions
    assert not [key for key in follows if key.startswith(("trace.guest", "trace.cpu"))]


def test_warnings(tmp_path: Path) -> None:
    save(tmp_path, make_trace())
    found = loaded(
        tmp_path,
        fidelity={"sample": 2048},
        vms=[VM | {"interval": "30 min"}],
        hosts=[HOST | {"memory": "3 GiB"}],
        trace=trace_of(workloads=STEADY),
    ).warnings
    coarse = "1 GiB are 128 slots at fidelity.sample 2048, too few below 256; usable: 1024"
    assert found == (
        f"vms[0] (web): {coarse}",
        "vms[0] (web): 1 of 3 would arrive after the run's end",
        f"trace: 1 VMs, the smallest: {coarse}",
        "trace: 1 VMs are larger than any host (3 GiB) and will be refused, such as 'c'",
    )
    assert loaded(tmp_path, fidelity={"sample": 1024}).warnings == ()


def test_a_phase_that_touches_more_than_it_uses_is_a_warning_with_both_values(
    tmp_path: Path,
) -> None:
    more = {"duration": "1 h", "memory": "30 %", "active": "60 %"}
    phases = [
        {"duration": "1 h", "memory": "50 %", "active": "50 %"},
        more,
        more | {"active": "1 GiB"},  # of which size it is depends on the VM
        {"duration": "1 h", "memory": "5 %"},
        {"duration": "1 h", "active": "100 %"},
        {"duration": "1 h", "memory": "64 MiB", "active": "65 MiB"},
    ]
    steady = WORKLOAD | {"phases": phases}
    warned = loaded(tmp_path, workloads=[WORKLOAD | {"name": "idle"}, steady]).warnings
    where, rest = "workloads[1].phases", "what is not in use is not active"
    assert warned == (
        f"{where}[1] (steady): active (60 %) is above memory (30 %): {rest}",
        f"{where}[3] (steady): active (10 %) is above memory (5 %): {rest}",
        f"{where}[5] (steady): active (65 MiB) is above memory (64 MiB): {rest}",
    )


def test_schema_speaks_the_language_of_the_file() -> None:
    found = schema()
    json.dumps(found)
    assert set(found["properties"]) == set(Scenario.model_fields)
    assert found["additionalProperties"] is False
    assert found["properties"]["tick"]["default"] == "1 s"
    assert found["properties"]["images"]["anyOf"][1]["type"] == "string"
    assert found["$defs"]["Phase"]["properties"]["active"]["default"] == "10 %"
    tax = found["$defs"]["EventValues"]["properties"]["idle_tax"]
    assert tax["anyOf"][0] == {"type": "string", "examples": ["75 %"]}
    assert "default" not in found["$defs"]["HostGroup"]["properties"]["balloon"]


@pytest.mark.parametrize("model", [HostConfig(), Workload(phases=({"duration": 1},))])
def test_values_in_words_are_read_back_as_they_were(model: Any) -> None:
    words = scenario_text.in_words(type(model), model)
    assert type(model).model_validate(words) == model


@given(st.integers(0, 1 << 50), st.integers(0, 1000), st.integers(0, 10**12))
def test_quantities_in_words_are_exact(size: int, part: int, time: int) -> None:
    fields = VmConfig.model_fields
    vm_config = VmConfig(memory=max(size, MIB))
    memory = scenario_text.text(scenario_text.of_field(fields["memory"]), vm_config.memory)
    assert VmConfig.model_validate({"memory": memory}) == vm_config
    mix = ContentTable.model_validate({"anon": {"unique": part, "zero": 1000 - part}})
    words = scenario_text.in_words(ContentTable, mix)
    assert ContentTable.model_validate(words, context={"file": True}) == mix
    phase = {"duration": scenario_text.ms_text(max(time, 1))}
    assert Workload.model_validate({"phases": (phase,)}).phases[0].duration == max(time, 1)
