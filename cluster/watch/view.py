"""What `esxsim top` shows of a run, for a terminal of any size: nothing here reads or waits."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.coordinator import Progress
from cluster.messages import LEVELS
from cluster.summary import CAUSE_WORDS, clock, count, percent, plain, slowdown, summary_lines
from cluster.watch.live import HostView, View, VmView
from cluster.watch.looking import LOST, QUIET, RUNS, Look
from hostsim.units import GIB

COLOURS = {"high": "green", "clear": "cyan", "soft": "yellow", "hard": "red", "low": "bold red"}
STATES = {
    "consumed": ("consumed", "blue"),
    "shared_saved": ("saved by sharing", "green"),
    "compressed": ("compressed", "cyan"),
    "ballooned": ("ballooned", "yellow"),
    "swapped": ("swapped", "red"),
    "untouched": ("untouched", "bright_black"),
}
"""What configured memory is made of: in words, and its colour."""
PLAIN_ROWS = 10
"""Hosts, and VMs, where there is no terminal to fill."""
HEADS = 6
"""Lines of three tables beside their rows: their heads, and what sets them apart."""
NAME = 24
"""Columns of a name, at most."""
WIDE = 100
"""Columns of a terminal that is wide."""


class Screen:
    """A look at a run, as large as the console is."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = console.height if console.is_terminal else None
        yield Group(*parts(self._look, options.max_width, height))


def parts(look: Look, width: int, height: int | None) -> list[RenderableType]:
    """Lines and tables, at most `height` lines of `width` columns; None: no terminal to fill."""
    title = _title(look)
    if look.report is not None:
        return [title, *map(Text, summary_lines(look.report))]
    now = look.progress
    if now is None or now.view is None:
        return [title, Text("No epoch has ended yet.")]
    top = [title, _how_far(look, now, now.view, width), _speed(now, now.view), _who(now, now.view)]
    memory = _memory(now, now.view, width)
    pressed, slowest = now.view.pressed, now.view.slowest
    if height is None:
        n_hosts = n_vms = PLAIN_ROWS
    else:
        left = max(height - len(top) - memory.row_count - HEADS, 2)
        n_vms = min(len(slowest), max(left // 2, left - len(pressed)))
        n_hosts = left - n_vms
    found: list[RenderableType] = [*top, Text(), memory, Text(), _hosts(pressed[:n_hosts], width)]
    if not slowest:
        return [*found, Text(), Text("No VM lost time in this epoch.")]
    return [*found, Text(), _vms(slowest[:n_vms], width)]


def _line(*words: tuple[str, str] | str) -> Text:
    """One line, cut where the terminal ends."""
    return Text.assemble(*words, no_wrap=True, overflow="ellipsis")


def _name(text: str) -> Text:
    """A name of the user's, on one line whatever it holds."""
    return Text("".join(one if one.isprintable() else "?" for one in text))


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else clock(seconds)


def _title(look: Look) -> Text:
    if look.state == RUNS:
        state = ("running", "green")
    elif look.state == QUIET:
        state = (f"stands still since {look.since}, {_ago(look.age_s)} ago", "yellow")
    elif look.state == LOST and look.reason is not None:
        state = (f"gone since {look.since}: {look.reason}", "yellow")
    elif look.state == LOST:
        state = (f"gone since {look.since}, {_ago(look.age_s)} ago", "bold red")
    else:
        state = ("done", "green") if look.reason is None else (look.reason, "red")
    return _line((_name(look.run).plain, "bold"), "  ", state, (f"  {look.where}", "bright_black"))


def _how_far(look: Look, now: Progress, view: View, width: int) -> RenderableType:
    done = f"{clock(view.simulated_s)} of {clock(view.duration_s)} "
    if now.epoch == now.epochs:
        left = " 100 %, writing the report"
    else:
        left = f" {percent(now.epoch / now.epochs)}"
        if look.state == RUNS and view.left_s is not None:
            left += f", {clock(view.left_s)} left"
    line = Table.grid()
    bar = ProgressBar(now.epochs, now.epoch, width=max(10, width - len(done) - len(left) - 1))
    line.add_row(done, bar, left)
    return line


def _speed(now: Progress, view: View) -> Text:
    speed = f"{count(view.host_ticks_per_s)} host-ticks/s, "
    speed += f"{plain(view.simulated_s_per_s)} simulated s/s"
    age_s = now.checkpoint_age_s
    kept = "no checkpoint" if age_s is None else f"checkpoint {_ago(age_s)} ago"
    return _line(f"{speed}; {kept}; ", (f"{now.restarts} restarts", "red" * (now.restarts > 0)))


def _who(now: Progress, view: View) -> Text:
    words: list[tuple[str, str] | str] = [f"{count(now.vms)} VMs on, {count(view.queue)} waiting, "]
    words += [f"{count(view.migrations)} migrating; "]
    words += [f"{count(view.hosts_on)} of {count(view.hosts)} hosts on:"]
    for level in LEVELS:
        if now.levels.get(level):
            words.append((f" {count(now.levels[level])} {level}", COLOURS[level]))
    return _line(*words)


def _memory(now: Progress, view: View, width: int) -> Table:
    """A bar for each state, over what is configured."""
    memory = now.memory_bytes
    whole = memory["configured"]
    table = Table.grid(padding=(0, 1))
    words = max(len(word) for word, _ in STATES.values())
    bar = max(10, width - words - len("1,234,567 GiB  < 0.1 %") - 3)
    table.add_column(width=words, no_wrap=True)
    table.add_column(width=bar, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, width=7)
    for name, (word, colour) in STATES.items():
        part = memory[name] / max(whole, 1)
        if name == "compressed" and not memory[name]:
            continue
        shown = ProgressBar(1.0, part, width=bar, complete_style=colour, finished_style=colour)
        table.add_row(word, shown, f"{plain(memory[name] / GIB)} GiB", percent(part))
    machines = f"hosts {plain(view.machine_bytes / GIB)}, {plain(memory['free'] / GIB)} free"
    head = f"Memory: {plain(whole / GIB)} GiB configured, {plain(memory['active'] / GIB)} active"
    table.title = _line((f"{head}; {machines}", "bold"))
    table.title_justify, table.title_style = "left", ""
    return table


def _gib(n_bytes: int) -> str:
    return plain(n_bytes / GIB)


def _hosts(hosts: Sequence[HostView], width: int) -> Table:
    table = _table("Hosts by pressure, GiB", [one.name for one in hosts])
    names = ["state", "free", "", "ballooned", "swapped", "VMs", "CPU"]
    if width >= WIDE:
        names.insert(3, "memory")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for one in hosts:
        memory = [_gib(one.memory_bytes)] if width >= WIDE else []
        table.add_row(
            _name(one.name),
            Text(one.level, COLOURS[one.level]),
            _gib(one.free_bytes),
            percent(one.free_bytes / one.memory_bytes),
            *memory,
            _gib(one.ballooned_bytes),
            _gib(one.swapped_bytes),
            count(one.vms),
            percent(one.cpu_permille / 1000),
        )
    return table


def _vms(vms: Sequence[VmView], width: int) -> Table:
    table = _table("Slowest VMs", [one.name for one in vms])
    table.add_column("host", no_wrap=True, overflow="ellipsis", max_width=NAME)
    if width >= WIDE:
        table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("slowdown", justify="right", no_wrap=True)
    table.add_column("lost to", no_wrap=True, overflow="ellipsis", ratio=1)
    table.expand = True
    for one in vms:
        causes = [f"{CAUSE_WORDS[cause]} {percent(part)}" for cause, part in one.lost.items()]
        memory = [_gib(one.memory_bytes)] if width >= WIDE else []
        names = _name(one.name), _name(one.host)
        table.add_row(*names, *memory, slowdown(one.slowdown), ", ".join(causes))
    return table


def _table(head: str, names: Sequence[str]) -> Table:
    """A table whose first column has these names, and this head."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    size = min(max(map(len, [head, *names])), NAME)
    table.add_column(head, no_wrap=True, overflow="ellipsis", width=size)
    return table
