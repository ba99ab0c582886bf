"""The digits seen by Mixer, ConvNeXt, and convolutions with squeeze-and-excitation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class MixerBlock(nn.Module):
    """One MLP over the patches, one over the channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens = nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class Mixer(nn.Module):
    def __init__(self, depth: int = 3, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


@healthy("Mixer", "mixer-digits")
@faulty(
    "Mixer",
    "mixer-pixels-floor-divided",
    "input-scale",
    {"floor": True},
    cure="normalisation",
    also=("collapsed-batch", "vanishing-activation"),
    where="<input>|patch*",
)
def mixer(seed: int, floor: bool = False) -> Run:
    """Pixels of 0 to 255; the floor of a division by 255 leaves nothing but zeros."""
    model, plain = Mixer(), digits(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        raw = (x * 254).long()
        return ((raw // 255).float() if floor else raw / 255), y

    return Run(model, optimizer_of(model, "AdamW", 4e-3), batch, F.cross_entropy)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, LayerNorm over channels, an inverted bottleneck, a learned scale of each channel."""

    def __init__(self, width: int, scale: float, skip: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.scale * self.project(F.gelu(self.expand(y)))).permute(0, 3, 1, 2)
        return x + y if self.skip else y


@healthy("ConvNeXt", "convnext-layer-scale")
@faulty(
    "ConvNeXt",
    "convnext-skip-forgotten",
    "vanishing-activation",
    {"skip": False},
    cure="structural",
    also=("vanishing-gradient", "init-mismatch"),
    where="blocks*",
)
def convnext(seed: int, skip: bool = True) -> Run:
    """With the layer scale of the paper, 1e-6, which only the skip makes harmless."""
    blocks = nn.Sequential(*(ConvNeXtBlock(16, 1e-6, skip) for _ in range(4)))
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(1, 16, 2, 2))
    model.add_module("blocks", blocks)
    model.add_module("pool", nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    return Run(model, optimizer_of(model, "AdamW", 4e-3), digits(seed), F.cross_entropy)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, bias: float | None) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.gate = nn.Sigmoid()
        if bias is not None:
            nn.init.constant_(self.excite.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]


@healthy("SE-Net", "squeeze-excite")
@healthy("SE-Net", "squeeze-excite-instance-norm", {"norm": "instance"})
@faulty(
    "SE-Net",
    "squeeze-excite-gates-shut",
    "vanishing-activation",
    {"bias": -9.0},
    cure="init",
    also=("saturated-units", "vanishing-gradient", "init-mismatch"),
    where="*gate*|*excite*|[1470]|1.*|4.*|7.*",
)
@faulty(
    "SE-Net",
    "group-norm-of-single-values",
    "collapsed-batch",
    {"norm": "end"},
    cure="structural",
    also=("vanishing-activation", "vanishing-gradient", "no-gradient"),
    where="11|10",
)
def squeeze_excite(seed: int, bias: float | None = None, norm: str = "") -> Run:
    """Three convolutions with gated channels; a group norm after pooling sees groups of one value each."""
    layers: list[nn.Module] = []
    for inside in (1, 24, 24):
        layers += [nn.Conv2d(inside, 24, 3, padding=1), SqueezeExcite(24, bias), nn.ReLU()]
        if norm == "instance":
            layers[-2] = nn.Sequential(nn.InstanceNorm2d(24, affine=True), layers[-2])
    ends = [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.GroupNorm(96, 96) if norm == "end" else nn.Identity()]
    model = nn.Sequential(*layers, *ends, nn.Linear(96, 10))
    return Run(model, optimizer_of(model, "Adam", 4e-3), digits(seed), F.cross_entropy)
