"""Healthy programs with optimizers, schedules and starts that look odd and are right."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator, images
from tests.faults_second._registry import healthy


def mlp(width: int = 64, act: type[nn.Module] = nn.ReLU, drop: float = 0.0) -> nn.Sequential:
    ends = [nn.Dropout(drop)] if drop else []
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), act(), nn.Linear(width, width), act(), *ends, nn.Linear(width, 10)
    )


class Sharpness(torch.optim.SGD):
    """SAM: the gradient is taken a little uphill of where the weights are."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        weights = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        steps = [0.05 * p.grad / norm for p in weights]
        with torch.no_grad():
            for p, by in zip(weights, steps, strict=True):
                p.add_(by)
        closure()
        with torch.no_grad():
            for p, by in zip(weights, steps, strict=True):
                p.sub_(by)
        super().step()
        return loss


@healthy("MLP", "sharpness-aware", steps=80)
def sharpness(seed: int) -> Run:
    model = mlp()
    optimizer = Sharpness(model.parameters(), lr=0.05, momentum=0.9)

    def loop(run: Run, steps: int, scope: Any) -> list[float]:
        losses = []
        for step in range(steps):
            x, y = run.batch(step)

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
        return losses

    return Run(model, optimizer, images(seed), F.cross_entropy, loop=loop)


class Signs(torch.optim.SGD):
    """signSGD: every weight moves by the rate."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.sign_()
        super().step()


class Orthogonal(torch.optim.SGD):
    """Muon in small: the momentum of a matrix is replaced by the orthogonal matrix next to it."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim == 2:
                    u, _, v = torch.linalg.svd(p.grad, full_matrices=False)
                    p.grad.copy_(u @ v * (p.shape[0] / p.shape[1]) ** 0.5)
        super().step()


OPTIMIZERS: dict[str, Any] = {
    "signs": lambda p: Signs(p, lr=1e-3),
    "orthogonal": lambda p: Orthogonal(p, lr=0.02, momentum=0.9),
    "adamax": lambda p: torch.optim.Adamax(p, lr=5e-3),
    "large-decay": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=5.0),
    "sgd-decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-3),
    "large-epsilon": lambda p: torch.optim.Adam(p, lr=0.1, eps=0.1),
    "no-momentum": lambda p: torch.optim.Adam(p, lr=3e-3, betas=(0.0, 0.99)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True),
    "maximize": lambda p: torch.optim.Adam(p, lr=3e-3, maximize=True),
}


@healthy("MLP", "optimizer-signs", {"which": "signs"}, steps=100)
@healthy("MLP", "optimizer-orthogonal", {"which": "orthogonal"}, steps=60)
@healthy("MLP", "optimizer-adamax", {"which": "adamax"})
@healthy("MLP", "optimizer-decay-of-5-at-3e-3", {"which": "large-decay"})
@healthy("MLP", "optimizer-sgd-decay-of-5e-3", {"which": "sgd-decay"})
@healthy("MLP", "optimizer-large-epsilon-large-rate", {"which": "large-epsilon"})
@healthy("MLP", "optimizer-without-first-moment", {"which": "no-momentum"})
@healthy("MLP", "optimizer-amsgrad", {"which": "amsgrad"})
@healthy("MLP", "optimizer-maximizes-the-likelihood", {"which": "maximize"})
def optimizers(seed: int, which: str) -> Run:
    model = mlp(act=nn.GELU)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return -F.cross_entropy(output, target) if which == "maximize" else F.cross_entropy(output, target)

    return Run(model, OPTIMIZERS[which](model.parameters()), images(seed), loss_fn, F.cross_entropy)


@healthy("MLP", "stopped-after-eight-steps", {"steps_": 8}, steps=8)
@healthy("MLP", "polynomial-to-0", {"schedule": "poly"}, steps=100)
@healthy("MLP", "warm-up-of-40-of-100-steps", {"schedule": "warm"}, steps=100)
@healthy("MLP", "half-of-all-units-dropped", {"drop": 0.5}, steps=100)
@healthy("MLP", "images-mixed", {"mix": True}, steps=100, goal=1.9)
@healthy("MLP", "batches-of-2", {"size": 2, "rate": 5e-4}, steps=300)
@healthy("MLP", "noise-on-every-gradient", {"noise": 0.01}, steps=100)
def habits(
    seed: int,
    schedule: str = "",
    drop: float = 0.0,
    mix: bool = False,
    size: int = 64,
    rate: float = 3e-3,
    noise: float = 0.0,
    steps_: int = 0,
) -> Run:
    model = mlp(drop=drop)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2 if steps_ else rate)
    plain = images(seed, size)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        share = torch.rand(1, generator=generator(seed, -step - 9)) / 3
        target = F.one_hot(y, 10).float()
        return ((1 - share) * x + share * x.flip(0), (1 - share) * target + share * target.flip(0)) if mix else (x, y)

    scheduler = {
        "": lambda: None,
        "poly": lambda: torch.optim.lr_scheduler.PolynomialLR(optimizer, 100, power=2),
        "warm": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=40),
    }[schedule]()
    for parameter in model.parameters() if noise else ():
        parameter.register_hook(lambda grad: grad + noise * torch.randn_like(grad))
    return Run(model, optimizer, batch, F.cross_entropy, scheduler=scheduler)
