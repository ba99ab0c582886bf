"""The one place that saves: pictures as PNG whose bytes depend on nothing but what they show, and `index.json`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradscope.report._style import style


def slug(name: str) -> str:
    """A name as part of a file name.

    >>> slug("leaky_relu(0.2)"), slug("<root>")
    ('leaky_relu_0.2', 'root')
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_") or "_"


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure of its own fixed size; writing it twice gives the same bytes.

    A reader of the path sees the old picture or the new one, never half of one.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with matplotlib.rc_context(style()):
            canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
            canvas.print_png(  # type: ignore[no-untyped-call]
                partial, metadata={"Software": None}, pil_kwargs={"compress_level": 3}
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_json(document: dict[str, Any], path: Path) -> None:
    """Write strict JSON: no NaN, no infinity, UTF-8, keys in the order given."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
