"""How far along a chain a tensor has come, and what one more operation makes of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradscope.activations import Activation

_MOVES = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "unflatten", "squeeze", "unsqueeze", "get"),
        *("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "permute", "t", "contiguous", "clone", "alias"),
        *("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "as_subclass"),
    }
)
_RESCALES = frozenset(
    {
        *("mul", "rmul", "imul", "multiply", "div", "divide", "true_divide", "truediv", "itruediv", "idiv"),
        *("neg", "negative"),
    }
)


@dataclass(frozen=True)
class Carried:
    """What is known of a tensor that comes from a layer.

    Attributes:
        link: number of the layer.
        activation: what has bent it since.
        notes: what has rescaled it since, in words.
        spoiled: why no layer behind it can be the next of a plain chain, empty where one can.
    """

    link: int
    activation: Activation | None = None
    notes: tuple[str, ...] = ()
    spoiled: str = ""


def note_of(name: str, given: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """What a function that bends nothing does, in words, empty where it only moves entries; None of an unknown one.

    Args:
        name: its plain name.
        given: the tensors in its arguments.
        args, kwargs: those.
    """
    if name in _MOVES:
        return ""
    if name in _RESCALES and sum(tensor.numel() > 1 for tensor in given) == 1:
        return "a factor"
    if name.endswith("dropout"):
        share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        active = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
        return f"dropout of {share:g}" if active and share else ""
    return None


def carried_on(
    before: Sequence[Carried],
    name: str,
    activation: Activation | None,
    note: str | None,
    where: str,
    unknown: Activation | None,
) -> Carried:
    """What is known of an operation's outputs.

    Args:
        before: of those of its inputs that come from a layer, one at least.
        name: of the operation.
        activation: which it is, None where it is none.
        note: as `note_of` returns it.
        where: the module that is running.
        unknown: what an operation that is not known counts as, None where that ends the chain.
    """
    now = before[0]
    if spoiled := next((one.spoiled for one in before if one.spoiled), ""):
        return replace(now, spoiled=spoiled)
    if activation is None and note is None and unknown is not None and len({one.link for one in before}) == 1:
        return replace(now, activation=unknown)
    if len(before) > 1 or (activation is None and note is None):
        return replace(now, spoiled=f"{where} calls {name}")
    if activation is None:
        return replace(now, notes=(*now.notes, f"{note} in {where}")) if note else now
    if not activation.elementwise:
        return replace(now, spoiled=f"{where} is {activation.name}, whose units depend on each other")
    if now.activation is not None and unknown is None:
        return replace(now, spoiled=f"{where} calls {name} on what {now.activation.name} returned")
    return replace(now, activation=activation)
