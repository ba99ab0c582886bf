"""A sweep as strict JSON, shared by `index.json` and `--json`, and back.

JSON has no NaN and no infinity: NaN is null, an infinity is the string "inf" or "-inf". Finite numbers come back
exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradscope.recording._json import to_plain
from gradscope.recording._moments import Floats
from gradscope.recording._profile import Direction
from gradscope.recording._sweep_result import Expected, SweepCell, SweepResult

SCHEMA = 1
_WHO = ("init", "activation", "family", "depth", "width")
_MEASURED = ("pre", "act", "pre_grad", "act_grad")
_CURVES = (*_MEASURED, "forward_var", "backward_var")


def sweep_to_json(result: SweepResult) -> dict[str, Any]:
    """The sweep as a dictionary that `json.dumps(..., allow_nan=False)` takes."""
    cells = [_cell_to_json(cell) for cell in result.cells]
    return {
        "schema": SCHEMA,
        "kind": "sweep",
        "config": strict(result.config),
        "facts": strict(result.facts),
        "cells": cells,
    }


def sweep_from_json(data: Mapping[str, Any] | str) -> SweepResult:
    """The sweep that was written; ValueError where the data are none, or of another schema."""
    row = json.loads(data) if isinstance(data, str) else data
    if not isinstance(row, Mapping) or row.get("kind") != "sweep":
        raise ValueError("the data are no sweep: they have no kind='sweep'")
    if row.get("schema") != SCHEMA:
        raise ValueError(f"schema={row.get('schema')!r} of the sweep is unknown; allowed: {SCHEMA}")
    cells = tuple(_cell_from_json(cell) for cell in row["cells"])
    return SweepResult(dict(row["config"]), cells, dict(row["facts"]))


def strict(value: Any) -> Any:
    """The plain value with null for NaN and "inf", "-inf" for the infinities."""
    return _strict(to_plain(value))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: _strict(v) for key, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list) else value


def floats(value: Any) -> Floats:
    """The array of numbers that `strict` wrote."""
    return np.asarray(value, dtype=np.float64)  # None becomes NaN, "inf" infinity


def _cell_to_json(cell: SweepCell) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(cell, name) for name in (*_WHO, *_MEASURED)}
    names = (*_CURVES, "label", "stable", "valid")
    row["expected"] = cell.expected and {name: getattr(cell.expected, name) for name in names}
    row["forward"] = _findings(cell, "forward", cell.forward_decades)
    row["backward"] = _findings(cell, "backward", cell.backward_decades)
    return dict(strict(row))


def _findings(cell: SweepCell, direction: Direction, slope: float) -> dict[str, Any]:
    alive = cell.layers_alive(direction)
    return {
        "decades_per_layer": slope,
        "decades_lost": cell.decades_lost(direction),
        "layers_alive": alive.alive,
        "float32_dies_at_layer": alive.dies_at,
        "sentence": cell.sentence(direction),
    }


def _cell_from_json(row: Mapping[str, Any]) -> SweepCell:
    curves = row["expected"]
    expected = curves and Expected(
        **{name: floats(curves[name]) for name in _CURVES},
        label=curves["label"],
        stable=curves["stable"],
        valid=np.asarray(curves["valid"], dtype=bool),
    )
    fields: dict[str, Any] = {name: row[name] for name in _WHO}
    fields |= {name: floats(row[name]) for name in _MEASURED}
    return SweepCell(**fields, expected=expected)
