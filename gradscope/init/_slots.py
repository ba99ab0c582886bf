"""A model's parameters as its layers see them: plain, or computed by a parametrization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized


@dataclass(frozen=True)
class Slot:
    """Where a parameter lives: `weight` of the module `layers.3`.

    A parametrized weight (`torch.nn.utils.parametrizations`) is one slot, not its originals.
    """

    module_name: str
    module: nn.Module
    name: str

    @property
    def path(self) -> str:
        """The parameter's qualified name, `layers.3.weight`."""
        return f"{self.module_name}.{self.name}".lstrip(".")

    @property
    def parametrization(self) -> ParametrizationList | None:
        """What computes the value, None for a plain parameter."""
        if not is_parametrized(self.module, self.name):
            return None
        computed_by = cast(nn.ModuleDict, self.module.parametrizations)[self.name]
        return cast(ParametrizationList, computed_by)

    @property
    def originals(self) -> tuple[Tensor, ...]:
        """The trainable tensors that hold the value: itself, or those that it is computed from."""
        if self.parametrization is None:
            return (cast(Tensor, self.module._parameters[self.name]),)
        return tuple(self.parametrization.parameters(recurse=False))

    @property
    def settable(self) -> bool:
        """Whether a value can be written: a parametrization needs a right inverse."""
        computed_by = self.parametrization
        return computed_by is None or all(hasattr(step, "right_inverse") for step in computed_by)

    def read(self) -> Tensor:
        """The value as the layer sees it; a view of a plain parameter, a fresh tensor of a computed one."""
        with torch.no_grad():
            if self.parametrization is None:
                return self.originals[0].detach()
            # Not in training mode: there spectral norm iterates at each reading, and changes its buffers.
            training = self.parametrization.training
            self.parametrization.eval()
            value = cast(Tensor, getattr(self.module, self.name)).detach()
            self.parametrization.train(training)
            return value.clone(memory_format=torch.contiguous_format)

    def write(self, value: Tensor) -> None:
        """Set the value, for a computed one through its originals; a view that `read` gave is set already."""
        if self.parametrization is not None:
            with torch.no_grad():
                setattr(self.module, self.name, value)


def slots(model: nn.Module) -> Iterator[Slot]:
    """Every parameter in the order of definition."""
    for module_name, module in model.named_modules():
        if isinstance(module, ParametrizationList):
            continue  # its originals belong to the slot of the module that it computes for
        names = [name for name, parameter in module._parameters.items() if parameter is not None]
        if is_parametrized(module):
            names += list(cast(nn.ModuleDict, module.parametrizations))
        for name in names:
            yield Slot(module_name, module, name)
