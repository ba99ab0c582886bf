"""`jacobian_spectrum`: the singular values of a model's Jacobian, beside what theory expects of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradscope import activations
from gradscope.activations import Activation
from gradscope.experiments._jacobian_lanczos import quadrature
from gradscope.experiments._jacobian_products import Products, products
from gradscope.experiments._jacobian_result import JacobianSpectrum
from gradscope.experiments._jacobian_theory import expected_moments
from gradscope.theory import JacobianMoments

Array = NDArray[np.float64]


def jacobian_spectrum(
    model: nn.Module,
    inputs: Any,
    *,
    probes: int = 8,
    steps: int = 20,
    exact_up_to: int = 512,
    activation: str | Activation | None = None,
    generator: torch.Generator | None = None,
) -> JacobianSpectrum:
    """The singular values of a model's Jacobian at each sample of a batch, or their moments and density.

    The Jacobian is of the first floating tensor that the model returns by the first one it is given; the first
    dimension of both is the batch. Up to 512 × 512 entries a sample it is computed row by row, and its singular values
    are exact. Beyond, nothing as large as it is made: from each of a few random probes v, `steps` products J v and Jᵀu
    (Golub–Kahan) give |J v|² and |JᵀJ v|² (Hutchinson's estimates of the moments), a quadrature of the density, and the
    largest singular value. Afterwards the model is as before; its mode is used as it is, one dropout mask for all.

    Args:
        model: any module whose operations can be differentiated twice.
        inputs: a tensor `(batch, …)`, a tuple (positional arguments) or a mapping (keyword arguments).
        probes: random directions, at least 2: the standard errors fall as 1/√probes.
        steps: products from each of them, at least 2; the largest singular value is the better the more there are.
        exact_up_to: entries of one sample's input, and of its output, up to which all singular values are computed.
        activation: between the layers of a plain chain, where it is none that is known by its name.
        generator: of the probes, on the CPU; by default one of its own with a fixed seed.

    Raises:
        TypeError, ValueError: an argument is not as above, or the samples depend on each other: batch norm in training
            mode mixes them, and what a sample's own Jacobian is has no answer then.
        RuntimeError: torch cannot differentiate an operation of the model twice.

    >>> _ = torch.manual_seed(0)
    >>> found = jacobian_spectrum(nn.Linear(3, 3, bias=False), torch.ones(1, 3))
    >>> found.singular_values.shape, round(found.theory.relative_variance, 9)
    ((1, 3), 1.0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; jacobian_spectrum takes a torch.nn.Module")
    for name, value, least in (("probes", probes, 2), ("steps", steps, 2), ("exact_up_to", exact_up_to, 0)):
        if value < least:
            raise ValueError(f"{name}={value!r} must be at least {least}")
    found = None if activation is None else activations.get(activation)
    theory = expected_moments(model, inputs, found)
    with products(model, inputs) as jacobian:
        if max(jacobian.inputs, jacobian.outputs) <= exact_up_to:
            return _exact(jacobian, theory)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        return _probed(jacobian, theory, probes, steps, generator)


def _exact(jacobian: Products, theory: JacobianMoments | None) -> JacobianSpectrum:
    by_rows = jacobian.outputs <= jacobian.inputs
    side = min(jacobian.outputs, jacobian.inputs)
    product = jacobian.backward if by_rows else jacobian.forward
    lines = []
    for index in range(side):
        unit = torch.zeros((jacobian.batch, side), dtype=jacobian.dtype, device=jacobian.device)
        unit[:, index] = 1.0
        lines.append(product(unit).double().cpu())
    s = np.linalg.svd(torch.stack(lines, 1).numpy(), compute_uv=False)
    mean, mean_fourth = (np.sum(s**power, 1) / jacobian.inputs for power in (2, 4))
    nodes, weights = np.sort(s.ravel()), np.full(s.size, 1.0 / (jacobian.batch * jacobian.inputs))
    return _spectrum(
        jacobian,
        theory,
        (float(mean.mean()), 0.0),
        (_relative_variance(mean, mean_fourth), 0.0),
        (float(s.max()), 0.0),
        (nodes, weights),
        s,
    )


def _probed(
    jacobian: Products, theory: JacobianMoments | None, probes: int, steps: int, generator: torch.Generator
) -> JacobianSpectrum:
    # From the smaller side: from the larger one, directions that are sent to 0 would take nodes of their own.
    turned = jacobian.outputs < jacobian.inputs
    side = min(jacobian.outputs, jacobian.inputs)
    there, back = (jacobian.backward, jacobian.forward) if turned else (jacobian.forward, jacobian.backward)
    precision = torch.finfo(jacobian.dtype).eps
    found = []
    for _ in range(probes):
        signs = torch.randint(0, 2, (jacobian.batch, side), generator=generator).double() * 2.0 - 1.0
        found.append(quadrature(there, back, signs.to(jacobian.device), min(steps, side), precision))
    nodes, weights = (np.stack(part) for part in zip(*((one.nodes, one.weights) for one in found), strict=True))
    share = side / jacobian.inputs
    mean, fourth = (share * np.sum(weights * nodes**power, -1) for power in (2, 4))  # (probes, batch)
    largest = nodes[..., 0]
    top = np.unravel_index(np.argmax(largest), largest.shape)
    residual = np.stack([one.residual for one in found])
    order = np.argsort(nodes, axis=None)
    return _spectrum(
        jacobian,
        theory,
        (float(mean.mean()), float(mean.mean(1).std(ddof=1) / math.sqrt(probes))),
        _jackknife(mean, fourth),
        (float(largest[top]), float(residual[top])),
        (nodes.ravel()[order], share * weights.ravel()[order] / largest.size),
        None,
    )


def _spectrum(
    jacobian: Products,
    theory: JacobianMoments | None,
    mean: tuple[float, float],
    variance: tuple[float, float],
    largest: tuple[float, float],
    quadrature: tuple[Array, Array],
    s: Array | None,
) -> JacobianSpectrum:
    nodes, weights = quadrature
    if jacobian.outputs < jacobian.inputs:  # what is sent to 0 for want of outputs
        nodes = np.concatenate([[0.0], nodes])
        weights = np.concatenate([[1.0 - jacobian.outputs / jacobian.inputs], weights])
    return JacobianSpectrum(
        batch=jacobian.batch,
        inputs=jacobian.inputs,
        outputs=jacobian.outputs,
        singular_values=s,
        mean_square=mean[0],
        mean_square_error=mean[1],
        relative_variance=variance[0],
        relative_variance_error=variance[1],
        largest=largest[0],
        largest_error=largest[1],
        smallest=None if s is None else float(s.min()),
        nodes=nodes,
        weights=weights,
        theory=theory,
    )


def _relative_variance(mean: Array, fourth: Array) -> float:
    """Of each sample's moments, `(batch,)`, and then their mean."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean(fourth / mean**2 - 1.0))


def _jackknife(mean: Array, fourth: Array) -> tuple[float, float]:
    """The relative variance from the probes' moments, `(probes, batch)`, without its bias of order 1/probes; its error.

    The ratio of two means is biased, each probe left out in turn tells by how much (Efron & Tibshirani 1993,
    chapter 11).
    """
    probes = len(mean)
    whole = _relative_variance(mean.mean(0), fourth.mean(0))
    without = np.array(
        [_relative_variance(np.delete(mean, i, 0).mean(0), np.delete(fourth, i, 0).mean(0)) for i in range(probes)]
    )
    spread = math.sqrt((probes - 1) / probes * float(np.sum((without - without.mean()) ** 2)))
    return probes * whole - (probes - 1) * float(without.mean()), spread
