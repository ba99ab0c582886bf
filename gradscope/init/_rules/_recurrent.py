"""Recurrent layers: one limit for all their weights, gates set as one matrix, forget gates half open."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._matrices import orthogonal_size
from gradscope.init._rules._words import NOTABLE, for_each, names, paths


def _gates(audited: Audited) -> list[Weight]:
    return [w for w in audited.weights if isinstance(w.module, nn.RNNBase | nn.RNNCellBase)]


@audit_rule("recurrent-default")
def recurrent_default(audited: Audited) -> Iterator[Finding]:
    """U(±1/√hidden) for the weights of the inputs too, however many there are."""
    found = [
        w
        for w in _gates(audited)
        if "weight_ih" in w.path
        and w.is_uniform(w.fans.fan_out**-0.5)
        and max(w.fans.fan_in / w.fans.fan_out, w.fans.fan_out / w.fans.fan_in) > 2.0
    ]
    if found:
        factor = found[0].fans.fan_in / found[0].fans.fan_out
        yield Finding(
            "recurrent-default",
            "warning" if max(factor, 1 / factor) > 4.0 else "note",
            "The weights of the inputs have a variance by the hidden size, and not by how many inputs there are: what "
            f"the inputs give is {factor:.3g} times what it is in a layer whose inputs are as many as its units.",
            audited.initialize,
            "pytorch#9221",
            direction="forward",
            sites=names(found),
            value=found[0].forward,
            unit="fan_in·variance",
            expected=1.0 / 3.0,
        )


@audit_rule("packed-gates")
def packed_gates(audited: Audited) -> Iterator[Finding]:
    """Gates set as one tall matrix: Glorot takes its rows for units, orthogonal divides by them."""
    packed = [w for w in _gates(audited) if w.torch_fans.fan_out > w.fans.fan_out]
    orthogonal = {path for path in paths(packed) if _has_orthogonal_columns(next(w for w in packed if w.path == path))}
    found = [
        w
        for w in packed
        if (w.path in orthogonal and w.forward * NOTABLE < 1.0)
        or (
            w.has(2.0 / (w.torch_fans.fan_in + w.torch_fans.fan_out))
            and not w.has(1.0 / (3.0 * w.fans.fan_out))  # torch's default, which may be the same number
        )
    ]
    if found:
        yield Finding(
            "packed-gates",
            "warning",
            f"The gates of {len(paths(found))} weights were set together, as one matrix of all their rows. "
            f"Each has {found[0].forward:.3g}/fan_in of variance instead of about 1/fan_in.",
            f"{audited.initialize}  # it sets each gate by itself",
            "Saxe et al. (2014); gates are packed i, f, g, o in torch",
            direction="forward",
            sites=names(found),
            value=found[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )


def _has_orthogonal_columns(weight: Weight) -> bool:
    """Of all gates together; orthogonal rows would be orthogonal in each gate too."""
    rows, columns = weight.parameter.shape
    return bool(rows > NOTABLE * columns) and orthogonal_size(weight.parameter) is not None


@audit_rule("forget-bias")
def forget_bias(audited: Audited) -> Iterator[Finding]:
    """Forget gates of an LSTM that begin half open: the cell's gradient halves in each step."""
    found = []
    for name, module in audited.model.named_modules():
        if not isinstance(module, nn.LSTM | nn.LSTMCell) or not module.bias:
            continue
        hidden = module.hidden_size
        for end in [own.removeprefix("bias_ih") for own, _ in module.named_parameters() if own.startswith("bias_ih")]:
            both = [getattr(module, f"{half}{end}")[hidden : 2 * hidden].double() for half in ("bias_ih", "bias_hh")]
            if abs(mean := float(sum(one.mean() for one in both))) < 0.5:
                found.append((f"{name}.bias_ih{end}".lstrip("."), mean))
    if found:
        sites = tuple(name for name, _ in found)
        yield Finding(
            "forget-bias",
            "note",
            "The forget gates begin half open, so that the cell's gradient halves in each step: over 20 steps a "
            "millionth of it is left. A bias of 1 or 2 keeps the gates open until they have learned to close.",
            for_each(sites, "{}.data.view(4, -1)[1] = 1"),
            "Gers et al. (2000); Jozefowicz et al. (2015)",
            direction="backward",
            sites=sites,
            value=found[0][1],
            unit="mean of the forget gates' biases",
            expected=1.0,
        )
