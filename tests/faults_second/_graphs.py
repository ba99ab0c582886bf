"""Graphs: a block model with communities, molecules-like rings; message passing by sum, mean, attention."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator
from tests.faults_second._registry import faulty, healthy

NODES = 160


def blocks(seed: int) -> tuple[Tensor, Tensor]:
    """Adjacency (nodes, nodes) of four communities, and which community each node is of."""
    made = generator(seed, -7)
    y = torch.arange(NODES) % 4
    odds = torch.where(y.unsqueeze(1) == y, 0.35, 0.02)
    upper = (torch.rand(NODES, NODES, generator=made) < odds).float().triu(1)
    return upper + upper.T, y


class Conv(nn.Module):
    """Own features and those of the neighbours: their sum, their mean, or the mean over the square root."""

    def __init__(self, inside: int, outside: int, adjacency: Tensor, how: str) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(inside, outside), nn.Linear(inside, outside, bias=False)
        degree = adjacency.sum(1, keepdim=True).clamp_min(1)
        self.register_buffer("spread", adjacency if how == "sum" else adjacency / degree)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + self.other(self.spread @ x)


class Net(nn.Module):
    def __init__(self, sizes: list[int], adjacency: Tensor, how: str, norm: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.layers = nn.ModuleList([Conv(*pair, adjacency, how) for pair in pairs])
        self.norms = nn.ModuleList([nn.LayerNorm(out) if norm else nn.Identity() for _, out in pairs[:-1]])

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = F.relu(norm(layer(x)))
        return self.layers[-1](x)


@healthy("GNN", "communities-mean", steps=60)
@healthy("GNN", "communities-sum-normalized", {"how": "sum", "norm": True}, steps=60)
@faulty(
    "GNN",
    "communities-sum-over-neighbours",
    "exploding-activation",
    {"how": "sum"},
    cure="norm",
    also=("exploding-gradient", "update-too-large", "init-mismatch"),
    steps=60,
)
@faulty(
    "GNN",
    "communities-features-of-ones",
    "collapsed-batch",
    {"ones": True},
    cure="structural",
    also=("vanishing-gradient", "symmetric-units", "vanishing-activation"),
    steps=60,
)
@faulty(
    "GNN",
    "communities-account-number-as-feature",
    "input-scale",
    {"ids": True},
    cure="normalisation",
    also=("exploding-activation", "exploding-gradient", "dead-units", "update-too-large", "gradient-spike"),
    where="<input>|layers.0*",
    steps=60,
)
def communities(seed: int, how: str = "mean", norm: bool = False, ones: bool = False, ids: bool = False) -> Run:
    """Noisy features; ones tell nothing where all degrees are about the same; an account number swamps the rest."""
    adjacency, y = blocks(seed)
    features = F.one_hot(y, 4).float() + torch.randn(NODES, 4, generator=generator(seed, -8))
    x = torch.cat([features, torch.randn(NODES, 4, generator=generator(seed, -9))], 1)
    if ones:
        x, adjacency = torch.ones_like(x), adjacency / adjacency.sum(1, keepdim=True)
    if ids:
        x[:, 7] = 1e5 * torch.rand(NODES, generator=generator(seed, -10))
    model = Net([8, 24, 24, 24, 4], adjacency, how, norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02 if norm else 0.1, momentum=0.9)
    return Run(model, optimizer, lambda step: (x, y), F.cross_entropy)


@healthy("GNN", "graph-attention-of-edges", steps=60)
@faulty(
    "GNN",
    "graph-attention-of-no-neighbours",
    "non-finite",
    {"isolated": 3},
    cure="structural",
    steps=60,
)
def graph_attention(seed: int, isolated: int = 0) -> Run:
    """Scores of non-edges are minus infinity; a node without edges and without itself has nothing but these."""
    adjacency, y = blocks(seed)
    if isolated:
        adjacency[:isolated] = 0
    else:
        adjacency = adjacency + torch.eye(NODES)
    x = F.one_hot(y, 4).float() + torch.randn(NODES, 4, generator=generator(seed, -8))
    model = GraphAttention(adjacency)
    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), lambda step: (x, y), F.cross_entropy)


class GraphAttention(nn.Module):
    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(4, 16), nn.Linear(16, 4)
        self.source, self.target = nn.Linear(16, 1), nn.Linear(16, 1)
        self.register_buffer("edges", adjacency > 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        scores = F.leaky_relu(self.source(x) + self.target(x).T, 0.2)
        share = scores.masked_fill(~self.edges, -torch.inf).softmax(1)
        return self.head(F.elu(share @ x))


@healthy("GNN", "energies-standardized", {"unit": 3.0, "offset": -400.0}, steps=100)
@healthy("GNN", "energies-absolute-error", {"unit": 3.0, "offset": -400.0, "l1": True}, steps=100)
@faulty(
    "GNN",
    "energies-in-kilocalories",
    "loss-scale",
    {"unit": 1.0, "offset": 0.0, "lr": 3e-3, "sgd": True},
    twin={"unit": 3.0, "offset": -400.0, "lr": 3e-3, "sgd": True},
    cure="normalisation",
    also=("exploding-gradient", "output-pairing", "update-too-large", "dead-units", "gradient-spike", "non-finite"),
    steps=100,
)
def energies(seed: int, unit: float, offset: float, l1: bool = False, lr: float = 5e-3, sgd: bool = False) -> Run:
    """The energy of twelve atoms is a sum over them and their bonds, about -400; the metric is in deviations."""
    value, bond = torch.randn(5, generator=generator(1, 1)), torch.randn(5, 5, generator=generator(1, 2)) / 3

    def batch(step: int) -> tuple[Tensor, Tensor]:
        kinds = torch.randint(5, (64, 12), generator=generator(seed, step))
        energy = value[kinds].sum(1) + bond[kinds, kinds.roll(1, 1)].sum(1)
        return F.one_hot(kinds, 5).float(), energy - 400

    model = Molecule()
    each = F.l1_loss if l1 else F.mse_loss

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return each(output, (target - offset) / unit)

    def metric(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output * unit + offset, target) / 9

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Run(model, torch.optim.SGD(model.parameters(), lr=lr) if sgd else optimizer, batch, loss_fn, metric)


class Molecule(nn.Module):
    """A ring of atoms; each hears of the one before and the one after."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lift = nn.Linear(5, width)
        self.rounds = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(2)])
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for layer in self.rounds:
            x = x + F.silu(layer(torch.cat([x, (x.roll(1, 1) + x.roll(-1, 1)) / 2], 2)))
        return self.head(x).sum((1, 2)) / 4
