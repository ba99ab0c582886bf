"""Numbers in words: what a picture's or a table's line says about a signal."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.recording import Recording, Signal, Site
from gradscope.report._drawn import Drawn
from gradscope.report._run_curves import FLOWING, Line, StepMap, UpdateRatio
from gradscope.report._verdicts import Verdict

NAMES: dict[Signal, str] = {
    "activation": "Activation",
    "activation_grad": "Gradient of the activation",
    "weight": "Weight",
    "weight_grad": "Gradient of the weight",
    "update": "Update of the weight",
}
"""What a signal is called in a heading."""

_MOST_VERDICTS = 3
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def signed(value: float, digits: int = 3) -> str:
    """A slope with its sign and a true minus; 0 without a sign, a dash where there is none.

    >>> signed(-0.1505), signed(0.00004), signed(float("nan"))
    ('−0.150', '0.000', '–')
    """
    if not math.isfinite(value):
        return "–"
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def per_layer(value: float) -> str:
    """A slope with its unit, wherever one is told.

    >>> per_layer(-0.4186), per_layer(float("nan"))
    ('−0.419 decades per layer', 'no slope')
    """
    return f"{signed(value)} decades per layer" if math.isfinite(value) else "no slope"


def number(log10: float) -> str:
    """A positive number given by its log10, in two digits.

    >>> number(30.672), number(0.3), number(-4.5)
    ('4.7×10³⁰', '2.0', '3.2×10⁻⁵')
    """
    if -2 <= log10 < 3:
        value = 10.0**log10
        return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.1f}"
    exponent = math.floor(log10)
    mantissa = round(10 ** (log10 - exponent), 1)
    if mantissa >= 10:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}×10" + str(exponent).translate(_SUPERSCRIPT)


def profile_sentence(lines: tuple[Line, ...], *, judged: bool = False, others: tuple[str, ...] = ()) -> str:
    """The findings on a profile, or its slope, and where nothing is left of the signal.

    Args:
        lines: of the profile.
        judged: findings were looked for.
        others: the rules of findings that are not about this signal.
    """
    found = [verdict for line in lines for verdict in line.verdicts]
    said = verdict_sentence(tuple(found)) if found else _slope_sentence(lines, judged, others)
    also = [f"Also found, not on this picture: {', '.join(others)}."] if others and not found else []
    return " ".join([said, *_lost(lines[-1]), *also])


def _slope_sentence(lines: tuple[Line, ...], judged: bool, others: tuple[str, ...]) -> str:
    last = lines[-1].profile
    layers = int(last.layers.sum())
    if last.signal not in FLOWING:
        return f"Over {layers} layers; a parameter's depth is that of its module."
    slope = f"{per_layer(last.decades_per_layer)} over {layers} layers"
    when = "" if len(lines) == 1 else f" at step {last.step}"
    if not judged or others:
        return f"{slope[0].upper()}{slope[1:]}{when}."
    return f"No fault found here: {slope}{when}."


def _lost(line: Line) -> Iterator[str]:
    """How many sites have no place on an axis of decades, and why."""
    sites = len(line.profile.sites)
    if line.silent:
        yield f"No gradient comes to {len(line.silent)} of {sites + len(line.silent)} sites."
    if line.zero:
        yield f"Exactly 0 at {len(line.zero)} of {sites} sites."
    if line.nonfinite:
        yield f"Nothing is finite at {len(line.nonfinite)} of {sites} sites."


def verdict_sentence(found: tuple[Verdict, ...]) -> str:
    """The first sick site of each finding, worst first; of many the worst three."""
    said = "; ".join(one.sentence for one in found[:_MOST_VERDICTS])
    more = f"; and {len(found) - _MOST_VERDICTS} more" if len(found) > _MOST_VERDICTS else ""
    return f"{said[0].upper()}{said[1:]}{more}."


def map_sentence(shown: StepMap) -> str:
    """The findings, and where the first NaN or infinity is, else how far the rms ranges."""
    said = f"{verdict_sentence(shown.verdicts)} " if shown.verdicts else ""
    said += "".join(f"At step {one.steps[0]}: {one.rule}. " for one in shown.moments[:_MOST_VERDICTS])
    if not any(one.finding.rule in ("non-finite", "dtype-overflow") for one in shown.verdicts):
        said += _extent(shown)
    return said.strip()


def _extent(shown: StepMap) -> str:
    if shown.first_nonfinite is not None:
        return first_sentence(shown.first_nonfinite)
    finite = shown.log10_rms[np.isfinite(shown.log10_rms)]
    if not finite.size:
        return f"Every entry is exactly 0 at every site and {_step(shown.drawn)}."
    low, high = float(finite.min()), float(finite.max())
    ranges = f"ranges from {number(low)} to {number(high)}, over {high - low:.1f} decades"
    return f"The rms {ranges}{'' if shown.drawn.whole else ' in the steps drawn'}, and is always finite."


def first_sentence(first: tuple[int, Site]) -> str:
    """Where the first NaN or infinity is."""
    step, site = first
    return f"The first NaN or infinity is at step {step}, at {site.name} (depth {site.depth})."


def update_sentence(shown: UpdateRatio) -> str:
    """The findings, how far apart the fastest and the slowest weight are, how many do not change, where it ends."""
    return (f"{verdict_sentence(shown.verdicts)} " if shown.verdicts else "") + _pace(shown)


def _pace(shown: UpdateRatio) -> str:
    median = shown.median[np.isfinite(shown.median)]
    moving = np.log10(median[median > 0])
    still = median.size - moving.size
    finite = np.flatnonzero(np.isfinite(shown.ratio).any(axis=1))
    end, step = "", _step(shown.drawn)
    if finite.size and len(shown.steps) - finite[-1] > 2:  # the last step's update may not be known yet
        last = int(shown.steps[finite[-1]])
        end = f" Nothing is finite after step {last}{'' if shown.drawn.whole else ', of the steps drawn'}."
    if not moving.size:
        return f"No weight changes in the median {step}.{end}"
    fastest, slowest = float(moving.max()), float(moving.min())
    if median.size == 1:
        return f"The one weight changes by {number(fastest)} of its size in the median {step}.{end}"
    said = f"In the median {step} the fastest of {median.size} weights changes by {number(fastest)} of its size"
    if still:
        return f"{said}; {still} {'does' if still == 1 else 'do'} not change at all.{end}"
    return f"{said}, the slowest by {number(slowest)}: a factor of {number(fastest - slowest)}.{end}"


def _step(drawn: Drawn) -> str:
    return "step" if drawn.whole else "step drawn"


def small_print(recording: Recording, stat: str, drawn: Drawn | None = None) -> str:
    """What a picture has to say of its numbers, a line each: which steps, and which entries, it leaves out."""
    lines = [drawn.words] if drawn is not None and not drawn.whole else []
    if recording.sampling is not None and recording.is_sampled(stat):
        lines.append(f"sampled: of tensors over {recording.sampling.entries:,} entries about that many")
    return "\n".join(lines)


def sampled(recording: Recording, stat: str) -> str:
    """What follows the name of a statistic on an axis: whether it is sampled."""
    return " (sampled)" if recording.is_sampled(stat) else ""
