"""The singular values of sampled networks' Jacobians beside the density that theory gives them.

A network of `depth` layers, h_{l+1} = W f(h_l) + b, is drawn whole, run on one input of the length q, and its Jacobian
dh_depth/dh_0 = Π W f'(h_l) decomposed: the slopes are those of a real pass. Densities are per decade of s, over all
singular values, those that are 0 included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation
from gradscope.theory._critical import critical_at
from gradscope.theory._gain import elementwise, gain
from gradscope.theory._spectrum import JacobianMoments, Weights, jacobian_density, jacobian_moments

Array = NDArray[np.float64]

_BINS, _POINTS = 32, 65
_TAIL = 0.04
"""The share of the sampled singular values above 0, the smallest, that the histogram leaves out: a long thin tail."""
_MARGIN = 0.12
"""Decades by which the theory's curve goes beyond the histogram: finite networks do not end where it does."""
_ISOMETRY = 1e-9
"""Below this relative variance every singular value is the same, and there is no density."""


@dataclass(frozen=True, eq=False)
class SampledSpectrum:
    """Singular values of Jacobians, sampled and expected.

    Attributes:
        activation: of every layer.
        weights: `independent` (Gaussian) or `orthogonal`.
        depth, width, networks: of what was sampled.
        sigma_w, sigma_b: its variances' roots.
        q: mean square of its pre-activations, a fixed point.
        singular_values: of all networks, `(networks·width,)`.
        edges: of the histogram's bins, as log10 of s, `(bins + 1,)`.
        density: of the sampled s, per decade, `(bins,)`.
        log10_s: where theory's density is known, `(points,)`.
        expected: that density, per decade, `(points,)`; NaN at dynamical isometry, where it is a spike.
        moments: theory's mean and relative variance of s².
    """

    activation: Activation
    weights: Weights
    depth: int
    width: int
    networks: int
    sigma_w: float
    sigma_b: float
    q: float
    singular_values: Array
    edges: Array
    density: Array
    log10_s: Array
    expected: Array
    moments: JacobianMoments

    @property
    def zeros(self) -> float:
        """Share of the sampled singular values that are 0: as many directions pass no gradient."""
        return float(np.mean(self.singular_values == 0.0))

    @property
    def mean_square(self) -> float:
        """Of the sampled singular values."""
        return float(np.mean(np.square(self.singular_values)))

    @property
    def relative_variance(self) -> float:
        """Of the squares of the sampled singular values, over their mean's square."""
        return float(np.var(np.square(self.singular_values))) / self.mean_square**2


def sampled_spectrum(
    activation: str | Activation | None,
    weights: Weights,
    *,
    depth: int = 8,
    width: int = 256,
    networks: int = 4,
    seed: int = 0,
) -> SampledSpectrum:
    """Samples networks at the critical point of the length 1, or without biases under the forward gain.

    Args:
        activation: a name as `activations.get` takes it; elementwise.
        weights: `independent` or `orthogonal`.
        depth: layers of each network, at least 1.
        width: units of each layer, at least 2.
        networks: how many, at least 1.
        seed: of the weights and inputs.

    Raises:
        ValueError: an argument out of its range.
    """
    found = elementwise(activation)
    for name, value, least in (("width", width, 2), ("networks", networks, 1)):
        if value < least:
            raise ValueError(f"{name}={value!r} must be at least {least}")
    point, q = critical_at(found), 1.0
    sigma_w2, sigma_b2 = (gain(found) ** 2, 0.0) if point is None else (point.sigma_w2, point.sigma_b2)
    moments = jacobian_moments(found, depth, sigma_w2=sigma_w2, q=q, weights=weights)
    rng = np.random.default_rng(seed)
    drawn = [_one(found, weights, depth, width, sigma_w2, sigma_b2, q, rng) for _ in range(networks)]
    s = np.concatenate(drawn)
    edges, density = _histogram(s)
    log10_s = np.linspace(edges[0], edges[-1] + _MARGIN, _POINTS)
    expected = np.full(_POINTS, np.nan)
    if moments.relative_variance > _ISOMETRY:
        at = 10.0**log10_s
        per_unit = jacobian_density(found, depth, at, sigma_w2=sigma_w2, q=q, weights=weights)
        expected = per_unit * at * math.log(10.0)
    return SampledSpectrum(
        activation=found,
        weights=weights,
        depth=depth,
        width=width,
        networks=networks,
        sigma_w=math.sqrt(sigma_w2),
        sigma_b=math.sqrt(sigma_b2),
        q=q,
        singular_values=s,
        edges=edges,
        density=density,
        log10_s=log10_s,
        expected=expected,
        moments=moments,
    )


def _one(
    activation: Activation,
    weights: Weights,
    depth: int,
    width: int,
    sigma_w2: float,
    sigma_b2: float,
    q: float,
    rng: np.random.Generator,
) -> Array:
    """The singular values of one network's Jacobian, `(width,)`: as many are 0 as one layer has dead units.

    Rounding makes them 1e-17, which is also what a Gaussian network's smallest may be.
    """
    h = rng.normal(size=width)
    h *= math.sqrt(q * width) / np.linalg.norm(h)
    jacobian, dead = np.eye(width), 0
    for _ in range(depth):
        w = math.sqrt(sigma_w2) * _matrix(weights, width, rng)
        slopes = activation.derivative(h)
        jacobian, dead = w @ (slopes[:, None] * jacobian), max(dead, int(np.sum(slopes == 0.0)))
        h = w @ activation.function(h) + rng.normal(0.0, math.sqrt(sigma_b2), width)
    s = np.asarray(np.linalg.svd(jacobian, compute_uv=False))
    s[width - dead :] = 0.0
    return s


def _matrix(weights: Weights, width: int, rng: np.random.Generator) -> Array:
    """Of independent N(0, 1/width), or Haar-distributed orthogonal, `(width, width)`."""
    drawn = rng.normal(size=(width, width))
    if weights == "independent":
        return np.asarray(drawn / math.sqrt(width))
    orthogonal, upper = np.linalg.qr(drawn)
    return np.asarray(orthogonal * np.sign(np.diag(upper)))  # without the signs it is not uniform (Mezzadri 2007)


def _histogram(s: Array) -> tuple[Array, Array]:
    """Edges as log10 of s, and the density per decade; zeros count in the whole alone."""
    log10_s = np.log10(s[s > 0.0])
    low, high = float(np.quantile(log10_s, _TAIL)), float(log10_s.max())
    if high - low < 0.02:  # dynamical isometry
        low, high = low - 0.05, high + 0.05
    counts, edges = np.histogram(log10_s, bins=_BINS, range=(low, high))
    return edges, counts / (s.size * (edges[1] - edges[0]))
