"""What machine it is, in a few facts: a figure without its machine says nothing."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def machine() -> dict[str, str | int]:
    """Processor, its cores, Python and torch."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "simd": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*: (.*)$", information.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or "unknown"


def load() -> float:
    """The load average of the last minute, 0 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
