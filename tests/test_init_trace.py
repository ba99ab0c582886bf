"""What follows a layer, as it is seen while the model runs: modules and functions, in every spelling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradscope.init._trace import LayerCall, Watch, trace


def _mlp() -> nn.Module:
    return nn.Sequential(After(F.relu), nn.Tanh(), nn.Linear(4, 4))


class After(nn.Module):
    """One layer, something after it, a head."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.after = after
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.layer(x)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class NewGELUActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class AddOne(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x + 1

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def _rms_norm(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def _by_parts(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, :2] = h[:, :2]
    return out


def _into(h: Tensor) -> Tensor:
    return torch.add(h.detach(), 1, out=torch.empty_like(h))


SEEN: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "F.relu": (F.relu, "relu"),
    "F.relu_": (F.relu_, "relu"),
    "Tensor.relu_": (lambda h: h.relu_(), "relu"),
    "F.relu6": (F.relu6, "relu6"),
    "F.hardtanh(0, 6)": (lambda h: F.hardtanh(h, 0.0, 6.0), "relu6"),
    "nn.Hardtanh(0, 6)": (nn.Hardtanh(0.0, 6.0), "relu6"),
    "nn.ReLU6": (nn.ReLU6(True), "relu6"),
    "clamp(min=0)": (lambda h: h.clamp(min=0), "relu"),
    "torch.clamp_min": (lambda h: torch.clamp_min(h, 0), "relu"),
    "clamp(-1, 1)": (lambda h: h.clamp(-1, 1), "hardtanh"),
    "clamp(-5, 5)": (lambda h: h.clamp(-5, 5), None),
    "F.leaky_relu(h, 0.2)": (lambda h: F.leaky_relu(h, 0.2), "leaky_relu(0.2)"),
    "F.leaky_relu(input=h)": (lambda h: F.leaky_relu(input=h, negative_slope=0.3), "leaky_relu(0.3)"),
    "nn.PReLU": (nn.PReLU(init=0.1), "prelu(0.1)"),
    "F.prelu": (lambda h: F.prelu(h, torch.tensor([0.1])), "prelu(0.1)"),
    "F.gelu(tanh)": (lambda h: F.gelu(h, approximate="tanh"), "gelu_tanh"),
    "nn.GELU(tanh)": (nn.GELU("tanh"), "gelu_tanh"),
    "torch.sin": (lambda h: torch.sin(30 * h), "sin"),
    "torch.special.expit": (torch.special.expit, "sigmoid"),
    "h.softmax": (lambda h: h.softmax(-1), "softmax"),
    "SiLU by hand": (lambda h: h * torch.sigmoid(h), "silu"),
    "SiLU by hand, in place": (lambda h: h.mul_(h.sigmoid()), "silu"),
    "a class called Swish": (Swish(), "silu"),
    "a class called NewGELUActivation": (NewGELUActivation(), "gelu"),
    "a gate of another tensor": (lambda h: h * torch.sigmoid(torch.ones(4)), None),
    "an RMS norm by hand": (lambda h: F.elu(_rms_norm(h)), "elu"),
    "norm, dropout, pooling, shapes": (
        lambda h: F.silu(F.max_pool1d(F.dropout(F.layer_norm(h, (4,)))[:, None], 1).flatten(1).T.mT.contiguous()),
        "silu",
    ),
    "max over a dimension": (lambda h: F.relu(h[:, None].max(1).values), "relu"),
    "chunks": (lambda h: (lambda a, b: torch.cat([torch.tanh(a), b], 1))(*h.chunk(2, 1)), "tanh"),
    "in-place arithmetic": (lambda h: F.mish(h.mul_(2).add_(1)), "mish"),
    "assignment to a part": (lambda h: F.relu(_by_parts(h)), "relu"),
    "an out= argument": (lambda h: F.relu(_into(h)), "relu"),
    "exp ends it": (lambda h: F.relu(h.exp()), None),
    "a product of matrices ends it": (lambda h: F.relu(h @ torch.ones(4, 4)), None),
    "an autograd.Function is seen into": (lambda h: F.relu(AddOne.apply(h)), "relu"),
    "glu is no elementwise activation": (lambda h: F.glu(h.repeat(1, 2)), None),
    "the identity is looked through": (nn.Sequential(nn.Identity(), nn.Tanh()), "tanh"),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_first_activation_that_an_output_meets_is_seen(name: str) -> None:
    after, activation = SEEN[name]
    found = trace(After(after), torch.randn(3, 4))
    assert found == (LayerCall("layer", 0, activation), LayerCall("head", 0, None))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_seen_through(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(checkpoint(self.layer, x, use_reentrant=reentrant))

    assert trace(Net(), torch.randn(2, 4).requires_grad_()) == (LayerCall("layer", 0, "relu"),)


def test_a_freed_tensors_id_is_not_taken_for_another() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x)  # freed at once: its id is soon another tensor's
            return torch.stack([torch.relu(torch.ones(2, 4) * i) for i in range(200)])

    assert trace(Net(), torch.randn(2, 4)) == (LayerCall("layer", 0, None),)


def test_the_watch_is_reusable_around_any_forward_and_leaves_no_hook() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with Watch(model) as watch:
        model(torch.randn(2, 4))
    assert watch.calls == (LayerCall("0", 0, "relu"),)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model(torch.randn(2, 4))
    assert len(watch.calls) == 1


def test_a_compiled_model_is_run_uncompiled() -> None:
    whole = torch.compile(_mlp(), backend="eager")
    assert [call.activation for call in trace(whole, torch.randn(2, 4))] == ["relu", "tanh", None]
    part = nn.Sequential(_mlp(), nn.Tanh())
    part[0].compile(backend="eager")
    assert [call.activation for call in trace(part, torch.randn(2, 4))][-1] == "tanh"
