"""One function a picture; each returns a `matplotlib.figure.Figure` and neither saves nor shows it."""

from __future__ import annotations

from gradscope.report.figures._activation import activation_curve
from gradscope.report.figures._card import activation_card
from gradscope.report.figures._comparison import comparison
from gradscope.report.figures._correlation import correlation_map
from gradscope.report.figures._gains import gains
from gradscope.report.figures._heatmap import depth_step_heatmap
from gradscope.report.figures._overview import overview
from gradscope.report.figures._phase import phase_diagram
from gradscope.report.figures._profile import profile
from gradscope.report.figures._signal_vs_depth import signal_vs_depth
from gradscope.report.figures._spectrum import singular_values
from gradscope.report.figures._update_ratio import update_to_weight

__all__ = [
    "activation_card",
    "activation_curve",
    "comparison",
    "correlation_map",
    "depth_step_heatmap",
    "gains",
    "overview",
    "phase_diagram",
    "profile",
    "signal_vs_depth",
    "singular_values",
    "update_to_weight",
]
