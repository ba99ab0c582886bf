"""Which code reduces a tensor on the CPU: our own kernel where it was built, torch's operations elsewhere."""

from __future__ import annotations

import os
from types import ModuleType

import torch

native: ModuleType | None = None
"""The extension module; None where it was not built, or `GRADSCOPE_NATIVE=0` is set."""

if os.environ.get("GRADSCOPE_NATIVE", "1") != "0":
    try:
        import gradscope.hooks._native as _native

        native = _native
    except ImportError:  # installed where there was no compiler
        pass

CODES: dict[torch.dtype, int] = (
    {
        torch.float32: native.FLOAT32,
        torch.float64: native.FLOAT64,
        torch.float16: native.FLOAT16,
        torch.bfloat16: native.BFLOAT16,
    }
    if native is not None
    else {}
)
"""The dtypes that it reads, by what it calls them; the rest, of one byte, go by way of torch."""

SHARED_FROM = 1 << 18
"""From so many entries on it may use several threads."""


def kernel_name() -> str:
    """What reduces tensors on the CPU, for the facts of a run."""
    return "torch" if native is None else f"native ({native.VARIANT})"
