"""Schemes of a whole model: what a weight gets depends on where in the model it stands. One file each."""

from __future__ import annotations

from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._deep_norm import DeepNorm
from gradscope.init._model_schemes._edge_of_chaos import EdgeOfChaos
from gradscope.init._model_schemes._fixup import Fixup
from gradscope.init._model_schemes._forget_bias import Chrono, ForgetBias
from gradscope.init._model_schemes._gpt2 import GPT2
from gradscope.init._model_schemes._irnn import IRNN
from gradscope.init._model_schemes._lsuv import LSUV
from gradscope.init._model_schemes._mimetic import Mimetic
from gradscope.init._model_schemes._mup import MuP
from gradscope.init._model_schemes._propagate import Propagate
from gradscope.init._model_schemes._scaled_branches import ScaledBranches
from gradscope.init._model_schemes._siren import Siren
from gradscope.init._model_schemes._t_fixup import TFixup
from gradscope.init._model_schemes._zero_branches import ZeroBranches

_KINDS: tuple[type[ModelScheme], ...] = (
    *(Chrono, DeepNorm, EdgeOfChaos, Fixup, ForgetBias, GPT2, IRNN, LSUV),
    *(Mimetic, MuP, Propagate, ScaledBranches, Siren, TFixup, ZeroBranches),
)

MODEL_SCHEMES = {kind.name: kind for kind in _KINDS}
"""By name; a name stands for the scheme with its default settings."""

MODEL_ALIASES = {"rezero": "zero_branches", "skip_init": "zero_branches", "zero_gamma": "zero_branches"}
"""Names that papers give to the same."""


def model_scheme_names() -> tuple[str, ...]:
    """Names of the schemes of a whole model, without the aliases (`zero_gamma`, `rezero`, `skip_init`)."""
    return tuple(MODEL_SCHEMES)


def model_scheme(scheme: object) -> ModelScheme | None:
    """The scheme of a whole model that is meant by a name or is given itself; None where it is none."""
    if isinstance(scheme, ModelScheme):
        return scheme
    if isinstance(scheme, str) and (kind := MODEL_SCHEMES.get(MODEL_ALIASES.get(scheme, scheme))) is not None:
        return kind()
    return None


__all__ = [
    "GPT2",
    "IRNN",
    "LSUV",
    "MODEL_ALIASES",
    "MODEL_SCHEMES",
    "Chrono",
    "DeepNorm",
    "EdgeOfChaos",
    "Fixup",
    "ForgetBias",
    "Mimetic",
    "ModelScheme",
    "MuP",
    "Propagate",
    "ScaledBranches",
    "Setting",
    "Siren",
    "TFixup",
    "ZeroBranches",
    "model_scheme",
    "model_scheme_names",
]
