"""What schemes of whole models do to the steps that a scheme of single weights has made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gradscope.init._plan import PlanRow
from gradscope.init._steps import Fill, Part, Step
from gradscope.init._variance_scaling import ready

Generator = torch.Generator | None


def each_part(step: Step, change: Callable[[Part], Part]) -> Step:
    """The step with each part that is set changed; the row of an Embedding's padding stays 0."""
    padding = getattr(step.slot.module, "padding_idx", None)

    def changed(part: Part) -> Part:
        if part.fill is None:
            return part
        new = change(part)
        if padding is None or new.fill is None or new.fill is part.fill:
            return new
        return replace(new, fill=partial(_fill_but_padding, new.fill, padding))

    return Step(step.slot, tuple(map(changed, step.parts)))


def scaled(part: Part, factor: float, why: str) -> Part:
    """The same draw times a factor; zeros stay."""
    if part.fill is None or part.row.scheme == "zeros":
        return part
    asked, own = part.row.variance_asked, part.row.asked
    row = replace(
        part.row,
        variance_asked=None if asked is None else asked * factor**2,
        asked=None if own is None else (own[0] * factor**2, own[1] * factor),
        note=_joined(part.row.note, f"× {factor:.4g}: {why}"),
    )
    return replace(part, row=row, fill=partial(_fill_then_scale, part.fill, factor))


def zeroed(part: Part, why: str) -> Part:
    """Zeros in place of what it had."""
    return constant(part, 0.0, why)


def constant(part: Part, value: float, why: str) -> Part:
    """One number in place of what it had."""
    row = replace(
        part.row,
        scheme="zeros" if value == 0.0 else "constant",
        variance_asked=0.0,
        asked=(value * value, value),
        note=_joined(part.row.note, why),
    )
    return replace(part, row=row, fill=partial(_fill_constant, value))


def constant_step(step: Step, value: float, why: str) -> Step:
    """One number for the whole parameter, also where it was left; a frozen one, or one that cannot be set, stays."""
    slot = step.slot
    if not slot.settable or not any(original.requires_grad for original in slot.originals):
        return step
    return Step(slot, (constant(Part(PlanRow(slot.path, "", tuple(slot.read().shape))), value, why),))


def drawn(
    part: Part,
    scheme: str,
    variance: float | None,
    fill: Fill,
    why: str = "",
    asked: tuple[float, float] | None = None,
) -> Part:
    """Another draw in place of what it had; `asked` where the variance does not tell the entries' mean square."""
    row = replace(part.row, scheme=scheme, variance_asked=variance, asked=asked, note=_joined(part.row.note, why))
    return replace(part, row=row, fill=fill)


def normal(part: Part, scheme: str, variance: float, why: str = "") -> Part:
    """N(0, variance) in place of what it had."""
    return drawn(part, scheme, variance, partial(_fill_normal, variance**0.5), why)


def uniform(part: Part, scheme: str, limit: float, why: str = "") -> Part:
    """U(±limit) in place of what it had."""
    return drawn(part, scheme, limit**2 / 3.0, partial(_fill_uniform, limit), why)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _fill_then_scale(fill: Fill, factor: float, value: Tensor, generator: Generator) -> None:
    fill(value, generator)
    value.mul_(factor)


def _fill_but_padding(fill: Fill, padding: int, value: Tensor, generator: Generator) -> None:
    fill(value, generator)
    value[padding] = 0.0


def _fill_constant(constant: float, value: Tensor, generator: Generator) -> None:
    value.fill_(constant)


def _fill_normal(std: float, value: Tensor, generator: Generator) -> None:
    if ready(value, generator):
        value.normal_(0.0, std, generator=generator)


def _fill_uniform(limit: float, value: Tensor, generator: Generator) -> None:
    if ready(value, generator):
        value.uniform_(-limit, limit, generator=generator)
