"""Parts of programs: initial weights, optimizers, small modules that users write themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
}


def initialize(model: nn.Module, init: str | float, bias: float = 0.0) -> nn.Module:
    """Weights of linear layers and convolutions: `default`, `he`, `glorot`, `lecun`, `orthogonal`, or N(0, std)."""
    for module in model.modules():
        if init == "default" or not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            continue
        if init == "he":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif init == "glorot":
            nn.init.xavier_normal_(module.weight)
        elif init == "lecun":
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif init == "orthogonal":
            nn.init.orthogonal_(module.weight)
        else:
            nn.init.normal_(module.weight, std=float(init))
        if module.bias is not None:
            nn.init.constant_(module.bias, bias)
    return model


def optimizer_of(model: nn.Module | Sequence[Any], kind: str, lr: float, **more: Any) -> torch.optim.Optimizer:
    """SGD (with momentum 0.9), or any other of torch's by name."""
    parameters = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else model
    if kind == "SGD":
        more = {"momentum": 0.9} | more
    return getattr(torch.optim, kind)(parameters, lr=lr, **more)


def error_rate(logits: Tensor, target: Tensor) -> Tensor:
    """Share of wrong answers."""
    return (logits.argmax(-1) != target).float().mean()


def tokens_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Call(nn.Module):
    """Any function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
