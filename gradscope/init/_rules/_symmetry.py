"""Units that begin alike: where nothing tells them apart they stay so."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._words import names


@audit_rule("symmetric-units", of_scale=False)
def symmetric_units(audited: Audited) -> Iterator[Finding]:
    """Units with the same weights: what they learn differs only by their biases, and by what reads them.

    A unit's gradient is that of its output times its input. Where biases and the weights of the next layer are the
    same for all units too, so are their gradients, in every step.
    """
    found = [w for w in audited.weights if _is_symmetric(w)]
    if not found:
        return
    for_ever = [w for w in found if not _told_apart_by_biases(w) and _is_read_alike(audited, w)]
    first = (for_ever or found)[0]
    if for_ever:
        said = (
            f"All units of {first.name} have the same weights and biases, and the next layer reads them alike: they "
            "compute the same, get the same gradient, and stay the same for ever."
        )
    elif _told_apart_by_biases(first):
        said = (
            f"All units of {first.name} have the same weights: only their biases tell them apart. The random biases "
            "break the symmetry, but the layer begins as one unit shifted to and fro."
        )
    else:
        said = (
            f"All units of {first.name} have the same weights and biases: the layer begins as one unit, and only what "
            "reads it tells its units apart."
        )
    yield Finding(
        "symmetric-units",
        "error" if for_ever else "warning",
        said,
        audited.initialize,
        "Goodfellow et al. (2016), 8.4",
        direction="both",
        sites=names(found),
        value=1.0,
        unit="different units",
        expected=float(first.value.shape[0]),
    )


def _is_symmetric(w: Weight) -> bool:
    rows = w.value.reshape(w.value.shape[0], -1)
    table = isinstance(w.module, nn.Embedding | nn.EmbeddingBag)
    return not table and len(rows) > 1 and w.square > 0.0 and bool((rows == rows[:1]).all())


def _told_apart_by_biases(w: Weight) -> bool:
    biases = [p.detach() for name, p in w.module.named_parameters(recurse=False) if "bias" in name]
    return any(_varies(bias) for bias in biases)


def _varies(bias: Tensor) -> bool:
    return bias.numel() > 1 and bool((bias != bias.ravel()[0]).any())


def _is_read_alike(audited: Audited, w: Weight) -> bool:
    """Whether the next layer, by definition, has the same weights for each of these units."""
    after = audited.weights[audited.weights.index(w) + 1 :]
    reader = next((one for one in after if one.value.dim() > 1 and one.value.shape[1] == w.value.shape[0]), None)
    return reader is not None and bool((reader.value == reader.value[:, :1]).all())
