"""Distances: triplets, prototypes, cosine classifiers, rotations, and a teacher that is a running mean."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, seeded
from tests.faults._parts import error_rate, optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


def encoder(outside: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outside))


def triplet(z: Tensor, y: Tensor) -> Tensor:
    """Of each point, the furthest of its class and the mean distance to the other classes."""
    distance = torch.cdist(z, z + 1e-6)
    same = y[:, None] == y[None]
    furthest = distance.masked_fill(~same, 0).amax(1)
    others = (distance * ~same).sum(1) / (~same).sum(1)
    return F.relu(furthest - others + 1).mean()


def prototypes(z: Tensor, y: Tensor) -> Tensor:
    """Few-shot: distances to the means of each class in the first half of the batch."""
    half = len(z) // 2
    members = F.one_hot(y[:half], 10).float()
    means = members.T @ z[:half] / members.sum(0).clamp(min=1)[:, None]
    return F.cross_entropy(-torch.cdist(z[half:], means).square(), y[half:])


def cosine_pairs(z: Tensor, y: Tensor) -> Tensor:
    half = len(z) // 2
    together = 2.0 * (y[:half] == y[half:]) - 1
    return F.cosine_embedding_loss(z[:half], z[half:], together, margin=0.2)


@healthy("metric learning", "triplet-margin", {"loss": triplet})
@healthy("prototypes", "prototypical-network", {"loss": prototypes})
@healthy("metric learning", "cosine-embedding-pairs", {"loss": cosine_pairs, "lr": 5e-3}, steps=100)
def metric_learning(seed: int, loss: object = triplet, lr: float = 3e-3) -> Run:
    """Digits near those of their class."""
    model = encoder()
    return Run(model, optimizer_of(model, "Adam", lr), digits(seed), loss)  # type: ignore[arg-type]


class Cosine(nn.Module):
    """Logits are cosines with a vector of each class, times a scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.classes, self.scale = encoder(), nn.Linear(16, 10, bias=False), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(self.body(x)), F.normalize(self.classes.weight))


@healthy("cosine classifier", "cosine-classifier-scaled")
@faulty(
    "cosine classifier",
    "cosine-classifier-not-scaled",
    "output-pairing",
    {"scale": 1.0},
    cure="scale",
    also=("loss-scale",),
    where="<root>|classes*",
)
def cosine_classifier(seed: int, scale: float = 16.0) -> Run:
    """Cross-entropy of numbers within [−1, 1] cannot get small."""
    model = Cosine(scale)
    return Run(model, optimizer_of(model, "Adam", 5e-3), digits(seed), F.cross_entropy)


class Poses(nn.Module):
    """A unit quaternion from points; as often done it starts at the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(18, 64), nn.ReLU()), nn.Linear(64, 4)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([1.0, 0, 0, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.body(x)))


@healthy("pose", "rotations-chordal")
@faulty("pose", "rotations-arccos-of-1", "non-finite", {"arccos": True}, cure="structural", where="<root>|head*")
def rotations(seed: int, arccos: bool = False) -> Run:
    """How six points were turned; one view of each batch is not turned at all."""
    model, points = Poses(), torch.randn(6, 3, generator=seeded(seed, -10))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        q = F.normalize(torch.tensor([2.0, 0, 0, 0]) + torch.randn(64, 4, generator=source))
        q[0] = torch.tensor([1.0, 0, 0, 0])
        axis = q[:, None, 1:].expand(-1, 6, -1)
        side = 2 * torch.linalg.cross(axis, points.expand(64, -1, -1))
        turned = points + q[:, :1, None] * side + torch.linalg.cross(axis, side)
        return turned.flatten(1), q

    def loss(p: Tensor, q: Tensor) -> Tensor:
        cosine = (p * q).sum(1).abs()
        return 2 * torch.acos(cosine.clamp(max=1)).mean() if arccos else (1 - cosine**2).mean()

    def metric(p: Tensor, q: Tensor) -> Tensor:
        return (1 - (p * q).sum(1) ** 2).mean()

    return Run(model, optimizer_of(model, "Adam", 3e-3), batch, loss, metric=metric)


class MeanTeacher(nn.Module):
    """The student, and a teacher that is the running mean of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.student = encoder(10)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for p, q in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                p.lerp_(q, 0.05)
        return self.student(x + noise), self.teacher(x)


@healthy("semi-supervised", "mean-teacher", steps=80, goal=0.3)
def mean_teacher(seed: int) -> Run:
    """Eight labels of each batch, and the teacher's opinion of the rest."""
    model, plain = MeanTeacher(), digits(seed)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        x, y = plain(step)
        return (x, 0.1 * torch.randn(x.shape, generator=seeded(seed, step))), y

    def loss(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        student, teacher = output
        return F.cross_entropy(student[:16], y[:16]) + F.mse_loss(student.softmax(1), teacher.softmax(1))

    optimizer = optimizer_of(model.student, "Adam", 5e-3)
    return Run(model, optimizer, batch, loss, metric=lambda output, y: error_rate(output[0], y))
