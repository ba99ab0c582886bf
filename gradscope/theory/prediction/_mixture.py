"""Averages over the keys that each query sees, by class of position: forward the values', back their gradients.

The weights of a query are uniform up to their own spread: with n keys, E A_ij = 1/n, and of two queries, that see n and
m ≤ n, E Σ_j A_ij A_i'j is `between`/n instead of 1/n. Uniform averages are U·V·Uᵀ, whatever V is; what the weights'
spread adds, of one query or two, is a share of the variance of what both of them see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._places import Array, Places, classes
from gradscope.theory.prediction._visible import Visible


@dataclass(frozen=True, eq=False)
class Mixture:
    """An attention's weights.

    Attributes:
        queries, keys: positions of each class.
        uniform: of each class of queries, what each class of keys has of its weights.
        counts: how many keys a query sees.
        spread: variance of a query's logits over the keys.
        own: E Σ_j A_ij², less 1/n: of one query.
        common: Σ_j A_ij A_i'j of uniform weights, of two different queries: 1/n where the one with n sees all of it.
        overlap: E Σ_j A_ij A_i'j, less that.
        leaning: what all queries share of a direction, which is added to both forward.
    """

    queries: Array
    keys: Array
    uniform: Array
    counts: Array
    spread: float
    own: Array
    common: Array
    overlap: Array
    leaning: tuple[float, float]

    @property
    def _narrow(self) -> Array:
        """Σ_j A_j²(1 − 2A_j + Σ_i A_i²) is smaller than S(1 − S) by this, where the logits' variance is small."""
        return 1.0 / (1.0 + 2.0 * self.spread / self.counts)

    def _spread(self, same: Array, full: Array) -> Array:
        """Variance over the keys that a query sees."""
        mixed, n = np.diag(self.uniform @ full @ self.uniform.T), self.counts
        return np.maximum((self.uniform @ same - mixed) * n / np.maximum(n - 1.0, 1e-9), 0.0) * (n > 1.0)

    def varied(self, values: Alike) -> Array:
        """Variance of these over the keys that a query sees, by class of query."""
        places = values.at(self.keys)
        return self._spread(places.same, places.full()[0])

    def averaged(self, values: Alike) -> Alike:
        """What the queries get of them."""
        places = values.at(self.keys)
        fewest, most = self.counts[:, None] <= self.counts[None, :], 1.0 - self.common
        tables = []
        for same, full, own in zip((places.same, places.input), places.full(), (self.own, None), strict=True):
            mixed, spread = self.uniform @ full @ self.uniform.T, self._spread(same, full)
            both = np.where(fewest, spread[:, None], spread[None, :])  # of two queries: over what both see
            pairs = mixed + np.minimum(self.overlap + self.leaning[1], most) * both
            alone = np.diag(pairs) if own is None else None
            if own is not None:
                alone = np.diag(mixed) + np.minimum(own + self.leaning[0], 1.0 - 1.0 / self.counts) * spread
            tables += [alone, pairs]
        return Alike.of(Places(self.queries, *tables))

    def of_values(self, gradient: Alike) -> Places:
        """The gradient of the values."""
        places = gradient.at(self.queries)
        back = self.uniform * self.queries[:, None] / self.keys[None, :]  # of one key, over a class of queries
        own, other = places.full()
        pairs = np.outer(self.counts, self.counts)
        seen = pairs * self.common  # keys that both see
        gain = np.where(seen > 0.0, self.overlap / np.maximum(self.common, 1e-300), 0.0)
        extra = places.position * gain
        each = places.same * self.own * self.counts - np.diag(extra)
        extra = extra + np.diag(each / self.queries)
        through = back.T @ own @ back
        more, less = (back.T @ one @ back for one in (extra, extra * seen / np.maximum(pairs - seen, 1e-9)))
        across = back.T @ other @ back
        again = back.T @ (np.where(np.eye(len(other)) > 0.0, other, places.both) * gain) @ back
        return Places(self.keys, np.diag(through + more), through - less, np.diag(across + again), across)

    def of_logits(self, gradient: Alike, values: Alike) -> Array:
        """Σ_j of the squares of the gradients of a query's logits, by class: a single key has no choice."""
        share = np.clip(self.own + 1.0 / self.counts, 0.0, 1.0)
        return gradient.at(self.queries).same * self.varied(values) * share * (1.0 - share) * self._narrow

    def together(self, keys: Alike, values: Alike) -> Array:
        """Of two tokens that a query sees, Σ_jj' of what keys have in common times what values have, over n².

        Less what it is where all tokens are equally alike, which `of_logits` has: tokens that are alike in groups, as
        early ones are under a causal mask, pull a query the same way.
        """
        n, u = self.counts, self.uniform
        (k, k_pairs), (v, v_pairs) = self._centred(keys), self._centred(values)
        k_spread, v_spread, pairs = self.varied(keys), self.varied(values), k_pairs * v_pairs
        found = np.einsum("ic,icd,id->i", u, pairs, u)
        found += (u * (k * v - np.diagonal(pairs, axis1=1, axis2=2))).sum(1) / n
        excess: Array = np.maximum(found - (n - 1.0) / n**2 * k_spread * v_spread, 0.0)
        return excess

    def _centred(self, values: Alike) -> tuple[Array, Array]:
        """Mean products of what is left of them when a query's mean is taken away: of each, of two different ones."""
        places = values.at(self.keys)
        across = self.uniform @ places.full()[0]
        whole = (across * self.uniform).sum(1)
        pairs = places.position - across[:, :, None] - across[:, None, :] + whole[:, None, None]
        return places.same - 2.0 * across + whole[:, None], pairs

    def of_queries(self, square: Array) -> Alike:
        """Gradients of these mean squares, which have nothing to do with each other."""
        return _alone(self.queries, square)

    def of_keys(self, gradient: Alike, queries: Alike, values: Alike) -> Alike:
        """The same, of the keys that the queries see: each by how far its value is from the mean of what they see."""
        each = np.maximum(self._centred(values)[0], 0.0) * self.uniform
        share = np.clip(self.own + 1.0 / self.counts, 0.0, 1.0) * self._narrow
        weight = gradient.at(self.queries).same * share * queries.at(self.queries).same * self.queries
        return _alone(self.keys, weight @ each / self.keys)


def _alone(sizes: Array, square: Array) -> Alike:
    nothing = np.zeros((len(sizes), len(sizes)))
    return Alike.of(Places(sizes, square, nothing, np.zeros(len(sizes)), nothing))


def mixture(
    visible: Visible, keys: int, spread: float, alongside: float, leaning: tuple[float, float], *, resolved: bool
) -> Mixture:
    """An attention's weights; by class of position, or all as one.

    Args:
        visible: which keys each query sees.
        keys: how many there are.
        spread: variance of a query's logits over the keys.
        alongside: covariance of two queries' logits.
        leaning: what all queries share of a direction.
        resolved: by class.
    """
    widen, between = math.exp(min(spread, 50.0)), math.exp(min(alongside, 50.0))
    each = visible.counts
    sizes, groups = (classes(n) if resolved else np.array([float(n)]) for n in (len(each), keys))
    starts = (np.cumsum(sizes) - sizes).astype(np.int64)
    uniform = np.add.reduceat(visible.shares(groups), starts) / sizes[:, None]
    number = sizes / np.add.reduceat(1.0 / each, starts)
    share = np.add.reduceat(widen / (each - 1.0 + widen) - 1.0 / each, starts) / sizes
    common = (uniform / groups) @ uniform.T
    overlap = np.minimum(between * common, 1.0) - common
    return Mixture(sizes, groups, uniform, number, spread, share, common, overlap, leaning)
