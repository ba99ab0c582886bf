"""`assert_signal_propagates` and `assert_no_dead_units`: claims about one batch that need no baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from gradscope.recording import Profile, Recording, Signal
from gradscope.recording._profile import in_flow
from gradscope.testing._observe import MakesModel, Subject, observed

_FLOWING: tuple[Signal, ...] = ("activation", "activation_grad")


def assert_signal_propagates(
    model: nn.Module | MakesModel,
    inputs: Any,
    max_decades: float = 2.0,
    *,
    target: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Fail where a layer's signal, forward or backward, is too many decades from where it enters.

    Layers are linear layers and convolutions, all modules where there are fewer than two of them. A signal enters
    forward at the first and backward at the last.

    Args:
        model: a module, afterwards as before; or a function without arguments that makes one.
        inputs: a tensor, a tuple (positional arguments) or a mapping (keyword arguments).
        max_decades: how far the rms of a layer may be from that of the first passed, in decades, up or down.
        target, loss_fn: as `gradscope.probe` takes them; without, a gradient of rms 1 enters at the output.
        seed: from which everything starts.

    Raises:
        AssertionError: a layer is beyond; the message names the first one passed, and the slope.
        TypeError, ValueError: an argument is not as above.

    >>> import torch
    >>> assert_signal_propagates(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)), torch.randn(8, 64))
    """
    __tracebackhide__ = True
    judge_passage(observed(Subject(model, inputs, target, loss_fn), seed), max_decades)


def judge_passage(recording: Recording, max_decades: float) -> None:
    """The assertion, of a recording."""
    __tracebackhide__ = True
    if isinstance(max_decades, bool) or not isinstance(max_decades, (int, float)) or not max_decades > 0:
        raise ValueError(f"max_decades is {max_decades!r}; a number above 0 is allowed")
    found = [fault for signal in _FLOWING if (fault := _fault(recording.profile(signal), max_decades))]
    if found:
        raise AssertionError("\n".join(found))


def _fault(profile: Profile, most: float) -> str:
    layers = np.flatnonzero(profile.layers)
    if not layers.size:
        return f"{profile.signal} was seen nowhere, so it does not propagate"
    rms = in_flow(profile.values[layers], profile.direction)
    sites = [profile.sites[i] for i in layers]
    sites = sites[::-1] if profile.direction == "backward" else sites
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.log10(rms) - np.log10(rms[0])
    away = np.where(np.isnan(away), np.inf, away)
    beyond = np.flatnonzero(np.abs(away) > most)
    if not beyond.size:
        return ""
    first, worst = int(beyond[0]), int(np.argmax(np.abs(away)))
    slope = profile.decades_per_layer
    per_layer = f", {slope:+.3f} decades per layer" if math.isfinite(slope) else ""
    return (
        f"{profile.signal} does not propagate {profile.direction}: from {sites[0].name} (rms {rms[0]:.3g}) to"
        f" {sites[first].name} (rms {rms[first]:.3g}) it is {_decades(away[first])}, the first layer beyond"
        f" {most:g} decades; the farthest is {sites[worst].name}, {_decades(away[worst])}{per_layer}"
    )


def _decades(away: float) -> str:
    return f"{away:+.2f} decades" if math.isfinite(away) else "not a number, zero or infinite"


def assert_no_dead_units(
    model: nn.Module | MakesModel,
    inputs: Any,
    max_fraction: float = 0.0,
    *,
    target: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Fail where an activation, a module or a function (`F.relu`), has units that are zero for the whole batch.

    A unit of a sound network is silent for a small batch by chance (for B independent inputs with 2⁻ᴮ, for inputs
    that are alike more often): take a batch of a hundred samples or so, or allow a fraction.

    Args:
        model: a module, afterwards as before; or a function without arguments that makes one.
        inputs: a tensor, a tuple (positional arguments) or a mapping (keyword arguments).
        max_fraction: of a layer's units, in [0, 1].
        target, loss_fn: as `gradscope.probe` takes them.
        seed: from which everything starts.

    Raises:
        AssertionError: an activation has more; the message names the first and the worst.
        TypeError, ValueError: an argument is not as above, or the model has no activation.

    >>> import torch
    >>> assert_no_dead_units(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(256, 8))
    """
    __tracebackhide__ = True
    judge_units(observed(Subject(model, inputs, target, loss_fn), seed, functional=True), max_fraction)


def judge_units(recording: Recording, max_fraction: float) -> None:
    """The assertion, of a recording."""
    __tracebackhide__ = True
    if isinstance(max_fraction, bool) or not isinstance(max_fraction, (int, float)) or not 0 <= max_fraction <= 1:
        raise ValueError(f"max_fraction is {max_fraction!r}; a fraction in [0, 1] is allowed")
    profile = recording.profile("activation", "dead_fraction", role="activation")
    if not profile.sites:
        raise ValueError("model has no activation, neither a module nor a function, whose units could be dead")
    dead = [(s.name, f) for s, f in zip(profile.sites, profile.values.tolist(), strict=True) if f > max_fraction]
    if dead:
        worst = max(dead, key=lambda one: one[1])
        raise AssertionError(
            f"{len(dead)} of {len(profile.sites)} activations have units that are zero for the whole batch: first"
            f" {dead[0][0]} ({dead[0][1]:.1%}), worst {worst[0]} ({worst[1]:.1%}); allowed are {max_fraction:.1%}"
        )
