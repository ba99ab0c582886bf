"""Dong et al. (2021): attention alone makes all tokens alike, doubly exponentially with depth; skips prevent it.

Section 2, theorem 2.2. Let res(X) be X less its mean over the tokens. Softmax does not see what all keys share, so that
two queries' weights differ only by res(X) W res(X)ᵀ: the next residual is a product of three, res(X') ∝ res(X)³. Over T
tokens of E features, mean square q and mean product k, with W_q, W_k, W_v, W_o of variance v/E,

    s² = v_q v_k q (q − k),   t² = v_q v_k k (q − k)
    q' = v_v v_o (k + (q − k)·(e^{s²}/(T − 1 + e^{s²}) + s²/E)),   k' = v_v v_o (k + (q − k)·(e^{t²}/T + t²/E))

and ρ = k/q is how alike they are (`gradscope.theory.prediction._attention`; Noci et al. 2022; the terms s²/E and t²/E
are not there: a query's weights lean towards the tokens along one direction, and so does their mean).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.papers.nets import generator
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import init
from gradscope.report._style import BLUE, INK, VERMILION, styled

CITATION = "Dong, Cordonnier & Loukas (2021), Attention is not all you need: pure attention loses rank, ICML"

Array = NDArray[np.float64]
DEPTH = 12
OUT = 1.0 / 3.0
"""v_o of torch's default; its q, k, v are drawn as one Xavier matrix, v = 1/2 each."""


class Size(NamedTuple):
    width: int
    tokens: int
    seeds: int


FULL, REDUCED = Size(512, 128, 6), Size(256, 64, 4)


class Attend(nn.Module):
    """Self-attention without biases; with a skip, of the normalized tokens and added to them."""

    def __init__(self, width: int, scheme: str, *, skip: bool, seed: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1, bias=False, batch_first=True)
        init.initialize(self.attention, scheme, generator=generator(seed))
        self.norm = nn.LayerNorm(width) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        given = x if self.norm is None else self.norm(x)
        out: Tensor = self.attention(given, given, given, need_weights=False)[0]
        return out if self.norm is None else x + out


def moments(x: Tensor) -> tuple[float, float]:
    """(q, k): mean square of the tokens `(1, T, E)`, mean product of two of them, per feature."""
    tokens, width = x.shape[1:]
    square, total = x.double().square().sum().item(), x.double().sum(1).square().sum().item()
    return square / (tokens * width), (total - square) / (tokens * (tokens - 1) * width)


@functools.cache
def alikeness(skip: bool, reduced: bool) -> tuple[Array, Array]:
    """q and ρ after 0, 1, … layers, `(seeds, layers + 1)`."""
    size, found = REDUCED if reduced else FULL, []
    scheme = "lecun_normal" if skip else "torch_default"
    for seed in range(size.seeds):
        x = torch.randn(1, size.tokens, size.width, generator=generator(seed))
        of_layers = [moments(x)]
        with torch.no_grad():
            for layer in range(DEPTH):
                x = Attend(size.width, scheme, skip=skip, seed=1000 + DEPTH * seed + layer)(x)
                of_layers.append(moments(x))
        found.append(of_layers)
    q, k = np.moveaxis(np.array(found), 2, 0)
    return q, k / q


def expected(skip: bool, size: Size) -> tuple[Array, Array]:
    """The same by the map of the module's docstring, `(layers + 1,)`."""
    pairs = list(_map(skip, size))
    q, k = np.array(pairs).T
    return q, k / q


def _map(skip: bool, size: Size) -> Iterator[tuple[float, float]]:
    tokens, width, q, k = size.tokens, size.width, 1.0, 0.0
    yield q, k
    for _ in range(DEPTH):
        given_q, given_k = (1.0, k / q) if skip else (q, k)
        logits, values = (1.0, 1.0) if skip else (0.25, 0.5 * OUT)
        s2, t2 = logits * given_q * (given_q - given_k), logits * given_k * (given_q - given_k)
        share = math.exp(s2) / (tokens - 1 + math.exp(s2)) + s2 / width
        out_q = values * (given_k + (given_q - given_k) * share)
        out_k = values * (given_k + (given_q - given_k) * (math.exp(t2) / tokens + t2 / width))
        q, k = (q + out_q, k + out_k) if skip else (out_q, out_k)
        yield q, k


def residual_power() -> float:
    """d ln |res(X')| / d ln |res(X)| of one layer, for tokens that nearly agree."""
    width, tokens, residuals = 128, 16, []
    shared = torch.randn(width, generator=generator(1), dtype=torch.float64)
    own = torch.randn(tokens, width, generator=generator(2), dtype=torch.float64)
    layer = Attend(width, "lecun_normal", skip=False, seed=3).double()
    for size in (0.002, 0.001):
        with torch.no_grad():
            out = layer((shared + size * own)[None])
        residuals.append((out - out.mean(1, keepdim=True)).norm().item())
    return math.log(residuals[0] / residuals[1]) / math.log(2.0)


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    rows = []
    alone, skipped = (alikeness(skip, reduced) for skip in (False, True))
    curve, skip_curve = (expected(skip, size) for skip in (False, True))
    scaled = f"{size.tokens} tokens of {size.width} features, one head, {size.seeds} networks; random tokens, not text"

    def error(values: Array) -> Array:
        return np.asarray(5.0 * values.std(axis=0, ddof=1) / math.sqrt(size.seeds))

    rows.append(
        row(
            "attention alone, torch's default weights: how alike two tokens are (ρ) after 1, 2 and 3 layers",
            published="rank 1 within a few layers",
            theory=curve[1][1:4],
            measured=alone[1][:, 1:4].mean(axis=0),
            tolerance=error(alone[1])[1:4] + 4.0 / size.tokens * (1.0 - curve[1][1:4]) + 1e-6,
            because="5 standard errors, measured, 4/T of 1 − ρ for the softmax's denominator, float32",
            scaled_down=scaled,
        )
    )
    rows.append(
        row(
            "the power of the residual that one layer makes of a small residual",
            published="3: cubic, so doubly exponential with depth (theorem 2.2)",
            theory=3.0,
            measured=residual_power(),
            tolerance=0.02,
            because="residuals of 0.002 and 0.001 of what is shared: the next order adds a few times that",
            scaled_down="16 tokens of 128 features",
        )
    )
    largest = math.e / size.tokens  # e^{s²}/T, s² ≤ 1, the weight of what the map leaves out
    rows.append(
        row(
            f"with skips and LayerNorm: ρ and the mean square after {DEPTH} layers",
            published="skip connections stop the collapse (section 3)",
            theory=[skip_curve[1][-1], skip_curve[0][-1]],
            measured=[skipped[1][:, -1].mean(), skipped[0][:, -1].mean()],
            tolerance=[
                error(skipped[1])[-1] + largest * skip_curve[1][-1],
                error(skipped[0])[-1] + largest * skip_curve[0][-1],
            ],
            because="5 standard errors, measured, and e/T, the size of the terms that are left out",
            scaled_down=scaled,
        )
    )
    return rows


@styled
def figure(reduced: bool = False) -> Figure:
    size, layers = REDUCED if reduced else FULL, np.arange(DEPTH + 1)
    fig, (axes,) = panels(
        "Dong et al. 2021: attention",
        f"{size.tokens} tokens of {size.width} features; dashed: theory",
        "1 − ρ: how far tokens are from alike",
    )
    for skip, label, colour in ((False, "attention alone", VERMILION), (True, "with skips and LayerNorm", BLUE)):
        far = 1.0 - alikeness(skip, reduced)[1].mean(axis=0)
        axes.plot(layers, np.maximum(far, 1e-8), "o-", color=colour, label=label)
        axes.plot(layers, np.maximum(1.0 - expected(skip, size)[1], 1e-8), color=INK, linestyle=DASHED)
    axes.set_yscale("log")
    axes.set_xlabel("layers passed (float32 ends at 10⁻⁷)")
    axes.legend(loc="center right")
    return fig
