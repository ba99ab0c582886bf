"""The picture of a comparison: what its axes hold, and what it says of sites without a size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

from gradscope import probe
from gradscope.recording import Baseline, baseline_of, compare
from gradscope.report._comparison_report import draw_comparison
from gradscope.report._style import BLUE, VERMILION
from gradscope.report.figures import comparison

X = torch.linspace(-1, 1, 8 * 16).reshape(8, 16).sin()


def kept(factor: float = 1.0) -> Baseline:
    torch.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(3) for part in (nn.Linear(16, 16), nn.Tanh())], nn.Linear(16, 4))
    with torch.no_grad():
        model[2].weight *= factor  # type: ignore[operator, union-attr]
    return baseline_of(probe(model, X))


def said(figure: Figure) -> str:
    return figure.texts[1].get_text()


def test_a_profile_is_drawn_twice_and_the_difference_below() -> None:
    a, b = kept(), kept(2.0)
    figure = comparison(a, b, "activation")
    above, below = figure.axes
    for line, side in zip((above.lines[0], above.lines[2]), (a, b), strict=True):
        assert np.allclose(np.asarray(line.get_ydata()), [v[0] for v in side.sizes["activation"].values()])
    sticks = below.collections[0].get_segments()  # type: ignore[attr-defined]
    away = [float(b.sizes["activation"][n][0] - a.sizes["activation"][n][0]) for n in a.sizes["activation"]]
    assert np.allclose([stick[1, 1] for stick in sticks], away)
    assert [label.get_text() for label in below.get_xticklabels()] == list(a.sizes["activation"])
    worst = list(a.sizes["activation"])[int(np.argmax(np.abs(away)))]
    assert said(figure) == f"Farthest apart at {worst}: a factor of {10 ** away[int(np.argmax(np.abs(away)))]:.4g}."


def test_of_parameters_a_line_joins_the_matrices_and_biases_are_points() -> None:
    a = kept()
    matrices, biases = comparison(a, kept(2.0), "weight_grad").axes[0].lines[:2]
    names = list(a.sizes["weight_grad"])
    assert [names[int(x)] for x in matrices.get_xdata()] == [n for n in names if n.endswith("weight")]  # type: ignore[union-attr]
    assert [names[int(x)] for x in biases.get_xdata()] == [n for n in names if n.endswith("bias")]  # type: ignore[union-attr]
    assert biases.get_linestyle() == "None"


@pytest.mark.parametrize(
    ("factor", "mark", "sentence"), [(0.0, "0", "became zero."), (math.nan, "NaN", "became not finite.")]
)
def test_what_has_lost_its_size_is_marked_at_the_foot_and_said(factor: float, mark: str, sentence: str) -> None:
    figure = comparison(kept(), kept(factor), "weight")
    texts = figure.axes[0].texts
    assert [(text.get_text(), to_hex(text.get_color())) for text in texts] == [(mark, VERMILION.lower())]  # type: ignore[arg-type]
    assert said(figure) == f"Where both have a size they agree. 2.weight {sentence}"
    back = comparison(kept(factor), kept(), "weight")
    assert [to_hex(text.get_color()) for text in back.axes[0].texts] == [BLUE.lower()]  # type: ignore[arg-type]


def test_only_what_differs_is_drawn_and_the_band_of_several_seeds_with_it(tmp_path: Path) -> None:
    a, b = kept(), kept(2.0)
    bands = {"weight": {name: np.array([0.1]) for name in a.sizes["weight"]}}
    found = compare(a, b, bands=bands)  # type: ignore[arg-type]
    assert draw_comparison(a, b, found, tmp_path, bands=bands) == ["compared__weight.png"]  # type: ignore[arg-type]
    below = comparison(a, b, "weight", allowed=bands["weight"]).axes[1]
    assert [bar.get_height() for bar in below.patches] == pytest.approx([0.2] * len(a.sizes["weight"]))
