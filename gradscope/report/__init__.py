"""Pictures, terminal text and `index.json` from what was observed. Never imports torch; lazy, for matplotlib is slow.

A figure function returns a `matplotlib.figure.Figure` (`gradscope.report.figures`), one place saves it, and a
report is a directory of pictures with an `index.json` that lists them with their data (docs/report_json.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.report._activation_report import write_activation_report
    from gradscope.report._comparison_report import write_comparison_report
    from gradscope.report._index import Picture, Report
    from gradscope.report._run_report import write_run_report
    from gradscope.report._sweep_report import write_sweep_report
    from gradscope.report._write import save_png

__all__ = [
    "Picture",
    "Report",
    "save_png",
    "write_activation_report",
    "write_comparison_report",
    "write_run_report",
    "write_sweep_report",
]

_FILES = {
    "Picture": "_index",
    "Report": "_index",
    "save_png": "_write",
    "write_activation_report": "_activation_report",
    "write_comparison_report": "_comparison_report",
    "write_run_report": "_run_report",
    "write_sweep_report": "_sweep_report",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
