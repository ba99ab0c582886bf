"""Programs unlike those of the corpus: no rule of the diagnosis was written or tuned with a view of them.

Of the same interface as `tests.faults`, with a registry of their own. They are there to be measured on, once for each
version of the rules: a rule that is changed because of one of them makes it a part of the corpus.
`python -m tests.faults_unseen [NAME ...]` trains them and shows what their losses did.
"""

from __future__ import annotations

from tests.faults_unseen import (  # noqa: F401  (each registers its programs)
    _attention,
    _control,
    _distances,
    _embeddings,
    _fields,
    _functions,
    _images,
    _latent,
    _layers,
    _losses,
    _numbers,
    _optimizers,
    _pretrained,
    _targets,
    _waves,
)
from tests.faults_unseen._registry import PROGRAMS

__all__ = ["PROGRAMS"]
