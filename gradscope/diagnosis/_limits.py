"""Where the rules draw their lines, and where each line comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """The limits of the rules. None is an absolute size of a signal: each compares layers, steps or dtypes.

    Attributes:
        gradient_decades: decades of the gradient lost towards the input that are a warning. With one learning rate for
            all, the layers below then learn a hundred times slower than those above.
        activation_decades: decades of the activation lost or won over the depth that are a warning: beyond three, what
            is added to it (a bias, an epsilon, a residual sum) is either everything or nothing.
        explosion_decades: decades of the gradient won towards the input that are a warning: with batch norm and
            residual sums sound networks of a hundred layers win three.
        error_decades: decades beyond which either is an error.
        late_decades: decades that a profile has to lose in the course of training to be a warning, since profiles of
            sound networks move too.
        sigmas: standard deviations of the finite-width spread that a slope has to exceed to be one.
        dead_share: share of a layer's units that are dead, beside the half that chance may leave silent.
        saturated_share: share of a layer's entries whose slope is below a hundredth of the largest.
        symmetric_spread: spread between the units of a layer, relative to its size, below which they are all alike:
            float32 keeps seven digits.
        collapsed_spread: spread between the samples of a batch, relative to its size and to that of the inputs, below
            which a layer says the same of all.
        update_total: relative update times the number of layers beyond which a step leaves the region in which the
            gradient says anything: (1 + r)^L is no longer about 1 + r·L.
        update_small: relative update below which float32 (6·10⁻⁸) keeps next to nothing of it.
        uneven_decades: decades between the relative updates of two layers.
        spike_decades: decades by which a gradient norm has to leave the norms before it.
        spike_sigmas: and by how many of their robust standard deviations.
        clipped_share: share of the steps at which the gradients were clipped.
        clipped_to: median factor below which clipping sets the step's size.
        input_scale: rms of an input, or mean over standard deviation, beyond which (and below one over it) no layer
            behind is at its own scale.
        hysteresis: recorded steps for which a state has to last.
    """

    gradient_decades: float = 2.0
    activation_decades: float = 3.0
    explosion_decades: float = 4.0
    error_decades: float = 4.0
    late_decades: float = 3.0
    sigmas: float = 5.0
    dead_share: float = 0.75
    saturated_share: float = 0.5
    symmetric_spread: float = 1e-6
    collapsed_spread: float = 1e-4
    update_total: float = 1.0
    update_small: float = 1e-6
    uneven_decades: float = 3.0
    spike_decades: float = 1.0
    spike_sigmas: float = 8.0
    clipped_share: float = 0.95
    clipped_to: float = 0.1
    input_scale: float = 10.0
    hysteresis: int = 5

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"limits: {one.name} is {value!r}; a positive number is allowed")
        if not isinstance(self.hysteresis, int):
            raise ValueError(f"limits: hysteresis is {self.hysteresis!r}; a number of steps is allowed")
