"""Whether a model is at its initialization: signs that an optimizer has been there.

One sign proves nothing: batches are counted by a trial run, DCGAN draws the weights of its norms, and a frozen table of
sines is no initial weight. So each sign has points, and two make a claim. Of a weight's entries three things speak for
training, for no initialization in use makes them:

- heavy tails, a kurtosis E[w⁴]/E[w²]² above the normal's 3 (uniform 1.8, a cut normal between, orthogonal below 3);
- a direction: a singular value beyond σ·(√rows + √columns), where those of independent entries end, and the width of
  that edge (Johnstone 2001). Gradients are nearly of low rank, and so is what an optimizer adds;
- rows or columns of different size, by the spread of their mean squares.

Each of the last two is by chance in one fresh weight of 10,000. Half of the weights, and two at least, must have one:
that is by chance in one model of a million.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gradscope.init._audit_order import is_norm
from gradscope.init._audit_weight import SURE, Weight

ENOUGH = 2
"""Points that make a claim."""

_FEWEST = 1000
"""Entries that tell a distribution."""
_MANY_BATCHES = 100
_EDGE = 4.4
"""Above it lies one in 10,000 of the Tracy-Widom distribution of real matrices."""
_ROWS = 3.7
"""Standard deviations above which one in 10,000 of a normal distribution lies."""
_SIDE = 1024


def signs_of_training(model: nn.Module, weights: Sequence[Weight]) -> tuple[str, ...]:
    """What says that the model has been trained, in words; empty where it may be at its initialization."""
    signs = [*_counted(model), *_moved_norms(model), *_learned(weights)]
    return tuple(words for _, words in signs) if sum(points for points, _ in signs) >= ENOUGH else ()


def _counted(model: nn.Module) -> Iterator[tuple[int, str]]:
    counts = [
        (int(tracked), name)
        for name, module in model.named_modules()
        if isinstance(tracked := getattr(module, "num_batches_tracked", None), Tensor) and not tracked.is_meta
    ]
    most, name = max(counts, default=(0, ""))
    if most:
        yield 1 + (most >= _MANY_BATCHES), f"{name or 'the model'} has counted {most} batches"


def _moved_norms(model: nn.Module) -> Iterator[tuple[int, str]]:
    for own in ("weight", "bias"):
        moved = [
            f"{name}.{own}".lstrip(".")
            for name, module in model.named_modules()
            if is_norm(module) and _differs(getattr(module, own, None))
        ]
        if moved:
            others = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
            yield 1, f"{moved[0]}{others} of a norm differ from unit to unit"


def _differs(value: object) -> bool:
    if not isinstance(value, Tensor) or value.numel() < 2 or value.is_meta:
        return False
    values = value.detach().double()
    return float(values.std()) > 1e-6 * float(values.abs().max())


def _learned(weights: Sequence[Weight]) -> Iterator[tuple[int, str]]:
    judged: set[str] = set()
    learned: list[str] = []
    for weight in weights:
        matrix = weight.value.reshape(weight.value.shape[0], -1)[:_SIDE, :_SIDE].double()
        if matrix.numel() < _FEWEST or float((matrix == 0.0).double().mean()) > 0.01:
            continue  # few entries, or a mask, an identity, a padding row among few
        whole, matrix = float(matrix.square().mean()), _centred(matrix)
        if float(matrix.square().mean()) <= 1e-12 * whole:
            continue  # a constant
        judged.add(weight.path)
        if weight.path not in learned and _looks_learned(matrix):
            learned.append(weight.path)
    if len(learned) >= 2 and 2 * len(learned) >= len(judged):
        yield (
            ENOUGH,
            f"{len(learned)} of {len(judged)} weights, {learned[0]} the first, are no independent draws of a normal or "
            "uniform distribution, nor orthogonal",
        )


def _centred(matrix: Tensor) -> Tensor:
    """Without its mean, and a square one without the mean of its diagonal: initializations add an identity."""
    matrix = matrix - matrix.mean()
    if matrix.shape[0] == matrix.shape[1]:
        matrix = matrix - matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix


def _looks_learned(matrix: Tensor) -> bool:
    squares = matrix.square()
    mean = float(squares.mean())
    kurtosis = float(squares.square().mean()) / mean**2
    # The standard error by the delta method, from the entries' own moments.
    influence = squares.square() / mean**2 - 2.0 * kurtosis * squares / mean
    if kurtosis > 3.1 + SURE * float(influence.std()) / math.sqrt(squares.numel()):
        return True
    return any(_are_uneven(squares.mean(dim) / mean, matrix.shape[dim], kurtosis) for dim in (0, 1)) or (
        _has_a_direction(matrix)
    )


def _are_uneven(sizes: Tensor, of_each: int, kurtosis: float) -> bool:
    """Whether mean squares of rows differ by more than those of independent entries, (kurtosis − 1)/entries.

    The ratio is χ²/n of n − 1 degrees of freedom, made normal by Wilson & Hilferty (1931), and wider where a row is so
    short that its own mean square is skewed.
    """
    freedom = len(sizes) - 1
    if freedom < 8 or of_each < 8 or kurtosis < 1.1:
        return False
    ratio = float(sizes.var()) * of_each / (kurtosis - 1.0)
    width = 2.0 / (9.0 * freedom)
    normal = (math.cbrt(ratio) - (1.0 - width)) / math.sqrt(width)
    return normal > _ROWS * math.sqrt(1.0 + 6.0 / of_each)


def _has_a_direction(matrix: Tensor) -> bool:
    rows, columns = map(math.sqrt, matrix.shape)
    if min(matrix.shape) < 8:
        return False
    edge = (rows + columns) ** 2 + _EDGE * (rows + columns) * math.cbrt(1.0 / rows + 1.0 / columns)
    # Power iteration, from the longest row: it never overstates, and needs no random numbers.
    vector = matrix[int(torch.argmax(matrix.square().sum(1)))]
    for _ in range(40):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / vector.norm()
    return float((matrix @ vector).square().sum()) > edge * float(matrix.square().mean())
