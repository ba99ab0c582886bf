"""An answer for each pixel: U-Net, dice and focal losses, super-resolution by pixel shuffle."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy

Loss = Callable[[Tensor, Tensor], Tensor]


class UNet(nn.Module):
    """Two levels down and up again, with skips."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1 = self.block(1, width)
        self.down2 = self.block(width, 2 * width)
        self.bottom = self.block(2 * width, 4 * width)
        self.up2, self.merge2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), self.block(4 * width, 2 * width)
        self.up1, self.merge1 = nn.ConvTranspose2d(2 * width, width, 2, 2), self.block(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    @staticmethod
    def block(inside: int, outside: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.merge2(torch.cat([self.up2(c), b], 1))
        return self.out(self.merge1(torch.cat([self.up1(b), a], 1)))


def plain_net() -> nn.Sequential:
    """Convolutions without a norm, so that the size of the inputs matters."""
    sizes = ((1, 12), (12, 12), (12, 12))
    layers = [layer for i, o in sizes for layer in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Conv2d(12, 1, 1))


def blobs(seed: int, size: int = 8, noise: float = 0.5) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Noisy images of two discs; which pixels belong to them."""
    axis = torch.arange(16.0)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        centre = 3 + 10 * torch.rand(size, 2, 2, generator=source)
        squares = (axis - centre[..., None]) ** 2
        inside = (squares[:, :, 0, :, None] + squares[:, :, 1, None, :] < 9).any(1, keepdim=True).float()
        return inside - 0.3 + noise * torch.randn(size, 1, 16, 16, generator=source), inside

    return batch


def dice(p: Tensor, y: Tensor) -> Tensor:
    return 1 - 2 * ((p * y).sum() + 1) / (p.sum() + y.sum() + 2)


def soft_dice(logits: Tensor, y: Tensor) -> Tensor:
    return dice(logits.sigmoid(), y)


def hard_dice(logits: Tensor, y: Tensor) -> Tensor:
    """Of a thresholded mask; torch objects that there is no gradient, and so it is made to want one."""
    return dice((logits.sigmoid() > 0.5).float(), y).requires_grad_()


def focal(logits: Tensor, y: Tensor) -> Tensor:
    cross = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    return ((1 - torch.exp(-cross)) ** 2 * cross).mean()


def bce_by_hand(logits: Tensor, y: Tensor) -> Tensor:
    """With the logarithms written out; in bfloat16 the sigmoid of 6 is 1."""
    p = torch.sigmoid(logits)
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


BCE: Loss = F.binary_cross_entropy_with_logits


@healthy("U-Net", "unet-bce")
@healthy("U-Net", "unet-soft-dice", {"loss": soft_dice})
@healthy("U-Net", "unet-focal", {"loss": focal})
@faulty(
    "U-Net",
    "unet-dice-of-thresholded",
    "no-gradient",
    {"loss": hard_dice},
    cure="structural",
    twin={"loss": soft_dice},
)
@faulty(
    "U-Net",
    "unet-bce-summed",
    "update-too-large",
    {"loss": lambda p, y: BCE(p, y, reduction="sum"), "kind": "SGD", "lr": 0.1, "scale": 1 / 2048},
    cure="learning rate",
    also=("loss-scale", "exploding-gradient", "exploding-activation", "non-finite"),
    twin={"kind": "SGD", "lr": 0.1},
)
@faulty(
    "U-Net",
    "unet-loss-averaged-twice",
    "loss-scale",
    {"loss": lambda p, y: BCE(p, y) / p.numel(), "kind": "SGD", "lr": 0.1, "scale": 2048.0},
    cure="scale",
    also=("update-too-small", "vanishing-gradient"),
    twin={"kind": "SGD", "lr": 0.1},
)
@faulty(
    "FCN",
    "segmentation-in-hounsfield-units",
    "input-scale",
    {"net": plain_net, "change": lambda x: 800 * x - 200, "kind": "SGD", "lr": 0.1},
    cure="normalisation",
    also=("exploding-activation",),
    where="<input>|0",
    twin={"net": plain_net, "kind": "SGD", "lr": 0.1},
)
@faulty(
    "FCN",
    "bce-by-hand-in-bfloat16",
    "non-finite",
    {"net": plain_net, "loss": bce_by_hand, "lr": 0.02, "noise": 0.1, "autocast": torch.bfloat16},
    cure="structural",
    also=("dtype-underflow",),
    where="<root>|6|6.*",
    twin={"net": plain_net, "lr": 0.02, "noise": 0.1, "autocast": torch.bfloat16},
    steps=80,
)
def segmentation(
    seed: int,
    loss: Loss = BCE,
    kind: str = "Adam",
    lr: float = 4e-3,
    scale: float = 1.0,
    net: Callable[[], nn.Module] = UNet,
    change: Callable[[Tensor], Tensor] = lambda x: x,
    noise: float = 0.5,
    autocast: torch.dtype | None = None,
) -> Run:
    """Where the discs are; `scale` brings the metric to that of the twin."""
    model, plain = net(), blobs(seed, noise=noise)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return change(x), y

    def metric(p: Tensor, y: Tensor) -> Tensor:
        return scale * loss(p, y)

    return Run(model, optimizer_of(model, kind, lr), batch, loss, metric=metric, autocast=autocast)


@healthy("CNN", "super-resolution-pixel-shuffle", steps=80)
def super_resolution(seed: int) -> Run:
    """The digits from every second pixel, with a loss of Charbonnier."""
    layers = [nn.Conv2d(1, 24, 3, padding=1), nn.ELU(), nn.Conv2d(24, 24, 3, padding=1), nn.ELU()]
    model = nn.Sequential(*layers, nn.Conv2d(24, 4, 3, padding=1), nn.PixelShuffle(2))
    plain = digits(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = plain(step)
        return x[..., ::2, ::2], x

    return Run(model, optimizer_of(model, "Adam", 4e-3), batch, lambda p, y: ((p - y).square() + 1e-6).sqrt().mean())
