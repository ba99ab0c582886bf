"""The pytest plugin, run as users run it: every path from a missing baseline to a summary in GitHub."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import entry_points
from pathlib import Path

import pytest

# pytester forgets what a run within this process has imported, and torch and numpy cannot be imported twice.
import gradscope.report._comparison_report
import gradscope.testing._regression
import gradscope.theory  # noqa: F401

pytest_plugins = ["pytester"]

INSTALLED = any(point.value == "gradscope.pytest_plugin" for point in entry_points(group="pytest11"))
LOAD = () if INSTALLED else ("-p", "gradscope.pytest_plugin")
"""The distribution's entry point loads the plugin; where that is not installed, so does its name."""

MODEL = """
import os
import torch
from torch import nn

def make():
    std = float(os.environ.get("STD", 1))
    model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= std
    return model
"""
TEST = f"""{MODEL}
def test_gradients(gradient_regression):
    gradient_regression.check(make, torch.randn(8, 16), torch.arange(8) % 4, nn.functional.cross_entropy)
"""


@pytest.fixture(autouse=True)
def _an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "GITHUB_STEP_SUMMARY", "STD", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with one test and its baseline."""
    pytester.makepyfile(test_model=TEST)
    run(pytester, "--gradscope-update-new").assert_outcomes(passed=1)
    return pytester


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(
        *LOAD, "-p", "no:cacheprovider", "--strict-markers", "--strict-config", "-W", "error", *arguments
    )


def baseline(pytester: pytest.Pytester) -> Path:
    return pytester.path / "__gradscope__" / "test_model" / "test_gradients.json"


# -- the baseline ---------------------------------------------------------------------------------------------


def test_a_missing_baseline_is_written_and_the_test_fails_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_model=TEST)
    first = run(pytester)
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(["*test_gradients.json was missing and has been written*"])
    assert json.loads(baseline(pytester).read_text())["test"] == "test_model.py::test_gradients"
    run(pytester).assert_outcomes(passed=1)


@pytest.mark.parametrize(("value", "exists"), [("true", False), ("1", False), ("", True), ("false", True)])
def test_in_ci_a_missing_baseline_only_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str, exists: bool
) -> None:
    monkeypatch.setenv("CI", value)
    pytester.makepyfile(test_model=TEST)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    assert baseline(pytester).exists() == exists
    if not exists:
        result.stdout.fnmatch_lines(
            ["*is missing: pytest 'test_model.py::test_gradients' --gradscope-update writes it*"]
        )


def test_a_change_fails_with_the_worst_five_sites_the_finding_and_the_command(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STD", "1.1")
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*first weight of 0.weight: * became *",
            "*site * signal * expected * obtained * ratio * decades",
            *["*_grad *"] * 5,
            "*diagnosis now: *",
            "*to accept: pytest 'test_model.py::test_gradients' --gradscope-update",
            "*= gradscope =*",
            "1 check: 1 different",
            "test_model.py::test_gradients: * numbers differ *",
        ]
    )
    assert baseline(project).with_suffix(".obtained.json").exists()


def test_update_rewrites_and_update_new_leaves_what_is_there(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = baseline(project).read_bytes()
    monkeypatch.setenv("STD", "1.1")
    run(project, "--gradscope-update-new").assert_outcomes(failed=1)
    assert baseline(project).read_bytes() == before
    run(project, "--gradscope-update").assert_outcomes(passed=1)
    assert baseline(project).read_bytes() != before
    assert not baseline(project).with_suffix(".obtained.json").exists()
    run(project).assert_outcomes(passed=1)


def test_update_twice_gives_the_same_bytes(project: pytest.Pytester) -> None:
    before = baseline(project).read_bytes()
    run(project, "--gradscope-update").assert_outcomes(passed=1)
    assert baseline(project).read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "is damaged: it is no JSON"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "has schema 2, and this version reads 1"),
        (lambda text: text.replace("::test_gradients", "::test_other"), "is for another test"),
        (lambda text: text.replace('"device": "cpu"', '"device": "cuda:0"'), "was made on cuda:0"),
    ],
    ids=["cut", "schema", "test", "device"],
)
def test_a_baseline_that_cannot_be_used_fails_in_one_sentence(project: pytest.Pytester, damage, said: str) -> None:
    path = baseline(project)
    path.write_text(damage(path.read_text()))
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E *BaselineError: baseline *{said}*", "1 check: 1 could not be made"])


def test_a_model_that_is_not_deterministic_fails_and_says_how_to_seed_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch
        from torch import nn

        class Noise(nn.Module):
            def forward(self, x):
                generator = torch.Generator()
                generator.seed()
                return x + torch.randn(x.shape, generator=generator)

        def test_noise(gradient_regression):
            gradient_regression.check(nn.Sequential(nn.Linear(4, 4), Noise(), nn.Linear(4, 4)), torch.ones(2, 4))
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *NotDeterministicError: *activation of 1 is first *, then *give a generator*"])
    assert not (pytester.path / "__gradscope__").exists()


def test_each_parameter_of_a_test_has_a_baseline_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_model=f"""{MODEL}
import pytest
@pytest.mark.parametrize("what", ["a/b", "a_b", "ä"])
def test_it(gradient_regression, what):
    gradient_regression.check(make, torch.randn(8, 16) * len(what))

class TestModel:
    def test_it(self, gradient_regression):
        gradient_regression.check(make, torch.randn(8, 16))
"""
    )
    run(pytester, "--gradscope-update-new").assert_outcomes(passed=4)
    files = sorted(p.name for p in (pytester.path / "__gradscope__" / "test_model").iterdir())
    assert len(files) == 4
    assert "TestModel.test_it.json" in files
    assert all(name.isascii() for name in files)
    run(pytester).assert_outcomes(passed=4)


def test_a_model_made_in_the_test_is_the_same_each_time_whatever_ran_before(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_model=f"""{MODEL}
def test_before():
    torch.manual_seed(77)

def test_gradients(gradient_regression):
    gradient_regression.check(make(), torch.randn(8, 16))

def test_after():
    assert torch.initial_seed() == 77
"""
    )
    run(pytester, "--gradscope-update-new").assert_outcomes(passed=3)
    run(pytester, "-k", "gradients").assert_outcomes(passed=1, deselected=2)
    run(pytester).assert_outcomes(passed=3)


# -- settings -------------------------------------------------------------------------------------------------


def test_the_ini_file_and_the_nearest_marker_set_folder_tolerance_severity_and_seed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\ngradscope_dir = kept\ngradscope_rtol = 0.5\n")
    pytester.makepyfile(
        test_model=f"""{MODEL}
import pytest
def test_wide(gradient_regression):
    gradient_regression.check(make, torch.randn(8, 16))
@pytest.mark.gradscope(rtol=1e-4)
def test_narrow(gradient_regression):
    gradient_regression.check(make, torch.randn(8, 16))
@pytest.mark.gradscope(seed=7)
def test_seed(gradient_regression):
    assert torch.initial_seed() == 7
@pytest.mark.gradscope(fail_on="warning")
def test_strict(gradient_regression):
    torch.manual_seed(0)
    slow = nn.Sequential(*[part for _ in range(9) for part in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
    with pytest.raises(AssertionError, match="warning: vanishing"):
        gradient_regression.assert_healthy(slow, torch.randn(64, 32))
"""
    )
    run(pytester, "--gradscope-update-new").assert_outcomes(passed=4)
    assert (pytester.path / "kept" / "test_model" / "test_wide.json").exists()
    monkeypatch.setenv("STD", "1.01")
    result = run(pytester)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["FAILED test_model.py::test_narrow*"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gradscope_rtol = wide", "gradscope_rtol is 'wide'; a finite number above 0 is allowed"),
        ("gradscope_fail_on = never", "gradscope_fail_on is 'never'; error, warning, note are allowed"),
        ("gradscope_dir = /tmp", "gradscope_dir is a folder beside each test file"),
    ],
)
def test_an_ini_setting_that_cannot_be_meant_is_refused_at_once(
    pytester: pytest.Pytester, line: str, said: str
) -> None:
    pytester.makeini(f"[pytest]\n{line}\n")
    pytester.makepyfile(test_model=TEST)
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}*"])


def test_a_marker_with_an_unknown_setting_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.gradscope(tolerance=1)
        def test_it(gradient_regression):
            pass
        """
    )
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*marker gradscope has tolerance; rtol, fail_on, seed are allowed*"])


# -- reports --------------------------------------------------------------------------------------------------


def test_a_failure_leaves_pictures_and_a_page(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STD", "1.1")
    run(project, "--gradscope-report=out").assert_outcomes(failed=1)
    page = (project.path / "out" / "index.html").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert len(pictures) == 4  # weight, its gradient, activation, its gradient
    assert all((project.path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert "test_model.py::test_gradients" in page
    assert "http" not in page  # nothing is fetched


def test_junit_properties_and_githubs_summary_say_what_differs(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = project.path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("STD", "1.1")
    run(project, "--junitxml=junit.xml").assert_outcomes(failed=1)
    properties = {p.get("name"): p.get("value") for p in ET.parse(project.path / "junit.xml").iter("property")}
    assert properties["gradscope_status"] == "different"
    record = json.loads(properties["gradscope"] or "")
    assert len(record["comparison"]["differences"]) == 5
    text = summary.read_text()
    assert text.startswith("before\n### GradScope")
    assert text.count("\n| ") == 7  # head, line, five sites
    assert "first weight of 0.weight" in text


def test_the_command_to_accept_is_for_the_folder_that_pytest_was_started_in(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a test changes to; and a quote in a parameter is one to the shell."""
    pytester.makeini("[pytest]\n")
    folder = pytester.mkdir("below")
    (folder / "test_model.py").write_text(
        f"""{MODEL}
import pytest
@pytest.mark.parametrize("what", ["it's"])
def test_it(gradient_regression, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gradient_regression.check(make, torch.randn(8, 16))
"""
    )
    monkeypatch.chdir(folder)
    arguments = (f"--rootdir={pytester.path}", "--gradscope-report=out")
    run(pytester, *arguments, "--gradscope-update-new").assert_outcomes(passed=1)
    monkeypatch.setenv("STD", "1.1")
    result = run(pytester, *arguments)
    result.assert_outcomes(failed=1)
    accept = next(line for line in result.outlines if "to accept: " in line).partition("to accept: ")[2]
    assert shlex.split(accept) == ["pytest", "test_model.py::test_it[it's]", "--gradscope-update"]
    assert len(list((folder / "out").glob("*.png"))) == 4


def test_a_summary_that_cannot_be_written_fails_nothing_and_is_said(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "missing" / "summary.md"))
    result = run(project)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["GITHUB_STEP_SUMMARY cannot be written: *"])


def test_a_report_in_place_of_a_file_is_refused_at_once(project: pytest.Pytester) -> None:
    (project.path / "taken").write_text("")
    result = run(project, "--gradscope-report=taken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gradscope-report is *taken, which is a file; give a directory*"])


def test_a_failure_that_the_test_expects_is_none_of_the_session(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_model=f"""{MODEL}
import pytest
def test_raises(gradient_regression):
    with pytest.raises(AssertionError):
        gradient_regression.assert_signal_propagates(make, torch.randn(8, 16), max_decades=0.01)

@pytest.mark.xfail
def test_marked(gradient_regression):
    gradient_regression.assert_signal_propagates(make, torch.randn(8, 16), max_decades=0.01)
"""
    )
    result = run(pytester)
    result.assert_outcomes(passed=1, xfailed=1)
    result.stdout.fnmatch_lines(["2 checks: 2 failed as their test expects"])
    result.stdout.no_fnmatch_line("*does not propagate forward*")


def test_assertions_are_counted_in_the_summary(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_model=f"""{MODEL}
def test_sound(gradient_regression):
    gradient_regression.assert_healthy(make, torch.randn(8, 16))
    gradient_regression.assert_scale("0", "activation", 0.577, rtol=0.3)
    gradient_regression.assert_no_dead_units(make, torch.randn(64, 16), max_fraction=0.9)

def test_lost(gradient_regression):
    gradient_regression.assert_signal_propagates(make, torch.randn(8, 16), max_decades=0.01)
"""
    )
    result = run(pytester)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["4 checks: 3 as asserted, 1 not as asserted", "*does not propagate forward*"])


@pytest.mark.slow
def test_two_workers_of_xdist_write_compare_and_report_as_one(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        test_model=f"""{MODEL}
import pytest
@pytest.mark.parametrize("i", range(4))
def test_it(gradient_regression, i):
    gradient_regression.check(make, torch.randn(8, 16) * (i + 1))
"""
    )
    arguments = ("-p", "xdist", "-n", "2", "--gradscope-report=out", "--junitxml=junit.xml")
    base = (*LOAD, "-p", "no:cacheprovider", "--strict-markers", "-W", "error")
    pytester.runpytest_subprocess(*base, *arguments, "--gradscope-update-new").assert_outcomes(passed=4)
    monkeypatch.setenv("STD", "1.1")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    result = pytester.runpytest_subprocess(*base, *arguments)
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(["4 checks: 4 different"])
    assert (pytester.path / "summary.md").read_text().count("### GradScope") == 1
    assert (pytester.path / "out" / "index.html").read_text().count("<img") == 16
    properties = [p.get("name") for p in ET.parse(pytester.path / "junit.xml").iter("property")]
    assert properties.count("gradscope_status") == 4


# -- no effect otherwise --------------------------------------------------------------------------------------


def test_without_the_fixture_torch_is_not_imported_and_nothing_is_printed(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("import sys\ndef test_it():\n    assert 'torch' not in sys.modules\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *LOAD, "-p", "no:cacheprovider", "-W", "error", "--strict-markers", "."],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "gradscope =" not in done.stdout


def test_the_flags_are_listed_and_take_no_value_but_for_the_report(pytester: pytest.Pytester) -> None:
    text = run(pytester, "--help").stdout.str()
    for flag in ("--gradscope-update ", "--gradscope-update-new", "--gradscope-report=DIR"):
        assert flag in text
    for name in ("gradscope_dir", "gradscope_rtol", "gradscope_fail_on"):
        assert name in text
    run(pytester, "--markers").stdout.fnmatch_lines(["@pytest.mark.gradscope(rtol=..., fail_on=..., seed=...)*"])
