"""The pictures of a comparison: one for each signal that differs, or of both runs where only the structure does."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from gradscope.recording import SIGNALS, Baseline, Comparison, Signal
from gradscope.recording._baseline import Spreads
from gradscope.report._index import Picture, Report, write_report
from gradscope.report._words import NAMES
from gradscope.report._write import save_png, slug
from gradscope.report.figures import comparison


def draw_comparison(
    expected: Baseline,
    obtained: Baseline,
    found: Comparison,
    directory: Path,
    *,
    name: str = "",
    bands: Spreads | None = None,
) -> list[str]:
    """Draw the profiles that differ, with the bands of several seeds; file names relative to the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{slug(name)[:80]}-{zlib.crc32(name.encode()):08x}__" if name else ""
    files = []
    for signal in _signals(expected, obtained, found):
        file = f"{stem}compared__{signal}.png"
        step = _worst_step(expected, obtained, signal)
        allowed = None if bands is None else bands.get(signal)
        save_png(comparison(expected, obtained, signal, step, allowed=allowed), directory / file)
        files.append(file)
    return files


def write_comparison_report(
    expected: Baseline,
    obtained: Baseline,
    found: Comparison,
    directory: str | os.PathLike[str],
    *,
    bands: Spreads | None = None,
) -> Report:
    """Draw both runs into a directory and list the pictures in `index.json` (docs/report_json.md)."""
    directory = Path(directory)
    files = draw_comparison(expected, obtained, found, directory, bands=bands)
    pictures = [
        Picture(file, "comparison", f"{NAMES[signal]}: expected and obtained", {"signal": signal})
        for file, signal in zip(files, _signals(expected, obtained, found), strict=True)
    ]
    return write_report(directory, found.as_dict(), pictures)


def _signals(expected: Baseline, obtained: Baseline, found: Comparison) -> list[Signal]:
    common = [s for s in SIGNALS if expected.sizes.get(s) and obtained.sizes.get(s)]
    differ = {one.signal for one in found.differences}
    return [s for s in common if s in differ] or common


def _worst_step(expected: Baseline, obtained: Baseline, signal: Signal) -> int:
    """Index of the step at which the two are farthest apart; 0 where their steps differ."""
    if not np.array_equal(expected.steps, obtained.steps):
        return 0
    a, b = expected.sizes[signal], obtained.sizes[signal]
    with np.errstate(invalid="ignore"):
        away = [np.nan_to_num(np.abs(a[name] - b[name]), posinf=0.0) for name in a if name in b]
    return int(np.argmax(np.max(away, axis=0))) if away else 0
