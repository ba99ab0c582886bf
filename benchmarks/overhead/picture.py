"""The results as a picture: what each tool adds to a step, in per cent of the bare step, one panel a workload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.overhead.result import Result, ResultFile
from benchmarks.overhead.table import labelled
from benchmarks.overhead.tools import TOOLS
from benchmarks.overhead.workloads import WORKLOADS
from gradscope.report._style import BLUE, FAINT, INK, SOFT, VERMILION, new_figure, styled

LEAST = 0.1
"""Per cent: what is less, or negative within the noise, stands at the left edge."""
LEFT, PANEL, GAP, TOP, ROW, BOTTOM = 4.6, 2.1, 0.15, 0.85, 0.4, 0.75
"""Inches."""


@styled
def draw(results: ResultFile, path: Path) -> None:
    """Save the picture; nothing where there is no figure at all."""
    given = [result for result in results if result.reason is None]
    names = [name for name in WORKLOADS if any(result.workload == name for result in given)]
    tools = [tool for tool in TOOLS.values() if any(result.tool == tool.name for result in given)]
    if not given:
        return
    width, height = LEFT + len(names) * (PANEL + GAP), TOP + ROW * len(tools) + BOTTOM
    figure = new_figure(width, height)
    most = max(10.0, *((result.high - 1) * 100 for result in given))
    for i, name in enumerate(names):
        left = (LEFT + i * (PANEL + GAP)) / width
        axis = figure.add_axes((left, BOTTOM / height, PANEL / width, ROW * len(tools) / height))
        _panel(axis, {tool.name: results.get(tool.name, name) for tool in tools}, most)
        axis.set_title(name, fontweight="bold")
    for row, tool in enumerate(tools):
        y = (BOTTOM + ROW * (len(tools) - row - 0.5)) / height
        label = labelled(tool.label, [result for result in given if result.tool == tool.name])
        figure.text((LEFT - 0.1) / width, y, label, ha="right", va="bottom", color=INK)
        figure.text((LEFT - 0.1) / width, y, tool.records, ha="right", va="top", color=SOFT, fontsize=7)
    figure.text(0.1 / width, 1 - 0.3 / height, "What recording costs", fontweight="bold", fontsize=12)
    said = "extra CPU time of a training step, % of the bare step (bar: 95 % interval; × ratio to the bare step)"
    figure.text((width - GAP) / width, 0.3 / height, said, ha="right", color=INK)
    doubt = "" if all(result.valid for result in given) else "; hollow, ?: the machine was not quiet"
    machine = f"{results.machine['processor']}, one thread, torch {results.machine['torch']}{doubt}"
    figure.text((width - GAP) / width, 0.1 / height, machine, ha="right", color=SOFT, fontsize=7.5)
    figure.savefig(path, metadata={"Software": None})


def _panel(axis: Axes, results: Mapping[str, Result | None], most: float) -> None:
    axis.set_xscale("log")
    axis.set_xlim(LEAST * 0.8, most * 20)
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.set_yticks([])
    axis.set_xticks([0.1, 1, 10, 100, 1000], ["≤0.1", "1", "10", "100", "1000"])
    axis.minorticks_off()
    axis.grid(axis="x", color=FAINT)
    for row, (tool, result) in enumerate(results.items()):
        if result is None or result.reason is not None:
            axis.text(LEAST, row, "no figure", color=SOFT, va="center", fontsize=8)
            continue
        low, middle, high = (max(LEAST, (x - 1) * 100) for x in (result.low, result.ratio, result.high))
        ours = tool.startswith("gradscope")
        colour = BLUE if ours else SOFT if tool == "null" else VERMILION
        inside = colour if result.valid else "white"
        axis.plot([low, high], [row, row], color=colour, linewidth=2)
        axis.plot([middle], [row], "o" if ours else "d", color=colour, markersize=5, markerfacecolor=inside)
        said = f"{result.ratio:.3f}" if result.ratio < 1.995 else f"{result.ratio:.1f}"
        axis.text(high * 1.4, row, f"× {said}{'' if result.valid else ' ?'}", va="center", fontsize=8, color=INK)
