"""What the programs learn from: the small tables of scikit-learn as they are, and sequences made on the spot."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from sklearn import datasets
from torch import Tensor

Batch = Callable[[int], tuple[Tensor, Tensor]]


@functools.cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """Features (rows, columns) and targets of `wine`, `breast_cancer`, `diabetes`, `iris` or `digits`, raw."""
    settings = {"scaled": False} if name == "diabetes" else {}
    found = getattr(datasets, f"load_{name}")(**settings)
    y = torch.tensor(found.target)
    return torch.tensor(found.data, dtype=torch.float32), y.float() if name == "diabetes" else y.long()


def standardized(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def generator(seed: int, step: int) -> torch.Generator:
    mixed = ((seed * 1_000_003 + step + 12_345) * 2_654_435_761) ^ 0x9E3779B9  # neighbouring seeds give kindred draws
    return torch.Generator().manual_seed(mixed % 2**32)


def batches(x: Tensor, y: Tensor, seed: int, size: int = 64) -> Batch:
    """Rows drawn at random, anew in each step."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (size,), generator=generator(seed, step))
        return x[rows], y[rows]

    return batch


def images(seed: int, size: int = 64, *, mean: float = 0.305, std: float = 0.376) -> Batch:
    """Digits of 8×8 as (size, 1, 8, 8), pixels of 0 to 1 less `mean` over `std`."""
    x, y = table("digits")
    return batches((x.view(-1, 1, 8, 8) / 16 - mean) / std, y, seed, size)


@functools.cache
def corpus(vocabulary: int = 32, seed: int = 7, length: int = 20_000) -> Tensor:
    """Tokens, each of which is followed by one of few others."""
    made = generator(seed, 0)
    follow = torch.softmax(3 * torch.randn(vocabulary, vocabulary, generator=made), 1)
    choice = torch.multinomial(follow, length, replacement=True, generator=made)
    tokens = [0]
    for place in range(length - 1):
        tokens.append(int(choice[tokens[-1], place]))
    return torch.tensor(tokens)


def language(seed: int, size: int = 16, length: int = 24, vocabulary: int = 32) -> Batch:
    """Windows of tokens (size, length), and the tokens that follow each."""
    tokens = corpus(vocabulary)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(tokens) - length - 1, (size, 1), generator=generator(seed, step))
        window = tokens[starts + torch.arange(length + 1)]
        return window[:, :-1], window[:, 1:]

    return batch


def recall(seed: int, size: int = 64, length: int = 30, kinds: int = 4) -> Batch:
    """The first of `length` one-hot symbols (size, length, kinds + 2) is to be named at the end, past noise."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        y = torch.randint(kinds, (size,), generator=made)
        x = torch.zeros(size, length, kinds + 2)
        x[:, 0, :kinds] = torch.nn.functional.one_hot(y, kinds).float()
        x[:, 1:, kinds:] = torch.randn(size, length - 1, 2, generator=made)
        return x, y

    return batch
