"""One step of a recording as a plain-text table: a row a site, input at the top."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gradscope.recording._profile import decades_per_layer, direction_of
from gradscope.recording._site import Signal, Site

if TYPE_CHECKING:
    from gradscope.recording._view import View

_HEADS = ("depth", "site", "type", "activation", "gradient", "weight", "weight grad", "update/weight")
_SIGNALS: tuple[Signal, ...] = ("activation", "activation_grad", "weight", "weight_grad", "update")


def step_table(recording: View, step: int = -1, rows: int = 60) -> str:
    """The rms of every signal at one step, `rows` lines at most; `–` is what was not observed.

    The parameter shown is the module's `weight` where it has one, else its first.
    """
    if not len(recording.steps):
        return f"{recording!r}: no step is complete yet"
    values = {signal: dict(_rms(recording, signal, step)) for signal in _SIGNALS}
    calls = list(values["activation"]) or list(values["activation_grad"])
    names = {site.name for site in calls}
    calls += [s for s in values["activation_grad"] if s.name not in names]
    lines = [_HEADS, *(_row(site, values) for site in sorted(calls, key=lambda s: s.depth))]
    if not calls:
        lines += [_parameter_row(site, values) for site in values["weight"] or values["weight_grad"]]
    left_out = len(lines) - 1 - rows
    if left_out > 0:
        half = rows // 2
        lines[1 + half : len(lines) - half] = [("", f"… {left_out} more …", *[""] * 6)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADS))]
    text = ["  ".join(_pad(c, w, i) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    at = int(recording.steps[step])
    return "\n".join(
        [
            f"step {at}: rms of each signal, input at the top",
            *text,
            *_slopes(recording, step),
            *_not_finite(recording, step),
            *_sampled(recording),
            *_unobserved(recording),
        ]
    )


def _not_finite(recording: View, step: int, most: int = 5) -> Iterator[str]:
    """What the rms above leaves out."""
    for signal in _SIGNALS:
        sites, moments = recording.moments(signal, step)
        bad = moments.nans + moments.infs
        named = [f"{s.name} ({b} of {n})" for s, b, n in zip(sites, bad, moments.count, strict=True) if b]
        if named:
            more = f" and {len(named) - most} more" if len(named) > most else ""
            yield f"not finite, and left out above: {signal} of {', '.join(named[:most])}{more}"


def _sampled(recording: View) -> Iterator[str]:
    if recording.sampling is not None:
        yield f"sampled: {recording.sampling.sentence}"


def _unobserved(recording: View, most: int = 8) -> Iterator[str]:
    reasons = recording.facts.get("unobserved") or {}
    if reasons:
        yield "not observed:"
    for name in list(reasons)[:most]:
        yield f"  {name}: {reasons[name]}"
    if len(reasons) > most:
        yield f"  … {len(reasons) - most} more in recording.facts['unobserved']"


def _rms(recording: View, signal: Signal, step: int) -> Iterator[tuple[Site, float]]:
    sites, moments = recording.moments(signal, step)
    return zip(sites, np.hypot(moments.mean, moments.std).tolist(), strict=True)


def _row(site: Site, values: dict[Signal, dict[Site, float]]) -> tuple[str, ...]:
    by_name = {s.name: v for s, v in values["activation_grad"].items()}
    forward = {s.name: v for s, v in values["activation"].items()}
    own = [s for s in values["weight"] if s.module == site.module and site.call == 0 and site.output == 0]
    own.sort(key=lambda s: s.param != "weight")
    name = own[0].name if own else ""
    return (
        str(site.depth),
        site.name,
        site.module_type,
        _number(forward.get(site.name)),
        _number(by_name.get(site.name)),
        *_parameter(name, values),
    )


def _parameter_row(site: Site, values: dict[Signal, dict[Site, float]]) -> tuple[str, ...]:
    return (str(site.depth), site.name, site.module_type, "–", "–", *_parameter(site.name, values))


def _parameter(name: str, values: dict[Signal, dict[Site, float]]) -> tuple[str, str, str]:
    weight, gradient, update = (
        next((v for s, v in values[signal].items() if s.name == name), None)
        for signal in ("weight", "weight_grad", "update")
    )
    ratio = update / weight if update is not None and weight else None
    return _number(weight), _number(gradient), _number(ratio)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"


def _pad(cell: str, width: int, column: int) -> str:
    return f"{cell:<{width}}" if column in (1, 2) else f"{cell:>{width}}"


def _slopes(recording: View, step: int) -> Iterator[str]:
    for signal, name in (("activation", "forward"), ("activation_grad", "backward")):
        profile = recording.profile(signal, "rms", step)  # type: ignore[arg-type]
        slope = decades_per_layer(profile.values[profile.layers], direction_of(profile.signal))
        if np.isfinite(slope):
            yield f"{name} {slope:+.3f} decades per layer over {int(profile.layers.sum())} layers"
