"""What becomes of a baseline: compared, written where it is missing, or rewritten."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gradscope.recording._compare import RTOL


def in_ci(environment: Mapping[str, str] | None = None) -> bool:
    """The variable `CI` is set, and neither empty nor `false`: then nobody would commit what is written."""
    value = (os.environ if environment is None else environment).get("CI", "")
    return value.strip().lower() not in ("", "false")


@dataclass(frozen=True)
class Policy:
    """How baselines are treated.

    Attributes:
        rtol: relative tolerance of every size.
        fail_on: the severity from which a finding fails `assert_healthy`: `error` or `warning`.
        update: rewrite every baseline.
        update_new: write those that are missing, and pass.
        may_write: a missing baseline is written, and the test fails once; else it only fails.
        keep_obtained: leave what was obtained beside the baseline of a test that fails.
    """

    rtol: float = RTOL
    fail_on: str = "error"
    update: bool = False
    update_new: bool = False
    may_write: bool = True
    keep_obtained: bool = True
