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
            accept=f"pytest '{request.node.nodeid}' --gradscope-update",
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


def _file_name(test: str) -> str:
    """A test's name as that of a file, the same for no two: what it cannot hold is told apart by a checksum."""
    plain = re.sub(r"[^A-Za-z0-9_.\-\[\]]+", ".", test)[:120]
    return plain if plain == test.replace("::", ".") else f"{plain}-{zlib.crc32(test.encode()):08x}"


def _tell(item: pytest.Item, outcome: Outcome) -> None:
    """Put an outcome into the test's properties, and draw it where that is asked for."""
    document = {**outcome.as_dict(), "nodeid": item.nodeid}
    directory = item.config.getoption("--gradscope-report")
    if directory and not outcome.passed:
        from gradscope.report._comparison_report import draw_comparison

        document["pictures"] = draw_comparison(outcome.expected, outcome.obtained, Path(directory), outcome.test)
        document["message"] = outcome.message
    item.user_properties += [
        ("gradscope_status", outcome.status),
        ("gradscope_headline", outcome.headline),
        (PROPERTY, json.dumps(document, ensure_ascii=False)),
    ]


class _Collector:
    """What the tests found, gathered where the reports arrive: under xdist the controller."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":  # the last of a test, with all its properties
            self.records += [json.loads(str(value)) for name, value in report.user_properties if name == PROPERTY]


def pytest_sessionstart(session: pytest.Session) -> None:
    """The controller gathers; a worker of xdist only runs tests."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Collector(), "gradscope-collector")


def _records(config: pytest.Config) -> list[dict[str, Any]]:
    collector: Any = config.pluginmanager.get_plugin("gradscope-collector")
    return [] if collector is None else list(collector.records)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page of failures, and the summary for GitHub."""
    records = _records(session.config)
    if not records:
        return
    from gradscope.report._test_summary import markdown_summary, write_page

    directory = session.config.getoption("--gradscope-report")
    if directory:
        write_page(records, Path(directory))
    if place := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(place).open("a", encoding="utf-8") as file:
                file.write(markdown_summary(records))
        except OSError as error:
            session.config.issue_config_time_warning(
                pytest.PytestWarning(f"GITHUB_STEP_SUMMARY cannot be written: {error}"), stacklevel=2
            )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A section at the end, where a test used the fixture."""
    records = _records(config)
    if not records:
        return
    from gradscope.report._test_summary import text_summary

    terminalreporter.section("gradscope")
    for line in text_summary(records):
        terminalreporter.write_line(line)
    if directory := config.getoption("--gradscope-report"):
        terminalreporter.write_line(f"report: {Path(directory) / 'index.html'}")
