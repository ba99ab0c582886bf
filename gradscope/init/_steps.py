"""From a model to the steps of its initialization: what each parameter gets."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradscope.init._choice import Choice, Choices
from gradscope.init._definition import Follower
from gradscope.init._fans import Block, Fans, tensor_fans
from gradscope.init._layer_fans import weight_blocks
from gradscope.init._left import is_bias, why_left
from gradscope.init._plan import PlanRow
from gradscope.init._scheme import Scheme
from gradscope.init._slots import Slot, slots
from gradscope.init._torch_default import default_limit
from gradscope.init._variance_scaling import ready

Generator = torch.Generator | None
Fill = Callable[[Tensor, Generator], object]


@dataclass(frozen=True)
class Part:
    """One row of the table: what is asked of some rows of a parameter, and what fills them."""

    row: PlanRow
    rows: slice | None = None
    fill: Fill | None = None

    def of(self, value: Tensor) -> Tensor:
        """The part's share of the parameter: a view."""
        return value if self.rows is None else value[self.rows]


@dataclass(frozen=True)
class Step:
    """What happens to one parameter, part by part."""

    slot: Slot
    parts: tuple[Part, ...]

    @property
    def fills(self) -> bool:
        """Whether the parameter is set at all."""
        return any(part.fill is not None for part in self.parts)

    def carry_out(self, generator: Generator) -> Iterator[PlanRow]:
        """Fill the parameter; gives its rows with the variance got."""
        if not self.fills:
            yield from (part.row for part in self.parts)
            return
        value = self.slot.read()
        with torch.no_grad():
            for part in self.parts:
                if part.fill is not None:
                    part.fill(part.of(value), generator)
        try:
            self.slot.write(value)
        except NotImplementedError:  # a parametrization that has a right inverse in name only
            yield PlanRow(self.slot.path, "", tuple(value.shape), note="its parametrization takes no value")
            return
        value = self.slot.read()
        for part in self.parts:
            yield replace(part.row, variance_got=_variance(part.of(value)))


def steps(model: nn.Module, choices: Choices, following: Mapping[str, Follower]) -> Iterator[Step]:
    """One step per parameter, in the order of definition; a tied one is filled where it is met first."""
    met: dict[int, Step] = {}  # the model keeps its parameters alive, so their ids stay theirs
    for slot in slots(model):
        choice, first = choices.of(slot.path), met.get(id(slot.originals[0]))
        why = why_left(slot, choice)
        # Who names a tied parameter in full means it, unless it has been filled under its first name.
        if first is not None and (first.fills or choice is None or not choice.by_name):
            why = f"tied to {first.slot.path}"
        if why or choice is None:
            step = Step(slot, (Part(PlanRow(slot.path, "", tuple(slot.read().shape), note=why)),))
        else:
            step = Step(slot, tuple(_parts(slot, choice, following)))
        if choice is not None:
            met.setdefault(id(slot.originals[0]), step)
        yield step


def _parts(slot: Slot, choice: Choice, following: Mapping[str, Follower]) -> Iterator[Part]:
    value = slot.read()
    row = PlanRow(slot.path, "", tuple(value.shape))
    if slot.parametrization is not None:
        row = replace(row, note="through its parametrization")
    bias, layer = is_bias(slot), weight_blocks(slot.module)
    blocks = (layer or {}).get(slot.name, ())
    if choice.is_torch_default and layer is not None:
        limit = default_limit(slot.module, slot.name, value, bias)
        yield Part(
            replace(
                row,
                fans=blocks[0].fans if len(blocks) == 1 else None,
                scheme="torch_default",
                variance_asked=limit**2 / 3.0,
                note="one draw for all blocks" if len(blocks) > 1 else row.note,
            ),
            fill=functools.partial(_fill_uniform, limit),
        )
    elif bias:
        yield Part(replace(row, scheme="zeros", variance_asked=0.0), fill=_fill_zeros)
    else:
        follower = following.get(slot.module_name, Follower(None))
        for block in blocks or (Block("", None, tensor_fans(value)),):
            yield _part_of_block(row, slot.module, block, value, choice, follower)


def _part_of_block(
    row: PlanRow, module: nn.Module, block: Block, value: Tensor, choice: Choice, follower: Follower
) -> Part:
    activation = block.activation or follower.activation or "identity"
    scheme = choice.resolve(activation)
    shape = tuple(block.of(value).shape)
    groups = getattr(module, "groups", 1) if scheme.matrix else 1
    return Part(
        replace(
            row,
            block=block.name,
            shape=shape,
            fans=block.fans,
            activation=activation,
            scheme=scheme.name,
            variance_asked=(asked := scheme.variance(block.fans, (shape[0] // groups, *shape[1:]))),
            asked=None if asked is not None else _of_matrix(scheme.name, shape, groups),
            note="; ".join(filter(None, (row.note, "" if block.activation else follower.note))),
        ),
        block.rows,
        functools.partial(_fill, scheme, block.fans, groups, getattr(module, "padding_idx", None)),
    )


def _of_matrix(scheme: str, shape: tuple[int, ...], groups: int) -> tuple[float, float] | None:
    """Mean square and mean of a weight that is set and not drawn."""
    rows, cols = shape[0] // groups, shape[1]
    ones = float(min(rows, cols))
    if scheme == "hadamard" and rows > cols:
        return groups * cols * rows / 2.0 ** math.ceil(math.log2(rows)) / math.prod(shape), 0.0
    if scheme in ("identity", "hadamard"):
        return groups * ones / math.prod(shape), groups * ones / math.prod(shape)
    return None


def _fill(scheme: Scheme, fans: Fans, groups: int, padding: int | None, value: Tensor, generator: Generator) -> None:
    scheme(value, fans=fans, groups=groups, generator=generator)
    if padding is not None:
        value[padding] = 0.0  # an Embedding's padding row stays zero, as torch has it


def _fill_uniform(limit: float, value: Tensor, generator: Generator) -> None:
    if ready(value, generator):
        value.uniform_(-limit, limit, generator=generator)


def _fill_zeros(value: Tensor, generator: Generator) -> None:
    value.zero_()


def _variance(value: Tensor) -> float | None:
    """Population variance in float64, None where there are no values (meta device)."""
    if value.is_meta or not math.prod(value.shape):
        return None
    return float(value.double().var(correction=0))
