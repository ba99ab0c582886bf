"""Maximal update parametrization: initial weights (and learning rates) at which a wider net learns as a narrow one.

With m = fan_in/fan_in of the base model and v the variance that the recommended scheme gives the base's weight:

    input, fixed: v        hidden: v/m        output: v/m²        Adam's learning rate: lr, lr/m for hidden and output

so that a hidden weight has a variance of the order 1/fan_in and an output weight 1/fan_in². Yang et al. (2021), table
3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from gradscope.init._choice import AUTO
from gradscope.init._fans import Fans
from gradscope.init._layer_fans import weight_blocks
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._branches import weight_path
from gradscope.init._model_schemes._edits import each_part, normal
from gradscope.init._registry import get_scheme
from gradscope.init._slots import slots
from gradscope.init._steps import Part, Step

Kind = Literal["input", "hidden", "output", "fixed"]


@dataclass(frozen=True)
class _Width:
    """What a weight is, how many times the base's its fan_in is, and the base's fans, block by block."""

    kind: Kind
    times: float
    base: Mapping[str, Fans]


@dataclass(frozen=True)
class MuP(ModelScheme):
    """Normal weights by what widens: with a base the recommended scheme at its width, scaled from there.

    Attributes:
        base: the same model at a small width, also on the meta device; which dimensions are widths is seen by comparing
            shapes. Without it the last layer is the output, with variance 1/fan_in², and all others have gain/fan_in.

    Raises:
        ValueError: base lacks a parameter of the model.
    """

    name: ClassVar[str] = "mup"
    paper: ClassVar[str] = "Yang et al. (2021), table 3"
    base: nn.Module | None = field(default=None, compare=False)

    def steps(self, setting: Setting) -> Iterable[Step]:
        """Each weight by what it is."""
        widths = self._widths(setting)
        for step in setting.steps(AUTO):
            width = widths.get(step.slot.path)

            def change(part: Part, width: _Width | None = width) -> Part:
                if width is None or part.row.fans is None or part.row.scheme is None:
                    return part
                base = width.base.get(part.row.block)
                if base is None:  # no base: as wide as it is, by fan_in alone
                    gain = 2.0 if part.row.scheme.startswith("he") else 1.0
                    variance = gain / part.row.fans.fan_in
                else:
                    variance = float(get_scheme(part.row.scheme).variance(base) or 0.0)
                power = {"hidden": 1.0, "output": 2.0}.get(width.kind, 0.0)
                if base is None:  # 1/fan_in is in it already
                    power = max(power - 1.0, 0.0)
                return normal(part, self.name, variance / width.times**power, width.kind)

            yield each_part(step, change)

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Groups for Adam: a base's learning rate, over m for hidden and output weights.

        Raises:
            ValueError: there is no base.
        """
        if self.base is None:
            raise ValueError("base is None; learning rates are a base model's, over how much wider this one is")
        widths = self._by_base(model)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            width = widths.get(weight_path(name))
            narrow = width is None or width.kind not in ("hidden", "output")
            groups.setdefault(lr if width is None or narrow else lr / width.times, []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]

    def _widths(self, setting: Setting) -> Mapping[str, _Width]:
        if self.base is not None:
            return self._by_base(setting.model)
        order = setting.following.order
        found: dict[str, _Width] = {}
        for slot in slots(setting.model):
            blocks = (weight_blocks(slot.module) or {}).get(slot.name, ())
            if not blocks or isinstance(slot.module, nn.Embedding | nn.EmbeddingBag):
                continue
            last = len(order) > 1 and slot.module_name == order[-1]
            found[slot.path] = _Width("output" if last else "hidden", blocks[0].fans.fan_in, {})
        return found

    def _by_base(self, model: nn.Module) -> dict[str, _Width]:
        assert self.base is not None
        small = {slot.path: slot for slot in slots(self.base)}
        found: dict[str, _Width] = {}
        for slot in slots(model):
            if slot.path not in small:
                raise ValueError(f"base has no parameter {slot.path!r}; it is the same model at another width")
            own, base = ((weight_blocks(one.module) or {}).get(one.name, ()) for one in (slot, small[slot.path]))
            if not own or not base or isinstance(slot.module, nn.Embedding | nn.EmbeddingBag):
                continue
            times_in, times_out = (a / b for a, b in zip(own[0].fans, base[0].fans, strict=True))
            wide_in, wide_out = times_in != 1.0, times_out != 1.0
            kind: Kind = "hidden" if wide_in and wide_out else "output" if wide_in else "input" if wide_out else "fixed"
            found[slot.path] = _Width(kind, times_in, {block.name: block.fans for block in base})
        return found
