"""Embeddings and distances: word2vec, matrix factorization, triplets, prototypes, cosine classifiers, rotations."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, language, seeded
from tests.faults._parts import error_rate, optimizer_of, tokens_loss
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class SkipGram(nn.Module):
    """A word and a context: the product of two vectors."""

    def __init__(self, sparse: bool, start: float | None) -> None:
        super().__init__()
        self.word, self.context = nn.Embedding(60, 24, sparse=sparse), nn.Embedding(60, 24, sparse=sparse)
        nn.init.uniform_(self.word.weight, -0.02, 0.02)
        nn.init.zeros_(self.context.weight)
        if start is not None:
            nn.init.constant_(self.word.weight, start)

    def forward(self, word: Tensor, context: Tensor) -> Tensor:
        return (self.word(word)[:, None] * self.context(context)).sum(-1)


@healthy("word2vec", "word2vec-negative-sampling", steps=80)
@healthy("word2vec", "word2vec-sparse-adam", {"kind": "SparseAdam"}, steps=80)
@faulty(
    "word2vec",
    "word2vec-both-zero",
    "no-gradient",
    {"start": 0.0},
    cure="init",
    also=("symmetric-units", "vanishing-activation", "vanishing-gradient", "init-mismatch"),
    steps=80,
)
def skip_gram(seed: int, kind: str = "Adam", start: float | None = None) -> Run:
    """Words of ten topics; one true context and five at random. Vectors of contexts start at zero, as in the paper."""
    model = SkipGram(kind == "SparseAdam", start)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = seeded(seed, step)
        word = torch.randint(60, (128,), generator=source)
        true = word // 6 * 6 + torch.randint(6, (128,), generator=source)
        context = torch.cat([true[:, None], torch.randint(60, (128, 5), generator=source)], 1)
        return (word, context), F.one_hot(torch.zeros(128, dtype=torch.long), 6).float()

    return Run(model, optimizer_of(model, kind, 0.03), batch, F.binary_cross_entropy_with_logits)


class Factors(nn.Module):
    def __init__(self, std: float) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 64), nn.Embedding(40, 64)
        self.mean = nn.Parameter(torch.tensor(3.0))
        if std != 1:
            nn.init.normal_(self.users.weight, std=std)
            nn.init.normal_(self.items.weight, std=std)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.mean + (self.users(user) * self.items(item)).sum(-1)


@healthy("matrix factorization", "ratings-factorized", steps=80)
@faulty(
    "matrix factorization",
    "ratings-factorized-default",
    "default-init",
    {"std": 1.0},
    cure="init",
    also=("init-mismatch", "exploding-activation", "output-pairing", "exploding-gradient"),
    steps=80,
    where="users*|items*|<root>",
)
def factorized(seed: int, std: float = 0.1) -> Run:
    """Ratings of 1 to 5; embeddings of PyTorch start at N(0, 1), and a product of 64 of them at N(0, 64)."""
    model = Factors(std)
    taste, kind = (torch.randn(n, 3, generator=seeded(seed, -9)) for n in (50, 40))

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = seeded(seed, step)
        user, item = torch.randint(50, (256,), generator=source), torch.randint(40, (256,), generator=source)
        return (user, item), (3 + (taste[user] * kind[item]).sum(-1)).clamp(1, 5)

    return Run(model, optimizer_of(model, "Adam", 0.02), batch, F.mse_loss)


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


class Mixture(nn.Module):
    """A mixture of softmaxes over the next token: logarithms of probabilities."""

    def __init__(self, kinds: int = 3, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.gru = nn.Embedding(24, width), nn.GRU(width, width, batch_first=True)
        self.prior, self.each, self.kinds = nn.Linear(width, kinds), nn.Linear(width, kinds * 24), kinds

    def forward(self, ids: Tensor) -> Tensor:
        h, _ = self.gru(self.tokens(ids))
        logs = F.log_softmax(self.each(h).unflatten(-1, (self.kinds, 24)), -1)
        return torch.logsumexp(logs + F.log_softmax(self.prior(h), -1)[..., None], -2)


@healthy("language model", "mixture-of-softmaxes")
def softmaxes(seed: int) -> Run:
    model = Mixture()
    return Run(model, optimizer_of(model, "Adam", 8e-3), language(seed), tokens_loss)


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
