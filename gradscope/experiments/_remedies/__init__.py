"""Remedies, one file a kind; importing it registers them, in the order in which equally likely ones are tried.

A new remedy is one function registered with `remedy`, in the file of its kind, and in
`tests/test_prescribe_remedies.py` a sick model that it cures.
"""

from gradscope.experiments._remedies import _inputs, _attach  # isort: skip
from gradscope.experiments._remedies import _rates, _clipping, _precision  # isort: skip
from gradscope.experiments._remedies import _recurrence, _weights, _branches, _modules  # isort: skip
from gradscope.experiments._remedies._rates import WITH_A_RATE
from gradscope.experiments._remedies._registry import REMEDIES, Case, Change, Remedy, candidates, remedy

__all__ = [
    "REMEDIES",
    "WITH_A_RATE",
    "Case",
    "Change",
    "Remedy",
    "_attach",
    "_branches",
    "_clipping",
    "_inputs",
    "_modules",
    "_precision",
    "_rates",
    "_recurrence",
    "_weights",
    "candidates",
    "remedy",
]
