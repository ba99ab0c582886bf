"""Observe a live model: `GradScope`."""

from gradscope.hooks._gradscope import GradScope
from gradscope.hooks._nonfinite import NonFinite, NonFiniteError

__all__ = ["GradScope", "NonFinite", "NonFiniteError"]
