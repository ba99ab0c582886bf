"""Experiments: probe a model on one batch, predict it, take its Jacobian's spectrum, sweep plain nets, try remedies.

Lazy: the settings (`SweepConfig`, `SettingsError`) come without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.experiments._apply import apply
    from gradscope.experiments._config import SettingsError, SweepConfig
    from gradscope.experiments._jacobian import jacobian_spectrum
    from gradscope.experiments._jacobian_result import JacobianSpectrum
    from gradscope.experiments._networks import plain_network
    from gradscope.experiments._predict import predict
    from gradscope.experiments._prescribe import prescribe
    from gradscope.experiments._probe import probe
    from gradscope.experiments._suggest import Candidate, Suggestion, suggest
    from gradscope.experiments._sweep import sweep

__all__ = [
    "Candidate",
    "JacobianSpectrum",
    "SettingsError",
    "Suggestion",
    "SweepConfig",
    "apply",
    "jacobian_spectrum",
    "plain_network",
    "predict",
    "prescribe",
    "probe",
    "suggest",
    "sweep",
]

_FILES = {
    "Candidate": "_suggest",
    "JacobianSpectrum": "_jacobian_result",
    "SettingsError": "_config",
    "Suggestion": "_suggest",
    "SweepConfig": "_config",
    "apply": "_apply",
    "jacobian_spectrum": "_jacobian",
    "plain_network": "_networks",
    "predict": "_predict",
    "prescribe": "_prescribe",
    "probe": "_probe",
    "suggest": "_suggest",
    "sweep": "_sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
