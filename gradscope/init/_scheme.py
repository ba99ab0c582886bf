"""A scheme: how the weights of a layer are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.init._fans import Fans

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Scheme:
    """How the weights of a layer are drawn: a named, in-place function with its paper.

    Attributes:
        name: the function's name without the trailing `_`.
        fill: called as fill(tensor, fans=…, generator=…); where `matrix` is set, as fill(tensor, groups=…,
            generator=…).
        variance_rule: (fans, shape or None) -> the variance asked of the weight's entries, None where the
            entries are not random.
        paper: where it comes from.
        matrix: the scheme makes one matrix, so each group of a convolution is filled by itself.

    >>> from gradscope.init import get_scheme
    >>> get_scheme("he_normal").variance(Fans(fan_in=50, fan_out=10))
    0.04
    """

    name: str
    fill: Callable[..., Tensor]
    variance_rule: Callable[[Fans, Shape | None], float | None]
    paper: str = ""
    matrix: bool = False

    def variance(self, fans: Fans, shape: Shape | None = None) -> float | None:
        """The variance asked of each entry; None where the entries are not random (identity).

        Only orthogonal matrices look at the shape: their mean square is 1/max(rows, cols), for which the fans
        stand where no shape is given (right for a Linear).
        """
        return self.variance_rule(Fans(*fans), shape)

    def __call__(
        self,
        tensor: Tensor,
        *,
        fans: Fans | None = None,
        groups: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Fill `tensor` in place and return it; without `fans` it has those of torch (`init.fans(tensor)`).

        `groups` is a convolution's, for the schemes that make one matrix per group.
        """
        if self.matrix:
            return self.fill(tensor, groups=groups, generator=generator)
        return self.fill(tensor, fans=fans, generator=generator)
