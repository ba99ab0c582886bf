"""The audit of initial weights: each rule on a model that has its fault, and on one that has not."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gradscope import init
from gradscope.diagnosis import Finding, Findings


def deep(activation: Callable[[], nn.Module], layers: int = 12, width: int = 128) -> nn.Sequential:
    return nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width), activation())))


def each(model: nn.Module, fill: Callable[[torch.Tensor], object]) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fill(parameter)
            elif "bias" in name:
                nn.init.zeros_(parameter)
    return model


def with_forget_bias(lstm: nn.LSTM) -> nn.LSTM:
    with torch.no_grad():
        for name, bias in lstm.named_parameters():
            if name.startswith("bias_ih"):
                bias[lstm.hidden_size : 2 * lstm.hidden_size] = 1.0
    return lstm


def by_gate(lstm: nn.LSTM, fill: Callable[[torch.Tensor], object]) -> nn.LSTM:
    with torch.no_grad():
        for name, weight in lstm.named_parameters():
            if name.startswith("weight"):
                for gate in weight.chunk(4):
                    fill(gate)
    return lstm


def tied(std: float) -> nn.Module:
    model = nn.Sequential(nn.Embedding(500, 128), nn.Linear(128, 500, bias=False))
    nn.init.normal_(model[0].weight, std=std)
    model[1].weight = model[0].weight
    return model


def trained() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
    model(torch.randn(8, 64))
    return model


def transposed(fan: int) -> nn.Module:
    layers = [m for _ in range(3) for m in (nn.ConvTranspose2d(32, 32, 4, stride=2), nn.ReLU())]
    return each(nn.Sequential(*layers), lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / fan)))


def depthwise(fan: float) -> nn.Module:
    layers = [m for _ in range(3) for m in (nn.Conv2d(64, 64, 3, groups=64), nn.ReLU())]
    return each(nn.Sequential(*layers), lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / fan)))


def he(w: torch.Tensor) -> object:
    return nn.init.kaiming_normal_(w)


CASES: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "default weights before ReLU": (
        "default-init",
        lambda: deep(nn.ReLU),
        lambda: each(deep(nn.ReLU), he),
    ),
    "transposed convolutions by torch's fan_in": (
        "swapped-fans",
        lambda: transposed(32 * 16),
        lambda: transposed(32 * 16 // 4),
    ),
    "depthwise convolutions by torch's fan_out": (
        "swapped-fans",
        lambda: depthwise(64 * 9),
        lambda: depthwise(9),
    ),
    "packed attention": (
        "packed-attention",
        lambda: nn.MultiheadAttention(128, 4),
        lambda: _initialized(nn.MultiheadAttention(128, 4)),
    ),
    "cloned layers": (
        "identical-layers",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 3),
        lambda: nn.Sequential(*(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True) for _ in range(3))),
    ),
    "many inputs of an LSTM": (
        "recurrent-default",
        lambda: nn.LSTM(1024, 128),
        lambda: nn.LSTM(128, 128),
    ),
    "gates as one Glorot matrix": (
        "packed-gates",
        lambda: each(nn.LSTM(128, 128), nn.init.xavier_uniform_),
        lambda: by_gate(nn.LSTM(128, 128), nn.init.xavier_uniform_),
    ),
    "gates as one orthogonal matrix": (
        "packed-gates",
        lambda: each(nn.LSTM(128, 128), nn.init.orthogonal_),
        lambda: by_gate(nn.LSTM(128, 128), nn.init.orthogonal_),
    ),
    "forget gates half open": (
        "forget-bias",
        lambda: nn.LSTM(64, 64, 2),
        lambda: with_forget_bias(nn.LSTM(64, 64, 2)),
    ),
    "SELU with 3/4": (
        "magic-gain",
        lambda: each(deep(nn.SELU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="selu")),
        lambda: each(deep(nn.SELU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")),
    ),
    "tanh with 5/3": (
        "magic-gain",
        lambda: each(deep(nn.Tanh), lambda w: nn.init.kaiming_normal_(w, nonlinearity="tanh")),
        lambda: each(deep(nn.Tanh), nn.init.xavier_normal_),
    ),
    "Glorot before ReLU": (
        "gain-mismatch",
        lambda: each(deep(nn.ReLU), nn.init.xavier_normal_),
        lambda: each(deep(nn.ReLU), he),
    ),
    "orthogonal expansion": (
        "expanding-orthogonal",
        lambda: each(nn.Sequential(nn.Linear(64, 256)), nn.init.orthogonal_),
        lambda: each(nn.Sequential(nn.Linear(256, 64)), nn.init.orthogonal_),
    ),
    "cut normal distribution": (
        "truncated-normal",
        lambda: each(deep(nn.ReLU, 3), _cut),
        lambda: each(deep(nn.ReLU, 3), he),
    ),
    "bilinear": (
        "bilinear-bound",
        lambda: nn.Bilinear(64, 256, 32),
        lambda: _initialized(nn.Bilinear(64, 256, 32)),
    ),
    "tied embedding": (
        "embedding-scale",
        lambda: tied(1.0),
        lambda: tied(0.02),
    ),
    "constant weights": (
        "symmetric-units",
        lambda: each(deep(nn.ReLU, 3), lambda w: nn.init.constant_(w, 0.1)),
        lambda: each(deep(nn.ReLU, 3), he),
    ),
    "a trained model": (
        "not-at-initialization",
        trained,
        lambda: nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()),
    ),
}


def _initialized(model: nn.Module) -> nn.Module:
    init.initialize(model)
    return model


def _cut(w: torch.Tensor) -> object:
    std = math.sqrt(2.0 / w.shape[1])
    return nn.init.trunc_normal_(w, std=std, a=-2.0 * std, b=2.0 * std)


@pytest.mark.parametrize("case", list(CASES))
def test_a_rule_finds_its_fault_and_only_where_it_is(case: str) -> None:
    rule, sick, sound = CASES[case]
    torch.manual_seed(0)
    found = init.audit(sick()).of(rule)
    assert len(found) >= 1, case
    assert all(one.explanation.endswith((".", "?")) for one in found)
    assert len(init.audit(sound()).of(rule)) == 0, str(init.audit(sound()))


def test_every_rule_has_a_case() -> None:
    from gradscope.init._audit import RULES

    init.audit(nn.Linear(2, 2))
    assert {rule for rule, _, _ in CASES.values()} == set(RULES)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SELU, nn.ELU, nn.Sigmoid])
def test_what_initialize_has_set_is_nothing_to_complain_of(activation: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert len(init.audit(_initialized(deep(activation)))) == 0


def test_the_default_s_loss_is_told_in_decades() -> None:
    """30 layers of ReLU, each passing on 1/6 of the mean square: 30·log10(√6) = 11.7 decades of rms."""
    torch.manual_seed(0)
    (found,) = init.audit(deep(nn.ReLU, 30))
    assert (found.rule, found.severity) == ("default-init", "error")
    assert "lose 11.7 decades" in found.explanation
    assert found.value == pytest.approx(1 / 3, rel=0.02)
    assert found.expected == pytest.approx(2.0)
    assert len(found.sites) == 30


def test_a_default_that_is_the_same_number_as_another_fault_is_no_fault() -> None:
    """LSTM(128, 64): torch's 1/(3·64) is Glorot's 2/(128 + 256) too."""
    torch.manual_seed(0)
    assert [one.rule for one in init.audit(nn.LSTM(128, 64))] == ["forget-bias"]


def test_functions_are_seen_with_a_batch() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    torch.manual_seed(0)
    model = Functional()
    assert len(init.audit(model)) == 0
    assert [one.rule for one in init.audit(model, inputs=torch.randn(4, 64))] == ["default-init"]


def test_an_audit_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    init.audit(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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
