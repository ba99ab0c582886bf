"""Weights by theory: the model's own program is walked, and each weight scaled so that the predicted profiles are flat.

Each weight is met once, in the order of execution, with what theory knows of its input x = f(h) and of its output:

    forward    Var w such that the output has mean square q = 1; at the end of one of L residual branches 1/L of what it
               is added to, so that all of them together double the stream
    backward   behind a nonlinear f the variance 1/E[f'(h)²] of the edge of chaos, where a bias is there that makes up
               the rest of q: then both directions are flat
    both       where they are not (other fans on the way back, pooling), a layer gets q = √g instead, g the mean square
               of its gradient at q = 1: scaling leaves q·g as it is, so the two share what cannot be flat

so data are not needed, and no architecture is special: what has a rule in `gradscope.predict` is walked through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from gradscope.init._flatness import predicted_decades
from gradscope.init._left import is_bias, is_norm
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._branches import Branch
from gradscope.init._model_schemes._edits import constant_step, each_part, normal, scaled
from gradscope.init._model_schemes._scaling import Scaling
from gradscope.init._plan_moments import moments_of_plan
from gradscope.init._steps import Step
from gradscope.theory.prediction import Moments

MARGIN = 0.1
"""Decades that a choice must gain to be taken in place of a simpler one."""


@dataclass(frozen=True)
class Proposal:
    """Steps, and how far the signal strays under them.

    Attributes:
        steps: one per parameter.
        decades: predicted, the larger of both directions; NaN where nothing could be.
    """

    steps: tuple[Step, ...]
    decades: float


@dataclass(frozen=True)
class Propagate(ModelScheme):
    """Normal weights, and biases where they help, that predict flat profiles in both directions.

    Attributes:
        biases: biases may be random; without them the forward direction alone is made flat.
        shared: where one direction can only be flat at the other's expense, both stray by half, if that keeps the worse
            of them flatter by a tenth of a decade and more; without it the forward direction is flat all the same.

    Norms at the end of a residual branch of L get the factors 1/√L. Recurrent layers, embeddings and what `initialize`
    leaves are as they would be anyway. It takes inputs for their shapes: they may be on the meta device.

    Raises:
        ValueError: no inputs.
    """

    name: ClassVar[str] = "propagate"
    paper: ClassVar[str] = "as predicted; Schoenholz et al. (2017) for biases, Hayou et al. (2021) for branches"
    biases: bool = True
    shared: bool = True

    def steps(self, setting: Setting) -> Iterable[Step]:
        """The recommended weights, rescaled."""
        if setting.inputs is None:
            raise ValueError("inputs is None; propagate takes one batch, to see what the model does with it")
        return self.propose(setting).steps

    def propose(self, setting: Setting) -> Proposal:
        """The recommended weights, rescaled, and what is predicted of them; there are inputs."""
        base, found = setting.steps(), setting.program
        count = max(len(found.branches), 1)
        last = {branch.last for branch in found.branches}
        norms = {step.slot.path for step in base if step.slot.path in last and is_norm(step.slot.module)}
        flow, decades = self._scaled(setting, base, norms)
        if self.shared and decades > MARGIN:
            scores = frozenset(name for branch in found.branches for name in branch.scores)
            targets = flow.shared_targets(scores | frozenset(flow.ends) | frozenset(list(flow.outputs)[-1:]))
            other, of_other = self._scaled(setting, base, norms, targets)
            if of_other < decades - MARGIN:
                flow, decades = other, of_other
        return Proposal(tuple(self._step(step, flow, norms, count) for step in base), decades)

    def _scaled(
        self, setting: Setting, base: list[Step], norms: set[str], targets: Mapping[str, float] | None = None
    ) -> tuple[Scaling, float]:
        """A prediction with the weights scaled, and the decades by which it strays."""
        plan = [part.row for step in base for part in step.parts]
        found, count = setting.program, max(len(setting.program.branches), 1)
        ends = {_last_product(branch): branch for branch in found.branches if branch.last not in norms}
        given = {**moments_of_plan(setting.model, plan), **dict.fromkeys(norms, Moments(1.0 / count, count**-0.5))}
        filled = [step.slot for step in base if step.fills]
        flow = Scaling(
            found.program,
            given,
            found.program.tensors,
            scalable=frozenset(slot.path for slot in filled if not is_bias(slot)),
            biases=frozenset(slot.path for slot in filled if is_bias(slot) and self.biases),
            ends=ends,
            count=count,
            targets=targets or {},
        )
        with torch.enable_grad():
            flow.run()
            flow.back()
        return flow, max(map(abs, predicted_decades(flow, setting.model, found)))

    def _step(self, step: Step, flow: Scaling, norms: set[str], branches: int) -> Step:
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
