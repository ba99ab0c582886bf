"""A prediction in which each weight is scaled where it is met: its output gets the mean square that is wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradscope.init._model_schemes._branches import Branch
from gradscope.theory.prediction import Moments
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant, Known
from gradscope.theory.prediction._grid import mean
from gradscope.theory.prediction._prediction import Flow
from gradscope.theory.prediction._value import Value

_PRODUCTS = frozenset(f"aten.{name}" for name in ("mm", "addmm", "linear", "bmm", "matmul", "baddbmm", "convolution"))
_LINEAR = 1e-9
"""Relative variance of a slope that is one number."""


@dataclass(eq=False)
class Scaling(Flow):
    """A prediction in which each weight is scaled where it is met.

    Attributes:
        scalable: names of the weights.
        biases: names of the biases that may become random.
        ends: the weight that a residual branch ends in → the branch, where no norm follows it.
        count: of the branches.
        targets: mean square wanted of a weight's outputs, by name; 1 for others.
        factors: on the variances of weights.
        bias_variances: of biases.
        outputs: of the weights.
    """

    scalable: frozenset[str] = frozenset()
    biases: frozenset[str] = frozenset()
    ends: Mapping[str, Branch] = field(default_factory=dict)
    count: int = 1
    targets: Mapping[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    bias_variances: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)

    def shared_targets(self, left: frozenset[str]) -> dict[str, float]:
        """The targets under which a layer's output strays as far from flat as the gradient of it.

        Where weights alone can be scaled, a layer's mean square times that of its gradient stays what it is: what the
        one wins the other loses. With the square root of the product both lose half of what one of them would lose.

        Args:
            left: names of weights that are no part of this, as those of scores, the last one and the ends of branches.
        """
        found = {name: value for name, value in self.outputs.items() if name not in left and value.root is not None}
        products = {name: value.alike.same * value.root.gradient.same for name, value in found.items() if value.root}
        roots = {name: math.sqrt(product) for name, product in products.items() if 0.0 < product < math.inf}
        if not roots:
            return {}
        centre = math.exp(sum(map(math.log, roots.values())) / len(roots))
        return {name: root / centre for name, root in roots.items()}

    def _made(self, operation: Operation) -> Sequence[Known | None]:
        steps, covered = len(self._later), self.covered
        made = super()._made(operation)
        given = self._resolve(operation.args) if operation.name in _PRODUCTS else ()
        weight = next((one for one in given if self._is_scalable(one)), None)
        x = next((one for one in given if isinstance(one, Value)), None)
        if weight is None or x is None or self.covered == covered or not isinstance(made[0], Value):
            return made
        bias = next((one for one in given if isinstance(one, Constant) and one.name in self.biases), None)
        self._scale(weight, bias, x, made[0])
        del self._later[steps:]
        self.covered = covered
        made = super()._made(operation)
        if isinstance(made[0], Value):
            self.outputs[str(weight.name)] = made[0]
        return made

    def _is_scalable(self, one: Any) -> bool:
        return (
            isinstance(one, Constant)
            and one.name in self.scalable
            and one.name not in self.factors
            and len(one.shape) > 1
        )

    def _scale(self, parameter: Constant, biases: Constant | None, x: Value, made: Value) -> None:
        weight, bias = str(parameter.name), None if biases is None else str(biases.name)
        now = made.alike.same
        branch = self.ends.get(weight)
        target = self.targets.get(weight, 1.0) if branch is None else self._stream(branch) / self.count
        if not (math.isfinite(now) and now > 0.0 and target > 0.0):
            self.factors[weight] = 1.0
            return
        factor, rest = target / now, 0.0
        slope = _slope_square(x)
        if branch is None and bias is not None and slope is not None:
            kept = x.alike.same / (now * slope)  # the factor at which a gradient's mean square is kept
            if kept < factor:
                factor, rest = kept, target - kept * now
        self.factors[weight] = factor
        self._set(weight, factor)
        if bias is not None and rest > 0.0:
            self.bias_variances[bias] = rest
            for value, one in self.known.items():
                if isinstance(one, Constant) and one.name == bias:
                    self.known[value] = Constant(one.shape, Moments(rest), None, bias, one.share)

    def _stream(self, branch: Branch) -> float:
        """Mean square of what the branch is added to, where it is known already."""
        skip = self.known.get(branch.skip)
        return skip.alike.same if isinstance(skip, Value) else 1.0

    def _set(self, weight: str, factor: float) -> None:
        """The parameter and all that has been made of it so far."""
        for value, one in self.known.items():
            if isinstance(one, Constant) and one.name == weight:
                moments = Moments(one.moments.square * factor, one.moments.mean * math.sqrt(factor))
                self.known[value] = replace(one, moments=moments, tensor=None)


def _slope_square(x: Value) -> float | None:
    """E[f'(h)²] of a nonlinear function of one root; None of anything else."""
    if x.root is None or not x.f.requires_grad:
        return None
    slopes: Sequence[Tensor | None] = torch.autograd.grad(x.f.sum(), x.root.h, retain_graph=True, allow_unused=True)
    slope = slopes[0]
    if slope is None:
        return None
    square, straight = mean(slope.square()), mean(slope)
    return square if square > 0.0 and square - straight**2 > _LINEAR * square else None
