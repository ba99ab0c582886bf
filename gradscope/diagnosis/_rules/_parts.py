"""What the checks for parameters without a gradient share: their states, their depth, and the finding."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._words import names
from gradscope.recording import Site


def states(evidence: Evidence) -> dict[str, str]:
    """By parameter, over all steps that count: flows, zero, unused or frozen."""
    zeros = dict(
        zip(
            (s.name for s in evidence.sites("weight_grad")),
            evidence.values("weight_grad", "zero_fraction").T,
            strict=True,
        )
    )
    of: dict[str, str] = {}
    for site in evidence.parameters:
        share = zeros.get(site.name)
        if not site.trainable:
            of[site.name] = "frozen"
        elif share is None or np.isnan(share).all():
            of[site.name] = "unused"
        else:
            of[site.name] = "zero" if (share[~np.isnan(share)] == 1.0).all() else "flows"
    return of


def depth(evidence: Evidence, site: Site) -> int:
    """Of the first call of a parameter's module."""
    by_module: dict[str, int] = defaultdict(int)
    for s in evidence.sites("activation"):
        by_module.setdefault(s.module, s.depth)
    return by_module.get(site.module, site.depth)


def found(
    evidence: Evidence,
    sites: list[Site],
    severity: str,
    explanation: str,
    remedy: str,
    cause: str,
    frontier: Site | None = None,
    since: int = 0,
) -> Finding:
    """Parameters to which no gradient comes, or that nothing changes."""
    return Finding(
        "no-gradient",
        severity,  # type: ignore[arg-type]
        explanation,
        remedy,
        "",
        direction="backward",
        sites=names(sites),
        steps=(since,) if since else (),
        frontier=frontier,
        value=float(len(sites)),
        unit="parameters without a gradient",
        limit=0.0,
        limit_from=f"in all of {len(evidence.at)} recorded steps",
        expected=0.0,
        causes=(cause,),
    )
