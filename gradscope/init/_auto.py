"""`"auto"` with inputs: the recommended weights, or those of `propagate` where theory says that these are flatter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gradscope.init._flatness import predicted_decades
from gradscope.init._model_schemes import Propagate, Setting
from gradscope.init._model_schemes._propagate import MARGIN
from gradscope.init._plan_moments import moments_of_plan
from gradscope.init._steps import Step
from gradscope.theory.prediction._prediction import Flow
from gradscope.theory.prediction._value import Value

_LONGEST = 120
"""Characters of a reason."""


@dataclass(frozen=True)
class Chosen:
    """What `auto` does to a model.

    Attributes:
        steps: one per parameter.
        why: a sentence on how it chose; empty where the recommended weights stand because they are as good as any.
    """

    steps: tuple[Step, ...]
    why: str = ""


class Unpredictable(Exception):
    """Theory has no answer for this model, and why, in words."""


def chosen(setting: Setting) -> Chosen:
    """The recommended weights; with inputs those of `propagate` if theory expects a tenth of a decade less of them.

    A model that cannot be captured or predicted as a whole gets the recommended ones, and the sentence says so.
    """
    recommended = tuple(setting.steps())
    if setting.inputs is None:
        return Chosen(recommended)
    try:
        decades = _predicted(setting, recommended)
        if decades <= MARGIN:
            return Chosen(recommended)
        other = Propagate().propose(setting)
    # The model has run already, to see what follows its layers: what fails here is the capture of it, or theory.
    except Exception as error:
        return Chosen(recommended, f"Variances as recommended: {_reason(error)}")
    if not other.decades < decades - MARGIN:
        return Chosen(recommended)
    return Chosen(
        other.steps,
        f"Scaled by propagate: signal or gradient would stray by {decades:.2f} decades over the layers,"
        f" now by {other.decades:.2f} (predicted)",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, Unpredictable):
        return str(error)
    first = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"theory cannot predict this model ({first[:_LONGEST]})"


def _predicted(setting: Setting, steps: tuple[Step, ...]) -> float:
    """Decades, the larger of both directions."""
    found = setting.program
    given = [tensor for _, tensor in found.program.inputs]
    if given and all(not tensor.is_meta and tensor.is_floating_point() and not tensor.any() for tensor in given):
        raise Unpredictable("inputs of zeros show theory no signal")
    flow = Flow(
        found.program,
        moments_of_plan(setting.model, [part.row for step in steps for part in step.parts]),
        found.program.tensors,
    )
    with torch.enable_grad():
        flow.run()
        flow.back()
    if flow.assumed:
        raise Unpredictable(f"theory cannot predict this model ({next(iter(flow.assumed)).partition(';')[0]})")
    values = (flow.known.get(one.value) for one in found.program.returned)
    if any(math.isnan(one.alike.same + one.gradient) for one in values if isinstance(one, Value)):
        raise Unpredictable("theory cannot predict this model (its moments are not numbers)")
    return max(map(abs, predicted_decades(flow, setting.model, found)))
