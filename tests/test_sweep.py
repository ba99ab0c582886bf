"""The sweep: batched over seeds, it gives the numbers of the plain networks run one by one."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import activations, theory
from gradscope.experiments import SettingsError, SweepConfig, plain_network, probe, sweep
from gradscope.experiments import _grid as grid_file
from gradscope.experiments._grid import parts
from gradscope.experiments._measure import MEASURED, rms
from gradscope.experiments._networks import activation_module
from gradscope.recording import SweepCell

SMALL = {"depth": 8, "width": 48, "batch": 16, "seeds": 2}
CONV = {"family": "conv", "depth": 4, "width": 6, "batch": 3, "seeds": 3}
CONV_INITS = ["he_normal", "glorot_uniform", "orthogonal", "delta_orthogonal", "identity", "torch_default"]

# float32's spacing below 1.2e-38 is 1.4e-45: there a relative error of 1e-5 has no meaning.
SUBNORMAL = 1e-42

without_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


def one_by_one(model: nn.Sequential, inputs: Tensor, output_gradient: Tensor) -> dict[str, np.ndarray]:
    """rms of one network's layers by plain autograd and float64 numpy, `(depth,)` each."""
    outputs, x = [], inputs
    for layer in model:
        x = layer(x)
        outputs.append(x)
    gradients = torch.autograd.grad((x * output_gradient).sum(), outputs)

    def root_mean_square(tensor: Tensor) -> float:
        return float(np.sqrt(np.mean(tensor.detach().cpu().numpy().astype(np.float64) ** 2)))

    forward, backward = (np.array([root_mean_square(t) for t in found]) for found in (outputs, gradients))
    return {
        "pre": forward[::2],
        "act": np.append(forward[1::2], np.nan),
        "pre_grad": backward[::2],
        "act_grad": np.append(backward[1::2], np.nan),
    }


def assert_cell_is_its_networks(config: SweepConfig, cell: SweepCell) -> None:
    for seed in range(config.seeds):
        expected = one_by_one(*plain_network(config, cell.init, cell.activation, cell.depth, cell.width, seed))
        for name in MEASURED:
            np.testing.assert_allclose(
                getattr(cell, name)[seed],
                expected[name],
                rtol=1e-5,
                atol=SUBNORMAL,
                err_msg=f"{cell.init} × {cell.activation}, seed {seed}: {name}",
            )


@pytest.mark.parametrize("init", SweepConfig().init)
def test_every_activation_of_an_init_equals_its_networks_one_by_one(init: str) -> None:
    config = SweepConfig(init=init, **SMALL)
    for cell in sweep(config).cells:
        assert_cell_is_its_networks(config, cell)


ELEMENTWISE = ["identity", "tanh", "relu", "elu", "gelu"]
"""Activations with a critical point."""


@pytest.mark.parametrize("init", ["scaled_orthogonal", "hadamard", "martens_sparse", "edge_of_chaos", "lsuv"])
def test_the_other_schemes_equal_their_networks_one_by_one(init: str) -> None:
    config = SweepConfig(init=init, **SMALL | {"activation": ELEMENTWISE})
    for cell in sweep(config).cells:
        assert_cell_is_its_networks(config, cell)


@pytest.mark.parametrize("init", ["edge_of_chaos", "lsuv", "martens_sparse"])
def test_the_other_schemes_of_convolutions_equal_their_networks_one_by_one(init: str) -> None:
    config = SweepConfig(init=init, activation=["relu", "tanh"], **CONV)
    for cell in sweep(config).cells:
        assert_cell_is_its_networks(config, cell)


def test_lsuv_gives_unit_variance_in_every_layer_and_the_edge_of_chaos_keeps_the_gradient() -> None:
    config = SweepConfig(init=["lsuv", "edge_of_chaos"], activation=["tanh", "elu"], depth=20, width=128, seeds=6)
    for cell in sweep(config).cells:
        assert cell.expected is not None
        for measured, curve, variance in (
            (cell.pre, cell.expected.pre, cell.expected.forward_var),
            (cell.pre_grad, cell.expected.pre_grad, cell.expected.backward_var),
        ):
            away = np.log(measured / 10.0**curve).mean(axis=0)
            # As below; what a batch of 64 inputs, no two alike, has of a mean is not in its variance: 2/64 at most.
            limit = 5 * np.sqrt(variance / cell.seeds) / 2 + variance / 4 + 1 / 64
            assert (np.abs(away) < limit).all(), f"{cell.init} × {cell.activation}: {away} against {limit}"
    edge = sweep(config).cell("edge_of_chaos", "tanh").expected
    assert np.abs(edge.pre_grad).max() < 1e-9, "the gradient is kept"
    assert np.abs(edge.pre).max() < 1e-9, "and the length"


def test_the_edge_of_chaos_of_tanh_has_the_published_variances() -> None:
    from gradscope.experiments._adjustment import edge

    assert edge("tanh") == pytest.approx((1.4674135916, 0.3885416701), rel=1e-9)


@pytest.mark.parametrize("init", CONV_INITS)
def test_convolutions_equal_their_networks_one_by_one(init: str) -> None:
    config = SweepConfig(init=init, activation=["relu", "tanh", "softmax", "identity"], **CONV)
    for cell in sweep(config).cells:
        assert_cell_is_its_networks(config, cell)


@pytest.mark.parametrize(
    ("init", "activation"), [("he_normal", "relu"), ("glorot_normal", "sigmoid"), ("naive_normal", "relu")]
)
def test_at_the_default_depth_and_width_a_cell_equals_its_networks(init: str, activation: str) -> None:
    config = SweepConfig(init=init, activation=activation, seeds=2)
    (cell,) = sweep(config).cells
    assert_cell_is_its_networks(config, cell)


@pytest.mark.parametrize("family", ["mlp", "conv"])
def test_probe_of_a_plain_network_gives_the_sweeps_numbers(family: str) -> None:
    sizes = SMALL if family == "mlp" else CONV
    pairs = {
        "init": ["he_normal", "orthogonal", "torch_default"],
        "activation": ["identity", "relu", "softmax"],
    }
    plain = SweepConfig(**sizes | pairs)
    adjusted = SweepConfig(**sizes | {"init": ["edge_of_chaos", "lsuv"], "activation": ["tanh", "elu"]})
    for config, cell in [(each, cell) for each in (plain, adjusted) for cell in sweep(each).cells]:
        for seed in range(config.seeds):
            model, inputs, gradient = plain_network(config, cell.init, cell.activation, cell.depth, cell.width, seed)
            recording = probe(model, inputs, target=gradient, loss_fn=lambda out, v: (out * v).sum())
            for signal, pre, act in (
                ("activation", cell.pre, cell.act),
                ("activation_grad", cell.pre_grad, cell.act_grad),
            ):
                values = recording.values(signal, "rms")[-1]
                found = {s.name: v for s, v in zip(recording.sites_of(signal), values, strict=True)}
                layers = np.array([found[str(index)] for index in range(len(model))])
                np.testing.assert_allclose(layers[::2], pre[seed], rtol=1e-5, atol=SUBNORMAL)
                np.testing.assert_allclose(layers[1::2], act[seed, :-1], rtol=1e-5, atol=SUBNORMAL)


def test_what_is_measured_at_once_does_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SweepConfig(init="he_normal", activation=["relu", "tanh", "gelu", "sin"], **SMALL | {"seeds": 5})
    together = sweep(config)
    bytes_of_one = 4 * (8 * 48 * 48 + (8 + grid_file._OTHER_SIGNALS) * 16 * 48)
    monkeypatch.setattr(grid_file, "_BYTES_AT_ONCE", 2 * bytes_of_one)  # two seeds of one activation
    assert [(len(part.seeds), part.activations) for part in parts(config)] == [
        (seeds, (name,)) for seeds in (2, 2, 1) for name in config.activation
    ]
    in_parts = sweep(config)
    for one, other in zip(together.cells, in_parts.cells, strict=True):
        for name in MEASURED:
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6)


def test_the_default_sweep_measures_half_of_its_activations_at_once() -> None:
    config = SweepConfig()
    expected = [(init, some) for init in config.init for some in (config.activation[:5], config.activation[5:])]
    assert [(part.init, part.activations) for part in parts(config)] == expected
    assert {part.seeds for part in parts(config)} == {range(5)}


def test_a_cell_far_larger_than_the_memory_bound_is_measured_one_network_at_a_time() -> None:
    config = SweepConfig(init="he_normal", activation=["relu", "tanh"], width=8192, seeds=3)
    assert [(part.seeds, part.activations) for part in parts(config)] == [
        (range(seed, seed + 1), (name,)) for seed in range(3) for name in ("relu", "tanh")
    ]


def test_weights_are_shared_over_activations_and_differ_over_everything_else() -> None:
    config = SweepConfig(batch=2)

    def weights(
        config: SweepConfig = config, init: str = "he_normal", activation: str = "relu", **where: int
    ) -> Tensor:
        network = plain_network(config, init, activation, **{"depth": 3, "width": 4, "seed": 0} | where)
        return torch.stack([layer.weight.detach() for layer in network[0] if isinstance(layer, nn.Linear)])

    first = weights()
    assert torch.equal(first, weights())
    assert torch.equal(first, weights(activation="tanh"))
    assert torch.equal(first, weights(init="kaiming_normal"))  # an alias
    assert not torch.equal(first, weights(seed=1))
    assert not torch.equal(first, weights(config=config.replace(seed=1)))
    assert not torch.equal(first, weights(init="lecun_normal") * 2**0.5)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[:2], weights(depth=2))


def test_inputs_have_rms_1_in_every_sample_and_the_output_gradient_is_standard_normal() -> None:
    config = SweepConfig(batch=200)
    _, inputs, gradient = plain_network(config, "he_normal", "relu", 2, 100, 0)
    torch.testing.assert_close(inputs.square().mean(1).sqrt(), torch.ones(200))
    # 20,000 draws: the mean's standard error is 0.007, the standard deviation's 0.005.
    assert abs(float(gradient.mean())) < 0.035
    assert abs(float(gradient.std()) - 1) < 0.025
    assert abs(float((inputs * gradient).mean())) < 0.035


@pytest.mark.parametrize("name", [*activations.names(), "leaky_relu(0.2)", "prelu(0.1)", "elu(2)", "hardtanh(-2, 3)"])
def test_the_module_of_an_activation_computes_the_tables_function(name: str) -> None:
    activation = activations.get(name)
    z = torch.linspace(-8, 8, 64, dtype=torch.float32).reshape(2, 32)
    got = activation_module(activation, "mlp")(z).detach().numpy()
    # float32 rounds each of a few operations to 6e-8 of a value that may be 8.
    np.testing.assert_allclose(got, activation.function(z.numpy().astype(np.float64)), rtol=2e-6, atol=2e-6)


def test_softmax_in_a_convolution_is_over_channels() -> None:
    z = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(activation_module(activations.get("softmax"), "conv")(z).sum(1), torch.ones(2, 4, 4))


def root_mean_squares(x: Tensor) -> np.ndarray:
    found = torch.empty(x.shape[:2], dtype=torch.float64)
    rms(x, torch.empty(x.shape, dtype=torch.float64), found)
    return found.numpy()


@pytest.mark.parametrize("scale", [1e-44, 1e-37, 1e-20, 1.0, 1e20, 1e37])
def test_rms_is_right_where_squares_leave_float32(scale: float) -> None:
    x = (torch.randn(3, 2, 50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale).float()
    exact = np.sqrt(np.mean(x.numpy().astype(np.float64).reshape(3, 2, -1) ** 2, axis=2))
    np.testing.assert_allclose(root_mean_squares(x), exact, rtol=1e-12)


def test_rms_of_zeros_is_0_and_what_is_not_finite_shows() -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[[0.0, 0.0], [1.0, inf], [-inf, 2.0], [nan, 1.0]]])
    np.testing.assert_array_equal(root_mean_squares(x), [[0.0, inf, inf, nan]])


def test_overflow_and_underflow_are_measured_as_they_are() -> None:
    config = SweepConfig(init="naive_normal", activation=["relu", "softmax"], seeds=2, batch=4, depth=60)
    result = sweep(config)
    # 10^1.05 per layer: float32 ends, at 3.4e38, in the 36th or 37th layer; inf - inf follows.
    pre = result.cell("naive_normal", "relu").pre
    assert np.isfinite(pre[:, :34]).all()
    assert not np.isfinite(pre[:, 38:]).any()
    assert np.isnan(pre[:, -1]).all()
    # A softmax of 256 units passes 1/256 of a gradient on.
    config = config.replace(init="glorot_normal", activation="softmax")
    gradient = sweep(config).cell("glorot_normal", "softmax").pre_grad
    assert (gradient[:, 0] == 0.0).all()
    assert (gradient[:, -5:] > 0.0).all()


def test_the_last_layer_has_no_activation_and_its_gradient_is_the_one_put_in() -> None:
    config = SweepConfig(init="he_normal", activation="relu", **SMALL)
    (cell,) = sweep(config).cells
    assert np.isnan(cell.act[:, -1]).all()
    assert np.isnan(cell.act_grad[:, -1]).all()
    for seed in range(config.seeds):
        gradient = plain_network(config, "he_normal", "relu", 8, 48, seed)[2]
        assert cell.pre_grad[seed, -1] == pytest.approx(float(gradient.double().square().mean().sqrt()), rel=1e-12)


def test_cells_come_in_the_order_of_the_settings_with_config_and_facts() -> None:
    config = SweepConfig(
        init=["orthogonal", "he_normal"],
        activation=["tanh", "relu"],
        depth=[3, 2],
        width=[8, 4],
        batch=2,
        seeds=1,
    )
    calls: list[tuple[int, int, str]] = []
    result = sweep(config, progress=lambda done, total, label: calls.append((done, total, label)))
    found = [(c.depth, c.width, c.init, c.activation) for c in result.cells]
    assert found == [
        (d, w, i, a) for d in (3, 2) for w in (8, 4) for i in ("orthogonal", "he_normal") for a in ("tanh", "relu")
    ]
    assert result.config == config.model_dump(mode="json")
    assert SweepConfig(**result.config) == config
    assert {"gradscope", "torch", "numpy", "device", "threads", "dtype", "seconds"} <= set(result.facts)
    assert [(done, total) for done, total, _ in calls] == [(k, 16) for k in range(1, 17)]
    assert calls[0][2] == "orthogonal × tanh, depth 3, width 8"
    assert result.cell("he_normal", "relu", depth=2, width=4).seeds == 1


@pytest.mark.parametrize("init", SweepConfig().init)
def test_each_cell_stands_beside_the_theory_of_its_schemes_variance(init: str) -> None:
    n, depth = 32, 5
    (cell,) = sweep(SweepConfig(init=init, activation="tanh", depth=depth, width=n, batch=2, seeds=1)).cells
    variance = {"he": 2 / n, "glorot": 1 / n, "lecun": 1 / n, "torch": 1 / (3 * n), "naive": 1.0}.get(
        init.partition("_")[0], 1 / n
    )
    kind = init if init in ("orthogonal", "identity") else "independent"
    expected = theory.propagate("tanh", depth, weight_variance=variance, fan_in=n, weights=kind)
    assert cell.expected is not None
    for name in (*MEASURED, "forward_var", "backward_var", "valid"):
        np.testing.assert_allclose(getattr(cell.expected, name), getattr(expected, name), rtol=1e-12, err_msg=name)
    assert (cell.expected.label, cell.expected.stable) == (expected.label, expected.stable)


def test_convolutions_follow_the_dense_map_with_their_true_fans() -> None:
    config = SweepConfig(
        init=["he_normal", "delta_orthogonal", "orthogonal"],
        activation=["relu", "tanh"],
        family="conv",
        depth=6,
        width=32,
        batch=16,
        seeds=4,
    )
    for cell in sweep(config).cells:
        assert cell.expected is not None
        for measured, curve, variance in (
            (cell.pre, cell.expected.pre, cell.expected.forward_var),
            (cell.pre_grad, cell.expected.pre_grad, cell.expected.backward_var),
        ):
            away = np.log(measured / 10.0**curve).mean(axis=0)
            # The spread is one input's, an upper bound of the batch's; log rms is half of log mean square. A
            # delta-orthogonal layer has none: 1e-6 for float32's rounding.
            limit = 5 * np.sqrt(variance / cell.seeds) / 2 + variance / 4 + 1e-6
            assert (np.abs(away) < limit).all(), f"{cell.init} × {cell.activation}: {away} against {limit}"


def _state() -> tuple[object, ...]:
    return (
        random.getstate(),
        tuple(np.random.get_state()[1]),  # noqa: NPY002 the legacy global state must stay too
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )


def test_random_state_threads_dtype_grad_mode_and_precision_stay_as_they_were() -> None:
    before = _state()
    config = SweepConfig(init=["he_normal", "orthogonal"], activation=["relu", "prelu"], **SMALL)
    sweep(config)
    plain_network(config, "orthogonal", "prelu", 4, 8, 0)
    assert _state() == before


def test_an_interrupted_sweep_puts_everything_back() -> None:
    def interrupt(done: int, total: int, label: str) -> None:
        raise KeyboardInterrupt

    before = _state()
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        sweep(SweepConfig(init="he_normal", activation="relu", **SMALL), progress=interrupt)
    assert _state() == before


def test_the_callers_modes_do_not_change_the_numbers() -> None:
    config = SweepConfig(
        init=["he_normal", "orthogonal", "edge_of_chaos", "lsuv"], activation=["gelu", "prelu"], **SMALL
    )
    plain = sweep(config)
    results = []
    with torch.no_grad():
        results.append(sweep(config))
    with torch.inference_mode():
        results.append(sweep(config))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results.append(sweep(config))
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        results.append(sweep(config))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    for result in results:
        for one, other in zip(plain.cells, result.cells, strict=True):
            for name in MEASURED:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


_PRECISION = """
import torch
from gradscope.experiments._measure import measuring
products = {"cpu": torch.backends.mkldnn.matmul, "cuda": torch.backends.cuda.matmul}
product, other = products.pop(DEVICE), *products.values()
before, others = product.fp32_precision, other.fp32_precision
with measuring(torch.device(DEVICE)):
    assert product.fp32_precision == "ieee"
    assert other.fp32_precision == others
assert product.fp32_precision == before
for later in ("tf32", "ieee"):  # a wish for all products reaches this one as it would have before
    torch.backends.fp32_precision = later
    assert product.fp32_precision == later, product.fp32_precision
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_run_in_full_float32_inside_and_as_before_outside(device: str) -> None:
    script = _PRECISION.replace("DEVICE", repr(device))  # alone: these settings are the process's, and some are final
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_device_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"^device must be .*, not 'cuda:99'"):
        sweep(SweepConfig(device="cuda:99"))


@pytest.mark.cuda
@without_cuda
def test_on_cuda_the_numbers_are_those_of_the_cpu() -> None:
    config = SweepConfig(**SMALL)
    for here, there in zip(sweep(config).cells, sweep(config.replace(device="cuda")).cells, strict=True):
        for name in MEASURED:
            # Another order of summation: 1e-6 a layer.
            np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-4, atol=SUBNORMAL)
