"""The plain networks that a sweep's cells stand for, and the random numbers they are made of.

Every draw has a generator of its own, seeded by what it is for, on the CPU: one network of a cell can be
rebuilt alone, is the same on every device, and no global random state is touched.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from gradscope import activations
from gradscope.activations import Activation
from gradscope.experiments._config import SweepConfig
from gradscope.init import Fans, get_scheme

BASES = {"edge_of_chaos": "lecun_normal", "lsuv": "orthogonal"}
"""Scheme of single weights that a scheme of whole models begins with."""

_KERNEL = 3
_SIDE = 16  # the images of the conv family


def plain_network(
    config: SweepConfig, init: str, activation: str, depth: int, width: int, seed: int
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """One network of a sweep's cell, with its inputs and the gradient put in at its output.

    Linear layers and activations alternate, `depth` of the former; the last one's output is the model's.
    The sweep's numbers for this seed are those of the loss Σ output · output_gradient.

    Args:
        config: the sweep's settings; family, batch, seed and device matter here.
        init: scheme name.
        activation: name of the activation.
        depth: number of linear layers.
        width: units or channels of every layer.
        seed: which network of the cell, from 0 to `config.seeds` - 1.

    Returns:
        (model, inputs, output_gradient); the tensors are `(batch, width)`, or `(batch, width, 16, 16)`.

    >>> config = SweepConfig(batch=2)
    >>> model, inputs, output_gradient = plain_network(config, "he_normal", "relu", depth=3, width=4, seed=0)
    >>> [type(layer).__name__ for layer in model], tuple(model(inputs).shape)
    (['Linear', 'ReLU', 'Linear', 'ReLU', 'Linear'], (2, 4))
    """
    from gradscope.experiments._adjustment import adjustment  # which draws its biases here

    layers: list[nn.Module] = []
    inputs, output_gradient = draw_signals(config, depth, width, seed)
    adjust = adjustment(config, init, [activation], depth, width, [seed], torch.device("cpu"))
    x = inputs
    for index, weight in enumerate(draw_weights(config, init, depth, width, seed)):
        biased = adjust is not None and adjust.biases is not None
        # On "meta" the layer's own initialization draws nothing from the global random state.
        layer: nn.Module = nn.Linear(width, width, bias=biased, device="meta")
        if config.family == "conv":
            layer = nn.Conv2d(width, width, _KERNEL, padding=1, padding_mode="circular", bias=biased, device="meta")
        bend = activation_module(activations.get(activation), config.family)
        if adjust is not None:
            with torch.no_grad():
                if biased:
                    layer.bias = nn.Parameter(torch.zeros(width, dtype=torch.float32, device="cpu"))
                layer.weight = nn.Parameter(weight)
                x = layer(x)
                adjust.forward(index, x[None, None])  # which for some schemes finds the factor as the signal passes
                weight = weight * adjust.gains[index].flatten()[0]
                x = bend(x)
            if adjust.biases is not None:
                layer.bias = nn.Parameter(adjust.biases[index, 0, 0].clone())
        layer.weight = nn.Parameter(weight.clone())
        layers += [layer, bend]
    model = nn.Sequential(*layers[:-1]).to(config.device)
    return model, inputs.to(config.device), output_gradient.to(config.device)


def draw_weights(
    config: SweepConfig, init: str, depth: int, width: int, seed: int, out: Tensor | None = None
) -> Tensor:
    """The weights of one network, `(depth, width, width)` or `(depth, width, width, 3, 3)`, on the CPU; into `out`."""
    scheme, fans = get_scheme(BASES.get(init, init)), layer_fans(config.family, width)
    weights = (
        torch.empty(weights_shape(config, depth, width), dtype=torch.float32, device="cpu") if out is None else out
    )
    generator = _generator(config, "weights", scheme.name, depth, width, seed)
    for weight in weights:
        scheme(weight, fans=fans, generator=generator)
    return weights


def draw_biases(config: SweepConfig, activation: str, depth: int, width: int, seed: int) -> Tensor:
    """N(0, 1) for each unit of one network, `(depth, width)`, on the CPU."""
    generator = _generator(config, "biases", activation, depth, width, seed)
    return torch.randn(depth, width, generator=generator, dtype=torch.float32, device="cpu")


def weights_shape(config: SweepConfig, depth: int, width: int, *seeds: int) -> tuple[int, ...]:
    """Shape of a network's weights; with a number of seeds, `(depth, seeds, …)`."""
    kernel = (_KERNEL, _KERNEL) if config.family == "conv" else ()
    return (depth, *seeds, width, width, *kernel)


def draw_signals(config: SweepConfig, depth: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """(inputs, output_gradient) of one network, on the CPU: N(0, 1), each input sample scaled to rms 1."""
    shape = signal_shape(config, width)
    inputs, output_gradient = (
        torch.randn(shape, generator=_generator(config, what, depth, width, seed), dtype=torch.float32, device="cpu")
        for what in ("inputs", "output gradient")
    )
    scale = inputs.double().square().flatten(1).mean(1).rsqrt().float()
    return inputs * scale.reshape(-1, *[1] * (inputs.ndim - 1)), output_gradient


def signal_shape(config: SweepConfig, width: int) -> tuple[int, ...]:
    """Shape of one network's inputs, which is that of its output."""
    return (config.batch, width, _SIDE, _SIDE) if config.family == "conv" else (config.batch, width)


def layer_fans(family: str, width: int) -> Fans:
    """The true fans of each layer of a plain network."""
    fan = width * _KERNEL**2 if family == "conv" else width
    return Fans(fan, fan)


def activation_module(activation: Activation, family: str) -> nn.Module:
    """The torch module that computes an activation; softmax is over units, or over channels."""
    parameters = tuple(activation.params.values())
    match activation.name.partition("(")[0]:
        case "softmax":
            return nn.Softmax(dim=-3 if family == "conv" else -1)
        case "gelu_tanh":
            return nn.GELU(approximate="tanh")
        case "prelu":
            return nn.PReLU(init=parameters[0], device="cpu", dtype=torch.float32)
        case "sin":
            return _Sin()
        case _:  # the table's order of parameters is torch's
            module: nn.Module = getattr(nn, activation.modules[0].rpartition(".")[2])(*parameters)
            return module


class _Sin(nn.Module):
    """torch has no module for the sine."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(z)


def _generator(config: SweepConfig, *purpose: str | int) -> torch.Generator:
    """A generator whose seed is a hash of what it is for: no two purposes share their numbers."""
    key = repr((config.seed, config.family, *purpose)).encode()
    # 63 bits, though torch's Mersenne Twister uses the low 32 of them.
    return torch.Generator("cpu").manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1)
