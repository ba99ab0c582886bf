"""What a real model should do to its signal: its program is captured, and moments are pushed through it both ways.

`gradscope.predict` is the door; here stands what it is given. In torch, unlike mean field beside it.
"""

from __future__ import annotations

from gradscope.theory.prediction._constant import Moments

__all__ = ["Moments"]
