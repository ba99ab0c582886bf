"""Schemes of whole models, each by what its paper promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope import init, probe, theory
from gradscope.init import (
    GPT2,
    IRNN,
    LSUV,
    Chrono,
    DeepNorm,
    EdgeOfChaos,
    Fixup,
    ForgetBias,
    Mimetic,
    ModelScheme,
    MuP,
    ScaledBranches,
    Siren,
    ZeroBranches,
    hadamard_,
    initialize,
    martens_sparse_,
    plan,
    scaled_orthogonal_,
)

WIDTH = 256


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(activation: Callable[[], nn.Module], depth: int, width: int = WIDTH) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """x + f(x), again and again, without norms."""

    def __init__(self, branches: int, width: int = 64, out: int = 0) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(branches))
        self.second = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(branches))
        self.head = nn.Linear(width, out) if out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(functional.relu(first(x)))
        y: Tensor = self.head(x)
        return y


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        y: Tensor = self.out((scores @ v).transpose(1, 2).flatten(2))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        y: Tensor = x + self.down(functional.gelu(self.up(self.norm_2(x))))
        return y


def transformer(blocks: int, width: int = 64) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(blocks)))


class Convolutions(nn.Module):
    """Residual blocks with batch norms, of which the second has a projection as its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a1, self.an1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.a2, self.an2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b1, self.bn1 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.b2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.short, self.head = nn.Conv2d(16, 32, 1, stride=2), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.an2(self.a2(functional.relu(self.an1(self.a1(x))))))
        y = self.bn2(self.b2(functional.relu(self.bn1(self.b1(x)))))
        y += self.short(x)
        out: Tensor = self.head(functional.relu(y).mean((2, 3)))
        return out


# --- residual branches ------------------------------------------------------------------------------------


def branches_of(model: nn.Module, inputs: Any) -> list[tuple[str, ...]]:
    from gradscope.init._model_schemes._branches import branches

    return [branch.weights for branch in branches(model, inputs).branches]


def test_the_branches_of_a_transformer_are_its_attentions_and_its_feed_forwards() -> None:
    model = transformer(2)
    found = branches_of(model, torch.randn(2, 5, 64, generator=seeded(0)))
    attention = tuple(f"{name}.weight" for name in ("q", "k", "v", "out"))
    feed_forward = ("up.weight", "down.weight")
    assert [tuple(sorted(weights)) for weights in found] == [
        tuple(sorted(f"{i}.{name}" for name in names)) for i in range(2) for names in (attention, feed_forward)
    ]
    assert [weights[-1] for weights in found] == ["0.out.weight", "0.down.weight", "1.out.weight", "1.down.weight"]


def test_queries_and_keys_alone_are_for_the_scores() -> None:
    from gradscope.init._model_schemes._branches import branches

    inputs = torch.randn(2, 5, 64, generator=seeded(0))
    by_hand = branches(transformer(1), inputs).branches[0].scores
    assert by_hand == {"0.q.weight", "0.k.weight"}
    torchs = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    found = branches(torchs, inputs).branches
    assert [branch.scores for branch in found] == [frozenset(), frozenset()], "packed: one weight for all three"
    assert found[0].weights == ("self_attn.in_proj_weight", "self_attn.out_proj.weight")


def test_queries_and_keys_of_a_fused_attention_are_for_the_scores_too() -> None:
    from gradscope.init._model_schemes._branches import branches

    class Fused(Block):
        def attention(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            y: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return y

    found = branches(nn.Sequential(Fused(64)), torch.randn(2, 5, 64, generator=seeded(0))).branches[0]
    assert found.scores == {"0.q.weight", "0.k.weight"}
    assert found.layers == ("0.v.weight", "0.out.weight")


def test_a_projected_shortcut_is_no_branch_and_the_longer_way_is() -> None:
    model = Convolutions()
    found = branches_of(model, torch.randn(2, 3, 8, 8, generator=seeded(0)))
    assert found == [("a1.weight", "a2.weight"), ("b1.weight", "b2.weight")]


def test_sums_of_embeddings_and_concatenations_are_no_residual_sums() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.place, self.out = nn.Embedding(9, 8), nn.Embedding(9, 8), nn.Linear(16, 4)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.token(ids) + self.place(torch.arange(ids.shape[1]))
            y: Tensor = self.out(torch.cat([x, functional.relu(x)], -1))
            return y

    assert branches_of(Tokens(), torch.zeros(2, 5, dtype=torch.long)) == []


def test_layers_that_share_their_weights_are_as_many_branches() -> None:
    block = Block(64)
    found = branches_of(nn.Sequential(block, block, block), torch.randn(2, 5, 64, generator=seeded(0)))
    assert len(found) == 6
    assert found[0] == found[2] == found[4]


def test_a_model_of_transformers_has_two_branches_a_layer() -> None:
    hf = pytest.importorskip("transformers")
    config = hf.GPT2Config(
        n_layer=3, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = hf.GPT2LMHeadModel(config)
    found = branches_of(model, {"input_ids": torch.randint(0, 50, (2, 8), generator=seeded(0))})
    assert [weights[-1].removeprefix("transformer.h.") for weights in found] == [
        f"{i}.{part}.c_proj.weight" for i in range(3) for part in ("attn", "mlp")
    ]


# --- edge of chaos ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "elu", "selu", "relu"])
def test_the_edge_of_chaos_has_the_profiles_that_theory_gives_it_both_ways(activation: str) -> None:
    """Geometric means over 6 networks within 5 standard errors of mean-field theory at depth 30."""
    depth, width, seeds, q = 30, 256, 6, 1.0
    kinds = {"tanh": nn.Tanh, "elu": nn.ELU, "selu": nn.SELU, "relu": nn.ReLU}
    point = theory.critical_at(activation, q)
    assert point is not None
    expected = theory.propagate(
        activation,
        depth,
        weight_variance=np.array([q, *[point.sigma_w2] * (depth - 1)]) / width,
        fan_in=width,
        bias_variance=np.array([0.0, *[point.sigma_b2] * (depth - 1)]),
    )
    forward, backward = [], []
    for seed in range(seeds):
        model = plain(kinds[activation], depth, width)
        initialize(model, EdgeOfChaos(q), generator=seeded(seed))
        x = torch.randn(1, width, generator=seeded(100 + seed))
        recording = probe(model, x / x.square().mean().sqrt())
        (pre,) = recording.values("activation", "rms")
        (grad,) = recording.values("activation_grad", "rms")
        layers = [i for i, site in enumerate(recording.sites_of("activation")) if site.module_type == "Linear"]
        back = [i for i, site in enumerate(recording.sites_of("activation_grad")) if site.module_type == "Linear"]
        forward.append(2.0 * np.log(pre[layers]))
        backward.append(2.0 * np.log(grad[back] / grad[back[-1]]))
    for found, decades, var in (
        (forward, expected.pre, expected.forward_var),
        (backward, expected.pre_grad, expected.backward_var),
    ):
        off = np.mean(found, axis=0) - 2.0 * math.log(10.0) * decades + var / 2.0
        assert np.all(np.abs(off) < 5.0 * np.sqrt((var + 2.0 / width) / seeds)), off
    assert abs(expected.pre_grad[0]) < 0.01, "at the edge a gradient is kept"


def test_an_activation_without_a_critical_point_is_told_where_there_is_one() -> None:
    with pytest.raises(ValueError, match=r"q=1: sigmoid has no critical point there, .* from q = 4[0-9]"):
        initialize(plain(nn.Sigmoid, 3), "edge_of_chaos")
    with pytest.raises(ValueError, match=r"q=0\.0 must be finite and above 0"):
        EdgeOfChaos(0.0)


# --- LSUV -------------------------------------------------------------------------------------------------


def test_lsuv_gives_each_layer_unit_variance_and_leaves_the_gradient_of_a_sigmoid_net_to_vanish() -> None:
    model, inputs = plain(nn.Sigmoid, 30), torch.randn(64, WIDTH, generator=seeded(0))
    table = initialize(model, LSUV(tolerance=0.001), generator=seeded(1), inputs=inputs)
    x = inputs
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                assert abs(float(x.double().var(correction=0)) - 1.0) <= 0.001
    (grad,) = probe(model, inputs).values("activation_grad", "rms")
    assert 1e-26 < (grad[0] / grad[-1]) ** 2 < 1e-20, "the square shrinks to about 1e-23 over 30 layers"
    assert all(row.note.endswith("→ 1") for row in table if row.parameter.endswith("weight"))


def test_lsuv_scales_convolutions_and_a_shared_layer_once() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), shared, nn.ReLU(), shared)
    inputs = 5.0 * torch.randn(4, 3, 12, 12, generator=seeded(0))
    initialize(model, "lsuv", generator=seeded(1), inputs=inputs)
    with torch.no_grad():
        first = model[0](inputs)
        assert abs(float(first.var(correction=0)) - 1.0) <= 0.1
        assert abs(float(shared(functional.relu(first)).var(correction=0)) - 1.0) <= 0.1


def test_lsuv_asks_for_a_batch() -> None:
    with pytest.raises(ValueError, match="inputs is None; lsuv takes one batch"):
        initialize(plain(nn.ReLU, 2), "lsuv")


def test_lsuv_says_what_it_could_not_scale() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    table = initialize(model, "lsuv", generator=seeded(0), inputs=torch.zeros(3, 4))
    assert [row.note for row in table if row.parameter == "0.weight"] == [
        "its outputs have variance 0: left at the orthogonal start"
    ]


# --- residual schemes -------------------------------------------------------------------------------------


def first_update(scheme: ModelScheme, branches: int) -> float:
    """Rms of what one step of gradient descent adds to the stream behind all branches."""
    model = Residual(branches)
    inputs = torch.randn(32, 64, generator=seeded(0))
    initialize(model, scheme, generator=seeded(1), inputs=inputs)
    target = torch.randn(32, 64, generator=seeded(2))
    before = model(inputs)
    ((before * target).sum() / 32).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
        return float((model(inputs) - before).square().mean().sqrt())


def test_the_first_update_under_fixup_does_not_depend_on_the_number_of_branches() -> None:
    """Where the branches only begin at 0, eight times as many of them move it eight times as far."""
    fixup = first_update(Fixup(), 64) / first_update(Fixup(), 8)
    zeros = first_update(ZeroBranches("he_normal"), 64) / first_update(ZeroBranches("he_normal"), 8)
    assert 0.8 < fixup < 1.25
    assert zeros > 6.0


def test_a_parametrized_weight_is_found_by_its_own_name() -> None:
    model, inputs = Residual(4), torch.randn(2, 64, generator=seeded(0))
    nn.utils.parametrizations.weight_norm(model.first[1])
    rows = {row.parameter: row for row in initialize(model, "fixup", generator=seeded(0), inputs=inputs)}
    assert rows["first.1.weight"].variance_asked == pytest.approx(2.0 / 64 / 4)


def test_what_cannot_be_set_or_is_frozen_is_left() -> None:
    model, pictures = Convolutions(), torch.randn(2, 3, 8, 8, generator=seeded(0))
    model.an2.weight.requires_grad_(False)
    initialize(model, "zero_branches", generator=seeded(0), inputs=pictures)
    assert torch.all(model.an2.weight == 1)
    assert torch.count_nonzero(model.bn2.weight) == 0


def test_the_padding_of_an_embedding_stays_zero() -> None:
    model = nn.Sequential(nn.Embedding(20, 64, padding_idx=3), transformer(2))
    for scheme in ("gpt2", "t_fixup"):
        initialize(model, scheme, generator=seeded(0), inputs=torch.zeros(2, 5, dtype=torch.long))
        assert torch.count_nonzero(model[0].weight[3]) == 0
        assert torch.count_nonzero(model[0].weight) == 19 * 64


def test_packed_queries_and_keys_are_no_layers_of_a_branch() -> None:
    layers = [nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True) for _ in range(4)]
    inputs = torch.randn(2, 5, 32, generator=seeded(0))
    rows = {(row.parameter, row.block): row for row in plan(nn.Sequential(*layers), "fixup", inputs=inputs)}
    asked = {block: rows["0.self_attn.in_proj_weight", block].variance_asked for block in "qkv"}
    assert asked["q"] == asked["k"] == pytest.approx(2 / 32)
    assert asked["v"] == pytest.approx(2 / 32 / 8)  # 8 branches of two layers


def test_fixup_scales_by_its_formula_and_begins_with_an_output_of_zero() -> None:
    model, inputs = Residual(16, out=10), torch.randn(2, 64, generator=seeded(0))
    rows = {row.parameter: row for row in initialize(model, "fixup", generator=seeded(0), inputs=inputs)}
    assert rows["first.3.weight"].variance_asked == pytest.approx(2.0 / 64 * 16.0**-1)  # m = 2: L^(-1/2) squared
    assert rows["second.3.weight"].variance_got == rows["head.weight"].variance_got == 0.0
    assert torch.count_nonzero(model(inputs)) == 0


def test_zero_branches_make_a_deep_net_begin_as_the_identity() -> None:
    inputs = torch.randn(2, 5, 64, generator=seeded(0))
    model = transformer(4)
    initialize(model, "zero_branches", generator=seeded(0), inputs=inputs)
    assert torch.equal(model(inputs), inputs)
    pictures, convolutions = torch.randn(2, 3, 8, 8, generator=seeded(0)), Convolutions()
    initialize(convolutions, "zero_gamma", generator=seeded(0), inputs=pictures)
    assert torch.count_nonzero(convolutions.an2.weight) == torch.count_nonzero(convolutions.bn2.weight) == 0
    assert torch.all(convolutions.an1.weight == 1), "only the norm at the end of a branch"
    assert float(convolutions.a2.weight.detach().std()) > 0


def test_a_factor_at_the_end_of_a_branch_is_what_rezero_sets() -> None:
    class ReZero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.factor = nn.Linear(8, 8), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.factor * torch.tanh(self.layer(x))

    model, inputs = nn.Sequential(ReZero(), ReZero()), torch.randn(3, 8, generator=seeded(0))
    initialize(model, "rezero", generator=seeded(0), inputs=inputs)
    assert torch.equal(model(inputs), inputs)
    assert float(model[0].layer.weight.detach().std()) > 0


@pytest.mark.parametrize("scheme", [GPT2(), ScaledBranches()])
def test_scaled_branches_add_as_much_to_the_stream_at_any_depth(scheme: ModelScheme) -> None:
    """Sixteen times as many branches, the same mean square of what all of them add, within a fifth."""

    def added(blocks: int) -> float:
        model, inputs = transformer(blocks), torch.randn(8, 16, 64, generator=seeded(0))
        initialize(model, scheme, generator=seeded(1), inputs=inputs)
        with torch.no_grad():
            return float((model(inputs) - inputs).square().mean())

    assert 0.8 < added(32) / added(2) < 1.25


def test_gpt2_draws_everything_with_one_standard_deviation_and_ends_of_branches_with_less() -> None:
    model = nn.Sequential(nn.Embedding(100, 64), transformer(6))
    table = initialize(model, "gpt2", generator=seeded(0), inputs=torch.zeros(2, 5, dtype=torch.long))
    asked = {row.parameter: row.variance_asked for row in table}
    assert asked["0.weight"] == asked["1.3.q.weight"] == asked["1.3.up.weight"] == pytest.approx(0.02**2)
    assert asked["1.3.out.weight"] == asked["1.3.down.weight"] == pytest.approx(0.02**2 / 12)


def test_residual_schemes_say_what_they_miss() -> None:
    for name in ("fixup", "zero_branches", "gpt2", "scaled_branches"):
        with pytest.raises(ValueError, match=rf"inputs is None; {name} takes one batch, to see the residual branches"):
            initialize(plain(nn.ReLU, 3), name)
        with pytest.raises(ValueError, match=r"model has no residual branch x \+ f\(x\)"):
            initialize(plain(nn.ReLU, 3), name, inputs=torch.zeros(2, WIDTH))


# --- transformers -----------------------------------------------------------------------------------------


def factors(model: nn.Module, scheme: str, inputs: Any = None) -> dict[str, float]:
    """(asked standard deviation)/(Glorot's) of each parameter and block."""
    ours, glorot = plan(model, scheme, inputs=inputs), plan(model, "glorot_normal", inputs=inputs)
    return {
        f"{one.parameter}[{one.block}]": math.sqrt(one.variance_asked / other.variance_asked)
        for one, other in zip(ours, glorot, strict=True)
        if one.variance_asked and other.variance_asked
    }


def test_t_fixup_and_deep_norm_scale_values_outputs_and_feed_forwards_of_both_stacks_by_their_formulas() -> None:
    model = nn.Transformer(32, 2, num_encoder_layers=5, num_decoder_layers=3, dim_feedforward=64, batch_first=True)
    for scheme, encoder, decoder in (
        ("t_fixup", 0.4480560, 0.4386913),
        ("deep_norm", 0.5431961, 0.4082483),
    ):
        found = factors(model, scheme)
        for i in range(5):
            start = f"encoder.layers.{i}"
            for name in ("self_attn.in_proj_weight[v]", "self_attn.out_proj.weight[]", "linear1.weight[]"):
                assert found[f"{start}.{name}"] == pytest.approx(encoder)
            for name in ("self_attn.in_proj_weight[q]", "self_attn.in_proj_weight[k]"):
                assert found[f"{start}.{name}"] == pytest.approx(1.0)
        for name in ("multihead_attn.in_proj_weight[v]", "multihead_attn.out_proj.weight[]", "linear2.weight[]"):
            assert found[f"decoder.layers.2.{name}"] == pytest.approx(decoder)


def test_a_transformer_of_any_make_is_scaled_as_one_stack() -> None:
    found = factors(transformer(4), "deep_norm", torch.randn(2, 5, 64, generator=seeded(0)))
    beta = 32**-0.25
    assert found["2.v.weight[]"] == found["2.out.weight[]"] == found["2.up.weight[]"] == pytest.approx(beta)
    assert found["2.q.weight[]"] == found["2.k.weight[]"] == pytest.approx(1.0)
    assert DeepNorm.alphas(4) == pytest.approx((8**0.25, 8**0.25))


def test_t_fixup_draws_embeddings_by_their_width_and_the_depth() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 6)
    model = nn.Sequential(nn.Embedding(1000, 32), encoder)
    table = {row.parameter: row for row in initialize(model, "t_fixup", generator=seeded(0))}
    assert table["0.weight"].variance_asked == pytest.approx(1 / 32 * (9 * 6) ** -0.5)
    assert table["0.weight"].variance_got == pytest.approx(1 / 32 * (9 * 6) ** -0.5, rel=5 * math.sqrt(2 / 32000))


def test_mimetic_attention_has_the_products_of_its_formula() -> None:
    width, sample = 128, 1.0 / 128
    model = nn.MultiheadAttention(width, 1, batch_first=True)
    initialize(model, Mimetic(), generator=seeded(0))
    q, k, v = model.in_proj_weight.detach().chunk(3)
    for product, alpha, beta in ((q.T @ k, 0.7, 0.7), (model.out_proj.weight.detach() @ v, 0.4, -0.4)):
        diagonal, off = product.diagonal(), product[~torch.eye(width, dtype=torch.bool)]
        assert float(diagonal.mean()) == pytest.approx(beta, abs=5 * alpha * sample)
        assert float(off.square().mean()) == pytest.approx(alpha**2 / width, rel=5 * math.sqrt(2.0) * sample)


def test_mimetic_heads_have_the_nearest_products_of_their_rank() -> None:
    model = nn.MultiheadAttention(64, 4, batch_first=True)
    initialize(model, "mimetic", generator=seeded(0))
    q, k, _ = model.in_proj_weight.detach().chunk(3)
    for q_head, k_head in zip(q.chunk(4), k.chunk(4), strict=True):
        product = q_head.T @ k_head
        assert int(torch.linalg.matrix_rank(product)) == 16
        assert float(product.diagonal().mean()) > 0.1, "tokens look at tokens that are like themselves"


# --- muP --------------------------------------------------------------------------------------------------


class Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.hidden, self.out = nn.Linear(20, width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(functional.relu(self.hidden(functional.relu(self.into(x)))))
        return y


def moved(width: int, mup: bool) -> float:
    """How far the outputs have moved after 5 steps of Adam, rms."""
    model, base = Perceptron(width), MuP(Perceptron(64))
    initialize(model, base if mup else "auto", generator=seeded(0), inputs=torch.zeros(2, 20))
    x, y = torch.randn(64, 20, generator=seeded(1)), torch.randn(64, 5, generator=seeded(2))
    optimizer = torch.optim.Adam(base.param_groups(model, 1e-2) if mup else model.parameters(), lr=1e-2)
    start = model(x).detach()
    for _ in range(5):
        optimizer.zero_grad()
        functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return float((model(x) - start).detach().square().mean().sqrt())


def test_under_mup_outputs_move_as_far_at_any_width() -> None:
    """The coordinate check of Yang et al. (2021), from width 64 to 1,024; without it outputs move twice as far."""
    assert 0.5 < moved(1024, True) / moved(64, True) < 1.5
    assert moved(1024, False) / moved(64, False) > 2.0


def test_mup_scales_output_weights_alone() -> None:
    wide, base = Perceptron(256), Perceptron(64)
    ours = {row.parameter: row.variance_asked for row in plan(wide, MuP(base))}
    small = {row.parameter: row.variance_asked for row in plan(base)}
    assert ours["out.weight"] == pytest.approx(small["out.weight"] / 16)  # m² of m = 4
    assert ours["hidden.weight"] == pytest.approx(small["hidden.weight"] / 4)
    assert ours["into.weight"] == pytest.approx(small["into.weight"]), "no width is in an input weight"
    alone = {row.parameter: row.variance_asked for row in plan(wide, "mup")}
    assert alone["out.weight"] == pytest.approx(1 / 256**2)
    assert alone["hidden.weight"] == pytest.approx(1 / 256)
    groups = {id(p): group["lr"] for group in MuP(base).param_groups(wide, 0.1) for p in group["params"]}
    assert groups[id(wide.into.weight)] == groups[id(wide.out.bias)] == 0.1
    assert groups[id(wide.hidden.weight)] == groups[id(wide.out.weight)] == 0.025
    with pytest.raises(ValueError, match=r"base has no parameter 'into.weight'"):
        plan(wide, MuP(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="base is None"):
        MuP().param_groups(wide, 0.1)


# --- sines ------------------------------------------------------------------------------------------------


def test_a_siren_has_normal_pre_activations_and_arcsine_activations_at_any_depth() -> None:
    """Variances 1 and 1/2 within five standard errors of 256 units, kurtosis of the arcsine distribution 1.5."""

    class Sine(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.sin(30.0 * z)

    layers: list[nn.Module] = [nn.Linear(2, WIDTH), Sine()]
    for _ in range(5):
        layers += [nn.Linear(WIDTH, WIDTH), Sine()]
    model = nn.Sequential(*layers)
    initialize(model, "siren", generator=seeded(0))
    x = torch.rand(2000, 2, generator=seeded(1)) * 2 - 1
    with torch.no_grad():
        for i, layer in enumerate(model):
            x = layer(x)
            if i < 2:
                continue
            if isinstance(layer, nn.Linear):  # the biases are torch's, as in the authors' code
                assert float((30.0 * (x - layer.bias)).var()) == pytest.approx(1.0, rel=5 * math.sqrt(2 / WIDTH))
            else:
                assert float(x.var()) == pytest.approx(0.5, rel=5 * math.sqrt(0.5 / WIDTH))
                assert float(x.pow(4).mean() / x.square().mean() ** 2) == pytest.approx(1.5, rel=0.1)
    assert Siren(1.0).omega == 1.0
    with pytest.raises(ValueError, match="omega=0 must be finite and above 0"):
        Siren(0)


# --- recurrent layers -------------------------------------------------------------------------------------


def kept_over_time(model: nn.RNNBase, steps: int) -> float:
    """Rms of dL/d(first state) over that of dL/d(last state), for a random direction at the end."""
    size = model.hidden_size
    state = torch.full((1, 1, size), 0.5, requires_grad=True)
    inputs = torch.randn(steps, 1, model.input_size, generator=seeded(5))
    if isinstance(model, nn.LSTM):
        cell = torch.zeros(1, 1, size, requires_grad=True)
        _, (_, end) = model(inputs, (torch.zeros(1, 1, size), cell))
        state = cell
    else:
        end = model(inputs, state)[1]
    direction = torch.randn(size, generator=seeded(6))
    (grad,) = torch.autograd.grad((end.flatten() * direction).sum(), state)
    return float(grad.square().mean().sqrt() / direction.square().mean().sqrt())


def test_an_irnn_keeps_a_gradient_over_200_steps_of_which_the_default_leaves_nothing() -> None:
    model = nn.RNN(10, 100, nonlinearity="relu")
    initialize(model, "irnn", generator=seeded(0))
    assert torch.equal(model.weight_hh_l0.detach(), torch.eye(100))
    assert float(model.weight_ih_l0.detach().std()) == pytest.approx(0.001, rel=5 / math.sqrt(2000))
    assert kept_over_time(model, 200) > 0.5
    torch.manual_seed(0)
    assert kept_over_time(nn.RNN(10, 100), 200) < 1e-25
    assert IRNN(0.9).scale == 0.9
    with pytest.raises(ValueError, match="model has no RNN; irnn sets its recurrent weights"):
        initialize(nn.LSTM(2, 2), "irnn")


def test_a_forget_bias_carries_an_lstms_gradient_over_100_steps() -> None:
    """Jozefowicz et al. (2015): from the default's 1e-21 to 1e-6 with 1 and to .4 with 2; chrono .2."""
    torch.manual_seed(0)
    default = nn.LSTM(10, 100)
    found = {"default": kept_over_time(default, 100)}
    for name, scheme in (("1", ForgetBias()), ("2.5", ForgetBias(2.5)), ("chrono", Chrono(100))):
        model = nn.LSTM(10, 100)
        initialize(model, scheme, generator=seeded(0))
        found[name] = kept_over_time(model, 100)
    assert found["default"] < 1e-12
    assert 1e3 * found["default"] < found["1"] < 0.1 * found["2.5"]
    assert found["chrono"] > 0.01


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_gate_biases_stand_beside_the_input_and_nowhere_else(kind: type[nn.Module]) -> None:
    model = kind(4, 50)
    initialize(model, Chrono(30.0), generator=seeded(0))
    biases = {name: p.detach() for name, p in model.named_parameters() if "bias" in name}
    beside_state = next(value for name, value in biases.items() if "hh" in name)
    assert torch.count_nonzero(beside_state) == 0
    gates = next(value for name, value in biases.items() if "ih" in name).chunk(4 if "LSTM" in kind.__name__ else 3)
    keeping = gates[1]
    scales = keeping.double().exp().sort().values  # uniform on [1, 29]
    expected = torch.linspace(1.0, 29.0, 50, dtype=torch.float64)
    assert float((scales - expected).abs().max()) < 28.0 * 1.95 / math.sqrt(50)  # Kolmogorov–Smirnov, one in a thousand
    if "LSTM" in kind.__name__:
        assert torch.equal(gates[0], -keeping)
    assert all(torch.count_nonzero(gate) == 0 for gate in gates[2:])
    hidden = next(p.detach() for name, p in model.named_parameters() if "weight_hh" in name)
    for gate in hidden.split(50):
        assert torch.allclose(gate @ gate.T, torch.eye(50), atol=1e-5), "orthogonal gate by gate"


def test_gate_schemes_say_where_there_is_no_gate() -> None:
    with pytest.raises(ValueError, match="model has no LSTM and no GRU; forget_bias sets the biases of their gates"):
        initialize(nn.RNN(2, 2), "forget_bias")
    with pytest.raises(ValueError, match="have bias=False; chrono sets"):
        initialize(nn.LSTM(2, 2, bias=False), "chrono")
    with pytest.raises(ValueError, match=r"longest=2 must be finite and above 2"):
        Chrono(2)


# --- single weights ---------------------------------------------------------------------------------------


def test_martens_sparse_weights_listen_to_15_inputs_whatever_the_width_and_come_from_the_generator() -> None:
    weight = martens_sparse_(torch.empty(300, 1000), generator=seeded(0))
    assert torch.equal((weight != 0).sum(1), torch.full((300,), 15))
    assert float(weight[weight != 0].var()) == pytest.approx(1.0, rel=5 * math.sqrt(2 / 4500))
    torch.manual_seed(1)
    assert torch.equal(weight, martens_sparse_(torch.empty(300, 1000), generator=seeded(0)))
    assert torch.count_nonzero(martens_sparse_(torch.empty(4, 3), generator=seeded(0))) == 12
    with pytest.raises(ValueError, match="nonzeros=0 must be at least 1"):
        martens_sparse_(torch.empty(4, 3), 0)


@pytest.mark.parametrize(("rows", "cols"), [(8, 8), (12, 5), (64, 16), (5, 12), (100, 3)])
def test_hadamard_weights_are_not_drawn_and_have_full_rank(rows: int, cols: int) -> None:
    weight = hadamard_(torch.empty(rows, cols))
    assert torch.equal(weight, hadamard_(torch.empty(rows, cols)))
    assert int(torch.linalg.matrix_rank(weight)) == min(rows, cols)
    if rows <= cols:
        assert torch.equal(weight, torch.eye(rows, cols))
    else:
        power = 2 ** math.ceil(math.log2(rows))
        assert torch.allclose(weight.square().sum(0), torch.full((cols,), rows / power))
    if rows > cols and power == rows:
        assert torch.allclose(weight.T @ weight, torch.eye(cols), atol=1e-6)


@pytest.mark.parametrize(("rows", "cols"), [(100, 400), (400, 100), (64, 64)])
def test_scaled_orthogonal_weights_keep_the_mean_square_where_orthogonal_ones_lose_it(rows: int, cols: int) -> None:
    x = torch.randn(cols, dtype=torch.float64, generator=seeded(0))
    weight = scaled_orthogonal_(torch.empty(rows, cols, dtype=torch.float64), generator=seeded(1))
    ratio = float((weight @ x).square().mean() / x.square().mean())
    if rows >= cols:
        assert ratio == pytest.approx(1.0, abs=1e-12)
    else:
        assert ratio == pytest.approx(1.0, rel=5 * math.sqrt(2 / rows))


# --- all of them ------------------------------------------------------------------------------------------

RECURRENT = {"chrono": nn.LSTM, "forget_bias": nn.GRU, "irnn": nn.RNN}
PLAIN = {"edge_of_chaos": nn.Tanh, "siren": nn.Tanh, "lsuv": nn.ReLU, "mup": nn.ReLU}


def made_for(name: str, width: int = 8) -> tuple[nn.Module, Any]:
    if name in RECURRENT:
        return RECURRENT[name](4, width), torch.zeros(3, 2, 4)
    if name in PLAIN:
        return plain(PLAIN[name], 3, width), torch.randn(4, width, generator=seeded(3))
    tokens = torch.randn(2, 3, width, generator=seeded(3))
    if name == "mimetic":
        return nn.TransformerEncoderLayer(width, 2, 16, batch_first=True), tokens
    return transformer(2, width), tokens


@pytest.mark.parametrize("name", init.model_scheme_names())
def test_a_scheme_of_a_whole_model_is_reproducible_planned_and_leaves_the_random_state_alone(name: str) -> None:
    tables, states = [], []
    before = torch.get_rng_state()
    for _ in range(2):
        model, inputs = made_for(name)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        tables.append(initialize(model, name, generator=seeded(0), inputs=inputs))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    model, inputs = made_for(name)
    planned = plan(model, name, inputs=inputs)
    assert [row.parameter for row in planned] == [row.parameter for row in tables[0]]
    for row, ready in zip(planned, tables[0], strict=True):
        if ready.scheme != "lsuv":
            assert (row.scheme, row.variance_asked, row.note) == (ready.scheme, ready.variance_asked, ready.note)


@pytest.mark.parametrize("name", init.model_scheme_names())
def test_what_a_whole_models_scheme_asks_for_is_what_the_weights_have(name: str) -> None:
    model, inputs = made_for(name, 64)
    for row in initialize(model, name, generator=seeded(0), inputs=inputs):
        size = math.prod(row.shape)
        if row.variance_asked is not None and row.scheme is not None:
            assert row.variance_got is not None
            near = (6 * math.sqrt(2 / size) + 1 / size) * row.variance_asked
            assert row.variance_got == pytest.approx(row.variance_asked, abs=near), row
        if row.asked is not None:
            value = dict(model.named_parameters())[row.parameter].detach().double()
            assert float(value.square().mean()) == pytest.approx(row.asked[0], rel=6 / math.sqrt(size), abs=1e-12), row
            assert float(value.mean()) == pytest.approx(row.asked[1], rel=6 / math.sqrt(size), abs=1e-2), row


def test_a_scheme_of_a_whole_model_is_refused_for_a_pattern_of_names() -> None:
    with pytest.raises(ValueError, match="scheme: 'fixup' is for a whole model"):
        initialize(plain(nn.ReLU, 2), {"0.*": "fixup"})


def test_an_unknown_scheme_is_told_the_nearest_of_both_kinds() -> None:
    with pytest.raises(ValueError, match="did you mean 'fixup'"):
        initialize(plain(nn.ReLU, 2), "fixupp")
    with pytest.raises(ValueError, match="did you mean 'he_normal'"):
        initialize(plain(nn.ReLU, 2), "he_norml")


def test_every_scheme_of_a_whole_model_names_its_paper() -> None:
    for name in init.model_scheme_names():
        kind = next(one for one in vars(init).values() if isinstance(one, type) and getattr(one, "name", "") == name)
        assert kind.paper
        assert kind.__doc__
