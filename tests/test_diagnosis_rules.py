"""Each rule speaks of a sick run, and neither of a sound one nor of one that is nearly sick.

A sick recording is just beyond the limit that the rule's text derives, the nearly sick one just within it: the numbers
are set in recordings of a plain network, or come from real small models where the rule reads what only these have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from gradscope import probe
from gradscope.diagnosis import rule_names
from gradscope.recording import Recording
from tests.diagnosing import HE, WIDTH, Place, faults, found, recorded, shrunk, sloped, trained, two_blobs

Make = Callable[[], Recording]


@dataclass(frozen=True)
class Case:
    """Recordings of one rule; `alone`: that the sick one has no other finding of its own."""

    rule: str
    sick: Make
    sound: Make
    near: Make
    alone: bool = True

    def __str__(self) -> str:
        return self.rule


def streamed(decades: float, depth: int = 6) -> dict[Place, dict[str, Any]]:
    """Won at the pre-activations: from the first to the last hidden one."""
    last = 2 * depth - 4
    return {("activation", str(i)): {"std": 10 ** (decades * min(i, last) / last)} for i in range(2 * depth - 1)}


def everywhere(signal: str, param: str, std: float, depth: int = 6) -> dict[Place, dict[str, Any]]:
    return {(signal, f"{i}.{param}"): {"std": std} for i in range(0, 2 * depth - 1, 2)}


def relus(hidden: int) -> Recording:
    """A probe of torch's default weights before so many ReLUs: by theory each loses log10(6)/2 = 0.39 decades."""
    torch.manual_seed(0)
    layers = [m for _ in range(hidden) for m in (nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU())]
    return probe(nn.Sequential(*layers, nn.Linear(WIDTH, 8)), torch.randn(128, WIDTH))


def ending(last: nn.Module) -> Recording:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4), last)
    return trained(model, two_blobs(), nn.functional.cross_entropy)


def flat(step: int) -> dict[str, float]:
    return {"loss": 1.0}


def falling(step: int) -> dict[str, float]:
    return {"loss": 1.0 / (step + 1)}


def norms(at_15: float, noise: float = 0.0) -> Callable[[int], dict[str, float]]:
    return lambda step: {"grad_norm": at_15 if step == 15 else 10 ** (noise * (-1) ** step)}


def clipped(to: float, every: int = 1) -> Callable[[int], dict[str, float]]:
    return lambda step: {"grad_norm": 1.0, "clip_coefficient": to if step % 20 >= every - 1 else 1.0}


def scaled(scale: float) -> Callable[[int], dict[str, float]]:
    return lambda step: {"loss_scale": scale}


def first_loss(value: float) -> Recording:
    """Four classes: 2 ln 4 + 1 = 3.77 is the limit of a first loss, where the logits are larger than 1."""
    graph = {"loss_graph": [{"node": "NllLossBackward0", "classes": 4}]}
    return recorded({("activation", "10"): {"std": 1.5}}, notes=lambda s: {"loss": value / (s + 1)}, facts=graph)


def collapsing(spread: float, last: float | None = None) -> Recording:
    """From the fourth layer on the samples differ by so much; the inputs do by 0.8, and the limit is 0.8e-4."""
    places = {("activation", str(i)): {"same": spread} for i in range(6, 11)}
    return recorded(places | ({} if last is None else {("activation", "10"): {"same": last}}))


def equal(alike: float, spread: float) -> Recording:
    weights = {("weight", "4.weight"): {"mean": 0.1, "std": spread}}
    return recorded({("activation", "4"): {"alike": alike}} | weights)


def bounded(saturated: float) -> Recording:
    return recorded({("activation", "3"): {"saturated": saturated}}, kind="Tanh")


def overflowing(largest: float) -> Recording:
    """Infinities from step 5 on in float16, whose largest number is 65,504: a quarter of that is 16,376."""
    high = {"infs": lambda s: 3 * (s >= 5), "max": lambda s: largest if s >= 5 else 3.0}
    return recorded({("activation", "4"): high}, dtype="float16")


def silent(zero_at_7: float) -> Recording:
    none = {"std": 0.0, "zero": lambda s: zero_at_7 if s == 7 else 1.0}
    return recorded({("weight_grad", "0.weight"): none, ("weight_grad", "0.bias"): none})


def stepping(relative: float, **more: Any) -> Recording:
    """Relative updates of that size, of gradients so small that they promise next to nothing."""
    small = everywhere("weight_grad", "weight", 1e-5)
    return recorded(everywhere("update", "weight", relative * HE) | small, **more)


# The limit of a sixth of update-too-large is one over the six layers; that of dead-units is 0.5 + 5·√(0.25/64) =
# 0.8125 = 52/64 of the units; that of exploding-gradient 2 + 0.05·6 decades.
CASES = [
    Case(
        "non-finite",
        lambda: recorded({("weight_grad", "4.weight"): {"nans": lambda s: int(s >= 7)}}),
        recorded,
        lambda: recorded({("weight_grad", "4.weight"): {"nans": lambda s: int(s == 7)}}, skipped=[7]),
    ),
    Case("dtype-overflow", lambda: overflowing(17_000), lambda: recorded(dtype="float16"), lambda: overflowing(16_000)),
    Case("no-gradient", lambda: silent(1.0), recorded, lambda: silent(0.999), alone=False),
    Case(
        "vanishing-gradient",
        lambda: recorded(sloped(2.05, "activation_grad")),
        recorded,
        lambda: recorded(sloped(1.95, "activation_grad")),
    ),
    Case(
        "exploding-gradient",
        lambda: recorded(sloped(2.35, "activation_grad", upwards=True)),
        recorded,
        lambda: recorded(sloped(2.25, "activation_grad", upwards=True)),
    ),
    Case(
        "vanishing-activation",
        lambda: recorded(sloped(-3.05, "activation")),
        recorded,
        lambda: recorded(sloped(-2.95, "activation")),
    ),
    Case("exploding-activation", lambda: recorded(streamed(3.05)), recorded, lambda: recorded(streamed(2.95))),
    Case("default-init", lambda: relus(9), recorded, lambda: relus(2), alone=False),
    Case("init-mismatch", lambda: recorded(shrunk(1.6)), recorded, lambda: recorded(shrunk(1.4))),
    Case(
        "input-scale",
        lambda: recorded({("activation", "<input>"): {"std": 10.5}}),
        recorded,
        lambda: recorded({("activation", "<input>"): {"std": 9.5}}),
    ),
    Case(
        "output-pairing", lambda: ending(nn.Softmax(1)), lambda: ending(nn.Identity()), lambda: ending(nn.LogSoftmax(1))
    ),
    Case("gradient-spike", lambda: recorded(notes=norms(10.5)), recorded, lambda: recorded(notes=norms(9.5))),
    Case("clipping-always", lambda: recorded(notes=clipped(0.09)), recorded, lambda: recorded(notes=clipped(0.11))),
    Case(
        "dtype-underflow",
        lambda: recorded({("activation_grad", "0"): {"subnormal": 0.51}}, dtype="float16"),
        recorded,
        lambda: recorded({("activation_grad", "0"): {"subnormal": 0.49}}, dtype="float16"),
    ),
    Case(
        "loss-scale",
        lambda: recorded(notes=scaled(1024.0), steps=30, skipped=[11, 14, 17, 20, 23]),
        lambda: recorded(notes=scaled(1024.0), steps=30, skipped=[0, 1, 2, 3, 4]),
        lambda: recorded(notes=scaled(1024.0), steps=30, skipped=[11, 14, 17, 20]),
    ),
    Case("saturated-units", lambda: bounded(0.51), lambda: recorded(kind="Tanh"), lambda: bounded(0.49)),
    Case(
        "dead-units",
        lambda: recorded({("activation", "3"): {"dead": 52 / WIDTH}}),
        recorded,
        lambda: recorded({("activation", "3"): {"dead": 51 / WIDTH}}),
    ),
    Case("symmetric-units", lambda: equal(9e-7, 0.0), recorded, lambda: equal(1.1e-6, 0.0)),
    Case("collapsed-batch", lambda: collapsing(7.5e-5), recorded, lambda: collapsing(8.5e-5)),
    Case(
        "update-too-large",
        lambda: stepping(0.17, notes=flat),
        lambda: stepping(1e-3, notes=flat),
        lambda: stepping(0.16, notes=flat),
    ),
    Case("update-too-small", lambda: stepping(0.9e-6), recorded, lambda: stepping(1.1e-6)),
    Case(
        "uneven-learning",
        lambda: recorded({("update", "0.weight"): {"std": HE * 10**-6.05}}),
        recorded,
        lambda: recorded({("update", "0.weight"): {"std": HE * 10**-5.95}}),
    ),
]


def test_every_rule_has_a_sick_a_sound_and_a_nearly_sick_run() -> None:
    assert [case.rule for case in CASES] == sorted(rule_names(), key=[case.rule for case in CASES].index)
    assert len(CASES) == len(rule_names())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_speaks_beyond_its_limit(case: Case) -> None:
    (one,) = found(case.sick(), case.rule)
    assert one.rule == case.rule
    assert one.explanation.endswith(".")
    assert one.remedy
    assert one.value is not None
    assert one.unit


@pytest.mark.parametrize("case", [c for c in CASES if c.alone], ids=str)
def test_all_rules_together_say_the_same_one_thing(case: Case) -> None:
    assert [one.rule for one in faults(case.sick())] == [case.rule]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_is_silent_within_its_limit(case: Case) -> None:
    assert list(found(case.near(), case.rule)) == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_found_in_a_sound_run(case: Case) -> None:
    assert faults(case.sound()) == []
