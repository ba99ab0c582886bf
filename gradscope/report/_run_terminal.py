"""What the report of a recorded run prints: its findings in words, then a table of its sites, the sick ones marked."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.diagnosis import Findings
from gradscope.recording import Profile, Recording, Signal
from gradscope.report._findings_text import findings_text
from gradscope.report._run_curves import FLOWING, first_nonfinite, ratios_at
from gradscope.report._verdicts import sick_sites
from gradscope.report._words import NAMES, first_sentence, per_layer, sampled

_MOST_ROWS = 60
_MOST_REASONS = 8


def run_text(recording: Recording, note: str = "", findings: Findings | None = None) -> RenderableType:
    """The findings, then the sites at the last step with data, and the slopes.

    Args:
        recording: open or loaded.
        note: a sentence of the caller's that follows: why a picture lacks something.
        findings: what `diagnose` gave for the recording; None prints the table alone, without marks.
    """
    if not len(recording.steps):
        return Text("No step of this recording is complete yet.")
    profiles = {signal: recording.profile(signal) for signal in FLOWING if recording.sites_of(signal)}
    lines = [line for profile in profiles.values() for line in _lines(recording, profile)]
    last = max((profile.step for profile in profiles.values()), default=int(recording.steps[-1]))
    title = Text(f"Step {last}: rms at each site{sampled(recording, 'rms')}", style="bold")
    notes = [Text(note)] if note else []
    first = [] if findings is None else [findings_text(findings, recording), Text()]
    sick = {signal: sick_sites(findings, recording, signal) for signal in (*FLOWING, "update")}
    table = _table(recording, profiles, sick)
    marks = [Text("✕ a site of a finding", style="dim")] if any(sick.values()) else []
    return Group(*first, title, table, *marks, Text(), *lines, *_said(recording, findings), *notes)


def _said(recording: Recording, findings: Findings | None) -> Iterator[Text]:
    """What the recorder has noted: the first NaN or infinity, skipped steps, what it sampled or could not observe."""
    first = recording.facts.get("first_nonfinite")
    found = any(one.rule in ("non-finite", "dtype-overflow") for one in findings or ())
    if first and not found:
        yield Text(f"The first NaN or infinity: {first['sentence']}.", style="bold red")
    skipped = recording.steps[recording.skipped]
    if len(skipped):
        yield Text(
            f"Skipped, as no optimizer used their gradients: {len(skipped)} recorded steps, the first {skipped[0]}."
        )
    if recording.sampling is not None:
        yield Text(f"Sampled: {recording.sampling.sentence}.")
    reasons = recording.facts.get("unobserved") or {}
    if reasons:
        yield Text("Not observed:")
    for name in list(reasons)[:_MOST_REASONS]:
        yield Text(f"  {name}: {reasons[name]}")
    if len(reasons) > _MOST_REASONS:
        yield Text(f"  and {len(reasons) - _MOST_REASONS} more, in the facts of the recording")


def _table(recording: Recording, profiles: dict[Signal, Profile], sick: dict[Signal, frozenset[str]]) -> Table:
    table = Table(box=None)
    table.add_column("depth", justify="right")
    table.add_column("site", overflow="fold")
    table.add_column("role")
    ratios = _ratios(recording)
    for head in ("activation", "gradient", *(("update/weight",) if ratios else ())):
        table.add_column(head, justify="right")
    values = {signal: dict(zip(_names(p), p.values.tolist(), strict=True)) for signal, p in profiles.items()}
    learning = {site.module for site in recording.sites_of("update") if site.name in sick["update"]}
    sites = {site.name: site for profile in profiles.values() for site in profile.sites}
    rows = sorted(sites.values(), key=lambda site: site.depth)
    half = _MOST_ROWS // 2
    for i, site in enumerate(rows):
        if len(rows) > _MOST_ROWS and half <= i < len(rows) - half:
            if i == half:
                table.add_row("", f"… {len(rows) - 2 * half} more sites", "")
            continue
        cells = [_value(values.get(s, {}).get(site.name), site.name in sick[s]) for s in FLOWING]
        if ratios:
            cells.append(_value(ratios.get(site.name), site.name in learning))
        table.add_row(str(site.depth), site.name, site.role, *cells)
    return table


def _names(profile: Profile) -> list[str]:
    return [site.name for site in profile.sites]


def _value(value: float | None, sick: bool) -> Text:
    text = "–" if value is None else "not finite" if math.isnan(value) else f"{value:.2e}".replace("-", "−")
    return Text(f"{text} ✕" if sick else f"{text}  ", style="bold red" if sick else "")


def _ratios(recording: Recording) -> dict[str, float]:
    """Update-to-weight ratio at the last step with updates, by the name of the module's site; NaN if not finite."""
    seen = np.flatnonzero(recording.recorded("update"))
    if not seen.size:
        return {}
    sites, (row,) = ratios_at(recording, seen[-1:])
    return {s.module: float(v) for s, v in zip(sites, row, strict=True) if s.param == "weight"}


def _lines(recording: Recording, profile: Profile) -> Iterator[Text]:
    signal, name = profile.signal, NAMES[profile.signal]
    slope = f"{name}: {per_layer(profile.decades_per_layer)} over {int(profile.layers.sum())} layers"
    yield Text(f"{slope}.")
    found = first_nonfinite(recording, signal)
    if found is not None:
        sentence = first_sentence(found)
        yield Text(f"{name}: {sentence[0].lower()}{sentence[1:]}", style="bold red")
