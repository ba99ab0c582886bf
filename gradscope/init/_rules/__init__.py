"""The rules of `audit`, one file a family: each is one surprise of torch's initial weights, or of how they are set.

A new rule is one function registered with `audit_rule`, in the file of its family, and a sick, a sound and a nearly
sick model in `tests/test_audit.py`.
"""

from gradscope.init._rules import (
    _attention,
    _biases,
    _branches,
    _convolutions,
    _default,
    _depth,
    _distribution,
    _embedding,
    _functions,
    _gain,
    _orthogonal,
    _recurrent,
    _shared,
    _symmetry,
    _trained,
)

__all__ = [
    "_attention",
    "_biases",
    "_branches",
    "_convolutions",
    "_default",
    "_depth",
    "_distribution",
    "_embedding",
    "_functions",
    "_gain",
    "_orthogonal",
    "_recurrent",
    "_shared",
    "_symmetry",
    "_trained",
]
