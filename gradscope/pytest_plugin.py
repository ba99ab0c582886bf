"""The pytest plugin: the fixture `gradient_regression`, its options, its summary. Thin; torch comes with the fixture.

What a test found travels with its report as JUnit properties, so that under xdist the controller has all of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gradscope.testing import GradientRegression, Policy
    from gradscope.testing._outcome import Outcome

PROPERTY = "gradscope"
"""Name of the JUnit property that has all of an outcome, as JSON."""
_MARK = ("rtol", "fail_on", "seed")
_SEVERITIES = ("error", "warning", "note")
_TROUBLE = pytest.StashKey[list[str]]()
"""What of the summaries could not be written: a test run does not fail for it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Flags carry the plugin's prefix."""
    group = parser.getgroup("gradscope", "gradients of models (gradscope)")
    group.addoption("--gradscope-update", action="store_true", help="Rewrite the baselines of all tests that are run.")
    group.addoption(
        "--gradscope-update-new", action="store_true", help="Write the baselines that are missing, and pass."
    )
    group.addoption(
        "--gradscope-report", metavar="DIR", help="Draw each profile that failed into DIR, with a page index.html."
    )
    parser.addini("gradscope_dir", "Folder of the baselines, beside each test file.", default="__gradscope__")
    parser.addini("gradscope_rtol", "Relative tolerance of every size.", default="1e-3")
    parser.addini("gradscope_fail_on", "Severity from which a finding fails: error, warning or note.", default="error")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse settings that cannot be meant."""
    config.addinivalue_line(
        "markers", f"gradscope({', '.join(f'{n}=...' for n in _MARK)}): settings of gradient_regression in this test"
    )
    _rtol(config.getini("gradscope_rtol"), "gradscope_rtol")
    _fail_on(config.getini("gradscope_fail_on"), "gradscope_fail_on")
    if Path(str(config.getini("gradscope_dir"))).is_absolute():
        raise pytest.UsageError("gradscope_dir is a folder beside each test file: give a relative path")
    directory = _directory(config)
    if directory is not None and directory.exists() and not directory.is_dir():
        raise pytest.UsageError(f"--gradscope-report is {directory}, which is a file; give a directory")


@pytest.fixture
def gradient_regression(request: pytest.FixtureRequest) -> Iterator[GradientRegression]:
    """Checks of a model against its baseline beside the test; torch's, numpy's and Python's generators are seeded."""
    from gradscope.testing import GradientRegression
    from gradscope.testing._deterministic import seeded

    settings = _marked(request.node)
    test = str(request.node.nodeid).rpartition("/")[2]
    folder = request.node.path.parent / str(request.config.getini("gradscope_dir")) / request.node.path.stem

    def told(outcome: Outcome) -> None:
        _tell(request.node, outcome)

    with seeded(settings["seed"]):
        yield GradientRegression(
            folder / f"{_file_name(test.partition('::')[2])}.json",
            test,
            policy=_policy(request.config, settings),
            seed=settings["seed"],
            accept=f"pytest {_quoted(_from_here(request.node))} --gradscope-update",
            told=told,
        )


def _policy(config: pytest.Config, settings: dict[str, Any]) -> Policy:
    from gradscope.testing import Policy
    from gradscope.testing._policy import in_ci

    return Policy(
        rtol=settings["rtol"],
        fail_on=settings["fail_on"],
        update=config.getoption("--gradscope-update"),
        update_new=config.getoption("--gradscope-update-new"),
        may_write=not in_ci(),
    )


def _marked(node: pytest.Item) -> dict[str, Any]:
    """The settings of one test: the nearest marker's, else the ini file's."""
    config = node.config
    found: dict[str, Any] = {
        "rtol": config.getini("gradscope_rtol"),
        "fail_on": config.getini("gradscope_fail_on"),
        "seed": 0,
    }
    for mark in reversed(list(node.iter_markers("gradscope"))):
        wrong = [repr(value) for value in mark.args] + [name for name in mark.kwargs if name not in _MARK]
        if wrong:
            raise pytest.UsageError(f"marker gradscope has {wrong[0]}; {', '.join(_MARK)} are allowed, by name")
        found |= mark.kwargs
    seed = found["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise pytest.UsageError(f"marker gradscope has seed={seed!r}; a whole number from 0 is allowed")
    return {"rtol": _rtol(found["rtol"], "rtol"), "fail_on": _fail_on(found["fail_on"], "fail_on"), "seed": seed}


def _rtol(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise pytest.UsageError(f"{name} is {value!r}; a finite number above 0 is allowed")
    return number


def _fail_on(value: Any, name: str) -> str:
    if value not in _SEVERITIES:
        raise pytest.UsageError(f"{name} is {value!r}; {', '.join(_SEVERITIES)} are allowed")
    return str(value)


def _from_here(item: pytest.Item) -> str:
    """A test's name for a shell that is where pytest was started; ids of nodes begin at the root instead."""
    file = Path(os.path.relpath(item.path, item.config.invocation_params.dir)).as_posix()
    return f"{file}::{str(item.nodeid).partition('::')[2]}"


def _quoted(text: str) -> str:
    """For a shell, always in quotes: a parameter's brackets would be a pattern."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _directory(config: pytest.Config) -> Path | None:
    """Of the report: where pytest was started, whatever folder a test has changed to since."""
    given = config.getoption("--gradscope-report")
    return None if not given else config.invocation_params.dir / given


def _file_name(test: str) -> str:
    """A test's name as that of a file, the same for no two: what it cannot hold is told apart by a checksum."""
    plain = re.sub(r"[^A-Za-z0-9_.\-\[\]]+", ".", test)[:120]
    return plain if plain == test.replace("::", ".") else f"{plain}-{zlib.crc32(test.encode()):08x}"


def _tell(item: pytest.Item, outcome: Outcome) -> None:
    """Put an outcome into the test's properties, and draw it where that is asked for."""
    document = {**outcome.as_dict(), "nodeid": str(item.nodeid)}
    directory = _directory(item.config)
    if directory is not None and not outcome.passed:
        document["message"] = outcome.message
        document["pictures"] = _drawn(outcome, directory)
    item.user_properties += [
        ("gradscope_status", outcome.status),
        ("gradscope_headline", outcome.headline),
        (PROPERTY, json.dumps(document, ensure_ascii=False)),
    ]


def _drawn(outcome: Outcome, directory: Path) -> list[str]:
    """The pictures of a comparison, relative to the directory."""
    if outcome.comparison is None or outcome.expected is None or outcome.obtained is None:
        return []
    from gradscope.report._comparison_report import draw_comparison

    try:
        return draw_comparison(
            outcome.expected, outcome.obtained, outcome.comparison, directory, name=outcome.test, bands=outcome.bands
        )
    except OSError:  # the page will not be written either, and says why
        return []


class _Collector:
    """What the tests found, gathered where the reports arrive: under xdist the controller."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        if report.when != "teardown":  # the last of a test, with all its properties
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                tolerated = report.nodeid not in self._failed  # by pytest.raises, or a mark xfail
                self.records.append({**json.loads(str(value)), "tolerated": tolerated})


def pytest_sessionstart(session: pytest.Session) -> None:
    """The controller gathers; a worker of xdist only runs tests."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Collector(), "gradscope-collector")


def _records(config: pytest.Config) -> list[dict[str, Any]]:
    collector: Any = config.pluginmanager.get_plugin("gradscope-collector")
    return [] if collector is None else collector.records


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page of failures, and the summary for GitHub."""
    records = _records(session.config)
    if not records:
        return
    from gradscope.report._test_summary import markdown_summary, write_page

    directory, trouble = _directory(session.config), []
    if directory is not None:
        try:
            write_page(records, directory)
        except OSError as error:
            trouble.append(f"--gradscope-report cannot be written: {error}")
    if place := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(place).open("a", encoding="utf-8") as file:
                file.write(markdown_summary(records))
        except OSError as error:
            trouble.append(f"GITHUB_STEP_SUMMARY cannot be written: {error}")
    session.config.stash[_TROUBLE] = trouble


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A section at the end, where a test used the fixture."""
    records = _records(config)
    if not records:
        return
    from gradscope.report._test_summary import text_summary

    terminalreporter.section("gradscope")
    for line in text_summary(records):
        terminalreporter.write_line(line)
    trouble = config.stash.get(_TROUBLE, [])
    for line in trouble:
        terminalreporter.write_line(line)
    directory = _directory(config)
    if directory is not None and (directory / "index.html").is_file():
        terminalreporter.write_line(f"report: {Path(config.getoption('--gradscope-report')) / 'index.html'}")
