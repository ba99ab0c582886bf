"""What is trained: four models of everyday kinds, and multilayer perceptrons of any size by name (`mlp-64x20`).

W1, W2 and W4 are small on purpose: the less a step does, the more a recorder weighs. Weights are PyTorch's own default.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

VOCABULARY = 1000


@dataclass(frozen=True)
class Workload:
    """A model in training on one batch.

    `steps` is how many steps make a block of 0.2 to 0.5 seconds on one core of a present-day server.
    """

    title: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    loss_of: Callable[[Tensor], Tensor]
    steps: int

    def loss(self) -> Tensor:
        """The loss of the batch, a number with a graph."""
        return self.loss_of(self.model(self.inputs))


def mlp(width: int, depth: int, steps: int) -> Workload:
    """`depth` times Linear and ReLU, `width` units each, 128 inputs, SGD."""
    model = nn.Sequential(*(module for _ in range(depth) for module in (nn.Linear(width, width), nn.ReLU())))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    title = f"MLP {depth} × {width}, batch 128, SGD"
    return Workload(title, model, optimizer, torch.randn(128, width), lambda y: y.square().mean(), steps)


class ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        z: Tensor = self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
        return z


def resnet() -> Workload:
    """He et al. (2016), section 4.2, with n = 3: 20 layers for 32 × 32 pictures."""
    stages = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        *(ResidualBlock(*stage) for stage in stages),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    target = torch.randint(0, 10, (32,))
    return Workload(
        "ResNet-20, batch 32 of 3 × 32 × 32, SGD with momentum",
        model,
        optimizer,
        torch.randn(32, 3, 32, 32),
        lambda y: cross_entropy(y, target),
        steps=2,
    )


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return out


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class GPT(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1]))
        y: Tensor = self.head(self.norm(self.blocks(x)))
        return y


class LSTM(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(self.embedding(tokens))[0])
        return y


def gpt() -> Workload:
    """A decoder with norms before its layers (Radford et al., 2019)."""
    model = GPT(width=256, depth=6, heads=8, tokens=128)
    title = "GPT 6 × 256, 8 heads, 8 × 128 tokens, AdamW"
    return _language(title, model, torch.optim.AdamW(model.parameters(), lr=1e-4), (8, 128), steps=1)


def lstm() -> Workload:
    """Two layers of 256 units below a linear head."""
    model = LSTM(256)
    title = "LSTM 2 × 256, 16 × 64 tokens, Adam"
    return _language(title, model, torch.optim.Adam(model.parameters(), lr=1e-4), (16, 64), steps=3)


def _language(
    title: str, model: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, int], steps: int
) -> Workload:
    tokens = torch.randint(0, VOCABULARY, shape)
    return Workload(title, model, optimizer, tokens, lambda y: cross_entropy(y.flatten(0, 1), tokens.flatten()), steps)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "W1": lambda: mlp(256, 50, steps=5),
    "W2": resnet,
    "W3": gpt,
    "W4": lstm,
}


def workload(name: str) -> Workload:
    """`W1` to `W4`, or `mlp-WIDTHxDEPTH`; always the same weights and batch.

    Raises:
        ValueError: there is none of that name.
    """
    torch.manual_seed(0)
    if name in WORKLOADS:
        return WORKLOADS[name]()
    sizes = re.fullmatch(r"mlp-([1-9]\d*)x([1-9]\d*)", name)
    if sizes is None:
        raise ValueError(f"workload is {name!r}; it is one of {', '.join(WORKLOADS)} or mlp-WIDTHxDEPTH")
    width, depth = int(sizes[1]), int(sizes[2])
    step_ns = depth * (128 * width * width / 8 + 50_000)  # three products of two operations at 50 GFLOP/s
    return mlp(width, depth, steps=min(200, max(2, round(3e8 / step_ns))))
