"""The audit of initial weights: each rule on sick, sound and nearly sick models, and what mends the sick ones."""

from __future__ import annotations

import copy
import doctest
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradscope
from gradscope import init
from gradscope.diagnosis import Finding, Findings
from gradscope.init._audited import OF_SCALE, RULES
from gradscope.init._rules import _passage, _words
from tests.cases import CASES as BESTIARY
from tests.cases import Case as Bestiary
from tests.test_init_model_schemes import Residual, seeded, transformer
from tests.test_prediction import MODELS, hugging_face

Make = Callable[[], nn.Module]
Fill = Callable[[Tensor], object]


# --- models -----------------------------------------------------------------------------------------------


def deep(activation: Make, layers: int = 12, width: int = 128) -> nn.Sequential:
    return nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width), activation())))


def normed(activation: Make, layers: int = 12, width: int = 128) -> nn.Sequential:
    one = (lambda: nn.Linear(width, width), lambda: nn.LayerNorm(width), activation)
    return nn.Sequential(*(make() for _ in range(layers) for make in one))


def each(model: nn.Module, fill: Fill) -> nn.Module:
    """Weights filled, biases zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fill(parameter)
            elif "bias" in name:
                nn.init.zeros_(parameter)
    return model


def biases(model: nn.Module, fill: Fill) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "bias" in name:
            fill(parameter)
    return model


def first_weight(model: nn.Module, fill: Fill) -> nn.Module:
    with torch.no_grad():
        fill(next(model.parameters()))
    return model


def initialized(model: nn.Module) -> nn.Module:
    init.initialize(model)
    return model


def he(w: Tensor) -> object:
    return nn.init.kaiming_normal_(w)


def cut(w: Tensor) -> object:
    std = math.sqrt(2.0 / w.shape[1])
    return nn.init.trunc_normal_(w, std=std, a=-2.0 * std, b=2.0 * std)


def thinned(w: Tensor) -> object:
    return w.mul_((torch.rand_like(w) < 0.1).to(w.dtype))


def with_forget_bias(lstm: nn.LSTM, half: str = "bias_ih") -> nn.LSTM:
    with torch.no_grad():
        for name, bias in lstm.named_parameters():
            if name.startswith(half):
                bias[lstm.hidden_size : 2 * lstm.hidden_size] = 1.0
    return lstm


def by_gate(lstm: nn.LSTM, fill: Fill, which: str = "weight") -> nn.LSTM:
    with torch.no_grad():
        for name, weight in lstm.named_parameters():
            if name.startswith(which):
                for gate in weight.chunk(4):
                    fill(gate)
    return lstm


def wide_orthogonal_lstm() -> nn.LSTM:
    """More inputs than rows of all gates: orthogonal rows are orthogonal in each gate too."""
    lstm = nn.LSTM(1024, 128)
    nn.init.orthogonal_(lstm.weight_ih_l0)
    return by_gate(lstm, nn.init.orthogonal_, "weight_hh")


def tied(std: float) -> nn.Module:
    model = nn.Sequential(nn.Embedding(500, 128), nn.Linear(128, 500, bias=False))
    nn.init.normal_(model[0].weight, std=std)
    model[1].weight = model[0].weight
    return model


def tied_linear() -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    model[2].weight = model[0].weight
    return model


def transposed(fan: int) -> nn.Module:
    layers = [m for _ in range(3) for m in (nn.ConvTranspose2d(32, 32, 4, stride=2), nn.ReLU())]
    return each(nn.Sequential(*layers), lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / fan)))


def depthwise(fan: float) -> nn.Module:
    layers = [m for _ in range(3) for m in (nn.Conv2d(64, 64, 3, groups=64), nn.ReLU())]
    return each(nn.Sequential(*layers), lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / fan)))


def unpacked_attention() -> nn.Module:
    attention = nn.MultiheadAttention(128, 4, kdim=64, vdim=64)
    nn.init.xavier_uniform_(attention.out_proj.weight)
    return attention


def taught() -> nn.Module:
    student = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    return nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)})


def widths(scheme: str) -> nn.Module:
    sizes = [128, 512, 128, 512, 128, 512, 128]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return each(nn.Sequential(*layers), lambda w: nn.init.kaiming_normal_(w, mode=scheme))


def zero_weight(model: nn.Linear) -> nn.Linear:
    nn.init.zeros_(model.weight)
    return model


def one_batch() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
    model(torch.randn(8, 64))
    return model


def dcgan() -> nn.Module:
    """Its norms begin at N(1, 0.02)."""
    layers = [m for _ in range(3) for m in (nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU())]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return model


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16.0, dtype=torch.float32), torch.tensor(data.target)


def trained(make: Make, optimizer: Callable[..., torch.optim.Optimizer], steps: int = 300) -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = make(), digits()
    steps_of = optimizer(model.parameters())
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        steps_of.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        steps_of.step()
    return model


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def classifier(activation: Make, fill: Fill | None = None) -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 128), activation(), nn.Linear(128, 128), activation(), nn.Linear(128, 10))
    return model if fill is None else each(model, fill)


def batch_normed() -> nn.Module:
    layers = [m for a in (64, 96) for m in (nn.Linear(a, 96), nn.BatchNorm1d(96), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(96, 10))


# --- each rule --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model with a fault, and models without, some of them nearly with it."""

    rule: str
    sick: Make
    sound: tuple[Make, ...]


CASES: dict[str, Case] = {
    "default weights before ReLU": Case(
        "default-init",
        lambda: deep(nn.ReLU),
        (
            lambda: each(deep(nn.ReLU), he),
            lambda: nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 10)),  # nothing follows
            lambda: each(deep(nn.ReLU), lambda w: nn.init.normal_(w, std=(3 * 128) ** -0.5)),  # the same variance
        ),
    ),
    "default weights of a transposed convolution": Case(
        "default-init",
        lambda: nn.Sequential(nn.ConvTranspose2d(32, 32, 3), nn.ReLU()),
        (lambda: initialized(nn.Sequential(nn.ConvTranspose2d(32, 32, 3), nn.ReLU())),),
    ),
    "transposed convolutions by torch's fan_in": Case(
        "swapped-fans",
        lambda: transposed(32 * 16),
        (
            lambda: transposed(32 * 16 // 4),
            lambda: each(nn.Sequential(nn.Conv2d(32, 32, 3, stride=2), nn.ReLU()), he),  # torch's fan_out is as large
        ),
    ),
    "transposed convolutions by default": Case(
        "swapped-fans",
        lambda: nn.Sequential(nn.ConvTranspose2d(16, 32, 4, stride=2), nn.ReLU()),
        (lambda: nn.Sequential(nn.ConvTranspose2d(32, 32, 3), nn.ReLU()),),
    ),
    "depthwise convolutions by torch's fan_out": Case(
        "swapped-fans",
        lambda: depthwise(64 * 9),
        (
            lambda: depthwise(9),
            lambda: each(nn.Conv2d(16, 64, 3), lambda w: nn.init.kaiming_normal_(w, mode="fan_out")),
        ),
    ),
    "packed attention": Case(
        "packed-attention",
        lambda: nn.MultiheadAttention(128, 4),
        (lambda: initialized(nn.MultiheadAttention(128, 4)), unpacked_attention),
    ),
    "cloned layers": Case(
        "identical-layers",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 3),
        (
            lambda: nn.Sequential(*(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True) for _ in range(3))),
            taught,
            lambda: each(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), nn.init.eye_),
        ),
    ),
    "cloned embeddings": Case(
        "identical-layers",
        lambda: nn.ModuleList([one := nn.Embedding(50, 32), copy.deepcopy(one)]),
        (lambda: nn.ModuleList([nn.Embedding(50, 32), nn.Embedding(50, 32)]),),
    ),
    "many inputs of an LSTM": Case(
        "recurrent-default",
        lambda: nn.LSTM(1024, 128),
        (
            lambda: nn.LSTM(128, 128),
            lambda: nn.LSTM(256, 128),
            lambda: initialized(nn.LSTM(640, 128)),  # Glorot's 2/(640 + 128) is torch's 1/(3·128)
        ),
    ),
    "gates as one Glorot matrix": Case(
        "packed-gates",
        lambda: each(nn.LSTM(128, 128), nn.init.xavier_uniform_),
        (lambda: by_gate(nn.LSTM(128, 128), nn.init.xavier_uniform_), lambda: nn.LSTM(128, 64)),
    ),
    "gates as one orthogonal matrix": Case(
        "packed-gates",
        lambda: each(nn.LSTM(128, 128), nn.init.orthogonal_),
        (
            lambda: by_gate(nn.LSTM(128, 128), nn.init.orthogonal_),
            lambda: each(nn.RNN(128, 128), nn.init.orthogonal_),
            wide_orthogonal_lstm,
            lambda: initialized(nn.LSTM(896, 128)),  # Glorot's 2/(896 + 128) is 1/(4·128)
        ),
    ),
    "forget gates half open": Case(
        "forget-bias",
        lambda: nn.LSTM(64, 64, 2),
        (
            lambda: with_forget_bias(nn.LSTM(64, 64, 2)),
            lambda: with_forget_bias(nn.LSTM(64, 64, 2), "bias_hh"),
            lambda: nn.GRU(64, 64),
            lambda: nn.LSTM(64, 64, bias=False),
        ),
    ),
    "SELU with 3/4": Case(
        "magic-gain",
        lambda: each(deep(nn.SELU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="selu")),
        (lambda: each(deep(nn.SELU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),),
    ),
    "tanh with 5/3": Case(
        "magic-gain",
        lambda: each(deep(nn.Tanh), lambda w: nn.init.kaiming_normal_(w, nonlinearity="tanh")),
        (
            lambda: each(deep(nn.Tanh), nn.init.xavier_normal_),
            lambda: each(deep(nn.Tanh), lambda w: nn.init.normal_(w, std=init.gain("tanh") * 128**-0.5)),
        ),
    ),
    "Glorot before ReLU": Case(
        "gain-mismatch",
        lambda: each(deep(nn.ReLU), nn.init.xavier_normal_),
        (
            lambda: each(deep(nn.ReLU), he),
            lambda: widths("fan_in"),
            lambda: widths("fan_out"),
            lambda: each(deep(nn.ReLU, 2), nn.init.xavier_normal_),  # a factor of two in all
            lambda: each(normed(nn.ReLU), lambda w: nn.init.normal_(w, std=0.02)),  # norms put it back
        ),
    ),
    "N(0, 1) before tanh": Case(
        "gain-mismatch",
        lambda: each(deep(nn.Tanh), nn.init.normal_),
        (lambda: each(deep(nn.Tanh), nn.init.xavier_normal_), lambda: initialized(deep(nn.Hardswish, 6))),
    ),
    "He before a deep GELU net": Case(
        "drifting-length",
        lambda: each(deep(nn.GELU, 40), he),
        (
            lambda: each(deep(nn.GELU, 10), he),
            lambda: each(normed(nn.GELU, 40), he),
            lambda: each(deep(nn.SELU, 40), lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),
            lambda: each(deep(nn.ReLU, 40), he),
        ),
    ),
    "He before a deep net of SiLU convolutions": Case(
        "drifting-length",
        lambda: each(nn.Sequential(*(m for _ in range(20) for m in (nn.Conv2d(16, 16, 3), nn.SiLU()))), he),
        (lambda: each(nn.Sequential(*(m for _ in range(4) for m in (nn.Conv2d(16, 16, 3), nn.SiLU()))), he),),
    ),
    "orthogonal expansion": Case(
        "expanding-orthogonal",
        lambda: each(nn.Sequential(nn.Linear(64, 256)), nn.init.orthogonal_),
        (
            lambda: each(nn.Sequential(nn.Linear(256, 64)), nn.init.orthogonal_),
            lambda: each(nn.Sequential(nn.Linear(64, 256)), lambda w: nn.init.orthogonal_(w, gain=2.0)),
            lambda: each(nn.Sequential(nn.Linear(64, 70)), nn.init.orthogonal_),
        ),
    ),
    "orthogonal kernels": Case(
        "orthogonal-kernel",
        lambda: each(nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU()), lambda w: nn.init.orthogonal_(w, 2.0**0.5)),
        (
            lambda: each(nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU()), init.delta_orthogonal_),
            lambda: each(nn.Sequential(nn.Conv2d(64, 32, 1), nn.ReLU()), nn.init.orthogonal_),
            lambda: each(nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU()), he),
        ),
    ),
    "cut normal distribution": Case(
        "truncated-normal",
        lambda: each(deep(nn.ReLU, 3), cut),
        (
            lambda: each(deep(nn.ReLU, 3), he),
            lambda: each(deep(nn.ReLU, 3), init.VarianceScaling(2.0, "fan_in", "truncated_normal")),
            lambda: each(deep(nn.ReLU, 3), lambda w: nn.init.trunc_normal_(w, std=0.02)),  # ±2 cuts nothing
        ),
    ),
    "sparse columns": Case(
        "sparse-columns",
        lambda: each(nn.Sequential(nn.Linear(64, 128), nn.Tanh()), lambda w: nn.init.sparse_(w, 0.9, std=0.3)),
        (
            lambda: each(nn.Sequential(nn.Linear(64, 128), nn.Tanh()), lambda w: nn.init.sparse_(w.T, 0.9, std=0.3)),
            lambda: each(nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.init.eye_),
            lambda: first_weight(nn.Linear(64, 128), thinned),
        ),
    ),
    "bilinear": Case(
        "bilinear-bound",
        lambda: nn.Bilinear(64, 256, 32),
        (lambda: initialized(nn.Bilinear(64, 256, 32)), lambda: nn.Bilinear(64, 4, 32)),
    ),
    "tied embedding": Case("embedding-scale", lambda: tied(1.0), (lambda: tied(0.02),)),
    "embedding of its own": Case(
        "embedding-scale",
        lambda: nn.Embedding(500, 128, padding_idx=0),
        (lambda: nn.Embedding(500, 16), lambda: first_weight(nn.Embedding(500, 128), lambda w: w.mul_(0.5))),
    ),
    "constant weights": Case(
        "symmetric-units",
        lambda: each(deep(nn.ReLU, 3), lambda w: nn.init.constant_(w, 0.1)),
        (
            lambda: each(deep(nn.ReLU, 3), he),
            lambda: each(nn.Sequential(nn.Linear(64, 1)), nn.init.ones_),  # one unit
            lambda: each(nn.Sequential(nn.Linear(64, 10)), nn.init.zeros_),
        ),
    ),
    "biases louder than the signal": Case(
        "loud-bias",
        lambda: biases(each(deep(nn.ReLU), he), lambda b: nn.init.normal_(b, std=10.0)),
        (
            lambda: biases(each(deep(nn.ReLU), he), lambda b: nn.init.uniform_(b, -(128**-0.5), 128**-0.5)),
            lambda: biases(each(deep(nn.ReLU), he), lambda b: nn.init.constant_(b, 0.1)),
            lambda: biases(each(deep(nn.ReLU), he), lambda b: nn.init.constant_(b, 1.0)),  # a third
            lambda: nn.Sequential(nn.Linear(1, 64), nn.Tanh()),  # one input: as loud as it, and needed
        ),
    ),
    "a head of zeros beside default biases": Case(
        "uneven-start",
        lambda: zero_weight(nn.Linear(64, 10)),
        (
            lambda: each(nn.Sequential(nn.Linear(64, 10)), nn.init.zeros_),
            lambda: biases(zero_weight(nn.Linear(64, 10)), lambda b: nn.init.constant_(b, -4.6)),
            lambda: nn.Linear(64, 10),
        ),
    ),
    "one layer three times": Case(
        "shared-layer",
        lambda: nn.Sequential(*[nn.Linear(32, 32)] * 3),
        (
            lambda: nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))),
            lambda: nn.Sequential(nn.Linear(32, 32), act := nn.PReLU(), nn.Linear(32, 32), act),
        ),
    ),
    "one block three times": Case(
        "shared-layer",
        lambda: nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))] * 3),
        (lambda: tied(0.02),),
    ),
    "one weight in two layers": Case(
        "shared-weight", tied_linear, (lambda: tied(0.02), lambda: nn.Sequential(*[nn.Linear(32, 32)] * 3))
    ),
    "a trained model": Case(
        "not-at-initialization",
        lambda: trained(lambda: classifier(nn.ReLU, he), sgd),
        (lambda: classifier(nn.ReLU, he), one_batch, dcgan),
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_rule_finds_its_fault_and_only_where_it_is(case: str) -> None:
    one = CASES[case]
    torch.manual_seed(0)
    found = init.audit(one.sick()).of(one.rule)
    assert len(found) >= 1
    assert all(finding.explanation.endswith((".", "?")) and finding.reference for finding in found)
    for place, make in enumerate(one.sound):
        assert len(init.audit(make()).of(one.rule)) == 0, (place, str(init.audit(make())))


@pytest.mark.parametrize("case", [name for name, one in CASES.items() if one.rule != "not-at-initialization"])
def test_the_line_of_a_finding_mends_it(case: str) -> None:
    """The line runs as it stands, and the same rule finds nothing then."""
    rule = CASES[case].rule
    torch.manual_seed(0)
    model = CASES[case].sick()
    for finding in init.audit(model).of(rule):
        assert "\n" not in finding.remedy
        names = {"model": model, "gradscope": gradscope, "torch": torch, "nn": nn, "copy": copy}
        with torch.no_grad():
            exec(finding.remedy, names)
    assert len(init.audit(model).of(rule)) == 0, str(init.audit(model))


WITH_OTHER_CASES = {"unscaled-branches", "functions-not-seen"}
"""The one takes a batch; the other has its cases in test_init_functions."""


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES.values()} | WITH_OTHER_CASES == set(RULES)


def test_residual_sums_that_grow_are_found_with_a_batch_and_mended_by_the_remedy() -> None:
    """24 branches under He's weights each multiply the mean square by 2 or so; as torch makes them they add little."""
    model, inputs = Residual(24), torch.randn(8, 64, generator=seeded(0))
    assert not init.audit(model, inputs).of("unscaled-branches")
    (default,) = init.audit(model, inputs).of("default-init")
    assert "scaled_branches" in default.remedy, "He's weights alone would make the stream explode"
    init.initialize(model, "he_normal", generator=seeded(0))
    (found,) = init.audit(model, inputs).of("unscaled-branches")
    with torch.no_grad():
        stream = [inputs]
        for first, second in zip(model.first, model.second, strict=True):
            stream.append(stream[-1] + second(torch.relu(first(stream[-1]))))
    decades = math.log10(float(stream[23].square().mean() / stream[12].square().mean()))
    assert found.severity == "error"
    assert found.value == pytest.approx(decades, abs=0.3)
    exec(found.remedy, {"gradscope": gradscope, "model": model, "inputs": inputs})
    assert not init.audit(model, inputs).of("unscaled-branches")


def test_a_stream_behind_norms_grows_by_the_same_each_time_and_is_no_fault() -> None:
    model, inputs = transformer(12), torch.randn(2, 6, 64, generator=seeded(0))
    init.initialize(model, generator=seeded(0), inputs=inputs)
    assert not init.audit(model, inputs).of("unscaled-branches")


def test_the_example_of_how_a_remedy_is_written_holds() -> None:
    assert doctest.testmod(_words).failed == 0


# --- what a finding says ----------------------------------------------------------------------------------


def test_the_default_s_loss_is_told_in_decades() -> None:
    """30 layers of ReLU, each passing on 1/6 of the mean square: 30·log10(√6) = 11.7 decades of rms."""
    torch.manual_seed(0)
    (found,) = init.audit(deep(nn.ReLU, 30))
    assert (found.rule, found.severity) == ("default-init", "error")
    assert "lose 11.7 decades" in found.explanation
    assert found.value == pytest.approx(1 / 3, rel=0.02)
    assert found.expected == pytest.approx(2.0)
    assert len(found.sites) == 30


def test_the_default_is_said_to_drown_in_its_biases_where_the_signal_is_below_one_part_in_the_width() -> None:
    """m falls by 6 a layer and by the biases' 1/(3·width) stays: 1/6³ < 1/128, so from the fourth layer, `6.weight`."""
    torch.manual_seed(0)
    (found,) = init.audit(deep(nn.ReLU, 30))
    assert "From 6.weight on the default biases are larger than what arrives" in found.explanation
    (found,) = init.audit(nn.Sequential(*(m for _ in range(30) for m in (nn.Linear(128, 128, bias=False), nn.ReLU()))))
    assert "biases" not in found.explanation


def test_the_decades_of_a_default_tanh_net_are_those_of_mean_field() -> None:
    """`theory.propagate` with the default's 1/3 against Glorot's 1, both 30 deep: the same walk by another code."""
    from gradscope.theory import propagate, second_moment

    torch.manual_seed(0)
    (found,) = init.audit(deep(nn.Tanh, 30, 512))
    after = []
    for level in (1 / 3, 1.0):
        q = 10 ** (2 * float(propagate("tanh", 30, weight_variance=level / 512, fan_in=512).pre[-1]))
        after.append(0.5 * math.log10(second_moment("tanh", q)))
    said = float(found.explanation.split(" decades")[0].split()[-1])
    assert said == pytest.approx(after[1] - after[0], abs=0.15)  # one decimal; the variance of a weight to 0.3 %


def test_a_passage_is_that_of_theory_for_one_activation_both_ways() -> None:
    from gradscope.theory import propagate, second_moment

    torch.manual_seed(0)
    model = each(deep(nn.GELU, 8, 256), he)
    row = [w for stretch in _audited(model).stretches for w in stretch.row]
    way = _passage.passage(row, _passage.asked)
    expected = propagate("gelu", 8, weight_variance=2 / 256, fan_in=256)
    q = [10 ** (2 * float(pre)) for pre in expected.pre]
    assert way.after == pytest.approx([0.5 * math.log10(second_moment("gelu", one)) for one in q], abs=1e-9)
    # One more slope and one more matrix than between the first pre-activation and the last.
    more = 0.5 * math.log10(2.0 * gradscope.theory.slope_moment("gelu", q[-1]))
    assert way.backward == pytest.approx(float(expected.pre_grad[0] - expected.pre_grad[-1]) + more, abs=1e-9)


def _audited(model: nn.Module) -> Any:
    from gradscope.init._audit import _audited as see

    return see(model, None)


def test_a_default_that_is_the_same_number_as_another_fault_is_no_fault() -> None:
    """LSTM(128, 64): torch's 1/(3·64) is Glorot's 2/(128 + 256) too."""
    torch.manual_seed(0)
    assert [one.rule for one in init.audit(nn.LSTM(128, 64))] == ["forget-bias"]


def test_a_transposed_convolution_s_default_passes_on_an_eighth() -> None:
    """theory.md A2: k = 4, s = 2, 16 to 32 channels; torch's fan_in is 512, the true one 64."""
    torch.manual_seed(0)
    (found,) = init.audit(nn.Sequential(nn.ConvTranspose2d(16, 32, 4, stride=2), nn.ReLU())).of("swapped-fans")
    assert found.value == pytest.approx(1 / 8)
    assert found.direction == "forward"


def test_orthogonal_gates_have_a_quarter_each() -> None:
    torch.manual_seed(0)
    (found,) = init.audit(each(nn.LSTM(128, 128), nn.init.orthogonal_)).of("packed-gates")
    assert found.value == pytest.approx(0.25, rel=0.05)
    assert len(found.sites) == 8


def test_the_depth_at_which_gelu_leaves_the_band_is_that_of_theory() -> None:
    """Under He the activations' rms behind layer l is √E[f²(q_l)]: the first below 0.1 is named."""
    from gradscope.theory import propagate, second_moment

    torch.manual_seed(0)
    (found,) = init.audit(each(deep(nn.GELU, 40, 512), he)).of("drifting-length")
    pre = propagate("gelu", 40, weight_variance=2 / 512, fan_in=512).pre
    after = [0.5 * math.log10(second_moment("gelu", 10 ** (2 * float(one)))) for one in pre]
    first = next(place for place, decades in enumerate(after, 1) if decades <= -1.0)
    said = int(found.explanation.split("behind layer ")[1].split()[0])
    assert abs(said - first) <= 1  # the measured variance is within 0.3 % of the asked one
    assert found.value == pytest.approx(after[-1], abs=0.1)
    assert found.severity == "warning"


def test_the_line_against_drift_keeps_the_signal_that_was_lost_both_ways() -> None:
    """Measured: 40 GELU layers lose over two decades of rms under He, both ways; after the line less than one."""
    torch.manual_seed(0)
    model = each(deep(nn.GELU, 40, 256), he)

    def decades() -> tuple[float, float]:
        x = torch.randn(64, 256, requires_grad=True)
        out = model(x)
        out.backward(torch.randn_like(out))
        assert x.grad is not None
        rms = (float(one.detach().square().mean().sqrt()) for one in (out, x.grad))
        forward, backward = map(math.log10, rms)
        return forward, backward

    before = decades()
    (found,) = init.audit(model)
    exec(found.remedy, {"model": model, "gradscope": gradscope, "nn": nn})
    assert max(before) < -2.0
    assert max(map(abs, decades())) < 1.0


def test_symmetric_units_are_for_ever_only_where_nothing_tells_them_apart() -> None:
    def severity(model: nn.Module) -> str | None:
        return init.audit(model).of("symmetric-units").worst

    torch.manual_seed(0)
    constant = lambda w: nn.init.constant_(w, 0.1)  # noqa: E731
    assert severity(each(deep(nn.ReLU, 3), constant)) == "error"
    found = init.audit(biases(each(deep(nn.ReLU, 3), constant), nn.init.normal_)).of("symmetric-units")[0]
    assert (found.severity, "only their biases tell them apart" in found.explanation) == ("warning", True)
    read_otherwise = each(deep(nn.ReLU, 3), he)
    constant(read_otherwise[0].weight.data)
    assert severity(read_otherwise) == "warning"


def test_a_bias_s_share_is_the_correlation_of_two_inputs_that_have_nothing_in_common() -> None:
    """Weights pass on 2, biases are 18 = 9 times that: 0.9. Measured at 4096 units."""
    torch.manual_seed(0)
    model = biases(each(nn.Sequential(nn.Linear(512, 4096), nn.ReLU()), he), lambda b: nn.init.normal_(b, std=18**0.5))
    (found,) = init.audit(model).of("loud-bias")
    assert found.value == pytest.approx(9.0, rel=0.08)
    one, other = functional.normalize(torch.randn(2, 512), dim=1) * 512**0.5
    other = other - (other @ one) / 512 * one
    with torch.no_grad():
        h = model[0](torch.stack([one, other]))
    measured = float((h[0] * h[1]).mean() / (h[0].square().mean() * h[1].square().mean()).sqrt())
    assert measured == pytest.approx(0.9, abs=0.04)  # 4096 units: a standard error of 0.012
    assert "correlation of 0.90" in found.explanation


def test_an_orthogonal_kernel_s_singular_values_are_those_of_the_convolution_on_a_constant_picture() -> None:
    torch.manual_seed(0)
    model = each(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")), nn.init.orthogonal_)
    (found,) = init.audit(model)
    with torch.no_grad():
        pictures = torch.eye(16)[:, :, None, None].expand(16, 16, 6, 6)
        response = model(pictures)[:, :, 2, 3].T
    assert found.value == pytest.approx(float(torch.linalg.matrix_norm(response, 2)), rel=1e-4)


def test_a_padding_row_stays_zero_when_an_embedding_is_mended() -> None:
    model = nn.Embedding(50, 64, padding_idx=3)
    (found,) = init.audit(model)
    exec(found.remedy, {"model": model})
    weight = model.weight.detach()
    assert float(weight[3].abs().max()) == 0.0
    assert float(weight.std()) == pytest.approx(1 / 8, rel=0.1)


# --- norms and residual sums ------------------------------------------------------------------------------


def test_a_norm_behind_makes_the_default_a_note() -> None:
    torch.manual_seed(0)
    (found,) = init.audit(normed(nn.ReLU, 30))
    assert (found.rule, found.severity) == ("default-init", "note")
    assert "puts the scale back" in found.explanation


def test_a_norm_behind_thirty_layers_comes_too_late() -> None:
    """11.7 decades below 1 a norm's epsilon of 1e-5 is all there is."""
    torch.manual_seed(0)
    (found,) = init.audit(nn.Sequential(deep(nn.ReLU, 30), nn.LayerNorm(128)))
    assert (found.rule, found.severity) == ("default-init", "warning")
    assert "its epsilon counts" in found.explanation


class Functional(nn.Module):
    """Ten layers with functions in between: what they are is an argument."""

    def __init__(self, between: Callable[[Tensor], Tensor], residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(10))
        self.between, self.residual = between, residual

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = torch.relu(self.between(layer(x)))
            x = x + y if self.residual else y
        return x


def test_functions_are_seen_with_a_batch() -> None:
    torch.manual_seed(0)
    model = Functional(lambda x: x)
    assert [one.rule for one in init.audit(model)] == ["functions-not-seen"]
    (found,) = init.audit(model, torch.randn(4, 64))
    assert (found.rule, found.severity) == ("default-init", "error")
    assert found.remedy == "gradscope.init.initialize(model, inputs=inputs)"
    assert init.audit(model, inputs=torch.randn(4, 64))[0] == found


def test_norms_and_residual_sums_that_are_functions_are_seen_with_a_batch() -> None:
    torch.manual_seed(0)
    batch = torch.randn(4, 64)
    for model in (Functional(lambda x: functional.layer_norm(x, (64,))), Functional(lambda x: x, residual=True)):
        (found,) = init.audit(model, batch)
        assert (found.rule, found.severity) == ("default-init", "note")
    # A sum with a row for all, as with a table of positions, is no residual sum.
    (found,) = init.audit(Functional(lambda x: x + torch.ones(64)), batch)
    assert found.severity == "error"


def test_a_branch_that_ends_in_zeros_is_a_residual_branch_in_the_order_of_definition_too() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.last = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
            each(self, nn.init.zeros_)
            nn.init.normal_(self.first.weight, std=0.02)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(self.act(self.first(x)))

    torch.manual_seed(0)
    assert init.audit(nn.Sequential(*(Block() for _ in range(12)))).worst is None


# --- false alarms -----------------------------------------------------------------------------------------

HUGGING_FACE = ("gpt2", "bert", "vit", "llama", "resnet-18")


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_nothing_worse_than_a_note_is_said_of_a_library_s_own_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = hugging_face(name)()
    for found in (init.audit(model), init.audit(model, inputs)):
        assert found.worst in (None, "note"), str(found)


@pytest.mark.parametrize("name", list(MODELS))
def test_nothing_worse_than_a_note_is_said_of_what_initialize_has_set(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    init.initialize(model)
    for found in (init.audit(model), init.audit(model, inputs)):
        assert found.worst in (None, "note"), str(found)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SELU, nn.ELU, nn.Sigmoid, nn.Softplus])
def test_what_initialize_has_set_is_nothing_to_complain_of(activation: Make) -> None:
    torch.manual_seed(0)
    assert len(init.audit(initialized(deep(activation)))) == 0


def test_a_transformer_that_initialize_has_set_gets_no_warning() -> None:
    torch.manual_seed(0)
    model = initialized(nn.Transformer(64, 4, 2, 2, 128, batch_first=True))
    assert init.audit(model).worst in (None, "note"), str(init.audit(model))


@pytest.mark.parametrize("case", [case for case in BESTIARY if case.name != "lazy"], ids=str)
def test_nothing_worse_than_a_note_is_said_of_awkward_small_models_that_initialize_has_set(case: Bestiary) -> None:
    """Some have weights of 30 entries, which tell no variance."""
    torch.manual_seed(0)
    model = initialized(case.model())
    assert init.audit(model).worst in (None, "note"), str(init.audit(model))


# --- trained models ---------------------------------------------------------------------------------------

TRAINED: dict[str, Callable[[], nn.Module]] = {
    "He and ReLU, momentum": lambda: trained(lambda: classifier(nn.ReLU, he), sgd),
    "default and ReLU, Adam": lambda: trained(lambda: classifier(nn.ReLU), adam),
    "Glorot and tanh, momentum": lambda: trained(lambda: classifier(nn.Tanh, nn.init.xavier_uniform_), sgd),
    "orthogonal and tanh, Adam": lambda: trained(lambda: classifier(nn.Tanh, nn.init.orthogonal_), adam),
    "batch norm, momentum": lambda: trained(batch_normed, sgd),
}


@pytest.mark.parametrize("name", list(TRAINED))
def test_a_net_after_three_hundred_steps_on_digits_is_said_to_be_trained_and_not_measured(name: str) -> None:
    found = init.audit(TRAINED[name]())
    assert len(found.of("not-at-initialization")) == 1
    assert not {one.rule for one in found} & OF_SCALE
    assert found[-1].causes


def scheme(name: str) -> Make:
    def make() -> nn.Module:
        model = nn.Sequential(
            nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 96), nn.Tanh(), nn.Linear(96, 192)
        )
        init.initialize(model, name)
        return model

    return make


def sines() -> nn.Module:
    """A table of positions beside two drawn weights: one odd weight makes no claim."""
    model = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    angles = torch.arange(64)[:, None] * torch.logspace(0, -2, 64)
    with torch.no_grad():
        model[0].weight.copy_(angles.sin())
    return model


FRESH: dict[str, Callable[[], nn.Module]] = {
    **{f"scheme {name}": scheme(name) for name in init.scheme_names()},
    **{f"{name}, own weights": (lambda make: lambda: make()[0])(MODELS[name]) for name in MODELS},
    "sparse": lambda: each(classifier(nn.Tanh), lambda w: nn.init.sparse_(w, 0.9)),
    "cut normal": lambda: each(classifier(nn.ReLU), cut),
    "all positive": lambda: each(classifier(nn.ReLU), lambda w: nn.init.uniform_(w, 0.0, 0.1)),
    "orthogonal gates": lambda: by_gate(nn.LSTM(128, 128), nn.init.orthogonal_),
    "packed orthogonal gates": lambda: each(nn.LSTM(128, 128), nn.init.orthogonal_),
    "an identity beside small numbers": lambda: each(
        deep(nn.Tanh, 3), lambda w: nn.init.eye_(w).add_(torch.randn(128, 128) / 16)
    ),
    "rnn": lambda: nn.RNN(128, 128, 2),
    "attention": lambda: nn.MultiheadAttention(128, 4),
    "bilinear": lambda: nn.Sequential(nn.Linear(32, 64), nn.Bilinear(16, 32, 64)),
    "embeddings": lambda: nn.ModuleList(nn.Embedding(300, 64, padding_idx=0) for _ in range(3)),
    "dcgan": dcgan,
    "one batch seen": one_batch,
    "sines": sines,
    "bfloat16": lambda: classifier(nn.ReLU).bfloat16(),
    "weight norm": lambda: nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)) for _ in range(3))),
}


def test_there_are_more_than_thirty_fresh_nets() -> None:
    assert len(FRESH) > 30


@pytest.mark.parametrize("name", list(FRESH))
def test_a_fresh_net_is_not_said_to_be_trained(name: str) -> None:
    torch.manual_seed(0)
    model = FRESH[name]()
    assert len(init.audit(model).of("not-at-initialization")) == 0, str(init.audit(model))


def test_one_trained_weight_beside_many_fresh_ones_makes_no_claim() -> None:
    net = trained(lambda: classifier(nn.ReLU, he), sgd)
    model = each(deep(nn.ReLU, 6), he)
    model[4].weight = net[2].weight
    assert len(init.audit(model).of("not-at-initialization")) == 0


# --- the model, and what it is not ------------------------------------------------------------------------


def test_an_audit_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    before = copy.deepcopy(model.state_dict())
    hooks = [dict(vars(module)["_forward_pre_hooks"]) for module in model.modules()]
    state = torch.get_rng_state()
    init.audit(model)
    init.audit(model, torch.zeros(2, 5, 64))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [dict(vars(module)["_forward_pre_hooks"]) for module in model.modules()] == hooks


def test_what_has_no_entries_or_no_numbers_is_passed_over() -> None:
    with pytest.warns(UserWarning, match="no-op"):
        empty = nn.Linear(0, 4)
    broken = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    nn.init.constant_(broken[0].weight, math.nan)
    assert len(init.audit(nn.Sequential(empty, nn.ReLU()))) == 0
    assert len(init.audit(broken)) == 0


def test_a_wrong_model_is_one_sentence() -> None:
    with pytest.raises(TypeError, match=r"model is of type list; audit takes a torch\.nn\.Module"):
        init.audit([])  # type: ignore[arg-type]
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="weight is on the meta device: audit measures weights that exist"):
        init.audit(model)
    with pytest.raises(ValueError, match="weight has no shape yet"):
        init.audit(nn.LazyLinear(4))


# --- findings ---------------------------------------------------------------------------------------------


def test_findings_are_read_worst_first_as_text_json_and_table() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(deep(nn.ReLU, 30), nn.LSTM(128, 128))
    found = init.audit(model)
    assert [one.severity for one in found] == sorted(
        (one.severity for one in found), key=["error", "warning", "note"].index
    )
    assert found.worst == "error"
    text = str(found)
    assert text.startswith("error: default-init at 0.0.weight, 0.2.weight, 0.4.weight and 27 more")
    assert "→ gradscope.init.initialize(model)" in text
    read = json.loads(found.to_json())
    assert [one["rule"] for one in read] == [one.rule for one in found]
    assert read[0]["sites"][0] == "0.0.weight"
    assert found._repr_html_().count("<tr>") == len(found) + 1
    assert str(Findings(())) == "nothing found"
    assert Findings(()).worst is None
    assert isinstance(found[:1], Findings)
    assert isinstance(found[0], Finding)
