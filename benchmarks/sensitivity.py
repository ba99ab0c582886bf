"""What `gradient_regression.check` catches: twenty regressions in three models, and runs in which nothing has changed.

`python -m benchmarks.sensitivity`, some minutes. Each check is the fixture's own comparison at its default tolerance,
of three steps of SGD from one seed. The unchanged runs take each seed against its own baseline, under another number of
threads than the baseline's, with other random numbers drawn before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.recording import Baseline, baseline_of, compare
from gradscope.testing._observe import Subject, observed

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class Recipe:
    """How a model is made and trained; a regression changes one of these."""

    activation: str = "relu"
    std: float = 1.0
    norm: bool = True
    residual: float = 0.5
    bias: float = 0.0
    detach: bool = False
    dropout_late: bool = False
    dropout: float = 0.1
    lr: float = 0.05
    cast: bool = False
    mask: bool = False
    eps: float = 1e-5
    pre: bool = True
    reduction: str = "mean"
    decay: float = 0.01
    frozen: bool = False
    linear: bool = False
    swapped: bool = False
    with_bias: bool = True
    momentum: float = 0.9


REGRESSIONS: dict[str, dict[str, Any]] = {
    "activation swapped": {"activation": "gelu"},
    "init std × 1.1": {"std": 1.1},
    "norm removed": {"norm": False},
    "residual scale lost": {"residual": 1.0},
    "bias −1": {"bias": -1.0},
    "branch detached": {"detach": True},
    "dropout after the sum": {"dropout_late": True},
    "dropout 0.1 → 0.2": {"dropout": 0.2},
    "lr × 3": {"lr": 0.15},
    "a layer in bfloat16": {"cast": True},
    "mask bug": {"mask": True},
    "eps 1e-5 → 1e-3": {"eps": 1e-3},
    "pre-norm → post-norm": {"pre": False},
    "loss summed": {"reduction": "sum"},
    "weight decay lost": {"decay": 0.0},
    "a layer frozen": {"frozen": True},
    "an activation forgotten": {"linear": True},
    "norm and activation swapped": {"swapped": True},
    "biases lost": {"with_bias": False},
    "momentum 0.9 → 0.8": {"momentum": 0.8},
}


class Attention(nn.Module):
    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.packed = nn.Linear(width, 3 * width, bias=recipe.with_bias)
        self.out = nn.Linear(width, width, bias=recipe.with_bias)
        self.causal = not recipe.mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.packed(x).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Rounded(nn.Module):
    """A layer in bfloat16, between float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.bfloat16()).float()


class Block(nn.Module):
    """x + s·f(x), f the norm, a layer, the activation, a layer and dropout."""

    def __init__(self, layers: tuple[nn.Module, nn.Module], norm: nn.Module, first: bool, recipe: Recipe) -> None:
        super().__init__()
        one, two = layers
        self.norm = norm if recipe.norm else nn.Identity()
        self.one = Rounded(one) if recipe.cast and first else one
        self.act = nn.Identity() if recipe.linear and first else ACTIVATIONS[recipe.activation]()
        self.two = two
        self.drop = nn.Dropout(recipe.dropout)
        self.recipe, self.first = recipe, first

    def forward(self, x: Tensor) -> Tensor:
        recipe = self.recipe
        h = self.norm(x) if recipe.pre and not recipe.swapped else x
        h = self.one(h)
        h = self.norm(self.act(h)) if recipe.swapped else self.act(h)
        h = self.two(h)
        h = h if recipe.dropout_late else self.drop(h)
        h = h.detach() if recipe.detach and self.first else h
        x = x + recipe.residual * h
        x = self.drop(x) if recipe.dropout_late else x
        return x if recipe.pre or recipe.swapped else self.norm(x)


def mlp(recipe: Recipe) -> nn.Module:
    def layer() -> nn.Module:
        return nn.Linear(32, 32, bias=recipe.with_bias)

    blocks = [Block((layer(), layer()), nn.LayerNorm(32, recipe.eps), i == 0, recipe) for i in range(3)]
    masked: nn.Module = nn.Hardtanh(0.0, 10.0) if recipe.mask else nn.Identity()  # an input clamped by mistake
    return finished(nn.Sequential(masked, nn.Linear(16, 32, bias=recipe.with_bias), *blocks, nn.Linear(32, 5)), recipe)


def cnn(recipe: Recipe) -> nn.Module:
    def layer() -> nn.Module:
        mode = "circular" if recipe.mask else "zeros"  # the border masked otherwise
        return nn.Conv2d(12, 12, 3, padding=1, padding_mode=mode, bias=recipe.with_bias)

    blocks = [Block((layer(), layer()), nn.BatchNorm2d(12, recipe.eps), i == 0, recipe) for i in range(3)]
    stem = nn.Conv2d(3, 12, 3, padding=1, bias=recipe.with_bias)
    return finished(nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)), recipe)


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(17, 32), nn.Embedding(12, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.place(torch.arange(tokens.shape[1]))


def gpt(recipe: Recipe) -> nn.Module:
    def pair() -> tuple[nn.Module, nn.Module]:
        return Attention(32, recipe), nn.Linear(32, 32, bias=recipe.with_bias)

    blocks = [Block(pair(), nn.LayerNorm(32, recipe.eps), i == 0, recipe) for i in range(3)]
    return finished(nn.Sequential(Position(), *blocks, nn.LayerNorm(32), nn.Linear(32, 17)), recipe)


def finished(model: nn.Module, recipe: Recipe) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter *= recipe.std
            elif name.endswith("one.bias"):
                parameter += recipe.bias
    if recipe.bias and not any(name.endswith("one.bias") for name, _ in model.named_parameters()):
        with torch.no_grad():  # of an attention, the output's
            for name, parameter in model.named_parameters():
                if name.endswith("out.bias"):
                    parameter += recipe.bias
    if recipe.frozen:
        for parameter in next(m for m in model.modules() if isinstance(m, Block)).two.parameters():
            parameter.requires_grad_(False)
    return model


X = torch.linspace(-40, 40, 16 * 16).sin()
TOKENS = (torch.arange(8 * 12) * 7 % 17).reshape(8, 12)
MODELS: dict[str, tuple[Callable[[Recipe], nn.Module], Tensor, Tensor]] = {
    "MLP": (mlp, X.reshape(16, 16), torch.arange(16) % 5),
    "CNN": (cnn, torch.linspace(-40, 40, 8 * 3 * 64).sin().reshape(8, 3, 8, 8), torch.arange(8) % 5),
    "GPT": (gpt, TOKENS, TOKENS.roll(-1, 1)),
}


def run(name: str, recipe: Recipe, seed: int) -> Baseline:
    make, x, y = MODELS[name]

    def loss(out: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(out.flatten(0, -2), target.flatten(), reduction=recipe.reduction)

    optimizer = partial(torch.optim.SGD, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.decay)
    return baseline_of(observed(Subject(lambda: make(recipe), x, y, loss, steps=3, optimizer=optimizer), seed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--unchanged", type=int, default=1_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    caught: dict[str, list[str]] = {name: [] for name in REGRESSIONS}
    for model in MODELS:
        kept = run(model, Recipe(), 0)
        for name, change in REGRESSIONS.items():
            found = compare(kept, run(model, replace(Recipe(), **change), 0))
            by = "structure" if found.changes else found.first.place if found.first else ""
            caught[name].append("missed" if found.same else by)
    print(f"| regression | {' | '.join(MODELS)} |\n| --- |{' --- |' * len(MODELS)}")
    for name, said in caught.items():
        print(f"| {name} | {' | '.join(said)} |")
    totals = [sum(said[i] != "missed" for said in caught.values()) for i in range(len(MODELS))]
    print(f"| caught, of {len(REGRESSIONS)} | {' | '.join(map(str, totals))} |", flush=True)
    failures = [unchanged(i) for i in range(options.unchanged)]
    print(f"\n{sum(failures)} of {options.unchanged} unchanged runs fail")


def unchanged(number: int) -> bool:
    """Whether a seed fails against its own baseline, with other threads and other numbers drawn before."""
    model, threads = list(MODELS)[number % len(MODELS)], torch.get_num_threads()
    try:
        torch.set_num_threads(1 + number % 4)
        kept = run(model, Recipe(), number)
        torch.set_num_threads(1 + (number + 1) % 4)
        torch.rand(number % 7 + 1)
        return not compare(kept, run(model, Recipe(), number)).same
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
