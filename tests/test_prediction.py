"""Predictions of a model's signal against what a probe of the same model measures, both ways and site by site."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.experiments import predict, probe
from gradscope.theory.prediction import Moments

Made = tuple[nn.Module, Any]
SIGNALS = ("activation", "activation_grad")


def logs(make: Callable[[], Made], seeds: int) -> dict[tuple[str, str], np.ndarray]:
    """ln(predicted rms/measured rms) at each site, one number for each seed.

    The gradient that a probe puts in at an output of few entries has not quite the rms 1: gradients are taken relative
    to the last site's.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, inputs = make()
        expected, measured = predict(model, inputs), probe(model, inputs)
        assert expected.facts["coverage"]["assumed"] == {}
        for signal in SIGNALS:
            (theory,), (seen,) = expected.values(signal, "rms"), measured.values(signal, "rms")
            by_name = dict(zip([s.name for s in measured.sites_of(signal)], seen, strict=True))
            pairs = [
                (site.name, math.log(rms / by_name[site.name]))
                for site, rms in zip(expected.sites_of(signal), theory, strict=True)
                if by_name.get(site.name, 0.0) > 0.0
            ]
            last = pairs[-1][1] if signal == "activation_grad" else 0.0
            for name, ratio in pairs:
                found[signal, name].append(ratio - last)
    return {key: np.array(values) for key, values in found.items()}


# --- one operation at a time ------------------------------------------------------------------------------


class Between(nn.Module):
    """An operation between two linear layers: the first one's gradient is the operation's, backward."""

    def __init__(self, operation: nn.Module, into: int, out: int) -> None:
        super().__init__()
        self.before, self.operation, self.after = nn.Linear(into, into), operation, nn.Linear(out, 512)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.operation(self.before(x)))
        return y


class Pictures(nn.Module):
    """The same between two convolutions."""

    def __init__(self, operation: nn.Module, out: int = 128, dims: int = 2) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.before, self.operation = convolution(16, 128, 3, padding=1), operation
        self.after = convolution(out, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.operation(self.before(x)))
        return y


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Projected(nn.Module):
    """Causal attention whose queries, keys and values are sites of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(512, 512) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y: Tensor = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return y


class MixTokens(nn.Module):
    """A linear layer over the tokens, as in an MLP-mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(x.transpose(1, 2)).transpose(1, 2)
        return y


class Recurrent(nn.Module):
    """A recurrent layer, its outputs alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def flat(operation: Callable[[], nn.Module], out: int = 512) -> Callable[[], Made]:
    return lambda: (Between(operation(), 512, out), torch.randn(64, 512))


def tokens(operation: Callable[[], nn.Module], out: int = 512) -> Callable[[], Made]:
    return lambda: (Between(operation(), 512, out), torch.randn(8, 24, 512))


def pictures(operation: Callable[[], nn.Module], out: int = 128, size: int = 16) -> Callable[[], Made]:
    return lambda: (Pictures(operation(), out), torch.randn(8, 16, size, size))


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))


def rms_norm_by_hand(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def gated(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return functional.silu(gate) * value


def attended(x: Tensor) -> Tensor:
    q, k, v = x.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(2.0 * q, k, v).transpose(1, 2).flatten(2)


def attended_step_by_step(x: Tensor) -> Tensor:
    q, k, v = x.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def causal(x: Tensor) -> Tensor:
    q, k, v = x.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """x + a branch, whose own entries have nothing to do with x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


ELEMENTWISE: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu by hand": lambda: Call(gelu_by_hand),
    "silu": nn.SiLU,
    "silu by hand": lambda: Call(lambda x: x * torch.sigmoid(x)),
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "relu6": nn.ReLU6,
    "sin": lambda: Call(torch.sin),
    "square": lambda: Call(torch.square),
    "clamp": lambda: Call(lambda x: x.clamp(-0.3, 0.5)),
    "in place": lambda: nn.ReLU(inplace=True),
    "sum with its own": lambda: Call(lambda x: x + torch.relu(x)),
    "scaled and shifted": lambda: Call(lambda x: 3.0 * x - 1.0),
}

OPERATIONS: dict[str, Callable[[], Made]] = {
    **{name: flat(operation) for name, operation in ELEMENTWISE.items()},
    "dropout": flat(lambda: nn.Dropout(0.3)),
    "layer norm": flat(lambda: nn.LayerNorm(512)),
    "layer norm after relu": flat(lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(512))),
    "rms norm": flat(lambda: nn.RMSNorm(512)),
    "rms norm by hand": flat(lambda: Call(rms_norm_by_hand)),
    "batch norm": flat(lambda: nn.BatchNorm1d(512)),
    "batch norm after relu": flat(lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(512))),
    "gating": flat(lambda: Call(gated), out=256),
    "halves": flat(lambda: Call(lambda x: x[:, :256]), out=256),
    "cat": flat(lambda: Call(lambda x: torch.cat([torch.relu(x), torch.tanh(x)], -1)), out=1024),
    "residual": flat(lambda: Residual(512)),
    "relu after residual": flat(lambda: nn.Sequential(nn.ReLU(), Residual(512), nn.ReLU())),
    "mean over tokens": tokens(lambda: Call(lambda x: torch.relu(x).mean(1))),
    "first token": tokens(lambda: Call(lambda x: x[:, 0])),
    "attention": tokens(lambda: nn.Sequential(nn.Linear(512, 1536), Call(attended))),
    "attention step by step": tokens(lambda: nn.Sequential(nn.Linear(512, 1536), Call(attended_step_by_step))),
    "causal attention": tokens(lambda: nn.Sequential(nn.Linear(512, 1536), Call(causal))),
    "projected attention": tokens(Projected),
    "mixing tokens": tokens(MixTokens),
    "lstm": tokens(lambda: Recurrent(nn.LSTM(512, 256, 2, batch_first=True)), out=256),
    "gru": tokens(lambda: Recurrent(nn.GRU(512, 256, batch_first=True, bidirectional=True)), out=512),
    "rnn": tokens(lambda: Recurrent(nn.RNN(512, 256, batch_first=True, nonlinearity="relu")), out=256),
    "convolution": pictures(lambda: nn.Conv2d(128, 96, 3, padding=1), out=96),
    "strided convolution": pictures(lambda: nn.Conv2d(128, 96, 3, stride=2), out=96),
    "grouped convolution": pictures(lambda: nn.Conv2d(128, 128, 3, padding=1, groups=8)),
    "depthwise convolution": pictures(lambda: nn.Conv2d(128, 128, 3, padding=1, groups=128)),
    "dilated convolution": pictures(lambda: nn.Conv2d(128, 96, 3, padding=2, dilation=2), out=96),
    "transposed convolution": pictures(lambda: nn.ConvTranspose2d(128, 96, 4, stride=2, padding=1), out=96),
    "average pool": pictures(lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))),
    "adaptive average pool": pictures(lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4))),
    "max pool": pictures(lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))),
    "overlapping max pool": pictures(lambda: nn.MaxPool2d(3, 2, 1)),
    "batch norm of pictures": pictures(lambda: nn.BatchNorm2d(128)),
    "group norm": pictures(lambda: nn.GroupNorm(8, 128)),
    "group norm after relu": pictures(lambda: nn.Sequential(nn.ReLU(), nn.GroupNorm(8, 128))),
    "instance norm": pictures(lambda: nn.InstanceNorm2d(128)),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_one_operation_is_predicted_both_ways(name: str) -> None:
    """Within 4 %, or 5 standard errors of the mean over 4 networks, at every site."""
    for site, found in logs(OPERATIONS[name], seeds=4).items():
        error = found.std(ddof=1) / math.sqrt(found.size)
        assert abs(found.mean()) < 0.04 + 5.0 * error, (site, np.exp(found))
        assert error < 0.04, (site, found)


# --- whole models -----------------------------------------------------------------------------------------


def he(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def mlp() -> Made:
    layers = [m for _ in range(20) for m in (nn.Linear(256, 256), nn.Tanh())]
    return nn.Sequential(*layers), torch.randn(64, 256)


def vgg() -> Made:
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(128 * 16, 512), nn.ReLU(), nn.Linear(512, 100)]
    return he(nn.Sequential(*layers, *head)), torch.randn(8, 3, 32, 32)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def twice(before: int, after: int) -> nn.Module:
            first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

        self.down, self.pool, self.bottom = twice(3, 48), nn.MaxPool2d(2), twice(48, 96)
        self.up, self.top, self.out = nn.ConvTranspose2d(96, 48, 2, stride=2), twice(96, 48), nn.Conv2d(48, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.down(x)
        y: Tensor = self.out(self.top(torch.cat([left, self.up(self.bottom(self.pool(left)))], 1)))
        return y


def generator() -> Made:
    shapes = [(64, 256, 4, 1, 0), (256, 128, 4, 2, 1), (128, 64, 4, 2, 1)]
    layers = [m for shape in shapes for m in (nn.ConvTranspose2d(*shape), nn.GELU())]
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, 16, 4, 2, 1)), torch.randn(16, 64, 1, 1)


def encoder(**arguments: Any) -> Callable[[], Made]:
    def make() -> Made:
        layers = [nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, **arguments) for _ in range(4)]
        return nn.Sequential(*layers), torch.randn(4, 32, 128)

    return make


class Language(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(500, 128), layer, nn.Linear(128, 200)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(self.embedding(tokens))[0])
        return y


def language(layer: Callable[[], nn.Module]) -> Callable[[], Made]:
    return lambda: (Language(layer()), torch.randint(0, 500, (8, 40)))


def hugging_face(name: str) -> Callable[[], Made]:
    def make() -> Made:
        import transformers as hf

        ids, pictures = {"input_ids": torch.randint(0, 500, (4, 48))}, {"pixel_values": torch.randn(8, 3, 64, 64)}
        size = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
        if name == "gpt2":
            own = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 500, "n_positions": 64}
            return hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=4, n_embd=128, n_head=4, **own)), ids
        if name == "bert":
            return hf.BertModel(hf.BertConfig(**size, vocab_size=500)), ids
        if name == "vit":
            return hf.ViTModel(hf.ViTConfig(**size, image_size=64, patch_size=8)), pictures
        if name == "llama":
            size |= {"num_key_value_heads": 2}
            return hf.LlamaForCausalLM(hf.LlamaConfig(**size, vocab_size=500)), ids
        depths, kind = ([2, 2, 2, 2], "basic") if name == "resnet-18" else ([3, 4, 6, 3], "bottleneck")
        widths = [32, 64, 128, 256] if kind == "basic" else [64, 128, 256, 512]
        settings = {"embedding_size": 32, "hidden_sizes": widths, "depths": depths, "layer_type": kind}
        return hf.ResNetModel(hf.ResNetConfig(**settings)), pictures

    return make


MODELS: dict[str, Callable[[], Made]] = {
    "mlp": mlp,
    "vgg": vgg,
    "u-net": lambda: (UNet(), torch.randn(4, 3, 32, 32)),
    "transposed generator": generator,
    "post-norm transformer": encoder(dropout=0.0),
    "pre-norm transformer": encoder(dropout=0.1, norm_first=True, activation="gelu"),
    "lstm": language(lambda: nn.LSTM(128, 128, 2, batch_first=True)),
    "gru": language(lambda: nn.GRU(128, 128, 2, batch_first=True)),
    **{name: hugging_face(name) for name in ("gpt2", "bert", "vit", "llama", "resnet-18", "resnet-50")},
}


def test_the_gradient_of_queries_knows_that_keys_and_values_are_of_the_same_tokens() -> None:
    """48 tokens of 128 entries: 1 + 48/128 in the mean square, 17 % in rms, without which every query is 15 % off."""
    found = logs(MODELS["bert"], 3)
    queries = [values.mean() for (signal, name), values in found.items() if signal in SIGNALS[1:] and "query" in name]
    assert len(queries) == 4
    assert abs(np.mean(queries)) < math.log(1.08)


SEEDS = {"vgg": 12, "llama": 6}
"""Of those whose networks differ more from each other."""


@pytest.mark.parametrize("name", list(MODELS))
def test_nine_sites_of_ten_of_a_model_lie_within_20_percent(name: str) -> None:
    """Each way: geometric means over networks, of which the standard error is in the median below 5 %."""
    seeds = SEEDS.get(name, 3)
    found = logs(MODELS[name], seeds)
    for signal in SIGNALS:
        means = {site: values.mean() for (kind, site), values in found.items() if kind == signal}
        off = {site: float(np.exp(mean)) for site, mean in means.items() if abs(mean) > math.log(1.2)}
        assert len(off) <= 0.1 * len(means), off
    assert np.median([values.std(ddof=1) / math.sqrt(seeds) for values in found.values()]) < 0.05


@pytest.mark.parametrize("name", ["vgg", "pre-norm transformer", "gpt2", "resnet-18", "lstm"])
def test_a_model_on_the_meta_device_is_predicted_as_one_that_has_values(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    moments = {
        name: Moments(float(p.detach().double().square().mean()), float(p.detach().double().mean()))
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    real = predict(model, inputs)
    there = inputs.to("meta") if isinstance(inputs, Tensor) else {key: one.to("meta") for key, one in inputs.items()}
    meta = predict(model.to("meta"), there, moments)
    for signal in SIGNALS:
        assert [s.name for s in meta.sites_of(signal)] == [s.name for s in real.sites_of(signal)]
        assert meta.values(signal, "rms") == pytest.approx(real.values(signal, "rms"), rel=0.05)


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_a_model_whose_positions_differ_is_predicted_at_all_sites(name: str) -> None:
    """A class token that is a parameter; first tokens that under a causal mask average few others: all within 20 %.

    With one mean for all positions the gradient at the ViT's embedding was predicted at 0.59 of the measured one, and
    the Llama's first queries at 1.4.
    """
    found = logs(MODELS[name], SEEDS.get(name, 3))
    off = {key: float(np.exp(values.mean())) for key, values in found.items() if abs(values.mean()) > math.log(1.2)}
    assert off == {}


def test_weight_gradients_are_predicted_too() -> None:
    """A batch's: within 25 % at nine parameters of ten, geometric means over 6 networks."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for seed in range(6):
        torch.manual_seed(seed)
        model, inputs = encoder(dropout=0.0, norm_first=True)()
        expected, measured = predict(model, inputs), probe(model, inputs)
        seen = dict(
            zip(
                [s.name for s in measured.sites_of("weight_grad")],
                measured.values("weight_grad", "rms")[0],
                strict=True,
            )
        )
        for site, rms in zip(expected.sites_of("weight_grad"), expected.values("weight_grad", "rms")[0], strict=True):
            ratios[site.name].append(math.log(rms / seen[site.name]))
    assert len(ratios) == 4 * 12
    off = {
        name: float(np.exp(np.mean(found))) for name, found in ratios.items() if abs(np.mean(found)) > math.log(1.25)
    }
    assert len(off) <= 0.1 * len(ratios), off


@pytest.mark.parametrize("name", ["lstm", "gru", "bidirectional"])
def test_weight_gradients_of_recurrent_layers_and_embeddings_are_predicted(name: str) -> None:
    """Within 25 % at nine parameters of ten, and all within 60 %: geometric means over 6 networks."""
    both = lambda: nn.LSTM(128, 64, 2, batch_first=True, bidirectional=True)  # noqa: E731
    make = MODELS[name] if name in MODELS else language(both)
    ratios: dict[str, list[float]] = defaultdict(list)
    for seed in range(6):
        torch.manual_seed(seed)
        model, inputs = make()
        expected, measured = predict(model, inputs), probe(model, inputs)
        names = [s.name for s in measured.sites_of("weight_grad")]
        seen = dict(zip(names, measured.values("weight_grad", "rms")[0], strict=True))
        for site, rms in zip(expected.sites_of("weight_grad"), expected.values("weight_grad", "rms")[0], strict=True):
            ratios[site.name].append(math.log(rms / seen[site.name]))
    assert set(ratios) == {parameter for parameter, _ in model.named_parameters()}
    found = {parameter: abs(float(np.mean(logs))) for parameter, logs in ratios.items()}
    assert sum(off > math.log(1.25) for off in found.values()) <= 0.1 * len(found), found
    assert max(found.values()) < math.log(1.6), found


def test_weight_gradients_of_a_convolution_that_reaches_beyond_the_picture() -> None:
    """Of a 5 × 5 kernel on 6 × 6 positions each tap meets 22 of 36 on average: within 5 %, mean over 8 networks."""
    ratios = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(32, 64, 5, padding=2, bias=False), nn.Tanh(), nn.Conv2d(64, 32, 1, bias=False))
        x = torch.randn(8, 32, 6, 6)
        found = [r.values("weight_grad", "rms")[0, 0] for r in (predict(model, x), probe(model, x))]
        ratios.append(math.log(found[0] / found[1]))
    assert abs(np.mean(ratios)) < 0.05, ratios


# --- what a prediction says of itself -----------------------------------------------------------------------


def test_an_operation_without_a_rule_is_named_counted_and_passed_over() -> None:
    model = nn.Sequential(nn.Linear(32, 32), Call(lambda x: torch.fft.fft(x).real), nn.Linear(32, 8))
    coverage = predict(model, torch.randn(4, 32)).facts["coverage"]
    assert any(name.startswith("aten._fft") for name in coverage["assumed"])
    assert coverage["covered"] >= 2


def test_a_prediction_has_the_sites_of_a_probe_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model, inputs = vgg()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, measured = predict(model, inputs), probe(model, inputs)
    for signal in SIGNALS:
        theirs = {site.name: site for site in measured.sites_of(signal)}
        for site in expected.sites_of(signal):
            seen = theirs[site.name]
            assert (site.role, site.depth, site.shape, site.fan_in) == (seen.role, seen.depth, seen.shape, seen.fan_in)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert expected.facts["source"] == "theory"


def test_a_wrong_call_is_one_sentence() -> None:
    with pytest.raises(TypeError, match=r"model is of type str; predict takes a torch\.nn\.Module"):
        predict("model", torch.ones(1))  # type: ignore[arg-type]
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"parameters has no moments of 'weight', .* \(2 are missing\)"):
        predict(model, torch.ones(1, 4, device="meta"))
