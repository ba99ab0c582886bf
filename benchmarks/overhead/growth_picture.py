"""The cost against sites, elements and steps, as a picture of four panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.overhead.endurance import Endurance
from benchmarks.overhead.machine import machine
from benchmarks.overhead.result import Result
from benchmarks.overhead.tools import TOOLS
from gradscope.report._style import BLUE, FAINT, GREEN, ORANGE, PURPLE, SOFT, VERMILION, new_figure, styled

LOOKS = ((BLUE, "o"), (GREEN, "s"), (VERMILION, "d"), (ORANGE, "^"), (PURPLE, "v"))


@styled
def draw(
    sites: Mapping[str, Sequence[Result]],
    elements: Mapping[str, Sequence[Result]],
    steps: Mapping[str, Endurance],
    path: Path,
) -> None:
    """Save the picture."""
    figure = new_figure(11.5, 7.6)
    by_sites, by_elements, by_steps, memory = figure.subplots(2, 2).flat
    _cost(by_sites, sites, "sites", "sites of all signals (width 64, 5 to 200 layers)")
    _cost(by_elements, elements, "elements", "elements of all signals (10 layers, width 64 to 2048)")
    for axis in (by_steps, memory):
        axis.set_xscale("log")
        axis.set_xlabel("steps of the run so far (20 layers, width 64)")
        axis.grid(color=FAINT)
    for (colour, marker), (tool, run) in zip(LOOKS, steps.items(), strict=False):
        by_steps.plot(run.until, run.ratio, color=colour, marker=marker, markersize=4, label=TOOLS[tool].label)
        memory.plot(run.until, run.resident_mb, color=colour, marker=marker, markersize=4)
        memory.plot(run.until, run.file_mb, color=colour, marker=marker, markersize=3, linestyle=":")
    memory.plot([], [], color=SOFT, label="memory")
    memory.plot([], [], color=SOFT, linestyle=":", label="file")
    memory.legend()
    by_steps.set_ylabel("CPU time / bare step")
    by_steps.set_ylim(bottom=1)
    by_steps.set_title("With the steps recorded so far", fontweight="bold")
    memory.set_ylabel("MB")
    memory.set_title("Memory more than at the start, and the file", fontweight="bold")
    by_sites.set_title("With the number of sites", fontweight="bold")
    by_elements.set_title("With the number of elements", fontweight="bold")
    by_sites.legend()
    facts = machine()
    figure.text(0.01, 0.008, f"{facts['processor']}, one thread, torch {facts['torch']}", color=SOFT, fontsize=7.5)
    figure.tight_layout(rect=(0, 0.02, 1, 1), w_pad=2.5, h_pad=2)
    figure.savefig(path, metadata={"Software": None})


def _cost(axis: Axes, results: Mapping[str, Sequence[Result]], fact: str, label: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    for (colour, marker), (tool, points) in zip(LOOKS, results.items(), strict=False):
        given = [point for point in points if point.reason is None and point.extra_us > 0]
        x, y = [point.facts[fact] for point in given], [point.extra_us for point in given]
        axis.plot(x, y, color=colour, label=TOOLS[tool].label)
        for point, i, j in zip(given, x, y, strict=True):
            axis.plot([i], [j], marker, color=colour, markersize=5, markerfacecolor=colour if point.valid else "white")
    axis.set_xlabel(label)
    axis.set_ylabel("µs a step more than bare")
    axis.grid(color=FAINT)
