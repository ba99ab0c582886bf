"""Predictions position by position, where positions are not alike, against what is measured at each of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope import predict, probe
from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._grid import CDF
from gradscope.theory.prediction._mixture import mixture
from gradscope.theory.prediction._places import Places, classes, membership
from gradscope.theory.prediction._prediction import predicted
from gradscope.theory.prediction._value import Atom, Root, Value
from gradscope.theory.prediction._visible import Visible
from tests.test_prediction import Call, Made, Residual, gated, gelu_by_hand, rms_norm_by_hand

INPUTS, TOKENS, WIDTH = 32, 12, 256


# --- against a measurement, at each position ----------------------------------------------------------------


class Led(nn.Module):
    """Tokens after one, or two, whose entries are parameters, of another size than theirs."""

    def __init__(self, size: float, tokens: int = 1) -> None:
        super().__init__()
        self.token = nn.Parameter(size * torch.randn(1, tokens, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Placed(nn.Module):
    """A parameter for each position is added."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(0.5 * torch.randn(1, TOKENS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places


class Causal(nn.Module):
    """Causal attention whose queries, keys and values are sites of their own."""

    def __init__(self, width: int = WIDTH, scale: float = 1.0) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y: Tensor = functional.scaled_dot_product_attention(self.scale * q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)


class Full(Causal):
    """The same without a mask."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Window(Causal):
    """The same, of the last four tokens."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril().triu(-3)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Added(nn.Module):
    """x + what a branch makes of it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


def linear(scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


def chain(*operations: Callable[[], nn.Module]) -> Callable[[], Made]:
    """Operations between two linear layers."""
    return lambda: (
        nn.Sequential(linear(), *(make() for make in operations), linear()),
        torch.randn(INPUTS, TOKENS, WIDTH),
    )


def call(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Call(function)


def led(size: float, tokens: int = 1) -> Callable[[], nn.Module]:
    return lambda: Led(size, tokens)


def norm(eps: float = 1e-5) -> Callable[[], nn.Module]:
    return lambda: nn.LayerNorm(WIDTH, eps=eps)


OPERATIONS: dict[str, Callable[[], Made]] = {
    "a token before the others": chain(led(0.01), norm()),
    "large tokens before the others": chain(led(3.0, 2), norm()),
    "a token after the others": chain(call(lambda x: torch.cat([x, 5.0 * x[:, :1]], 1)), norm()),
    "sequences one after another": chain(call(lambda x: torch.cat([x, -0.3 * x], 1)), norm()),
    "a layer norm with a large eps": chain(led(0.1), norm(0.3)),
    "an rms norm": chain(led(0.1), lambda: nn.RMSNorm(WIDTH)),
    "an rms norm by hand": chain(led(0.1), call(rms_norm_by_hand)),
    "an rms norm by hand, then an activation": chain(led(0.1), call(rms_norm_by_hand), call(gelu_by_hand)),
    "an activation of a degree": chain(led(0.1), nn.ReLU, norm()),
    "a weighted norm of what a causal mask made": chain(Causal, norm(), linear, nn.Tanh),
    "a residual sum": chain(led(0.1), lambda: Residual(WIDTH), norm()),
    "gating": chain(led(2.0), lambda: nn.Linear(WIDTH, 2 * WIDTH, bias=False), call(gated), norm()),
    "dropout": chain(led(0.1), lambda: nn.Dropout(0.3), norm()),
    "fused dropout": chain(led(0.1), call(lambda x: torch.native_dropout(x, 0.3, True)[0]), norm()),
    "a norm without weights": chain(led(0.1), lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), nn.Tanh),
    "a parameter for each position": chain(led(0.1), call(lambda x: x[:, :TOKENS]), Placed, norm()),
    "the first token": chain(linear, call(lambda x: x[:, 0])),
    "the last token, after a causal attention": chain(Causal, linear, call(lambda x: x[:, -1])),
    "some tokens": chain(linear, call(lambda x: x[:, 2:7])),
    "some tokens, those between skipped": chain(linear, call(lambda x: x[:, 1::3])),
    "a split": chain(linear, call(lambda x: x.split([5, TOKENS - 5], 1)[1])),
    "a token of all": chain(linear, call(lambda x: x.unbind(1)[4])),
    "narrowed": chain(linear, call(lambda x: x.narrow(1, 3, 2))),
    "a mean of tokens of which one is small": chain(led(0.01), norm(), call(lambda x: x.mean(1))),
    "a causal attention": chain(Causal),
    "a causal attention twice": chain(Causal, norm(), Causal),
    "causal attentions with what they skip": chain(*(lambda: Added(nn.Sequential(nn.LayerNorm(WIDTH), Causal())),) * 3),
    "sharp causal attention": chain(lambda: Causal(scale=4.0)),
    "a causal attention over more tokens": lambda: (
        nn.Sequential(Causal(), norm()(), linear()),
        torch.randn(INPUTS, 60, WIDTH),
    ),
    "an attention to the last four tokens, twice": chain(Window, norm(), Window),
    "an attention of which one token is looked at": chain(Full, linear, call(lambda x: x[:, 0])),
    "an attention after a small token": chain(led(0.01), norm(), Full, linear, call(lambda x: x[:, :3])),
}


def by_position(make: Callable[[], Made], seeds: int) -> dict[tuple[str, str], list[tuple[Places, Places]]]:
    """Predicted and measured mean squares of each site, by class of position, of each network.

    Gradients are known by position at sites that are no function of another one; at all sites on average.
    """
    found: dict[tuple[str, str], list[tuple[Places, Places]]] = defaultdict(list)
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, x = make()
        assert isinstance(x, Tensor)
        flow = predicted(model, lambda model=model, x=x: model(x), [x])
        assert not flow.assumed
        for name, (value, out) in at_sites(model, x, flow).items():
            positions = value.count("position")
            for signal, alike, tensor in (
                ("activation", value.alike, out.detach()),
                ("activation_grad", value.root.gradient if value.root and value.f is value.root.h else None, out.grad),
            ):
                if alike is not None and tensor is not None:
                    seen = of_entries(tensor.double().reshape(INPUTS, positions, -1))
                    found[signal, name].append((alike.by_position(positions), seen))
            if value.root is not None and out.grad is not None:
                pair = Alike.alone(value.gradient).by_position(1), of_entries(out.grad.double().reshape(INPUTS, 1, -1))
                found["mean of activation_grad", name].append(pair)
    return found


def at_sites(model: nn.Module, x: Tensor, flow: Flow) -> dict[str, tuple[Value, Tensor]]:
    """Each site's predicted value, and what it gives in the pass that was predicted, with its gradient."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, out: Tensor) -> None:
            out.retain_grad()
            outputs[name] = out

        return hook

    handles = [one.register_forward_hook(keep(name)) for name, one in model.named_modules() if name]
    out = model(x)
    (out * torch.randn_like(out)).sum().backward()
    for handle in handles:
        handle.remove()
    values = {one.module: flow.known[one.value] for one in flow.program.returned if one.module in outputs}
    return {name: (value, outputs[name]) for name, value in values.items() if isinstance(value, Value)}


def of_entries(x: Tensor) -> Places:
    """Mean squares `(inputs, positions, units)` at each class of position."""
    square = x.square().mean((0, 2)).numpy()
    sizes = classes(len(square))
    same = np.add.reduceat(square, (np.cumsum(sizes) - sizes).astype(int)) / sizes
    nothing = np.zeros((len(sizes), len(sizes)))
    return Places(sizes, same, nothing, same, nothing)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_each_position_is_predicted_both_ways(name: str) -> None:
    """The rms at each position of each site: within 4 %, or 5 standard errors of the mean over 6 networks.

    What is 0 at a position is 0 there in both.
    """
    found = by_position(OPERATIONS[name], seeds=6)
    assert len({signal for signal, _ in found}) == 3
    for site, pairs in found.items():
        theory = np.array([one.same for one, _ in pairs])
        seen = np.array([other.same for _, other in pairs])
        assert np.array_equal(theory > 1e-12 * theory.max(), seen > 1e-12 * seen.max()), site
        there = seen.min(0) > 1e-12 * seen.max()
        logs = np.log(theory[:, there] / seen[:, there]) / 2.0
        error = logs.std(0, ddof=1) / math.sqrt(len(logs))
        assert (np.abs(logs.mean(0)) < 0.04 + 5.0 * error).all(), (site, np.exp(logs.mean(0)), error)
        assert np.median(error) < 0.04, (site, error)


# --- the arithmetic of classes ------------------------------------------------------------------------------


def random_places(positions: int, seed: int = 0) -> tuple[Alike, np.ndarray, np.ndarray]:
    """Mean products that are what they may be, and the same as tables of all positions: of one input, of two."""
    generator = np.random.default_rng(seed)
    sizes = classes(positions)
    two = generator.normal(size=(2, len(sizes), 3)) * np.array([1.0, 0.2])[:, None, None]
    position, both = (table @ table.T for table in two)
    same, inputs = np.diag(position) + 1.0 + generator.random(len(sizes)), np.diag(both) + 0.1
    places = Places(sizes, same, position, inputs, both)
    where = np.repeat(np.arange(len(sizes)), sizes.astype(int))
    tables = []
    for one, pairs in ((same, position), (inputs, both)):
        table = pairs[np.ix_(where, where)]
        np.fill_diagonal(table, one[where])
        tables.append(table)
    return Alike.of(places), tables[0], tables[1]


@pytest.mark.parametrize("positions", [2, 5, 40, 300])
def test_classes_cover_all_positions_and_means_are_those_of_all_pairs(positions: int) -> None:
    alike, own, other = random_places(positions)
    assert classes(positions).sum() == positions
    assert classes(positions)[0] == classes(positions)[-1] == 1.0
    apart = ~np.eye(positions, dtype=bool)
    expected = (np.diag(own).mean(), own[apart].mean(), np.diag(other).mean(), other[apart].mean())
    assert alike.numbers == pytest.approx(expected, rel=1e-12)
    assert len(classes(100_000)) < 200  # what a position costs stays small in a long sequence


def test_what_has_no_places_is_alike_at_all_of_them() -> None:
    """A sum or a product with it is that of the numbers, at each position."""
    alike, own, other = random_places(30)
    plain = Alike(2.0, 0.5, 0.25, 0.125)
    apart = ~np.eye(30, dtype=bool)
    added, times = alike + plain, alike.times(plain)
    assert added.numbers == pytest.approx([a + b for a, b in zip(alike.numbers, plain.numbers, strict=True)])
    expected = (2.0 * np.diag(own).mean(), 0.5 * own[apart].mean(), 0.25 * np.diag(other).mean())
    assert times.numbers == pytest.approx((*expected, 0.125 * other[apart].mean()))
    assert alike.scaled(same=3.0).same == pytest.approx(3.0 * alike.same)
    assert alike.within(31).places is None
    assert (alike + random_places(31)[0]).places is None  # of other positions: only the means are left


def test_positions_that_are_taken_and_put_back_are_those_of_the_whole_table() -> None:
    alike, own, _ = random_places(20)
    assert alike.places is not None
    taken = np.array([0, 3, 4, 17])
    part = alike.places.moved(membership(taken, 4, 20), classes(4))
    expected = own[np.ix_(taken, taken)]
    assert part.same == pytest.approx(np.diag(expected), rel=1e-12)
    apart = ~np.eye(4, dtype=bool)
    assert part.position[apart] == pytest.approx(expected[apart], rel=1e-12)
    again = part.moved(membership(taken, 4, 20).T, classes(20))
    assert again.same[taken] == pytest.approx(part.same, rel=1e-12)
    assert again.same.sum() == pytest.approx(part.same.sum(), rel=1e-12)


@pytest.mark.parametrize(("positions", "tolerance"), [(12, 1e-12), (200, 0.02)])
def test_uniform_causal_weights_mix_as_their_matrix_does(positions: int, tolerance: float) -> None:
    """U·V·Uᵀ forward and Uᵀ·G·U backward, exactly where each position has a class of its own."""
    alike = random_places(positions)[0] if positions == 12 else Alike(1.0, 0.3, 0.2, 0.1)
    weights = np.tril(np.ones((positions, positions))) / np.arange(1.0, positions + 1.0)[:, None]
    mix = mixture(Visible.first(range(1, positions + 1)), positions, 0.0, 0.0, (0.0, 0.0), resolved=True)
    own, other = random_places(12)[1:] if positions == 12 else (np.full((positions,) * 2, c) for c in (0.3, 0.1))
    if positions != 12:
        np.fill_diagonal(own, 1.0)
        np.fill_diagonal(other, 0.2)
    apart = ~np.eye(positions, dtype=bool)
    for found, weight in ((mix.averaged(alike), weights), (Alike.of(mix.of_values(alike)), weights.T)):
        one, two = weight @ own @ weight.T, weight @ other @ weight.T
        expected = (np.diag(one).mean(), one[apart].mean(), np.diag(two).mean(), two[apart].mean())
        assert found.numbers == pytest.approx(expected, rel=tolerance)
        if positions == 12:
            assert found.places is not None
            assert found.places.same == pytest.approx(np.diag(one), rel=tolerance)
            assert found.places.position[apart] == pytest.approx(one[apart], rel=tolerance)


def test_a_mask_is_mixed_by_its_own_numbers() -> None:
    """A window of the last three: forward and backward as its matrix does; a causal mask is a number of first keys."""
    alike, own, _ = random_places(12)
    mask = torch.ones(12, 12, dtype=torch.float64).tril().triu(-2)
    weights = (mask / mask.sum(1, keepdim=True)).numpy()
    mix = mixture(Visible.of(mask.bool()), 12, 0.0, 0.0, (0.0, 0.0), resolved=True)
    for found, weight in ((mix.averaged(alike).places, weights), (mix.of_values(alike), weights.T)):
        assert found is not None
        expected = weight @ own @ weight.T
        assert found.same == pytest.approx(np.diag(expected), rel=1e-12)
        apart = ~np.eye(12, dtype=bool)
        assert found.position[apart] == pytest.approx(expected[apart], rel=1e-12)
    causal = Visible.of(torch.ones(5, 5).tril())
    assert causal.table is None
    assert causal.counts.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert Visible.of(torch.ones(5, 5)).alike
    assert not causal.alike


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_the_weights_of_each_query_sum_to_one_also_backward(spread: float) -> None:
    """Σ_jj' of the products of the values' gradients is that of the queries', however the weights are spread."""
    alike, own, _ = random_places(12)
    mix = mixture(Visible.first(range(1, 13)), 12, spread, 0.1 * spread, (0.0, 0.0), resolved=True)
    found = mix.of_values(alike)
    assert (found.pairs * found.position).sum() + found.same.sum() == pytest.approx(own.sum(), rel=1e-9)
    uniform = mixture(Visible.first(range(1, 13)), 12, 0.0, 0.0, (0.0, 0.0), resolved=True).of_values(alike)
    assert (found.same.sum() > 1.001 * uniform.same.sum()) == (spread > 0.0)


def test_a_gradient_of_what_all_inputs_share_is_the_sum_over_them() -> None:
    """Of drawn gradients `(inputs, positions)`, whose products are known."""
    drawn = np.random.default_rng(0).normal(size=(3, 5)) + 1.0
    total = drawn.sum(0)
    own = drawn.T @ drawn / 3.0
    other = (np.outer(total, total) / 3.0 - own) / 2.0
    places = Places(classes(5), np.diag(own).copy(), own, np.diag(other).copy(), other)
    found = Alike.of(places).over_inputs(3).places
    assert found is not None
    assert found.same == pytest.approx(total**2 / 3.0)
    assert found.position == pytest.approx(np.outer(total, total) / 3.0)
    assert found.both == pytest.approx(found.position)


def test_tokens_that_are_alike_in_groups_pull_a_query_together() -> None:
    """Σ_jj' of centred products of keys times those of values, over n²: a loop over all pairs."""
    keys, k, _ = random_places(9, seed=1)
    values, v, _ = random_places(9, seed=2)
    mix = mixture(Visible.first(range(1, 10)), 9, 0.0, 0.0, (0.0, 0.0), resolved=True)
    expected = []
    for n in range(1, 10):
        centre = np.eye(n) - 1.0 / n
        a, b = (centre @ table[:n, :n] @ centre for table in (k, v))
        spread = [np.trace(one) / (n - 1) if n > 1 else 0.0 for one in (a, b)]
        expected.append(max((a * b).sum() / n**2 - (n - 1) / n**2 * spread[0] * spread[1], 0.0))
    assert mix.together(keys, values) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert max(expected) > 0.0
    alike = Alike(1.0, 0.4, 0.0, 0.0)
    assert mix.together(alike, alike) == pytest.approx(np.zeros(9), abs=1e-12)


def test_a_root_keeps_the_products_that_it_was_made_of() -> None:
    """At each position and of each two, also where its entries are not normal and have a mean."""
    alike, _, _ = random_places(15)
    exponential = -torch.log1p(-CDF.clamp(max=1.0 - 1e-12))
    shifted = alike * 0.1 + Alike.shared(4.0)
    assert Root.gaussian(Alike.alone(1.0)).places is None
    for root, given in ((Root.gaussian(alike), alike), (Root.of(exponential, shifted), shifted)):
        value = Value(((Atom("position", 15),), (Atom("unit", 8),)), root, root.h)
        for found, expected in zip(value.alike.by_position(15).tables, given.by_position(15).tables, strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert value.alike.numbers == pytest.approx(given.numbers, rel=1e-3)
        assert np.ptp(value.alike.by_position(15).same) > 0.1


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_the_slope_of_a_softmax_is_that_of_drawn_logits(count: int) -> None:
    """E Σ_j A_j²(1 − 2A_j + Σ_i A_i²) of logits of variance 0.3, within 8 %: 100,000 drawn."""
    drawn = np.exp(np.random.default_rng(0).normal(size=(100_000, count)) * math.sqrt(0.3))
    weights = drawn / drawn.sum(1, keepdims=True)
    share = (weights**2).sum(1, keepdims=True)
    expected = (weights**2 * (1.0 - 2.0 * weights + share)).sum(1).mean()
    mix = mixture(Visible.first([count]), count, 0.3, 0.0, (0.0, 0.0), resolved=False)
    assert mix.of_logits(Alike.alone(1.0), Alike.alone(1.0)) == pytest.approx([expected], rel=0.08)


# --- what a model has of it ---------------------------------------------------------------------------------


def test_a_class_token_and_parameters_of_positions_get_their_gradient() -> None:
    """The rms within 10 %, mean over 6 networks: each number has the gradient of its own position, over all inputs."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(Led(0.1), Call(lambda x: x[:, :TOKENS]), Placed(), nn.LayerNorm(WIDTH), linear())
        x = torch.randn(INPUTS, TOKENS, WIDTH)
        theory, seen = predict(model, x), probe(model, x)
        names = [site.name for site in seen.sites_of("weight_grad")]
        measured = dict(zip(names, seen.values("weight_grad", "rms")[0], strict=True))
        for site, rms in zip(theory.sites_of("weight_grad"), theory.values("weight_grad", "rms")[0], strict=True):
            ratios[site.name].append(math.log(rms / measured[site.name]))
    assert {"0.token", "2.places"} <= set(ratios)
    for name in ("0.token", "2.places"):
        assert abs(np.mean(ratios[name])) < 0.1, (name, ratios[name])


def test_positions_in_another_order_are_not_taken_for_those_that_they_were() -> None:
    """After a transposition of rows and columns nothing is known of single positions; the means stay."""

    def turned(x: Tensor) -> Tensor:
        return x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)

    torch.manual_seed(0)
    model = nn.Sequential(Led(0.01, 2), Call(lambda x: x[:, :TOKENS]), Call(turned), linear())
    x = torch.randn(INPUTS, TOKENS, WIDTH)
    flow = predicted(model, lambda: model(x), [x])
    before, after, made = (flow.known[one.value] for one in flow.program.returned[1:4])
    assert isinstance(before, Value)
    assert isinstance(after, Value)
    assert isinstance(made, Value)
    assert before.alike.places is not None
    assert after.alike.places is None
    assert after.alike.same == pytest.approx(before.alike.same, rel=1e-3)
    assert made.alike.same == pytest.approx(float(model(x).detach().double().square().mean()), rel=0.1)
