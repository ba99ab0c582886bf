"""Saxe et al. (2013), Pennington et al. (2017): the singular values of a deep network's Jacobian.

Of the squared singular values s² of J = Π D_l W_l,

    variance/mean² = L·(μ₂/μ₁² − 1 − s₁),   μ_k = E[f'^{2k}],   s₁ = 0 for orthogonal weights, −1 for Gaussian ones

so that orthogonal linear networks are isometric at any depth, orthogonal tanh networks nearly so at a small enough
length q* on the critical line, Gaussian ones never, and ReLU networks neither way, for there μ₂/μ₁² = 2.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.papers.nets import draw, linears, plain, sphere
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import theory
from gradscope.report._style import BLUE, GREEN, INK, VERMILION, styled

CITATION = (
    "Saxe, McClelland & Ganguli (2013), Exact solutions to the nonlinear dynamics of learning in deep linear neural "
    "networks, ICLR 2014; Pennington, Schoenholz & Ganguli (2017), Resurrecting the sigmoid in deep learning through "
    "dynamical isometry, NeurIPS"
)

Array = NDArray[np.float64]
LENGTH = 1.0 / 64.0
"""q* of the tanh networks."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU}
COLOURS = {"linear": GREEN, "tanh": BLUE, "relu": VERMILION}
PUBLISHED = {
    ("linear", True): "all singular values are 1 (Saxe et al.)",
    ("linear", False): "variance L: ill-conditioned with depth",
    ("tanh", True): "isometric at any depth as q* → 0",
    ("tanh", False): "never isometric: grows with L",
    ("relu", True): "never isometric: grows with L",
    ("relu", False): "never isometric",
}


class Size(NamedTuple):
    width: int
    depths: tuple[int, ...]
    seeds: int


FULL, REDUCED = Size(300, (10, 20, 40), 6), Size(150, (5, 10), 12)


def variances(name: str) -> tuple[float, float, float]:
    """(sigma_w2, sigma_b2, q): critical, of the length that is kept."""
    if name == "tanh":
        point = theory.critical_at("tanh", LENGTH)
        assert point is not None
        return point.sigma_w2, point.sigma_b2, LENGTH
    return (2.0, 0.0, 1.0) if name == "relu" else (1.0, 0.0, 1.0)


@functools.cache
def jacobians(name: str, orthogonal: bool, reduced: bool) -> tuple[Array, Array]:
    """Variance/mean² of the squared singular values, `(seeds, depths)`, and the singular values of one network."""
    size = REDUCED if reduced else FULL
    sigma_w2, sigma_b2, q = variances(name)
    spreads = []
    for seed in range(size.seeds):
        model = plain([size.width] * (size.depths[-1] + 1), ACTIVATIONS[name], bias=True, dtype=torch.float64)
        draw(model, sigma_w2, sigma_b2, seed=seed, orthogonal=orthogonal)
        h = sphere(1, size.width, (q - sigma_b2) / sigma_w2, seed=1000 + seed, dtype=torch.float64)[0]
        jacobian, found = torch.eye(size.width, dtype=torch.float64), []
        for depth, layer in enumerate(linears(model), start=1):
            jacobian, h = _passed(layer, ACTIVATIONS[name](), jacobian, h)
            if depth in size.depths:
                found.append(_relative_variance(jacobian))
            if depth == size.depths[0] and seed == 0:
                singular = torch.linalg.svdvals(jacobian).numpy()
        spreads.append(found)
    return np.array(spreads), singular


@torch.no_grad()
def _passed(layer: nn.Linear, activation: nn.Module, jacobian: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """J and the signal after one layer and its activation, whose slope is torch's own."""
    pre = layer(h)
    with torch.enable_grad():
        point = pre.clone().requires_grad_()
        out = activation(point)
        (slope,) = torch.autograd.grad(out.sum(), point)
    return slope[:, None] * (layer.weight @ jacobian), out.detach()


def _relative_variance(jacobian: Tensor) -> float:
    """Of the eigenvalues of JᵀJ, without them: their mean is |J|²/n, that of their squares |JᵀJ|²/n."""
    mean = jacobian.square().sum() / len(jacobian)
    of_squares = (jacobian.T @ jacobian).square().sum() / len(jacobian)
    return round((of_squares / mean.square() - 1.0).item(), 12)


def expected(name: str, orthogonal: bool, depth: int) -> float:
    sigma_w2, _, q = variances(name)
    known = theory.jacobian_moments(
        None if name == "linear" else name,
        depth,
        sigma_w2=sigma_w2,
        q=q,
        weights="orthogonal" if orthogonal else "independent",
    )
    return round(known.relative_variance, 12)  # of orthogonal linear layers exactly 0


def reproduce(reduced: bool = False) -> list[Row]:
    size, rows = REDUCED if reduced else FULL, []
    depths = np.array(size.depths)
    for name, orthogonal in PUBLISHED:
        spreads = jacobians(name, orthogonal, reduced)[0]
        curve = np.array([expected(name, orthogonal, depth) for depth in size.depths])
        errors = spreads.std(axis=0, ddof=1) / math.sqrt(size.seeds)
        rows.append(
            row(
                f"{name}, {'orthogonal' if orthogonal else 'Gaussian'} weights: variance/mean² of s²",
                published=PUBLISHED[name, orthogonal],
                theory=curve,
                measured=spreads.mean(axis=0),
                # E Σ s⁴ of a product of L finite matrices is that of free ones times 1 + (1 to 3)·L/2n.
                tolerance=5.0 * errors + 1.5 * depths / size.width * (curve + (not orthogonal)) + 1e-9,
                because="5 standard errors over networks, measured; 3·L/2n of finite matrices",
                scaled_down=f"{size.width} units, {' and '.join(map(str, size.depths))} layers, {size.seeds} networks",
            )
        )
    return rows


@styled
def figure(reduced: bool = False) -> Figure:
    size = REDUCED if reduced else FULL
    fig, axes = panels(
        "Saxe et al. 2013, Pennington et al. 2017: singular values of the Jacobian",
        f"{size.width} units; markers: measured here, filled: orthogonal weights, hollow: Gaussian; dashed: theory",
        "variance/mean² of s², against depth",
        f"tanh at q* = 1/64, {size.depths[0]} layers: density of s",
    )
    for name, orthogonal in PUBLISHED:
        if (name, orthogonal) == ("linear", True):
            continue  # 0, which has no place on a log axis
        colour, every = COLOURS[name], np.arange(1, size.depths[-1] + 1)
        axes[0].plot(
            every, [expected(name, orthogonal, int(d)) for d in every], color=INK, linestyle=DASHED, linewidth=1
        )
        seen = jacobians(name, orthogonal, reduced)[0].mean(axis=0)
        label = f"{name}, {'orthogonal' if orthogonal else 'Gaussian'}"
        inside = colour if orthogonal else "white"
        axes[0].plot(size.depths, seen, "o", color=colour, markerfacecolor=inside, label=label)
    axes[0].set_yscale("log")
    axes[0].set_ylim(3e-3, 300.0)
    axes[0].set_xlabel("layers")
    axes[0].legend(loc="center right", fontsize=7.5)
    sigma_w2, _, q = variances("tanh")
    for orthogonal, colour in ((False, VERMILION), (True, BLUE)):
        singular = jacobians("tanh", orthogonal, reduced)[1]
        label = "orthogonal" if orthogonal else "Gaussian"
        axes[1].hist(singular, bins=30, density=True, color=colour, alpha=0.45, label=label)
        s = np.linspace(0.02, 1.05 * singular.max(), 120)
        density = theory.jacobian_density(
            "tanh", size.depths[0], s, sigma_w2=sigma_w2, q=q, weights="orthogonal" if orthogonal else "independent"
        )
        axes[1].plot(s, density, color=INK, linestyle=DASHED, linewidth=1.2)
    axes[1].set_ylim(0.0, 2.5)
    axes[1].set_xlabel("singular value s")
    axes[1].legend(loc="upper right")
    return fig
