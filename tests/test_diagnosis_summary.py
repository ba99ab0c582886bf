"""One line for logs: what it says of sound and of sick recordings."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from gradscope import Recording, init, probe
from gradscope.diagnosis import Finding, Findings, Summary, diagnose, summary
from gradscope.recording import Moments, Site, StepRecord
from tests.reporting import trained


def deep(scheme: str | None, layers: int = 20) -> Recording:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 10))
    if scheme:
        init.initialize(model, scheme)
    return probe(model, torch.randn(32, 64), target=torch.randint(10, (32,)), loss_fn=nn.functional.cross_entropy)


def slope(recording: Recording, signal: str, at: int = -1) -> str:
    value = recording.profile(signal, "rms", at).decades_per_layer  # type: ignore[arg-type]
    return f"{value:+.2f}".replace("-", "−")


def test_a_sound_network_is_healthy_with_its_slopes() -> None:
    recording = deep("he_normal")
    found = summary(recording)
    ways = f"forward {slope(recording, 'activation')}, backward {slope(recording, 'activation_grad')}"
    assert str(found) == f"healthy: {ways} decades/layer over 21 layers"
    assert (found.healthy, found.severity, found.rule, found.others) == (True, None, "", 0)


def test_a_sick_network_names_rule_place_decades_cause_and_remedy_in_one_line() -> None:
    recording = deep(None)
    worst = diagnose(recording)[0]
    found = summary(recording)
    assert (found.healthy, found.severity, found.rule) == (False, "error", "vanishing-gradient")
    measured = f"{slope(recording, 'activation_grad')} decades/layer, {abs(worst.value):.1f} decades lost"
    begins = f"vanishing-gradient from {worst.frontier.name}: {measured}; cause: "
    assert str(found).startswith(begins)
    assert re.search(
        r"; cause: .*default weights.*; remedy: gradscope\.init\.initialize\(model, inputs=batch\)$", str(found)
    )
    assert "\n" not in str(found)


def test_slopes_are_those_of_the_step_at_which_the_finding_begins() -> None:
    recording = trained("naive_normal", layers=16)  # its last steps are not finite: they have no slope
    found = summary(recording)
    assert found.rule == "exploding-activation"
    assert math.isnan(recording.profile("activation").decades_per_layer)
    assert f": {slope(recording, 'activation', 0)} decades/layer, " in str(found)
    assert "decades gained" in str(found)


def test_of_a_recording_with_gaps_the_step_at_or_behind_is_taken() -> None:
    recording = Recording.create()
    sites = [
        recording.add_site(Site("activation", f"{i}", f"{i}", "Linear", role="pre-activation", depth=i, shape=(2, 3)))
        for i in range(3)
    ]
    recording.append(StepRecord(0))  # without data
    for step, rate in ((5, 0.0), (10, 0.5), (200, 1.0)):
        moments = Moments.concat([Moments.from_array(np.full(4, 10 ** (rate * i))) for i in range(3)])
        recording.append(StepRecord(step, moments={"activation": (np.array(sites), moments)}))
    late = Finding("dead-units", "error", "", direction="backward", sites=("1",), steps=(11,), value=0.5, unit="of all")
    found = summary(recording, Findings([late]))
    assert found.forward == pytest.approx(1.0)
    assert str(found) == "dead-units from 1, step 11: 0.5 of all"
    assert summary(recording, Findings([])).forward == pytest.approx(1.0)
    assert summary(recording, Findings([Finding("dead-units", "error", "")])).forward == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("rules", "ends"),
    [
        (["error"], "dead-units"),
        (["error", "warning", "note"], "dead-units (+2 more)"),
        (["note"], "layer over 3 layers; note: dead-units"),
        (["note", "note"], "layer over 3 layers; note: dead-units (+1 more)"),
    ],
)
def test_of_several_findings_the_worst_is_told_and_the_others_counted(rules: list[str], ends: str) -> None:
    findings = Findings([Finding("dead-units", severity, "") for severity in rules])  # type: ignore[arg-type]
    found = summary(trained("he_normal", layers=3), findings)
    assert str(found).endswith(ends)
    assert found.healthy == (rules[0] == "note")


def test_what_cannot_be_judged_is_unknown_and_not_healthy() -> None:
    found = summary(Recording.create())
    assert str(found) == "unknown: no step is recorded yet"
    assert not found.healthy
    assert isinstance(found, Summary)
    with pytest.raises(TypeError, match="recording is of type str"):
        summary("run.gscope")  # type: ignore[arg-type]
