"""The other tools' rules: each fires on a recording beyond its published limit, and not on one within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks.detection import table
from benchmarks.detection.alarm import Alarm, Tool, families
from benchmarks.detection.autotrainer import autotrainer
from benchmarks.detection.deepdiagnosis import deepdiagnosis, without_input
from benchmarks.detection.scoring import Outcome, Score
from benchmarks.detection.smdebug import smdebug
from benchmarks.detection.thedeepchecker import thedeepchecker, without_test
from gradscope.recording import Moments, Recording, Site, StepRecord
from tests.faults import PROGRAMS

SHAPE = (32, 32)
QUIET: dict[tuple[str, str], Mapping[str, float]] = {
    ("activation", "<input>"): {"std": 0.3},
    ("activation", "0"): {"mean": 0.01, "std": 1.0},
    ("activation", "1"): {"mean": 0.4, "std": 0.6, "zero": 0.5},
    ("activation", "2"): {"mean": 0.01, "std": 1.0},
    ("activation", "3"): {"mean": 0.01, "std": 0.6},
    ("weight", "0.weight"): {"std": 0.25},
    ("weight", "2.weight"): {"std": 0.25},
    ("weight_grad", "0.weight"): {"mean": 1e-5, "std": 0.01},
    ("weight_grad", "2.weight"): {"mean": 1e-5, "std": 0.01},
    ("update", "0.weight"): {"std": 1e-3},
    ("update", "2.weight"): {"std": 1e-3},
}
"""He's weights for 32 inputs, gradients of one size, updates of 0.4 %, a ReLU and a tanh: no rule has a reason."""
KINDS = {"<input>": "<input>", "0": "Linear", "1": "ReLU", "2": "Linear", "3": "Tanh"}
ROLES = {"<input>": "input", "0": "pre-activation", "1": "activation", "2": "pre-activation", "3": "activation"}


def row(mean: float = 0.0, std: float = 1.0, zero: float = 0.0, nan: int = 0, peak: float = 3.0) -> Moments:
    count = np.prod(SHAPE)
    top = abs(mean) + peak * std
    columns = [[count], [mean], [std], [-top], [top], [round(zero * count)], [nan], [0], [0]]
    return Moments(*map(np.array, columns))


def recorded(changes: Mapping[tuple[str, str], Mapping[str, Any]] | None = None, steps: int = 60) -> Recording:
    """A run of these sizes; a callable is a function of the step."""
    recording = Recording.create()
    ids = {}
    for depth, (signal, name) in enumerate(QUIET):
        module = name.removesuffix(".weight")
        parameter = "weight" if name != module else None
        after = "tanh" if name == "2" and signal == "activation" else "relu" if name == "0" else None
        facts: dict[str, Any] = {"fan_in": 32.0, "fan_out": 32.0, "activation_after": after}
        site = Site(
            signal,
            name,
            module,
            KINDS[module],
            param=parameter,
            role=ROLES[module],
            depth=depth,
            shape=SHAPE,
            **facts,  # type: ignore[arg-type]
        )
        ids[signal, name] = recording.add_site(site)
    for step in range(steps):
        moments: dict[Any, Any] = {}
        for signal in dict.fromkeys(s for s, _ in QUIET):
            places = [place for place in QUIET if place[0] == signal]
            rows = []
            for place in places:
                spec = {**QUIET[place], **(changes or {}).get(place, {})}
                rows.append(row(**{k: v(step) if callable(v) else v for k, v in spec.items()}))
            moments[signal] = (np.array([ids[place] for place in places]), Moments.concat(rows))
        recording.append(StepRecord(step, moments=moments))
    return recording


G0, G2, W0, W2, U0, U2 = (
    (signal, name) for signal in ("weight_grad", "weight", "update") for name in ("0.weight", "2.weight")
)
INPUT, PRE, RELU, BEFORE, TANH = (("activation", name) for name in KINDS)


@pytest.mark.parametrize("tool", [smdebug, autotrainer, deepdiagnosis, thedeepchecker])
def test_no_rule_fires_on_a_quiet_run(tool: Tool) -> None:
    assert tool(recorded()) == ()


CASES: list[tuple[Tool, str, Mapping[Any, Any], Mapping[Any, Any]]] = [
    (smdebug, "non-finite", {G0: {"nan": 1}}, {G0: {"std": 50.0}}),
    (smdebug, "vanishing-gradient", {G0: {"std": 1e-7, "mean": 0.0}}, {G0: {"std": 1.5e-7, "mean": 0.0}}),
    (smdebug, "no-gradient", {G0: {"zero": 1.0}}, {G0: {"zero": 0.99}}),
    (smdebug, "dead-units", {RELU: {"zero": 0.76}}, {RELU: {"zero": 0.74}}),
    (smdebug, "saturated-units", {BEFORE: {"std": 15.0}}, {BEFORE: {"std": 13.0}}),
    (smdebug, "init-mismatch", {W0: {"std": 0.05}}, {W0: {"std": 0.09}}),
    (smdebug, "init-mismatch", {G0: {"std": 2e-4}}, {G0: {"std": lambda t: 2e-4 if t < 4 else 4e-4}}),
    (smdebug, "init-mismatch", {W0: {"std": 3.2}, W2: {"std": 3.2}}, {W0: {"std": 3.1}, W2: {"std": 3.1}}),
    (smdebug, "update-too-large", {U0: {"std": 2.6}}, {U0: {"std": 2.4}}),
    (smdebug, "update-too-small", {U0: {"std": 1e-9, "peak": 1e6}}, {U0: {"std": 1e-8, "peak": 1e6}}),
    (smdebug, "update-too-small", {U0: {"std": 1e-7}}, {U0: {"std": 1e-5}}),
    (autotrainer, "vanishing-gradient", {G0: {"std": 2e-6, "mean": 0.0}}, {G0: {"std": 1e-5, "mean": 0.0}}),
    (autotrainer, "exploding-gradient", {G0: {"std": 0.71}}, {G0: {"std": 0.69}}),
    (autotrainer, "non-finite", {W0: {"nan": 1}}, {W0: {"std": 9.0}}),
    (autotrainer, "dead-units", {G0: {"zero": 0.71}, G2: {"zero": 0.71}}, {G0: {"zero": 0.71}, G2: {"zero": 0.68}}),
    (autotrainer, "input-scale", {PRE: {"std": 13.0}}, {PRE: {"std": 12.0}}),
    (deepdiagnosis, "input-scale", {INPUT: {"std": 0.4}}, {INPUT: {"std": 0.33}}),
    (deepdiagnosis, "non-finite", {PRE: {"mean": 0.0}}, {PRE: {"mean": 1e-9}}),
    (deepdiagnosis, "non-finite", {G0: {"mean": 0.0}}, {G0: {"mean": 1e-9}}),
    (deepdiagnosis, "vanishing-gradient", {G0: {"std": 1e-7, "mean": 1e-9}}, {G0: {"std": 1.5e-7}}),
    (deepdiagnosis, "saturated-units", {BEFORE: {"std": 8.0}}, {BEFORE: {"std": 7.0}}),
    (deepdiagnosis, "dead-units", {RELU: {"zero": 0.71}}, {RELU: {"zero": 0.69}}),
    (deepdiagnosis, "init-mismatch", {W0: {"std": 0.003}}, {W0: {"std": 0.004}}),
    (deepdiagnosis, "update-too-large", {U0: {"std": 0.026}}, {U0: {"std": 0.024}}),
    (deepdiagnosis, "update-too-small", {U0: {"std": 2.4e-6}}, {U0: {"std": 2.6e-6}}),
    (thedeepchecker, "non-finite", {PRE: {"nan": 1}}, {PRE: {"std": 50.0}}),
    (thedeepchecker, "vanishing-gradient", {G0: {"std": 1e-6, "mean": 0.0}}, {G0: {"std": 1.5e-6, "mean": 0.0}}),
    (thedeepchecker, "vanishing-gradient", {G0: {"std": lambda t: 0.01 * 0.49 ** min(t, 5), "mean": 0.0}},
     {G0: {"std": lambda t: 0.01 * 0.49 ** min(t, 4), "mean": 0.0}}),
    (thedeepchecker, "exploding-gradient", {G0: {"std": 2e6}}, {G0: {"std": 1e6}}),
    (thedeepchecker, "vanishing-activation", {TANH: {"std": 0.49}}, {TANH: {"std": lambda t: 0.49 if t < 50 else 0.6}}),
    (thedeepchecker, "exploding-activation", {RELU: {"std": 2.1}}, {RELU: {"std": 1.9}}),
    (thedeepchecker, "dead-units", {RELU: {"zero": 0.76}}, {RELU: {"zero": 0.74}}),
    (thedeepchecker, "saturated-units", {TANH: {"std": 0.86}}, {TANH: {"std": 0.84}}),
    (thedeepchecker, "update-too-large", {U0: {"std": 0.026}}, {U0: {"std": 0.024}}),
    (thedeepchecker, "update-too-small", {U0: {"std": 2.4e-5}}, {U0: {"std": 2.6e-5}}),
    (thedeepchecker, "symmetric-units", {W0: {"std": 0.0, "mean": 0.1}}, {W0: {"std": 0.25, "mean": 0.1}}),
    (thedeepchecker, "init-mismatch", {W0: {"std": 0.1}}, {W0: {"std": 32**-0.5}}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_a_rule_fires_beyond_its_limit_and_not_within(case: Any) -> None:
    tool, family, beyond, within = case
    assert family in families(tool(recorded(beyond)))
    assert family not in families(tool(recorded(within)))


def test_the_earliest_alarm_comes_first_and_names_its_site() -> None:
    late = {G0: {"nan": lambda t: int(t >= 7)}, U2: {"std": lambda t: 9.0 if t >= 3 else 1e-3}}
    first, second = smdebug(recorded(late, steps=10))
    assert first == Alarm("update-too-large", ("2.weight",), 3)
    assert second == Alarm("non-finite", ("0.weight",), 7)


def test_what_is_left_out_is_only_that_rule() -> None:
    wrong = {INPUT: {"std": 9.0}, W0: {"std": 0.1}, G0: {"nan": 1}}
    assert families(deepdiagnosis(recorded(wrong))) - families(without_input(recorded(wrong))) == {"input-scale"}
    assert families(thedeepchecker(recorded(wrong))) - families(without_test(recorded(wrong))) == {"init-mismatch"}


def test_scores_count_the_first_alarm_any_alarm_the_place_and_false_alarms() -> None:
    faulty, healthy = PROGRAMS["mlp-detach"], PROGRAMS["mlp-relu-4-default"]
    wrong, right = Alarm("dead-units", ("1",)), Alarm("no-gradient", ("9", "3"))
    told = [
        Outcome(faulty, 0, "tool", (right, wrong)),
        Outcome(faulty, 1, "tool", (wrong, Alarm("no-gradient", ("9",)))),
        Outcome(faulty, 2, "tool", ()),
        Outcome(faulty, 3, "tool", (), "ValueError: no"),
        Outcome(healthy, 0, "tool", (wrong,)),
        Outcome(healthy, 1, "tool", ()),
        Outcome(healthy, 1, "another", (wrong,)),
    ]
    score = Score.of("tool", told)
    assert score == Score("tool", 4, 1, 2, 2, 4, 1, 2, 1, 1)
    assert "| tool | 1 of 4 (25 %) | 2 of 4 (50 %) | 2 of 4 (50 %) | 1 of 4 (25 %) | 1 of 2 (50 %) |" in table.scores(
        [score]
    )
    listed = table.mistakes("tool", told)
    assert "healthy mlp-relu-4-default (seed 0): dead-units, at 1" in listed
    assert "mlp-detach (seed 1): is no-gradient; said dead-units, no-gradient (told later)" in listed
    assert "mlp-detach (seed 3): broke: ValueError: no" in listed
    assert "mlp-detach (seed 0)" not in listed
