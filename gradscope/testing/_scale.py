"""`assert_scale`: one signal has the size that was meant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from gradscope.recording import SIGNALS, Recording, Signal, Site
from gradscope.recording._errors import unknown_name
from gradscope.testing._observe import Subject, observed


def assert_scale(
    module_or_site: nn.Module | str | Site,
    signal: Signal,
    expected: float,
    rtol: float = 0.1,
    *,
    inputs: Any = None,
    recording: Recording | None = None,
    seed: int = 0,
) -> None:
    """Fail where the rms of a signal is not as expected.

    A module is probed on `inputs`: a gradient of rms 1 enters at its output. Judged is its output (`activation`), the
    gradient at its inputs (`activation_grad`), or each of its parameters of two or more dimensions (of all where there
    are none). A site is one of a recording.

    Args:
        module_or_site: a module, or a site or its name.
        signal: which; of a module all but `update`.
        expected: rms.
        rtol: how far it may be off, relative to what is expected.
        inputs: for a module: a tensor, a tuple or a mapping.
        recording: for a site: where it is; the last step that has it counts.
        seed: from which the probe starts.

    Raises:
        AssertionError: the rms is another; the message says which.
        TypeError, ValueError: an argument is not as above, or the signal is not there.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> layer = nn.Linear(256, 256)
    >>> _ = nn.init.normal_(layer.weight, std=1 / 16)
    >>> assert_scale(layer, "activation", 1.0, inputs=torch.randn(64, 256))
    """
    __tracebackhide__ = True
    if signal not in SIGNALS:
        raise unknown_name("signal", signal, SIGNALS)
    for name, value in (("expected", expected), ("rtol", rtol)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; a finite number above 0 is allowed")
    if isinstance(module_or_site, nn.Module):
        if inputs is None:
            raise ValueError("inputs is missing: a module is probed on a batch")
        given = _with_gradients(inputs) if signal == "activation_grad" else inputs
        sizes = _of_module(observed(Subject(module_or_site, given), seed), signal)
    else:
        if recording is None:
            raise ValueError("recording is missing: a site is one of a recording")
        sizes = _of_site(recording, signal, module_or_site)
    off = {name: rms for name, rms in sizes.items() if not abs(rms - expected) <= rtol * expected}
    if off:
        name, rms = next(iter(off.items()))
        more = f"; {len(off) - 1} more of {len(sizes)} are off too" if len(off) > 1 else ""
        raise AssertionError(
            f"{signal} of {name} has rms {rms:.4g}, {rms / expected:.4g} times the expected {expected:g}; allowed is"
            f" ±{rtol:.3g} relative{more}"
        )


def _of_site(recording: Recording, signal: Signal, site: str | Site) -> dict[str, float]:
    name = site if isinstance(site, str) else site.name
    sizes = _sizes(recording, signal)
    if name not in sizes:
        raise unknown_name("site", name, sizes)
    return {name: sizes[name]}


def _of_module(recording: Recording, signal: Signal) -> dict[str, float]:
    sizes = _sizes(recording, signal)
    if signal == "activation":
        wanted = [s.name for s in recording.sites_of(signal) if s.name in sizes][-1:]
    elif signal == "activation_grad":
        wanted = [s.name for s in recording.sites_of(signal) if s.role == "input" and s.name in sizes]
    else:
        several = [s.name for s in recording.sites_of(signal) if len(s.shape) >= 2 and s.name in sizes]
        wanted = several or list(sizes)
    if not wanted:
        raise ValueError(f"signal is {signal!r}, and the module has none of it on these inputs")
    return {name: sizes[name] for name in wanted}


def _sizes(recording: Recording, signal: Signal) -> dict[str, float]:
    profile = recording.profile(signal)
    return {s.name: float(v) for s, v in zip(profile.sites, np.asarray(profile.values).tolist(), strict=True)}


def _with_gradients(inputs: Any) -> Any:
    """The inputs, floating tensors of which ask for a gradient; the caller's are left as they are."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone().requires_grad_(inputs.is_floating_point() or inputs.is_complex())
    if isinstance(inputs, dict):
        return {key: _with_gradients(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return tuple(map(_with_gradients, inputs))
    return inputs
