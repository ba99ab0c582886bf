"""The moments that the parameters of a model will have, by a plan."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from torch import nn

from gradscope.init._left import is_norm
from gradscope.init._plan import PlanRow
from gradscope.theory.prediction import Moments


def moments_of_plan(model: nn.Module, plan: Iterable[PlanRow]) -> dict[str, Moments]:
    """The moments asked for; of a packed parameter's blocks the mean, each by its size.

    What the plan leaves as it is has its values or, on the meta device, torch's default: norms 1 and 0, embeddings
    N(0, 1).

    Raises:
        ValueError: a scheme does not tell how large its weights will be.
    """
    sizes: dict[str, int] = defaultdict(int)
    sums: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for row in plan:
        if row.scheme is not None:
            size = math.prod(row.shape)
            square, mean = _asked(row)
            sizes[row.parameter] += size
            before = sums[row.parameter]
            sums[row.parameter] = before[0] + size * square, before[1] + size * mean
    found = {name: Moments(sums[name][0] / size, sums[name][1] / size) for name, size in sizes.items() if size}
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        if name in found or parameter.device.type != "meta":
            continue
        if is_norm(module):
            found[name] = Moments(1.0, 1.0) if own == "weight" else Moments(0.0)
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            found[name] = Moments(1.0)
    return found


def _asked(row: PlanRow) -> tuple[float, float]:
    """Mean square and mean of the entries."""
    if row.asked is not None:
        return row.asked
    if row.variance_asked is not None:
        return row.variance_asked, 0.0
    raise ValueError(
        f"parameters: the plan does not tell how large {row.parameter!r} will be under {row.scheme!r}: initialize a"
        " copy of the model and predict that"
    )
