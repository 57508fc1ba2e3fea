"""The run folder: what a run leaves behind, whole, partial or killed."""

from __future__ import annotations

import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import EPOCH_MS, Synthetic

from cluster import html, parts, tables
from cluster.files import OutputError, WriteError, write_json, write_table
from cluster.messages import CAUSES, HOST_ROW, VM_ROW, EpochReport
from cluster.parts import table_files
from cluster.rows import EPOCH_ROW, HostFacts, HostList, columns, epoch_rows
from cluster.tables import RunFolder, check_usable
from hostsim.units import GIB, PAGE_SIZE, HostId

STREAMED = ("hosts", "epochs", "vms_epochs")


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_a_whole_run_leaves_the_files_of_the_contract_and_nothing_else(tmp_path: Path) -> None:
    Synthetic().write(tmp_path / "run")
    expected = ["epochs.parquet", "events.jsonl", "hosts.parquet", "manifest.json"]
    expected += ["report.json", "scenario.yaml", "vms.parquet"]
    assert files(tmp_path / "run") == expected
    assert manifest(tmp_path / "run")["partial"] is False


def test_tables_hold_a_row_per_epoch_and_host_and_conserve_configured_memory(
    tmp_path: Path,
) -> None:
    run = Synthetic(n_hosts=3, epochs=20)
    run.write(tmp_path / "run", detail_vms=True)
    hosts = pq.read_table(tmp_path / "run" / "hosts.parquet")
    epochs = pq.read_table(tmp_path / "run" / "epochs.parquet")
    assert (len(hosts), len(epochs)) == (60, 20)
    assert len(pq.read_table(tmp_path / "run" / "vms_epochs.parquet")) == 20 * 36
    assert len(pq.read_table(tmp_path / "run" / "vms.parquet")) == len(run.vms)
    parts = ("consumed", "shared_saved", "ballooned", "swapped", "compressed", "untouched")
    for table in (hosts, epochs):
        column = {name: table[f"{name}_bytes"].to_numpy() for name in (*parts, "configured")}
        assert (sum(column[name] for name in parts) == column["configured"]).all()
    assert hosts["host_name"].to_pylist()[:3] == ["esx-000", "esx-001", "esx-002"]
    assert set(hosts["memory_bytes"].to_pylist()) == {32 * GIB}


@pytest.mark.parametrize("part_rows", [1, 7, 65_536])
def test_joined_bytes_do_not_depend_on_batches_or_parts(tmp_path: Path, part_rows: int) -> None:
    run = Synthetic(n_hosts=3, epochs=30)
    run.folder(tmp_path / "a", detail_vms=True).finish({}, {}, {})
    folder = RunFolder(
        tmp_path / "b",
        run.hosts,
        scenario_yaml="name: x\n",
        epoch_ms=EPOCH_MS,
        detail_vms=True,
        part_rows=part_rows,
    )
    for report in run.reports(span=4):
        folder.add(report)
    folder.finish({}, {}, {})
    for name in (f"{table}.parquet" for table in STREAMED):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_row_groups_are_cut_at_fixed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "GROUP_ROWS", 50)
    Synthetic(n_hosts=3, epochs=40).folder(tmp_path).finish({}, {}, {})
    found = pq.ParquetFile(tmp_path / "hosts.parquet").metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [50, 50, 20]


def test_a_killed_run_leaves_whole_parts_that_end_at_one_epoch(tmp_path: Path) -> None:
    run = Synthetic(n_hosts=40, epochs=60)
    folder = run.folder(tmp_path, detail_vms=True)  # and then the process dies
    last = set()
    for table in STREAMED:
        parts = table_files(tmp_path, table)
        assert len(parts) > 1
        epochs = np.concatenate([pq.read_table(part)["epoch"].to_numpy() for part in parts])
        assert (np.diff(epochs) >= 0).all()
        last.add(int(epochs[-1]))
    assert len(last) == 1
    assert last.pop() > 50
    assert not (tmp_path / "report.json").exists()
    assert manifest(tmp_path)["partial"] is True
    events = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(events) >= len(run.vms)
    assert all(json.loads(line)["kind"] for line in events)
    folder.abandon("end of test")


def test_parts_stay_few_in_a_long_run(tmp_path: Path) -> None:
    run = Synthetic(n_hosts=1, vms_per_host=1, refused=0)
    folder = RunFolder(tmp_path, run.hosts, scenario_yaml="", epoch_ms=EPOCH_MS)
    for epoch in range(6000):
        rows = np.zeros(1, HOST_ROW)
        rows["epoch"] = epoch
        folder.add(EpochReport(rows, np.zeros(0, VM_ROW), (), 0.0))
    assert len(table_files(tmp_path, "hosts")) < 40
    folder.finish({}, {}, {})
    assert len(pq.read_table(tmp_path / "hosts.parquet")) == 6000


def test_an_abandoned_run_is_marked_partial_everywhere(tmp_path: Path) -> None:
    folder = Synthetic().folder(tmp_path)
    folder.abandon("a host broke an invariant", {"partial": False, "digest": "ab"}, None, {"n": 1})
    assert manifest(tmp_path)["partial"] is True
    assert manifest(tmp_path)["reason"] == "a host broke an invariant"
    assert manifest(tmp_path)["n"] == 1
    assert json.loads((tmp_path / "report.json").read_text()) == {"partial": True, "digest": None}
    assert len(pq.read_table(tmp_path / "hosts.parquet")) == 4 * 30
    assert not (tmp_path / tables.PARTS).exists()


def test_the_caller_cannot_take_the_partial_mark_away(tmp_path: Path) -> None:
    Synthetic().folder(tmp_path).abandon("stopped", manifest={"partial": False})
    assert manifest(tmp_path)["partial"] is True


def test_a_run_without_epochs_has_empty_tables_with_all_columns(tmp_path: Path) -> None:
    run = Synthetic(epochs=0)
    run.folder(tmp_path / "none", detail_vms=True).finish({}, {}, {})
    Synthetic().folder(tmp_path / "some", detail_vms=True).finish({}, {}, {})
    for table in STREAMED:
        none = pq.read_table(tmp_path / "none" / f"{table}.parquet")
        assert len(none) == 0
        assert none.schema.equals(pq.read_schema(tmp_path / "some" / f"{table}.parquet"))


def test_failed_writes_leave_the_former_file_and_no_rubbish(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", {"fine": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "report.json", {"bad": float("nan")})
    write_table(tmp_path / "vms.parquet", {"vm": np.arange(3)})
    with pytest.raises(ValueError, match="expected length"):
        write_table(tmp_path / "vms.parquet", {"vm": np.arange(3), "name": ["one"]})
    assert json.loads((tmp_path / "report.json").read_text()) == {"fine": 1}
    assert len(pq.read_table(tmp_path / "vms.parquet")) == 3
    assert files(tmp_path) == ["report.json", "vms.parquet"]


def test_a_failing_disk_keeps_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "report.json", {"fine": 1})

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.os, "replace", full)
    with pytest.raises(WriteError, match=r"cannot write .*report\.json: No space left on device"):
        write_json(tmp_path / "report.json", {"fine": 2})
    assert json.loads((tmp_path / "report.json").read_text()) == {"fine": 1}
    assert files(tmp_path) == ["report.json"]


def _full_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the disk has no room for this file."""
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(tables.os, "replace", full)


def test_a_full_disk_keeps_the_parts_and_says_why_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Synthetic(n_hosts=40, epochs=60).folder(tmp_path, detail_vms=True)
    before = files(tmp_path / tables.PARTS)
    assert (tmp_path / tables.PARTS / tables.RESERVE).stat().st_size == tables.RESERVE_BYTES
    _full_for("epochs.parquet", monkeypatch)
    with pytest.raises(WriteError, match=r"epochs\.parquet: No space left on device"):
        folder.finish({}, {}, {})
    with pytest.raises(WriteError, match=r"epochs\.parquet: No space left on device"):
        folder.abandon("the run failed: no space", None, None, {"n": 1})
    found = manifest(tmp_path)
    assert (found["partial"], found["reason"], found["n"]) == (True, "the run failed: no space", 1)
    assert files(tmp_path) == [".parts", "events.jsonl", "manifest.json", "scenario.yaml"]
    assert set(files(tmp_path / tables.PARTS)) > set(before) - {tables.RESERVE}
    assert tables.RESERVE not in files(tmp_path / tables.PARTS)
    parts = [pq.read_table(part) for part in table_files(tmp_path, "epochs")]
    assert pa.concat_tables(parts)["epoch"].to_pylist() == list(range(60))
    assert html.build(tmp_path).exists()


def test_rows_that_found_no_room_are_kept_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Synthetic(n_hosts=2, epochs=10)
    folder = RunFolder(tmp_path, run.hosts, scenario_yaml="", epoch_ms=EPOCH_MS)
    for report in run.reports():
        folder.add(report)
    with monkeypatch.context() as context:
        _full_for("hosts-000000.parquet", context)
        with pytest.raises(WriteError):
            folder.finish({}, {}, {})
    folder.abandon("there is room again")
    assert len(pq.read_table(tmp_path / "hosts.parquet")) == 20


def test_a_line_that_finds_no_room_is_not_torn(tmp_path: Path) -> None:
    class Full(io.FileIO):
        def write(self, line: Any) -> int:
            return super().write(line[:9])

    folder = Synthetic().folder(tmp_path)
    before = (tmp_path / "events.jsonl").read_bytes()
    folder._events.close()
    folder._events = Full(tmp_path / "events.jsonl", "ab")
    with pytest.raises(WriteError, match="No space left on device"):
        folder.event(0, "reset", vm="web")
    folder.abandon("end of test")
    assert (tmp_path / "events.jsonl").read_bytes() == before


def test_a_disk_full_from_the_start_leaves_a_folder_that_can_be_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        _full_for("manifest.json", context)
        with pytest.raises(WriteError, match=r"manifest\.json: No space left"):
            Synthetic().folder(tmp_path / "run")
    assert files(tmp_path / "run") == []
    Synthetic().write(tmp_path / "run")


def test_whether_a_folder_can_be_used_is_told_without_touching_it(tmp_path: Path) -> None:
    check_usable(tmp_path)
    check_usable(tmp_path / "a" / "b")
    assert files(tmp_path) == []
    Synthetic().write(tmp_path / "run")
    check_usable(tmp_path / "run")
    assert "report.json" in files(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    for wrong in (tmp_path, tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match=re.escape(str(wrong))):
            check_usable(wrong)


def test_a_former_run_is_replaced_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Synthetic().write(run, detail_vms=True)
    (run / "notes.txt").write_text("mine")
    folder = Synthetic().folder(run)
    assert "report.json" not in files(run)
    folder.finish({}, {}, {})
    assert "vms_epochs.parquet" not in files(run)
    assert (run / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    other.mkdir()
    (other / "report.json").write_text("{}")
    for text in (None, "{}", "[]", "not json"):
        if text is not None:
            (other / "manifest.json").write_text(text)
        with pytest.raises(OutputError, match="other"):
            Synthetic().folder(other)
    assert (other / "report.json").read_text() == "{}"
    with pytest.raises(OutputError, match="cannot use"):
        Synthetic().folder(other / "report.json")


def test_events_say_when_what_and_the_deciding_number(tmp_path: Path) -> None:
    run = Synthetic(n_hosts=2, epochs=60)
    run.folder(tmp_path).finish({}, {}, {})
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[0] == {"at_s": 0.0, "kind": "power_on", "vm": "web-0000", "host": "esx-000"}
    level = next(event for event in events if event["kind"] == "level")
    assert set(level) == {"at_s", "kind", "host", "before", "after", "free_bytes"}


def test_hostile_names_cannot_break_a_line_of_events(tmp_path: Path) -> None:
    run = Synthetic(epochs=0, refused=0)
    folder = run.folder(tmp_path)
    folder.event(0, "power_on", vm='a\n{"kind": "forged"}')
    folder.finish({}, {}, {})
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == len(run.vms) + 1
    assert json.loads(lines[-1])["vm"] == 'a\n{"kind": "forged"}'


def test_epoch_rows_sum_hosts_and_vms_of_each_epoch() -> None:
    hosts = HostList(
        [
            HostFacts(HostId(3), "a", 2 * PAGE_SIZE, cpus=2),
            HostFacts(HostId(9), "b", 5 * PAGE_SIZE, cpus=6),
        ]
    )
    rows = np.zeros(3, HOST_ROW)
    rows["epoch"], rows["host"], rows["vms"] = [4, 4, 5], [3, 9, 9], [1, 2, 3]
    rows["on"] = 1
    rows["cpu_demand_permille"] = [100, 500, 50]
    vms = np.zeros(3, VM_ROW)
    vms["epoch"], vms["host"], vms["on_ns"], vms["touches"] = [4, 4, 5], [3, 9, 9], [1, 2, 4], 7
    vms["lost_ns"][:, 2] = [10, 20, 40]
    found = epoch_rows(EpochReport(rows, vms, (), 0.0), hosts)
    assert found.dtype == EPOCH_ROW
    assert found["epoch"].tolist() == [4, 5]
    assert found["hosts"].tolist() == [2, 1]
    assert found["memory_pages"].tolist() == [7, 5]
    assert found["vms"].tolist() == [3, 3]
    assert found["on_ns"].tolist() == [3, 4]
    assert found["touches"].tolist() == [14, 7]
    assert found["lost_ns"][:, 2].tolist() == [30, 40]
    assert found["cpu_demand_permille"].tolist() == [(2 * 100 + 6 * 500) // 8, 50]


def test_columns_carry_units() -> None:
    rows = np.zeros(1, VM_ROW)
    rows["epoch"], rows["on_ns"], rows["swapped_pages"] = 2, 1_500_000_000, 3
    found = columns(rows, EPOCH_MS)
    assert found["end_s"] == [180.0]
    assert found["on_s"] == [1.5]
    assert found["swapped_bytes"] == [3 * PAGE_SIZE]
    assert {f"lost_{cause}_s" for cause in CAUSES} <= set(found)
    assert not any(name.endswith(("_pages", "_ns", "_ms")) for name in found)


def test_hosts_must_come_in_id_order() -> None:
    facts = [HostFacts(HostId(i), str(i), GIB, 1) for i in (1, 0)]
    with pytest.raises(AssertionError, match="id order"):
        HostList(facts)
