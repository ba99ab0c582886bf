"""The singular values of a network's Jacobian: sampled, and by theory, for Gaussian and for orthogonal weights."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.report._style import BLUE, INK, VERMILION, styled
from gradscope.report._theory_words import spectrum_words
from gradscope.report.figures._axes import corner_text, log_ticks
from gradscope.report.figures._headed import MARGIN, Headed
from gradscope.theory import SampledSpectrum

_PANEL = (4.1, 2.9)
_GAP = 0.75
_NAMES = {"independent": "Gaussian weights", "orthogonal": "orthogonal weights"}
_COLOURS = {"independent": (BLUE, "#b8d6e8"), "orthogonal": (VERMILION, "#f3cdb2")}


@styled
def singular_values(spectra: tuple[SampledSpectrum, ...]) -> Figure:
    """One panel a kind of weights: a histogram of sampled singular values, and theory's density, against log10 of s."""
    first = spectra[0]
    width = MARGIN + len(spectra) * _PANEL[0] + (len(spectra) - 1) * _GAP + 0.25
    title = f"{first.activation.name}: singular values of the Jacobian"
    page = Headed(width, _PANEL[1] + 0.25, 0.85, title, spectrum_words(spectra))
    for place, spectrum in enumerate(spectra):
        axes = page.axes(MARGIN + place * (_PANEL[0] + _GAP), 0.0, *_PANEL)
        _panel(axes, spectrum)
        if not place:
            axes.set_ylabel("density, per decade")
    handles, labels = page.figure.axes[0].get_legend_handles_labels()
    page.figure.legend(handles, labels, loc="lower left", bbox_to_anchor=((MARGIN - 0.12) / page.width, 0.0), ncols=3)
    return page.figure


def _panel(axes: Axes, spectrum: SampledSpectrum) -> None:
    colour, fill = _COLOURS[spectrum.weights]
    axes.stairs(
        spectrum.density, spectrum.edges, fill=True, facecolor=fill, edgecolor=colour, linewidth=0.8,
        label="sampled networks",
    )  # fmt: skip
    left, right = float(spectrum.edges[0]), float(spectrum.log10_s[-1])
    spike = math.log10(spectrum.moments.mean) / 2.0
    if np.isfinite(spectrum.expected).any():
        axes.plot(spectrum.log10_s, spectrum.expected, color=INK, linewidth=1.6, label="theory, width → ∞")
    else:
        axes.axvline(spike, color=INK, linewidth=1.6, label="theory, width → ∞")
    axes.set_xlim(left, right)
    top = max(float(spectrum.density.max()), float(np.nan_to_num(spectrum.expected).max()))
    axes.set_ylim(0.0, 1.3 * top)
    axes.set_xticks(*log_ticks(left, right, 6))
    axes.set_xlabel("singular value s")
    axes.set_title(_NAMES[spectrum.weights], fontsize=10.5, fontweight="bold")
    mean = f"mean s² {spectrum.mean_square:.3g} (theory {spectrum.moments.mean:.3g})"
    spread = f"its relative variance {spectrum.relative_variance:.3g} (theory {spectrum.moments.relative_variance:.3g})"
    corner_text(axes, "upper left", mean, spread, colour)
