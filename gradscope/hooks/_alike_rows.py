"""Parameters whose rows began equal, and still are: latents, slots, components of a mixture that nothing tells apart.

Moments of a tensor do not show that. What begins so is compared once, and only what is still so is compared again, at
the steps whose unit moments are taken: of most models that is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gradscope.hooks._tensors import is_distributed


class AlikeRows:
    """Keeps the fact `alike_rows`: the parameters, at which step they were looked at last, and how often.

    Args:
        names: gives the model's parameters by name, as they are now.
        tell: takes the fact.
    """

    def __init__(self, names: Callable[[], Iterable[tuple[str, Tensor]]], tell: Callable[[str, object], None]) -> None:
        self._names = names
        self._tell = tell
        self._left: set[str] | None = None
        self._looks = 0

    @torch.no_grad()
    def look(self, step: int) -> None:
        """At this step, before an optimizer changes the weights; on a device this waits for it."""
        if self._left is not None and not self._left:
            return
        if self._left is None:
            found = [name for name, parameter in self._names() if _are_equal(parameter)]
        else:
            found = [name for name, parameter in self._names() if name in self._left and _are_alike(parameter)]
        told = bool(found) or bool(self._left)
        self._left, self._looks = set(found), self._looks + 1
        if told:
            self._tell("alike_rows", {"parameters": found, "step": step, "looks": self._looks})


ROUNDING = 1e-3
"""Of the largest entry: as far as rounding may take rows apart that get the same gradient, in a few dozen steps."""


def _are_alike(tensor: Tensor) -> bool:
    """Whether the rows differ by no more than rounding."""
    return bool((tensor - tensor[:1]).abs().max() <= ROUNDING * tensor.abs().max())


def _are_equal(tensor: Tensor) -> bool:
    """Whether all rows are equal, of two at least; the first two tell most others, and cost next to nothing."""
    if tensor.dim() < 2 or tensor.shape[0] < 2 or not tensor.requires_grad or not tensor.numel():
        return False
    if tensor.layout != torch.strided or tensor.device.type == "meta" or is_distributed(tensor):
        return False
    return bool(torch.equal(tensor[0], tensor[1])) and bool((tensor == tensor[:1]).all())
