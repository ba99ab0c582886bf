"""Residual sums that grow: branches of full size, one after the other, and no norm before them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from gradscope.diagnosis import Finding
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._model_schemes._branches import Branches
from gradscope.theory.prediction._prediction import Flow
from gradscope.theory.prediction._value import Value

_FEWEST = 4
_DECADE, _ERROR = 1.0, 2.0


@audit_rule("unscaled-branches")
def unscaled_branches(audited: Audited) -> Iterator[Finding]:
    """The stream of a residual network, as theory predicts it of the weights that are there; with a batch."""
    found = audited.branches
    if found is None or len(found.branches) < _FEWEST:
        return
    middle, last = _lengths(found, [found.branches[i].skip for i in (len(found.branches) // 2, -1)])
    if middle is None or last is None:
        return
    # Behind norms a stream grows by the same amount each time: twice from the middle on, whatever the depth. What
    # doubles each time has in its second half the decades of its first.
    decades = math.log10(last / middle)
    if decades < _DECADE:
        return
    ends = tuple((branch.layers or branch.weights)[-1] for branch in found.branches)
    yield Finding(
        "unscaled-branches",
        "error" if decades >= _ERROR else "warning",
        f"{len(ends)} residual branches add as much as is there, or more, again and again: the rms of the stream grows "
        f"by {decades:.1f} decades from the first to the last, and gradients grow likewise on their way back.",
        'gradscope.init.initialize(model, "scaled_branches", inputs=inputs)',
        "Hayou et al. (2021), 3; De & Smith (2020), 3",
        direction="both",
        sites=ends,
        value=decades,
        unit="decades of rms",
        limit=_DECADE,
        limit_from="a factor of ten between the first layers and the last",
        expected=0.5 * math.log10(math.e),
    )


def _lengths(found: Branches, values: Sequence[int]) -> list[float | None]:
    """Predicted mean squares of values of the program; None where they are not known, or nothing."""
    with torch.enable_grad():
        flow = Flow(found.program, {}, found.program.tensors)
        flow.run()
    known = [flow.known.get(value) for value in values]
    squares = [one.alike.same if isinstance(one, Value) else 0.0 for one in known]
    return [square if 0.0 < square < math.inf else None for square in squares]
