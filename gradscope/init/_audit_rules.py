"""The rules of `audit`: each of them one surprise of torch's initial weights, or of how they are set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gradscope.diagnosis import Finding, Severity
from gradscope.init._audit import Audited, Weight, audit_rule
from gradscope.init._torch_default import default_limit

_INITIALIZE = "gradscope.init.initialize(model)"
_NOTABLE = 1.2
"""A factor on a mean square that is worth a word."""


def _decades(weights: Sequence[Weight]) -> float:
    """Decades of rms that these layers lose or gain together, against what their activations need."""
    return sum(0.5 * math.log10(w.forward / w.needed) for w in weights if w.forward > 0.0)


def _severity(decades: float) -> Severity:
    return "error" if abs(decades) >= 2.0 else "warning" if abs(decades) >= 0.3 else "note"


def _names(weights: Sequence[Weight]) -> tuple[str, ...]:
    return tuple(weight.name for weight in weights)


def _plain(weight: Weight) -> bool:
    kinds = (nn.Linear, _ConvNd)
    return isinstance(weight.module, kinds) and not isinstance(weight.module, _ConvTransposeNd)


@audit_rule("default-init")
def default_init(audited: Audited) -> Iterator[Finding]:
    """torch's default of Linear and convolutions, variance 1/(3·fan_in), where an activation follows."""
    found = [
        weight
        for weight in audited.weights
        if _plain(weight)
        and weight.activation is not None
        and weight.has(default_limit(weight.module, "weight", weight.value, False) ** 2 / 3.0)
        and weight.needed / weight.forward > _NOTABLE
    ]
    if not found:
        return
    decades = _decades(found)
    kinds = sorted({w.activation.name for w in found if w.activation is not None})
    yield Finding(
        "default-init",
        _severity(decades),
        f"{len(found)} layers have torch's default weights, of variance 1/(3·fan_in): for {', '.join(kinds)} it is "
        f"{found[0].needed * 3:.2g} times too small. Together they lose {-decades:.1f} decades of rms, "
        "unless norms in between put it back.",
        _INITIALIZE,
        "pytorch#15314, pytorch#57109; He et al. (2015), eq. 10",
        direction="forward",
        sites=_names(found),
        value=found[0].forward,
        unit="fan_in·variance",
        expected=found[0].needed,
    )


@audit_rule("swapped-fans")
def swapped_fans(audited: Audited) -> Iterator[Finding]:
    """Transposed and grouped convolutions set by the fans that torch reads off the shape."""
    found = []
    for weight in audited.weights:
        if not isinstance(weight.module, _ConvNd):
            continue
        for gain in (2.0, 1.0, 1.0 / 3.0):
            for mode in ("fan_in", "fan_out", "fan_avg"):
                by_torch, true = getattr(weight.whole, mode), getattr(weight.fans, mode)
                off = true / by_torch
                if weight.has(gain / by_torch) and max(off, 1.0 / off) > _NOTABLE:
                    found.append((weight, off, mode))
                    break
            else:
                continue
            break
    if found:
        weight, off, mode = max(found, key=lambda one: abs(math.log(one[1])))
        decades = sum(0.5 * abs(math.log10(one[1])) for one in found)
        kind = type(weight.module).__name__
        yield Finding(
            "swapped-fans",
            _severity(decades),
            f"The weights of {len(found)} convolutions were set by the {mode} that torch reads off their shape; for a "
            f"{kind} with its stride and groups it is {1 / off:.3g} times the true one. The mean square that "
            f"{weight.name} passes on is {off:.3g} times what was meant.",
            _INITIALIZE,
            "pytorch#7865, pytorch#23854",
            direction="forward" if mode == "fan_in" else "both",
            sites=tuple(one[0].name for one in found),
            value=off,
            unit="factor on the mean square",
            expected=1.0,
        )


@audit_rule("packed-attention")
def packed_attention(audited: Audited) -> Iterator[Finding]:
    """q, k and v of a MultiheadAttention, set as if they were one matrix; its output projection left as it is."""
    packed = [
        w for w in audited.weights if w.block in ("q", "k", "v") and w.has(2.0 / (w.whole.fan_in + w.whole.fan_out))
    ]
    packed = [
        w for w in packed if isinstance(w.module, nn.MultiheadAttention) and w.whole.fan_out > 1.5 * w.fans.fan_out
    ]
    if packed:
        yield Finding(
            "packed-attention",
            "warning",
            "Queries, keys and values were set as one matrix of three times as many rows: each has half the variance "
            "of an unpacked projection. The logits' variance is a quarter of what Glorot meant, the values' a half.",
            _INITIALIZE,
            "pytorch#166378",
            direction="forward",
            sites=_names(packed),
            value=packed[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )
    out = [w for w in audited.weights if w.path.endswith("out_proj.weight") and w.has(1.0 / (3.0 * w.fans.fan_in))]
    if out:
        yield Finding(
            "packed-attention",
            "note",
            "The output projection of the attention has the default weights of a Linear, a third of the variance that "
            "keeps the mean square.",
            _INITIALIZE,
            "pytorch#57117",
            direction="forward",
            sites=_names(out),
            value=out[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )


@audit_rule("identical-layers", of_scale=False)
def identical_layers(audited: Audited) -> Iterator[Finding]:
    """Random weights that are the same in several layers: copies of one layer."""
    by_content: dict[tuple[object, ...], list[Weight]] = defaultdict(list)
    for weight in audited.weights:
        if weight.value.numel() > 8 and float(weight.value.double().std()) > 0.0:
            flat = weight.value.detach().reshape(-1)
            key = (tuple(weight.value.shape), *flat[:8].double().tolist(), float(flat.double().sum()))
            by_content[key].append(weight)
    groups = [
        group
        for group in by_content.values()
        if len(group) > 1 and all(torch.equal(group[0].value, w.value) for w in group)
    ]
    if groups:
        names = tuple(w.name for group in groups for w in group)
        yield Finding(
            "identical-layers",
            "warning",
            f"{len(names)} weights are copies of {len(groups)}: layers that were made by copying one begin as the same "
            "function. They learn apart in time, but the first steps train fewer layers than there are, and no theory "
            "of random layers holds.",
            "make each layer anew, or " + _INITIALIZE,
            "pytorch#72253, pytorch#86274",
            sites=names,
            value=float(len(names)),
            unit="weights",
            expected=float(len(groups)),
        )


@audit_rule("recurrent-default")
def recurrent_default(audited: Audited) -> Iterator[Finding]:
    """U(±1/√hidden) for the weights of the inputs too, however many there are."""
    found = [
        w
        for w in audited.weights
        if isinstance(w.module, nn.RNNBase | nn.RNNCellBase)
        and "weight_ih" in w.path
        and w.has(1.0 / (3.0 * w.fans.fan_out))
        and max(w.fans.fan_in / w.fans.fan_out, w.fans.fan_out / w.fans.fan_in) > 2.0
    ]
    if found:
        factor = found[0].fans.fan_in / found[0].fans.fan_out
        yield Finding(
            "recurrent-default",
            "warning" if max(factor, 1 / factor) > 4.0 else "note",
            "The weights of the inputs have a variance by the hidden size, and not by how many inputs there are: what "
            f"the inputs give is {factor:.3g} times what it is in a layer whose inputs are as many as its units.",
            _INITIALIZE,
            "pytorch#9221",
            direction="forward",
            sites=_names(found),
            value=found[0].forward,
            unit="fan_in·variance",
            expected=1.0 / 3.0,
        )


@audit_rule("packed-gates")
def packed_gates(audited: Audited) -> Iterator[Finding]:
    """Gates set as one tall matrix: Glorot takes its rows for units, orthogonal divides by them."""
    found = []
    for w in audited.weights:
        if not isinstance(w.module, nn.RNNBase | nn.RNNCellBase) or w.whole.fan_out <= w.fans.fan_out:
            continue
        by_default = w.has(1.0 / (3.0 * w.fans.fan_out))  # which may be the same number
        if not by_default and (w.has(2.0 / (w.whole.fan_in + w.whole.fan_out)) or w.has(1.0 / w.whole.fan_out)):
            found.append(w)
    if found:
        yield Finding(
            "packed-gates",
            "warning",
            f"The gates of {len({w.path for w in found})} weights were set together, as one matrix of all their rows. "
            f"Each has {found[0].forward:.3g}/fan_in of variance instead of about 1/fan_in.",
            _INITIALIZE + "; it sets each gate by itself",
            "Saxe et al. (2014); gates are packed i, f, g, o in torch",
            direction="forward",
            sites=_names(found),
            value=found[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )


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
        yield Finding(
            "forget-bias",
            "note",
            "The forget gates begin half open, so that the cell's gradient halves in each step: over 20 steps a "
            "millionth of it is left. A bias of 1 or 2 keeps the gates open until they have learned to close.",
            f"with torch.no_grad(): lstm.{found[0][0].rpartition('.')[2]}[hidden:2 * hidden] = 1",
            "Gers et al. (2000); Jozefowicz et al. (2015)",
            direction="backward",
            sites=tuple(name for name, _ in found),
            value=found[0][1],
            unit="mean of the forget gates' biases",
            expected=1.0,
        )


@audit_rule("magic-gain")
def magic_gain(audited: Audited) -> Iterator[Finding]:
    """torch's gains for SELU and tanh: the one does not normalize itself, the other is chaotic."""
    for name, gain, said in (
        (
            "selu",
            0.75,
            "SELU with gain 3/4 does not normalize itself: activations settle at a standard deviation of 0.20.",
        ),
        ("tanh", 5.0 / 3.0, "tanh with gain 5/3 is chaotic: a gradient's mean square grows by 1.21 in each layer."),
    ):
        found = [
            w
            for w in audited.weights
            if w.activation is not None and w.activation.name == name and w.has(gain**2 / w.fans.fan_in)
        ]
        if found:
            yield Finding(
                "magic-gain",
                "warning" if len(found) > 5 else "note",
                f"{len(found)} layers before {name} have the gain of torch.nn.init.calculate_gain. {said}",
                _INITIALIZE,
                "Klambauer et al. (2017); pytorch#24991" if name == "selu" else "Schoenholz et al. (2017)",
                direction="both",
                sites=_names(found),
                value=found[0].forward,
                unit="fan_in·variance",
                expected=1.0 if name == "selu" else found[0].needed,
            )


@audit_rule("gain-mismatch")
def gain_mismatch(audited: Audited) -> Iterator[Finding]:
    """A variance that is not what the activation behind needs, in layers of which none of the rules above speaks."""
    named = {site for name in _NAMED for finding in _found(name, audited) for site in finding.sites}
    found = [
        w
        for w in audited.weights
        if w.name not in named
        and (_plain(w) or isinstance(w.module, _ConvTransposeNd))
        and w.activation is not None
        and w.activation.name not in ("tanh", "sigmoid", "softsign", "hardtanh", "hardsigmoid", "sin")
        and w.square > 0.0
        and max(w.forward / w.needed, w.needed / w.forward) > 1.5
    ]
    decades = _decades(found)
    if found and abs(decades) >= 0.3:
        word = "lose" if decades < 0.0 else "gain"
        kinds = sorted({w.activation.name for w in found if w.activation is not None})
        worst = max(found, key=lambda w: abs(math.log(w.forward / w.needed)))
        yield Finding(
            "gain-mismatch",
            _severity(decades),
            f"{len(found)} layers before {', '.join(kinds)} have weights whose fan_in·variance does not keep the mean "
            f"square: together they {word} {abs(decades):.1f} decades of the activations' rms. At {worst.name} it is "
            f"{worst.forward:.3g}, where {worst.needed:.3g} is needed.",
            _INITIALIZE,
            "He et al. (2015), eq. 10",
            direction="forward",
            sites=_names(found),
            value=worst.forward,
            unit="fan_in·variance",
            expected=worst.needed,
        )


_NAMED = ("default-init", "swapped-fans", "magic-gain", "expanding-orthogonal")


def _found(name: str, audited: Audited) -> list[Finding]:
    from gradscope.init._audit import RULES

    return list(RULES[name](audited))


@audit_rule("expanding-orthogonal")
def expanding_orthogonal(audited: Audited) -> Iterator[Finding]:
    """Orthogonal columns of a layer with more outputs than inputs: the mean square shrinks by in/out."""
    found = []
    for w in audited.weights:
        rows, columns = w.value.shape[0], w.value[0].numel()
        if w.block or not isinstance(w.module, nn.Linear) or rows < 1.5 * columns or columns < 8:
            continue
        matrix = w.value.double().reshape(rows, columns)
        gram = matrix.T @ matrix
        size = float(gram.diagonal().mean())
        if size > 0.0 and float((gram - size * torch.eye(columns, dtype=gram.dtype)).abs().max()) < 1e-3 * size:
            found.append(w)
    if found:
        w = found[0]
        yield Finding(
            "expanding-orthogonal",
            _severity(_decades(found)),
            "An orthogonal matrix keeps the norm, which is then spread over more units: the mean square of "
            f"{w.name}'s outputs is in/out = {w.fans.fan_in / w.fans.fan_out:.3g} of its inputs'.",
            "multiply the weight by √(out/in), or " + 'gradscope.init.initialize(model, "orthogonal")',
            "Saxe et al. (2014); pytorch#10672",
            direction="forward",
            sites=_names(found),
            value=w.forward,
            unit="fan_in·variance",
            expected=1.0,
        )


@audit_rule("truncated-normal")
def truncated_normal(audited: Audited) -> Iterator[Finding]:
    """A normal distribution cut at ±2 of its own standard deviations, without making up for what that takes away."""
    found = []
    for w in audited.weights:
        values = w.value.double()
        if w.block or values.numel() < 2000 or w.square == 0.0 or not _plain(w):
            continue
        ratio = float(values.abs().max()) / math.sqrt(w.square)
        quarter = float((values.abs() < 0.5 * math.sqrt(w.square)).double().mean())
        cut = abs(ratio - 2.0 / 0.87962566103423978) < 0.03 and abs(quarter - 0.3569) < 5 * math.sqrt(
            0.23 / values.numel()
        )
        gains = {w.needed, 1.0, 2.0}
        if cut and any(w.has(0.7737413035 * gain / fan) for gain in gains for fan in w.fans):
            found.append(w)
    if found:
        yield Finding(
            "truncated-normal",
            "note",
            f"{len(found)} weights come from a normal distribution that was cut at two standard deviations, and have "
            "77 % of the variance that was asked for.",
            "divide the standard deviation by 0.8796, or " + _INITIALIZE,
            "pytorch#155588; timm#1286",
            direction="both",
            sites=_names(found),
            value=0.7737,
            unit="variance got/asked",
            expected=1.0,
        )


@audit_rule("bilinear-bound")
def bilinear_bound(audited: Audited) -> Iterator[Finding]:
    """Bilinear's default bound 1/√in1, though it sums in1·in2 products."""
    found = [
        w
        for w in audited.weights
        if isinstance(w.module, nn.Bilinear) and w.has(1.0 / (3.0 * w.module.in1_features)) and w.forward > 2.0
    ]
    if found:
        yield Finding(
            "bilinear-bound",
            "warning",
            "The default weights of a Bilinear take no notice of its second input: the mean square of "
            f"{found[0].name}'s outputs is {found[0].forward:.3g} times the product of its inputs'.",
            _INITIALIZE,
            "pytorch#132231",
            direction="forward",
            sites=_names(found),
            value=found[0].forward,
            unit="fan_in·variance",
            expected=1.0,
        )


@audit_rule("embedding-scale")
def embedding_scale(audited: Audited) -> Iterator[Finding]:
    """Embeddings of N(0, 1) that serve as output weights too: what they make of it is large."""
    found = [
        w
        for w in audited.weights
        if isinstance(w.module, nn.Embedding | nn.EmbeddingBag) and w.has(1.0) and w.fans.fan_out >= 64
    ]
    tied = [w for w in found if sum(w.module.weight is other.originals[0] for other in audited.slots) > 1]
    if tied:
        width = tied[0].fans.fan_out
        yield Finding(
            "embedding-scale",
            "warning",
            f"{tied[0].name} is N(0, 1) and serves as output weights too: the logits of inputs of mean square 1 have "
            f"a standard deviation of √{width:.0f} = {math.sqrt(width):.0f}: the first loss is far from ln(classes).",
            f"torch.nn.init.normal_({tied[0].path}, std={1 / math.sqrt(width):.3g})",
            "Vaswani et al. (2017), 3.4; Press & Wolf (2017)",
            direction="forward",
            sites=_names(tied),
            value=1.0,
            unit="variance",
            expected=1.0 / width,
        )


@audit_rule("symmetric-units", of_scale=False)
def symmetric_units(audited: Audited) -> Iterator[Finding]:
    """Units with the same weights: they get the same gradients, and stay the same."""
    found = []
    for w in audited.weights:
        rows = w.value.reshape(w.value.shape[0], -1)
        if (
            rows.shape[0] > 1
            and w.square > 0.0
            and bool((rows == rows[:1]).all())
            and not isinstance(w.module, nn.Embedding)
        ):
            found.append(w)
    if found:
        yield Finding(
            "symmetric-units",
            "error",
            f"All units of {found[0].name} have the same weights: they compute the same, get the same gradient, and "
            "stay the same for ever.",
            _INITIALIZE,
            "Goodfellow et al. (2016), 8.4",
            direction="both",
            sites=_names(found),
            value=1.0,
            unit="different units",
            expected=float(found[0].value.shape[0]),
        )


@audit_rule("not-at-initialization", of_scale=False)
def not_at_initialization(audited: Audited) -> Iterator[Finding]:
    """Said of a trained model, whose weights no rule of scale is asked about."""
    if audited.trained:
        yield Finding(
            "not-at-initialization",
            "note",
            f"The model is not at its initialization: {audited.trained}. Its weights were not measured against initial "
            "ones.",
        )
