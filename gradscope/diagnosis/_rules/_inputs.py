"""The scale of what comes in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import START, Evidence, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._words import factor
from gradscope.recording import Site


@rule(
    "input-scale",
    limit="an input's rms, or its mean over its standard deviation, beyond 10, or the rms below a hundredth, with no "
    "norm layer before the first weights; the largest curvature of the loss goes with the square of it",
    reference="LeCun et al. (1998), section 4.3",
    needs=("activation",),
)
def input_scale(evidence: Evidence) -> Iterator[Finding]:
    """Inputs that are not normalized: raw pixels, a year, an offset."""
    if not len(evidence.at):
        return
    yield from _nothing(evidence)
    yield from _drowned(evidence)
    sites = evidence.sites("activation")
    rms = evidence.values("activation")
    mean, std = evidence.values("activation", "mean"), evidence.values("activation", "std")
    norms = [s.depth for s in sites if s.role == "norm"]
    layers = [s.depth for s in sites if s.role == "pre-activation"]
    if norms and layers and min(norms) < min(layers):
        return
    limit = evidence.limits.input_scale
    for i, site in enumerate(sites):
        embedding = site.module_type.startswith("Embedding")
        if not (site.role == "input" or embedding) or len(site.shape) < 2:
            continue
        if embedding and (not _is_first(sites, site) or any(d == site.depth + 1 for d in norms)):
            continue
        size, since = _size(rms[:1, i] if embedding else rms[:, i], limit)  # a table is trained: that is another matter
        with np.errstate(divide="ignore", invalid="ignore"):
            offset = float(np.abs(median(mean[:START, i])) / median(std[:START, i]))
        if embedding and (size is None or size < 1):  # tables begin small by custom
            continue
        if size is None and not (np.isfinite(offset) and offset > limit):
            continue
        if size is None:
            size, since, unit = offset, 0, "mean over standard deviation"
            said = f"{site.name!r} has a mean {factor(offset)} times its standard deviation"
        else:
            unit = "rms of the input"
            said = f"{site.name!r} has an rms of {size:.3g}"
        when = "" if since == 0 else f" since step {evidence.step(since)}"
        yield Finding(
            "input-scale",
            "warning",
            f"{said}{when}, and no norm layer comes before the first weights. The first layer's outputs, and the steps "
            "of its weights, have that scale too.",
            f"begin with a smaller table: torch.nn.init.normal_(model.get_submodule({site.module!r}).weight, std=0.02)"
            if embedding
            else "normalize the inputs: (x − mean)/std of each feature over the training set",
            "LeCun et al. (1998), section 4.3",
            direction="forward",
            sites=(site.name,),
            steps=() if since == 0 else (evidence.step(since),),
            frontier=site,
            value=size,
            unit=unit,
            limit=limit if size > 1 else 1 / limit**2,
            limit_from="the scale for which the first weights are made is 1",
            expected=1.0,
        )


def _nothing(evidence: Evidence) -> Iterator[Finding]:
    """An input that is zero in every step."""
    rms = evidence.values("activation")
    for i, site in enumerate(evidence.sites("activation")):
        if site.role == "input" and len(site.shape) >= 2 and len(rms) and (rms[:, i] == 0).all():
            yield Finding(
                "input-scale",
                "error",
                f"{site.name!r} is zero, every entry of it, in each of {len(rms)} recorded steps.",
                "look at how the batch is made: a division of integers, a mask, data that were never filled in",
                direction="forward",
                sites=(site.name,),
                frontier=site,
                value=0.0,
                unit="rms of the input",
                limit=0.0,
                limit_from="nothing can be learned from nothing",
                expected=1.0,
            )


def _drowned(evidence: Evidence) -> Iterator[Finding]:
    """Tables that are summed up before the first layer, one of which is so large that nothing of the others is left."""
    sites, rms = evidence.sites("activation"), evidence.values("activation")[0]
    first = min((s.depth for s in sites if s.role == "pre-activation"), default=0)
    tables = [
        (float(rms[i]), s)
        for i, s in enumerate(sites)
        if s.module_type.startswith("Embedding") and s.depth < first and rms[i] > 0
    ]
    wide = {s.shape[-1] for _, s in tables}
    if len(tables) < 2 or len(wide) > 1:
        return
    (least, small), (most, large) = min(tables, key=lambda t: t[0]), max(tables, key=lambda t: t[0])
    limit = evidence.limits.input_scale**2
    if most < limit * least:
        return
    yield Finding(
        "input-scale",
        "warning",
        f"The table {large.module!r} begins with an rms of {most:.3g}, {factor(most / least)} times that of "
        f"{small.module!r}: in their sum nothing is left of the smaller one, and a norm layer behind it does not bring "
        "it back.",
        f"let both begin alike: torch.nn.init.normal_(model.get_submodule({large.module!r}).weight, std={least:.2g})",
        "",
        direction="forward",
        sites=(large.name, small.name),
        frontier=large,
        value=most / least,
        unit="rms of one table over that of the other",
        limit=limit,
        limit_from="a hundredth of the sum is what the smaller one has of it",
        expected=1.0,
    )


def _is_first(sites: tuple[Site, ...], site: Site) -> bool:
    """Whether nothing but other tables and inputs comes before it."""
    return all(s.role == "input" or s.module_type.startswith("Embedding") for s in sites if s.depth < site.depth)


def _size(rms: np.ndarray, limit: float) -> tuple[float | None, int]:
    """The rms where it is beyond the limit, at the start or from a step on to the end."""
    start = float(median(rms[:START]))
    if start > limit or 0 < start < 1 / limit**2:
        return start, 0
    known = np.isfinite(rms)
    beyond = np.zeros(len(rms), dtype=bool)
    beyond[known] = (rms[known] > limit) & (rms[known] > 10 * start)
    if beyond.any() and beyond[np.flatnonzero(beyond)[0] :].mean() > 0.8 and beyond.sum() > 2:
        first = int(np.flatnonzero(beyond)[0])
        return float(np.median(rms[beyond])), first
    return None, 0
