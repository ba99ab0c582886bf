"""The blocks of modules that pack several matrices: gates of recurrent layers, projections of attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradscope.init._fans import Block, Blocks, Fans

_GATES = {
    "RNN": ("hidden",),
    "LSTM": ("input", "forget", "cell", "output"),  # torch's order in the packed weight: i, f, g, o
    "GRU": ("reset", "update", "new"),
}
_GATE_ACTIVATIONS = {
    "cell": "tanh",
    "new": "tanh",
}  # the other gates are logistic


def _gates(kind: str, hidden: int, fan_in: int, nonlinearity: str | None) -> tuple[Block, ...]:
    fans_of_each = Fans(fan_in, hidden)
    return tuple(
        Block(
            gate,
            slice(place * hidden, (place + 1) * hidden),
            fans_of_each,
            nonlinearity or _GATE_ACTIVATIONS.get(gate, "sigmoid"),
        )
        for place, gate in enumerate(_GATES[kind])
    )


def recurrent_blocks(module: Any) -> Blocks:
    """The gates of an RNN, LSTM or GRU, for each layer and direction."""
    kind = "RNN" if module.mode.startswith("RNN") else module.mode
    nonlinearity = module.nonlinearity if kind == "RNN" else None
    hidden, projected = module.hidden_size, module.proj_size or module.hidden_size
    directions = ("", "_reverse") if module.bidirectional else ("",)
    blocks: Blocks = {}
    for layer in range(module.num_layers):
        into = projected * len(directions) if layer else module.input_size
        for direction in directions:
            end = f"l{layer}{direction}"
            blocks[f"weight_ih_{end}"] = _gates(kind, hidden, into, nonlinearity)
            blocks[f"weight_hh_{end}"] = _gates(kind, hidden, projected, nonlinearity)
            if module.proj_size:
                blocks[f"weight_hr_{end}"] = (Block("projection", None, Fans(hidden, projected)),)
    return blocks


def cell_blocks(module: Any) -> Blocks:
    """The gates of an RNNCell, LSTMCell or GRUCell."""
    kind = next(kind for kind in _GATES if isinstance(module, getattr(nn, f"{kind}Cell")))
    nonlinearity = module.nonlinearity if kind == "RNN" else None
    return {
        "weight_ih": _gates(kind, module.hidden_size, module.input_size, nonlinearity),
        "weight_hh": _gates(kind, module.hidden_size, module.hidden_size, nonlinearity),
    }


def attention_blocks(module: Any) -> Blocks:
    """The projections of a MultiheadAttention, packed in one weight or each in its own."""
    width = module.embed_dim
    names = ("q", "k", "v")
    if module.in_proj_weight is None:
        blocks: Blocks = {
            f"{name}_proj_weight": (Block(name, None, Fans(into, width), "identity"),)
            for name, into in zip(names, (width, module.kdim, module.vdim), strict=True)
        }
    else:
        blocks = {
            "in_proj_weight": tuple(
                Block(name, slice(place * width, (place + 1) * width), Fans(width, width), "identity")
                for place, name in enumerate(names)
            )
        }
    blocks["out_proj.weight"] = (Block("out", None, Fans(width, width)),)
    return blocks
