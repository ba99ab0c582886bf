"""A second set of programs unlike those of the corpus, after what people post about programs of theirs.

Of the same interface as `tests.faults`, with a registry of their own; no rule of the diagnosis was written or tuned
with a view of them. A rule that is changed because of one of them makes it a part of the corpus.
`python -m tests.faults_second [NAME ...]` trains them and shows what their losses did.
"""

from __future__ import annotations

from tests.faults_second import (  # noqa: F401  (each registers its programs)
    _beginners,
    _chance,
    _clipping,
    _contrast,
    _control,
    _frames,
    _generative,
    _graphs,
    _habits,
    _half,
    _language,
    _latents,
    _outputs,
    _pixels,
    _precision,
    _pretrained,
    _purposes,
    _recurrent,
    _scales,
    _schedules,
    _science,
    _sentences,
    _shares,
    _slips,
    _tables,
    _units,
    _unusual,
    _values,
    _vision,
)
from tests.faults_second._registry import PROGRAMS

__all__ = ["PROGRAMS"]
