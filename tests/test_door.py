"""The public door: what it offers, and that opening it costs nothing."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import gradscope


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import gradscope",
        "import gradscope; gradscope.Recording, gradscope.RecordingError, gradscope.GradScopeWarning",
        "import gradscope; gradscope.activations.get('relu'), gradscope.theory.gain('gelu')",
        "import gradscope; gradscope.SweepConfig(), gradscope.testing.__all__",
        "import gradscope.recording, gradscope.report, gradscope.theory, gradscope.activations, gradscope.cli",
    ],
)
def test_what_needs_no_torch_does_not_import_it(code: str) -> None:
    assert "torch" not in _modules_after(code)


def test_importing_gradscope_imports_neither_numpy_nor_matplotlib() -> None:
    assert not {"numpy", "matplotlib", "pydantic", "typer"} & _modules_after("import gradscope")


def test_the_public_names_are_those_of_all() -> None:
    assert set(gradscope.__all__) <= set(dir(gradscope))
    for name in gradscope.__all__:
        assert getattr(gradscope, name) is not None
    with pytest.raises(AttributeError, match="'probes'"):
        _ = gradscope.probes


def test_every_module_can_be_imported_and_says_what_it_owns() -> None:
    for module in pkgutil.walk_packages(gradscope.__path__, "gradscope."):
        if not module.name.endswith("__main__"):
            assert importlib.import_module(module.name).__doc__, module.name
