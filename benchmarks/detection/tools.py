"""Every tool by its name."""

from __future__ import annotations

from benchmarks.detection.alarm import Tool
from benchmarks.detection.autotrainer import autotrainer
from benchmarks.detection.deepdiagnosis import deepdiagnosis, without_input
from benchmarks.detection.gradscope_rules import gradscope
from benchmarks.detection.smdebug import smdebug
from benchmarks.detection.thedeepchecker import thedeepchecker, without_test

PEERS: dict[str, Tool] = {
    "AWS Debugger": smdebug,
    "AutoTrainer": autotrainer,
    "DeepDiagnosis": deepdiagnosis,
    "DeepDiagnosis without the input's rule": without_input,
    "TheDeepChecker": thedeepchecker,
    "TheDeepChecker without the F-test": without_test,
}
TOOLS: dict[str, Tool] = {"GradScope": gradscope, **PEERS}


def available() -> dict[str, Tool]:
    """Those that can run: GradScope where it has `diagnose`."""
    try:
        from gradscope.diagnosis import diagnose  # type: ignore[attr-defined, unused-ignore]  # noqa: F401
    except ImportError:
        return dict(PEERS)
    return dict(TOOLS)
