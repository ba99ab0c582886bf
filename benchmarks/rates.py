"""Which learning rates the diagnosis calls too small, too large, or neither: `python -m benchmarks.rates`.

Five small models of scikit-learn's digits, three optimizers, eleven rates from 1e-6 to 3; a hundred steps of 64 samples
each. A rate is *good* where its loss ends within twice that of the best rate, and *too large* where it is above the
best one and its loss ends at four times the best or more, or is not finite: the first should have no finding, the
second one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradscope import GradScope

STEPS, BATCH, TAIL = 100, 64, 10
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
GOOD, BAD = 2.0, 4.0


def _perceptron(act: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 10))


def _convolutional(norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), *([nn.BatchNorm2d(outside)] if norm else [])]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


class Rows(nn.Module):
    """A transformer over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(8, 32), nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x[:, 0]) + self.places).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP, ReLU": lambda: _perceptron(nn.ReLU),
    "MLP, tanh": lambda: _perceptron(nn.Tanh),
    "CNN": lambda: _convolutional(norm=False),
    "CNN, batch norm": lambda: _convolutional(norm=True),
    "transformer": Rows,
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "SGD, momentum 0.9": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "Adam": torch.optim.Adam,
}


def ending(model: Callable[[], nn.Module], optimizer: str, rate: float) -> tuple[float, list[str]]:
    """Where the loss ends, the mean over the last ten steps, and the rules that speak."""
    pixels, digits = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits)
    torch.manual_seed(0)
    net = model()
    chosen = OPTIMIZERS[optimizer](net.parameters(), lr=rate)
    generator, losses = torch.Generator().manual_seed(1), []
    with GradScope(net, chosen, every=1) as scope:
        for _ in range(STEPS):
            rows = torch.randint(0, len(x), (BATCH,), generator=generator)
            chosen.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            scope.note(loss=loss)
            loss.backward()
            chosen.step()
            losses.append(loss.item())
        found = [one.rule for one in scope.diagnose() if one.severity != "note"]
    return float(np.mean(losses[-TAIL:])), found


def main() -> None:
    torch.set_num_threads(1)
    good, large = [0, 0], [0, 0]
    print("| model | optimizer | rate | loss | of the best | said |\n| --- | --- | --- | --- | --- | --- |")
    for name, model in MODELS.items():
        for optimizer in OPTIMIZERS:
            rows = [(rate, *ending(model, optimizer, rate)) for rate in RATES]
            best = min(loss for _, loss, _ in rows if np.isfinite(loss))
            best_rate = next(rate for rate, loss, _ in rows if loss == best)
            for rate, loss, said in rows:
                ratio = loss / best if np.isfinite(loss) else np.inf
                print(f"| {name} | {optimizer} | {rate:g} | {loss:.3g} | {ratio:.2g} | {', '.join(said) or '–'} |")
                if ratio <= GOOD:
                    good[0], good[1] = good[0] + bool(said), good[1] + 1
                elif rate > best_rate and ratio >= BAD:
                    large[0], large[1] = large[0] + bool(said), large[1] + 1
    print(f"\ngood rates with a finding: {good[0]} of {good[1]}; too large rates with one: {large[0]} of {large[1]}")


if __name__ == "__main__":
    main()
