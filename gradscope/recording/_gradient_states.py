"""Why a parameter has no gradient: frozen, unused and zero are three different things."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gradscope.recording._view import View

GradientState = Literal["flows", "zero", "unused", "frozen"]


def gradient_states(recording: View, step: int = -1) -> dict[str, GradientState]:
    """As `Recording.gradient_states` says."""
    if not recording.sites_of("weight_grad") and "weight_grad" not in recording.facts.get("signals", ()):
        raise ValueError("the recording has no weight_grad, and only that tells what became of the gradients")
    sites, moments = recording.moments("weight_grad", step)
    zero = moments.zeros == moments.count
    arrived: dict[str, GradientState] = {
        site.name: "zero" if nothing else "flows" for site, nothing in zip(sites, zero.tolist(), strict=True)
    }
    # A site knows only whether its parameter is trained now; an update is read of those trained at the step.
    trained = {site.name for site in recording.moments("update", step)[0]}
    parameters = {s.name: s for signal in ("weight_grad", "update", "weight") for s in recording.sites_of(signal)}
    return {
        name: arrived.get(name, "unused" if (name in trained if trained else site.trainable) else "frozen")
        for name, site in sorted(parameters.items(), key=lambda item: item[1].depth)
    }
