"""Reading YAML that a stranger wrote, and saying what is wrong with it.

Only the plain part of YAML is read: one document of mappings, lists and scalars. There are no tags,
anchors or aliases, so nothing is constructed and nothing expands; size and depth are bounded before
they cost anything. Scalars follow YAML 1.2 where 1.1 surprises: `yes`, `1:30`, `0777` and dates are
text. Every value's line is kept, because an error without one sends the user searching.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SIZE_MAX_BYTES = 1 << 20
DEPTH_MAX = 20
_VALUE_MAX = 60
_DIGITS_MAX = 40
"""Longer numbers stay text: no field takes one, and converting a million digits takes minutes."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+][0-9]+)?", re.ASCII)
_WORDS: dict[str, Any] = {"": None, "~": None}
for _word, _value in (("null", None), ("true", True), ("false", False)):
    _WORDS |= dict.fromkeys((_word, _word.title(), _word.upper()), _value)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}", re.ASCII)

Place = tuple[str | int, ...]
"""Keys and list positions from the document's root to a value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, what stands there (shown, or empty), and what is allowed."""

    path: str
    line: int | None
    value: str
    message: str
    file: str | None = None
    """Where it is, if not in the error's own file."""


class InputError(Exception):
    """The input is wrong; nothing ran. Holds every problem found; `str` gives one line for each.

    InputError
    |- scenario_file.ScenarioError   a scenario, or a file that it names
    `- budget.TooLargeError          a run that does not fit into memory
    """

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        assert problems, "an error needs a problem"
        self.file = file
        self.problems = tuple(problems)
        super().__init__("\n".join(_lines(file, self.problems)))


def _lines(file: str, problems: Sequence[Problem]) -> Iterator[str]:
    for problem in problems:
        place = problem.file or file
        if problem.line is not None:
            place = f"{place}:{problem.line}"
        parts = (place, problem.path, problem.value, problem.message)
        yield ": ".join(part for part in parts if part)


def path_text(path: Place) -> str:
    """("vms", 2, "memory") -> vms[2].memory."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += "." * bool(text) + (step if _PLAIN_KEY.fullmatch(step) else shown(step))
    return text


def shown(value: Any) -> str:
    """A value as an error shows it: quoted, escaped and short."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and len(value) > _VALUE_MAX:
        return f"{value[:_VALUE_MAX]!a}... ({len(value)} characters)"
    return repr(value) if not isinstance(value, str) or value.isprintable() else ascii(value)


@dataclass(slots=True)
class Document:
    """Plain data and the line of every key and list element; `file` is what errors call it."""

    file: str
    text: str
    data: Any
    lines: dict[Place, int] = field(default_factory=dict)
    included: dict[str, str] = field(default_factory=dict)
    """Top-level keys whose value was read from another file, and that file's name."""

    def include(self, key: str, other: Document) -> None:
        """Take the value of a top-level key from another document."""
        self.data[key] = other.data[key]
        self.included[key] = other.file
        self.lines |= {place: line for place, line in other.lines.items() if place[:1] == (key,)}

    def line(self, path: Place) -> int | None:
        """The line of `path`, or of the nearest thing around it that is written down."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def read(path: Path, file: str | None = None) -> Document:
    """The YAML file at `path`; `file` is what errors call it."""
    name = str(path) if file is None else file
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _fault(name, "is not a file")
        if status.st_size > SIZE_MAX_BYTES:
            raise _fault(name, f"is larger than {SIZE_MAX_BYTES >> 20} MiB")
        with path.open("rb") as stream:
            content = stream.read(SIZE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _fault(name, f"cannot be read: {reason or error}") from None
    if len(content) > SIZE_MAX_BYTES:
        raise _fault(name, f"is larger than {SIZE_MAX_BYTES >> 20} MiB")
    return parse(content, name)


def parse(content: bytes, file: str) -> Document:
    """YAML in UTF-8 -> data and lines."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _fault(file, "is not UTF-8 text", line) from None
    reader = _Reader(file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except yaml.YAMLError as error:
        reader.report((), _line_of(error, text), "", f"is not YAML: {_reason(error)}")
    if not reader.seen and not reader.problems:
        raise _fault(file, "is empty")
    if reader.problems:
        raise InputError(file, reader.problems)
    return Document(file, text, reader.data, reader.lines)


def _fault(file: str, message: str, line: int | None = None) -> InputError:
    return InputError(file, [Problem("", line, "", message)])


def _line_of(error: yaml.YAMLError, text: str) -> int | None:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    position = getattr(error, "position", None)
    return None if position is None else text.count("\n", 0, int(position)) + 1


def _reason(error: yaml.YAMLError) -> str:
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    hint = " (indent with spaces, put text with special characters in quotes)"
    return f"{reason}{hint if 'any token' in str(reason) else ''}"


def scalar(text: str, plain: bool) -> Any:
    """What a scalar means: quoted text is text; plain text may be null, true, false or a number."""
    if not plain:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _DIGITS_MAX and _INT.fullmatch(text):
        return int(text)
    if len(text) <= _DIGITS_MAX and _FLOAT.fullmatch(text):
        return float(text)
    return text


_NO_KEY = object()


@dataclass(slots=True)
class _Level:
    """An open mapping or list, and the key that waits for its value."""

    holder: dict[str, Any] | list[Any]
    path: Place
    key: Any = _NO_KEY


class _Reader:
    """Builds data from parser events with a stack of its own: no recursion, no construction.

    What lies deeper than DEPTH_MAX, or in a second document, is reported once and then skipped.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.data: Any = None
        self.seen = False
        self.lines: dict[Place, int] = {}
        self.problems: list[Problem] = []
        self._levels: list[_Level] = []
        self._documents = 0

    def report(self, path: Place, line: int | None, value: str, message: str) -> None:
        """Remember a problem."""
        self.problems.append(Problem(path_text(path), line, value, message))

    def take(self, event: Any) -> None:
        """One parser event."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(line, "holds more than one document: only one is read")
        elif isinstance(event, yaml.AliasEvent):
            self._stop(line, f"aliases (*{event.anchor}) are not read: write the value out")
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._levels.pop()

    def _stop(self, line: int, message: str, path: Place = ()) -> None:
        """What makes the rest meaningless ends the reading."""
        self.report(path, line, "", message)
        raise InputError(self.file, self.problems)

    def _node(self, event: Any, line: int) -> None:
        level = self._levels[-1] if self._levels else None
        is_key = level is not None and isinstance(level.holder, dict) and level.key is _NO_KEY
        path = level.path if is_key and level is not None else self._path_of_next()
        if event.anchor is not None:
            self._stop(line, f"anchors (&{event.anchor}) are not read: write the value out", path)
        if event.tag is not None:
            self._stop(line, f"tags ({shown(event.tag)}) are not read", path)
        if isinstance(event, yaml.ScalarEvent):
            if is_key and level is not None:
                self._open_key(level, event.value, line)
            else:
                self._place(scalar(event.value, event.implicit[0]), path, line)
            return
        if is_key:
            self._stop(line, "a key must be plain text", path)
        if len(self._levels) >= DEPTH_MAX:
            self._stop(line, f"is nested more than {DEPTH_MAX} levels deep", path[:3])
        holder: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._place(holder, path, line)
        self._levels.append(_Level(holder, path))

    def _path_of_next(self) -> Place:
        if not self._levels:
            return ()
        level = self._levels[-1]
        return (*level.path, len(level.holder) if isinstance(level.holder, list) else level.key)

    def _open_key(self, level: _Level, key: str, line: int) -> None:
        path = (*level.path, key)
        if key in level.holder:
            first = self.lines[path]
            self.report(path, line, "", f"is given twice (first in line {first})")
        else:
            self.lines[path] = line
        level.key = key

    def _place(self, value: Any, path: Place, line: int) -> None:
        if not self._levels:
            self.data, self.seen = value, value is not None
            self.lines[()] = line
            return
        level = self._levels[-1]
        if isinstance(level.holder, list):
            level.holder.append(value)
            self.lines[path] = line
        else:
            level.holder[level.key] = value
            level.key = _NO_KEY
