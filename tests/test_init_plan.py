"""`initialize` and `plan` on real models: what follows each layer, what is left, and that nothing else changes."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from gradscope import init
from gradscope.init import Fans, InitPlan, VarianceScaling, get_scheme, initialize, plan, scheme_names
from gradscope.init._trace import LayerCall, trace
from tests.cases import CASES, Case


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _weights(table: InitPlan) -> dict[str, tuple[str | None, str | None]]:
    """(followed by, scheme) of each weight and block that is set."""
    return {
        f"{row.parameter}[{row.block}]" if row.block else row.parameter: (row.activation, row.scheme)
        for row in table
        if row.fans is not None
    }


def _left(table: InitPlan) -> dict[str, str]:
    return {row.parameter: row.note for row in table if row.scheme is None}


class Block(nn.Module):
    """A ResNet's basic block: batch norm, in-place ReLU, a sum with the shortcut before the second ReLU."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16, 2))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.blocks(F.relu(self.stem(x))), 1), 1))


class FunctionalMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.fc2 = nn.Linear(8, 8)
        self.fc3 = nn.Linear(8, 8)
        self.fc4 = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = torch.tanh(F.layer_norm(self.fc2(x), (8,)))
        x = F.dropout(self.fc3(x), 0.2, self.training).sigmoid()
        return self.head(F.selu(self.fc4(x)).view(-1, 8))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.lstm(self.embedding(tokens))
        return self.head(F.gelu(self.hidden(out[:, -1])))


HE, GLOROT, LECUN = "he_normal", "glorot_normal", "lecun_normal"

# ---- what follows each layer ----------------------------------------------------------------------------------------


def test_a_cnn_with_batch_norm_gets_he_before_relu_and_glorot_at_the_end() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(2, 8), nn.Dropout2d(0.1), nn.SELU()),
        *(nn.Flatten(), nn.Linear(8 * 9, 5)),
    )
    expected = {"0.weight": ("relu", HE), "4.weight": ("selu", LECUN), "9.weight": ("identity", GLOROT)}
    table = plan(model)
    assert _weights(table) == _weights(plan(model, inputs=torch.randn(2, 3, 10, 10))) == expected
    assert _left(table) == dict.fromkeys(("1.weight", "1.bias", "5.weight", "5.bias"), "norm")
    assert {row.parameter: row.fans for row in table}["4.weight"] == Fans(9, 9)  # depthwise; torch's are 9, 72


def test_functional_activations_are_seen_with_inputs_and_only_then() -> None:
    model, x = FunctionalMLP(), torch.randn(4, 6)
    assert _weights(plan(model, inputs=x)) == {
        "fc1.weight": ("relu", HE),
        "fc2.weight": ("tanh", GLOROT),
        "fc3.weight": ("sigmoid", GLOROT),
        "fc4.weight": ("selu", LECUN),
        "head.weight": ("identity", GLOROT),
    }
    blind = plan(model)
    assert {scheme for _, scheme in _weights(blind).values()} == {GLOROT}
    assert "functions are not seen; pass inputs=" in str(blind)


def test_a_resnet_with_in_place_relu_gets_he_behind_sums_and_shortcuts() -> None:
    weights = _weights(plan(ResNet(), inputs=torch.randn(2, 3, 8, 8)))
    assert weights.pop("fc.weight") == ("identity", GLOROT)
    assert len(weights) == 7
    assert set(weights.values()) == {("relu", HE)}


def test_an_lstm_classifier_gets_glorot_for_each_gate() -> None:
    weights = _weights(plan(Classifier(), inputs=torch.randint(20, (3, 5))))
    gates = {name: found for name, found in weights.items() if name.startswith("lstm")}
    assert len(gates) == 2 * 2 * 2 * 4  # layers, directions, ih and hh, gates
    assert gates["lstm.weight_hh_l1_reverse[cell]"] == ("tanh", GLOROT)
    assert gates["lstm.weight_ih_l0[forget]"] == ("sigmoid", GLOROT)
    assert weights["hidden.weight"] == ("gelu", HE)
    assert weights["head.weight"] == ("identity", GLOROT)


@pytest.mark.parametrize("function", [F.gelu, "relu", nn.SiLU()])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_transformers_activation_is_seen_however_it_was_passed(
    function: Any, norm_first: bool, training: bool
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=function, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    name = {"relu": "relu", F.gelu: "gelu"}.get(function, "silu")
    for table in (plan(model), plan(model, inputs=torch.randn(2, 5, 8))):
        weights = _weights(table)
        for place in ("layers.0", "layers.1"):
            assert weights.pop(f"{place}.linear1.weight") == (name, HE)
        assert set(weights.values()) == {("identity", GLOROT)}
        assert {f"layers.1.self_attn.in_proj_weight[{block}]" for block in "qkv"} < set(weights)
        assert "layers.1.self_attn.out_proj.weight" in weights


def test_what_follows_an_attention_follows_its_output_projection() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True, add_bias_kv=True)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.relu(self.attention(q, k, v)[0])

    table = plan(Net(), inputs=(torch.randn(2, 3, 8), torch.randn(2, 5, 6), torch.randn(2, 5, 4)))
    weights = _weights(table)
    assert weights["attention.out_proj.weight"] == ("relu", HE)
    assert weights["attention.k_proj_weight[k]"] == ("identity", GLOROT)
    assert _left(table) == dict.fromkeys(("attention.bias_k", "attention.bias_v"), "an additional token")


def test_a_recurrent_relu_gets_he_and_a_tanh_cell_glorot() -> None:
    assert set(_weights(plan(nn.RNN(4, 6, nonlinearity="relu"))).values()) == {("relu", HE)}
    assert set(_weights(plan(nn.RNNCell(4, 6))).values()) == {("tanh", GLOROT)}
    assert _weights(plan(nn.LSTM(4, 6, proj_size=3)))["weight_hr_l0[projection]"] == ("identity", GLOROT)


def test_a_layer_called_again_is_judged_by_its_first_call_and_the_table_says_so() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh(), shared)
    assert trace(model, torch.randn(2, 4)) == tuple(LayerCall("0", i, a) for i, a in enumerate(("relu", "tanh", None)))
    row = plan(model, inputs=torch.randn(2, 4))[0]
    assert (row.activation, row.scheme) == ("relu", HE)
    assert row.note == "in a later call tanh, nothing follows"


def test_a_layer_that_the_inputs_do_not_reach_says_so() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.unused = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x).tanh()

    table = plan(Net(), inputs=torch.randn(2, 4))
    assert _weights(table) == {"used.weight": ("tanh", GLOROT), "unused.0.weight": ("relu", HE)}
    assert {row.parameter: row.note for row in table}["unused.0.weight"] == "not called with these inputs"


def test_the_activation_given_replaces_the_search_for_all_but_the_last_layer() -> None:
    model = FunctionalMLP()
    weights = _weights(plan(model, activation="relu"))
    assert weights.pop("head.weight") == ("identity", GLOROT)
    assert set(weights.values()) == {("relu", HE)}
    # In execution order the last layer may be another than the last one defined.
    model.forward = lambda x: model.fc1(model.fc2(F.pad(x, (0, 2)))[:, :6])  # type: ignore[method-assign]
    weights = _weights(plan(model, activation="logistic", inputs=torch.randn(2, 6)))
    assert weights["fc1.weight"] == ("identity", GLOROT)
    assert weights["fc2.weight"] == weights["head.weight"] == ("sigmoid", GLOROT)


# ---- nothing else changes -------------------------------------------------------------------------------------------


def _state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {name: value.clone() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        state[f"{name} attributes"] = {
            key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()
        }
    return state


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a is b or torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    return a is b or bool(a == b)


class Stateful(nn.Module):
    """Counts its calls, replaces a buffer, draws from every generator, changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(5)
        self.layer = parametrizations.spectral_norm(nn.Linear(5, 5))
        self.register_buffer("average", torch.zeros(5))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        self.calls += 1
        self.cache = x
        return F.dropout(self.layer(x)) * random.random() * float(np.random.rand())  # noqa: NPY002


# A lazy model has nothing to plan for yet; a parametrized one has tests of its own below.
MODELS = tuple(case for case in CASES if case.name not in ("lazy", "parametrizations"))
STATES = (*(case for case in CASES if case.name != "lazy"), Case("stateful", Stateful, lambda: torch.randn(4, 5)))


@pytest.mark.parametrize("case", STATES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_plan_leaves_model_inputs_and_random_states_as_they_were(case: Case, training: bool) -> None:
    torch.manual_seed(0)
    model, inputs = case.model().train(training), case.inputs()
    copies = [t.clone() for t in _each(inputs)]
    before = _state(model)
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    plan(model)
    plan(model, inputs=inputs)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))  # noqa: NPY002
    assert all(torch.equal(a, b) for a, b in zip(_each(inputs), copies, strict=True))
    assert _equal(_state(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def _each(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def test_a_forward_that_fails_leaves_the_model_as_it_was() -> None:
    class Failing(Stateful):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("broken on purpose")

    torch.manual_seed(0)
    model = Failing()
    before, random_state = _state(model), torch.get_rng_state()
    with pytest.raises(KeyError, match="broken on purpose"):
        initialize(model, inputs=torch.randn(4, 5, generator=_generator()))
    assert _equal(_state(model), before)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("case", STATES, ids=str)
def test_initialize_is_determined_by_its_generator_and_leaves_the_global_state_alone(case: Case) -> None:
    torch.manual_seed(0)
    model, inputs = case.model(), case.inputs()
    before = torch.get_rng_state()
    initialize(model, generator=_generator(3), inputs=inputs)
    first = [parameter.detach().clone() for parameter in model.parameters()]
    initialize(model, generator=_generator(3), inputs=inputs)
    assert all(map(torch.equal, first, model.parameters()))
    assert torch.equal(torch.get_rng_state(), before)
    initialize(model, generator=_generator(4), inputs=inputs)
    assert not all(map(torch.equal, first, model.parameters()))


def test_without_a_generator_the_global_state_is_used() -> None:
    model = nn.Linear(7, 5)
    torch.manual_seed(1)
    initialize(model, "xavier_uniform")
    torch.manual_seed(1)
    assert torch.equal(model.weight, nn.init.xavier_uniform_(torch.empty(5, 7)))


def test_a_plan_and_an_initialization_work_on_the_meta_device() -> None:
    with torch.device("meta"):
        model, x = ResNet(), torch.randn(2, 3, 8, 8)
    real, batch = ResNet(), torch.randn(2, 3, 8, 8)
    before = torch.get_rng_state()
    assert _weights(plan(model, inputs=x)) == _weights(plan(real, inputs=batch))
    for name in scheme_names():
        assert all(row.variance_got is None for row in initialize(model, name, generator=_generator()))
    initialize(model)
    assert model.fc.weight.is_meta
    assert torch.equal(torch.get_rng_state(), before)


# ---- what is set, and what is left ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_a_plan_is_the_table_of_the_initialization_but_for_the_variance_got(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    planned, done = plan(model, inputs=inputs), initialize(model, generator=_generator(), inputs=inputs)
    assert len(planned) == len(done)
    for before, after in zip(planned, done, strict=True):
        assert before == type(before)(**{**vars(after), "variance_got": None})
    # Each row meets what it asks: of n entries the variance strays by sqrt(2/n), and by 1/n as the mean is taken out.
    for row in done:
        if row.fans is not None:
            count = math.prod(row.shape)
            assert row.variance_got == pytest.approx(row.variance_asked, rel=6 * math.sqrt(2 / count) + 1 / count)
        elif row.scheme == "zeros":
            assert row.variance_got == 0.0


def test_every_parameter_has_a_row_and_a_note_where_it_is_left() -> None:
    for case in MODELS:
        model = case.model()
        table = plan(model)
        named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        assert {row.parameter for row in table} == named
        assert all(row.note for row in table if row.scheme is None)


def test_biases_become_zero_the_forget_gates_too() -> None:
    model = nn.ModuleList([nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.Conv1d(2, 2, 2), nn.GRUCell(2, 2)])
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    table = initialize(model)
    biases = [row for row in table if "bias" in row.parameter]
    assert len(biases) == 2 + 2 + 1 + 2
    assert {row.scheme for row in biases} == {"zeros"}
    assert all(not parameter.any() for name, parameter in model.named_parameters() if "bias" in name)


def test_norms_embeddings_slopes_frozen_and_unknown_parameters_are_left_and_named() -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.position

    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

    parts = OrderedDict(
        embed=nn.Embedding(9, 6),
        position=Position(),
        norm=nn.LayerNorm(6),
        own_norm=LlamaRMSNorm(),
        slope=nn.PReLU(),
        frozen=nn.Linear(6, 6).requires_grad_(False),
        layer=nn.Linear(6, 6),
    )
    model = nn.Sequential(parts)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    table = initialize(model, "naive_normal")
    assert _left(table) == {
        "embed.weight": "embedding",
        "position.position": "its use in Position is not known",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "own_norm.weight": "norm",
        "slope.weight": "slope of the activation",
        "frozen.weight": "frozen",
        "frozen.bias": "frozen",
    }
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == set(_left(table))
    for note in _left(table).values():
        assert f"left: {note}" in str(table)


def test_a_tied_parameter_is_filled_once_under_its_first_name() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    table = initialize(model, generator=_generator(2))
    assert _left(table) == {"2.weight": "tied to 0.weight"}
    assert torch.equal(model[0].weight, init.he_normal_(torch.empty(5, 5), generator=_generator(2)))


def test_a_head_tied_to_an_embedding_is_left_unless_it_is_named_in_full() -> None:
    model = next(case for case in CASES if case.name == "tied weights").model()
    assert _left(plan(model)) == {"embedding.weight": "embedding", "head.weight": "tied to embedding.weight"}
    table = plan(model, {"head.weight": "lecun_normal", "*": "auto"})
    assert {row.parameter: row.scheme for row in table}["head.weight"] == "lecun_normal"


def test_each_gate_and_projection_is_orthogonal_by_itself() -> None:
    lstm, attention = nn.LSTM(8, 8), nn.MultiheadAttention(8, 2)
    initialize(lstm, "orthogonal")
    initialize(attention, "orthogonal")
    for weight, parts in ((lstm.weight_hh_l0, 4), (attention.in_proj_weight, 3)):
        for part in weight.detach().chunk(parts):
            assert torch.allclose(part @ part.T, torch.eye(8), atol=1e-5)


def test_each_group_of_a_convolution_is_one_matrix() -> None:
    conv = nn.Conv2d(8, 8, 3, groups=2, padding=1, bias=False)
    x = torch.randn(1, 8, 5, 5)
    initialize(conv, "identity")
    assert torch.equal(conv(x), x)
    table = initialize(conv, "delta_orthogonal")
    assert torch.allclose(conv(x).square().sum(), x.square().sum(), rtol=1e-4)
    assert table[0].variance_got == pytest.approx(table[0].variance_asked, rel=0.05)


def test_a_transposed_convolution_keeps_the_mean_square_that_torchs_fans_cut_to_an_eighth() -> None:
    layer = nn.ConvTranspose2d(16, 32, 4, stride=2, bias=False)
    x = torch.randn(8, 16, 16, 16, generator=_generator(1))
    inner = (slice(None), slice(None), slice(4, 28), slice(4, 28))
    initialize(layer, "he_normal", generator=_generator())
    assert layer(x)[inner].square().mean().item() == pytest.approx(2.0, rel=0.1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=_generator())
    assert layer(x)[inner].square().mean().item() == pytest.approx(0.25, rel=0.1)


RESET = {
    "Linear": lambda: nn.Linear(5, 7),
    "Conv2d": lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "Bilinear": lambda: nn.Bilinear(3, 4, 5),
    "RNN": lambda: nn.RNN(3, 4, 2),
    "LSTM": lambda: nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2),
    "GRU": lambda: nn.GRU(3, 4),
    "LSTMCell": lambda: nn.LSTMCell(3, 4),
    "no bias": lambda: nn.Linear(5, 7, bias=False),
    "half precision": lambda: nn.Linear(5, 7, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", RESET)
def test_torch_default_gives_each_module_what_its_reset_parameters_draws(name: str) -> None:
    module = RESET[name]()
    torch.manual_seed(7)
    module.reset_parameters()
    wanted = [parameter.detach().clone() for parameter in module.parameters()]
    torch.manual_seed(7)
    table = initialize(module, "torch_default")
    assert all(map(torch.equal, wanted, module.parameters()))
    assert {row.scheme for row in table} == {"torch_default"}


def test_torch_default_of_an_attention_is_one_xavier_draw_and_zero_biases() -> None:
    module = nn.MultiheadAttention(8, 2)
    torch.manual_seed(7)
    module._reset_parameters()
    wanted = module.in_proj_weight.detach().clone()
    torch.manual_seed(7)
    table = initialize(module, "torch_default")
    assert torch.equal(module.in_proj_weight, wanted)
    assert not module.in_proj_bias.any()
    assert not module.out_proj.bias.any()
    assert 0.3 < module.out_proj.weight.abs().max() <= 1 / math.sqrt(8)
    assert table[0].variance_asked == pytest.approx(1 / (2 * 8))  # half of what each of q, k, v would get alone


def test_patterns_choose_schemes_and_what_none_matches_is_left() -> None:
    model = FunctionalMLP()
    table = plan(model, {"fc1.*": "orthogonal", "fc?.weight": VarianceScaling(1.5), "head.weight": "auto"})
    schemes = {row.parameter: row.scheme for row in table}
    assert schemes["fc1.weight"] == "orthogonal"
    assert schemes["fc1.bias"] == "zeros"
    assert schemes["fc2.weight"] == "variance_scaling(1.5, fan_in, truncated_normal)"
    assert schemes["fc2.bias"] is None
    assert schemes["head.weight"] == GLOROT
    assert _left(table)["head.bias"] == "no pattern matches it"


def test_a_parameter_named_in_full_is_set_even_where_it_is_an_embedding_or_unknown() -> None:
    model = Classifier()
    model.query = nn.Parameter(torch.empty(4, 6))
    chosen = {"embedding.weight": "naive_normal", "query": get_scheme("lecun_uniform")}
    initialize(model, chosen, generator=_generator())
    assert not model.embedding.weight[0].any()  # the padding row stays zero
    assert model.embedding.weight[1:].std().item() == pytest.approx(1, rel=6 * math.sqrt(1 / (2 * 19 * 6)))
    assert model.query.abs().max() <= math.sqrt(3 / 6)


@pytest.mark.parametrize(
    ("wrap", "tolerance"), [(parametrizations.weight_norm, 1e-6), (parametrizations.orthogonal, None)]
)
def test_a_parametrized_weight_is_set_through_its_originals(
    wrap: Callable[[nn.Module], nn.Module], tolerance: float | None
) -> None:
    model = nn.Sequential(wrap(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2))
    table = initialize(model, generator=_generator())
    rows = {row.parameter: row for row in table}
    assert set(rows) == {"0.bias", "0.weight", "2.weight", "2.bias"}
    assert rows["0.weight"].note == "through its parametrization"
    if tolerance is not None:
        wanted = init.he_normal_(torch.empty(6, 6), generator=_generator())
        assert torch.allclose(model[0].weight, wanted, atol=tolerance)
    effective = model[0].weight.detach().double().var(correction=0).item()
    assert rows["0.weight"].variance_got == pytest.approx(effective, rel=1e-5)


def test_planning_a_spectral_norm_does_not_iterate_it() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(6, 6)).train()
    before = [buffer.clone() for buffer in layer.buffers()]
    for scheme in ("auto", "torch_default"):
        plan(layer, scheme)
    assert all(map(torch.equal, before, layer.buffers()))


def test_a_parametrization_that_takes_no_value_is_left_with_a_note() -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.triu() + weight.triu(1).mT

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    assert _left(initialize(layer)) == {"weight": "parametrized without a right inverse"}
    fixed = parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley", use_trivialization=False)
    before = fixed.weight.clone()
    assert _left(initialize(fixed)) == {"weight": "its parametrization takes no value"}
    assert torch.equal(fixed.weight, before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_computed_by_an_old_hook_is_left_and_says_so() -> None:
    layer = nn.utils.weight_norm(nn.Linear(4, 4))
    before = layer.weight_v.clone()
    note = "weight is computed from it by a hook (use torch.nn.utils.parametrizations)"
    assert _left(initialize(layer)) == dict.fromkeys(("weight_g", "weight_v"), note)
    assert torch.equal(layer.weight_v, before)
    pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    assert _left(initialize(pruned)) == {"weight_orig": note}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # torch's own, from Linear(0, 3)
def test_schemes_without_a_meaning_for_a_layer_leave_it() -> None:
    note = "identity has no meaning for Bilinear"
    assert _left(plan(nn.Bilinear(3, 3, 3), "identity")) == {"weight": note}
    assert _left(plan(nn.Linear(0, 3))) == {"weight": "it has no elements"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"scheme": "he_norml"},
            r"scheme='he_norml' is unknown \(did you mean 'he_normal'\?\); allowed: auto, ",
        ),
        ({"scheme": 3}, "scheme=3 is unknown"),
        ({"scheme": {"*": "glort_normal"}}, "did you mean 'glorot_normal'"),
        (
            {"scheme": {"fc9.weight": "auto"}},
            r"no parameter matches .* 'fc9.weight' \(did you mean 'fc4.weight'",
        ),
        ({"activation": "rleu"}, "did you mean 'relu'"),
    ],
)
def test_a_wrong_argument_is_told_in_one_sentence_and_touches_nothing(arguments: dict[str, Any], sentence: str) -> None:
    model = FunctionalMLP()
    before = _state(model)
    with pytest.raises(ValueError, match=sentence):
        initialize(model, **arguments)
    assert _equal(_state(model), before)


def test_a_lazy_layer_is_told_by_name() -> None:
    model = nn.Sequential(OrderedDict(body=nn.Linear(3, 3), head=nn.LazyLinear(2)))
    with pytest.raises(ValueError, match=r"model: head \(LazyLinear\) has no shape yet; run one forward first"):
        plan(model)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_initialize_on_cuda_leaves_its_random_state_alone_and_refuses_a_cpu_generator() -> None:
    model, x = ResNet().cuda(), torch.randn(2, 3, 8, 8, device="cuda")
    before = torch.cuda.get_rng_state()
    initialize(model, inputs=x, generator=torch.Generator("cuda").manual_seed(0))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with pytest.raises(ValueError, match="generator is on cpu, the tensor on cuda"):
        initialize(model, generator=_generator())


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_reads_as_aligned_plain_text_within_110_columns() -> None:
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), act=nn.ReLU(), rnn=nn.GRU(8, 4)))
    text = str(plan(model))
    assert (
        text
        == """\
parameter                 shape    fans in, out  followed by  scheme         var asked
──────────────────────────────────────────────────────────────────────────────────────
conv.weight               8×3×3×3        27, 72  relu         he_normal        0.07407
conv.bias                 8                                   zeros                  0
norm.weight               8        left: norm
norm.bias                 8        left: norm
rnn.weight_ih_l0[reset]   4×8              8, 4  sigmoid      glorot_normal     0.1667
rnn.weight_ih_l0[update]  4×8              8, 4  sigmoid      glorot_normal     0.1667
rnn.weight_ih_l0[new]     4×8              8, 4  tanh         glorot_normal     0.1667
rnn.weight_hh_l0[reset]   4×4              4, 4  sigmoid      glorot_normal       0.25
rnn.weight_hh_l0[update]  4×4              4, 4  sigmoid      glorot_normal       0.25
rnn.weight_hh_l0[new]     4×4              4, 4  tanh         glorot_normal       0.25
rnn.bias_ih_l0            12                                  zeros                  0
rnn.bias_hh_l0            12                                  zeros                  0
Followed by: the next activation in the order of definition (functions are not seen; pass inputs=)."""
    )
    assert repr(plan(model)) == text
    for model in (ResNet(), nn.TransformerEncoderLayer(8, 2)):
        assert max(map(len, str(initialize(model)).splitlines())) <= 110


def test_the_table_is_a_sequence_of_frozen_rows_and_an_html_table_that_escapes_names() -> None:
    table = initialize(nn.Linear(4, 2), generator=_generator())
    assert [row.parameter for row in table] == ["weight", "bias"]
    assert len(table) == 2
    row = table[0]
    assert row.fans == Fans(4, 2)
    assert row.fans.fan_avg == 3
    assert row.variance_asked == pytest.approx(1 / 3)
    with pytest.raises(AttributeError):
        row.note = "other"
    shown = InitPlan((type(row)("<weight>", "", (2, 4), note="a & b"),))._repr_html_()
    assert "&lt;weight&gt;" in shown
    assert "a &amp; b" in shown
    assert shown.count("<tr>") == 2


# ---- what it is for -------------------------------------------------------------------------------------------------


def test_auto_keeps_the_signal_through_20_relu_layers_where_torchs_default_loses_15_decades() -> None:
    depth, width, seeds = 20, 256, 12
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers)
    x = torch.randn(1, width, generator=_generator(9))
    x *= math.sqrt(width) / x.norm()

    def log_mean_squares(scheme: str) -> np.ndarray:
        logs = []
        for seed in range(seeds):
            initialize(model, scheme, generator=_generator(seed))
            with torch.no_grad():
                logs.append(math.log(model[:-1](x).double().square().mean().item()))
        return np.array(logs)

    # One net's log mean square is normal with variance v = 5·(depth - 1)/width + 2/width, and its mean is the
    # logarithm of the expected mean square less v/2 (Hanin & Nica 2020).
    variance = (5 * (depth - 1) + 2) / width
    spread = 5 * math.sqrt(variance / seeds)
    assert abs(log_mean_squares("auto").mean() - (math.log(2) - variance / 2)) < spread
    default = -math.log(3) - (depth - 1) * math.log(6)  # a variance of 1/(3·fan_in): a sixth is left at each ReLU
    assert abs(log_mean_squares("torch_default").mean() - (default - variance / 2)) < spread
    assert default / math.log(10) < -15
