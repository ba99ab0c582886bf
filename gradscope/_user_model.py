"""A user's own model by the name of what makes it, `package.module:factory`: found, run, and explained if it fails."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope._cli_output import Mistake

if TYPE_CHECKING:
    from torch import nn

    from gradscope.diagnosis import Findings
    from gradscope.recording import Recording

HOW_TO_GIVE_A_BATCH = (
    "let it return (model, inputs), (model, inputs, target, loss_fn), or name a function that returns the inputs:"
    " --batch package.module:function"
)


@dataclass(frozen=True)
class UserModel:
    """A model with one batch (without one inputs are None), as `gradscope.probe` takes them, and its factory's name."""

    name: str
    model: nn.Module
    inputs: Any
    target: Any = None
    loss_fn: Callable[..., Any] | None = None


def load(target: str, batch: str | None, *, needs_batch: bool = True) -> UserModel:
    """Runs the factory, and the batch function if there is one; modules are found from the current directory too.

    Args:
        target: `package.module:factory`; it returns a model or `(model, inputs[, target[, loss_fn]])`.
        batch: `package.module:function`; what it returns are the inputs, instead of the factory's.
        needs_batch: a model without inputs will not do; else they are None.

    Raises:
        Mistake: something is not there, fails, or returns what is no model.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    made = _call(target, "factory")
    from torch import nn  # after the user's module: what is wrong with that is said without torch's two seconds

    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 4 or not isinstance(parts[0], nn.Module):
        kinds = ", ".join(type(part).__name__ for part in parts)
        what = f"a tuple ({kinds})" if isinstance(made, tuple) else kinds
        raise Mistake(
            f"{target} returned {what}; allowed are a torch.nn.Module and (model, inputs[, target[, loss_fn]])"
        )
    model, *rest = parts
    if batch is not None:
        rest[:1] = [_call(batch, "batch function")]
    if not rest and needs_batch:
        raise Mistake(f"{target} gave a model but no batch: {HOW_TO_GIVE_A_BATCH}")
    return UserModel(target, model, *(rest or [None]))


def probe(user: UserModel) -> Recording:
    """Probes it; Mistake where the model or its loss cannot take the batch."""
    from gradscope.experiments import probe as run

    try:
        return run(user.model, user.inputs, target=user.target, loss_fn=user.loss_fn)
    except (Exception, SystemExit) as error:
        raise Mistake(f"{user.name} cannot be probed: {_explained(error)}") from error


def predict(user: UserModel, scheme: str | None) -> Recording:
    """Predicts it, under a scheme or with the weights that it has; Mistake where the model cannot take the batch."""
    from gradscope import init
    from gradscope.experiments import predict as run

    try:
        planned = None if scheme is None else init.plan(user.model, scheme, inputs=user.inputs)
        return run(user.model, user.inputs, planned)
    except (Exception, SystemExit) as error:
        raise Mistake(f"{user.name} cannot be predicted: {_explained(error)}") from error


def audit(user: UserModel) -> Findings:
    """Audits it, with a batch in the order of execution; Mistake where it has no weights or cannot take the batch."""
    from gradscope import init

    try:
        return init.audit(user.model, user.inputs)
    except (Exception, SystemExit) as error:
        raise Mistake(f"{user.name} cannot be audited: {_explained(error)}") from error


def _call(target: str, what: str) -> Any:
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise Mistake(f"{target!r} does not name a {what}: write package.module:function")
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise Mistake(f"{target} cannot be imported: {_explained(error)}") from error
    if not callable(found):
        raise Mistake(f"{target} is {type(found).__name__}, which cannot be called; name a {what}")
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise Mistake(f"{target} failed: {_explained(error)}") from error


def _explained(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
