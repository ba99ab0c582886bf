"""The corpus: small programs as users write them, faulty and healthy, each faulty one beside its healthy twin.

A file for each kind of model. `PROGRAMS` has them all by name; `split` deals them into a half on which limits may be
tuned and one that is held back. `python -m tests.faults [NAME ...]` trains them and shows what their losses did.
"""

from __future__ import annotations

from tests.faults import (  # noqa: F401  (each registers its programs)
    _adapters,
    _autoencoder,
    _cnn,
    _decoder,
    _density,
    _encoder,
    _experts,
    _fields,
    _gan,
    _gated,
    _late,
    _mlp,
    _outputs,
    _pairs,
    _precision,
    _regression,
    _resnet,
    _rnn,
    _sets,
)
from tests.faults._program import FAMILIES, Half, Program, Run, has_learned, is_worse, order, train
from tests.faults._registry import PROGRAMS

__all__ = ["FAMILIES", "PROGRAMS", "Half", "Program", "Run", "has_learned", "is_worse", "of_half", "split", "train"]


def split(program: Program) -> Half:
    """Which half a program is in: within faulty and healthy ones every other, by the hash of the name."""
    alike = sorted((p for p in PROGRAMS.values() if (p.fault is None) == (program.fault is None)), key=order)
    return "held" if alike.index(program) % 2 else "tune"


def of_half(half: str) -> list[Program]:
    """The programs of a half, or of both (`all`)."""
    return [p for p in PROGRAMS.values() if half in ("all", split(p))]
