"""Which weights of a transformer write into its residual stream, and in how many layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gradscope.init._model_schemes._base import Setting

_ATTENTIONS = ("self_attn", "multihead_attn")
_KINDS: dict[type[nn.Module], str] = {nn.TransformerEncoderLayer: "encoder", nn.TransformerDecoderLayer: "decoder"}


@dataclass(frozen=True)
class Stacks:
    """The layers of an encoder and of a decoder.

    Attributes:
        encoder: number of its layers; those of a model with one stack only, of whatever kind.
        decoder: number of its layers.
        within: (name of a parameter, block; empty for all of it) → `encoder` or `decoder`: values, output projections
            and feed-forward weights, but not queries and keys.
    """

    encoder: int
    decoder: int
    within: dict[tuple[str, str], str]

    def of(self, parameter: str, block: str) -> str | None:
        """Which stack a block of a parameter belongs to; None where to none."""
        return self.within.get((parameter, "")) or self.within.get((parameter, block))


def stacks(setting: Setting, scheme: str) -> Stacks:
    """Of torch's own transformer layers by their names, of any other model by its residual branches.

    Raises:
        ValueError: the model has no torch layers, and no inputs or no branches.
    """
    within: dict[tuple[str, str], str] = {}
    counts = dict.fromkeys(_KINDS.values(), 0)
    for name, module in setting.model.named_modules():
        kind = next((kind for type_, kind in _KINDS.items() if isinstance(module, type_)), None)
        if kind is None:
            continue
        counts[kind] += 1
        start = f"{name}." if name else ""
        within |= {(f"{start}linear{i}.weight", ""): kind for i in (1, 2)}
        for attention in _ATTENTIONS:
            within[f"{start}{attention}.in_proj_weight", "v"] = kind
            within[f"{start}{attention}.v_proj_weight", ""] = kind
            within[f"{start}{attention}.out_proj.weight", ""] = kind
    if within:
        alone = 0 in counts.values()
        if alone:  # one stack, be it called a decoder, is scaled as one
            return Stacks(max(counts.values()), 0, dict.fromkeys(within, "encoder"))
        return Stacks(counts["encoder"], counts["decoder"], within)
    found = setting.branches(scheme).branches
    return Stacks(max(len(found) // 2, 1), 0, {(name, ""): "encoder" for branch in found for name in branch.layers})
