"""Recordings that the tests of the diagnosis share: a plain network's, each number of which can be set; and a training.

The network is sound: He's weights, signals and gradients of one size at every layer, updates of a thousandth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope import GradScope
from gradscope.diagnosis import Finding, Findings, diagnose
from gradscope.recording import SIGNALS, Moments, Recording, Signal, Site, StepRecord, UnitMoments

WIDTH, BATCH = 64, 64
HE = (2 / WIDTH) ** 0.5
Place = tuple[str, str]
Numbers = Mapping[str, Any]
"""`mean`, `std`, `zero` and `subnormal` (shares), `nans`, `infs`, `max`; of an activation also `dead`, `saturated`
(shares), `alike` (spread between units), `same` (spread between samples). A function is one of the step."""


def sites(depth: int, kind: str = "ReLU", dtype: str = "float32") -> list[Site]:
    """Of `depth` layers, a `kind` behind each but the last: `<input>`, `0`, `1`, …, and the layers' weights, biases."""
    shape = (BATCH, WIDTH)
    found = [Site("activation", "<input>", "<input>", "<input>", role="input", shape=shape)]
    for i in range(2 * depth - 1):
        after = kind.lower() if i < 2 * depth - 2 else None
        facts: dict[str, Any] = {"depth": i + 1, "shape": shape, "dtype": dtype}
        fans: dict[str, Any] = {"fan_in": float(WIDTH), "fan_out": float(WIDTH), "activation_after": after}
        for signal in ("activation", "activation_grad"):
            if i % 2:
                found.append(Site(signal, str(i), str(i), kind, role="activation", **facts))
            else:
                found.append(Site(signal, str(i), str(i), "Linear", role="pre-activation", **facts, **fans))
        for signal in ("weight", "weight_grad", "update") if i % 2 == 0 else ():
            for param, size in (("weight", (WIDTH, WIDTH)), ("bias", (WIDTH,))):
                of = {"param": param, "depth": i + 1, "shape": size, "dtype": dtype}
                found.append(
                    Site(signal, f"{i}.{param}", str(i), "Linear", **of, **(fans if param == "weight" else {}))
                )  # type: ignore[arg-type]
    return found


def sound(site: Site) -> dict[str, Any]:
    """The numbers of a sound network at a site."""
    if site.signal == "activation":
        zero = 0.5 if site.role == "activation" else 0.0
        return {"std": 1.0, "zero": zero, "dead": 0.1, "alike": 0.9, "same": 0.8}
    if site.param == "bias":
        return {"std": {"weight": 0.0, "weight_grad": 0.01, "update": 1e-4}[site.signal]}
    of = {
        "activation_grad": 1e-3,
        "weight": HE,
        "weight_grad": 0.01,
        "update": 1e-3 * HE,
    }
    return {"std": of[site.signal]}


def recorded(
    changes: Mapping[Place, Numbers] | None = None,
    steps: int = 20,
    depth: int = 6,
    *,
    kind: str = "ReLU",
    dtype: str = "float32",
    notes: Callable[[int], Mapping[str, Any]] = lambda step: {},
    skipped: Iterable[int] = (),
    facts: Mapping[str, Any] | None = None,
    every: int = 1,
    units_every: int = 5,
    signals: Iterable[Signal] = SIGNALS,
) -> Recording:
    """A training of that network, with other numbers at some places."""
    recording = Recording.create(facts={"source": "training", **(facts or {})})
    chosen = [site for site in sites(depth, kind, dtype) if site.signal in signals]
    ids = {site: recording.add_site(site) for site in chosen}
    wrong = set(changes or {}) - {(s.signal, s.name) for s in sites(depth, kind, dtype)}
    assert not wrong, f"no such place: {wrong}"
    for step in range(steps):
        told = {}
        for s in chosen:
            numbers = sound(s) | {**(changes or {}).get((s.signal, s.name), {})}
            told[s] = {name: v(step) if callable(v) else v for name, v in numbers.items()}
        moments: dict[Signal, tuple[Any, Moments]] = {}
        for signal in dict.fromkeys(s.signal for s in chosen):
            own = [s for s in chosen if s.signal == signal]
            moments[signal] = np.array([ids[s] for s in own]), Moments.concat([_row(s, told[s]) for s in own])
        acts = [s for s in chosen if s.signal == "activation"]
        units = None
        if acts and units_every and step % units_every == 0:
            units = np.array([ids[s] for s in acts]), UnitMoments.from_rows([_units(s, told[s]) for s in acts])
        recording.append(StepRecord(step * every, step in set(skipped), notes(step), moments, units=units))
    return recording


def _row(site: Site, told: Numbers) -> Moments:
    count = int(np.prod(site.shape))
    mean, std = told.get("mean", 0.0), told["std"]
    top = told.get("max", abs(mean) + 3 * std)
    of = [told.get(name, 0) for name in ("nans", "infs")]
    zeros, subnormals = round(told.get("zero", 0.0) * count), round(told.get("subnormal", 0.0) * count)
    return Moments(*(np.array([v]) for v in (count, mean, std, -top, top, zeros, *of, subnormals)))


def _units(site: Site, told: Numbers) -> tuple[float, ...]:
    count, silent = int(np.prod(site.shape)), round(told["dead"] * WIDTH) if site.role == "activation" else 0
    bounded = site.module_type in ("Tanh", "Sigmoid")
    saturated = round(told.get("saturated", 0.0) * count) if bounded else -1
    same = told["same"]
    return (count, WIDTH, BATCH, silent, silent, 1, saturated, np.nan, 1 - same, same, told["alike"])


def sloped(decades: float, signal: str, depth: int = 6, upwards: bool = False) -> dict[Place, dict[str, Any]]:
    """The signal changes by so many decades from the first site to the last (`upwards`: from the last to the first)."""
    last = 2 * depth - 2 if signal == "activation_grad" else 2 * depth - 3
    size = 1.0 if signal == "activation" else 1e-3
    changes: dict[Place, dict[str, Any]] = {}
    for i in range(2 * depth - 1):
        way = (last - i) / last if upwards else i / last
        changes[signal, str(i)] = {"std": size * 10 ** (decades * way)}
        if i % 2 == 0 and signal == "activation_grad":
            changes["weight_grad", f"{i}.weight"] = {"std": 0.01 * 10 ** (decades * way)}
            changes["update", f"{i}.weight"] = {"std": 1e-3 * HE * 10 ** (decades * way)}
    return changes


def shrunk(decades: float) -> dict[Place, dict[str, Any]]:
    """The third layer's weights are too small by so many decades, and so is what follows."""
    weak: dict[Place, dict[str, Any]] = {("weight", "4.weight"): {"std": HE * 10**-decades}}
    return weak | {("activation", str(i)): {"std": 10**-decades} for i in range(4, 11)}


def found(recording: Recording, rule: str | None = None) -> Findings:
    """What one rule finds, or all."""
    return diagnose(recording, rules=None if rule is None else [rule])


def faults(recording: Recording) -> list[Finding]:
    """What is found, notes left out."""
    return [one for one in diagnose(recording) if one.severity != "note"]


def trained(
    model: nn.Module,
    batch: Callable[[int], tuple[Tensor, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    steps: int = 12,
    lr: float = 0.05,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    before: Callable[[int], None] = lambda step: None,
    **settings: Any,
) -> Recording:
    """The recording of a training."""
    chosen = optimizer([p for p in model.parameters() if p.requires_grad], lr=lr)
    with GradScope(model, chosen, **{"every": 1, **settings}) as scope:
        for step in range(steps):
            before(step)
            inputs, target = batch(step)
            loss = loss_fn(model(inputs), target)
            chosen.zero_grad()
            scope.note(loss=loss)
            loss.backward()
            chosen.step()
    return scope.recording


def two_blobs(size: int = 64, width: int = 16, classes: int = 4) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Gaussian classes that a small network tells apart; other samples at each step, the same in each run."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(1))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100 + step)
        target = torch.randint(classes, (size,), generator=generator)
        return (centres[target] + 0.5 * torch.randn(size, width, generator=generator)) / 1.1, target

    return batch
