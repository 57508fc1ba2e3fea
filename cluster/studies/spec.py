"""The key `sweep` of a scenario file: which values vary, and how they are combined.

Only its form is checked here; that its paths lead somewhere, and that every point is a valid
scenario, is checked where the rest of the file is known.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from cluster import scenario
from hostsim.config import FrozenModel

RUNS_MAX = 10_000
"""Runs of a sweep, points times seeds; beyond lies a slip of the finger."""
Path = Annotated[str, Field(min_length=1, max_length=500)]
"""Keys from the top of the file, with dots between them: `hosts.esx.count`. An element of a list is
named by its name, or by its position from 0."""
Label = Annotated[str, Field(min_length=1, max_length=100)]
RANGE = ("from", "to", "step")
_END = {"type": ["integer", "number", "string"]}
Values = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "minItems": 1},
                {
                    "type": "object",
                    "properties": dict.fromkeys(RANGE, _END),
                    "required": list(RANGE),
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
"""A list, or a range at equal distances; `to` is one of its values where a step meets it."""


class Sweep(FrozenModel):
    """Several runs of the scenario: points, which differ in what varies, times seeds."""

    seeds: int = Field(1, ge=1, le=1000)
    """Runs of each point: with the scenario's seed, and those that follow it."""
    mode: Literal["product", "zip", "sample"] = "product"
    """All combinations of the axes' values; the first values of all axes, the second ones, and so
    on; or `points` of the combinations, drawn from the scenario's seed."""
    points: int | None = Field(None, ge=1, le=RUNS_MAX)
    """How many combinations to draw; of mode `sample` alone."""
    vary: dict[Path, Values] = Field({}, max_length=20)
    """Path -> its values: a list, or a range {from, to, step}. Each path is an axis."""
    variants: dict[Label, dict[Label, dict[Path, Any]]] = Field({}, max_length=20)
    """Axis -> label -> paths and their values, which vary together."""

    @model_validator(mode="after")
    def _whole(self) -> Sweep:
        if not self.vary and not self.variants:
            raise ValueError("needs vary or variants: what differs from point to point")
        if (self.mode == "sample") != (self.points is not None):
            raise ValueError("points must be given with mode sample, and with no other")
        return self


def schema() -> dict[str, Any]:
    """JSON Schema of scenario files, `sweep` included."""
    found = scenario.schema()
    sweep = Sweep.model_json_schema(ref_template="#/$defs/{model}")
    found["$defs"] |= sweep.pop("$defs", {})
    found["$defs"]["Sweep"] = sweep
    words = "Runs the scenario many times, some of its values varied."
    found["properties"]["sweep"] = {"$ref": "#/$defs/Sweep", "description": words}
    return found
