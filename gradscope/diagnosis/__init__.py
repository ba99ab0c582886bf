"""What is wrong, where it starts and why: rules that read a recording, and their findings, worst first. No torch."""

from __future__ import annotations

from gradscope.diagnosis._condition import Condition
from gradscope.diagnosis._diagnose import diagnose, rule_names
from gradscope.diagnosis._finding import SEVERITIES, Direction, Finding, Severity
from gradscope.diagnosis._findings import Findings
from gradscope.diagnosis._limits import Limits
from gradscope.diagnosis._live import Watch
from gradscope.diagnosis._registry import RULES, Rule
from gradscope.diagnosis._summary import Summary, summary
from gradscope.diagnosis._trials import Trial, Trials

__all__ = [
    "RULES",
    "SEVERITIES",
    "Condition",
    "Direction",
    "Finding",
    "Findings",
    "Limits",
    "Rule",
    "Severity",
    "Summary",
    "Trial",
    "Trials",
    "Watch",
    "diagnose",
    "rule_names",
    "summary",
]
