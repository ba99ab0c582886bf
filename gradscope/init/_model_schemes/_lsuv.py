"""Layer-sequential unit variance: orthogonal weights, each then scaled until its outputs on a batch have variance 1.

    while |Var(out) − 1| > tolerance:  W ← W/√Var(out)          layer after layer, in the order of execution

Mishkin & Matas (2016), algorithm 1. It sees the forward direction alone: over 30 sigmoid layers the gradient's mean
square still shrinks to 10⁻²³.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._plan import PlanRow
from gradscope.init._slots import Slot, slots
from gradscope.init._steps import Step
from gradscope.init._untouched import run, untouched


@dataclass(frozen=True)
class LSUV(ModelScheme):
    """Unit variance of each layer's outputs on the inputs given.

    Attributes:
        tolerance: how far from 1 the variance may be.
        iterations: at most so many rescalings of a layer.

    Linear layers and convolutions are scaled, at their first call; of packed weights (attention, recurrent layers) the
    orthogonal start is all.

    Raises:
        ValueError: no inputs; a tolerance not above 0, or fewer than one iteration.
    """

    name: ClassVar[str] = "lsuv"
    paper: ClassVar[str] = "Mishkin & Matas (2016), algorithm 1"
    tolerance: float = 0.1
    iterations: int = 10

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance > 0.0):
            raise ValueError(f"tolerance={self.tolerance!r} must be finite and above 0")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations!r} must be at least 1")

    def steps(self, setting: Setting) -> Iterable[Step]:
        """Orthogonal weights, biases of 0."""
        if setting.inputs is None:
            raise ValueError("inputs is None; lsuv takes one batch, on which the variances become 1")
        return setting.steps("orthogonal")

    def finish(self, setting: Setting, rows: Sequence[PlanRow], generator: torch.Generator | None) -> Sequence[PlanRow]:
        """One pass over the batch, in which each layer is scaled before its outputs go on."""
        filled = {row.parameter for row in rows if row.scheme == "orthogonal" and not row.block}
        within = {
            slot.module_name: slot
            for slot in slots(setting.model)
            if slot.path in filled and slot.name == "weight" and not slot.originals[0].is_meta
        }
        notes: dict[str, str] = {}
        with untouched(setting.model), torch.no_grad():
            handles = [
                setting.model.get_submodule(name).register_forward_hook(self._hook(slot, notes), with_kwargs=True)
                for name, slot in within.items()
            ]
            try:
                run(setting.model, setting.inputs)
            finally:
                for handle in handles:
                    handle.remove()
        values = {slot.path: slot.read() for slot in within.values()}
        return [
            replace(
                row,
                scheme=self.name,
                variance_asked=None,
                variance_got=float(values[row.parameter].double().var(correction=0)),
                note=notes.get(row.parameter, "not called with these inputs"),
            )
            if row.parameter in values
            else row
            for row in rows
        ]

    def _hook(self, slot: Slot, notes: dict[str, str]) -> Any:
        def scale(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if slot.path in notes or not isinstance(output, Tensor):
                return None
            start = float(output.double().var(correction=0))
            var, rounds = start, 0
            if not (math.isfinite(var) and var > 0.0):
                notes[slot.path] = f"its outputs have variance {var:g}: left at the orthogonal start"
                return None
            while abs(var - 1.0) > self.tolerance and rounds < self.iterations:
                value = slot.read()
                slot.write(value.div_(math.sqrt(var)))
                output = module.forward(*args, **kwargs)
                var, rounds = float(output.double().var(correction=0)), rounds + 1
            notes[slot.path] = f"variance of its outputs {start:.3g} → {var:.3g}"
            return output

        return scale
