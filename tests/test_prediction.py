"""Predictions of a model's signal against what a probe of the same model measures, both ways and site by site."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.experiments import probe
from gradscope.experiments._predict import predict

Made = tuple[nn.Module, Any]
SIGNALS = ("activation", "activation_grad")


def logs(make: Callable[[], Made], seeds: int) -> dict[tuple[str, str], np.ndarray]:
    """ln(predicted rms/measured rms) at each site, one number for each seed."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, inputs = make()
        expected, measured = predict(model, inputs), probe(model, inputs)
        assert expected.facts["coverage"]["assumed"] == {}
        for signal in SIGNALS:
            seen = dict(
                zip([s.name for s in measured.sites_of(signal)], measured.values(signal, "rms")[0], strict=True)
            )
            sites = [s.name for s in expected.sites_of(signal)]
            for name, rms in zip(sites, expected.values(signal, "rms")[0], strict=True):
                if seen.get(name, 0.0) > 0.0:
                    found[signal, name].append(math.log(rms / seen[name]))
    return {key: np.array(values) for key, values in found.items()}


# --- one operation at a time ------------------------------------------------------------------------------


class Between(nn.Module):
    """An operation between two linear layers: the first one's gradient is the operation's, backward."""

    def __init__(self, operation: nn.Module, into: int, out: int) -> None:
        super().__init__()
        self.before, self.operation, self.after = nn.Linear(into, into), operation, nn.Linear(out, 512)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.operation(self.before(x)))
        return y


class Pictures(nn.Module):
    """The same between two convolutions."""

    def __init__(self, operation: nn.Module, out: int = 128, dims: int = 2) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.before, self.operation = convolution(16, 128, 3, padding=1), operation
        self.after = convolution(out, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.operation(self.before(x)))
        return y


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class MixTokens(nn.Module):
    """A linear layer over the tokens, as in an MLP-mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(x.transpose(1, 2)).transpose(1, 2)
        return y


class Recurrent(nn.Module):
    """A recurrent layer, its outputs alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def flat(operation: Callable[[], nn.Module], out: int = 512) -> Callable[[], Made]:
    return lambda: (Between(operation(), 512, out), torch.randn(64, 512))


def tokens(operation: Callable[[], nn.Module], out: int = 512) -> Callable[[], Made]:
    return lambda: (Between(operation(), 512, out), torch.randn(8, 24, 512))


def pictures(operation: Callable[[], nn.Module], out: int = 128, size: int = 16) -> Callable[[], Made]:
    return lambda: (Pictures(operation(), out), torch.randn(8, 16, size, size))


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))


def rms_norm_by_hand(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def gated(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return functional.silu(gate) * value


def attended(x: Tensor) -> Tensor:
    q, k, v = x.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(2.0 * q, k, v).transpose(1, 2).flatten(2)


def attended_step_by_step(x: Tensor) -> Tensor:
    q, k, v = x.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def causal(x: Tensor) -> Tensor:
    q, k, v = x.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """x + a branch, whose own entries have nothing to do with x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


ELEMENTWISE: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu by hand": lambda: Call(gelu_by_hand),
    "silu": nn.SiLU,
    "silu by hand": lambda: Call(lambda x: x * torch.sigmoid(x)),
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "relu6": nn.ReLU6,
    "sin": lambda: Call(torch.sin),
    "square": lambda: Call(torch.square),
    "clamp": lambda: Call(lambda x: x.clamp(-0.3, 0.5)),
    "in place": lambda: nn.ReLU(inplace=True),
    "sum with its own": lambda: Call(lambda x: x + torch.relu(x)),
    "scaled and shifted": lambda: Call(lambda x: 3.0 * x - 1.0),
}

OPERATIONS: dict[str, Callable[[], Made]] = {
    **{name: flat(operation) for name, operation in ELEMENTWISE.items()},
    "dropout": flat(lambda: nn.Dropout(0.3)),
    "layer norm": flat(lambda: nn.LayerNorm(512)),
    "layer norm after relu": flat(lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(512))),
    "rms norm": flat(lambda: nn.RMSNorm(512)),
    "rms norm by hand": flat(lambda: Call(rms_norm_by_hand)),
    "batch norm": flat(lambda: nn.BatchNorm1d(512)),
    "batch norm after relu": flat(lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(512))),
    "gating": flat(lambda: Call(gated), out=256),
    "halves": flat(lambda: Call(lambda x: x[:, :256]), out=256),
    "cat": flat(lambda: Call(lambda x: torch.cat([torch.relu(x), torch.tanh(x)], -1)), out=1024),
    "residual": flat(lambda: Residual(512)),
    "relu after residual": flat(lambda: nn.Sequential(nn.ReLU(), Residual(512), nn.ReLU())),
    "mean over tokens": tokens(lambda: Call(lambda x: torch.relu(x).mean(1))),
    "first token": tokens(lambda: Call(lambda x: x[:, 0])),
    "attention": tokens(lambda: nn.Sequential(nn.Linear(512, 1536), Call(attended))),
    "attention step by step": tokens(lambda: nn.Sequential(nn.Linear(512, 1536), Call(attended_step_by_step))),
    "causal attention": tokens(lambda: nn.Sequential(nn.Linear(512, 1536), Call(causal))),
    "mixing tokens": tokens(MixTokens),
    "lstm": tokens(lambda: Recurrent(nn.LSTM(512, 256, 2, batch_first=True)), out=256),
    "gru": tokens(lambda: Recurrent(nn.GRU(512, 256, batch_first=True, bidirectional=True)), out=512),
    "rnn": tokens(lambda: Recurrent(nn.RNN(512, 256, batch_first=True, nonlinearity="relu")), out=256),
    "convolution": pictures(lambda: nn.Conv2d(128, 96, 3, padding=1), out=96),
    "strided convolution": pictures(lambda: nn.Conv2d(128, 96, 3, stride=2), out=96),
    "grouped convolution": pictures(lambda: nn.Conv2d(128, 128, 3, padding=1, groups=8)),
    "depthwise convolution": pictures(lambda: nn.Conv2d(128, 128, 3, padding=1, groups=128)),
    "dilated convolution": pictures(lambda: nn.Conv2d(128, 96, 3, padding=2, dilation=2), out=96),
    "transposed convolution": pictures(lambda: nn.ConvTranspose2d(128, 96, 4, stride=2, padding=1), out=96),
    "average pool": pictures(lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))),
    "adaptive average pool": pictures(lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4))),
    "max pool": pictures(lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))),
    "overlapping max pool": pictures(lambda: nn.MaxPool2d(3, 2, 1)),
    "batch norm of pictures": pictures(lambda: nn.BatchNorm2d(128)),
    "group norm": pictures(lambda: nn.GroupNorm(8, 128)),
    "group norm after relu": pictures(lambda: nn.Sequential(nn.ReLU(), nn.GroupNorm(8, 128))),
    "instance norm": pictures(lambda: nn.InstanceNorm2d(128)),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_one_operation_is_predicted_both_ways(name: str) -> None:
    """Within 4 %, or 5 standard errors of the mean over 4 networks, at every site."""
    for site, found in logs(OPERATIONS[name], seeds=4).items():
        error = found.std(ddof=1) / math.sqrt(found.size)
        assert abs(found.mean()) < 0.04 + 5.0 * error, (site, np.exp(found))
        assert error < 0.04, (site, found)
