"""Objects as YAML that people read: keys in their order, text of several lines as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

_Base: Any = yaml.SafeDumper


class _Dumper(_Base):  # type: ignore[misc]
    """No aliases: the same part may occur twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump(objects: Sequence[dict[str, Any]]) -> str:
    """Objects as the documents of one YAML file."""
    return str(yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000))
