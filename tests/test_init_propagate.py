"""Weights by theory, for any architecture, and suggestions: predicted flat, and flat when measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradscope import predict, probe, suggest
from gradscope.experiments._suggest import strayed as decades
from gradscope.init import Propagate, initialize, plan
from gradscope.init._model_schemes._branches import branches
from gradscope.init._plan_moments import moments_of_plan
from gradscope.recording import Recording
from tests.test_init_model_schemes import Convolutions, Residual, plain, seeded, transformer
from tests.test_prediction import UNet, generator, vgg

Made = tuple[nn.Module, Any]


def strayed(recording: Recording, model: nn.Module, inputs: Any) -> tuple[float, float]:
    """Decades between the largest and the smallest rms, forward and backward."""
    forward, backward = decades(recording, branches(model, inputs))
    return abs(forward), abs(backward)


def residual() -> Made:
    return Residual(12, 128, 10), torch.randn(16, 128, generator=seeded(0))


MODELS: dict[str, tuple[Callable[[], Made], float, float]] = {
    "deep tanh": (lambda: (plain(nn.Tanh, 30), torch.randn(16, 256, generator=seeded(0))), 0.2, 0.2),
    "deep relu": (lambda: (plain(nn.ReLU, 30), torch.randn(16, 256, generator=seeded(0))), 0.3, 0.3),
    "deep gelu": (lambda: (plain(nn.GELU, 20), torch.randn(16, 256, generator=seeded(0))), 0.3, 0.5),
    "residual without norms": (residual, 0.4, 0.6),
    "pre-norm transformer": (lambda: (transformer(6, 128), torch.randn(4, 16, 128, generator=seeded(0))), 1.0, 1.0),
    "u-net": (lambda: (UNet(), torch.randn(2, 3, 32, 32, generator=seeded(0))), 0.4, 0.8),
    "transposed generator": (generator, 0.3, 1.2),
}
"""Model, and the most decades of forward and backward."""


@pytest.mark.parametrize("name", MODELS)
def test_a_propagated_model_is_flat_both_ways_as_predicted_and_as_measured(name: str) -> None:
    make, forward, backward = MODELS[name]
    model, inputs = make()
    initialize(model, "propagate", generator=seeded(0), inputs=inputs)
    for recording in (predict(model, inputs), probe(model, inputs)):
        found = strayed(recording, model, inputs)
        assert found[0] < forward, recording.facts["source"]
        assert found[1] < backward, recording.facts["source"]


def test_biases_make_both_directions_of_a_tanh_net_flat_where_without_them_one_is_lost() -> None:
    """30 layers behind the forward gain alone: the gradient's mean square grows by 1.178 a layer, in all 1 decade."""
    inputs = torch.randn(16, 256, generator=seeded(0))
    without = plain(nn.Tanh, 30)
    initialize(without, Propagate(biases=False, shared=False), generator=seeded(0), inputs=inputs)
    forward, backward = strayed(predict(without, inputs), without, inputs)
    assert forward < 0.05
    assert backward == pytest.approx(28 * math.log10(1.1778072) / 2, rel=0.1)


def test_where_one_direction_is_flat_at_the_others_expense_both_stray_by_half() -> None:
    """Six ReLU layers, each twice as wide as the one before. Where the signal is kept, the gradient's mean square
    doubles from each to the one below, five times; no factors change the product of the two, so at best each takes √2.
    """
    widths = [64 * 2**i for i in range(7)]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b, bias=False), nn.ReLU())]
    inputs = torch.randn(16, 64, generator=seeded(0))
    found = {}
    for shared in (False, True):
        model = nn.Sequential(*layers, nn.Linear(widths[-1], 10, bias=False))
        table = plan(model, Propagate(shared=shared), inputs=inputs)
        found[shared] = strayed(predict(model, inputs, table), model, inputs)
    whole = 5 * math.log10(2) / 2
    assert found[False] == (pytest.approx(0.0, abs=0.01), pytest.approx(whole, rel=0.05))
    assert found[True] == (pytest.approx(whole / 2, rel=0.05), pytest.approx(whole / 2, rel=0.05))


def test_what_is_shared_is_measured_to_be_flatter_than_what_is_not() -> None:
    torch.manual_seed(0)
    model, inputs = vgg()
    worst = {}
    for shared in (False, True):
        initialize(model, Propagate(shared=shared), generator=seeded(0), inputs=inputs)
        worst[shared] = max(strayed(probe(model, inputs), model, inputs))
    assert worst[True] < 0.6 * worst[False]


def test_the_plan_of_a_model_on_the_meta_device_predicts_a_flat_profile() -> None:
    with torch.device("meta"):
        model, inputs = plain(nn.Tanh, 40, 2048), torch.empty(4, 2048)
    table = plan(model, "propagate", inputs=inputs)
    forward, backward = strayed(predict(model, inputs, table), model, inputs)
    assert forward < 0.01
    assert backward < 0.05


def test_branches_end_so_that_all_of_them_together_double_the_stream() -> None:
    model, inputs = Residual(16, 256), torch.randn(64, 256, generator=seeded(0))
    initialize(model, "propagate", generator=seeded(0), inputs=inputs)
    with torch.no_grad():
        ratio = float(model(inputs).square().mean() / inputs.square().mean())
    assert ratio == pytest.approx((1 + 1 / 16) ** 16, rel=0.2)  # each adds a sixteenth of what is there


def test_a_norm_at_the_end_of_a_branch_gets_the_branchs_share() -> None:
    model = Convolutions()
    initialize(model, "propagate", generator=seeded(0), inputs=torch.randn(4, 3, 16, 16, generator=seeded(0)))
    assert torch.allclose(model.an2.weight, torch.tensor(0.5**0.5))
    assert torch.all(model.an1.weight == 1.0)


def test_a_plan_given_to_predict_counts_and_not_the_weights_that_the_model_has() -> None:
    model, inputs = plain(nn.ReLU, 20), torch.randn(8, 256, generator=seeded(0))
    as_it_is, planned = predict(model, inputs), predict(model, inputs, plan(model, "he_normal", inputs=inputs))
    assert strayed(as_it_is, model, inputs)[1] > 5.0
    assert strayed(planned, model, inputs)[1] < 0.05


def test_a_plan_of_weights_that_are_set_and_not_drawn_predicts_them_too() -> None:
    """Identity weights pass everything on; of a norm's factors at the end of a branch the plan tells the size."""
    model, inputs = plain(nn.Identity, 6), torch.randn(8, 256, generator=seeded(0))
    (rms,) = predict(model, inputs, plan(model, "identity", inputs=inputs)).values("activation", "rms")
    assert rms == pytest.approx(np.full(len(rms), float(inputs.square().mean().sqrt())), rel=1e-3)
    pictures = torch.randn(4, 3, 16, 16, generator=seeded(0))
    residual = Convolutions()
    planned = predict(residual, pictures, plan(residual, "propagate", inputs=pictures))
    initialize(residual, "propagate", generator=seeded(0), inputs=pictures)
    done = predict(residual, pictures)
    for signal in ("activation", "activation_grad"):
        assert planned.values(signal, "rms") == pytest.approx(done.values(signal, "rms"), rel=0.1)
    attention, tokens = nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(1, 3, 8)
    with pytest.raises(ValueError, match="the plan does not tell how large 'in_proj_weight' will be under 'mimetic'"):
        predict(attention, (tokens, tokens, tokens), plan(attention, "mimetic"))


def test_the_moments_of_a_plan_are_those_of_what_is_set() -> None:
    model = Convolutions()
    table = plan(model, "propagate", inputs=torch.randn(2, 3, 8, 8, generator=seeded(0)))
    found = moments_of_plan(model, table)["an2.weight"]
    assert (found.square, found.mean) == (pytest.approx(0.5), pytest.approx(0.5**0.5))


# --- suggest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: (plain(nn.Tanh, 30), torch.randn(16, 256, generator=seeded(0))), 0.3),
        (lambda: (plain(nn.GELU, 20), torch.randn(16, 256, generator=seeded(0))), 0.4),
        (residual, 0.6),
    ],
    ids=["tanh", "gelu", "residual"],
)
def test_what_is_suggested_is_measured_to_stray_less_than_the_model_as_it_is(
    make: Callable[[], Made], most: float
) -> None:
    model, inputs = make()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = suggest(model, inputs)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items()), "it stays as it is"
    best = found.best
    assert best.measured_forward is not None
    assert best.measured_backward is not None
    assert max(abs(best.measured_forward), abs(best.measured_backward)) < most
    assert [one.worst for one in found.candidates] == sorted(one.worst for one in found.candidates)
    before = found.before
    assert before.measured_forward is not None
    assert before.forward == pytest.approx(before.measured_forward, abs=0.3)
    initialize(model, best.scheme, generator=seeded(0), inputs=inputs)  # type: ignore[arg-type]
    assert max(strayed(probe(model, inputs), model, inputs)) < most


def test_a_suggestion_without_inputs_makes_up_a_batch_for_the_first_layer() -> None:
    assert suggest(plain(nn.ReLU, 20)).best.worst < 0.3
    assert suggest(Convolutions()).before.measured_forward is not None
    tokens = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    assert suggest(tokens).candidates

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            z: torch.Tensor = self.layer(x + y)
            return z

    with pytest.raises(ValueError, match=r"does not take a batch of shape \(16, 4\): give one"):
        suggest(Two())
    with pytest.raises(ValueError, match="first layer does not tell what it takes"):
        suggest(nn.Flatten())
    with pytest.raises(TypeError, match="model is of type int"):
        suggest(3)  # type: ignore[arg-type]


def test_a_suggestion_prints_what_was_predicted_and_what_was_measured() -> None:
    text = str(suggest(plain(nn.ReLU, 10), torch.randn(8, 256, generator=seeded(0))))
    lines = text.splitlines()
    assert lines[0].split() == ["forward", "backward", "measured"]
    assert lines[2].startswith("as it is")
    assert "largest and the smallest rms" in lines[-1]
    assert max(map(len, lines)) <= 110
