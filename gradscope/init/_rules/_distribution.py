"""Distributions: a normal one that was cut, and sparse columns."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import SURE, Weight
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._words import count, for_each, names, paths
from gradscope.init._variance_scaling import TRUNCATED_STD

_WITHIN_HALF = 0.3569
"""Of a normal distribution cut at two standard deviations, the share within half a standard deviation (its own)."""


@audit_rule("truncated-normal")
def truncated_normal(audited: Audited) -> Iterator[Finding]:
    """A normal distribution cut at ±2 of its own standard deviations, without making up for what that takes away."""
    found = [w for w in audited.weights if w.plain and w.value.numel() >= 2000 and _lost_by_cutting(w) and _is_cut(w)]
    if found:
        yield Finding(
            "truncated-normal",
            "note",
            f"Of {count(len(found), 'weight')} the normal distribution was cut at two standard deviations, which "
            "leaves 77 % of the variance that was asked for.",
            for_each(paths(found), "{}.data.div_(0.8796)") + "  # or " + audited.initialize,
            "pytorch#155588; timm#1286",
            direction="both",
            sites=names(found),
            value=TRUNCATED_STD**2,
            unit="variance got/asked",
            expected=1.0,
        )


def _lost_by_cutting(w: Weight) -> bool:
    """Whether 77 % of a variance in use explains what is there, and no such variance itself does."""
    asked = [gain / fan for gain in {w.needed, 1.0, 2.0} for fan in (*w.fans, w.fans.fan_avg)]
    return any(w.has(TRUNCATED_STD**2 * variance) for variance in asked) and not any(map(w.has, asked))


def _is_cut(w: Weight) -> bool:
    values, rms = w.value.double().abs(), math.sqrt(w.square)
    within = float((values < 0.5 * rms).double().mean())
    sure = SURE * math.sqrt(_WITHIN_HALF * (1.0 - _WITHIN_HALF) / values.numel())
    return abs(w.largest / rms - 2.0 / TRUNCATED_STD) < 0.03 and abs(within - _WITHIN_HALF) < sure


@audit_rule("sparse-columns")
def sparse_columns(audited: Audited) -> Iterator[Finding]:
    """`sparse_`: the same number of zeros in every column, where it is the rows that are to have few entries."""
    found = []
    for w in audited.weights:
        if isinstance(w.module, nn.Linear) and w.value.shape[1] >= 8:
            zeros = w.value == 0.0
            of_columns, of_rows = zeros.sum(0), zeros.sum(1)
            # An identity, a diagonal or a block has as many in every row too.
            if 0 < int(of_columns[0]) < len(zeros) and len(of_columns.unique()) == 1 and len(of_rows.unique()) > 1:
                found.append((w, int(of_columns[0]), of_rows))
    if found:
        w, zeros_each, of_rows = found[0]
        units, inputs = w.value.shape
        most, fewest = inputs - int(of_rows.min()), inputs - int(of_rows.max())
        redrawn = [(one.path, round(k / len(one.value), 4), _std_of_rest(one)) for one, k, _ in found]
        yield Finding(
            "sparse-columns",
            "note",
            f"Of {count(len(found), 'weight')} every column has the same number of zeros, as torch's sparse_ makes it: "
            f"each input of {w.name} feeds {units - zeros_each} of {units} units, and a unit gets {fewest} to {most} "
            f"of {inputs} inputs. Martens limits what a unit gets. The mask comes from the global random state, "
            "whatever generator is given.",
            f"for name, sparsity, std in {redrawn!r}: "
            "torch.nn.init.sparse_(model.get_parameter(name).data.T, sparsity, std)",
            "Martens (2010), 5; torch.nn.init.sparse_ calls randperm without its generator",
            direction="forward",
            sites=names([one for one, _, _ in found]),
            value=float(most),
            unit="inputs of one unit, at most",
            expected=round(inputs * (1.0 - zeros_each / units), 1),
        )


def _std_of_rest(w: Weight) -> float:
    """Of the entries that are not 0."""
    rest = float((w.value != 0.0).double().mean())
    return float(f"{math.sqrt(w.square / rest):.4g}")
