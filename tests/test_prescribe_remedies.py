"""Each remedy cures a model that is sick of what it is for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradscope import prescribe
from gradscope.diagnosis import Finding, Trials, rule_names
from gradscope.experiments import apply
from gradscope.experiments._patient import Patient, train
from gradscope.experiments._remedies import REMEDIES, WITH_A_RATE, Case
from tests.faults import PROGRAMS
from tests.faults._data import mixture, patterns
from tests.faults._parts import initialize, optimizer_of
from tests.faults._program import Run


def program(name: str) -> Callable[[], Run]:
    return lambda: PROGRAMS[name].make(0)


def seeded(make: Callable[[], Run]) -> Callable[[], Run]:
    def run() -> Run:
        torch.manual_seed(0)
        return make()

    return run


def classifier(model: nn.Module, lr: float = 1e-3, kind: str = "Adam") -> Run:
    return Run(model, optimizer_of(model, kind, lr), mixture(0), F.cross_entropy)


def stack(depth: int, act: Callable[[], nn.Module], init: Any) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(64, 32), act()]
    for _ in range(depth - 2):
        layers += [nn.Linear(32, 32), act()]
    return initialize(nn.Sequential(*layers, nn.Linear(32, 10)), init)  # type: ignore[return-value]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x)))


class Sine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.omega = 30.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


class Loop(nn.Module):
    """A recurrent network written by hand, that keeps growing."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.cell, self.head = nn.Linear(4, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 4)
        nn.init.normal_(self.cell.weight, std=2.5 / 32**0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = F.relu(self.cell(h) + self.inward(x[:, t]))
        return self.head(h)


def residual() -> Run:
    blocks = initialize(nn.Sequential(*(Block() for _ in range(24))), "he")
    return classifier(nn.Sequential(nn.Linear(64, 32), blocks, nn.Linear(32, 10)))


def first_layer_sees(batch: Callable[[int], Any], length: int = 12) -> Callable[[int], Any]:
    def sequences(step: int) -> Any:
        x, y = batch(step)
        x = x[:, : 4 * length].reshape(len(x), length, 4)
        return x, y % 4

    return sequences


def loop() -> Run:
    model = Loop()
    return Run(model, optimizer_of(model, "Adam", 1e-3), first_layer_sees(mixture(0)), F.cross_entropy)


class Cells(nn.Module):
    """An LSTM written as a loop, whose forget gates begin shut."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.cell.bias_ih[32:64] = -6.0

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 32)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


def forgetful() -> Run:
    model = Cells()
    return Run(model, optimizer_of(model, "Adam", 1e-2), patterns(0, length=12), F.cross_entropy)


def waves() -> Run:
    layers: list[nn.Module] = [nn.Linear(1, 32), Sine()]
    for _ in range(6):
        layers += [nn.Linear(32, 32), Sine()]
    model = nn.Sequential(*layers, nn.Linear(32, 1))
    x = torch.linspace(-1, 1, 128)[:, None]
    return Run(model, optimizer_of(model, "Adam", 1e-3), lambda step: (x, torch.sin(12 * x)), F.mse_loss)


def frozen() -> Run:
    model = stack(3, nn.ReLU, "default")
    for layer in (model[0], model[2], model[4]):
        layer.weight.requires_grad_(False)
    return classifier(model, 3e-3)


def forgotten() -> Run:
    model = stack(3, nn.ReLU, "he")
    return Run(model, optimizer_of(list(model[2].parameters()), "Adam", 3e-3), mixture(0), F.cross_entropy)


def too_sure() -> Run:
    model = stack(3, nn.ReLU, "he")
    nn.init.normal_(model[-1].weight, std=3.0)
    return classifier(model, 1e-3)


def spiky() -> Run:
    """Growing without a limit at a rate that would do for gradients of the first step's size."""
    return classifier(stack(4, nn.ReLU, "default"), 3.0, "SGD")


CURES: dict[str, tuple[Callable[[], Run], tuple[str, ...]]] = {
    "layers with torch's default weights": (
        seeded(lambda: classifier(stack(14, nn.ReLU, "default"), 2e-3)),
        ("initialize by activation", "propagate", "LSUV", "orthogonal", "Glorot", "LeCun"),
    ),
    "tanh with tiny weights": (seeded(lambda: classifier(stack(14, nn.Tanh, 0.01), 2e-3)), ("He",)),
    "hidden sigmoids": (
        seeded(lambda: classifier(stack(8, nn.Sigmoid, "glorot"), 2e-3)),
        ("tanh for sigmoid", "ReLU for sigmoid"),
    ),
    "saturated tanh": (seeded(lambda: classifier(stack(6, nn.Tanh, 1.0))), ("ReLU for tanh",)),
    "an exponential as activation": (program("mlp-exp"), ("tanh for an activation that overflows",)),
    "adapters of nothing": (program("lora-both-0"), ("constant weights drawn anew",)),
    "negative biases": (program("mlp-bias-minus-3"), ("biases of 0", "leaky ReLU for ReLU", "GELU for ReLU")),
    "large embeddings": (program("lstm-embedding-std-100"), ("embeddings of size 1",)),
    "residual branches without a norm": (seeded(residual), ("residual branches × 1/√L", "residual branches from 0")),
    "a recurrence that grows": (seeded(loop), ("orthogonal recurrence", "identity recurrence")),
    "sines with torch's weights": (seeded(waves), ("sine network's weights",)),
    "a sigmoid before cross-entropy": (program("out-sigmoid-logits"), ("no activation at the output",)),
    "pixels from 0 to 255": (program("in-pixels-0-to-255"), ("normalized inputs", "inputs normalized by feature")),
    "targets of size 10,000": (program("reg-target-1e4"), ("normalized targets",)),
    "pixels rebuilt by a sigmoid": (program("ae-sigmoid-0-to-255"), ("inputs and targets from 0 to 1",)),
    "a learning rate of 10": (program("mlp-sgd-lr-10"), ("learning rate",)),
    "a rate too large by little": (seeded(spiky), ("clip to the usual norm",)),
    "a rate for the head alone": (program("mlp-head-lr-only"), ("one learning rate for all",)),
    "weight decay of 3": (program("mlp-decay-1"), ("no weight decay",)),
    "clipping to nothing": (program("mlp-clip-tiny"), ("clip seldom", "no clipping", "no clipping, another rate")),
    "float16 without a scaler": (
        program("fp16-autocast-no-scaler"),
        ("bfloat16 for float16", "float32", "loss scale"),
    ),
    "a loss of 1e-12": (program("mlp-adam-loss-1e-12"), ("larger loss",)),
    "frozen at random": (seeded(frozen), ("unfreeze",)),
    "forgotten by the optimizer": (seeded(forgotten), ("give to the optimizer",)),
    "logits that are too sure": (seeded(too_sure), ("smaller last layer",)),
}
"""By what a model is sick of: the model, and the remedies that cure it."""


@functools.cache
def trials(sick: str) -> Trials:
    run = CURES[sick][0]()
    inputs, target = run.batch(0)
    return prescribe(
        run.model,
        inputs,
        target,
        run.loss_fn,
        run.optimizer,
        steps=40,
        batches=run.batch,
        remedies=CURES[sick][1],
        max_norm=run.clip,
        scaler=run.scaler,
        autocast=run.autocast,
    )


PAIRS = [(sick, remedy) for sick, (_, remedies) in CURES.items() for remedy in remedies]


@pytest.mark.parametrize(("sick", "remedy"), PAIRS)
def test_it_cures_what_it_is_for(sick: str, remedy: str) -> None:
    found = {one.remedy.partition(":")[0]: one for one in trials(sick)}
    assert remedy in found, f"{trials(sick)}"
    assert found[remedy].helped, f"{trials(sick)}"


def test_open_forget_gates_let_an_lstm_remember_what_its_loss_after_120_steps_shows() -> None:
    torch.manual_seed(0)
    run = forgetful()
    patient = Patient(run.model, run.optimizer, run.loss_fn)
    batches = [run.batch(step) for step in range(120)]
    finding = Finding("vanishing-gradient", "error", "It forgets.")
    case = Case(patient, finding, train(patient.copied(), batches, 0, record=True), batches, 0)
    change = REMEDIES["open forget gates"].function(case)
    assert change is not None
    assert case.tried(change.do).losses[-1] < 0.5 * case.course.losses[-1]


def test_every_remedy_has_a_model_that_it_cures() -> None:
    assert {remedy for _, remedy in PAIRS} | {"open forget gates", WITH_A_RATE} == set(REMEDIES)


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_remedy_says_what_it_does_and_names_rules_that_there_are(remedy: str) -> None:
    assert REMEDIES[remedy].about.endswith((".", ":", ","))
    assert set(REMEDIES[remedy].rules) <= set(rule_names())


def test_the_best_remedy_is_tried_once_more_with_the_rate_that_it_asks_for() -> None:
    torch.manual_seed(0)
    sick = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(64, 64), nn.Sigmoid())), nn.Linear(64, 10))
    inputs, labels = torch.randn(128, 64), torch.arange(128) % 10
    optimizer = torch.optim.Adam(sick.parameters())
    trials = prescribe(sick, inputs, labels, nn.functional.cross_entropy, optimizer, most=4)
    best = trials.best
    assert best is not None
    assert best.remedy.startswith("tanh for sigmoid, learning rate ")
    alone = next(one for one in trials if one.remedy == "tanh for sigmoid")
    assert alone.after is not None
    assert best.after is not None
    assert best.after.last_loss < alone.after.last_loss
    assert best.code[: len(alone.code)] == alone.code
    apply(best, sick, optimizer)
    assert optimizer.param_groups[0]["lr"] == float(best.remedy.rpartition(" ")[2])
    assert isinstance(sick[1], nn.Tanh)
    only = prescribe(sick, inputs, labels, nn.functional.cross_entropy, optimizer, remedies=["tanh for sigmoid"])
    assert not any("learning rate" in one.remedy for one in only)
