"""Parameters that are used though their module is not called: never said to be unused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gradscope import GradScope
from gradscope.diagnosis import Finding, diagnose

WIDTH, CLASSES = 8, 3


class Attention(nn.Module):
    """`out_proj` is used by the attention, which does not call it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x)[0])


class Read(nn.Module):
    """A weight that a function reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, self.read.weight, self.read.bias))


class Listed(nn.Module):
    """Parameters in a list, which nobody can call."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(WIDTH, WIDTH) / 3 for _ in range(2)])
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x @ self.weights[0] @ self.weights[1])


class Parametrized(nn.Module):
    """The parameters lie in a module of the parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.last = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.normed(x))


class HandsOn(nn.Module):
    """A module with a parameter of its own that returns what its child does, and so has no site."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.last = nn.Parameter(torch.eye(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x @ self.own)


class Encoder(nn.Module):
    """A transformer in evaluation under `no_grad`: torch's fast path, which calls nothing within its layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.encoder(x)


class Tied(nn.Module):
    """An embedding that is never called, for its weight is read as the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


class Net(nn.Module):
    def __init__(self, part: nn.Module, cut: bool) -> None:
        super().__init__()
        self.inward, self.part, self.head = nn.Linear(WIDTH, WIDTH), part, nn.Linear(WIDTH, CLASSES)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        h = self.part(torch.tanh(self.inward(x)))
        return self.head((h.detach() if self.cut else h).mean(1))


def trained(model: nn.Module) -> GradScope:
    torch.manual_seed(1)
    x, y = torch.randn(16, 5, WIDTH), torch.randint(CLASSES, (16,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with GradScope(model, every=1) as scope:
        for _ in range(6):
            optimizer.zero_grad()
            loss = F.cross_entropy(scope(x), y)
            scope.note(loss=loss)
            loss.backward()
            optimizer.step()
            scope.step()
    return scope


def no_gradient(model: nn.Module) -> list[Finding]:
    return [one for one in diagnose(trained(model).recording) if one.rule == "no-gradient"]


def made(kind: type[nn.Module], *, cut: bool) -> Net:
    torch.manual_seed(0)
    return Net(kind(), cut)


@pytest.mark.parametrize("kind", [Attention, Read, Listed, Parametrized, HandsOn, Tied])
def test_parameters_that_are_used_without_a_call_are_no_finding(kind: type[nn.Module]) -> None:
    assert no_gradient(made(kind, cut=False)) == []


@pytest.mark.parametrize(
    ("kind", "behind"),
    [
        (Attention, "part.last"),
        (Read, "part.last"),
        (Listed, "part.last"),
        (Parametrized, "part.last"),
        (HandsOn, "part.last"),
        (Tied, "part.last"),
        (Encoder, "part.encoder.layers.1"),
    ],
)
def test_a_detached_part_is_one_finding_with_all_its_parameters(kind: type[nn.Module], behind: str) -> None:
    model = made(kind, cut=True)
    (one,) = no_gradient(model)
    assert one.causes == ("detached",)
    assert set(one.sites) == {name for name, _ in model.named_parameters() if not name.startswith("head")}
    assert f"between '{behind}' and 'head'" in one.explanation


def test_modules_that_ran_in_the_fast_path_of_torch_are_not_said_to_be_never_called() -> None:
    model = made(Encoder, cut=False)
    scope = trained(model)
    inside = [name for name in scope.unobserved if name.startswith("part.encoder.layers.0.")]
    assert {f"part.encoder.layers.0.{n}" for n in ("self_attn", "self_attn.out_proj", "linear1", "norm2")} <= {*inside}
    assert all("fast path" in scope.unobserved[name] for name in inside)
    assert not [one for one in diagnose(scope.recording) if "never called" in one.explanation]


def test_a_frozen_encoder_in_its_fast_path_is_no_finding() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True).eval().requires_grad_(False)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = layer, nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).mean(1))

    scope = trained(Head())
    assert "fast path" in scope.unobserved["body.linear1"]
    assert not [one for one in diagnose(scope.recording) if one.causes[:1] == ("unused",)]


def test_an_attention_that_is_never_called_is_said_so_with_its_parts() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.spare = nn.Linear(WIDTH, WIDTH), nn.MultiheadAttention(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x)

    model = made(Spare, cut=False)
    (one,) = no_gradient(model)
    assert one.explanation.startswith("'part.spare', 'part.spare.out_proj' are never called in a forward pass")
    assert set(one.sites) == {name for name, _ in model.named_parameters() if name.startswith("part.spare")}


def test_a_weight_that_is_read_detached_is_not_told_to_be_taken_out_alone() -> None:
    class Cut(Read):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(x + F.linear(x, self.read.weight, self.read.bias).detach())

    (one,) = no_gradient(made(Cut, cut=False))
    assert set(one.sites) == {"part.read.weight", "part.read.bias"}
    assert "no gradient comes to its parameters by another way" in one.explanation
    assert "read by another way, without no_grad" in one.remedy


def test_one_of_several_parameters_that_is_used_detached_leaves_its_module_called() -> None:
    class Cut(HandsOn):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(x @ self.own.detach())

    (one,) = no_gradient(made(Cut, cut=False))
    assert one.sites == ("part.own",)
    assert one.explanation.startswith("No gradient reaches 'part.own': not used, ")
