"""The sweep's written-out backward pass: each activation's slope is autograd's, to the bit, and nothing waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradscope import activations
from gradscope.experiments import SweepConfig, sweep
from gradscope.experiments import _slopes as slopes_file
from gradscope.experiments._measure import _activate
from gradscope.experiments._networks import activation_module
from gradscope.experiments._slopes import slope

NAMES = [*activations.names(), "leaky_relu(0.2)", "prelu(0.1)", "elu(2)", "celu(0.5)", "hardtanh(-2, 3)", "softplus(2)"]
SMALL = {"depth": 4, "width": 16, "batch": 8, "seeds": 2}


def pre_activations() -> Tensor:
    """`(seeds, activations, batch, width)` of every size, with kinks, subnormals, infinities and NaN among them."""
    z = torch.randn(3, 2, 8, 40, generator=torch.Generator().manual_seed(0))
    z[0] *= 30
    z[1] *= 1e-30
    special = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 1e-42, -1e-42, 1e38, -1e38, torch.inf, -torch.inf, torch.nan]
    z[2, :, 0, : len(special)] = torch.tensor(special)
    return z


@pytest.mark.parametrize("family", ["mlp", "conv"])
@pytest.mark.parametrize("name", NAMES)
def test_a_slope_is_autograds_to_the_bit(name: str, family: str) -> None:
    module = activation_module(activations.get(name), family).requires_grad_(False)
    found, z = slope(module), pre_activations()
    gradient = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    gradient[0] *= 1e-40
    # One activation's rows among those of others, as they lie in the sweep.
    leaf = z[:, 1].clone().requires_grad_()
    output = module(leaf)
    (expected,) = torch.autograd.grad(output, leaf, gradient[:, 1].clone())
    with torch.no_grad():
        kept = torch.empty_like(z[:, 1])
        _activate(z[:, 1], module, found.keeps, kept)
        untouched = gradient[:, 0].clone()
        found.multiply(gradient[:, 1], kept)
    torch.testing.assert_close(z[:, 1], output.detach(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(gradient[:, 1], expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(gradient[:, 0], untouched)


def test_the_default_sweep_needs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("an activation of the default sweep was run again under autograd")

    monkeypatch.setattr(slopes_file, "_by_autograd", refuse)
    sweep(SweepConfig(init="he_normal", **SMALL))
    with pytest.raises(AssertionError, match="under autograd"):  # the refusal is where it is called
        sweep(SweepConfig(init="he_normal", activation="sin", **SMALL))


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("family", ["mlp", "conv"])
def test_no_number_is_read_back_while_layers_are_measured_and_products_are_shared(family: str) -> None:
    config = SweepConfig(init="he_normal", activation=["relu", "gelu", "sin"], family=family, **SMALL)
    with _Calls() as calls:
        sweep(config)
    # On a GPU each of these would wait for the device.
    assert not {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"} & set(calls.of)
    # All seeds and activations in one product a layer: forward each, backward all but the first.
    assert calls.of["bmm" if family == "mlp" else "convolution"] == 4 + 3
