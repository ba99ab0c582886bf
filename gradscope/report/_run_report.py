"""The report of a recorded run: profiles, depth × step, update-to-weight ratio, `index.json`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradscope.diagnosis import RULES, Findings, diagnose, summary
from gradscope.recording import SIGNALS, Recording, Signal
from gradscope.report._expected_curve import expected_curve
from gradscope.report._index import Picture, Report, write_report
from gradscope.report._run_curves import step_map, three_lines, update_ratio
from gradscope.report._verdicts import elsewhere, verdicts
from gradscope.report._words import NAMES, map_sentence, profile_sentence, update_sentence
from gradscope.report._write import save_png
from gradscope.report.figures import depth_step_heatmap, profile, update_to_weight

SCHEMA = 2
"""Of a recording's `index.json`: since 2 a first sick site is that of a finding, and no longer of the healthy band."""


def write_run_report(
    recording: Recording,
    directory: str | os.PathLike[str] = "reports",
    *,
    expected: Recording | None = None,
    findings: Findings | None = None,
) -> Report:
    """Draw every picture of a recorded run into a directory and list them in `index.json`.

    A signal that was not recorded has no picture, a single step no heat map, a run without an observed optimizer
    step no update ratio.

    Args:
        recording: open or loaded.
        directory: made where it does not exist; pictures of the same names are replaced.
        expected: what `gradscope.predict` gave for the same model: the theory's curve and band in each profile whose
            sites it has.
        findings: what `gradscope.diagnosis.diagnose` gave for the recording; None asks it.
    """
    found = diagnose(recording) if findings is None else findings
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    pictures: list[Picture] = []
    for signal in SIGNALS:
        pictures += _of_signal(recording, signal, directory, expected, found)
    ratio = update_ratio(recording, found)
    if ratio.known:
        save_png(update_to_weight(recording, ratio), directory / "update_ratio.png")
        data = {**ratio.data(), "words": update_sentence(ratio)}
        pictures.append(Picture("update_ratio.png", "update_to_weight", "How fast each layer learns", data))
    first = _first_look(recording, found)
    pictures.sort(key=lambda one: first.index(one.file) if one.file in first else len(first))
    head = {
        "schema": SCHEMA,
        "kind": "recording",
        "complete": recording.complete,
        "steps": len(recording.steps),
        "facts": recording.facts,
        "summary": str(summary(recording, found)),
        "findings": found.as_list(),
        "unknown": found.unknown,
    }
    return write_report(directory, head, pictures)


def _first_look(recording: Recording, findings: Findings) -> list[str]:
    """The pictures that show the first finding, best first; what begins within the run shows over its steps."""
    for one in findings:
        needs = RULES[one.rule].needs if one.rule in RULES else ()
        shown = [s for s in SIGNALS if verdicts(Findings([one]), recording, s)] or [s for s in SIGNALS if s in needs]
        if shown:
            files = [f"profile__{shown[0]}.png", f"heatmap__{shown[0]}.png"]
            late = bool(one.steps) and one.steps[0] > int(recording.steps[0])
            return [*(["update_ratio.png"] if shown[0] == "update" else []), *(files[::-1] if late else files)]
    return []


def _of_signal(
    recording: Recording, signal: Signal, directory: Path, expected: Recording | None, findings: Findings
) -> list[Picture]:
    lines = three_lines(recording, signal, findings)
    if not lines:
        return []
    file = f"profile__{signal}.png"
    theory = None if expected is None else expected_curve(expected, lines[0])
    save_png(profile(recording, signal, expected, findings), directory / file)
    data: dict[str, Any] = {
        "signal": signal,
        "lines": [line.data() for line in lines],
        "words": profile_sentence(lines, judged=True, others=elsewhere(findings, recording, signal)),
        **({} if theory is None else {"expected": theory.data()}),
    }
    pictures = [Picture(file, "profile", f"{NAMES[signal]} against depth", data)]
    if len(recording.steps) > 1:
        file, shown = f"heatmap__{signal}.png", step_map(recording, signal, findings)
        save_png(depth_step_heatmap(recording, signal, shown), directory / file)
        data = {"signal": signal, **shown.data(), "words": map_sentence(shown)}
        pictures.append(Picture(file, "depth_step_heatmap", f"{NAMES[signal]} over the run", data))
    return pictures
