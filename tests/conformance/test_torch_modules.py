"""Every module that torch's own tests know, alone and under a scope: nothing disturbed, nothing missed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_modules import ModuleInfo, module_db

from gradscope import GradScope
from tests.conformance.observing import Oracle, Seen, bits, disagreements, floats, hook_tables, replaced

# Said by torch about options that its own samples choose.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{said}:UserWarning")
    for said in (
        "enable_nested_tensor is True, but self.use_nested_tensor is False",
        "reduction. 'mean' divides the total loss by both the batch size and the support size",
        "linear_cross_entropy. ``options`` ignored",
        "Support for mismatched key_padding_mask and (attn_mask|src_mask|mask) is deprecated",
        "The PyTorch API of nested tensors is in prototype stage",
    )
]

SAMPLES = 8
"""Of an entry with more, that many at equal distances: they are made by nested loops over the options."""

# What has bitten recorders before: in-place, views, the input itself as output, packed and nested inputs and outputs,
# a child that is never called, lazy parameters, random sampling in forward, buffers, integer inputs, 0-d outputs.
QUICK = {
    "nn.ReLU",
    "nn.Linear",
    "nn.LazyConv2d",
    "nn.BatchNorm2d",
    "nn.FractionalMaxPool2d",
    "nn.Embedding",
    "nn.LSTM",
    "nn.LSTMCell",
    "nn.MultiheadAttention",
    "nn.TransformerEncoderLayer",
    "nn.CTCLoss",
    "nn.ZeroPad2d",
}


Sample = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A module, its arguments, its keyword arguments."""


@dataclass(frozen=True)
class Entry:
    info: ModuleInfo
    dtype: torch.dtype
    training: bool

    def __str__(self) -> str:
        return f"{self.info.name}-{str(self.dtype).removeprefix('torch.')}-{'train' if self.training else 'eval'}"

    def samples(self) -> Iterator[Sample]:
        """A fresh module with fresh inputs, the same ones at each call."""
        torch.manual_seed(0)
        made = list(
            self.info.module_inputs_func(
                self.info, device="cpu", dtype=self.dtype, requires_grad=True, training=self.training
            )
        )
        chosen = made[:: -(-len(made) // SAMPLES)]
        for i, sample in enumerate(chosen):
            torch.manual_seed(i + 1)
            built = self.info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            yield built.to(self.dtype).train(self.training), sample.forward_input.args, sample.forward_input.kwargs


def _entries(*, eval_only: bool = False) -> list[Any]:
    params = []
    for info in module_db:
        for dtype in (torch.float32, torch.float64):
            for training in (False,) if eval_only else (True, False):
                entry = Entry(info, dtype, training)
                differs = eval_only or training or info.train_and_eval_differ
                quick = info.name in QUICK and dtype is torch.float32 and differs
                params.append(pytest.param(entry, id=str(entry), marks=[] if quick else pytest.mark.conformance))
    return params


def _forward_backward(model: Callable[..., Any], args: Any, kwargs: Any) -> list[Tensor]:
    """The floating outputs; the loss is the sum of squares of those that have a gradient."""
    for tensor in floats((args, kwargs)):
        if tensor.requires_grad and not tensor.is_leaf:
            tensor.retain_grad()
    out = list(floats(model(*args, **kwargs)))
    differentiable = [t for t in out if t.requires_grad]
    if differentiable:
        torch.stack([t.square().sum() for t in differentiable]).sum().backward()
    return out


def _everything(model: nn.Module, args: Any, kwargs: Any, out: list[Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {f"output {i}": (bits(t), t._version) for i, t in enumerate(out)}
    found |= {
        f"gradient of input {i}": bits(t.grad if t.is_leaf or t.retains_grad else None)
        for i, t in enumerate(floats((args, kwargs)))
    }
    found |= {f"gradient of {name}": bits(p.grad) for name, p in model.named_parameters()}
    found |= {name: bits(t) for name, t in model.state_dict().items()}
    found |= {f"attributes of {name}": set(vars(m)) for name, m in model.named_modules()}
    return found | {"random state": bits(torch.random.get_rng_state())}


def _differences(bare: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    return sorted(key for key in bare.keys() | seen.keys() if bare.get(key) != seen.get(key))


@pytest.mark.parametrize("entry", _entries())
def test_forward_and_backward_are_bit_identical_under_the_scope_which_leaves_no_hook(entry: Entry) -> None:
    for bare, seen in zip(entry.samples(), entry.samples(), strict=True):
        results, tables = [], []
        for scoped, (model, args, kwargs) in ((False, bare), (True, seen)):
            torch.manual_seed(99)
            scope = GradScope(model) if scoped else None
            out = _forward_backward(scope or model, args, kwargs)
            if scope is not None:
                scope.close()
            results.append(_everything(model, args, kwargs, out))
            tables.append(hook_tables(model, *floats((args, kwargs))))
        assert _differences(*results) == []
        assert tables[0] == tables[1]


@pytest.mark.parametrize("entry", _entries(eval_only=True))
def test_evaluation_without_gradient_is_bit_identical_under_the_scope(entry: Entry) -> None:
    for bare, seen in zip(entry.samples(), entry.samples(), strict=True):
        results = []
        for scoped, (model, args, kwargs) in ((False, bare), (True, seen)):
            torch.manual_seed(99)
            scope = GradScope(model) if scoped else None
            with torch.no_grad():
                out = list(floats(model(*args, **kwargs)))
            if scope is not None:
                scope.close()
            results.append(_everything(model, args, kwargs, out))
        assert _differences(*results) == []


def _check_nothing_is_missed(seen: Sample, *looked_at: Sample, hidden: Collection[str] = ()) -> None:
    model, args, kwargs = seen
    torch.manual_seed(99)
    with GradScope(model) as scope:
        out = _forward_backward(scope, args, kwargs)
    overwritten: set[str] = set()
    for model, args, kwargs in looked_at:  # the second time with copies of what was overwritten the first time
        torch.manual_seed(99)
        oracle = Oracle(model, overwritten)
        again = _forward_backward(model, args, kwargs)
        oracle.backward_is_over()
        overwritten = oracle.overwritten
    assert [bits(t) for t in out] == [bits(t) for t in again]  # else the oracle is none
    if any(t.requires_grad for t in out):  # else no backward, no step
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        step = {"activation": oracle.activation, "activation_grad": oracle.activation_grad, "weight_grad": gradients}
        assert disagreements(scope, Seen([step], frozenset(overwritten)), hidden) == []


@pytest.mark.parametrize("entry", _entries())
def test_every_output_and_every_gradient_is_recorded_with_its_rms(entry: Entry) -> None:
    for triplet in zip(*(entry.samples() for _ in range(3)), strict=True):
        _check_nothing_is_missed(*triplet)


class Overwritten(nn.Module):
    """A module whose outputs the next operation changes in place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = replaced((args, kwargs), lambda t: t.clone() if t.requires_grad and t.is_leaf else t)
        out = self.module(*args, **kwargs)
        for tensor in floats(out):
            if tensor.requires_grad:
                tensor.mul_(2)
        return out


# Without a batch the new state is a view of one that the cell itself has used: its gradient cannot be told apart.
HIDDEN = {"nn.LSTMCell": ["module[[]1]"]}  # a pattern


@pytest.mark.parametrize("entry", _entries())
def test_an_output_changed_in_place_later_is_recorded_as_returned_and_disturbed_by_nothing(entry: Entry) -> None:
    for bare, seen, *triplet in zip(*(entry.samples() for _ in range(5)), strict=True):
        try:
            torch.manual_seed(99)
            model, *inputs = Overwritten(bare[0]), *bare[1:]
            expected = _everything(model, *inputs, _forward_backward(model, *inputs))
        except RuntimeError:
            continue  # the module saved its output for backward, or several outputs share their memory
        torch.manual_seed(99)
        model, *inputs = Overwritten(seen[0]), *seen[1:]
        with GradScope(model) as scope:
            out = _forward_backward(scope, *inputs)
        assert _differences(expected, _everything(model, *inputs, out)) == []
        wrapped = [(Overwritten(module), args, kwargs) for module, args, kwargs in triplet]
        _check_nothing_is_missed(*wrapped, hidden=HIDDEN.get(entry.info.name, ()))
