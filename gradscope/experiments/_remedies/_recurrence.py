"""Recurrences: torch's own layers, and square layers that a model calls step after step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradscope.experiments._patient import Patient
from gradscope.experiments._remedies._registry import Case, Change, remedy
from gradscope.experiments._remedies._weights import DEPTH, drawn
from gradscope.init import identity_, orthogonal_
from gradscope.init._trace import trace

_RULES = (*DEPTH, "init-mismatch", "saturated-units", "collapsed-batch", "non-finite", "symmetric-units",
          "output-pairing")  # fmt: skip
_CAUSES = ("recurren", "#")


def _again(case: Case) -> list[str]:
    """Square linear layers that are called more than once in one forward."""
    model = case.patient.model
    calls = Counter(call.module for call in trace(model, case.inputs))
    layers = {name: model.get_submodule(name) for name, times in calls.items() if times > 1}
    return [n for n, m in layers.items() if isinstance(m, nn.Linear) and m.in_features == m.out_features]


def _set(case: Case, names: list[str], fill: Callable[[Tensor, torch.Generator], object], shown: str) -> Change:
    def do(patient: Patient) -> None:
        with torch.no_grad():
            for name in names:
                fill(patient.model.get_parameter(f"{name}.weight"), case.generator())

    lines = (f"for name in {names!r}:", f"    {shown.replace('WEIGHT', 'model.get_submodule(name).weight')}")
    return Change(lines, do)


@remedy("orthogonal recurrence", rules=_RULES, causes=_CAUSES, invasive=1)
def orthogonal_recurrence(case: Case) -> Change | None:
    """Orthogonal weights for layers that are called step after step: what a state holds neither grows nor shrinks."""
    names = _again(case)
    if not names:
        return None
    seed = f"torch.Generator().manual_seed({case.seed})"
    return _set(
        case, names, lambda w, g: orthogonal_(w, generator=g), f"gradscope.init.orthogonal_(WEIGHT, generator={seed})"
    )


@remedy("identity recurrence", rules=_RULES, causes=_CAUSES, invasive=1)
def identity_recurrence(case: Case) -> Change | None:
    """Recurrent weights as the identity (Le et al. 2015): a state stays until something comes in."""
    if any(isinstance(m, (nn.RNN, nn.RNNCell)) for m in case.patient.model.modules()):
        return drawn(case, "irnn", "'irnn'")
    names = _again(case)
    return _set(case, names, lambda w, g: identity_(w), "gradscope.init.identity_(WEIGHT)") if names else None


@remedy("open forget gates", rules=_RULES, causes=_CAUSES, invasive=1)
def forget_bias(case: Case) -> Change | None:
    """Forget gates that begin half open, so that cells remember (Jozefowicz et al. 2015)."""
    gated = (nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell)
    if not any(isinstance(m, gated) for m in case.patient.model.modules()):
        return None
    return drawn(case, "forget_bias", "'forget_bias'")
