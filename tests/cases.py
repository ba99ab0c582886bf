"""The bestiary: small models that are awkward to observe, one list for all tests. It grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


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


class Last(nn.Module):
    """The sequence of a recurrent module's output."""

    def forward(self, out: tuple[Tensor, Tensor]) -> Tensor:
        return out[0]


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


class Segments(nn.Module):
    """A reused layer in checkpointed segments, and segments within them: the calls come again in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.cell = nn.Linear(6, 6)

    def inner(self, x: Tensor) -> Tensor:
        return torch.tanh(self.cell(torch.tanh(self.cell(x))))

    def outer(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.cell(x)).requires_grad_()  # else torch warns of the segment within
        return checkpoint(self.inner, x, use_reentrant=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2):
            x = checkpoint(self.outer, x, use_reentrant=True)
        return checkpoint(self.inner, x, use_reentrant=True)


class Center(nn.Module):
    """Operations that an observer uses as well: where results are saved by operation, it must not take their place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double().sub(x.double().mean()).float()


class Selective(nn.Module):
    """What is saved and what runs again is decided operation by operation, and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(nn.Linear(6, 6), Center(), nn.Tanh(), nn.Linear(6, 6), nn.GELU())
        self.last = nn.Linear(6, 2)

    @staticmethod
    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        saved = "addmm sum mean sub dot aminmax ne _to_copy copy_"
        name = str(operation).split(".")[1]
        return CheckpointPolicy.MUST_SAVE if name in saved.split() else CheckpointPolicy.PREFER_RECOMPUTE

    def forward(self, x: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, self.policy)
        return self.last(checkpoint(self.middle, x, use_reentrant=False, context_fn=contexts))


@dataclass
class Answer:
    """A dataclass as an output, with a field that is no tensor."""

    value: Tensor
    extra: Any = None


class Named(NamedTuple):
    left: Tensor
    right: Tensor


class Structured(nn.Module):
    """A dataclass that holds a named tuple."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Named:
            return Named(self.linear(x) * 2, self.linear(x) - 1)

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x: Tensor) -> Answer:
        pair = self.inner(x)
        return Answer(pair.left + pair.right, extra=[None, pair])


class Spectrum(nn.Module):
    """Complex numbers on the way, as in FNet, and outputs that are integers, empty, or a single number."""

    class Fourier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x)

    class Odds(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.argmax(-1), x > 0, x[:0], x.mean(), x.real

    def __init__(self) -> None:
        super().__init__()
        self.fourier, self.odds = self.Fourier(), self.Odds()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        _, mask, empty, mean, values = self.odds(self.fourier(self.linear(x)).real)
        return values * mask + mean + empty.sum()


class Halves(nn.Module):
    """A module returns a part of its result, which is changed in place later."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)[:, :6]

    def __init__(self) -> None:
        super().__init__()
        self.part = self.Part()
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.part(x)
        h *= 2
        return self.last(h.tanh())


class Teacher(nn.Module):
    """A frozen encoder in evaluation, whose fused path only an encoder without hooks takes, before a trained head."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder.eval()(x))


class Autocast(nn.Module):
    """bfloat16 where autocast chooses it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x).float()


def _parametrized() -> nn.Module:
    parametrizations = nn.utils.parametrizations
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(5, 6)),
        nn.Tanh(),
        parametrizations.spectral_norm(nn.Linear(6, 6)),
        nn.Tanh(),
        parametrizations.orthogonal(nn.Linear(6, 6)),
    )


def _seq2seq() -> nn.Module:
    return nn.Transformer(8, 2, 1, 1, 16, dropout=0.1, batch_first=True)


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
    Case("segments", Segments, _randn(4, 6)),
    Case("selective checkpoint", Selective, _randn(4, 6)),
    Case("dataclass and named tuple", Structured, _randn(4, 5)),
    Case("complex and odd outputs", Spectrum, _randn(4, 6)),
    Case("part changed in place", Halves, _randn(4, 6)),
    Case("frozen encoder", Teacher, _randn(2, 4, 8)),
    Case("autocast", Autocast, _randn(4, 6)),
    Case("parametrizations", _parametrized, _randn(4, 5)),
    Case("sparse embedding", lambda: nn.Sequential(nn.Embedding(11, 4, sparse=True), nn.Linear(4, 2)), _tokens),
    Case("gru", lambda: nn.Sequential(nn.GRU(5, 6), Last()), _randn(4, 3, 5)),
    Case("transformer", _seq2seq, lambda: (torch.randn(2, 5, 8), torch.randn(2, 4, 8))),
    Case(
        "lazy", lambda: nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(2)), _randn(4, 5)
    ),
    Case(
        "in-place dropout",
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.4, inplace=True), nn.Tanh()),
        _randn(4, 5),
    ),
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
    if is_dataclass(out):
        out = vars(out)
    parts = out.values() if isinstance(out, dict) else out
    terms = [total(p) for p in parts if isinstance(p, (tuple, list, dict)) or _floating(p)]
    return torch.stack(terms).sum()


def _floating(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()
