"""A recorded signal against depth at the first, the middle and the last step of the run."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from gradscope.diagnosis import Findings
from gradscope.recording import Recording, Signal, Site
from gradscope.report._expected_curve import ExpectedCurve, expected_curve
from gradscope.report._run_curves import FLOWING, Line, log10, three_lines
from gradscope.report._style import HEALTHY, INK, SOFT, new_figure, styled
from gradscope.report._verdicts import DEPTH_RULES, elsewhere
from gradscope.report._words import NAMES, per_layer, profile_sentence, sampled, small_print
from gradscope.report.figures._axes import decade_axis, depth_axis, span, top_note
from gradscope.report.figures._lost import lost_entries, mark_lost
from gradscope.report.figures._marks import mark_verdicts
from gradscope.report.figures._text import LINE, wrapped

_SHADES = {
    "forward": {"first": "#7fb5d8", "middle": "#2f86bd", "last": "#003f63", "only": "#003f63"},
    "backward": {"first": "#f0a070", "middle": "#d55e00", "last": "#6e3000", "only": "#6e3000"},
}
_DASHES = {"first": (0, (1, 1.6)), "middle": (0, (5, 2)), "last": "solid", "only": "solid"}
_MARKERS = {"first": "^", "middle": "s", "last": "o", "only": "o"}
_FLOWS = {"forward": "depth    (the signal flows →)", "backward": "depth    (← the gradient flows)"}
_MOST_NAMES, _LONGEST_NAME = 26, 24
_BAND, _THEORY = "#d2d2d2", (0, (5, 3))


@styled
def profile(
    recording: Recording, signal: Signal, expected: Recording | None = None, findings: Findings | None = None
) -> Figure:
    """rms of one signal against depth (order of execution) at the first, middle and last step; y is log10 of rms.

    The line joins the layers (pre-activations; of parameters those of two or more dimensions), small dots are
    the other sites at the last step. With `findings`, what `diagnose` gave, the first sick site of each is crossed and
    named, on the line of the first step at which it holds. The healthy band of a signal that flows is drawn where the
    last profile stays in it, or a finding says that leaving it is a fault: sound poolings, branches and gates leave it
    too. With `expected`, a prediction of the same model: the theory's curve at the same
    layers, dashed, and the band in which 95 % of single networks of these widths lie; gradients are shifted to meet
    the measured one at the last layer.
    """
    lines = three_lines(recording, signal, findings)
    if not lines:
        raise ValueError(f"signal={signal!r} has no data in this recording")
    theory = None if expected is None else expected_curve(expected, lines[0])
    names = _names(lines[-1])
    above = 0.15 + 0.05 * max(map(len, (s.name for s in names)), default=0) if names else 0.0
    others = elsewhere(findings, recording, signal)
    figure = new_figure(9.6, 6.0)
    sentence = wrapped(figure, profile_sentence(lines, judged=findings is not None, others=others), 8.65)
    head = 0.72 + LINE * (sentence.count("\n") + 1)
    band = _band(lines)
    entries = _entries(lines, bool(np.isfinite(band[0])), theory)
    foot = 0.6 + 0.2 * -(-len(entries) // 3)
    height = foot + 3.5 + above + head
    figure.set_size_inches(9.6, height)
    figure.text(0.075, 1 - 0.38 / height, f"{NAMES[signal]} against depth", fontsize=14, fontweight="bold")
    figure.text(0.075, 1 - 0.58 / height, sentence, va="top", linespacing=1.3)
    top_note(figure, small_print(recording, "rms"))
    axes = figure.add_axes((0.075, foot / height, 0.885, 3.5 / height))
    everything = [*(log10(line.profile.values[_drawn(line)]) for line in lines), np.array(band)]
    if theory is not None:
        everything += [theory.log10_rms, theory.low, theory.high]
    low, high = span(*everything)
    decade_axis(axes, low, high)
    depths = np.array([0 if s.role == "input" else s.depth for s in _shown(recording, lines)])
    direction = lines[-1].profile.direction
    depth_axis(axes, depths, _FLOWS[direction] if signal in FLOWING else "depth, in order of execution")
    axes.set_ylabel(f"rms{sampled(recording, 'rms')}")
    if np.isfinite(band[0]):
        axes.axhspan(*band, color=HEALTHY, linewidth=0, zorder=0, label="healthy band")
    if theory is not None:
        _theory(axes, theory)
    for line in lines:
        _draw(axes, line)
    mark_lost(axes, lines[-1])
    mark_verdicts(axes, lines)
    if names:
        _name_axis(axes, names)
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.065, 0.0), ncols=3, columnspacing=1.4)
    return figure


def _shown(recording: Recording, lines: tuple[Line, ...]) -> list[Site]:
    """What the axis of depth spans: of a gradient also the sites to which none came."""
    of: dict[Signal, Signal] = {"activation_grad": "activation", "weight_grad": "weight"}
    signal = lines[-1].profile.signal
    there = [site for line in lines for site in (*line.profile.sites, *line.silent)]
    return [*there, *(s for s in recording.sites_of(of.get(signal, signal)) if s.role != "input")]


def _band(lines: tuple[Line, ...]) -> tuple[float, float]:
    """Edges of the healthy band, log10; NaN where it would say nothing, or call a sound profile sick."""
    last = lines[-1].profile
    low, high = last.healthy_band
    inside = bool(((last.values >= low) & (last.values <= high)).all())
    sick = any(one.finding.rule in DEPTH_RULES for line in lines for one in line.verdicts)
    if last.signal not in FLOWING or not (inside or sick):
        return np.nan, np.nan
    lower, upper = log10(np.array([low, high])).tolist()
    return lower, upper


def _theory(axes: Axes, theory: ExpectedCurve) -> None:
    if np.isfinite(theory.low).any():
        axes.fill_between(
            theory.depth, theory.low, theory.high, color=_BAND, linewidth=0, zorder=0.5, label="band of the theory"
        )
    axes.plot(theory.depth, theory.log10_rms, color=INK, linewidth=1.3, linestyle=_THEORY, zorder=3, label="theory")


def _drawn(line: Line) -> NDArray[np.bool_]:
    """Which sites of a line are drawn: the layers and the first sick sites, at the last step all."""
    if line.is_last:
        return np.ones(len(line.profile.sites), dtype=bool)
    marked = {one.site for one in line.verdicts}
    sick = np.array([site in marked for site in line.profile.sites], dtype=bool)
    return np.asarray(line.profile.layers | sick)


def _draw(axes: Axes, line: Line) -> None:
    p, when = line.profile, line.when
    colour = _SHADES[p.direction][when]
    y = log10(p.values)
    layers = p.layers
    if line.is_last:
        axes.plot(p.depth[~layers], y[~layers], ".", color=colour, markersize=4, label="other sites")
    axes.plot(
        p.depth[layers],
        y[layers],
        color=colour,
        linewidth=1.9,
        linestyle=_DASHES[when],
        marker=_MARKERS[when],
        markersize=4.5,
        markerfacecolor="white",
        markevery=max(1, int(layers.sum()) // 14),
        label=f"step {p.step}",
    )


def _names(line: Line) -> list[Site]:
    """The sites whose names fit above the axes: the layers, if they are few and their names short; else none."""
    layers = [s for s, layer in zip(line.profile.sites, line.profile.layers, strict=True) if layer]
    layers += [s for s in line.silent if (len(s.shape) >= 2 if s.param is not None else s.role == "pre-activation")]
    fits = len(layers) <= _MOST_NAMES and all(len(s.name) <= _LONGEST_NAME for s in layers)
    apart = len({s.depth for s in layers}) == len(layers)
    return layers if fits and apart else []


def _name_axis(axes: Axes, sites: list[Site]) -> None:
    above = axes.secondary_xaxis("top")
    above.set_xticks([s.depth for s in sites], [s.name for s in sites], rotation=50, ha="left", rotation_mode="anchor")
    above.tick_params(length=2, pad=1, labelsize=7.5, labelcolor=SOFT)
    above.spines["top"].set_visible(False)


def _entries(lines: tuple[Line, ...], band: bool, theory: ExpectedCurve | None) -> list[tuple[Line2D | Patch, str]]:
    """What the legend explains, in order."""
    found: list[tuple[Line2D | Patch, str]] = []
    for line in lines:
        p, when = line.profile, line.when
        style = {"color": _SHADES[p.direction][when], "linestyle": _DASHES[when], "marker": _MARKERS[when]}
        handle = Line2D([], [], linewidth=1.9, markersize=4.5, markerfacecolor="white", **style)  # type: ignore[arg-type]
        name = f"step {p.step}" if when == "only" else f"{when} step, {p.step}"
        found.append((handle, f"{name}:  {per_layer(p.decades_per_layer)}"))
    last = "" if len(lines) == 1 else " of the last step"
    if band:
        found.append((Patch(facecolor=HEALTHY), f"healthy band{last}"))
    if theory is not None:
        scale = ", scaled to the last layer" if theory.scaled else ""
        dashed = Line2D([], [], color=INK, linewidth=1.3, linestyle=_THEORY)
        found.append((dashed, f"theory{scale}:  {per_layer(theory.decades_per_layer)}"))
        if np.isfinite(theory.low).any():
            found.append((Patch(facecolor=_BAND), "95 % of plain chains of these widths, by theory"))
    if not lines[-1].profile.layers.all():
        colour = _SHADES[lines[-1].profile.direction]["last"]
        dot = Line2D([], [], color=colour, linestyle="none", marker=".", markersize=6)
        found.append((dot, f"other sites{last}"))
    found += lost_entries(lines[-1])
    if any(line.verdicts for line in lines):
        cross = Line2D([], [], color=INK, linestyle="none", marker="X", markersize=8, markeredgecolor="white")
        found.append((cross, "first sick site"))
    return found
