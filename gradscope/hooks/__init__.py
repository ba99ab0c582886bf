"""Observe a live model: `GradScope`."""

from gradscope.hooks._gradscope import GradScope

__all__ = ["GradScope"]
