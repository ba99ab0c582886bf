"""The batch that made the first NaN or infinity, kept in a file."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradscope.hooks._nonfinite import NonFinite
from gradscope.hooks._step import Step
from gradscope.recording import Recording


def kept(value: Any) -> Any:
    """A copy of a batch that no later change reaches, in plain containers: what is neither data nor text is named."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {str(key): kept(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: kept(getattr(value, item.name, None)) for item in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [kept(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def dump(step: Step, found: NonFinite, recording: Recording) -> Path:
    """Write the step's batches, one for each micro-step, and return the file's path.

    `torch.load(path, weights_only=True)` gives `{"step", "sentence", "batches": [[args, kwargs], …], "rng_state"}`.
    The file lies beside the recording, or, where that has no path, in the directory of temporary files.
    """
    place = recording.path or Path(tempfile.mkdtemp(prefix="gradscope-")) / "run.gscope"
    path = place.with_name(f"{place.stem}.nonfinite-step{step.number}.pt")
    torch.save(
        {
            "step": step.number,
            "sentence": found.sentence,
            "batches": [forward.batch for forward in step.counted_forwards()],
            "rng_state": torch.get_rng_state(),
        },
        path,
    )
    return path
