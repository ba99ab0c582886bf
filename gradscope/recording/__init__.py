"""What was observed: the data model of a run and its file. Never imports torch.

A `Recording` holds sites × steps × `Moments`; a statistic is a registered function of the moments;
a `Profile` is one statistic of one signal against depth; a `SweepResult` is what a sweep found; `compare` sets
two runs side by side.
"""

from __future__ import annotations

from gradscope.recording._baseline import Baseline, Place, baseline_of
from gradscope.recording._compare import compare
from gradscope.recording._comparison import Comparison, Difference
from gradscope.recording._errors import GradScopeWarning, RecordingError
from gradscope.recording._export import export_csv, export_npz
from gradscope.recording._merge import merge_recordings
from gradscope.recording._moments import HISTOGRAM_EDGES, Moments, StepRecord
from gradscope.recording._precision import PrecisionShare
from gradscope.recording._profile import Profile, decades_per_layer, frontier, healthy_band, layer_ratio
from gradscope.recording._recording import Recording
from gradscope.recording._sampling import Sampling
from gradscope.recording._site import ROLES, SIGNALS, Role, Signal, Site
from gradscope.recording._statistics import STATISTICS, Statistic
from gradscope.recording._structure import Change
from gradscope.recording._survival import LayersAlive
from gradscope.recording._sweep_result import Expected, SweepCell, SweepResult
from gradscope.recording._table import step_table
from gradscope.recording._unit_moments import UnitMoments
from gradscope.recording._unit_statistics import UNIT_STATISTICS, UnitStatistic
from gradscope.recording._words import flow_sentence

__all__ = [
    "HISTOGRAM_EDGES",
    "ROLES",
    "SIGNALS",
    "STATISTICS",
    "UNIT_STATISTICS",
    "Baseline",
    "Change",
    "Comparison",
    "Difference",
    "Expected",
    "GradScopeWarning",
    "LayersAlive",
    "Moments",
    "Place",
    "PrecisionShare",
    "Profile",
    "Recording",
    "RecordingError",
    "Role",
    "Sampling",
    "Signal",
    "Site",
    "Statistic",
    "StepRecord",
    "SweepCell",
    "SweepResult",
    "UnitMoments",
    "UnitStatistic",
    "baseline_of",
    "compare",
    "decades_per_layer",
    "export_csv",
    "export_npz",
    "flow_sentence",
    "frontier",
    "healthy_band",
    "layer_ratio",
    "merge_recordings",
    "step_table",
]
