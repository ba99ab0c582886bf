"""The rules, one file a family; importing it registers them, in the order in which they are asked.

A new rule is one function registered with `rule`, in the file of its family, and a sick, a sound and a nearly sick
recording in `tests/test_diagnosis_rules.py`.
"""

from gradscope.diagnosis._rules import _nonfinite  # isort: skip
from gradscope.diagnosis._rules import (
    _cut,
    _depth,
    _initial,
    _inputs,
    _output,
    _over_time,
    _precision,
    _units,
    _updates,
)

from gradscope.diagnosis._rules import _alike, _uneven  # isort: skip

__all__ = [
    "_alike",
    "_cut",
    "_depth",
    "_initial",
    "_inputs",
    "_nonfinite",
    "_output",
    "_over_time",
    "_precision",
    "_uneven",
    "_units",
    "_updates",
]
