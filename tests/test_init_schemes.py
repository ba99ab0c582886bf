"""The schemes: torch's numbers bit for bit where torch defines the same, the asked variance everywhere."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import math
import pkgutil
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradscope import activations, init, theory
from gradscope.init import Fans, Scheme, VarianceScaling, get_scheme, recommend, scheme_names

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

Fill = Callable[..., Tensor]
TWINS: dict[str, tuple[Fill, Fill]] = {
    "glorot_normal": (init.glorot_normal_, nn.init.xavier_normal_),
    "glorot_uniform": (init.glorot_uniform_, nn.init.xavier_uniform_),
    "he_normal": (
        init.he_normal_,
        lambda w, generator: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=generator),
    ),
    "he_uniform": (
        init.he_uniform_,
        lambda w, generator: nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=generator),
    ),
    "lecun_normal": (
        init.lecun_normal_,
        lambda w, generator: nn.init.kaiming_normal_(w, nonlinearity="linear", generator=generator),
    ),
    "lecun_uniform": (
        init.lecun_uniform_,
        lambda w, generator: nn.init.kaiming_uniform_(w, nonlinearity="linear", generator=generator),
    ),
    "torch_default": (
        get_scheme("torch_default"),
        lambda w, generator: nn.init.kaiming_uniform_(w, a=math.sqrt(5), generator=generator),
    ),
    "naive_normal": (get_scheme("naive_normal"), lambda w, generator: nn.init.normal_(w, generator=generator)),
}
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "Linear(37, 53)": lambda **where: nn.Linear(37, 53, **where),
    "Linear(1000, 3)": lambda **where: nn.Linear(1000, 3, **where),
    "Conv1d": lambda **where: nn.Conv1d(5, 12, 5, **where),
    "Conv2d": lambda **where: nn.Conv2d(7, 11, 3, **where),
    "Conv3d": lambda **where: nn.Conv3d(3, 5, (1, 2, 3), **where),
}


def _generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _assert_numbers_of_torch(name: str, layer: str, dtype: torch.dtype, device: str) -> None:
    ours, theirs = TWINS[name]
    module = LAYERS[layer](dtype=dtype, device=device)
    wanted = theirs(torch.empty_like(module.weight), generator=_generator(3, device))
    for fans in (None, init.fans(module)):
        got = ours(module.weight, fans=fans, generator=_generator(3, device))
        assert got is module.weight
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", TWINS)
def test_numbers_are_those_of_torch_to_the_bit(name: str, layer: str, dtype: torch.dtype) -> None:
    _assert_numbers_of_torch(name, layer, dtype, "cpu")


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("name", TWINS)
def test_numbers_are_those_of_torch_to_the_bit_on_cuda(name: str) -> None:
    for layer in LAYERS:
        for dtype in DTYPES:
            _assert_numbers_of_torch(name, layer, dtype, "cuda")


def test_without_a_generator_the_global_state_is_used_as_torch_uses_it() -> None:
    torch.manual_seed(5)
    wanted = nn.init.xavier_uniform_(torch.empty(30, 20)), nn.init.kaiming_normal_(torch.empty(30, 20))
    torch.manual_seed(5)
    got = init.xavier_uniform_(torch.empty(30, 20)), init.kaiming_normal_(torch.empty(30, 20))
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("name", scheme_names())
def test_a_generator_gives_the_same_numbers_again_and_leaves_the_global_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, second = (get_scheme(name)(torch.empty(12, 8, 3), generator=_generator(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", scheme_names())
def test_a_parameter_stays_a_leaf_that_wants_a_gradient(name: str) -> None:
    weight = nn.Parameter(torch.empty(6, 4, 3))
    assert get_scheme(name)(weight) is weight
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.grad is None


@pytest.mark.parametrize("name", TWINS)
def test_a_tensor_that_is_not_contiguous_gets_torchs_numbers_in_place(name: str) -> None:
    ours, theirs = TWINS[name]
    got, wanted = torch.empty(20, 30).T, torch.empty(20, 30).T
    assert torch.equal(ours(got, generator=_generator(2)), theirs(wanted, generator=_generator(2)))
    assert got.stride() == (1, 30)


@pytest.mark.parametrize("name", scheme_names())
def test_a_meta_tensor_is_left_without_a_draw(name: str) -> None:
    before = torch.get_rng_state()
    weight = torch.empty(6, 4, 3, device="meta")
    assert get_scheme(name)(weight, generator=_generator(0)) is weight
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", scheme_names())
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0, 3)])
def test_a_tensor_without_elements_warns_in_one_sentence(name: str, shape: tuple[int, ...]) -> None:
    with pytest.warns(UserWarning, match="has no elements: nothing to initialize"):
        get_scheme(name)(torch.empty(shape))


@pytest.mark.parametrize("name", scheme_names())
def test_an_integer_tensor_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"dtype torch\.int64; an initial weight is of real floating point"):
        get_scheme(name)(torch.ones(3, 3, dtype=torch.int64))


@pytest.mark.cuda
@on_cuda
def test_a_generator_of_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="generator is on cpu, the tensor on cuda"):
        init.he_normal_(torch.empty(3, 3, device="cuda"), generator=_generator(0))


def test_a_vector_needs_fans_and_takes_them() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\) has no fans.*give fans=Fans"):
        init.he_normal_(torch.empty(5))
    weight = init.he_uniform_(torch.empty(5), fans=Fans(6, 1), generator=_generator(0))
    assert weight.abs().max() <= 1.0


# ---- variances and limits -------------------------------------------------------------------------------------------

KURTOSIS = {"normal": 3.0, "uniform": 1.8, "truncated_normal": 3.0}  # of the truncated normal: at most the normal's


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    scale=st.floats(1e-3, 1e3),
    mode=st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
    distribution=st.sampled_from(["normal", "truncated_normal", "uniform"]),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)),
    seed=st.integers(0, 2**31),
)
def test_variance_scaling_has_mean_zero_the_variance_asked_and_its_limit(
    scale: float, mode: str, distribution: str, dtype: torch.dtype, shape: tuple[int, int, int], seed: int
) -> None:
    rule = VarianceScaling(scale, mode, distribution)
    fans = init.fans(torch.empty(shape))
    wanted = scale / {"fan_in": fans.fan_in, "fan_out": fans.fan_out, "fan_avg": fans.fan_avg}[mode]
    assert rule.variance(fans) == pytest.approx(wanted, rel=1e-12)
    assert rule.std(fans) == pytest.approx(math.sqrt(wanted), rel=1e-12)

    count = 20_000
    weight = rule(torch.empty(count, dtype=dtype), fans=fans, generator=_generator(seed)).double().numpy()
    rounding = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-6)  # of each number, relative
    # The variance of n numbers strays by sqrt((kurtosis - 1)/n), their mean by std/sqrt(n); 6 sigma.
    spread = 6 * math.sqrt((KURTOSIS[distribution] - 1) / count)
    assert np.mean(weight**2) / wanted == pytest.approx(1, abs=spread + 2 * rounding)
    assert abs(np.mean(weight)) <= 6 * math.sqrt(wanted / count) * (1 + rounding) + rounding * math.sqrt(wanted)
    limits = {"uniform": math.sqrt(3), "truncated_normal": 2 / 0.8796256610342398, "normal": math.inf}
    assert np.max(np.abs(weight)) <= limits[distribution] * math.sqrt(wanted) * (1 + rounding)


def test_the_truncated_normal_is_corrected_by_the_constant_that_its_formula_gives() -> None:
    from gradscope.init._variance_scaling import TRUNCATED_STD

    assert pytest.approx(0.87962566103423978, rel=1e-15) == TRUNCATED_STD  # Keras, JAX
    assert pytest.approx(scipy.stats.truncnorm(-2, 2).std(), rel=1e-12) == TRUNCATED_STD


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_truncated_normal_has_the_distribution_of_its_name(dtype: torch.dtype) -> None:
    weight = VarianceScaling(1.0)(torch.empty(20_000, dtype=dtype), fans=Fans(1, 1), generator=_generator(0))
    inner = scipy.stats.truncnorm(-2, 2, scale=1 / 0.8796256610342398)
    worst = scipy.stats.kstest(weight.double().numpy(), inner.cdf).statistic
    # 6 sigma of Kolmogorov's statistic is below 2.5/sqrt(n); bfloat16 rounds to steps of 2**-8.
    assert worst < 2.5 / math.sqrt(20_000) + {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(dtype, 0)


def test_keras_initializers_can_be_expressed() -> None:
    fans = Fans(300, 100)
    glorot_relu = VarianceScaling(2.0, "fan_avg", "uniform")
    assert math.sqrt(3) * glorot_relu.std(fans) == pytest.approx(math.sqrt(3 * 2 / 200))
    # Keras' he_normal, lecun_normal, glorot_normal are truncated; VarianceScaling() is its lecun_normal.
    assert VarianceScaling() == VarianceScaling(1.0, "fan_in", "truncated_normal")
    weight = VarianceScaling(2.0, "fan_in", "truncated_normal")(torch.empty(200, 300), generator=_generator(0))
    assert weight.abs().max() <= 2 * math.sqrt(2 / 300) / 0.8796256610342398
    assert weight.double().var().item() == pytest.approx(2 / 300, rel=6 * math.sqrt(2 / 60_000))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scale": 0.0}, r"scale=0\.0 must be a positive, finite number"),
        ({"scale": math.nan}, "scale=nan must be"),
        ({"scale": math.inf}, "scale=inf must be"),
        ({"scale": True}, "scale=True must be"),
        ({"scale": "2"}, "scale='2' must be"),
        ({"mode": "fan_inn"}, r"mode='fan_inn' is unknown \(did you mean 'fan_in'\?\)"),
        ({"distribution": "unifrom"}, r"distribution='unifrom' is unknown \(did you mean 'uniform'\?\)"),
    ],
)
def test_a_wrong_argument_of_variance_scaling_is_told_in_one_sentence(
    arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        VarianceScaling(**arguments)


@pytest.mark.parametrize(
    ("scheme", "fans", "variance"),
    [
        ("glorot_normal", Fans(300, 100), 1 / 200),
        ("glorot_uniform", Fans(300, 100), 1 / 200),
        ("he_normal", Fans(50, 10), 2 / 50),
        ("he_uniform", Fans(50, 10), 2 / 50),
        ("lecun_normal", Fans(50, 10), 1 / 50),
        ("lecun_uniform", Fans(50, 10), 1 / 50),
        ("orthogonal", Fans(50, 10), 1 / 50),
        ("orthogonal", Fans(10, 50), 1 / 50),
        ("torch_default", Fans(50, 10), 1 / 150),
        ("naive_normal", Fans(50, 10), 1.0),
        ("identity", Fans(50, 50), None),
        ("delta_orthogonal", Fans(50, 10), None),
    ],
)
def test_each_scheme_tells_its_variance(scheme: str, fans: Fans, variance: float | None) -> None:
    told = get_scheme(scheme).variance(fans)
    assert told == variance or told == pytest.approx(variance, rel=1e-15)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (40, 30, 3), (16, 4, 3, 3)])
@pytest.mark.parametrize("name", [name for name in scheme_names() if name not in ("identity", "hadamard")])
def test_the_variance_told_is_the_variance_got(name: str, shape: tuple[int, ...]) -> None:
    scheme = get_scheme(name)
    parts = [scheme(torch.empty(shape, dtype=torch.float64), generator=_generator(seed)) for seed in range(20)]
    got = torch.stack(parts).square().mean().item()
    count = 20 * math.prod(shape)
    told = scheme.variance(init.fans(torch.empty(shape)), shape)
    assert got == pytest.approx(told, rel=6 * math.sqrt(2 / count))


# ---- matrices -------------------------------------------------------------------------------------------------------

SHAPES = [(5, 5), (7, 3), (3, 7), (8, 3, 3, 3), (40, 2, 3), (1, 6), (6, 1), (2, 3, 2, 2, 2)]


def _assert_orthogonal_of_torch(shape: tuple[int, ...], device: str) -> None:
    for gain in (1.0, 1.7):
        for dtype in (torch.float32, torch.float64):
            where = {"dtype": dtype, "device": device}
            wanted = nn.init.orthogonal_(torch.empty(shape, **where), gain, generator=_generator(4, device))
            got = init.orthogonal_(torch.empty(shape, **where), gain, generator=_generator(4, device))
            assert torch.equal(got, wanted)
        # torch refuses half precision: there it is the float32 matrix, rounded.
        wide = init.orthogonal_(torch.empty(shape, device=device), gain, generator=_generator(4, device))
        for dtype in (torch.float16, torch.bfloat16):
            half = torch.empty(shape, dtype=dtype, device=device)
            assert torch.equal(init.orthogonal_(half, gain, generator=_generator(4, device)), wide.to(dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_has_the_numbers_of_torch_and_half_precision_rounds_them(shape: tuple[int, ...]) -> None:
    _assert_orthogonal_of_torch(shape, "cpu")


@pytest.mark.cuda
@on_cuda
def test_orthogonal_has_the_numbers_of_torch_on_cuda() -> None:
    for shape in SHAPES:
        _assert_orthogonal_of_torch(shape, "cuda")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 30), cols=st.integers(1, 30), seed=st.integers(0, 2**31), gain=st.floats(0.1, 5.0))
def test_orthogonal_has_orthonormal_rows_or_columns(rows: int, cols: int, seed: int, gain: float) -> None:
    weight = init.orthogonal_(torch.empty(rows, cols, dtype=torch.float64), gain, generator=_generator(seed))
    shorter = weight.T @ weight if rows >= cols else weight @ weight.T
    assert torch.allclose(shorter, gain**2 * torch.eye(min(rows, cols), dtype=torch.float64), atol=1e-12 * gain**2)


def test_orthogonal_takes_a_tensor_that_is_not_contiguous() -> None:
    weight = torch.empty(6, 4, 5).permute(2, 0, 1)
    wanted = nn.init.orthogonal_(torch.empty(5, 6, 4), generator=_generator(0))
    assert torch.equal(init.orthogonal_(weight, generator=_generator(0)), wanted)


def test_orthogonal_fills_each_group_by_itself() -> None:
    weight = init.orthogonal_(torch.empty(12, 6), groups=3, generator=_generator(0))
    for part in weight.chunk(3):
        assert torch.allclose(part @ part.T, torch.eye(4), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", [(3,), (5, 3), (3, 3, 3)])
def test_a_delta_orthogonal_convolution_keeps_every_norm(kernel: tuple[int, ...], groups: int) -> None:
    weight = torch.empty(16, 8 // groups, *kernel, dtype=torch.float64)
    init.delta_orthogonal_(weight, groups=groups, generator=_generator(0))
    x = torch.randn(2, 8, *[6] * len(kernel), dtype=torch.float64, generator=_generator(1))
    padded = F.pad(x, [side for size in reversed(kernel) for side in (size // 2, size // 2)], mode="circular")
    y = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1](padded, weight, groups=groups)
    assert torch.allclose(y.square().sum(1), x.square().sum(1), rtol=1e-12)


def test_delta_orthogonal_of_fewer_outputs_has_orthonormal_rows_and_of_a_matrix_is_orthogonal() -> None:
    tap = init.delta_orthogonal_(torch.empty(4, 9, 3, dtype=torch.float16), generator=_generator(0))[:, :, 1]
    assert torch.allclose(tap.double() @ tap.double().T, torch.eye(4, dtype=torch.float64), atol=4e-3)
    wanted = init.orthogonal_(torch.empty(4, 9), generator=_generator(0))
    assert torch.equal(init.delta_orthogonal_(torch.empty(4, 9), generator=_generator(0)), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3)])
def test_identity_of_a_matrix_is_eye(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert torch.equal(init.identity_(torch.ones(shape, dtype=dtype)), torch.eye(*shape, dtype=dtype))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 4, 4, 5), (6, 4, 1, 2, 3)])
def test_identity_of_a_convolution_is_torchs_dirac(shape: tuple[int, ...], groups: int) -> None:
    assert torch.equal(init.identity_(torch.ones(shape), groups=groups), nn.init.dirac_(torch.ones(shape), groups))


def test_an_identity_convolution_passes_on_its_input() -> None:
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
    init.identity_(layer.weight, groups=2)
    x = torch.randn(2, 6, 5, 5, generator=_generator(0))
    assert torch.equal(layer(x), x)
    assert torch.equal(init.identity_(layer.weight, 0.5, groups=2).amax(), torch.tensor(0.5))


@pytest.mark.parametrize("fill", [init.orthogonal_, init.delta_orthogonal_, init.identity_])
def test_a_matrix_scheme_refuses_vectors_and_groups_that_do_not_divide(fill: Fill) -> None:
    with pytest.raises(ValueError, match=r"takes a tensor of 2 .*dimensions, not shape \(5,\)"):
        fill(torch.empty(5))
    with pytest.raises(ValueError, match=r"groups=2 must divide the first dimension of shape \(3, 4\)"):
        fill(torch.empty(3, 4), groups=2)


# ---- the registry ---------------------------------------------------------------------------------------------------


def test_scheme_names_are_the_function_names_without_their_underscore() -> None:
    without_function = {"torch_default", "naive_normal"}
    assert {name for name in scheme_names() if hasattr(init, f"{name}_")} == set(scheme_names()) - without_function
    assert set(scheme_names()) == {
        *("glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform"),
        *("orthogonal", "scaled_orthogonal", "delta_orthogonal", "hadamard", "martens_sparse", "identity"),
        *("torch_default", "naive_normal"),
    }


@pytest.mark.parametrize("name", [name for name in scheme_names() if hasattr(init, f"{name}_")])
def test_the_scheme_of_a_name_and_the_function_of_that_name_draw_the_same(name: str) -> None:
    function = getattr(init, f"{name}_")
    keywords = {} if name == "identity" else {"generator": _generator(0)}
    assert torch.equal(
        get_scheme(name)(torch.empty(4, 3, 3), generator=_generator(0)), function(torch.empty(4, 3, 3), **keywords)
    )


def test_aliases_stand_in_one_dict_and_name_the_same_functions() -> None:
    assert set(init.ALIASES) == {"xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"}
    for alias, name in init.ALIASES.items():
        assert getattr(init, f"{alias}_") is getattr(init, f"{name}_")
        assert get_scheme(alias) is get_scheme(name)


def test_a_scheme_is_frozen_names_its_paper_and_passes_through() -> None:
    for name in scheme_names():
        scheme = get_scheme(name)
        assert scheme.name == name
        assert scheme.paper
        assert get_scheme(scheme) is scheme
        with pytest.raises(dataclasses.FrozenInstanceError):
            scheme.name = "other"


def test_a_variance_scaling_is_a_scheme() -> None:
    assert get_scheme(VarianceScaling(2.0, "fan_in", "normal")).name == "he_normal"
    own = get_scheme(VarianceScaling(1.5, "fan_out", "uniform"))
    assert isinstance(own, Scheme)
    assert own.name == "variance_scaling(1.5, fan_out, uniform)"
    assert own.variance(Fans(3, 6)) == 0.25


@pytest.mark.parametrize(
    ("name", "hint"), [("he_norml", "he_normal"), ("xavier_norm", "xavier_normal"), ("orthognal", "orthogonal")]
)
def test_an_unknown_scheme_is_answered_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"scheme='{name}' is unknown \(did you mean '{hint}'\?\); allowed: "):
        get_scheme(name)


def test_recommended_schemes_are_glorot_he_and_lecun_each_for_its_own() -> None:
    for name in ("identity", "none", None, "tanh", "sigmoid", "logistic", "softmax"):
        assert recommend(name).name == "glorot_normal"
    for name in ("relu", "leaky_relu", "prelu", "elu", "gelu", "silu", "mish", "gelu(tanh)", "leaky_relu(0.2)"):
        assert recommend(name).name == "he_normal"
    assert recommend("selu").name == "lecun_normal"
    for name in activations.names():
        assert recommend(name).name in scheme_names()
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        recommend("tahn")


def test_the_examples_in_the_docstrings_hold() -> None:
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(init.__path__, "gradscope.init.")]
    results = [doctest.testmod(module) for module in modules]
    assert sum(result.attempted for result in results) > 15
    assert sum(result.failed for result in results) == 0


def test_gain_is_theorys_and_knows_what_calculate_gain_of_torch_does_not() -> None:
    assert init.gain is theory.gain
    assert init.gain("relu") == pytest.approx(nn.init.calculate_gain("relu"), rel=1e-12)
    for name in ("gelu", "silu", "mish", "elu"):
        assert init.gain(name) > 1
        with warnings.catch_warnings(), pytest.raises(ValueError, match="Unsupported nonlinearity"):
            nn.init.calculate_gain(name)
    with pytest.raises(ValueError, match="softmax"):
        init.gain("softmax")
