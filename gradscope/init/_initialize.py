"""Choose and apply initial weights to a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradscope import activations
from gradscope.init._auto import chosen
from gradscope.init._choice import AUTO, SchemeLike
from gradscope.init._definition import functions_suspected
from gradscope.init._following import following
from gradscope.init._model_schemes import ModelScheme, Setting, model_scheme
from gradscope.init._plan import InitPlan, PlanRow
from gradscope.init._steps import Step
from gradscope.init._variance_scaling import ready
from gradscope.recording import GradScopeWarning

Schemes = SchemeLike | ModelScheme | Mapping[str, SchemeLike]


def plan(
    model: nn.Module,
    scheme: Schemes = AUTO,
    activation: str | activations.Activation | None = None,
    *,
    inputs: Any = None,
) -> InitPlan:
    """The table of what `initialize` would do with the same arguments; touches nothing and draws nothing.

    Works on the meta device too: a plan of a large model costs no memory.

    >>> print(plan(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))))
    parameter  shape   fans in, out  followed by  scheme         var asked
    ──────────────────────────────────────────────────────────────────────
    0.weight   256×64       64, 256  relu         he_normal        0.03125
    0.bias     256                                zeros                  0
    2.weight   10×256       256, 10  identity     glorot_normal   0.007519
    2.bias     10                                 zeros                  0
    Followed by: the next activation in the order of definition (functions are not seen; pass inputs=).
    """
    setting = setting_of(model, activation, inputs)
    steps, source = _chosen(setting, scheme)
    return InitPlan(tuple(part.row for step in steps for part in step.parts), source)


def initialize(
    model: nn.Module,
    scheme: Schemes = AUTO,
    activation: str | activations.Activation | None = None,
    generator: torch.Generator | None = None,
    *,
    inputs: Any = None,
) -> InitPlan:
    """Set the weights and biases of a model in place; returns the table of what was asked and what was got.

    Each weight gets the scheme with its layer's true `fans`, each block of a packed weight (a gate, a
    projection) by itself. Biases become zero, the forget gate's of an LSTM too: its forget gates start half
    open. What is left as it is, and says so in the table: norms, embeddings, frozen parameters, slopes of
    PReLU, parameters of modules whose use of them is not known, weights computed by the old hooks
    (`torch.nn.utils.weight_norm`, pruning). Tied parameters are treated once, as the module defined first
    uses them. Parametrized weights are set through their originals.

    Args:
        model: any module; nothing of it is touched if an argument is wrong.
        scheme: `"auto"`, the one recommended for the activation that follows, which with `inputs` is scaled where
            that is better; a name of `scheme_names()`; a `Scheme` or `VarianceScaling`; a scheme of a whole model,
            by its name of `model_scheme_names()` or with settings of its own (`EdgeOfChaos(q=0.5)`); or a dict
            from glob patterns over parameter names to schemes of single weights, of which the first that matches
            counts and what none matches is left (`{"head.*": "glorot_normal", "*": "auto"}`). A parameter named in
            full is set even where it is an embedding or its use is not known (a bare tensor's fans, then).
            `torch_default` gives each module what torch itself gives it, biases included.
        activation: the activation that follows every layer but the last, in place of what the search finds.
        generator: draws the numbers; the global random state then stays as it is. Without it they come from
            the global state, as torch's do.
        inputs: one batch for `model`: a tensor, a tuple (positional) or a dict (keywords). With it the model
            runs once, in its present mode, and the activation that follows each layer is the first that its
            output meets, module or function, through norms, dropout, pooling, reshaping and residual sums;
            buffers and random state are as before afterwards. Without it the activation is the next one in
            the order of definition: functional ones cannot be seen then, and a `GradScopeWarning` says so where
            the model seems to have them.
            With `"auto"` the model runs a second time, and theory tells how far signal and gradient will stray
            over the layers: where what `propagate` does (it scales weights and residual branches, the norms at
            their ends too, and draws some biases) is worth a tenth of a decade or more, it is done, and the
            table's `source` says so. A model that theory cannot predict keeps the recommended variances, and
            `source` says why. The mean square of the batch counts: give each rank the same one.

    A layer that nothing follows, as the last one, counts as followed by the identity, hence Glorot. So do the
    queries, keys and values of an attention and whatever a further linear layer follows directly.

    Raises:
        ValueError: an unknown scheme or activation, a pattern that no parameter matches, a lazy module that
            has no shape yet, a generator of another device than a parameter.

    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 10))
    >>> table = initialize(model, generator=torch.Generator().manual_seed(0))
    >>> [(row.parameter, row.activation, row.scheme) for row in table if row.fans]
    [('0.weight', 'gelu', 'he_normal'), ('2.weight', 'identity', 'glorot_normal')]
    """
    setting = setting_of(model, activation, inputs)
    steps, source = _chosen(setting, scheme)
    unasked = inputs is None and activation is None and scheme == AUTO
    if unasked and (unseen := functions_suspected(model)):
        warnings.warn(
            f"initialize: {unseen} layers have no activation module behind them and count as linear; functions such as "
            "F.relu, and modules that are used more than once, are only seen with inputs=batch (or name what follows: "
            "activation='relu')",
            GradScopeWarning,
            stacklevel=2,
        )
    for step in steps:
        _check_device(step, generator)
    rows: Sequence[PlanRow] = [row for step in steps for row in step.carry_out(generator)]
    if (whole := model_scheme(scheme)) is not None:
        rows = whole.finish(setting, rows, generator)
    return InitPlan(tuple(rows), source)


def _check_device(step: Step, generator: torch.Generator | None) -> None:
    # Before anything is drawn: a model is never left half initialized.
    if step.fills:
        ready(step.slot.originals[0], generator)


def setting_of(model: nn.Module, activation: str | activations.Activation | None, inputs: Any) -> Setting:
    """The model with what follows its layers; ValueError where a lazy module has no shape yet."""
    for name, module in model.named_modules():
        if any(map(is_lazy, module.parameters(recurse=False))):
            kind = type(module).__name__
            raise ValueError(f"model: {name or 'the model'} ({kind}) has no shape yet; run one forward first")
    return Setting(model, following(model, activation, inputs), inputs)


def steps_of(setting: Setting, scheme: Schemes) -> list[Step]:
    """What each parameter gets by a scheme."""
    return _chosen(setting, scheme)[0]


def _chosen(setting: Setting, scheme: Schemes) -> tuple[list[Step], str]:
    """What each parameter gets, and where that was found, in words."""
    source = setting.following.source
    if scheme == AUTO:
        found = chosen(setting)
        return list(found.steps), ". ".join(filter(None, (source, found.why)))
    whole = model_scheme(scheme)
    return (setting.steps(cast(Any, scheme)) if whole is None else list(whole.steps(setting))), source
