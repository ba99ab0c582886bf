"""Activations that are called as functions: without a batch they are not seen, and nothing is said of the layers."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis import Finding
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._definition import functions_suspected


@audit_rule("functions-not-seen", of_scale=False)
def functions_not_seen(audited: Audited) -> Iterator[Finding]:
    """Layers without an activation module behind them, in a model whose forward pass is its own."""
    found = 0 if audited.executed else functions_suspected(audited.model)
    if found:
        yield Finding(
            "functions-not-seen",
            "note",
            f"{found} layers have no activation module behind them: functions such as F.relu, and modules that are "
            "used more than once, are only seen in a forward pass, and these layers count as linear here.",
            "gradscope.init.audit(model, inputs=batch)",
            direction="forward",
            value=float(found),
            unit="layers",
        )
