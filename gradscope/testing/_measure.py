"""A chain measured at every place: one forward pass, and one backward pass of random entries at the last layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.activations import Activation
from gradscope.experiments._jacobian_chain import Link, NoChainError, chain_of
from gradscope.experiments._jacobian_products import undisturbed
from gradscope.testing._places import Between, Weights

_SEED = 0
_ROWS = 256
"""So many rows are compared with each other at most. Fewer make them look more alike: the scores get smaller."""


def measured(model: nn.Module, inputs: Any, unknown: Activation | None) -> tuple[list[Weights], list[Between]]:
    """What theory needs of each layer and of what stands between them.

    Raises:
        ValueError: the model is no plain chain of two layers at least.
    """
    with undisturbed(model):
        try:
            links = chain_of(model, inputs, unknown).links
        except NoChainError as error:
            raise ValueError(
                "the theory of one step needs a plain chain, Linear or convolution layers with one elementwise"
                f" activation between each two, and the model is none: {error}"
            ) from None
        if len(links) < 2:
            raise ValueError(f"the model has one layer, {links[0].name!r}; the theory of one step needs two at least")
        last = links[-1].output
        direction = torch.randn(last.shape, generator=torch.Generator().manual_seed(_SEED)).to(last)
        wanted = [tensor for link in links for tensor in (link.inputs, link.output)]
        found = torch.autograd.grad(last, wanted, direction, allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]
    into, out_of = grads[::2], grads[1::2]  # the gradients of each layer's input and of its output
    layers = [_weights(link, g, d) for link, g, d in zip(links, into, out_of, strict=True)]
    between = [_between(links[i], links[i + 1], arriving=into[i + 1], leaving=out_of[i]) for i in range(len(links) - 1)]
    return layers, between


def _weights(link: Link, grad_input: Tensor, grad_output: Tensor) -> Weights:
    module: Any = link.module
    weight = module.weight.detach().double()
    bias = None if module.bias is None else module.bias.detach().double()
    x, h, e, d = (_by_rows(t, module) for t in (link.inputs, link.output, grad_input, grad_output))
    x2, d2 = x.square().mean(-1), d.square().mean(-1)
    if isinstance(module, nn.Linear):
        read, grad_read = weight.shape[1] * x2.mean(), weight.shape[0] * d2.mean()
    else:
        read_from, reads = _taps(module, tuple(x2.shape[1:]), tuple(d2.shape[1:]))
        read = weight.shape[1] * (x2.cpu() * read_from).sum() / d2.numel()
        grad_read = weight.shape[0] // module.groups * (d2.cpu() * reads).sum() / x2.numel()
    w2, b2 = float(weight.square().mean()), 0.0 if bias is None else float(bias.square().mean())
    return Weights(
        layer=link.name,
        kind=type(module).__name__,
        shape=tuple(weight.shape),
        w2=w2,
        mean=float(weight.mean()),
        b2=b2,
        given=float(x2.mean()),
        returned=float(h.square().mean()),
        read=float(read),
        grad_given=float(d2.mean()),
        grad_returned=float(e.square().mean()),
        grad_read=float(grad_read),
        units=h.shape[-1],
        units_in=x.shape[-1],
        alike=_likeness(x, w2 * weight[0].numel(), b2),
        grad_alike=_likeness(d, 1.0, 0.0),
    )


def _between(link: Link, following: Link, arriving: Tensor, leaving: Tensor) -> Between:
    module, shape = link.module, link.output.shape
    h, e = _by_rows(link.output, module), _by_rows(arriving.reshape(shape), module)
    rows, grad_rows = h.flatten(0, -2), e.flatten(0, -2)
    sampled = _some(len(rows))
    alike, grad_alike = (_correlations(part[sampled]) for part in (rows, grad_rows))
    return Between(
        before=link.name,
        after=following.name,
        found=link.activation,
        notes=link.notes,
        units=h.shape[-1],
        lengths=rows.square().mean(1).cpu().numpy(),
        arriving=grad_rows.square().mean(1).cpu().numpy(),
        returned=float(following.inputs.detach().double().square().mean()),
        grad_returned=float(leaving.double().square().mean()),
        sampled=sampled.numpy(),
        alike=alike.abs().cpu().numpy(),
        grad_alike=grad_alike.square().cpu().numpy(),
    )


def _by_rows(tensor: Tensor, module: Any) -> Tensor:
    """Of what a layer is given or returns, `(batch, *positions, units)`, float64."""
    wide = tensor.detach().double()
    if isinstance(module, nn.Linear):
        return wide if wide.dim() > 1 else wide[None]
    dims = len(module.kernel_size)
    return (wide if wide.dim() == dims + 2 else wide[None]).movedim(1, -1)


def _taps(module: Any, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """How many outputs read each position, and how many positions each output reads: those within the picture."""
    kernel = tuple(module.kernel_size)
    if module.padding_mode != "zeros":  # all that an output reads is there
        taps = float(np.prod(kernel))
        per_input = taps * float(np.prod(outputs)) / float(np.prod(inputs))
        return torch.full(inputs, per_input, dtype=torch.float64), torch.full(outputs, taps, dtype=torch.float64)
    convolve = getattr(functional, f"conv{len(kernel)}d")
    with torch.enable_grad():
        ones = torch.ones((1, 1, *inputs), dtype=torch.float64, requires_grad=True)
        weight = torch.ones((1, 1, *kernel), dtype=torch.float64)
        reads = convolve(ones, weight, stride=module.stride, padding=module.padding, dilation=module.dilation)
        (read_from,) = torch.autograd.grad(reads.sum(), ones)
    return read_from[0, 0], reads.detach()[0, 0]


def _some(rows: int) -> Tensor:
    """Numbers of at most 256 rows, evenly spread."""
    return torch.linspace(0, rows - 1, min(rows, _ROWS), dtype=torch.float64).round().long()


def _likeness(signal: Tensor, scale: float, shift: float) -> float:
    """tr G²/(tr G)² of the rows' mean products times `scale`, plus `shift`: from 1/rows to 1, of equal ones."""
    rows = signal.flatten(0, -2)
    rows = rows[_some(len(rows))]
    gram = rows @ rows.T / rows.shape[1] * scale + shift
    total = float(gram.trace())
    return float(gram.square().sum()) / total**2 if total > 0.0 else 1.0


def _correlations(rows: Tensor) -> Tensor:
    length = rows.norm(dim=1, keepdim=True)
    unit = rows / torch.where(length > 0.0, length, torch.ones_like(length))
    return unit @ unit.T
