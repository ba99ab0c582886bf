"""Graphs, sets, words, policies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import seeded
from tests.faults._parts import initialize, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Graph(nn.Module):
    """Graph convolutions by a dense adjacency."""

    def __init__(self, layers: int, skip: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16 if i == 0 else 32, 32) for i in range(layers))
        self.act = nn.ReLU()
        self.head = nn.Linear(32, 4)
        self.skip = skip

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            h = self.act(layer(adjacency @ x))
            x = x + h if self.skip and i else h
        return self.head(x)


@healthy("GNN", "gcn-2", steps=100)
@healthy("GNN", "gcn-4-with-skips", {"layers": 4, "skip": True})
@faulty(
    "GNN",
    "gcn-6-adjacency-not-normalized",
    "exploding-activation",
    {"layers": 6, "skip": True, "norm": "none"},
    cure="normalisation",
    where="layers.*|act",
    also=("exploding-gradient",),
    twin={"layers": 6, "skip": True},
)
@faulty(
    "GNN",
    "gcn-16-oversmoothing",
    "collapsed-batch",
    {"layers": 16, "init": "he"},
    cure="structural",
    where="layers.*|act",
    also=("vanishing-gradient", "vanishing-activation"),
    twin={"layers": 2, "init": "he"},
)
@faulty(
    "GNN",
    "gcn-isolated-node",
    "non-finite",
    {"norm": "no-loops"},
    cure="structural",
    where="layers.0|<input>",
    steps=40,
)
def graph(seed: int, layers: int = 2, skip: bool = False, norm: str = "symmetric", init: str = "default") -> Run:
    """The community of each of 60 nodes."""
    model = Graph(layers, skip)
    initialize(model, init)
    source = seeded(seed, 0)
    label = torch.arange(60) % 4
    chance = torch.where(label[:, None] == label[None], 0.5, 0.08)
    linked = (torch.rand(60, 60, generator=source) < chance).float().triu(1)
    linked = linked + linked.T
    linked[7] = linked[:, 7] = 0
    if norm != "no-loops":
        linked = linked + torch.eye(60)
    degree = linked.sum(1)
    adjacency = linked if norm == "none" else linked / degree.sqrt()[:, None] / degree.sqrt()[None]

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        noise = torch.randn(60, 16, generator=seeded(seed, step))
        return (noise + 0.7 * F.one_hot(label * 3, 16).float(), adjacency), label

    return Run(model, optimizer_of(model, "Adam", 0.01), batch, F.cross_entropy)


class Sets(nn.Module):
    def __init__(self, total: bool) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32))
        self.all = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        self.total = total

    def forward(self, x: Tensor) -> Tensor:
        h = self.each(x)
        return self.all(h.sum(1) if self.total else h.mean(1))


@healthy("deep sets", "deep-sets-mean", steps=100)
@faulty(
    "deep sets",
    "deep-sets-sum-of-4000",
    "exploding-activation",
    {"total": True, "count": 4000},
    cure="normalisation",
    where="all.*",
    also=("exploding-gradient",),
    twin={"count": 4000},
    steps=40,
)
def deep_sets(seed: int, total: bool = False, count: int = 30, lr: float = 5e-3) -> Run:
    """The spread of a set of points."""
    model = Sets(total)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        size = 0.3 + 1.5 * torch.rand(16, 1, 1, generator=source)
        return size * torch.randn(16, count, 3, generator=source), size[:, :, 0]

    return Run(model, optimizer_of(model, "Adam", lr), batch, F.mse_loss)


class Words(nn.Module):
    def __init__(self, sparse: bool, mode: str) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(500, 16, mode=mode, sparse=sparse)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens))


@healthy("embedding", "words-sparse", steps=100)
@healthy("embedding", "words-dense-adam", {"sparse": False, "kind": "Adam", "lr": 0.05}, steps=60)
@faulty("embedding", "words-lr-1e-6", "update-too-small", {"lr": 1e-6}, cure="learning rate", steps=100)
@faulty(
    "embedding",
    "words-lr-1e5",
    "update-too-large",
    {"lr": 1e5},
    cure="learning rate",
    also=("exploding-activation",),
    steps=60,
)
def words(seed: int, sparse: bool = True, kind: str = "SGD", lr: float = 2.0) -> Run:
    """Sentiment by single words, most of which are rare."""
    model = Words(sparse, "mean")
    frequency = 1 / torch.arange(1.0, 501.0)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        tokens = torch.multinomial(frequency.expand(32, -1), 12, replacement=True, generator=seeded(seed, step))
        return tokens, ((tokens % 3 == 0).sum(1) > 4).long()

    more = {"momentum": 0.0} if kind == "SGD" else {}
    return Run(model, optimizer_of(model, kind, lr, **more), batch, F.cross_entropy)


class PixelEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Embedding(17, 4)
        self.body = nn.Sequential(nn.Linear(256, 48), nn.GELU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.values(x).flatten(1))


@healthy("embedding", "integer-pixels")
def integer_pixels(seed: int) -> Run:
    """The digits, each grey level embedded."""
    from tests.faults._data import digits

    model, plain = PixelEmbedding(), digits(seed)
    return Run(
        model,
        optimizer_of(model, "Adam", 5e-3),
        lambda step: ((plain(step)[0].flatten(1) * 16).long(), plain(step)[1]),
        F.cross_entropy,
    )


@healthy("policy gradient", "reinforce-with-baseline", steps=120, goal=-0.5)
@faulty(
    "policy gradient",
    "reinforce-log-of-0",
    "non-finite",
    {"form": "log", "sharp": 300.0},
    cure="structural",
    where="<root>|softmax|end",
    steps=60,
    also=("saturated-units",),
)
@faulty(
    "policy gradient",
    "reinforce-lr-3",
    "update-too-large",
    {"lr": 3.0},
    cure="learning rate",
    also=("dead-units", "exploding-activation", "saturated-units"),
    steps=120,
)
def policy(seed: int, form: str = "log-softmax", lr: float = 0.01, sharp: float = 1.0) -> Run:
    """A contextual bandit with four arms; the metric is minus the mean reward."""
    body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    model = nn.Sequential(*body, nn.Softmax(-1)) if form == "log" else body
    with torch.no_grad():
        body[2].weight *= sharp  # type: ignore[operator]
    right = torch.randn(8, 4, generator=seeded(seed, -1))

    def chances(output: Tensor) -> Tensor:
        return torch.log(output) if form == "log" else output.log_softmax(-1)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(128, 8, generator=seeded(seed, step))
        return x, (x @ right).argmax(1)

    def loss(output: Tensor, best: Tensor) -> Tensor:
        log = chances(output)
        arm = (
            torch.randint(4, best.shape)
            if not torch.isfinite(log).all()
            else torch.multinomial(log.detach().exp(), 1)[:, 0]
        )
        reward = (arm == best).float()
        entropy = -(log.exp() * log).sum(1).mean()
        return -((reward - reward.mean()) * log.gather(1, arm[:, None])[:, 0]).mean() - 0.01 * entropy

    def regret(output: Tensor, best: Tensor) -> Tensor:
        return -chances(output).exp().gather(1, best[:, None]).mean()

    return Run(model, optimizer_of(model, "Adam", lr), batch, loss, metric=regret)
