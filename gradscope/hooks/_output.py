"""One floating tensor of what a call has returned, with what it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Output:
    """One floating tensor of what a call of a module, or of a function within it, has returned.

    Attributes:
        tensor: it.
        module: that was called; of a function the one within which.
        name: of the module, of a function `module:function`.
        call: index of this call.
        index: among the floating tensors returned.
        depth: of the call.
        inputs: floating tensors that the module was given.
        function: its plain name.
        args: that a function was given.
        kwargs: likewise.
    """

    tensor: Tensor
    module: nn.Module
    name: str
    call: int = 0
    index: int = 0
    depth: int = 0
    inputs: tuple[Tensor, ...] = ()
    function: str | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> tuple[Any, ...]:
        """What the book of sites asks for."""
        return self.name, self.module, self.call, self.index, self.depth, self.tensor, self.function
