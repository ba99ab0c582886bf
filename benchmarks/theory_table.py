"""How well theory holds, as tables in a page: `python -m benchmarks.theory_table [docs/theory.md]`, a few minutes.

Predicted is what `gradscope.predict` and the sweep's curves say, measured what a probe of the same networks finds. The
models are those of `tests/test_prediction.py`. Ratios are predicted/measured, geometric means over networks; gradients
are taken relative to the last site's, since the one put in at an output of few entries has not quite the rms 1.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope import SweepConfig, predict, probe, sweep
from gradscope.experiments import plain_network
from gradscope.recording import Recording, SweepCell
from gradscope.testing import assert_matches_theory
from gradscope.theory.prediction._prediction import predicted
from gradscope.theory.prediction._value import Value
from tests.test_prediction import MODELS, SEEDS, he, hugging_face

PLACE = re.compile(r"(?<=<!-- theory -->\n).*?(?=<!-- /theory -->)", re.DOTALL)
SIGNALS = {"activation": "forward", "activation_grad": "backward"}
PLAIN = [
    ("he_normal", "relu", 50),
    ("torch_default", "relu", 50),
    ("glorot_normal", "tanh", 50),
    ("orthogonal", "tanh", 50),
    ("glorot_normal", "sigmoid", 50),
    ("lecun_normal", "selu", 50),
    ("he_normal", "gelu", 10),
    ("he_normal", "silu", 10),
]
NETWORKS = 16


def main(page: Path) -> None:
    torch.set_num_threads(1)
    parts = [
        ("### Plain networks", *plain()),
        ("### Whole models", *zoo()),
        ("### Where it is poor", *poor()),
    ]
    text = "\n\n".join(f"{title}\n\n{table(head, rows)}" for title, head, rows in parts)
    before = page.read_text()
    after, places = PLACE.subn(lambda _: f"\n{text}\n\ntorch {torch.__version__}, one thread.\n\n", before)
    if places != 1:
        raise ValueError(f"{page} has no lines <!-- theory --> and <!-- /theory -->: the place of the tables")
    page.write_text(after)
    print(text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


# --- plain networks ------------------------------------------------------------------------------------------


def plain() -> tuple[list[str], list[list[str]]]:
    """The far end of each curve: the last layer's pre-activations, the first one's gradient."""
    head = ["weights · activation", "layers", "direction", "predicted", "measured", "ratio", "z", "one step, largest z"]
    rows = []
    for scheme, activation, depth in PLAIN:
        config = SweepConfig(init=scheme, activation=activation, depth=depth, width=256, batch=1, seeds=NETWORKS)
        (cell,) = sweep(config).cells
        steps = largest_scores(config, scheme, activation, depth)
        rows += [[f"{scheme} · {activation}", str(depth), *row] for row in ends(cell, steps)]
    return head, rows


def ends(cell: SweepCell, steps: tuple[float, float]) -> Iterator[list[str]]:
    """Of one input the mean of ln(mean square) is ln(expected) − v/2: z is of its mean over the networks."""
    expected = cell.expected
    assert expected is not None
    sides = (
        ("forward", cell.pre[:, -1], expected.pre[-1], expected.forward_var[-1], steps[0]),
        ("backward", cell.pre_grad[:, 0], expected.pre_grad[0], expected.backward_var[0], steps[1]),
    )
    for direction, measured, curve, variance, step in sides:
        away = float(np.mean(2.0 * np.log(measured))) - 2.0 * math.log(10.0) * curve + variance / 2.0
        z, typical = away / math.sqrt(variance / len(measured)), float(np.exp(np.mean(np.log(measured))))
        predicted = 10.0**curve
        yield [
            direction,
            f"{predicted:.3g}",
            f"{typical:.3g}",
            f"{predicted / typical:.3f}",
            f"{z:+.1f}",
            f"{step:.1f}",
        ]


def largest_scores(config: SweepConfig, scheme: str, activation: str, depth: int) -> tuple[float, float]:
    """Largest |z| of any place in the first four networks, each layer predicted from the measured one before it."""
    found = []
    for seed in range(4):
        model, inputs, _ = plain_network(config, scheme, activation, depth, 256, seed)
        match = assert_matches_theory(model, inputs, z=1e9)
        found.append((np.abs(match.forward_z).max(), np.abs(match.backward_z).max()))
    forward, backward = np.max(found, axis=0)
    return float(forward), float(backward)


# --- whole models --------------------------------------------------------------------------------------------


def zoo() -> tuple[list[str], list[list[str]]]:
    head = [
        "model", "networks", "direction", "sites", "within 20 %", "worst ratio", "geometric mean",
        "decades per layer: predicted", "measured", "difference",
    ]  # fmt: skip
    rows = []
    for name, make in MODELS.items():
        seeds = SEEDS.get(name, 3)
        ratios, slopes = compared(make, seeds)
        for signal, direction in SIGNALS.items():
            means = {site: float(np.mean(logs)) for (what, site), logs in ratios.items() if what == signal}
            values = np.array(list(means.values()))
            worst = max(means, key=lambda site: abs(means[site]))
            predicted, measured = np.mean(slopes[signal], 0)
            rows.append(
                [
                    name, str(seeds), direction, str(len(means)), f"{np.mean(np.abs(values) <= math.log(1.2)):.0%}",
                    f"{math.exp(means[worst]):.2f} ({worst})", f"{math.exp(float(values.mean())):.3f}",
                    f"{predicted:+.3f}", f"{measured:+.3f}", f"{predicted - measured:+.3f}",
                ]
            )  # fmt: skip
        print(*rows[-2:], sep="\n", file=sys.stderr)
    return head, rows


Ratios = dict[tuple[str, str], list[float]]


def compared(make: Callable[[], Any], seeds: int) -> tuple[Ratios, dict[str, list[tuple[float, float]]]]:
    """ln(predicted/measured) of each (signal, site), and both slopes, of each network."""
    ratios: Ratios = defaultdict(list)
    slopes = defaultdict(list)
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, inputs = make()
        theory, seen = predict(model, inputs), probe(model, inputs)
        for signal in SIGNALS:
            logs = log_ratios(theory, seen, signal)
            last = list(logs.values())[-1] if signal == "activation_grad" else 0.0
            for site, value in logs.items():
                ratios[signal, site].append(value - last)
            slopes[signal].append(tuple(r.profile(signal).decades_per_layer for r in (theory, seen)))
    return ratios, slopes


def log_ratios(theory: Recording, seen: Recording, signal: Any) -> dict[str, float]:
    by_name = dict(zip([site.name for site in seen.sites_of(signal)], seen.values(signal, "rms")[0], strict=True))
    expected = zip(theory.sites_of(signal), theory.values(signal, "rms")[0], strict=True)
    return {s.name: math.log(rms / by_name[s.name]) for s, rms in expected if by_name.get(s.name, 0.0) > 0.0}


# --- where it is poor ----------------------------------------------------------------------------------------


def poor() -> tuple[list[str], list[list[str]]]:
    head = ["what", "where", "predicted/measured", "over networks"]
    rows = []
    for pools in (1, 3, 5):
        ratios, _ = compared(lambda pools=pools: pooled(pools), 6)
        rows += both_ends(f"max-pooling, {pools} times", ratios)
    for batch in (4, 8, 32, 256):
        ratios, _ = compared(lambda batch=batch: batch_normed(batch), 6)
        rows += both_ends(f"10 × (linear, batch norm, ReLU), batch {batch}", ratios)
    for blocks in (4, 50):
        ratios, _ = compared(lambda blocks=blocks: post_normed(blocks), 4)
        rows += both_ends(f"{blocks} post-norm blocks", ratios)
    return head, [*rows, *by_position()]


def both_ends(what: str, ratios: Ratios) -> list[list[str]]:
    rows = []
    for signal, at, where in (("activation", -1, "last site, forward"), ("activation_grad", 0, "first site, backward")):
        logs = [values for (kind, _), values in ratios.items() if kind == signal][at]
        rows.append([what, where, *spread(logs)])
    return rows


def spread(logs: Sequence[float]) -> list[str]:
    return [f"{math.exp(np.mean(logs)):.3f}", f"{math.exp(min(logs)):.3f} – {math.exp(max(logs)):.3f}"]


def pooled(pools: int) -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for i in range(pools):
        layers += [nn.Conv2d(64 if i else 3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return he(nn.Sequential(*layers, nn.Conv2d(64, 64, 1))), torch.randn(4, 3, 64, 64)


def batch_normed(batch: int) -> tuple[nn.Module, Tensor]:
    layers = [m for _ in range(10) for m in (nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 256)), torch.randn(batch, 256)


class PostNorm(nn.Module):
    """norm(x + branch(x)) without an attention: what a post-norm transformer's feed-forward blocks do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x + self.second(torch.relu(self.first(x))))
        return y


def post_normed(blocks: int) -> tuple[nn.Module, Tensor]:
    return he(nn.Sequential(*(PostNorm(256) for _ in range(blocks)))), torch.randn(32, 256)


def by_position() -> Iterator[list[str]]:
    """What attention returns at each position of a Llama's sequence, and what theory says of each."""
    sites = [f"model.layers.{i}.self_attn.o_proj" for i in (0, 3)]
    groups = {"token 0": slice(0, 1), "tokens 1 – 3": slice(1, 4), "tokens 16 – 47": slice(16, 48), "all": slice(0, 48)}
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in range(SEEDS["llama"]):
        torch.manual_seed(seed)
        model, inputs = hugging_face("llama")()
        model.train(False)
        flow = predicted(model, lambda model=model, inputs=inputs: model(**inputs), list(inputs.values()))
        values = {one.module: flow.known[one.value] for one in flow.program.returned}
        for site in sites:
            value = values[site]
            assert isinstance(value, Value)
            places = value.alike.by_position(48)
            squares = np.repeat(places.same, places.sizes.astype(int))
            outputs: list[Tensor] = []
            handle = model.get_submodule(site).register_forward_hook(lambda m, x, y, to=outputs: to.append(y))
            with torch.no_grad():
                model(**inputs)
            handle.remove()
            for group, positions in groups.items():
                rms = float(outputs[0][:, positions].double().square().mean().sqrt())
                found[site, group].append(math.log(math.sqrt(squares[positions].mean()) / rms))
    for (site, group), logs in found.items():
        yield [f"llama, {site.removeprefix('model.')}", group, *spread(logs)]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/theory.md"))
