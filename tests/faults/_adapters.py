"""Adapters, fine-tuning and distillation of what was learned before."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture
from tests.faults._mlp import stack
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


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
