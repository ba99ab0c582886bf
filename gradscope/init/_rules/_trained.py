"""Trained models: their weights are no initial ones."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis import Finding
from gradscope.init._audited import Audited, audit_rule


@audit_rule("not-at-initialization", of_scale=False)
def not_at_initialization(audited: Audited) -> Iterator[Finding]:
    """Said of a trained model, whose weights no rule of scale is asked about."""
    if audited.signs:
        yield Finding(
            "not-at-initialization",
            "note",
            "The model is not at its initialization, so that its weights were not measured against initial ones.",
            reference="Johnstone (2001), theorem 1.1, of the largest singular value of independent entries",
            causes=audited.signs,
        )
