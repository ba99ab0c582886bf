"""torch's default weights of Linear and convolutions, where an activation follows."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis import SEVERITIES, Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, Stretch, audit_rule
from gradscope.init._rules._passage import asked, passage, with_measured
from gradscope.init._rules._words import NOTABLE, names, severity
from gradscope.init._torch_default import default_limit


@audit_rule("default-init")
def default_init(audited: Audited) -> Iterator[Finding]:
    """Variance 1/(3·fan_in), whatever follows."""
    swapped = audited.sites("swapped-fans")
    found = [
        w
        for w in audited.weights
        if w.plain
        and w.activation is not None
        and w.name not in swapped
        and w.is_uniform(_limit(w))
        and w.asked / w.forward > NOTABLE
    ]
    if not found:
        return
    stretch, decades = max(
        ((one, _lost(one, found)) for one in dict.fromkeys(map(audited.stretch_of, found))),
        key=lambda pair: (-SEVERITIES.index(severity(pair[1], pair[0])), abs(pair[1])),
    )
    kinds = sorted({w.activation.name for w in found if w.activation is not None})
    layers = f"{len(found)} layers have" if len(found) > 1 else "One layer has"
    yield Finding(
        "default-init",
        severity(decades, stretch),
        f"{layers} torch's default weights, of variance 1/(3·fan_in): for {', '.join(kinds)} it is "
        f"{3.0 * found[0].asked_variance / _limit(found[0]) ** 2:.2g} times too small. "
        + _tail(audited, stretch, decades, [w for w in stretch.row if w in found]),
        audited.initialize,
        "pytorch#15314, pytorch#57109; He et al. (2015), eq. 10",
        direction="forward",
        sites=names(found),
        value=found[0].forward,
        unit="fan_in·variance",
        expected=found[0].asked,
    )


def _limit(weight: Weight) -> float:
    return default_limit(weight.module, "weight", weight.value, False)


def _lost(stretch: Stretch, found: list[Weight]) -> float:
    return passage(stretch.row, with_measured(found)).forward - passage(stretch.row, asked).forward


def _tail(audited: Audited, stretch: Stretch, decades: float, row: list[Weight]) -> str:
    """How much a row of them costs."""
    if stretch.closed and severity(decades, stretch) == "note":
        return "A norm or a residual sum behind puts the scale back."
    if stretch.closed:
        return f"A norm puts the scale back, but {-decades:.1f} decades below 1 its epsilon counts."
    unless = "" if audited.executed else ", unless residual sums in between put it back"
    share = passage(row, biases=True).bias_share
    drowned = next((w.path for w, part in zip(row, share, strict=True) if part > 1.0), None)
    word = "It loses" if len(row) == 1 else f"{len(row)} in a row lose"
    said = f"{word} {-decades:.1f} decades of rms{unless}."
    if drowned is not None:
        said += (
            f" From {drowned} on the default biases are larger than what arrives: the outputs are then nearly the same "
            "for every input."
        )
    return said
