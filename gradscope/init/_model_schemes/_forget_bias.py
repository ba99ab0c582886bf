"""Gates that begin by keeping the state: the forget gate of an LSTM, the update gate of a GRU.

A constant: Gers, Schmidhuber & Cummins (2000); Jozefowicz, Zaremba & Sutskever (2015), 1 or 2. Spread over time scales,
chrono: b_f = ln U(1, T − 1), b_i = −b_f, T the longest dependency; Tallec & Ollivier (2018), section 2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import drawn, each_part
from gradscope.init._model_schemes._recurrent import GATES, check_gated, is_input_bias, kind, orthogonal_states
from gradscope.init._steps import Part, Step
from gradscope.init._variance_scaling import ready

Generator = torch.Generator | None


class _Gated(ModelScheme):
    """Orthogonal recurrent weights, gate by gate, and biases of the gates that keep the state; the others 0."""

    def steps(self, setting: Setting) -> Iterable[Step]:
        """Biases beside the input; those beside the state stay 0."""
        check_gated(setting, self.name)
        for step in orthogonal_states(setting):
            layer = kind(step.slot.module)
            if layer not in GATES or not is_input_bias(step):
                yield step
                continue

            def change(part: Part, step: Step = step, layer: str = layer) -> Part:
                gates = 4 if layer == "LSTM" else 3
                size = step.slot.read().shape[0] // gates
                asked = tuple(moment / gates for moment in self.moments(layer))
                return drawn(part, self.name, None, partial(self._fill, layer, size), self.note(layer), asked)  # type: ignore[arg-type]

            yield each_part(step, change)

    def _fill(self, layer: str, size: int, value: Tensor, generator: Generator) -> None:
        if ready(value.zero_(), generator):
            self.fill(layer, {gate: value[i * size : (i + 1) * size] for gate, i in GATES[layer].items()}, generator)

    @abstractmethod
    def note(self, layer: str) -> str:
        """What the table says."""

    @abstractmethod
    def moments(self, layer: str) -> tuple[float, float]:
        """Sums over the gates of the mean square and of the mean of their biases."""

    @abstractmethod
    def fill(self, layer: str, gates: dict[str, Tensor], generator: Generator) -> None:
        """Sets the biases of the gates, which are 0."""


@dataclass(frozen=True)
class ForgetBias(_Gated):
    """One bias for all forget gates of an LSTM, or update gates of a GRU.

    Attributes:
        bias: finite.

    Raises:
        ValueError: bias is not finite; a model without LSTM and GRU, or with bias=False in all of them.
    """

    name: ClassVar[str] = "forget_bias"
    paper: ClassVar[str] = "Gers et al. (2000); Jozefowicz et al. (2015)"
    bias: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise ValueError(f"bias={self.bias!r} must be finite")

    def note(self, layer: str) -> str:
        """Which gates."""
        return f"{'forget' if layer == 'LSTM' else 'update'} gates {self.bias:g}"

    def moments(self, layer: str) -> tuple[float, float]:
        """Of one gate."""
        return self.bias**2, self.bias

    def fill(self, layer: str, gates: dict[str, Tensor], generator: Generator) -> None:
        """The same for all units."""
        gates["forget" if layer == "LSTM" else "update"].fill_(self.bias)


@dataclass(frozen=True)
class Chrono(_Gated):
    """Forget gates of time scales between 1 and the longest.

    Attributes:
        longest: T, the longest dependency in steps; above 2.

    Raises:
        ValueError: longest is not above 2; a model without LSTM and GRU, or with bias=False in all of them.
    """

    name: ClassVar[str] = "chrono"
    paper: ClassVar[str] = "Tallec & Ollivier (2018), section 2"
    longest: float = 100.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.longest) and self.longest > 2.0):
            raise ValueError(f"longest={self.longest!r} must be finite and above 2")

    def note(self, layer: str) -> str:
        """Over how many steps."""
        return f"{'forget' if layer == 'LSTM' else 'update'} gates keep for 1 to {self.longest:g} steps"

    def moments(self, layer: str) -> tuple[float, float]:
        """∫ ln x and ∫ ln² x over [1, T − 1], over its length; an LSTM's input gates have the opposite."""
        end, log = self.longest - 1.0, math.log(self.longest - 1.0)
        mean = (end * log - end + 1.0) / (end - 1.0)
        square = (end * (log * log - 2.0 * log + 2.0) - 2.0) / (end - 1.0)
        return (2.0 * square, 0.0) if layer == "LSTM" else (square, mean)

    def fill(self, layer: str, gates: dict[str, Tensor], generator: Generator) -> None:
        """ln U(1, T − 1), and its opposite for the input gates of an LSTM."""
        keeping = gates["forget" if layer == "LSTM" else "update"]
        keeping.uniform_(1.0, self.longest - 1.0, generator=generator).log_()
        if layer == "LSTM":
            gates["input"].copy_(-keeping)
