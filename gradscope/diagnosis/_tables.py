"""Tables (`nn.Embedding`) whose first rows are too large, or too small, for what is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import FirstLoss, first_loss, recovers
from gradscope.diagnosis._learning import learns
from gradscope.diagnosis._words import factor, names
from gradscope.recording import Site

_SMALL_TABLE = 1e-4


def multiplied_tables(evidence: Evidence) -> Iterator[Finding]:
    """Tables of torch's default, N(0, 1), that an output is multiplied of, where the first loss is far too large."""
    surprising = first_loss(evidence)
    if surprising is None or not (surprising.classes or surprising.outside):
        return
    rms = _first_sizes(evidence)
    found = [
        s
        for s in evidence.parameters
        if s.module_type.startswith("Embedding")
        and len(s.shape) == 2
        and s.shape[1] > 1
        and abs(rms.get(s.name, 0.0) ** 2 - 1) < 5 * math.sqrt(2 / np.prod(s.shape))
        and (_multiplies(evidence, s) or _is_tied(evidence, surprising, s))
    ]
    if not found:
        return
    nothing = surprising.expected if surprising.classes else surprising.expected**2
    width = found[0].shape[1]
    yield Finding(
        "default-init",
        "note" if recovers(evidence, nothing) else "warning",
        f"The rows of {found[0].name!r} are drawn from N(0, 1), torch's default, and the output is a product of "
        f"{width} of their entries: it begins with an rms of {surprising.size:.3g}, and the loss far above what "
        "knowing nothing costs.",
        f"torch.nn.init.normal_(model.get_parameter({found[0].name!r}), std={width**-0.5:.1g})",
        "torch.nn.Embedding; Press & Wolf (2017)",
        direction="forward",
        sites=names(found),
        frontier=found[0],
        value=1.0,
        unit="standard deviation of the rows",
        limit=width**-0.5,
        limit_from="one over the root of the width: a product of two rows then has the size 1/√width, and of a row and "
        "a normalized signal the size 1",
        expected=width**-0.5,
        causes=("torch's default for tables",),
    )


def _multiplies(evidence: Evidence, site: Site) -> bool:
    """Whether the output is computed of the table with no layer or norm in between."""
    if not any(s.role == "pre-activation" for s in evidence.sites("activation")):
        return True  # there is none in the model
    nodes = [node for node in evidence.facts.get("loss_graph") or [] if node.get("inside")]
    kinds = [node["node"] for node in nodes]
    between = ("Addmm", "Convolution", "NativeLayerNorm", "Linear")
    return any(n.get("site", "").split("#")[0] == site.module for n in nodes) and not any(
        kind.startswith(between) for kind in kinds
    )


def _is_tied(evidence: Evidence, surprising: FirstLoss, site: Site) -> bool:
    """Whether the last layer, which has no weight of its own, has as many outputs as the table has rows."""
    own = {s.module for s in evidence.parameters if len(s.shape) >= 2}
    last = surprising.last
    return last.module not in own and last.shape[-1:] == site.shape[:1]


def tiny_tables(evidence: Evidence) -> Iterator[Finding]:
    """Tables that begin at next to nothing: whatever normalizes their rows multiplies the gradient by as much."""
    rms = _first_sizes(evidence)
    for site in evidence.parameters:
        size = rms.get(site.name, 0.0)
        if not (site.module_type.startswith("Embedding") and 0 < size < _SMALL_TABLE) or learns(evidence):
            continue
        yield Finding(
            "init-mismatch",
            "warning",
            f"The rows of {site.name!r} begin with an rms of {size:.1e}: where they are normalized their gradient is "
            f"{factor(1 / size)} times as large, and a step throws them anywhere; where not, nothing is left of them.",
            f"torch.nn.init.normal_(model.get_parameter({site.name!r}), std=0.02)",
            "Glorot & Bengio (2010)",
            direction="both",
            sites=(site.name,),
            frontier=site,
            value=size,
            unit="rms of the rows",
            limit=_SMALL_TABLE,
            limit_from="a two-hundredth of the smallest that is in use, 0.02",
            expected=0.02,
        )


def _first_sizes(evidence: Evidence) -> dict[str, float]:
    if not evidence.from_the_start:
        return {}
    return dict(zip((s.name for s in evidence.sites("weight")), evidence.values("weight")[0].tolist(), strict=True))
