"""The plugin on the project's own bestiary: what probes observe of awkward models is what it was."""

from __future__ import annotations

import pytest
import torch

from gradscope.testing import GradientRegression
from tests.cases import CASES, Case, call


@pytest.mark.gradscope(rtol=1e-2)  # bfloat16 kernels of another CPU round otherwise, over a dozen entries
@pytest.mark.parametrize("case", CASES, ids=str)
def test_signals_are_as_they_were(gradient_regression: GradientRegression, case: Case) -> None:
    def make() -> torch.nn.Module:
        model = case.model()
        if case.name == "lazy":
            call(model, case.inputs())
        return model

    gradient_regression.check(make, case.inputs())
