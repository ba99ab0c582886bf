"""`auto` with inputs: textbook weights where these are as good as any, flat ones elsewhere, predicted and measured."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradscope import _user_model, predict, probe
from gradscope.experiments._suggest import strayed as decades
from gradscope.init import InitPlan, audit, initialize, plan
from gradscope.init._flatness import predicted_decades
from gradscope.init._model_schemes._branches import branches
from gradscope.init._plan_moments import moments_of_plan
from gradscope.recording import Recording
from gradscope.theory.prediction._prediction import Flow
from tests.test_init_model_schemes import Residual, plain, seeded, transformer
from tests.test_prediction import generator, vgg

Made = tuple[nn.Module, Any]


def batch() -> Tensor:
    return torch.randn(16, 256, generator=seeded(0))


def worst(recording: Recording, model: nn.Module, inputs: Any) -> float:
    """Decades between the largest and the smallest rms of the layers, of the worse direction."""
    return max(map(abs, decades(recording, branches(model, inputs))))


def measured(model: nn.Module, scheme: str, inputs: Any, seen: Any) -> float:
    tried = copy.deepcopy(model)
    initialize(tried, scheme, generator=seeded(0), inputs=seen)
    return worst(probe(tried, inputs), tried, inputs)


def told(table: InitPlan) -> tuple[float, float] | None:
    """The decades that the table tells: under the recommended variances, and now."""
    found = re.search(r"would stray by (\d+\.\d\d) decades over the layers, now by (\d+\.\d\d)", table.source)
    return None if found is None else (float(found[1]), float(found[2]))


MODELS: dict[str, tuple[Callable[[], Made], float, float]] = {
    "30 × tanh": (lambda: (plain(nn.Tanh, 30), batch()), 0.1, 0.3),
    "20 × GELU": (lambda: (plain(nn.GELU, 20), batch()), 0.1, 0.5),
    "5 × sigmoid": (lambda: (plain(nn.Sigmoid, 5), batch()), 0.9, 0.9),
    "norm-free residual net": (lambda: (Residual(12, 128, 10), torch.randn(16, 128, generator=seeded(0))), 0.1, 0.2),
    "transformer": (lambda: (transformer(6, 128), torch.randn(4, 16, 128, generator=seeded(0))), 0.4, 0.6),
    "transposed generator": (generator, 0.2, 0.3),
    "vgg": (vgg, 0.6, 0.7),
}
"""Model, and the most decades predicted and measured."""


def made(name: str) -> Made:
    torch.manual_seed(0)
    return MODELS[name][0]()


@pytest.mark.filterwarnings("ignore:initialize. .* no activation module")  # without inputs: what it is compared with
@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_recommended_weights_let_the_signal_stray_gets_flatter_ones(name: str) -> None:
    (model, inputs), (_, predicted, most) = made(name), MODELS[name]
    table = plan(model, inputs=inputs)
    found = told(table)
    assert found is not None
    before, now = found
    assert worst(predict(model, inputs, table), model, inputs) == pytest.approx(now, abs=0.006)  # told to 2 digits
    assert now < predicted
    assert now < before - 0.1
    recommended, flat = measured(model, "auto", inputs, None), measured(model, "auto", inputs, inputs)
    assert flat < most
    assert flat < recommended


@pytest.mark.parametrize("name", MODELS)
def test_what_flatter_weights_are_drawn_is_what_propagate_draws(name: str) -> None:
    model, inputs = made(name)
    other = copy.deepcopy(model)
    tables = [
        initialize(one, scheme, generator=seeded(0), inputs=inputs)
        for one, scheme in ((model, "auto"), (other, "propagate"))
    ]
    assert tables[0].rows == tables[1].rows
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_the_audit_has_nothing_to_mend_in_what_auto_has_set(name: str) -> None:
    model, inputs = made(name)
    initialize(model, generator=seeded(0), inputs=inputs)
    assert [found.rule for found in audit(model, inputs) if found.severity != "note"] == []


@pytest.mark.parametrize("depth", [3, 30])
def test_a_plain_relu_net_keeps_the_textbooks_weights_to_the_bit(depth: int) -> None:
    with_inputs, without = plain(nn.ReLU, depth), plain(nn.ReLU, depth)
    table = initialize(with_inputs, generator=seeded(0), inputs=batch())
    blind = initialize(without, generator=seeded(0))
    assert [row.variance_asked for row in table] == [*[2 / 256, 0.0] * (depth - 1), 1 / 256, 0.0]
    assert table.rows == blind.rows
    assert all(map(torch.equal, with_inputs.parameters(), without.parameters()))
    assert table.source == "the first activation that the output met, with the inputs given"


def test_a_gain_below_a_tenth_of_a_decade_is_no_reason_to_leave_the_textbook() -> None:
    """Linear layers from 256 to 200 units and back: by Glorot the rms changes by √(256/228) and back, 0.025 decades."""
    widths = [256, 200, 256, 200, 256]
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    table = plan(model, inputs=batch())
    assert told(table) is None
    assert [row.variance_asked for row in table if row.fans] == [2 / 456] * 4
    assert worst(predict(model, batch(), table), model, batch()) == pytest.approx(0.025, abs=0.005)


def test_without_inputs_and_in_a_dict_of_patterns_auto_looks_at_the_activation_alone() -> None:
    model = plain(nn.Tanh, 30)
    for table in (plan(model), plan(model, {"*": "auto"}, inputs=batch())):
        assert {row.variance_asked for row in table if row.fans} == {1 / 256}
        assert told(table) is None


class Selects(nn.Module):
    """How much of a batch goes on depends on its values."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = plain(nn.Tanh, 12, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return x[x[:, 0] > 0]


class ReadOnce(nn.Module):
    """It can run a single time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = plain(nn.Tanh, 12, 64)
        self.scales: Iterator[float] = iter([1.0])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x * next(self.scales))
        return out


CANNOT = "theory cannot predict this model "


@pytest.mark.parametrize(
    ("make", "inputs", "why"),
    [
        (Selects, torch.ones(8, 64), CANNOT + r"\(aten\.\w+: no rule\)$"),
        (ReadOnce, torch.ones(8, 64), CANNOT + r"\(StopIteration: \)$"),
        (lambda: plain(nn.Tanh, 12, 64), torch.zeros(8, 64), "inputs of zeros show theory no signal$"),
        (
            lambda: plain(nn.Tanh, 12, 64),
            torch.full((8, 64), torch.nan),
            CANNOT + r"\(its moments are not numbers\)$",
        ),
    ],
)
def test_what_theory_cannot_predict_gets_the_recommended_weights_and_the_table_says_why(
    make: Callable[[], nn.Module], inputs: Tensor, why: str
) -> None:
    model = make()
    table = initialize(model, generator=seeded(0), inputs=inputs)
    assert {row.variance_asked for row in table if row.fans} == {1 / 64}
    assert re.search(r"\. Variances as recommended: " + why, table.source)


def test_the_table_is_no_wider_for_what_it_says_below() -> None:
    table = str(plan(plain(nn.Tanh, 30), inputs=batch()))
    assert max(map(len, table.splitlines())) <= 110
    assert "Scaled by propagate: signal or gradient would stray by 0.86 decades" in " ".join(table.split())


def test_a_model_on_the_meta_device_is_judged_as_one_that_has_values() -> None:
    with torch.device("meta"):
        model, inputs = plain(nn.Tanh, 30), torch.empty(16, 256)
    found, real = told(plan(model, inputs=inputs)), told(plan(plain(nn.Tanh, 30), inputs=batch()))
    assert found is not None
    assert real is not None
    assert found == pytest.approx(real, abs=0.02)


def test_a_compiled_model_is_judged_as_it_is() -> None:
    model = plain(nn.Tanh, 12)
    assert told(plan(torch.compile(model, backend="eager"), inputs=batch())) == told(plan(model, inputs=batch()))  # type: ignore[arg-type]


def test_the_command_line_predicts_what_initialize_would_do() -> None:
    model, inputs = Residual(6, 64), torch.randn(8, 64, generator=seeded(0))
    found = _user_model.predict(_user_model.UserModel("mine:model", model, inputs), "auto")
    expected = predict(model, inputs, plan(model, inputs=inputs))
    for signal in ("activation", "activation_grad"):
        assert found.values(signal, "rms").tolist() == expected.values(signal, "rms").tolist()
    assert worst(found, model, inputs) < 0.1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ["he_normal", "propagate"])
def test_the_decades_of_a_prediction_are_those_of_its_recording(name: str, scheme: str) -> None:
    model, inputs = made(name)
    table, found = plan(model, scheme, inputs=inputs), branches(model, inputs)
    flow = Flow(found.program, moments_of_plan(model, table), found.program.tensors)
    with torch.enable_grad():
        flow.run()
        flow.back()
    recorded = decades(predict(model, inputs, table), found)
    assert predicted_decades(flow, model, found) == pytest.approx(recorded, abs=1e-9)
