"""`fans` against its definition, measured, and against the numbers that torch gives."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradscope.init import Fans, fans

REPEATS = 64


def _measured(repeat: Callable[[], tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Mean and standard error of (fan_in, fan_out) over fresh draws, by the definition."""
    draws = torch.tensor([repeat() for _ in range(REPEATS)], dtype=torch.float64)
    return draws.mean(0), draws.std(0) / math.sqrt(REPEATS)


def _assert_meets_definition(expected: Fans, repeat: Callable[[], tuple[float, float]]) -> None:
    torch.manual_seed(0)
    mean, error = _measured(repeat)
    wanted = torch.tensor(expected, dtype=torch.float64)
    assert ((error / wanted) < 0.03).all(), "the measurement is too coarse to judge"
    assert ((mean - wanted).abs() <= 5 * error + 1e-9 * wanted).all(), (mean, error, wanted)


def _mean_square(tensor: Tensor) -> float:
    return float(tensor.double().square().mean())


CIRCULAR = {"bias": False, "padding_mode": "circular"}
CONVOLUTIONS = {
    "Conv1d": (nn.Conv1d(6, 10, 5, padding=2, **CIRCULAR), (30, 50)),
    "Conv2d": (nn.Conv2d(6, 10, 3, padding=1, **CIRCULAR), (54, 90)),
    "Conv3d": (nn.Conv3d(4, 6, 3, padding=1, **CIRCULAR), (108, 162)),
    "groups": (nn.Conv2d(8, 16, 3, padding=1, groups=4, **CIRCULAR), (18, 36)),
    "depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32, **CIRCULAR), (9, 9)),
    "stride 2": (nn.Conv2d(16, 32, 3, padding=1, stride=2, **CIRCULAR), (144, 72)),
    "stride (1, 3)": (nn.Conv2d(4, 8, (3, 5), padding=(1, 2), stride=(1, 3), **CIRCULAR), (60, 40)),
    "stride 2, kernel 4": (nn.Conv1d(6, 4, 4, padding=1, stride=2, **CIRCULAR), (24, 8)),
    "stride and groups": (nn.Conv1d(8, 8, 3, padding=1, stride=2, groups=2, **CIRCULAR), (12, 6)),
    "dilation": (nn.Conv1d(8, 8, 3, padding=2, dilation=2, **CIRCULAR), (24, 24)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fans_of_a_convolution_meet_their_definition(name: str) -> None:
    layer, numbers = CONVOLUTIONS[name]
    assert fans(layer) == numbers
    size = {"Conv1d": 24, "Conv2d": 12, "Conv3d": 6}[type(layer).__name__]

    def repeat() -> tuple[float, float]:
        nn.init.normal_(layer.weight)
        x = torch.randn(4, layer.in_channels, *[size] * (layer.weight.dim() - 2), requires_grad=True)
        y = layer(x)
        sent = torch.randn_like(y)
        (received,) = torch.autograd.grad(y, x, sent)
        weight = _mean_square(layer.weight.detach())
        return (
            _mean_square(y.detach()) / (weight * _mean_square(x.detach())),
            _mean_square(received) / (weight * _mean_square(sent)),
        )

    _assert_meets_definition(Fans(*numbers), repeat)


TRANSPOSED = {
    "ConvTranspose2d k4 s2": (nn.ConvTranspose2d(16, 32, 4, stride=2, bias=False), (64, 512)),
    "ConvTranspose2d k3 s2": (nn.ConvTranspose2d(16, 32, 3, stride=2, bias=False), (36, 288)),
    "ConvTranspose1d k8 s4": (nn.ConvTranspose1d(16, 32, 8, stride=4, bias=False), (32, 256)),
    "ConvTranspose3d k4 s2": (nn.ConvTranspose3d(8, 16, 4, stride=2, bias=False), (64, 1024)),
    "ConvTranspose2d k4 s2 g4": (nn.ConvTranspose2d(16, 32, 4, stride=2, groups=4, bias=False), (16, 128)),
    "ConvTranspose1d k3": (nn.ConvTranspose1d(6, 10, 3, bias=False), (18, 30)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_fans_of_a_transposed_convolution_meet_their_definition_away_from_the_border(name: str) -> None:
    layer, numbers = TRANSPOSED[name]
    assert fans(layer) == numbers
    spatial = layer.weight.dim() - 2
    kernel, stride = layer.kernel_size[0], layer.stride[0]

    def repeat() -> tuple[float, float]:
        nn.init.normal_(layer.weight)
        x = torch.randn(2, layer.in_channels, *[8 if spatial > 2 else 12] * spatial, requires_grad=True)
        y = layer(x)
        sent = torch.randn_like(y)
        (received,) = torch.autograd.grad(y, x, sent)  # without padding every input meets all of its taps
        inner = y.detach()
        for dim in range(2, 2 + spatial):
            periods = (inner.shape[dim] - 2 * kernel) // stride  # whole periods, so that each phase counts alike
            inner = inner.narrow(dim, kernel, periods * stride)
        weight = _mean_square(layer.weight.detach())
        return (
            _mean_square(inner) / (weight * _mean_square(x.detach())),
            _mean_square(received) / (weight * _mean_square(sent)),
        )

    _assert_meets_definition(Fans(*numbers), repeat)


def test_fans_of_linear_bilinear_and_embedding_meet_their_definition() -> None:
    linear, bilinear, embedding = nn.Linear(48, 20), nn.Bilinear(8, 12, 20), nn.Embedding(30, 40)
    assert fans(linear) == (48, 20)
    assert fans(bilinear) == (96, 240)
    assert fans(embedding) == fans(nn.EmbeddingBag(30, 40)) == (1, 40)

    def of_linear() -> tuple[float, float]:
        w, x, sent = torch.randn(20, 48), torch.randn(64, 48), torch.randn(64, 20)
        scale = _mean_square(w)
        return (
            _mean_square(F.linear(x, w)) / (scale * _mean_square(x)),
            _mean_square(sent @ w) / (scale * _mean_square(sent)),
        )

    def of_bilinear() -> tuple[float, float]:
        w, a, b, sent = torch.randn(20, 8, 12), torch.randn(64, 8), torch.randn(64, 12), torch.randn(64, 20)
        scale = _mean_square(w) * _mean_square(b)
        return (
            _mean_square(F.bilinear(a, b, w)) / (scale * _mean_square(a)),
            _mean_square(torch.einsum("bo,oij,bj->bi", sent, w, b)) / (scale * _mean_square(sent)),
        )

    def of_embedding() -> tuple[float, float]:
        w, sent = torch.randn(30, 40), torch.randn(64, 40)
        one_hot = F.one_hot(torch.randint(30, (64,)), 30).float()
        scale = _mean_square(w)
        # One entry of a one-hot vector is 1: the sum of its squares counts here, not their mean.
        squares = float(one_hot.square().sum(1).mean())
        return (
            _mean_square(one_hot @ w) / (scale * squares),
            _mean_square(sent @ w.T) / (scale * _mean_square(sent)),
        )

    _assert_meets_definition(Fans(48, 20), of_linear)
    _assert_meets_definition(Fans(96, 240), of_bilinear)
    _assert_meets_definition(Fans(1, 40), of_embedding)


def test_fan_in_of_a_recurrent_weight_meets_its_definition_where_tanh_is_linear() -> None:
    layer = nn.RNN(24, 40, bias=False, batch_first=True)
    expected = fans(layer)["weight_ih_l0"]["hidden"]

    def repeat() -> tuple[float, float]:
        nn.init.normal_(layer.weight_ih_l0, std=1e-3)
        x = torch.randn(64, 1, 24, requires_grad=True)
        y, _ = layer(x)  # the first step: h_0 = 0
        sent = torch.randn_like(y)
        (received,) = torch.autograd.grad(y, x, sent)
        weight = _mean_square(layer.weight_ih_l0.detach())
        return (
            _mean_square(y.detach()) / (weight * _mean_square(x.detach())),
            _mean_square(received) / (weight * _mean_square(sent)),
        )

    _assert_meets_definition(expected, repeat)


def test_each_gate_has_the_fans_of_its_own_matrix() -> None:
    lstm = fans(nn.LSTM(8, 16, num_layers=2, bidirectional=True, proj_size=4))
    assert list(lstm["weight_ih_l0"]) == ["input", "forget", "cell", "output"]
    assert set(lstm["weight_ih_l0"].values()) == {Fans(8, 16)}
    assert set(lstm["weight_hh_l0_reverse"].values()) == {Fans(4, 16)}
    assert set(lstm["weight_ih_l1"].values()) == {Fans(8, 16)}  # two directions of 4
    assert lstm["weight_hr_l1_reverse"] == {"projection": Fans(16, 4)}
    gru = fans(nn.GRU(8, 16, num_layers=2))
    assert gru["weight_hh_l1"] == dict.fromkeys(("reset", "update", "new"), Fans(16, 16))
    assert fans(nn.RNN(8, 16))["weight_ih_l0"] == {"hidden": Fans(8, 16)}


@pytest.mark.parametrize("layer", [nn.LSTM(5, 6, 2, bidirectional=True, proj_size=3), nn.GRU(5, 6, 2), nn.RNN(5, 6)])
def test_the_blocks_name_every_weight_of_a_recurrent_layer(layer: nn.Module) -> None:
    weights = {name for name, parameter in layer.named_parameters() if parameter.dim() > 1}
    assert set(fans(layer)) == weights


def test_cells_have_the_fans_of_their_gates() -> None:
    assert fans(nn.RNNCell(3, 5)) == {"weight_ih": {"hidden": (3, 5)}, "weight_hh": {"hidden": (5, 5)}}
    assert fans(nn.LSTMCell(3, 5))["weight_ih"]["forget"] == (3, 5)
    assert fans(nn.GRUCell(3, 5))["weight_hh"]["new"] == (5, 5)


def test_packed_and_unpacked_attention_have_the_fans_of_each_projection() -> None:
    packed = fans(nn.MultiheadAttention(12, 3))
    assert packed["in_proj_weight"] == dict.fromkeys("qkv", Fans(12, 12))
    assert packed["out_proj.weight"] == {"out": Fans(12, 12)}
    unpacked = fans(nn.MultiheadAttention(12, 3, kdim=7, vdim=5))
    assert unpacked["q_proj_weight"] == {"q": Fans(12, 12)}
    assert unpacked["k_proj_weight"] == {"k": Fans(7, 12)}
    assert unpacked["v_proj_weight"] == {"v": Fans(5, 12)}


def test_a_bare_tensor_has_the_fans_that_torch_gives_it() -> None:
    for shape in [(3, 5), (4, 3, 5), (32, 1, 3, 3), (2, 3, 4, 5, 6)]:
        weight = torch.empty(shape)
        assert tuple(fans(weight)) == nn.init._calculate_fan_in_and_fan_out(weight)


def test_fans_follow_a_replaced_weight_rather_than_the_declared_sizes() -> None:
    layer = nn.Conv2d(3, 8, 3)
    layer.weight = nn.Parameter(layer.weight.detach().sum(1, keepdim=True))
    assert fans(layer) == (9, 72)


def test_fans_of_a_parametrized_layer_and_of_a_subclass_are_those_of_the_layer() -> None:
    class Mine(nn.Linear):
        pass

    assert fans(Mine(3, 5)) == (3, 5)
    assert fans(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3, stride=2))) == (36, 18)


def test_fans_work_on_the_meta_device_and_in_half_precision() -> None:
    assert fans(nn.Linear(3, 5, device="meta")) == (3, 5)
    assert fans(nn.Conv1d(3, 5, 3, dtype=torch.float16)) == (9, 15)


def test_fan_avg_is_the_mean_and_fans_unpack() -> None:
    fan_in, fan_out = fans(nn.Linear(3, 5))
    assert (fan_in, fan_out) == (3, 5)
    assert Fans(3, 5).fan_avg == 4.0
    assert fans(nn.Conv1d(1, 1, 3, stride=2)).fan_out == 1.5


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        (torch.empty(3), ValueError, r"shape \(3,\) has no fans"),
        (nn.LayerNorm(3), TypeError, "fans(LayerNorm) is not known"),
        (nn.LazyLinear(3), ValueError, "LazyLinear is lazy: its weight has no shape yet"),
        (nn.LazyLinear(3).weight, ValueError, "lazy parameter that has no shape yet"),
    ],
)
def test_what_has_no_fans_is_told_in_one_sentence(given: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence.replace("(L", r"\(L").replace("m)", r"m\)")):
        fans(given)
