"""Architectures of `transformers`, trained for two steps: nothing disturbed, nothing missed, in any way of training."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from gradscope import GradScope
from tests.conformance.architectures import ARCHITECTURES, Architecture
from tests.conformance.observing import Oracle, Seen, bits, disagreements, floats, hook_tables

STEPS = 2

QUICK = {
    "DebertaV2ForMaskedLM",  # in-place changes of views, a convolution with a residual
    "Swinv2ForImageClassification",  # x += on views, parameters that are no module's weight, drop path
    "AlbertForMaskedLM",  # one layer called again and again
    "Wav2Vec2Model-stable",  # a parametrized weight, numpy's random numbers, layer drop
}


@pytest.fixture(autouse=True)
def quiet() -> Iterable[None]:
    """Advice about special tokens, deprecated options and missing kernels is not about us."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@dataclass(frozen=True)
class Way:
    """How the model is trained."""

    name: str = "plainly"
    checkpointing: bool | None = None
    """`use_reentrant`, None without."""
    autocast: bool = False
    optimizer_closes: bool = False


PLAINLY = Way()
CHECKPOINTING = (Way("checkpointed", False, optimizer_closes=True), Way("reentrant", True))
AUTOCAST = Way("autocast", autocast=True)


@dataclass
class Trained:
    """Everything a training run leaves, as bits, and what was seen on the way."""

    left: dict[str, Any] = field(default_factory=dict)
    hooks: Any = None
    scope: GradScope | None = None
    seen: Seen | None = None


def _loss(out: Any) -> Tensor:
    """The model's own, or one that reaches each of its outputs; half precision is not what is tested here."""
    if isinstance(getattr(out, "loss", None), Tensor):
        return out.loss
    return torch.stack([t.float().square().mean() for t in floats(out) if t.requires_grad]).sum()


def _train(
    architecture: Architecture, way: Way, *, scoped: bool = False, look: bool = False, overwritten: Iterable[str] = ()
) -> Trained:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    model = architecture.model().train()
    if way.checkpointing is not None:
        # Version 5 renamed it and warns under the older name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": way.checkpointing})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batches = [architecture.inputs() for _ in range(STEPS)]
    scope = GradScope(model, optimizer if way.optimizer_closes else None) if scoped else None
    oracle = Oracle(model, set(overwritten)) if look else None
    result, steps = Trained(), []
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if way.autocast else nullcontext():
            loss = _loss((scope or model)(**batch))
        if oracle is not None:
            oracle.forward_is_over()
        loss.backward()
        result.left[f"loss of step {step}"] = bits(loss)
        result.left |= {f"gradient of {n} at step {step}": bits(p.grad) for n, p in model.named_parameters()}
        if oracle is not None:
            oracle.backward_is_over()
            steps.append(_seen(model, oracle))
        optimizer.step()
        if scope is not None and not way.optimizer_closes:
            scope.step(loss)
    if scope is not None:
        scope.close()
        result.scope = scope
    else:
        assert all(torch.isfinite(p).all() for p in model.parameters())
    result.left |= {name: bits(t) for name, t in model.state_dict().items()}
    result.left |= {f"random state {i}": s for i, s in enumerate((bits(torch.get_rng_state()), random.getstate()))}
    result.left["random state of numpy"] = np.random.get_state()[1].tobytes()  # noqa: NPY002 - the one that transformers uses
    if oracle is not None:
        result.seen = Seen(steps, frozenset(oracle.overwritten))
    result.hooks = hook_tables(model, *(t for batch in batches for t in batch.values()))
    return result


def _seen(model: nn.Module, oracle: Oracle) -> dict[str, dict[str, Tensor]]:
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = {"activation": oracle.activation, "activation_grad": oracle.activation_grad}
    oracle.next_step()
    return seen | {"weight_grad": gradients, "weight": weights}


def _params(architectures: Iterable[Architecture], *, always: Collection[str] = ()) -> list[Any]:
    return [
        pytest.param(a, id=a.name, marks=[] if a.name in always else pytest.mark.conformance) for a in architectures
    ]


def _check_undisturbed(bare: Trained, seen: Trained) -> None:
    different = [key for key in bare.left if bare.left[key] != seen.left.get(key)]
    assert (different, list(bare.left)) == ([], list(seen.left))
    assert bare.hooks == seen.hooks
    assert seen.scope is not None
    assert seen.scope.recording.steps.tolist() == list(range(STEPS))


def _check_nothing_is_missed(architecture: Architecture, way: Way, scope: GradScope | None) -> None:
    looked = _train(architecture, way, look=True)
    assert scope is not None
    assert looked.seen is not None
    if looked.seen.overwritten:
        looked = _train(architecture, way, look=True, overwritten=looked.seen.overwritten)
        bare = _train(architecture, way)
        assert [key for key, value in bare.left.items() if looked.left[key] != value] == []  # else it is no oracle
    assert looked.seen is not None
    assert disagreements(scope, looked.seen) == []


@pytest.mark.parametrize("architecture", _params(ARCHITECTURES, always=QUICK))
def test_two_steps_of_adamw_are_bit_identical_under_the_scope_which_leaves_no_hook(architecture: Architecture) -> None:
    _check_undisturbed(_train(architecture, PLAINLY), _train(architecture, PLAINLY, scoped=True))


@pytest.mark.parametrize("architecture", _params(ARCHITECTURES, always=QUICK))
def test_every_output_and_every_gradient_is_recorded_with_its_rms(architecture: Architecture) -> None:
    _check_nothing_is_missed(architecture, PLAINLY, _train(architecture, PLAINLY, scoped=True).scope)


# Written down, as asking each class imports each model: seconds whenever tests are collected.
NOT_CHECKPOINTED = {
    "AlbertForMaskedLM",
    "XLNetLMHeadModel",
    "MPNetForMaskedLM",
    "SqueezeBertForMaskedLM",
    "FunnelForMaskedLM",
    "PerceiverModel",
    "CTRLLMHeadModel",
    "OpenAIGPTLMHeadModel",
    "JetMoeForCausalLM",
    "ConvNextForImageClassification",
    "ConvNextV2ForImageClassification",
    "ResNetForImageClassification",
    "ResNetForImageClassification-bottleneck",
    "RegNetForImageClassification",
    "MobileNetV2ForImageClassification",
    "PoolFormerForImageClassification",
    "LevitForImageClassification",
    "CvtForImageClassification",
    "BitForImageClassification",
    "EncodecModel",
    "PatchTSTForPrediction",
    "PatchTSMixerForPrediction",
}


@pytest.mark.conformance
def test_the_architectures_that_are_not_checkpointed_are_those_that_cannot_be() -> None:
    classes = {a.name: getattr(transformers, a.name.partition("-")[0]) for a in ARCHITECTURES}
    assert {name for name, made in classes.items() if not made.supports_gradient_checkpointing} == NOT_CHECKPOINTED


# Without any scope, reentrant checkpointing raises in the one and never ends in the other.
NOT_REENTRANT = {"DebertaV2ForMaskedLM", "WavLMForCTC"}


def _checkpointed() -> list[Any]:
    """Each architecture that can be checkpointed, in both ways where it can."""
    params = []
    for way in CHECKPOINTING:
        left_out = NOT_CHECKPOINTED | (NOT_REENTRANT if way.checkpointing else set())
        for plain in _params(a for a in ARCHITECTURES if a.name not in left_out):
            params.append(pytest.param(*plain.values, way, id=f"{plain.id}-{way.name}", marks=plain.marks))
    return params


@pytest.mark.parametrize(("architecture", "way"), _checkpointed())
def test_checkpointed_training_is_bit_identical_under_the_scope(architecture: Architecture, way: Way) -> None:
    _check_undisturbed(_train(architecture, way), _train(architecture, way, scoped=True))


@pytest.mark.parametrize(("architecture", "way"), _checkpointed())
def test_checkpointed_layers_are_recorded_as_without_checkpointing(architecture: Architecture, way: Way) -> None:
    _check_nothing_is_missed(architecture, way, _train(architecture, way, scoped=True).scope)


# Without any scope, its mask value leaves bfloat16.
NOT_BFLOAT16 = {"DebertaForMaskedLM"}


@pytest.mark.parametrize("architecture", _params(a for a in ARCHITECTURES if a.name not in NOT_BFLOAT16))
def test_training_under_bfloat16_autocast_is_bit_identical_and_recorded(architecture: Architecture) -> None:
    seen = _train(architecture, AUTOCAST, scoped=True)
    _check_undisturbed(_train(architecture, AUTOCAST), seen)
    _check_nothing_is_missed(architecture, AUTOCAST, seen.scope)
