"""Reads unit moments of what modules return: finds the axes, and what an activation's slope is told from."""

from __future__ import annotations

from torch import Tensor, nn

from gradscope.hooks._distributed import local_part
from gradscope.hooks._layout import Layout, layout_of
from gradscope.hooks._output import Output
from gradscope.hooks._sites import INPUT
from gradscope.hooks._slopes import OF_INPUT, base_name, output_tells, parameters_of
from gradscope.hooks._step import Forward
from gradscope.hooks._tensors import floating_tensors, is_distributed, why_unreadable
from gradscope.hooks._unit_moments import Pointwise, Silence, read_units
from gradscope.init._operations import activation_of_call, activation_of_module


class UnitReader:
    """Reads the unit moments of one scope's sites; it remembers how long each unit has been silent."""

    def __init__(self) -> None:
        self._silence = Silence()

    def _layout(self, forward: Forward, output: Output) -> Layout:
        """The axes of an output, known from here on to what is fed by it."""
        given = _given(output)
        source = forward.source(given[0]) if given else None
        fed = None if source is None else forward.layouts.get(source)
        module = None if output.name == INPUT or output.function else output.module
        found = layout_of(module, output.tensor, output.index, fed)
        if output.index == 0 and output.name != INPUT:
            forward.layouts[output.name, output.call] = found
        return found

    def read(self, forward: Forward, site: int | None, output: Output) -> None:
        """Read an output into its pass; where it has no site, only its axes are kept in mind."""
        layout = self._layout(forward, output)
        part: Tensor | None = output.tensor
        if is_distributed(output.tensor):
            part, _ = local_part(output.tensor)
        if site is None or part is None or not part.numel() or part.is_sparse or forward.units is None:
            return
        forward.units[site] = read_units(part, layout, _pointwise(output, part), self._silence, site)


def _pointwise(output: Output, value: Tensor) -> Pointwise | None:
    """What the slope of an output is told from, None where it is no pointwise activation's, or nothing tells."""
    if output.name == INPUT:
        return None
    inputs = _given(output)
    if output.function is None:
        activation = activation_of_module(output.module)
        own = getattr(output.module, "weight", None) if isinstance(output.module, nn.PReLU) else None
    else:
        activation = activation_of_call(output.function, output.args, output.kwargs)
        own = inputs[1] if output.function == "prelu" and len(inputs) > 1 else None
    if activation is None or not activation.elementwise or base_name(activation) not in OF_INPUT:
        return None
    given = parameters_of(activation, own if isinstance(own, Tensor) and own.device == value.device else None)
    if inputs and _is_what_it_was(inputs[0], value):
        return Pointwise(activation, given, inputs[0], of_output=False)
    return Pointwise(activation, given, value, of_output=True) if output_tells(activation) else None


def _given(output: Output) -> tuple[Tensor, ...]:
    """Floating tensors that the module, or the function, was given."""
    return output.inputs or tuple(floating_tensors((output.args, output.kwargs)))


def _is_what_it_was(given: Tensor, value: Tensor) -> bool:
    """Whether an activation's input still is that: it was not computed in place."""
    return (
        given is not value
        and given.shape == value.shape
        and given.device == value.device
        and why_unreadable(given) is None
        and not is_distributed(given)
        and not given.is_sparse
        and given.data_ptr() != value.data_ptr()
    )
