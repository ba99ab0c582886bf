"""What `jacobian_spectrum` returns: singular values or a quadrature of them, their moments, and theory's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.theory import JacobianMoments

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class JacobianSpectrum:
    """Singular values s of a model's Jacobian ∂output/∂input, one for each sample of a batch.

    A mean over s² is one over the inputs' directions: |J v|² for a v of length 1 anywhere. Directions that J sends to 0
    count, also those that are there because the output has fewer entries than the input.

    Attributes:
        batch: samples.
        inputs, outputs: entries of one sample's input and output.
        singular_values: falling, `(batch, min(inputs, outputs))`; None where they were not computed one by one.
        mean_square: mean of s², over directions and samples: the factor of a gradient's mean square on its way from
            the output to the input.
        mean_square_error: its standard error from the random probes; 0 where singular values are exact.
        relative_variance: variance of s² over the square of its mean, in each sample, and its mean over them; 0 is
            dynamical isometry. NaN where all s are 0.
        relative_variance_error: its standard error.
        largest: the largest s of all samples; of probes a value from below, with a singular value within
            `largest_error` of it.
        largest_error: 0 where exact.
        smallest: the smallest s; None where they were not computed one by one.
        nodes, weights: a quadrature of the density of s over all directions and samples, `(nodes,)`, rising; the
            weights sum to 1. Exact singular values where there are.
        theory: mean and relative variance of s² that theory expects of a plain chain with these weights and lengths;
            None of any other model.
    """

    batch: int
    inputs: int
    outputs: int
    singular_values: Array | None
    mean_square: float
    mean_square_error: float
    relative_variance: float
    relative_variance_error: float
    largest: float
    largest_error: float
    smallest: float | None
    nodes: Array
    weights: Array
    theory: JacobianMoments | None

    def share_below(self, singular_value: ArrayLike) -> Array:
        """The share of directions with an s at or below the given ones, of any shape."""
        passed = np.searchsorted(self.nodes, np.asarray(singular_value, dtype=np.float64), side="right")
        return np.concatenate([[0.0], np.cumsum(self.weights)])[passed]

    def density(self, singular_value: ArrayLike, width: float = 0.05) -> Array:
        """The density of s at the given ones: every node a Gaussian whose deviation is `width`·√mean_square.

        Nodes at 0 are left out, as in `theory.jacobian_density`.
        """
        at = np.asarray(singular_value, dtype=np.float64)
        sd = width * math.sqrt(self.mean_square)
        some = self.nodes > 1e-6 * self.largest
        away = (at[..., None] - self.nodes[some]) / sd
        return np.asarray(np.exp(-0.5 * away**2) @ self.weights[some] / (sd * math.sqrt(2.0 * math.pi)))

    def __str__(self) -> str:
        samples = "one sample" if self.batch == 1 else f"mean over {self.batch} samples"
        expected = (None, None) if self.theory is None else (self.theory.mean, self.theory.relative_variance)
        rows = [
            ("mean of s²", _with_error(self.mean_square, self.mean_square_error), expected[0]),
            ("variance of s²/mean²", _with_error(self.relative_variance, self.relative_variance_error), expected[1]),
            ("largest s", _with_error(self.largest, self.largest_error), None),
            *([] if self.smallest is None else [("smallest s", f"{self.smallest:.4g}", None)]),
        ]
        lines = [
            f"  {name:21} {value}" + ("" if theory is None else f", theory {theory:.4g}")
            for name, value, theory in rows
        ]
        return "\n".join([f"Jacobian of {self.outputs} outputs by {self.inputs} inputs, {samples}", *lines])


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g} ± {error:.1g}" if error > 0.0 else f"{value:.4g}"
