"""Validation errors in the user's words: the path and line in the file, and what is allowed there.

pydantic reports one error per alternative of a union and names Python types; here a value has one
problem, which says what it may be. Unknown keys come with the allowed ones and the closest of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster import scenario_text
from cluster.yaml_input import Document, Place, Problem, path_text, shown

_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "greater_than": ("gt", "must be above {}"),
    "less_than": ("lt", "must be below {}"),
    "too_short": ("min_length", "must have at least {} of them"),
    "too_long": ("max_length", "must have at most {} of them"),
    "string_too_short": ("min_length", "must have at least {} characters"),
    "string_too_long": ("max_length", "must have at most {} characters"),
    "literal_error": ("expected", "must be {}"),
}
_WORDS = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text (in quotes, if it looks like a number)",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "string_pattern_mismatch": "must be letters, digits and ._-, a letter or digit first",
}

_DEFAULTS_TO = {"limit": "memory"}
"""Keys that are as another one where they are not given."""


def closest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'memory'? ` or nothing: for messages, before the list of what is allowed."""
    found = difflib.get_close_matches(word[:100], list(known), 1)
    return f"did you mean {shown(found[0])}? " if found else ""


def listed(names: Iterable[str], most: int = 40) -> str:
    """Names for a message, not more than fit on a few lines."""
    known = list(names)
    more = f", ... ({len(known)} in all)" if len(known) > most else ""
    return (", ".join(known[:most]) or "none") + more


def lookup(data: Any, path: Place) -> tuple[Place, Any]:
    """As far as `path` leads into `data`, and what is there."""
    for depth, key in enumerate(path):
        in_dict = isinstance(data, dict) and key in data
        in_list = isinstance(data, list | tuple) and isinstance(key, int) and key < len(data)
        if not in_dict and not in_list:
            return path[:depth], data
        data = data[key]
    return path, data


def problem(document: Document, path: Place, message: str, *, show: bool = True) -> Problem:
    """A problem at `path`; the value there is shown unless it is a whole mapping or list."""
    reached, value = lookup(document.data, path)
    plain = show and reached == path and not isinstance(value, dict | list | tuple)
    return Problem(
        path_text(path),
        document.line(path),
        shown(value) if plain and path else "",
        message,
        document.included.get(str(path[0])) if path else None,
    )


def _with_values(words: str, given: Any, model: type[BaseModel] | None) -> str:
    """A message, and what stands at the keys with a unit that it names."""
    if model is None or not isinstance(given, dict):
        return words
    named = [key for key in re.findall(r"\w+", words) if key in model.model_fields]
    values = []
    for key in dict.fromkeys(named):
        stands = key if given.get(key) is not None else _DEFAULTS_TO.get(key, key)
        unit = scenario_text.of_field(model.model_fields[stands])
        value = scenario_text.text(unit, given.get(stands))
        if value is not None:
            values.append(f"{key} {value}" if stands == key else f"{key}, as {stands}, {value}")
    return f"{words} ({'; '.join(values)})" if values else words


def _message(error: Any, model: type[BaseModel], path: Place) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        inside = scenario_text.model_in(scenario_text.at(model, path))
        return _with_values(str(context["error"]), error["input"], inside)
    if kind == "extra_forbidden":
        inside = scenario_text.model_in(scenario_text.at(model, path[:-1]))
        known = list(inside.model_fields) if inside else []
        return f"unknown key: {closest(str(path[-1]), known)}allowed here: {listed(known)}"
    if kind in ("model_type", "model_attributes_type"):
        inside = scenario_text.model_in(scenario_text.at(model, path))
        known = list(inside.model_fields) if inside else []
        return f"must be a mapping with some of: {listed(known)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        return words.format(scenario_text.text(scenario_text.at(model, path), bound) or bound)
    return _WORDS.get(kind, str(error["msg"]))


def errors_of(error: ValidationError, data: Any) -> list[Any]:
    """pydantic's errors, less lists called too short only because their elements are invalid."""
    found = []
    for item in error.errors(include_url=False):
        path, here = lookup(data, tuple(item["loc"]))
        least = item.get("ctx", {}).get("min_length", 0)
        is_list = isinstance(here, list) and path == tuple(item["loc"])
        if item["type"] != "too_short" or not is_list or len(here) < least:
            found.append(item)
    return found


def from_validation(
    error: ValidationError, model: type[BaseModel], document: Document, prefix: Place = ()
) -> list[Problem]:
    """Problems of a value that `model` refused; it lies at `prefix` of the document."""
    messages: dict[Place, list[str]] = {}
    hidden: set[Place] = set()
    _, base = lookup(document.data, prefix)
    for found in errors_of(error, base):
        loc = tuple(found["loc"])
        path, _ = lookup(base, loc)
        if found["type"] == "missing":
            path = loc
        if found["type"] == "extra_forbidden":
            hidden.add(path)
        message = _message(found, model, path)
        known = messages.setdefault(path, [])
        if message not in known:
            known.append(message)
    return [
        problem(document, (*prefix, *path), "; or ".join(texts), show=path not in hidden)
        for path, texts in messages.items()
    ]
