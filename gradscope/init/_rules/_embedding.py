"""Tables and products of two inputs: embeddings of variance 1 at any width, Bilinear's bound."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._words import names

_WIDE = 64


@audit_rule("embedding-scale")
def embedding_scale(audited: Audited) -> Iterator[Finding]:
    """Embeddings of N(0, 1) whatever their width; worse where they serve as output weights too."""
    found = [
        w
        for w in audited.weights
        if isinstance(w.module, nn.Embedding | nn.EmbeddingBag) and w.fans.fan_out >= _WIDE and w.has(1.0)
    ]
    tied = [w for w in found if _is_output_too(audited, w)]
    if tied:
        width = tied[0].fans.fan_out
        yield Finding(
            "embedding-scale",
            "warning",
            f"{tied[0].name} is N(0, 1) and serves as output weights too: the logits of inputs of mean square 1 have "
            f"a standard deviation of √{width:.0f} = {math.sqrt(width):.0f}: the first loss is far from ln(classes).",
            _scaled(tied),
            "Vaswani et al. (2017), 3.4; Press & Wolf (2017)",
            direction="forward",
            sites=names(tied),
            value=1.0,
            unit="variance",
            expected=1.0 / width,
        )
    others = [w for w in found if w not in tied]
    if others:
        width = others[0].fans.fan_out
        yield Finding(
            "embedding-scale",
            "note",
            f"{others[0].name} is N(0, 1) whatever its width: a row has norm √{width:.0f} = {math.sqrt(width):.0f}. "
            "That is right where a layer takes it that keeps the mean square 1. In a residual stream it outweighs the "
            "first branches, and products of two rows are as large as a norm: there 1/√width is usual.",
            _scaled(others),
            "Vaswani et al. (2017), 3.4; flax.linen.Embed; pytorch#3121",
            direction="forward",
            sites=names(others),
            value=1.0,
            unit="variance",
            expected=1.0 / width,
        )


def _is_output_too(audited: Audited, weight: Weight) -> bool:
    return any(
        isinstance(slot.module, nn.Linear) and slot.originals[0] is weight.module._parameters.get("weight")
        for slot in audited.slots
    )


def _scaled(found: list[Weight]) -> str:
    """Scaled, not drawn anew: the row of the padding stays 0."""
    factors = [(w.path, float(f"{1 / math.sqrt(w.fans.fan_out):.3g}")) for w in found]
    return f"for name, std in {factors!r}: model.get_parameter(name).data.mul_(std)"


@audit_rule("bilinear-bound")
def bilinear_bound(audited: Audited) -> Iterator[Finding]:
    """Bilinear's default bound 1/√in1, though it sums in1·in2 products."""
    found = [
        w
        for w in audited.weights
        if isinstance(w.module, nn.Bilinear) and w.is_uniform(w.module.in1_features**-0.5) and w.forward > 2.0
    ]
    if found:
        yield Finding(
            "bilinear-bound",
            "warning",
            "The default weights of a Bilinear take no notice of its second input: the mean square of "
            f"{found[0].name}'s outputs is {found[0].forward:.3g} times the product of its inputs'.",
            audited.initialize,
            "pytorch#132231",
            direction="forward",
            sites=names(found),
            value=found[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )
