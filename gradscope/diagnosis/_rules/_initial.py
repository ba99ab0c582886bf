"""First weights that do not suit what follows them, as far as theory tells and before anything is lost of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding, Severity
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._start import Start, starts
from gradscope.diagnosis._tables import multiplied_tables, tiny_tables
from gradscope.diagnosis._words import INITIALIZE, count, factor, names


@rule(
    "default-init",
    limit="a decade of rms that theory expects a row of layers with torch's default weights to lose, no norm or "
    "residual sum between them; a warning from three; tables of N(0, 1) that the output is a product of",
    reference="pytorch#15314; He et al. (2015), eq. 10",
    needs=("weight",),
    of_the_start=True,
)
def default_init(evidence: Evidence) -> Iterator[Finding]:
    """torch's default weights: variance 1/(3·fan_in) under a row of ReLUs or the like; tables that are multiplied."""
    yield from multiplied_tables(evidence)
    for row in _rows(evidence):
        found = [s for s in row if s.is_default and s.activation != "identity"]
        decades = -sum(s.forward for s in _in_series(evidence, found))
        if len(found) < 2 or decades < 1.0 or not _is_so(evidence, row, -decades):
            continue
        kinds = ", ".join(sorted({s.activation for s in found}))
        yield _finding(
            "default-init",
            "warning" if decades >= evidence.limits.activation_decades else "note",
            found,
            f"{count(len(found), 'layer')} in a row have torch's default weights, of variance 1/(3·fan_in), before "
            f"{kinds}: theory expects them to lose {decades:.1f} decades of the signal.",
            -decades,
            "pytorch#15314; He et al. (2015), eq. 10",
        )


@rule(
    "init-mismatch",
    limit="a decade and a half of rms that theory expects of a layer's own weights, or three of a row of layers, no "
    "norm or residual sum between them",
    reference="Glorot & Bengio (2010), eq. 12; He et al. (2015), eq. 10",
    needs=("weight",),
    of_the_start=True,
)
def init_mismatch(evidence: Evidence) -> Iterator[Finding]:
    """First weights too large or too small for the layer's true fan and the activation behind it."""
    yield from tiny_tables(evidence)
    for row in _rows(evidence):
        hidden = [s for s in row[:-1] if not s.is_default]  # a last layer may begin as small as it likes
        single = [s for s in hidden if abs(s.forward) >= 1.5]
        total = sum(s.forward for s in _in_series(evidence, hidden))
        if not single and abs(total) < evidence.limits.activation_decades:
            continue
        largest = max(single, key=lambda s: abs(s.forward)).forward if single else total
        found = [s for s in single or hidden if s.forward * largest > 0]  # what is too large does not excuse the small
        if not found or not _is_so(evidence, row, sum(s.forward for s in found)):
            continue
        worst = max(found, key=lambda s: abs(s.forward))
        decades = sum(s.forward for s in _in_series(evidence, found))
        word = "small" if decades < 0 else "large"
        yield _finding(
            "init-mismatch",
            "warning",
            found,
            f"The first weights of {count(len(found), 'layer')} are too {word}, most in {worst.layer.module!r}: "
            f"fan_in·variance is {factor(worst.scale)}, and {worst.activation} needs "
            f"{factor(worst.scale / 10 ** (2 * worst.forward))}.",
            decades,
            "Glorot & Bengio (2010), eq. 12; He et al. (2015), eq. 10",
        )


def _is_so(evidence: Evidence, row: Sequence[Start], decades: float) -> bool:
    """Whether at least half of what theory expects was measured; a residual sum that no module makes is not seen."""
    if not evidence.has("activation"):
        return True
    sites = evidence.sites("activation")
    level = dict(zip((s.name for s in sites), evidence.level("activation")[0].tolist(), strict=True))
    at = [level[s.layer.site.name] for s in row if s.layer.site is not None and s.layer.site.name in level]
    inputs = [level[s.name] for s in sites if s.role == "input"]
    start = inputs[0] if inputs and row[0].layer is starts(evidence)[0].layer else at[0] if at else np.nan
    moved = [v - start for v in at if np.isfinite(v - start)]
    measured = (min(moved) if decades < 0 else max(moved)) if moved else 0.0
    return measured / decades >= 0.5


def _in_series(evidence: Evidence, row: Sequence[Start]) -> list[Start]:
    """Of layers side by side, as queries, keys and values are, the first.

    What arrives at a layer has an rms of about its output's over √(fan_in · variance). Where that is nearer to what
    arrives at the layer before than to what that one gives, both take the same.
    """
    if not evidence.has("activation"):
        return list(row)
    sites = evidence.sites("activation")
    level = dict(zip((s.name for s in sites), evidence.level("activation")[0].tolist(), strict=True))
    kept: list[Start] = []
    for start in row:
        if not (kept and _beside(kept[-1], start, level)):
            kept.append(start)
    return kept


def _beside(one: Start, other: Start, level: Mapping[str, float]) -> bool:
    if one.activation != "identity":
        return False
    given = [level.get(s.layer.site.name, np.nan) if s.layer.site is not None else np.nan for s in (one, other)]
    taken = [size - np.log10(s.scale) / 2 for size, s in zip(given, (one, other), strict=True)]
    return bool(abs(taken[1] - taken[0]) < abs(taken[1] - given[0]))


def _rows(evidence: Evidence) -> Iterator[Sequence[Start]]:
    """Layers in a row in which nothing puts the scale back: no norm, no residual sum, no other kind of module."""
    breaks = sorted(
        {s.depth for s in evidence.sites("activation") if s.role in ("norm", "block")} | _restored(evidence)
    )
    row: list[Start] = []
    for start in starts(evidence):
        if row and any(row[-1].layer.depth < depth < start.layer.depth for depth in breaks):
            yield row
            row = []
        row.append(start)
    if row:
        yield row


def _restored(evidence: Evidence) -> set[int]:
    """Depths of modules of another kind that raise the signal by a decade and more: they normalize it, whatever their
    name."""
    if not evidence.has("activation"):
        return set()
    sites, level = evidence.sites("activation"), evidence.level("activation")[0]
    with np.errstate(invalid="ignore"):
        raised = np.diff(level) > 1.0
    return {s.depth for s, up in zip(sites[1:], raised.tolist(), strict=True) if up and s.role == "other"}


def _finding(
    name: str, severity: Severity, found: Sequence[Start], said: str, decades: float, reference: str
) -> Finding:
    sites = [s.layer.weight for s in found]
    return Finding(
        name,
        severity,
        said,
        INITIALIZE,
        reference,
        direction="forward",
        sites=names(sites),
        frontier=sites[0],
        value=decades,
        unit="decades of rms by theory",
        limit=-1.0 if decades < 0 else 1.5,
        limit_from="E f² of the activation behind the layer, at a signal of size 1",
        expected=0.0,
    )
