"""What goes on from other weights: probing, unfreezing, adapters, checkpointing, hypernetworks that write weights."""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.faults._program import Run, train
from tests.faults_second._data import batches, generator, standardized, table
from tests.faults_second._registry import faulty, healthy


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())


@functools.cache
def pretrained() -> dict[str, Tensor]:
    """Weights of `body` that tell even from odd digits."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        x, y = table("digits")
        model = nn.Sequential(body(), nn.Linear(64, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        train(Run(model, optimizer, batches(standardized(x), y % 2, 5), F.cross_entropy), 60)
    return {name: weight.detach().clone() for name, weight in model[0].state_dict().items()}


class Tuned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = body(), nn.Linear(64, 10)
        self.body.load_state_dict(pretrained())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def moved(x: Tensor) -> Tensor:
    """The images upside down, of which the body has learned little."""
    return x.view(-1, 8, 8).flip(1).roll(2, 2).reshape(-1, 64)


@healthy("fine-tuning", "probe-then-unfreeze", steps=150)
@healthy("fine-tuning", "probe-only", {"unfreeze": False, "lr": 0.1}, steps=150)
@faulty(
    "fine-tuning",
    "unfrozen-but-not-in-the-optimizer",
    "update-too-small",
    {"add": False},
    cure="structural",
    also=("uneven-learning", "no-gradient"),
    where="body*",
    start=40,
    steps=150,
    static=lambda run: bool(torch.equal(run.model.body[2].weight, pretrained()["2.weight"])),
)
def unfreeze(seed: int, add: bool = True, unfreeze: bool = True, lr: float = 0.02) -> Run:
    """First the head alone; from step 40 on the body too, which has to be told to the optimizer."""
    x, y = table("digits")
    model = Tuned()
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=lr)

    def before_step(step: int) -> None:
        if step == 40 and unfreeze:
            model.body.requires_grad_(True)
            if add:
                optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.05})

    return Run(model, optimizer, batches(moved(standardized(x)), y, seed), F.cross_entropy, before_step=before_step)


class Adapted(nn.Module):
    """A frozen linear layer and a low-rank one beside it."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 4 * self.up(self.down(x))


class Checkpointed(nn.Module):
    """Frozen embedding of the input, two adapted layers computed twice to save memory, a frozen head."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        tuned = Tuned()
        self.embed = tuned.body[0].requires_grad_(False)
        self.layers = nn.ModuleList([Adapted(tuned.body[2]), Adapted(nn.Linear(64, 64))])
        self.head = tuned.head.requires_grad_(False)
        self.bias = nn.Parameter(torch.zeros(10))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        for layer in self.layers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = F.relu(checkpoint(layer, x, use_reentrant=self.reentrant))
        return self.head(x) + self.bias


@healthy("LoRA", "checkpointed-adapters", steps=60)
@faulty(
    "LoRA",
    "checkpointed-reentrant-behind-frozen-inputs",
    "no-gradient",
    {"reentrant": True},
    cure="structural",
    where="layers*",
    steps=60,
)
def checkpointed(seed: int, reentrant: bool = False) -> Run:
    """The reentrant variant gives no gradient where no input of the block asks for one."""
    x, y = table("digits")
    model = Checkpointed(reentrant)
    free = [p for p in model.parameters() if p.requires_grad]
    return Run(model, torch.optim.AdamW(free, lr=1e-2), batches(moved(standardized(x)), y, seed), F.cross_entropy)


class WrittenWeights(nn.Module):
    """A net whose second layer is made from a code; functionally, or written into the layer's data."""

    def __init__(self, data: bool) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.maker = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1024))
        self.code = nn.Parameter(torch.randn(8))
        self.data = data

    def forward(self, x: Tensor) -> Tensor:
        weight = self.maker(self.code).view(32, 32)
        x = F.relu(self.first(x))
        if self.data:
            self.layer.weight.data = weight.data
            x = self.layer(x)
        else:
            x = F.linear(x, weight, self.layer.bias)
        return self.head(F.relu(x))


@healthy("hypernetwork", "weights-made-from-a-code", steps=100)
@faulty(
    "hypernetwork",
    "weights-written-into-data",
    "no-gradient",
    {"data": True},
    cure="structural",
    where="maker*|code",
    steps=100,
    static=lambda run: run.model.code.grad is None,
)
def written(seed: int, data: bool = False) -> Run:
    x, y = table("digits")
    model = WrittenWeights(data)
    if not data:
        model.layer.weight.requires_grad_(False)
    free = [p for p in model.parameters() if p.requires_grad]
    return Run(model, torch.optim.Adam(free, lr=3e-3), batches(standardized(x), y, seed), F.cross_entropy)


@healthy("fine-tuning", "continued-at-a-tenth-of-the-rate", steps=60)
@healthy("fine-tuning", "continued-with-averaged-noise", {"noise": 0.05}, steps=60)
@faulty(
    "fine-tuning",
    "continued-at-the-rate-for-new-heads",
    "update-too-large",
    {"lr": 0.3},
    cure="lr",
    also=("dead-units", "exploding-activation"),
    steps=60,
)
def continued(seed: int, lr: float = 1e-3, noise: float = 0.0) -> Run:
    """The images as they were, ten classes instead of two."""
    x, y = table("digits")
    model = Tuned()
    plain = batches(standardized(x), y, seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows, target = plain(step)
        return rows + noise * torch.randn(rows.shape, generator=generator(seed, step)), target

    return Run(model, torch.optim.AdamW(model.parameters(), lr=lr), batch, F.cross_entropy)
