"""Depth that no site shows: within a recurrent layer of one call, and within a model of plain functions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import first_loss, output_site
from gradscope.diagnosis._learning import learns
from gradscope.recording import Site


def forgotten(evidence: Evidence) -> Iterator[Finding]:
    """Recurrent layers without gates whose first weights keep too little from one time step to the next.

    Through one step of h' = tanh(W h + …) a gradient shrinks to at most √n · rms(W) of its size in the mean, since the
    slope is no more than 1 (Pascanu et al. 2013, section 2.1, for a W of independent entries).
    """
    if not evidence.from_the_start or not evidence.has("weight"):
        return
    sizes = dict(zip((s.name for s in evidence.sites("weight")), evidence.values("weight")[0].tolist(), strict=True))
    for site in evidence.sites("activation"):
        if site.module_type != "RNN" or site.output or len(site.shape) != 3:
            continue
        length = min(site.shape[:2])  # which of both is time is not recorded: at least so many
        kept = math.sqrt(site.shape[-1]) * sizes.get(f"{site.module}.weight_hh_l0", 0.0)
        decades = -length * math.log10(kept) if kept > 0 else 0.0
        if decades < evidence.limits.error_decades:
            continue
        yield Finding(
            "vanishing-gradient",
            "warning" if evidence.training and not learns(evidence) else "note",
            f"Through one time step of {site.name!r} at most {kept:.2f} of the gradient is kept in the mean (√n times "
            f"the rms of its recurrent weights), and through {length} of them 10^−{decades:.1f}: what came first in a "
            "sequence is not learned from.",
            f"torch.nn.init.orthogonal_(model.get_parameter({site.module + '.weight_hh_l0'!r})); or an LSTM or GRU, "
            "whose gates keep it",
            "Pascanu et al. (2013), section 2.1",
            direction="backward",
            sites=(site.name,),
            frontier=site,
            value=-decades,
            unit="decades of the gradient over time, by theory",
            limit=-evidence.limits.error_decades,
            limit_from=f"{length} time steps",
            expected=0.0,
            causes=(f"first recurrent weights of √n·rms {kept:.2f}, where 1 keeps the gradient",),
        )


def over_the_model(evidence: Evidence) -> Iterator[Finding]:
    """Outputs decades above the input, in a model that has no modules to tell where: its parameters are its own."""
    if not evidence.from_the_start or not evidence.has("activation"):
        return
    sites = evidence.sites("activation")
    output, inputs = output_site(evidence), [s for s in sites if s.role == "input" and len(s.shape) >= 2]
    if any(s.role == "pre-activation" for s in sites) or len(inputs) != 1 or len(sites) != 2:
        return
    output = output or next(s for s in sites if s is not inputs[0])
    level = evidence.level("activation")[0]
    decades = float(level[sites.index(output)] - level[sites.index(inputs[0])])
    limit = evidence.limits.activation_decades
    if first_loss(evidence) is not None:
        limit /= 2  # the loss itself says that it has grown too much
    if not np.isfinite(decades) or decades < limit:
        return
    largest = _largest_gain(evidence)
    cause = () if largest is None else (f"the first weights {largest[0].name!r} have √n·rms {largest[1]:.1f}",)
    yield Finding(
        "exploding-activation",
        "error" if decades >= evidence.limits.error_decades else "warning",
        f"The activation grows from the input to the output of {output.name!r} by 10^+{decades:.1f}, and the model has "
        "no modules in between that would tell where.",
        "draw the weights with a variance of 2/fan_in (ReLU) or 1/fan_in: gradscope.init.he_normal_(weight), or put "
        "them into nn.Linear modules",
        "He et al. (2015), eq. 10",
        direction="forward",
        sites=(output.name,),
        frontier=output,
        value=decades,
        unit="decades of rms over the model",
        limit=limit,
        limit_from=f"{limit:.1f} decades",
        expected=0.0,
        causes=cause,
    )


def _largest_gain(evidence: Evidence) -> tuple[Site, float] | None:
    """The weight matrix that multiplies the rms of a signal by most, by its smaller side."""
    if not evidence.has("weight"):
        return None
    gains = [
        (float(rms) * math.sqrt(min(site.shape[:2])), site)
        for site, rms in zip(evidence.sites("weight"), evidence.values("weight")[0].tolist(), strict=True)
        if len(site.shape) >= 2
    ]
    if not gains:
        return None
    gain, site = max(gains, key=lambda g: g[0])
    return site, gain
