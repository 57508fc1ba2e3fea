"""What people read: the page (one file, no network, no script, any text is safe), the summary."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import Synthetic

from cluster import charts, html, readback, report_shape, reports
from cluster.files import OutputError
from cluster.summary import answer, clock, hours, percent, plain, slowdown, summary_lines

VOID = {"meta", "br", "link", "img", "input", "hr", "use", "path", "image"}
HOSTILE = '</td><script>alert("{}")</script>$\\frac&'


class Checker(HTMLParser):
    """Collects tags, ids and links, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "xlink:href"):
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(path: Path) -> Checker:
    """The page, parsed; every tag closed, every id once, every link inside the page."""
    found = Checker()
    found.feed(path.read_text("utf-8"))
    found.close()
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    for link in found.links:
        assert link.startswith("data:image/png;base64,") or link[1:] in found.ids, link
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Synthetic(n_hosts=3, epochs=40).write(folder, sample=64)
    return folder


def test_the_page_stands_alone(whole: Path) -> None:
    path = html.build(whole)
    assert path == whole / "report.html"
    text = path.read_text("utf-8")
    found = checked(path)
    assert "http" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(found.tags)
    assert re.findall(r"url\((?!#)", text) == []
    assert {link[1:] for link in found.links} >= {"key", "memory", "slowdown", "words"}


def test_every_chart_says_in_words_what_it_shows(whole: Path) -> None:
    text = html.build(whole).read_text("utf-8")
    labels = re.findall(r'<svg viewBox="[^"]+" role="img" aria-label="([^"]+)">', text)
    assert len(labels) == text.count("<svg") == 8  # four charts, wide and narrow
    assert all(len(label) > 60 for label in labels)


def test_no_label_of_a_chart_is_cut(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is room wasted: what stands around the axes ends just before the edges of the picture."""
    drawn: list[tuple[Any, tuple[float, float]]] = []
    fit = charts._fit

    def fitted(axes: Any, size: tuple[float, float]) -> None:
        fit(axes, size)
        drawn.append((axes, size))

    monkeypatch.setattr(charts, "_fit", fitted)
    html.build(whole)
    assert len(drawn) == 8
    for axes, size in drawn:
        box = axes.get_tightbbox()
        right, top = (72 * inches for inches in size)
        for gap in (box.x0, box.y0, right - box.x1, top - box.y1):
            assert 0 <= gap < 3 * charts.PADDING, (axes.get_ylabel(), size, box)


def test_the_page_answers_the_question_and_shows_the_numbers(whole: Path) -> None:
    text = html.build(whole).read_text("utf-8")
    assert "How many 4 GiB web and database VMs fit on 3 hosts before guests feel it?" in text
    assert "36 of 41 VMs found a place on 3 hosts with 96.0 GiB of memory" in text
    assert "no host has the memory reserved" in text
    assert "One page in 64 was simulated" in text
    assert "measured mix of 2019" in text
    assert "Partial run" not in text
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).lower().split()
    for word in ("configured", "shared_saved", "ballooned", "swapped", "slowdown"):
        assert f'id="word-{word}"' in text


def test_equal_folders_give_equal_pages(whole: Path) -> None:
    first = html.build(whole).read_bytes()
    assert first == html.build(whole).read_bytes()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = Synthetic(n_hosts=2, vms_per_host=12, epochs=20, host_name=HOSTILE, vm_name=HOSTILE)
    folder = run.folder(tmp_path)
    report = reports.build(run.aggregate(), run.scenario(), run.history(), {HOSTILE: HOSTILE})
    folder.abandon(HOSTILE, report, reports.vm_table(run.aggregate(), run.fates))
    (tmp_path / "scenario.yaml").write_text(f"name: '{HOSTILE}'\nquestion: '{HOSTILE}'\n")
    path = html.build(tmp_path)
    assert "script" not in checked(path).tags
    assert "Partial run" in path.read_text("utf-8")


def test_a_killed_run_has_a_page_too(tmp_path: Path) -> None:
    folder = Synthetic(n_hosts=20, epochs=60).folder(tmp_path)
    text = html.build(tmp_path).read_text("utf-8")
    checked(tmp_path / "report.html")
    assert "Partial run" in text
    assert "the run was killed, or still goes on" in text
    assert text.count("<svg") == 6  # no VM table, no distribution
    folder.abandon("end of test")


def test_a_killed_run_may_have_more_of_one_table_than_of_another(tmp_path: Path) -> None:
    folder = Synthetic(n_hosts=40, epochs=60).folder(tmp_path)
    sorted(tmp_path.glob(".parts/epochs-*"))[-1].unlink()
    checked(html.build(tmp_path))
    folder.abandon("end of test")


def test_a_run_that_never_began_has_a_page(tmp_path: Path) -> None:
    Synthetic(epochs=0).write(tmp_path)
    text = html.build(tmp_path).read_text("utf-8")
    checked(tmp_path / "report.html")
    assert "No epoch was simulated." in text
    assert "<svg" not in text


def test_the_page_of_a_large_run_stays_small(tmp_path: Path) -> None:
    Synthetic(n_hosts=1000, vms_per_host=2, epochs=8).write(tmp_path)
    run = readback.read(tmp_path)
    assert run.grid is not None
    assert run.grid.free.shape == (readback.HOST_GROUPS, 8)
    assert run.grid.groups[0] == ("esx-000", "esx-004")
    assert run.grid.groups[-1] == ("esx-995", "esx-999")
    text = html.build(tmp_path).read_text("utf-8")
    assert len(text) < 1_000_000
    assert "1,000 hosts share 200 rows" in text


def test_time_bins_are_means_and_cells_are_minima(tmp_path: Path) -> None:
    epochs = 2 * readback.TIME_BINS + 7
    Synthetic(n_hosts=1, vms_per_host=12, epochs=epochs).write(tmp_path)
    import pyarrow.parquet as pq

    run = readback.read(tmp_path)
    assert run.timeline is not None
    assert run.grid is not None
    table = pq.read_table(tmp_path / "hosts.parquet")
    part = table["free_bytes"].to_numpy() / table["memory_bytes"].to_numpy()
    bins = [e * readback.TIME_BINS // epochs for e in range(epochs)]
    for cell in (0, 100, readback.TIME_BINS - 1):
        inside = [e for e in range(epochs) if bins[e] == cell]
        assert run.grid.free[0, cell] == min(part[inside])
        consumed = table["consumed_bytes"].to_numpy()[inside]
        assert run.timeline.stack["consumed"][cell] == pytest.approx(consumed.mean())
        edges = run.timeline.edges_s[cell : cell + 2]
        assert edges.tolist() == [inside[0] * 60.0, (inside[-1] + 1) * 60.0]
    assert run.grid.hosts[0]["free_least"] == min(part)


def test_events_are_counted_all_and_quoted_few(tmp_path: Path) -> None:
    folder = Synthetic(epochs=0, refused=0).folder(tmp_path)
    for i in range(100):
        folder.event(i * 1000, "reset", vm=f"web-{i}")
    folder.abandon("end of test")
    with (tmp_path / "events.jsonl").open("a") as lines:
        lines.write('{"at_s": 1, "kind"\n[]\n')
    found = readback.read(tmp_path).events
    assert found.counts["reset"] == 100
    assert found.counts["(unreadable line)"] == 2
    quoted = [event["vm"] for event in found.quoted if event["kind"] == "reset"]
    assert quoted == [f"web-{i}" for i in range(readback.EVENTS_PER_KIND)]


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "scenario.yaml", "hosts.parquet"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    Synthetic(epochs=2).write(tmp_path)
    (tmp_path / name).write_text("{: [")
    with pytest.raises(OutputError, match=re.escape(name)):
        html.build(tmp_path)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _without(*keys: str) -> Callable[[Path], object]:
    """report.json less what is at these keys."""

    def damage(path: Path) -> None:
        report = inside = json.loads(path.read_text())
        for key in keys[:-1]:
            inside = inside[key]
        del inside[keys[-1]]
        path.write_text(json.dumps(report))

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("vms.parquet", _truncated, "cannot read"),
        ("vms.parquet", _folder, "cannot read"),
        ("hosts.parquet", _truncated, "cannot read"),
        ("epochs.parquet", _truncated, "cannot read"),
        ("events.jsonl", _folder, "cannot read"),
        ("report.json", _folder, "cannot read"),
        ("report.json", _text("{}"), "schema must be 2, not None"),
        ("report.json", _text('{"schema": 1}'), "schema must be 2, not 1"),
        ("report.json", _text('{"schema": 2, "scenario": 3}'), "scenario must be an object"),
        ("report.json", _text("[" * 100_000), "cannot read"),
        ("report.json", _without("cost", "slowdown", "p95"), "cost.slowdown.p95 is missing"),
        ("report.json", _without("error"), "error is missing"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object], words: str
) -> None:
    Synthetic(epochs=2).write(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(OutputError, match=re.escape(words)) as caught:
        html.build(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_no_key_that_readers_need_can_be_missed() -> None:
    """A report of only what `report_shape` asks for can be shown, and no key of it is in vain."""
    full = Synthetic(epochs=30)
    report = reports.build(full.aggregate(), full.scenario(), full.history(), {"a": 1})
    assert report_shape.fault(report) is None

    def least(value: Any, shape: Any) -> Any:
        if not isinstance(shape, dict):
            return value
        keys = value if "*" in shape else shape
        return {key: least(value[key], shape.get(key, shape.get("*"))) for key in keys}

    cut = {"schema": 1} | least(report, report_shape.SHAPE)
    assert set(cut) <= set(report)
    assert summary_lines(cut) == summary_lines(report)
    run = readback.RunData({}, {}, cut, None, None, None, readback.Events())
    assert html.page(run) == html.page(dataclasses.replace(run, report=report))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a run folder"):
        html.build(tmp_path)


def test_summary_says_what_was_asked() -> None:
    run = Synthetic(epochs=60)
    report = reports.build(run.aggregate(sample=64), run.scenario(), run.history(), {})
    text = "\n".join(summary_lines({**report, "digest": "ab" * 32}))
    assert "4 hosts with 128 GiB" in text
    assert "53 submitted, 48 placed, 5 refused (no host has the memory reserved: 3" in text
    assert "overcommit 1.69" in text
    assert "host swap-in" in text
    assert "1 page in 64" in text
    assert "ab" * 32 in text
    assert "PARTIAL" in summary_lines({**report, "partial": True})[1]
    assert all(line.isascii() and len(line) < 160 for line in text.splitlines())
    assert "48 of 53 VMs found a place on 4 hosts with 128 GiB" in answer(report)


def test_numbers_for_people() -> None:
    assert [plain(v) for v in (0.0, 0.256, 1.234, 37.51, 1024.4, None)] == [
        *("0.00", "0.26", "1.23", "37.5", "1,024", "-")
    ]
    assert [percent(v) for v in (0.0, 0.0001, 0.123, 1.0, 0.9999)] == [
        *("0 %", "< 0.1 %", "12.3 %", "100 %", "> 99.9 %")
    ]
    assert [slowdown(v) for v in (1.0, 1.0434, 2.349, 17.12, 1000.0)] == [
        *("1.000", "1.043", "2.35", "17.1", "1000")
    ]
    assert [hours(v) for v in (0.02, 90.0, 300.0, 86_400.0, 14 * 86_400.0)] == [
        *("0.02 s", "90 s", "5 min", "24 h", "14 d")
    ]
    assert [clock(v) for v in (1.0, 3_723.0, 180_000.0)] == ["0:00:01", "1:02:03", "2 d 2:00:00"]


def test_moves_failures_and_sleeping_hosts_are_drawn(tmp_path: Path) -> None:
    run = Synthetic(epochs=30)
    folder = run.folder(tmp_path / "run")
    for at_ms, kind in ((60_000, "migrated"), (120_000, "host_failed"), (180_000, "restart")):
        folder.event(at_ms, kind, vm="web-1", host="esx-1")
    report = reports.build(run.aggregate(), run.scenario(), run.history(), {})
    folder.finish(report, reports.vm_table(run.aggregate(), run.fates), {})
    text = html.build(tmp_path / "run").read_text("utf-8")
    assert "1 VMs migrated, 1 restarted after 1 host failures." in text
    assert text.count("<svg") == 10, "power is drawn where hosts were off"
    line = readback.read(tmp_path / "run").timeline
    assert line is not None
    off = replace(line, hosts=line.hosts - (np.arange(len(line.hosts)) > 9))
    assert "Power of all hosts over time" in charts.power(off).label
