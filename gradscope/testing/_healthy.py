"""`assert_healthy`: the diagnosis decides, without a baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gradscope.diagnosis import SEVERITIES, Findings, Limits, diagnose
from gradscope.recording import Recording
from gradscope.recording._errors import unknown_name
from gradscope.testing._observe import MakesModel, MakesOptimizer, Subject, observed


def assert_healthy(
    model: nn.Module | MakesModel,
    inputs: Any,
    target: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    steps: int = 1,
    optimizer: Any | MakesOptimizer | None = None,
    fail_on: str = "error",
    limits: Limits | None = None,
    seed: int = 0,
) -> Findings:
    """Fail where the diagnosis finds something as severe as `fail_on` says.

    Args:
        model: a module, afterwards as before; or a function without arguments that makes one.
        inputs, target, loss_fn: as `gradscope.probe` takes them.
        steps, optimizer: so many steps of training on the batch; without an optimizer one forward and one backward.
            `optimizer` holds the module's parameters, or is a function of them, as `torch.optim.SGD`.
        fail_on: `error`, `warning` or `note`.
        limits: where the rules draw their lines.
        seed: from which everything starts.

    Returns:
        All that was found, also what is less severe.

    Raises:
        AssertionError: something as severe was found; the message is the findings.
        TypeError, ValueError: an argument is not as above.

    >>> import torch
    >>> assert_healthy(lambda: nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)), torch.randn(64, 32)).worst
    """
    __tracebackhide__ = True
    return judged(observed(Subject(model, inputs, target, loss_fn, steps, optimizer), seed), fail_on, limits)


def judged(recording: Recording, fail_on: str, limits: Limits | None) -> Findings:
    """What is found in a recording; AssertionError where that is as severe as `fail_on` says."""
    __tracebackhide__ = True
    if fail_on not in SEVERITIES:
        raise unknown_name("fail_on", fail_on, SEVERITIES)
    found = diagnose(recording, limits)
    sick = [one for one in found if SEVERITIES.index(one.severity) <= SEVERITIES.index(fail_on)]
    if sick:
        raise AssertionError("the model is not healthy:\n" + "\n".join(map(str, sick)))
    return found
