"""What is wrong, where it starts and why: findings, worst first. No torch."""

from __future__ import annotations

from gradscope.diagnosis._finding import SEVERITIES, Direction, Finding, Severity
from gradscope.diagnosis._findings import Findings

__all__ = ["SEVERITIES", "Direction", "Finding", "Findings", "Severity"]
