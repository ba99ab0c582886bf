"""What is lost or won of a signal on its way through a model, judged by envelopes.

One sick site says little: a branch that begins at zero, a gate, a norm and a pooling all leave a site that is small or
large by design, and the signal goes round it. A signal has *vanished* at a place only if it is small at every site
beyond it, and has *grown* only if it is large at every one. So with x_i the size at site i in the direction of the
flow, the decades lost at i are

    max_{j ≤ i} log10 x_j − max_{j ≥ i} log10 x_j

which are 0 as long as any later site is as large as the largest before it; and the decades won are the same with
both maxima as minima, and the sign turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis._evidence import END, START, Evidence, Floats, median
from gradscope.recording import Role, Signal, Site
from gradscope.recording._profile import direction_of

FRONTIER_DECADES = 1.0
"""The signal is sick from where it has lost, or won, this many: the healthy band's half width."""


@dataclass(frozen=True)
class Passage:
    """A signal's decades, lost or won, at each step and site, in the direction of its flow.

    Attributes:
        signal: which.
        lost: whether they are lost, not won.
        sites: in the direction of its flow.
        decades: `(steps, sites)`, at least 0; NaN at steps without data.
        layers: how many layers the flow passes.
    """

    signal: Signal
    lost: bool
    sites: tuple[Site, ...]
    decades: Floats
    layers: int

    @property
    def total(self) -> Floats:
        """The most at any site, `(steps,)`."""
        if not self.sites:
            return np.full(len(self.decades), np.nan)
        return np.asarray(np.max(self.decades, axis=1), dtype=np.float64)

    @property
    def at_start(self) -> float:
        """The total of the first step that has data: what the model brings along, before an update has changed it."""
        known = self.total[:START][~np.isnan(self.total[:START])]
        return float(known[0]) if known.size else np.nan

    @property
    def at_end(self) -> float:
        """The median total over the last steps."""
        return float(median(self.total[-END:])) if len(self.decades) else np.nan

    def frontier(self, steps: slice) -> tuple[Site | None, tuple[Site, ...]]:
        """The first site that is sick over some of the steps, and all that are."""
        sick = np.flatnonzero(median(self.decades[steps]) > FRONTIER_DECADES)
        chosen = tuple(self.sites[i] for i in sick)
        return (chosen[0] if chosen else None), chosen


_EXACTLY = 1e-4
"""Relative: float32 sums of a few thousand entries agree to this."""

_STREAM: tuple[Role, ...] = ("pre-activation", "block")


def passage(evidence: Evidence, signal: Literal["activation", "activation_grad"], *, lost: bool) -> Passage:
    """What is lost, or won, of a signal over the depth.

    A gradient's size is its norm, not its rms: a pooling or a stride spreads the same gradient over more entries.
    """
    backward = direction_of(signal) == "backward"
    sites = evidence.sites(signal)
    # The last layer's output may be small by design: it is the loss that asks for its size.
    last = max((s.depth for s in sites if s.role == "pre-activation"), default=0) if not backward else 0
    chosen = [i for i, site in enumerate(sites) if _counts(site, lost) and not 0 < last <= site.depth]
    if backward:
        chosen.reverse()
    level = evidence.level(signal)[:, chosen]
    if backward:
        with np.errstate(divide="ignore", invalid="ignore"):
            level = level + np.log10(evidence.values(signal, "count")[:, chosen]) / 2
        level = level + _averaged(evidence, sites)[chosen]
    names = tuple(sites[i] for i in chosen)
    decades = _decades(level, lost)
    if backward and not lost and names:
        decades = np.fmin(decades, _above_outputs(level, names, outputs_of(evidence)))
    if not backward and names:
        since = _since_the_input(evidence, level, lost)
        decades = np.where(np.isfinite(since), np.fmax(decades, since), decades)
    return Passage(signal, lost, names, decades, _passed(names))


def _since_the_input(evidence: Evidence, level: Floats, lost: bool) -> Floats:
    """Decades since the input of the model, which counts as no more than a decade from the first layer: what scale it
    has is another matter."""
    inputs = [i for i, s in enumerate(evidence.sites("activation")) if s.role == "input" and len(s.shape) >= 2]
    if len(inputs) != 1:
        return np.full_like(level, -np.inf)
    sign = 1.0 if lost else -1.0
    entering = evidence.level("activation")[:, inputs]
    start = np.clip(entering, level[:, :1] - 1.0, level[:, :1] + 1.0)
    if lost:  # an input of the size for which first weights are made may not be lost in the first layer as it begins
        start[:1] = np.maximum(start[:1], np.minimum(entering[:1], 0.0))
    with np.errstate(invalid="ignore"):
        there = np.where(np.isfinite(level), sign * level, -np.inf)
        beyond = np.maximum.accumulate(there[:, ::-1], axis=1)[:, ::-1]
        found = sign * start - beyond
    return np.where(np.isfinite(found), found, -np.inf)


def outputs_of(evidence: Evidence) -> frozenset[str]:
    """Names of the sites whose values the loss takes, as far as the graph under it tells."""
    nodes = evidence.facts.get("loss_graph") or []
    return frozenset(node["site"] for node in nodes if node.get("output") and "site" in node)


def _above_outputs(level: Floats, sites: tuple[Site, ...], outputs: frozenset[str]) -> Floats:
    """Decades by which every site from one on is above the largest gradient that enters: of several heads one may be
    small, and what the others send down is no growth."""
    heads = [i for i, site in enumerate(sites) if site.name in outputs] or [0]
    with np.errstate(invalid="ignore"):
        entering = np.max(np.where(np.isfinite(level[:, heads]), level[:, heads], -np.inf), axis=1, keepdims=True)
        there = np.where(np.isfinite(level), level, np.inf)
        found = np.minimum.accumulate(there[:, ::-1], axis=1)[:, ::-1] - entering
    return np.where(np.isfinite(found), np.maximum(found, 0.0), np.nan)


def _averaged(evidence: Evidence, sites: tuple[Site, ...]) -> Floats:
    """Decades of a gradient's norm that averages take between each site and the output.

    An average over k entries hands each the k-th part of its gradient: the norm falls by √k. It is no loss, as the
    parts are alike, and the weights before it sum them up again. A pooling is a module; a mean is a function, and known
    by what it does: k times more entries, each with exactly the k-th part, so that the rms is the k-th part too.
    """
    rms = evidence.values("activation_grad")[:1]
    counts = evidence.values("activation_grad", "count")[:1]
    taken = np.zeros(len(sites))
    for i, site in enumerate(sites[1:], start=1):
        if "AvgPool" in site.module_type:
            before, after = float(np.prod(sites[i - 1].shape[2:])), float(np.prod(site.shape[2:]))
            taken[i] = np.log10(max(before / max(after, 1.0), 1.0)) / 2
        elif len(rms) and rms[0, i] > 0:
            parts = counts[0, i - 1] / counts[0, i]
            if parts > 1 and abs(rms[0, i - 1] * parts / rms[0, i] - 1) < _EXACTLY:
                taken[i] = np.log10(parts) / 2
    return np.asarray(np.append(np.cumsum(taken[::-1])[::-1], 0.0)[1:], dtype=np.float64)


def _counts(site: Site, lost: bool) -> bool:
    if site.role == "input" or site.output > 0 or len(site.shape) < 2 or site.module_type in ("Dropout", "Identity"):
        return False
    return lost or site.role in _STREAM


def _passed(sites: tuple[Site, ...]) -> int:
    layers = sum(site.role == "pre-activation" for site in sites)
    return layers if layers >= 2 else len(sites)


def _decades(level: Floats, lost: bool) -> Floats:
    """The envelopes' distance; a site that has no data at a step, or only zeros, is passed over: it has no size."""
    if not level.shape[1]:
        return level
    sign = 1.0 if lost else -1.0
    known: NDArray[np.bool_] = np.isfinite(level)
    there = np.where(known, sign * level, -np.inf)
    before = np.maximum.accumulate(there, axis=1)
    beyond = np.maximum.accumulate(there[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore"):
        found = before - beyond
    return np.where(known.any(axis=1, keepdims=True), np.where(np.isfinite(found), found, 0.0), np.nan)
