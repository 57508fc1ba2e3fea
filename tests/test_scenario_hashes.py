"""Scenarios whose images hold page hashes: what they may say, and what their VMs then replay."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hash_files import guest_arrays, write_npz, write_parquet, write_series
from replayed import DATA, boot, host_of, load_in, need, saved, scan_all, scenario
from scenario_files import changed, make_trace, problems_of, save, trace_of, write
from typer.testing import CliRunner

from cluster import budget, hash_counts, replays
from cluster.cli import app
from cluster.population import populate
from cluster.scenario_file import load
from hostsim import rng
from hostsim.replay import READ
from hostsim.state import ANON, CACHE, FREE, KERNEL, UNTOUCHED

SCENARIOS = Path(__file__).parents[1] / "scenarios" / "osdi02"
SMALL = {"memory": "1 MiB"}


def small(content: dict[str, Any], count: int = 1, **options: Any) -> dict[str, Any]:
    return scenario(content, count, **(SMALL | options))


def test_members_of_a_group_take_the_guests_in_order(tmp_path: Path) -> None:
    """Ordered as a guest is simulated: kernel, then others, in use, free; by address within."""
    loaded = load_in(tmp_path, small({"hashes": write_npz(tmp_path, n=3), "others": True}, 2))
    assert {name: hashes.tolist() for name, hashes in replays.held(loaded).items()} == {
        "vm-1": [9, 0, 101, 5, 5, 0, 7, 7],
        "vm-2": [9, 0, 102, 5, 5, 0, 7, 7],
    }
    one, two = (vm.spec for vm in populate(loaded).vms)
    assert one.replay is not None and two.replay is not None
    # Contents 5, 7, 9, 101, 102 are 1 to 5, the same for both.
    places = [spec.replay.events["word"] & READ for spec in (one, two)]  # type: ignore[union-attr]
    assert [place.tolist() for place in places] == [
        [3, 0, 4, 1, 1, 0, 2, 2],
        [3, 0, 5, 1, 1, 0, 2, 2],
    ]
    uses = (one.replay.events["word"] >> 30).tolist()
    assert uses == [KERNEL, KERNEL, KERNEL, ANON, CACHE, ANON, ANON, FREE]
    assert (one.replay.unmovable, one.replay.used, one.replay.contents) == (3, 7, 5)
    assert one.image_range == two.image_range


def test_files_and_images_of_one_kind_share_contents_and_other_kinds_do_not(tmp_path: Path) -> None:
    """Hash 7 of two .npz files is one content, and of a .parquet file another; exact."""
    write_npz(tmp_path, "b.npz", 1)
    write_parquet(tmp_path)
    data = small({"hashes": write_npz(tmp_path, "a.npz", 1)})
    data["images"] += [
        {"name": "other", "boot": "1 s", "content": {"hashes": "b.npz", "guest": "01"}},
        {
            "name": "old",
            "boot": "1 s",
            "content": {"hashes": "real.parquet", "trace": "a", "snapshot": 0},
        },
    ]
    data["vms"] += [{"name": name, "memory": "1 MiB", "image": name} for name in ("other", "old")]
    loaded = load_in(tmp_path, data)
    by_name = {vm.spec.name: vm.spec for vm in populate(loaded).vms}
    assert by_name["vm"].image_range == by_name["other"].image_range
    assert by_name["old"].image_range not in (by_name["vm"].image_range, 0)
    host = host_of(loaded)
    scan_all(host)
    # a and b: 9 7 5 5 0 7 each, so 9, 5 x 4, 7 x 4, 0 x 2; the snapshot: 7 8 0 0. Zero pages: 4.
    assert saved(host) == (3, 1 + 3 + 3)


def test_salted_hosts_share_within_each_guest_only(tmp_path: Path) -> None:
    sharing = {"salting": "vm", "scan_pages_per_s_vm": 1000, "scan_pages_per_s_total": 9000}
    content = {"hashes": write_npz(tmp_path, n=2), "others": True}
    loaded = load_in(tmp_path, small(content, 2, sharing=sharing))
    host = host_of(loaded)
    scan_all(host)
    alone = [hash_counts.saved([guest]) for guest in replays.held(loaded).values()]
    assert saved(host) == (sum(one.zero for one in alone), sum(one.nonzero for one in alone))


def test_a_series_becomes_events_over_even_intervals(tmp_path: Path) -> None:
    """Dump 1: pages 1 and 7 change, five were referenced; dump 2: none changed, three were read.

    Expected: both changed pages among the five, distinct, in the interval they belong to, the last
    at its end; the others are only read. Pages by order: kernel 1, 2, in use 3 0 0 4 5, free 4.
    """
    content = {"hashes": write_series(tmp_path), "guest": "web", "interval": "10 s"}
    loaded = load_in(tmp_path, small(content))
    replay = populate(loaded).vms[0].spec.replay
    assert replay is not None
    assert (replay.pages, replay.unmovable, replay.used, replay.contents) == (8, 2, 7, 6)
    later = replay.events[8:]
    first, second = later[:5], later[5:]
    assert first["at_ms"].tolist() == [2000, 4000, 6000, 8000, 10_000]
    assert second["at_ms"].tolist() == [13_334, 16_667, 20_000]
    written = {int(e["page"]): int(e["word"]) for e in first if e["word"] != READ}
    assert written == {1: 6, 6: 0}, "page 1 holds hash 9 now, the sixth content; page 7 is zero"
    assert len(set(first["page"].tolist())) == 5
    assert set(second["word"].tolist()) == {READ} and len(set(second["page"].tolist())) == 3


def test_reads_are_drawn_from_seed_and_name_evenly(tmp_path: Path) -> None:
    """Of eight pages three are read: each with probability 3/8; 800 VMs; 4 standard errors."""
    found = load_in(tmp_path, small({"hashes": write_series(tmp_path), "guest": "web"}))
    guest = found.hashes["real"].guests[0]
    pages = replays.pages_of(guest, others=False)
    contents = replays.number([pages])
    counts = np.zeros(8)
    for i in range(800):
        events = replays.replay_of(guest, pages, contents, 1, f"vm-{i}", 1000).events[13:]
        counts[events["page"]] += 1
    sd = np.sqrt(800 * 3 / 8 * 5 / 8)
    assert (np.abs(counts - 800 * 3 / 8) < 4 * sd).all()


def test_draws_are_those_of_the_host_s_streams() -> None:
    key = np.uint64(12345)
    words = replays._words(int(key), 4)
    assert [int(rng.below(key, i, 1000)) for i in range(4)] == [
        int(word >> np.uint64(32)) * 1000 >> 32 for word in words
    ]


def test_the_host_holds_each_dump_in_turn(tmp_path: Path) -> None:
    """After boot row 0, after one interval row 1; untouched pages of the VM stay so; exact."""
    loaded = load_in(tmp_path, small({"hashes": write_series(tmp_path), "guest": "web"}))
    host = host_of(loaded)
    boot(host)
    member = next(member for _, member in replays.members(loaded))
    contents = replays.number([member.pages])
    for dump in (0, 1, 2):
        words = host.state.content[:8].astype(np.int64) - int(host.state.vms[0].image_base)
        zero = host.state.content[:8] == host.state.vms[0].zero
        held = np.where(zero, 0, contents[np.clip(words, 0, len(contents) - 1)])
        assert held.tolist() == member.pages.hashes[dump].tolist()
        host.advance(15_000)
    assert (host.state.page[8:] == UNTOUCHED).all()


def test_the_digest_covers_what_the_file_holds_and_no_name(tmp_path: Path) -> None:
    first = load_in(tmp_path, small({"hashes": write_npz(tmp_path)})).digest
    assert load_in(tmp_path, small({"hashes": write_npz(tmp_path, "again.npz")})).digest == first
    (tmp_path / "data" / "folder").mkdir(parents=True)
    write_npz(tmp_path / "data" / "folder")
    elsewhere = small({"hashes": "real.npz", "data": "folder"})
    assert load_in(tmp_path, elsewhere, data_root=tmp_path / "data").digest == first
    others = guest_arrays(2, o=np.array([5], np.uint64))
    changed = write_npz(tmp_path, "changed.npz", **others)
    assert load_in(tmp_path, small({"hashes": changed})).digest != first
    assert load_in(tmp_path, small({"hashes": "real.npz", "others": True})).digest != first


def test_other_scenarios_have_the_digest_they_had(tmp_path: Path) -> None:
    """Keys for hashes are no part of the digest of a scenario without any."""
    loaded = load_in(tmp_path, changed())
    values = loaded.scenario.model_dump(mode="json", exclude={"trace": {"path", "data"}})
    for key in ("hashes", "data", "guest", "trace", "snapshot", "others", "interval"):
        del values["images"][0]["content"][key]
    text = json.dumps({"scenario": values, "trace": None}, sort_keys=True, separators=(",", ":"))
    assert loaded.digest == hashlib.sha256(text.encode()).hexdigest()
    assert not any(".content." in key for key in loaded.assumptions)


def test_assumptions_say_what_the_file_left_open(tmp_path: Path) -> None:
    found = load_in(tmp_path, small({"hashes": write_series(tmp_path), "guest": "idle"}))
    path = "images[real].content"
    assert found.assumptions[f"{path}.interval"] == "15 s"
    assert "all pages" in found.assumptions[f"{path}.touched"]
    assert found.assumptions[f"{path}.use"] == "anonymous, for 8 pages whose use is not known"
    assert "images[real].footprint" not in found.assumptions
    assert "none: " in found.assumptions["vms[vm].workload"]


def wrong(folder: Path, content: dict[str, Any], count: int = 1, **options: Any) -> tuple[str, str]:
    """Path and message of the one problem."""
    top = options.pop("top", {})
    (found,) = problems_of(folder, small(content, count, **options) | top, data_root=folder)
    return found.path, found.message


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        ({"others": True}, "images[0].content", "others needs hashes"),
        ({"hashes": "a.npz", "anon": {}}, "images[0].content", "either a table"),
        ({"hashes": "none.npz"}, "images[0].content.hashes", "does not exist"),
        ({"hashes": "../real.npz"}, "images[0].content.hashes", "in the scenario's folder"),
        ({"hashes": "/real.npz"}, "images[0].content.hashes", "in the scenario's folder"),
        ({"hashes": "real.npz", "data": "../x"}, "images[0].content.data", "one folder in"),
        ({"hashes": "../real.npz", "data": "x"}, "images[0].content.hashes", "that data names"),
        ({"hashes": "link.npz"}, "images[0].content.hashes", "must not lead out"),
        ({"hashes": "real.npz", "guest": "09"}, "images[0].content.hashes", "has no guest '09'"),
        ({"hashes": "real.npz", "guest": 1}, "images[0].content.guest", "must be text"),
        ({"hashes": "real.npz", "snapshot": 0}, "images[0].content.hashes", "neither traces"),
    ],
)
def test_wrong_contents_are_one_problem(
    content: dict[str, Any], path: str, message: str, tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    (inner / "x").mkdir(parents=True)
    write_npz(tmp_path)
    write_npz(inner)
    (inner / "link.npz").symlink_to(tmp_path / "real.npz")
    found_path, found_message = wrong(inner, content)
    assert found_path == path and message in found_message


READS = {"duration": "1 h", "writes": "0 %", "active": "50 %"}


@pytest.mark.parametrize(
    ("count", "options", "path", "message"),
    [
        (3, {}, "vms[0].count", "is more than the 2 guests"),
        (
            1,
            {"memory": "4 MiB", "top": {"fidelity": {"sample": 4}}},
            "fidelity.sample",
            "must be 1",
        ),
    ],
)
def test_vms_that_do_not_fit_the_file(
    count: int, options: dict[str, Any], path: str, message: str, tmp_path: Path
) -> None:
    found_path, found_message = wrong(tmp_path, {"hashes": write_npz(tmp_path)}, count, **options)
    assert found_path == path and message in found_message


def test_a_vm_too_small_for_its_guest(tmp_path: Path) -> None:
    """257 pages with the others: one more than 1 MiB has."""
    n = 255
    big = {
        "h": np.ones(n, np.uint64),
        "p": np.packbits(np.ones(n, np.uint8)),
        "c": np.ones(n, np.uint8),
    }
    content = {"hashes": write_npz(tmp_path, n=1, **guest_arrays(1, **big)), "others": True}
    path, message = wrong(tmp_path, content)
    assert path == "vms[0].memory" and "at least 1028 KiB for the 257 pages of a guest" in message
    assert load_in(tmp_path, small(content | {"others": False})).hashes


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (READS, None),
        (READS | {"writes": "30 %"}, "w, phase 1, must only read (writes: 0 %, no data)"),
        (READS | {"data": "1 MiB", "locality": "zipf"}, "w, phase 1, must only read"),
        (READS | {"memory": "50 %"}, "w, phase 1, must not give memory"),
    ],
)
def test_only_reading_workloads_go_beside_hashes(
    phase: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    data = small({"hashes": write_npz(tmp_path)})
    data["workloads"] = [{"name": "w", "phases": [phase]}]
    data["vms"][0]["workload"] = "w"
    if message is None:
        host = host_of(load_in(tmp_path, data))
        boot(host)
        host.advance(60_000)
        assert host.state.vms[0].touches > 0 and host.state.vms[0].active == 4
        return
    (found,) = problems_of(tmp_path, data)
    assert found.path == "vms[0].workload" and message in found.message


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"footprint": "1 MiB"}, "footprint must not be given beside content.hashes"),
        ({"os": "windows"}, "os must be linux"),
    ],
)
def test_what_hashes_say_an_image_does_not(
    image: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = small({"hashes": write_npz(tmp_path)})
    data["images"][0] |= image
    (found,) = problems_of(tmp_path, data)
    assert found.path == "images[0]" and message in found.message


def test_vms_without_hashes_need_a_workload_and_those_of_a_trace_have_none(tmp_path: Path) -> None:
    data = small({"hashes": write_npz(tmp_path)})
    data["images"].append({"name": "linux", "footprint": "1 MiB"})
    data["vms"].append({"name": "plain", "memory": "1 MiB", "image": "linux"})
    (found,) = problems_of(tmp_path, data)
    assert (found.path, found.message) == ("vms[1].workload", "is required")
    del data["vms"][1]
    save(tmp_path, make_trace())
    data["workloads"] = [{"name": "steady", "phases": [{"duration": "1 h"}]}]
    data["trace"] = trace_of(images={"real": 1}, workloads={"steady": 1})
    (found,) = problems_of(tmp_path, data)
    assert found.path == "trace.images.real" and "must not be for VMs of a trace" in found.message


def test_the_command_refuses_a_wrong_file_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "real.npz").write_bytes(b"PK\x03\x04 and nothing")
    path = write(tmp_path, small({"hashes": "real.npz"}))
    for command in (["validate", str(path)], ["run", str(path), "--local"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        assert "images[0].content.hashes: 'real.npz': is no readable .npz file" in line


def test_the_estimate_of_memory_counts_contents_and_events(tmp_path: Path) -> None:
    population = populate(load_in(tmp_path, small({"hashes": write_npz(tmp_path)}, 2)))
    bare = [replace(vm, spec=replace(vm.spec, replay=None)) for vm in population.vms]
    more = budget.estimate(population, 1, 1)
    less = budget.estimate(replace(population, vms=tuple(bare)), 1, 1)
    # 6 events of 16 bytes each, twice, in two VMs; 3 contents of 80 bytes, less one of a VM each.
    assert more - less == 2 * 6 * 16 * 2 + 3 * budget.CONTENT_BYTES - 2 * budget.CONTENT_BYTES


@pytest.mark.parametrize("name", ["real-idle", "real-web", "real-timeseries"])
def test_shipped_scenarios_are_valid_and_ask_a_question(name: str) -> None:
    need("kvm-fingerprints")
    path = SCENARIOS / f"{name}.yaml"
    loaded = load(path, data_root=DATA)
    assert not loaded.warnings and loaded.scenario.name == name
    assert "?" in loaded.scenario.question and path.read_text("utf-8").startswith("# ")
