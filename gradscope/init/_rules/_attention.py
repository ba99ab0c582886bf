"""Attention: packed projections that were set as one matrix, and the output projection that was not set."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from gradscope.diagnosis import Finding
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._words import names


@audit_rule("packed-attention")
def packed_attention(audited: Audited) -> Iterator[Finding]:
    """q, k and v of a MultiheadAttention, set as if they were one matrix; its output projection left as it is."""
    packed = [
        w
        for w in audited.weights
        if isinstance(w.module, nn.MultiheadAttention)
        and w.block in ("q", "k", "v")
        and w.torch_fans.fan_out > 1.5 * w.fans.fan_out
        and w.has(2.0 / (w.torch_fans.fan_in + w.torch_fans.fan_out))
    ]
    if packed:
        yield Finding(
            "packed-attention",
            "warning",
            "Queries, keys and values were set as one matrix of three times as many rows: each has half the variance "
            "of an unpacked projection. The logits' variance is a quarter of what Glorot meant, the values' a half.",
            audited.initialize,
            "pytorch#166378",
            direction="forward",
            sites=names(packed),
            value=packed[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )
    out = [w for w in audited.weights if w.path.endswith("out_proj.weight") and w.is_uniform(w.fans.fan_in**-0.5)]
    if out:
        yield Finding(
            "packed-attention",
            "note",
            "The output projection of the attention has the default weights of a Linear, a third of the variance that "
            "keeps the mean square.",
            audited.initialize,
            "pytorch#57117",
            direction="forward",
            sites=names(out),
            value=out[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )
