"""Words that the rules share."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.diagnosis._finding import Severity
from gradscope.recording import Site

INF_SHOWN = 1e4

INITIALIZE = "gradscope.init.initialize(model, inputs=batch)"
"""With a batch, since without one functions (F.relu) and modules that are shared are not seen."""


def names(sites: Sequence[Site]) -> tuple[str, ...]:
    """Of sites."""
    return tuple(site.name for site in sites)


def listed(found: Sequence[str], shown: int = 3) -> str:
    """`'a', 'b', 'c' and 4 more`."""
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    return ", ".join(f"'{one}'" for one in found[:shown]) + more


def count(n: int, noun: str) -> str:
    """`1 layer`, `3 layers`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def factor(value: float) -> str:
    """A factor in few digits: `3.2`, `150`, `1.2e+05`."""
    return f"{value:.2g}" if 0.01 <= value < 100 else f"{value:.0f}" if 100 <= value < INF_SHOWN else f"{value:.1e}"


def worse(value: float, limit: float) -> Severity:
    """An error beyond the limit, else a warning."""
    return "error" if value >= limit else "warning"


def width(site: Site) -> int:
    """How many units it has: channels, or the last dimension."""
    if len(site.shape) < 2:
        return 1
    return site.shape[1] if len(site.shape) >= 4 else site.shape[-1]
