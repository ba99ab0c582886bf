"""GradScope: which layer loses or blows up my signal, why, and what change fixes it?

This is the public door. It is lazy: `import gradscope` imports neither torch nor matplotlib; a name is
fetched from its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradscope._version import __version__ as __version__

if TYPE_CHECKING:
    from gradscope import activations, diagnosis, init, testing, theory
    from gradscope.diagnosis import Finding, Findings, diagnose
    from gradscope.experiments import SweepConfig, jacobian_spectrum, predict, prescribe, probe, suggest, sweep
    from gradscope.hooks import GradScope, NonFinite, NonFiniteError
    from gradscope.recording import GradScopeWarning, Recording, RecordingError

__all__ = [
    "Finding",
    "Findings",
    "GradScope",
    "GradScopeWarning",
    "NonFinite",
    "NonFiniteError",
    "Recording",
    "RecordingError",
    "SweepConfig",
    "activations",
    "diagnose",
    "diagnosis",
    "init",
    "jacobian_spectrum",
    "predict",
    "prescribe",
    "probe",
    "suggest",
    "sweep",
    "testing",
    "theory",
]

_ROOMS = {
    "Finding": "gradscope.diagnosis",
    "Findings": "gradscope.diagnosis",
    "GradScope": "gradscope.hooks",
    "GradScopeWarning": "gradscope.recording",
    "NonFinite": "gradscope.hooks",
    "NonFiniteError": "gradscope.hooks",
    "Recording": "gradscope.recording",
    "RecordingError": "gradscope.recording",
    "SweepConfig": "gradscope.experiments",
    "diagnose": "gradscope.diagnosis",
    "jacobian_spectrum": "gradscope.experiments",
    "predict": "gradscope.experiments",
    "prescribe": "gradscope.experiments",
    "probe": "gradscope.experiments",
    "suggest": "gradscope.experiments",
    "sweep": "gradscope.experiments",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value = getattr(importlib.import_module(_ROOMS[name]), name)
    elif name in __all__:
        value = importlib.import_module(f"gradscope.{name}")
    else:
        raise AttributeError(f"module 'gradscope' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
