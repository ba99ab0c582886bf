"""Data: a mixture of Gaussians, a teacher's regression, the digits, sequences. Each step's batch from its own seed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Batch = Callable[[int], tuple[Any, Any]]


def seeded(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step + 17)


def mixture(seed: int, size: int = 64, dim: int = 64, classes: int = 10, apart: float = 0.5) -> Batch:
    """Gaussian classes; each feature has mean about 0 and variance about 1."""
    means = apart * torch.randn(classes, dim, generator=seeded(seed, -1))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        label = torch.randint(classes, (size,), generator=source)
        x = means[label] + torch.randn(size, dim, generator=source)
        return x / (1 + apart**2) ** 0.5, label

    return batch


def teacher(seed: int, size: int = 64, dim: int = 16, noise: float = 0.1) -> Batch:
    """A smooth function of few features, standardised roughly: `(size, 1)`."""
    first, second = (torch.randn(dim, dim, generator=seeded(seed, -k)) / dim**0.5 for k in (2, 3))
    third = torch.randn(dim, 1, generator=seeded(seed, -4)) / dim**0.5

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        x = torch.randn(size, dim, generator=source)
        y = (torch.tanh(1.5 * x @ first) + x @ second) @ third
        return x, y + noise * torch.randn(size, 1, generator=source)

    return batch


@functools.cache
def all_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)


def digits(seed: int, size: int = 64, mean: float = 0.0, std: float = 1.0) -> Batch:
    """Handwritten digits, `(size, 1, 8, 8)`: (pixels in [0, 1] − mean) / std."""
    images, labels = all_digits()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (size,), generator=seeded(seed, step))
        return (images[rows] - mean) / std, labels[rows]

    return batch


def patterns(seed: int, size: int = 32, length: int = 20, dim: int = 4, classes: int = 4) -> Batch:
    """Noisy sequences `(size, length, dim)`, whose class is in the first steps: it has to be remembered."""
    shapes = 1.5 * torch.randn(classes, 3, dim, generator=seeded(seed, -5))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        label = torch.randint(classes, (size,), generator=source)
        x = torch.randn(size, length, dim, generator=source) * 0.2
        x[:, :3] += shapes[label]
        return x, label

    return batch


def oscillations(seed: int, size: int = 32, length: int = 20, dim: int = 3, classes: int = 4) -> Batch:
    """Noisy waves `(size, length, dim)`, whose class is their frequency: every step tells something."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        label = torch.randint(classes, (size,), generator=source)
        phase = 6.28 * torch.rand(size, 1, dim, generator=source)
        angle = torch.arange(length)[None, :, None] * (0.3 + 0.5 * label[:, None, None]) + phase
        return torch.sin(angle) + 0.2 * torch.randn(size, length, dim, generator=source), label

    return batch


def language(seed: int, size: int = 16, length: int = 16, vocabulary: int = 24, sharp: float = 2.5) -> Batch:
    """Tokens of a Markov chain `(size, length)` and the next ones."""
    chance = torch.softmax(sharp * torch.randn(vocabulary, vocabulary, generator=seeded(seed, -6)), -1)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        tokens = [torch.randint(vocabulary, (size,), generator=source)]
        for _ in range(length):
            tokens.append(torch.multinomial(chance[tokens[-1]], 1, generator=source)[:, 0])
        row = torch.stack(tokens, 1)
        return row[:, :-1], row[:, 1:]

    return batch


def from_step(batch: Batch, start: int, change: Callable[[Any, Any], tuple[Any, Any]], until: int = 1 << 30) -> Batch:
    """The batches, changed from a step on."""

    def changed(step: int) -> tuple[Any, Any]:
        found = batch(step)
        return change(*found) if start <= step < until else found

    return changed
