"""Train a 20-layer network on scikit-learn's digits from four starts, each under GradScope, and report on each.

Run it with `.venv/bin/python scripts/train_digits.py [OUT]`; recordings and pictures go to OUT (reports/digits).
The same data, order, depth, width, optimizer and steps: only the activation and the initial weights differ.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradscope import GradScope, Recording, init
from gradscope.cli import main as report
from gradscope.recording import decades_per_layer

DEPTH, WIDTH, STEPS, BATCH, RATE = 20, 64, 300, 128, 0.003


@dataclass(frozen=True)
class Start:
    name: str
    activation: type[nn.Module]
    scheme: str


STARTS = (
    Start("logistic_glorot", nn.Sigmoid, "glorot_normal"),
    Start("relu_torch_default", nn.ReLU, "torch_default"),
    Start("relu_naive_normal", nn.ReLU, "naive_normal"),
    Start("relu_he", nn.ReLU, "he_normal"),
)


def data() -> tuple[Tensor, Tensor]:
    """Images scaled to mean 0 and variance 1 over the set, `(1797, 64)`, and their labels."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(digits.target)


def network(start: Start) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(DEPTH - 1):
        layers += [nn.Linear(WIDTH, WIDTH), start.activation()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    init.initialize(model, start.scheme, generator=torch.Generator().manual_seed(0))
    return model


def train(start: Start, log: Path, steps: int = STEPS) -> tuple[Recording, float]:
    """The recording of one run and its accuracy on all images."""
    images, labels = data()
    model = network(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    with GradScope(model, optimizer, log=log) as scope:
        for _ in range(steps):
            batch = torch.randint(len(images), (BATCH,), generator=order)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(scope(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            scope.note(loss=loss)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
    return scope.recording, accuracy


def _row(start: Start, recording: Recording, accuracy: float) -> str:
    slopes = []
    for signal in ("activation", "activation_grad"):
        profile = recording.profile(signal, "rms", 0, role="pre-activation")
        slopes.append(decades_per_layer(profile.values, profile.direction))
    loss = recording.notes("loss")
    return f"{start.name:20} {slopes[0]:+8.3f} {slopes[1]:+9.3f} {loss[0]:11.4g} {loss[-1]:11.4g} {accuracy:9.1%}"


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = ["start                 forward  backward  first loss   last loss  accuracy"]
    for start in STARTS:
        log = out / f"{start.name}.gscope"
        log.unlink(missing_ok=True)
        recording, accuracy = train(start, log)
        lines.append(_row(start, recording, accuracy))
        print(f"\n== {start.name}", flush=True)
        report(["show", str(log), "--out", str(out / start.name)])
    print("\ndecades per layer at the first step, loss and accuracy on scikit-learn's digits")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("reports/digits"))
