"""Embeddings: word2vec, matrix factorization, a mixture of softmaxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import language, seeded
from tests.faults._parts import optimizer_of, tokens_loss
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
