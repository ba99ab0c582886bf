"""The rows of the table in their order: GradScope's modes, then its peers."""

from __future__ import annotations

from benchmarks.overhead.gradscope_modes import MODES
from benchmarks.overhead.measuring import null
from benchmarks.overhead.peers import PEERS
from benchmarks.overhead.tool import Tool

NULL = Tool("null", "nothing attached (A/A)", "nothing", lambda _workload, _folder: null, "torch", warm=1)
TOOLS = {tool.name: tool for tool in (NULL, *MODES, *PEERS)}


def tool(name: str) -> Tool:
    """The tool of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TOOLS:
        raise ValueError(f"tool is {name!r}; it is one of {', '.join(TOOLS)}")
    return TOOLS[name]
