"""A site: one place where a signal is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Signal = Literal["activation", "activation_grad", "weight", "weight_grad", "update"]
"""What kind of tensor is observed."""

SIGNALS: tuple[Signal, ...] = get_args(Signal)

Role = Literal["input", "pre-activation", "activation", "norm", "block", "other"]
"""What a module's output is: `other` is what has no share in the verdicts over depth (pooling, dropout,
embedding, recurrent and attention modules)."""

ROLES: tuple[Role, ...] = get_args(Role)


NEVER_CALLED = "never called in a forward pass"
"""What `facts["unobserved"]` says of a module that no forward pass calls, and to whose parameters no gradient comes."""


@dataclass(frozen=True)
class Site:
    """One call of a module, one parameter, or a floating input of the model.

    Attributes:
        signal: what is observed here.
        name: unique within its signal: the module's qualified name (`layers.3`), `layers.3#1` for its first
            further call within one root forward, `layers.3[1]` for a further floating tensor of one output;
            the parameter's qualified name (`layers.3.weight`); `<root>` and `<input>` for the model itself.
        module: qualified name of the module, `<root>` for the model, `<input>` for its inputs.
        module_type: the module's class name, e.g. `Linear`.
        call: index of the call within one root forward, from 0; 0 for parameters.
        output: index among the floating tensors of the output, from 0; 0 for parameters.
        param: the parameter's name within its module (`weight`), None for activations.
        role: what the module's output is.
        depth: position in the order of execution, from the input (0 for `<input>`, first module call 1);
            parameters have the depth of their module's first call.
        shape: shape of the tensor when first seen.
        dtype: its dtype without `torch.`, e.g. `float32`.
        fan_in: inputs that one output unit sums, by the layer's true fan; None where there is none.
        fan_out: outputs that one input unit feeds, likewise.
        activation_after: name of the activation that follows in execution order, None where none is seen.
        trainable: the parameter requires a gradient (activations: the tensor does).
    """

    signal: Signal
    name: str
    module: str
    module_type: str
    call: int = 0
    output: int = 0
    param: str | None = None
    role: Role = "other"
    depth: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    fan_in: float | None = None
    fan_out: float | None = None
    activation_after: str | None = None
    trainable: bool = True
