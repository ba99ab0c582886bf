"""Attention: softmax of products of queries and keys, by which values are averaged.

With n keys, logits of variance s² over the keys (and t² the covariance of two queries' logits), a weight's mean square
is about e^{s²}/n²: with S = E Σ_j A_j² ≈ e^{s²}/(n − 1 + e^{s²}),

    mean square out    = k + (v − k)·(S + s²/E)       v the mean square of the values, k of two positions' product
    product of queries = k + (v − k)·(e^{t²}/n + t²/E)

(Dong et al. 2021; Noci et al. 2022.) Good while s² is about 1 or less. Keys and values are made of the same tokens, of
E entries each: a query leans towards tokens that lie along one direction, and so does what it gets, which is s²/E and
t²/E; and the gradient of a query, Σ_j (g·v_j)·k_j over the tokens' deviations, is 1 + n/E times what it would be of
values and keys that have nothing in common.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._mixture import mixture
from gradscope.theory.prediction._registry import NoRule, rule
from gradscope.theory.prediction._value import Root, Scores, Value
from gradscope.theory.prediction._visible import Visible


@rule("scaled_dot_product_attention")
def attention(
    flow: Flow,
    operation: Operation,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q·k/√d)·v."""
    if not (isinstance(query, Value) and isinstance(key, Value) and isinstance(value, Value)):
        raise NoRule("of these")
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = Scores(query, key, key.shape[-2], query.shape[-1])
    return averaged_by(flow, scores, value, query.shape[-2], key.shape[-2], attn_mask, factor, causal=is_causal)


@rule("aten._scaled_dot_product_flash_attention_for_cpu", "aten._scaled_dot_product_flash_attention")
def fused_attention(
    flow: Flow,
    operation: Operation,
    query: Any,
    key: Any,
    value: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *args: Any,
    attn_mask: Any = None,
    scale: float | None = None,
) -> Any:
    """The same, by a kernel of its own."""
    return [attention(flow, operation, query, key, value, attn_mask, dropout_p, is_causal, scale), None]


def averaged_by(
    flow: Flow,
    scores: Scores,
    value: Value,
    queries: int,
    keys: int,
    attn_mask: Any,
    factor: float,
    *,
    causal: bool = False,
) -> Value:
    """Values, averaged by the softmax of these scores."""
    query, key, width = scores.query, scores.key, scores.width
    heads = query.count("unit") / key.count("unit") if scores.keys == key.shape[-2] else 1.0  # that share a key
    visible = _visible(queries, keys, causal, attn_mask)
    whole = query.count("position") == queries and value.count("position") == keys
    q, k, v = (one.alike if whole else one.alike.flat for one in (query, key, value))
    logit = factor**2 * width * max(k.same - k.position, 0.0)
    spread, alongside = logit * q.same, logit * q.position
    entries = max(query.count("unit"), 1)  # of a token, over all heads
    leaning = (spread / entries, alongside / entries) if keys > 1 else (0.0, 0.0)
    resolved = not visible.alike or any(one.places is not None for one in (q, k, v))
    mix = mixture(visible, keys, spread, alongside, leaning, resolved=resolved)
    alike = mix.averaged(v)
    root = Root.gaussian(alike if whole else alike.flat, value.mean)

    def back() -> None:
        g = root.gradient
        own = mix if resolved or g.places is None else mixture(visible, keys, spread, alongside, leaning, resolved=True)
        flow.give(value, Alike.of(own.of_values(g)) * heads)
        logits = own.of_logits(g, v) * (factor**2 * width)  # Σ_j of the logits' gradients squared, of one query
        common = 1.0 + own.counts / entries
        grouped = factor**2 * width * g.at(own.queries).same * own.together(k, v)
        flow.give(query, own.of_queries(logits * common * own.varied(k) + grouped))
        flow.give(key, own.of_keys(g, q, v) * (factor**2 * width * heads))

    flow.later(back)
    return Value((*query.dims[:-1], value.dims[-1]), root, root.h)


def _visible(queries: int, keys: int, causal: bool, mask: Any) -> Visible:
    """Which keys each query sees: by a mask's own numbers where it has them, without them by a causal one."""
    if causal:
        return Visible.first([min(keys, i + 1) for i in range(queries)])
    if isinstance(mask, Constant) and mask.tensor is not None and mask.tensor.device.type != "meta":
        tensor = mask.tensor
        seen = tensor if tensor.dtype.is_floating_point is False else tensor > -1e4
        table = seen.reshape(-1, *seen.shape[-2:])[0]
        return Visible.of(table) if table.shape == (queries, keys) else Visible.first([keys] * queries)
    if isinstance(mask, Constant) and queries == keys:
        return Visible.first(range(1, queries + 1))
    return Visible.first([keys] * queries)


def bilinear(flow: Flow, operation: Operation, x: Value, y: Value, bias: Any) -> Value:
    """A product of two values: of queries and keys, or of attention's weights and values."""
    if x.scores is not None:
        scores = x.scores
        return averaged_by(flow, scores, y, x.shape[-2], scores.keys, scores.mask, scores.factor)
    summed = {atom.label for atom in x.dims[-1]}
    if summed != {"unit"} or {atom.label for atom in y.dims[-2]} != {"unit"}:
        raise NoRule("of two values, over positions")
    width = x.shape[-1]
    one, other = x.alike, y.alike
    alike = Alike(width * one.same * other.same, 0.0, 0.0, 0.0)
    root = Root.gaussian(alike)
    mask = bias if isinstance(bias, Constant) and bias.shape else None
    scores = Scores(x, y, y.shape[-1], width, mask=mask)
    return Value((*x.dims[:-1], y.dims[-1]), root, root.h, scores=scores)


@rule("aten._softmax", "aten._safe_softmax", "aten.softmax")
def softmax(flow: Flow, operation: Operation, x: Any, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """The weights of an attention; of other logits it is not known."""
    if not isinstance(x, Value) or x.scores is None:
        raise NoRule("of what is no product of queries and keys")
    number = torch.tensor(1.0 / x.scores.keys, dtype=torch.float64)
    return Value(x.dims, None, number, scores=x.scores)
