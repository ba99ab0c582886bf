"""Weights by theory: the model's own program is walked, and each weight scaled so that the predicted profiles are flat.

Each weight is met once, in the order of execution, with what theory knows of its input x = f(h) and of its output:

    forward    Var w such that the output has mean square q = 1; at the end of one of L residual branches 1/L of what it
               is added to, so that all of them together double the stream
    backward   behind a nonlinear f the variance 1/E[f'(h)²] of the edge of chaos, where a bias is there that makes up
               the rest of q: then both directions are flat

so data are not needed, and no architecture is special: what has a rule in `gradscope.predict` is walked through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradscope.init._left import is_bias, is_norm
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._branches import Branch
from gradscope.init._model_schemes._edits import constant_step, each_part, normal, scaled
from gradscope.init._plan_moments import moments_of_plan
from gradscope.init._steps import Step
from gradscope.theory.prediction import Moments
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant, Known
from gradscope.theory.prediction._grid import mean
from gradscope.theory.prediction._prediction import Flow
from gradscope.theory.prediction._value import Value

_PRODUCTS = frozenset(f"aten.{name}" for name in ("mm", "addmm", "linear", "bmm", "matmul", "baddbmm", "convolution"))
_LINEAR = 1e-9
"""Relative variance of a slope that is one number."""


@dataclass(frozen=True)
class Propagate(ModelScheme):
    """Normal weights, and biases where they help, that predict flat profiles in both directions.

    Attributes:
        biases: biases may be random; without them the forward direction alone is made flat.

    Norms at the end of a residual branch of L get the factors 1/√L. Recurrent layers, embeddings and what `initialize`
    leaves are as they would be anyway. It takes inputs for their shapes: they may be on the meta device.

    Raises:
        ValueError: no inputs.
    """

    name: ClassVar[str] = "propagate"
    paper: ClassVar[str] = "as predicted; Schoenholz et al. (2017) for biases, Hayou et al. (2021) for branches"
    biases: bool = True

    def steps(self, setting: Setting) -> Iterable[Step]:
        """The recommended weights, rescaled."""
        if setting.inputs is None:
            raise ValueError("inputs is None; propagate takes one batch, to see what the model does with it")
        base = setting.steps()
        plan = [part.row for step in base for part in step.parts]
        set_at_all = {step.slot.path for step in base if step.fills and not is_bias(step.slot)}
        biases = {step.slot.path for step in base if step.fills and is_bias(step.slot) and self.biases}
        found = setting.program
        ends = {_last_product(branch): branch for branch in found.branches}
        count = max(len(found.branches), 1)
        last = {branch.last for branch in found.branches}
        norms = {step.slot.path for step in base if step.slot.path in last and is_norm(step.slot.module)}
        ends = {name: branch for name, branch in ends.items() if branch.last not in norms}
        given = {**moments_of_plan(setting.model, plan), **dict.fromkeys(norms, Moments(1.0 / count, count**-0.5))}
        flow = _Scaling(
            found.program,
            given,
            found.program.tensors,
            scalable=frozenset(set_at_all),
            biases=frozenset(biases),
            ends=ends,
            count=count,
        )
        with torch.enable_grad():
            flow.run()
        for step in base:
            yield self._step(step, flow, norms, len(found.branches))

    def _step(self, step: Step, flow: _Scaling, norms: set[str], branches: int) -> Step:
        path = step.slot.path
        if path in flow.factors:
            factor = math.sqrt(flow.factors[path])
            return each_part(step, lambda part: scaled(part, factor, "as predicted"))
        if (variance := flow.bias_variances.get(path, 0.0)) > 0.0:
            return each_part(step, lambda part: normal(part, self.name, variance))
        if path in norms and not step.fills:
            return constant_step(step, branches**-0.5, f"last of one of {branches} branches")
        return step


def _last_product(branch: Branch) -> str:
    return (branch.layers or branch.weights)[-1]


@dataclass(eq=False)
class _Scaling(Flow):
    """A prediction in which each weight is scaled where it is met.

    Attributes:
        scalable: names of the weights.
        biases: names of the biases that may become random.
        ends: the weight that a residual branch ends in → the branch, where no norm follows it.
        count: of the branches.
        factors: on the variances of weights.
        bias_variances: of biases.
    """

    scalable: frozenset[str] = frozenset()
    biases: frozenset[str] = frozenset()
    ends: Mapping[str, Branch] = field(default_factory=dict)
    count: int = 1
    factors: dict[str, float] = field(default_factory=dict)
    bias_variances: dict[str, float] = field(default_factory=dict)

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
        return super()._made(operation)

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
        target = 1.0 if branch is None else self._stream(branch) / self.count
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
