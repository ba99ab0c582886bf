"""The pictures of the theory of an activation: its card, phases, correlation map, singular values; and all gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradscope.activations import Activation
from gradscope.report._index import Picture
from gradscope.report._jobs import Job
from gradscope.report._theory_words import correlation_words, phase_words, spectrum_words
from gradscope.report._write import slug
from gradscope.report.figures import activation_card, correlation_map, gains, phase_diagram, singular_values
from gradscope.theory import (
    CardCurves,
    CorrelationCurves,
    CriticalPoint,
    GainTable,
    PhaseDiagram,
    SampledSpectrum,
    card_curves,
    correlation_curves,
    gain_table,
    sampled_spectrum,
)
from gradscope.theory import phase_diagram as phases

Jobs = list[tuple[Job, Picture]]


def theory_jobs(activation: Activation, layers: Sequence[tuple[float, float]] = ()) -> Jobs:
    """The four pictures of an elementwise activation, in the order in which they are best looked at.

    Args:
        activation: whose.
        layers: pairs (sigma_w, sigma_b) of a network of yours, one a layer: dots among the phases.

    Raises:
        ValueError: the activation is not elementwise, or layers are no such pairs.
    """
    name, spectra = activation.name, tuple(sampled_spectrum(activation, w) for w in ("independent", "orthogonal"))
    whole, plane, maps = card_curves(activation), phases(activation, layers), correlation_curves(activation)
    made: list[tuple[str, Any, Any, str, dict[str, Any]]] = [
        ("card", activation_card, whole, f"{name}: all that theory says", _of_card(whole)),
        ("phase", phase_diagram, plane, f"{name}: where a gradient is kept", _of_phases(plane)),
        ("cmap", correlation_map, maps, f"{name}: two inputs, one layer further", _of_maps(maps)),
        ("spectrum", singular_values, spectra, f"{name}: singular values of the Jacobian", _of_spectra(spectra)),
    ]
    return [
        (
            Job(f"{kind}__{slug(name)}.png", figure, argument),
            Picture(f"{kind}__{slug(name)}.png", figure.__name__, title, {"activation": name, **data}),
        )
        for kind, figure, argument, title, data in made
    ]


def gains_job(chosen: Sequence[str]) -> tuple[Job, Picture]:
    """The one picture of all gains, those chosen pointed out."""
    table = gain_table(chosen)
    return Job("gains.png", gains, table), Picture("gains.png", "gains", "Gains at q = 1", _of_gains(table))


def _of_card(curves: CardCurves) -> dict[str, Any]:
    card = curves.card
    numbers = (
        "q", "mean", "second_moment", "slope_moment", "forward_gain", "backward_gain", "chi", "length_slope",
        "kappa_f", "kappa_b", "layer_norm_rate", "batch_norm_rate",
    )  # fmt: skip
    return {
        **{name: getattr(card, name) for name in numbers},
        "critical": _of_point(card.critical),
        "attracts_from": _of_point(card.attracts_from),
        "fates": [
            {
                "title": fate.title,
                "gain": fate.gain,
                "settles_at": fate.settles.q,
                "chi": fate.chi,
                "log10_q": curve.log10_q.tolist(),
                "log10_p": curve.log10_p.tolist(),
            }
            for fate, curve in zip(card.fates, curves.fates, strict=True)
        ],
        "words": list(card.advice),
    }


def _of_point(point: CriticalPoint | None) -> dict[str, Any] | None:
    if point is None:
        return None
    roots = {"sigma_w": math.sqrt(point.sigma_w2), "sigma_b": math.sqrt(point.sigma_b2)}
    return {"q": point.q, **roots, "length_slope": point.slope, "attracts": point.attracts}


def _of_phases(diagram: PhaseDiagram) -> dict[str, Any]:
    line = diagram.line_in_view
    return {
        "line": {name: getattr(line, name).tolist() for name in ("q", "sigma_w", "sigma_b", "attracts")},
        "marks": [{"title": m.title, "sigma_w": m.sigma_w, "sigma_b": m.sigma_b} for m in diagram.marks],
        "layers": diagram.layers.tolist(),
        "words": phase_words(diagram),
    }


def _of_maps(curves: CorrelationCurves) -> dict[str, Any]:
    return {
        "curves": [
            {
                **{name: getattr(one, name) for name in ("sigma_w", "sigma_b", "q", "phase", "chi")},
                "c": one.c.tolist(),
                "c_after": one.after.tolist(),
                "c_star": one.fixed,
            }
            for one in curves.curves
        ],
        "unsettled": [{"sigma_w": u.sigma_w, "sigma_b": u.sigma_b, "lengths": u.fate} for u in curves.unsettled],
        "words": correlation_words(curves),
    }


def _of_spectra(spectra: tuple[SampledSpectrum, ...]) -> dict[str, Any]:
    numbers = ("weights", "depth", "width", "networks", "sigma_w", "sigma_b", "q", "mean_square", "relative_variance")
    return {
        "spectra": [
            {
                **{name: getattr(one, name) for name in numbers},
                "zeros": one.zeros,
                "mean_square_expected": one.moments.mean,
                "relative_variance_expected": one.moments.relative_variance,
                "log10_edges": one.edges.tolist(),
                "density": one.density.tolist(),
                "log10_s": one.log10_s.tolist(),
                "density_expected": one.expected.tolist(),
            }
            for one in spectra
        ],
        "words": spectrum_words(spectra),
    }


def _of_gains(table: GainTable) -> dict[str, Any]:
    numbers = ("mean", "forward_gain", "backward_gain", "chi", "length_slope", "batch_norm_rate", "torch_gain")
    rows = [{"activation": row.name, **{name: getattr(row, name) for name in numbers}} for row in table.rows]
    return {"chosen": list(table.chosen), "gains": rows}
