"""The report of activations: a picture of each, `index.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradscope import activations
from gradscope.report._activation_words import facts, sentences
from gradscope.report._index import Picture, Report, write_report
from gradscope.report._jobs import Job, draw
from gradscope.report._write import slug
from gradscope.report.figures import activation_curve


def write_activation_report(names: Sequence[str], directory: str | os.PathLike[str] = "reports") -> Report:
    """Draw each activation's function, slope and saturation into a directory and list them in `index.json`.

    Args:
        names: what `gradscope.activations.get` knows.
        directory: made where it does not exist; pictures of the same names are replaced.

    Raises:
        ValueError: an activation is unknown; nothing is drawn then.
    """
    jobs = [activation_job(activations.get(name).name) for name in names]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    draw([job for job, _ in jobs], directory)
    return write_report(directory, {"kind": "activation"}, [picture for _, picture in jobs])


def activation_job(name: str) -> tuple[Job, Picture]:
    """The picture of one activation, by its canonical name."""
    row = activations.get(name)
    file = f"activation__{slug(name)}.png"
    data: dict[str, Any] = {"activation": name, **facts(row), "words": sentences(row)}
    return Job(file, activation_curve, name), Picture(file, "activation_curve", name, data)
