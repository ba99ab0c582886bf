"""The bestiary: small models that are awkward to observe, one list for all tests. It grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    """A tensor, a tuple or a dict."""

    def __str__(self) -> str:
        return self.name


class Residual(nn.Module):
    """x + f(x), then an in-place ReLU on the sum."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.act(self.first(x)))
        h += x
        return h


class Reused(nn.Module):
    """One layer called three times: a site for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        return x


class Outputs(nn.Module):
    """A tuple within a dict, with what is no tensor and what is no float."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> dict[str, Any]:
        a, (b, _) = self.pair(x)
        return {"sum": a + b, "parts": (a, None), "label": x.argmax(-1), "name": "outputs"}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5, 4)
        self.right = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
        return self.left(x) * 2, (self.right(x).sigmoid(), 3)


class Functional(nn.Module):
    """Activations without modules, a layer without bias, a view changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 9)
        self.b = nn.Linear(9, 9, bias=False)
        self.c = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.gelu(self.b(F.relu_(self.a(x))), approximate="tanh"))


class Recurrent(nn.Module):
    """Tokens, an LSTM whose state is an output too, a classifier on the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.head(hidden[-1])


class Frozen(nn.Module):
    """A frozen backbone, a trained head, a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).relu())


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(tokens)).tanh())


class Checkpointed(nn.Module):
    """The middle runs again inside the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.last = nn.Linear(6, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.middle, self.first(x), use_reentrant=self.reentrant))


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.SiLU(inplace=True),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * 64, 5),
    )


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.1)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _randn(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def _tokens() -> Tensor:
    return torch.randint(11, (4, 5))


CASES = (
    Case("mlp", lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), _randn(4, 5)),
    Case("a lone layer", lambda: nn.Linear(5, 3), _randn(4, 5)),
    Case("in-place relu", lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(True), nn.Linear(8, 3)), _randn(4, 5)),
    Case("in-place relu on a view", lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(True)), _randn(4, 3, 5)),
    Case("in-place residual", lambda: nn.Sequential(Residual(), Residual(), nn.Linear(8, 2)), _randn(4, 8)),
    Case("in-place residual on views", lambda: nn.Sequential(Residual(), Residual()), _randn(4, 3, 8)),
    Case("reused layer", Reused, _randn(4, 6)),
    Case("tuple and dict outputs", Outputs, _randn(4, 5)),
    Case("functional activations", Functional, _randn(3, 4, 7)),
    Case("convolutions", _convolutions, _randn(3, 1, 8, 8)),
    Case("lstm", Recurrent, _tokens),
    Case("frozen and unused", Frozen, _randn(4, 6)),
    Case("tied weights", Tied, _tokens),
    Case("attention", _transformer, _randn(2, 5, 8)),
    Case("identity", lambda: nn.Sequential(nn.Identity(), nn.Linear(5, 5), nn.Identity()), _randn(4, 5)),
    Case("checkpoint", lambda: Checkpointed(False), _randn(4, 6)),
    Case("reentrant checkpoint", lambda: Checkpointed(True), _randn(4, 6)),
    Case(
        "float64",
        lambda: nn.Sequential(nn.Linear(5, 8), nn.SELU(), nn.Linear(8, 3)).double(),
        lambda: torch.randn(4, 5).double(),
    ),
    Case(
        "bfloat16",
        lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)).bfloat16(),
        lambda: torch.randn(4, 5).bfloat16(),
    ),
)


def call(model: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def total(out: Any) -> Tensor:
    """A loss that reaches every floating output, and that training can bring down."""
    if isinstance(out, Tensor):
        goal = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        return (out - goal).square().mean()
    parts = out.values() if isinstance(out, dict) else out
    terms = [total(p) for p in parts if isinstance(p, (tuple, dict)) or _floating(p)]
    return torch.stack(terms).sum()


def _floating(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()
