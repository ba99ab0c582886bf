"""What the pictures of the theory say in sentences, and a card's numbers in a few words."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradscope.theory import Card, CorrelationCurves, PhaseDiagram, SampledSpectrum


def phase_words(diagram: PhaseDiagram) -> list[str]:
    """Where gradients vanish and explode in the plane drawn, and where lengths are kept."""
    line, chi = diagram.line_in_view, diagram.chi
    if not line.q.size:
        said = [
            "In this plane χ, the factor of a gradient's mean square per layer, is below 1 wherever a length is kept:"
            " gradients vanish."
        ]
        return said if chi.max() < 1.0 else [*said, "It is above 1 only where lengths grow without end."]
    said = [
        "χ is the factor of a gradient's mean square per layer, at the length that the signal comes to. The nearer to"
        " the line χ = 1, the more layers a gradient passes before it has changed e-fold: the depth scale"
        " 1/|ln\u00a0χ|."
    ]
    if math.isinf(diagram.line.q[-1]):  # ReLU and its like
        said.append(
            f"Without biases and at σ_w = {line.sigma_w[0]:.4g} every length is kept; with biases it grows there, by"
            " σ_b² in each layer."
        )
    elif line.attracts.any() and in_view(diagram, ~line.attracts).any():
        at = int(line.attracts.argmax())
        said.append(
            f"Where the line is dotted a length is kept, but the smallest deviation from it grows; from q ="
            f" {line.q[at]:.2g} on (σ_w = {line.sigma_w[at]:.3g}, σ_b = {line.sigma_b[at]:.2g}) deviations shrink."
        )
    return said


def in_view(diagram: PhaseDiagram, part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A part of the critical line in view, nowhere if it is too short to be seen, `(points,)`."""
    line = diagram.line_in_view
    if not part.any():
        return part
    across, up = np.ptp(line.sigma_w[part]), np.ptp(line.sigma_b[part])
    seen = across > 0.01 * diagram.sigma_w[-1] or up > 0.01 * diagram.sigma_b[-1]
    return part if seen else np.zeros_like(part)


def correlation_words(curves: CorrelationCurves) -> list[str]:
    """What the curves mean, and which variances have none."""
    said = [
        "Where a curve lies above the diagonal two inputs become more alike with each layer, where it lies below they"
        " part; a dot marks where they end. Its slope at 1 is χ, the factor of a gradient's mean square."
    ]
    for one in curves.unsettled:
        said.append(f"At σ_w = {one.sigma_w:.3g}, σ_b = {one.sigma_b:.3g} lengths {one.fate}: there is no curve.")
    if all(curve.phase == "ordered" for curve in curves.curves):
        said.append("All of these are in the ordered phase: every two inputs become one, and gradients vanish.")
    return said


def spectrum_words(spectra: tuple[SampledSpectrum, ...]) -> list[str]:
    """What was sampled, and which weights come closer to an isometry."""
    first = spectra[0]
    said = [
        f"{first.networks} networks of {first.depth} layers of {first.width} units each, σ_w = {first.sigma_w:.4g},"
        f" σ_b = {first.sigma_b:.3g}, at the length q = {first.q:g} that a layer keeps. Where the values lie close"
        " together, a gradient is turned but not stretched."
    ]
    if first.zeros > 0.005:
        said.append(
            f"{100 * first.zeros:.2g} % of the values are 0 and not on the axis: in those directions no gradient"
            " passes."
        )
    return said


def card_rows(card: Card) -> list[tuple[str, str]]:
    """The card's numbers: what, and how much."""

    def at(value: float) -> str:
        return f"{0.0 if abs(value) < 1e-14 else value:.5g}"

    critical, begins = card.critical, card.attracts_from
    here = "never"
    if critical is not None:
        here = f"σ_w {math.sqrt(critical.sigma_w2):.4g}, σ_b {math.sqrt(critical.sigma_b2):.4g}"
    if card.keeps_any_length:
        stable = "any length is kept"
    elif begins is None:
        stable = "nowhere"
    elif begins.q < 1e-8:  # the smallest that is looked at
        stable = f"at every q, from σ_w {math.sqrt(begins.sigma_w2):.4g} on"
    else:
        stable = f"from q {begins.q:.3g}: σ_w {math.sqrt(begins.sigma_w2):.4g}"
    return [
        ("E[f],  E[f²],  E[f′²]", f"{at(card.mean)},  {at(card.second_moment)},  {at(card.slope_moment)}"),
        ("gain forward", at(card.forward_gain)),
        ("gain backward", at(card.backward_gain)),
        ("χ where lengths are kept", at(card.chi)),
        ("slope of the length map", at(card.length_slope)),
        ("spread per layer of n units", f"{card.kappa_f:.3g}/n forward, {card.kappa_b:.3g}/n back"),
        ("gradient per layer, LayerNorm", f"×{at(card.layer_norm_rate)}"),
        ("gradient per layer, BatchNorm", f"×{at(card.batch_norm_rate)}"),
        ("critical at this q", here),
        ("critical and attracting", stable),
    ]
