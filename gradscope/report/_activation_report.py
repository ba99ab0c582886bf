"""The report of activations: a picture of each, with the theory's if asked for, and `index.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradscope import activations
from gradscope.report._activation_words import facts, sentences
from gradscope.report._index import Picture, Report, write_report
from gradscope.report._jobs import Job, draw
from gradscope.report._theory_pictures import gains_job, theory_jobs
from gradscope.report._write import slug
from gradscope.report.figures import activation_curve


def write_activation_report(
    names: Sequence[str],
    directory: str | os.PathLike[str] = "reports",
    *,
    theory: bool = False,
    layers: Sequence[tuple[float, float]] = (),
) -> Report:
    """Draw each activation's function, slope and saturation into a directory and list them in `index.json`.

    Args:
        names: what `gradscope.activations.get` knows.
        directory: made where it does not exist; pictures of the same names are replaced.
        theory: draw what theory says too: of each elementwise activation its card, the plane of its phases, its
            correlation map and the singular values of its networks; and the gains of all.
        layers: pairs (sigma_w, sigma_b) of a network of yours, one a layer, as dots in the planes; with `theory`.

    Raises:
        ValueError: an activation is unknown, or layers are no such pairs; nothing is drawn then.
    """
    rows = [activations.get(name) for name in names]
    jobs: list[tuple[Job, Picture]] = []
    for row in rows:
        jobs.append(activation_job(row.name))
        if theory and row.elementwise:
            jobs += theory_jobs(row, layers)
    if theory and any(row.elementwise for row in rows):
        jobs.append(gains_job([row.name for row in rows]))
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
