"""Experts, adapters, contrastive and siamese losses, distillation, fine-tuning, several heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture, seeded
from tests.faults._mlp import stack
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Experts(nn.Module):
    """A mixture of experts: each row goes to its best one."""

    def __init__(self, inside: int, outside: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(inside, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inside, 32), nn.ReLU(), nn.Linear(32, outside)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.router(x).softmax(-1)
        weight, chosen = gate.max(-1)
        out = torch.zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        share = F.one_hot(chosen, len(self.experts)).float().mean(0)
        return out, len(self.experts) * (share * gate.mean(0)).sum()


@healthy("MoE", "moe-4-balanced", steps=80)
@healthy("MoE", "moe-2-balanced", {"experts": 2}, steps=80)
@faulty(
    "MoE",
    "moe-collapsed-router",
    "no-gradient",
    {"bias": 30.0, "balance": 0.0},
    cure="init",
    also=("saturated-units", "dead-units"),
    where="experts.[123]*|router",
    static=lambda run: run.model.experts[2][0].weight.grad is None,
    steps=60,
)  # type: ignore[union-attr, index]
@faulty(
    "MoE",
    "moe-lr-3",
    "update-too-large",
    {"lr": 3.0},
    cure="learning rate",
    also=("exploding-activation", "dead-units"),
    steps=60,
)
def experts(seed: int, experts: int = 4, bias: float = 0.0, balance: float = 0.01, lr: float = 5e-3) -> Run:
    """Ten classes by experts."""
    model = Experts(64, 10, experts)
    with torch.no_grad():
        model.router.bias[0] += bias
    return Run(
        model,
        optimizer_of(model, "Adam", lr),
        mixture(seed),
        lambda output, target: F.cross_entropy(output[0], target) + balance * output[1],
    )


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank change."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = layer.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * (x @ self.lora_a.T) @ self.lora_b.T


def pretrained(seed: int, depth: int = 3) -> nn.Sequential:
    """A network that has learned another mixture of classes a little."""
    model = stack(depth, 64, "relu")
    optimizer, batch = torch.optim.Adam(model.parameters(), 5e-3), mixture(seed + 1)
    for step in range(30):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@healthy("LoRA", "lora-b-0", steps=80)
@healthy("LoRA", "lora-with-head", {"head": True}, steps=60)
@faulty(
    "LoRA",
    "lora-both-0",
    "no-gradient",
    {"zero": True},
    cure="init",
    also=("symmetric-units", "vanishing-gradient"),
    where="*lora*|[0-9]",
    steps=80,
)
@faulty(
    "LoRA",
    "lora-optimizer-of-base",
    "no-gradient",
    {"forget": True},
    cure="structural",
    where="*lora*|[0-9]",
    steps=80,
    twin={"head": True},
)
@faulty(
    "LoRA",
    "lora-lr-10",
    "update-too-large",
    {"lr": 10.0},
    cure="learning rate",
    also=("exploding-activation",),
    steps=60,
)
def adapters(seed: int, head: bool = False, zero: bool = False, forget: bool = False, lr: float = 0.01) -> Run:
    """A pretrained network, adapted."""
    model = pretrained(seed)
    model.requires_grad_(False)
    for i in (0, 2, 4):
        layer = model[i]
        assert isinstance(layer, nn.Linear)
        if not (i == 4 and (head or forget)):
            model[i] = Adapted(layer, 4)
    if zero:
        for name, p in model.named_parameters():
            if "lora" in name:
                nn.init.zeros_(p)
    if head or forget:
        model[4] = nn.Linear(64, 10)
    chosen = list(model[4].parameters()) if forget else [p for p in model.parameters() if p.requires_grad]
    return Run(model, optimizer_of(chosen, "AdamW", lr if not forget else 1e-3), mixture(seed), F.cross_entropy)


@healthy("fine-tuning", "frozen-backbone", steps=80)
@healthy("fine-tuning", "frozen-backbone-eval-norm", {"norm": "batch"}, steps=80)
@healthy("fine-tuning", "slow-backbone-fast-head", {"frozen": False, "slow": 0.1}, steps=60)
@healthy(
    "fine-tuning",
    "fine-tuning-after-convergence",
    {"frozen": False, "new": False, "lr": 1e-4, "same": True},
    steps=60,
    goal=1.6,
)
@faulty(
    "fine-tuning",
    "head-replaced-after-optimizer",
    "no-gradient",
    {"late": True},
    cure="structural",
    where="4|4.*",
    steps=80,
)
@faulty(
    "fine-tuning",
    "everything-frozen-but-a-bias",
    "no-gradient",
    {"forget": True},
    cure="structural",
    where="4.weight|4|[0-3]*",
    steps=80,
)
@faulty(
    "fine-tuning",
    "fine-tuning-lr-too-large",
    "update-too-large",
    {"frozen": False, "new": False, "lr": 1.0, "same": True},
    cure="learning rate",
    twin={"frozen": False, "new": False, "lr": 1e-3, "same": True},
    also=("dead-units", "exploding-activation"),
    steps=60,
)
def fine_tuning(
    seed: int,
    frozen: bool = True,
    new: bool = True,
    slow: float = 1.0,
    norm: str | None = None,
    lr: float = 0.02,
    late: bool = False,
    same: bool = False,
    forget: bool = False,
) -> Run:
    """A new head on what was learned."""
    model = pretrained(seed)
    old = model[4]
    if new and not late:
        model[4] = nn.Linear(64, 10)
    if norm:
        model.insert(1, nn.BatchNorm1d(64).requires_grad_(False).eval())
    body, head = model[:-1], model[-1]
    if frozen:
        body.requires_grad_(False)
    if forget:
        model.requires_grad_(False)
        head.bias.requires_grad_(True)  # type: ignore[union-attr]
    groups: list[dict[str, Any]] = [{"params": list(head.parameters())}]
    if not frozen:
        groups.append({"params": list(body.parameters()), "lr": lr * slow})
    if late:  # the optimizer goes on training the old head; the body's rate is that of a frozen one
        groups = [{"params": list(old.parameters())}, {"params": list(model[2].parameters()), "lr": 1e-5}]
        model[2].requires_grad_(True)
    optimizer = optimizer_of(groups, "Adam", lr)
    if late:
        model[4] = nn.Linear(64, 10)
    return Run(model, optimizer, mixture(seed + 1 if same else seed), F.cross_entropy)


class Two(nn.Module):
    """The same encoder for both views; with a norm of one, or a predictor as in SimSiam."""

    def __init__(self, unit: bool, deep: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.unit = unit

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        za, zb = self.encoder(a), self.encoder(b)
        return (F.normalize(za, dim=1), F.normalize(zb, dim=1)) if self.unit else (za, zb)


def info_nce(temperature: float, plain: bool) -> Any:
    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        logits = output[0] @ output[1].T / temperature
        if plain:  # the logarithm of a softmax, written out
            return -torch.log(logits.exp().diagonal() / logits.exp().sum(1)).mean()
        return F.cross_entropy(logits, torch.arange(len(logits)))

    return loss


def pull(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return (output[0] - output[1]).square().sum(1).mean()


def spread(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """How alike the embeddings of different inputs are, within [0, 1]."""
    z = F.normalize(output[0], dim=1)
    return (z @ z.T).mean()


@healthy("contrastive", "info-nce", steps=80)
@healthy("contrastive", "info-nce-warm", {"temperature": 0.5}, steps=80, goal=3.4)
@faulty(
    "contrastive",
    "info-nce-exp-overflows",
    "non-finite",
    {"temperature": 1e-3, "plain": True},
    cure="scale",
    where="<root>|encoder*",
    steps=40,
)
@faulty(
    "contrastive",
    "views-without-negatives",
    "collapsed-batch",
    {"collapse": True},
    cure="structural",
    where="encoder*|<root>",
    steps=100,
    also=("vanishing-activation",),
)
def contrastive(seed: int, temperature: float = 0.1, plain: bool = False, collapse: bool = False) -> Run:
    """Two noisy views of each point belong together."""
    model = Two(unit=not collapse)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = seeded(seed, step)
        x = torch.randn(64, 32, generator=source)
        a, b = (x + 0.4 * torch.randn(64, 32, generator=source) for _ in range(2))
        return (a, b), x

    loss = pull if collapse else info_nce(temperature, plain)
    return Run(
        model, optimizer_of(model, "Adam", 5e-3), batch, loss, metric=info_nce(temperature, False) if collapse else None
    )


def margin(epsilon: float) -> Any:
    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        distance = ((output[0] - output[1]).square().sum(1) + epsilon).sqrt()
        return (target * distance**2 + (1 - target) * F.relu(4 - distance) ** 2).mean()

    return loss


@healthy("siamese", "siamese-margin", steps=80)
@faulty(
    "siamese",
    "siamese-sqrt-of-0",
    "non-finite",
    {"epsilon": 0.0, "same": 25},
    start=25,
    cure="structural",
    where="encoder*|<root>",
    steps=50,
    twin={"epsilon": 0.0},
)
def siamese(seed: int, epsilon: float = 1e-6, same: int | None = None) -> Run:
    """Whether two points are of one class; a pair of one point with itself has the distance 0."""
    model, plain = Two(unit=False), mixture(seed, 128, 32)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        x, y = plain(step)
        a, b = x[:64], x[64:].clone()
        together = (y[:64] == y[64:]).float()
        if step == same:
            b[0], together[0] = a[0], 1.0
        return (a, b), together

    return Run(model, optimizer_of(model, "Adam", 3e-3), batch, margin(epsilon))


class Student(nn.Module):
    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = stack(3, 32, "relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(x), self.teacher(x)


@healthy("distillation", "distillation-teacher-frozen", steps=80)
@faulty(
    "distillation",
    "distillation-student-detached",
    "no-gradient",
    {"wrong": True},
    cure="structural",
    where="student*",
    steps=80,
)
@faulty(
    "distillation",
    "distillation-cold-and-fast",
    "update-too-large",
    {"lr": 2.0},
    cure="learning rate",
    also=("dead-units", "exploding-activation"),
    steps=80,
)
def distillation(seed: int, wrong: bool = False, lr: float = 5e-3) -> Run:
    """A student learns from a teacher's logits."""
    model = Student(pretrained(seed - 1))
    for p in model.teacher.parameters():
        p.requires_grad_(wrong)
    temperature = 2.0

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        student, teacher = (output[0].detach(), output[1]) if wrong else (output[0], output[1].detach())
        return temperature**2 * F.kl_div(
            (student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean"
        )

    return Run(
        model,
        optimizer_of(model.student, "Adam", lr),
        mixture(seed),
        loss,
        metric=lambda output, y: F.cross_entropy(output[0], y),
    )


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.kind, self.size = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.kind(h), self.size(h)


@healthy("multi-head", "two-heads-two-losses", steps=60)
@faulty(
    "multi-head",
    "one-head-rules",
    "uneven-learning",
    {"weight": 1e6, "kind": "SGD", "lr": 1e-7},
    cure="scale",
    where="kind|kind.*",
    also=("update-too-small",),
    twin={"kind": "SGD", "lr": 0.05},
    steps=80,
)
@faulty(
    "multi-head",
    "second-head-without-loss",
    "no-gradient",
    {"weight": None},
    cure="structural",
    where="size|size.*",
    steps=60,
    static=lambda run: run.model.size.weight.grad is None,
)  # type: ignore[union-attr]
def heads(seed: int, weight: float | None = 0.5, kind: str = "Adam", lr: float = 5e-3) -> Run:
    """A class and a number from one trunk."""
    model = Heads()

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        number = (target.float()[:, None] - 4.5) / 3
        cross = F.cross_entropy(output[0], target)
        return cross if weight is None else cross + weight * F.mse_loss(output[1], number)

    return Run(
        model,
        optimizer_of(model, kind, lr),
        mixture(seed),
        loss,
        metric=lambda output, y: F.cross_entropy(output[0], y),
    )
