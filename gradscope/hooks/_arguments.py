"""What `GradScope` is given: checked, with one sentence for what is not allowed; and the facts of the run."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from gradscope._version import __version__
from gradscope.hooks._kernel import kernel_name
from gradscope.hooks._nonfinite import ON_NONFINITE, OnNonFinite
from gradscope.hooks._optimizers import held_by
from gradscope.hooks._sites import ROOT, class_name, site_filter, unwrapped_name
from gradscope.recording import SIGNALS, Signal, Site

MODES = ("exact", "sample")

UNIT_MOMENTS = (
    "each tenth recorded step, first forward pass that a backward follows; of several ranks each its own part"
)
"""Which steps have unit moments, and what they are of."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `GradScope`, as given."""

    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    every: int | Literal["auto"] | None
    signals: Sequence[Signal]
    sites: str | Sequence[str] | Callable[[Site], bool] | None
    scaler: Any
    log: str | os.PathLike[str] | None
    loggers: Sequence[Any]
    on_nonfinite: OnNonFinite | None
    mode: str = "exact"
    budget: float = 0.02
    histograms: bool | str = False
    slow: bool = True
    on_finding: Any = None


def check(given: Arguments) -> None:
    """Raise a TypeError or ValueError whose sentence names the argument, its value and what is allowed."""
    own = {id(p) for p in given.model.parameters()}
    for optimizer in given.optimizers:
        if not own & held_by(optimizer):
            raise ValueError(
                "optimizer holds none of the model's parameters; its step() would close steps it is no part of"
            )
    every = given.every
    if every not in (None, "auto") and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        nearest = _nearest(every, ("auto",)) if isinstance(every, str) else ""
        raise ValueError(f"every is {every!r}; None, 'auto' or a whole number from 1 is allowed{nearest}")
    if given.mode not in MODES:
        raise ValueError(f"mode is {given.mode!r}; 'exact' or 'sample' is allowed{_nearest(given.mode, MODES)}")
    if given.histograms not in (False, True, "sample"):
        nearest = _nearest(given.histograms, ("sample",)) if isinstance(given.histograms, str) else ""
        raise ValueError(f"histograms is {given.histograms!r}; True, False or 'sample' is allowed{nearest}")
    if not isinstance(given.slow, bool):
        raise ValueError(f"slow is {given.slow!r}; True or False is allowed")
    if isinstance(given.budget, bool) or not isinstance(given.budget, (int, float)) or not 0 < given.budget <= 1:
        raise ValueError(f"budget is {given.budget!r}; a share of the training time in (0, 1] is allowed")
    if isinstance(given.signals, str) or not given.signals:
        raise ValueError(f"signals is {given.signals!r}; a sequence of some of {', '.join(SIGNALS)} is allowed")
    for signal in given.signals:
        if signal not in SIGNALS:
            raise ValueError(f"signals has {signal!r}; {', '.join(SIGNALS)} are allowed{_nearest(signal, SIGNALS)}")
    scaler = given.scaler
    if scaler is not None and not (hasattr(scaler, "get_scale") and hasattr(scaler, "is_enabled")):
        raise TypeError(f"scaler is {_article(scaler)}; a torch.amp.GradScaler or None is allowed")
    if given.on_nonfinite is not None and given.on_nonfinite not in ON_NONFINITE:
        raise ValueError(
            f"on_nonfinite is {given.on_nonfinite!r}; None, {', '.join(map(repr, ON_NONFINITE))} are allowed"
            f"{_nearest(given.on_nonfinite, ON_NONFINITE)}"
        )
    if given.on_nonfinite is not None and every == "auto":
        raise ValueError(
            f"every is 'auto' and on_nonfinite is {given.on_nonfinite!r}, for which each step is read and no budget is "
            "kept; give every a number"
        )
    if given.on_finding is not None and not callable(given.on_finding):
        raise TypeError(f"on_finding is {_article(given.on_finding)}; a function of one finding, or None, is allowed")
    if len(given.loggers):
        raise ValueError(f"loggers is {given.loggers!r}; this version has none: leave it empty")
    _check_sites(given.model, given.sites)


def _check_sites(model: nn.Module, sites: str | Sequence[str] | Callable[[Site], bool] | None) -> None:
    if sites is None or callable(sites):
        return
    names = [unwrapped_name(name) or ROOT for name, _ in model.named_modules()]
    for pattern in (sites,) if isinstance(sites, str) else sites:
        if not isinstance(pattern, str):
            raise TypeError(f"sites has {pattern!r}; None, glob patterns over module names or a predicate are allowed")
        if not any(site_filter(pattern)(Site("activation", n, n, "")) for n in names):  # type: ignore[misc]
            raise ValueError(
                f"sites has {pattern!r}, which matches none of the model's {len(names)} modules"
                f"{_nearest(pattern, names)}"
            )


def facts_of(given: Arguments) -> dict[str, Any]:
    """What a recording says of the run."""
    parameters = list(given.model.parameters())
    names = [type(optimizer).__name__ for optimizer in given.optimizers]
    return {
        "source": "training",
        "model": class_name(given.model),
        "parameters": sum(p.numel() for p in parameters if not isinstance(p, nn.UninitializedParameter)),
        "device": ", ".join(sorted({str(p.device) for p in parameters})),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
        "optimizer": ", ".join(names) if names else None,
        "weight_grad": "as the optimizer found it, after clipping"
        if names
        else "as the last backward left it, before clipping",
        "every": given.every,
        "budget": given.budget if given.every == "auto" else None,
        "unit_moments": UNIT_MOMENTS if given.slow and "activation" in given.signals else None,
        "kernel": kernel_name(),
        "signals": list(given.signals),
        "seed": torch.initial_seed(),
        "gradscope": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _article(value: object) -> str:
    return f"of type {type(value).__name__}"


def _nearest(value: object, allowed: Sequence[str]) -> str:
    found = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.4)
    return f"; did you mean {found[0]!r}?" if found else ""
