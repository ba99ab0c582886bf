"""One function a picture; each returns a `matplotlib.figure.Figure` and neither saves nor shows it."""

from __future__ import annotations

from gradscope.report.figures._activation import activation_curve
from gradscope.report.figures._heatmap import depth_step_heatmap
from gradscope.report.figures._overview import overview
from gradscope.report.figures._profile import profile
from gradscope.report.figures._signal_vs_depth import signal_vs_depth
from gradscope.report.figures._update_ratio import update_to_weight

__all__ = [
    "activation_curve",
    "depth_step_heatmap",
    "overview",
    "profile",
    "signal_vs_depth",
    "update_to_weight",
]
