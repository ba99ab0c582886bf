"""Findings where they are read: in a terminal, in a notebook, and at which sites of a signal."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from gradscope import Recording, probe
from gradscope.diagnosis import Finding, Findings, diagnose
from gradscope.recording import Moments, Site, StepRecord
from gradscope.report import write_run_report
from gradscope.report._findings_text import findings_text, not_judged
from gradscope.report._terminal import console
from gradscope.report._verdicts import sick_sites, verdicts
from gradscope.report.figures import profile
from tests.reporting import trained


def said(findings: Findings, recording: Recording | None = None, width: int = 100) -> str:
    out = io.StringIO()
    Console(width=width, file=out, highlight=False).print(findings_text(findings, recording))
    return out.getvalue()


def small() -> Recording:
    """Two layers `a` and `b` in one step: outputs, gradients, weights and updates."""
    recording = Recording.create()
    places = {}
    for signal in ("activation", "activation_grad"):
        places[signal] = [
            recording.add_site(Site(signal, n, n, "Linear", role="pre-activation", depth=d, shape=(2, 3)))
            for d, n in enumerate("ab", start=1)
        ]
    for signal in ("weight", "update"):
        places[signal] = [
            recording.add_site(Site(signal, f"{n}.weight", n, "Linear", param="weight", depth=d, shape=(3, 3)))
            for d, n in enumerate("ab", start=1)
        ]
    moments = {
        signal: (np.array(ids), Moments.concat([Moments.from_array([1.0, 2.0])] * 2)) for signal, ids in places.items()
    }
    recording.append(StepRecord(0, moments=moments))
    return recording


def finding(rule: str = "dead-units", severity: str = "error", **more: object) -> Findings:
    return Findings([Finding(rule, severity, "It is so.", **more)])  # type: ignore[arg-type]


# -- where ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "signals"),
    [
        ("forward", {"activation"}),
        ("backward", {"activation_grad"}),
        ("both", {"activation", "activation_grad"}),
        (None, set()),
    ],
)
def test_a_finding_belongs_to_the_signal_that_flows_its_way(direction: str | None, signals: set[str]) -> None:
    recording = small()
    found = finding(direction=direction, sites=("b",))
    marked = {s for s in ("activation", "activation_grad", "weight", "update") if sick_sites(found, recording, s)}
    assert marked == signals
    assert {s for s in marked if verdicts(found, recording, s)[0].site.name == "b"} == signals


def test_a_finding_about_updates_is_shown_at_the_updates_and_not_at_what_flows() -> None:
    found = finding("update-too-large", direction="both", sites=("a.weight",))
    assert sick_sites(found, small(), "update") == {"a.weight"}
    assert not sick_sites(found, small(), "activation")


def test_a_finding_about_a_weight_is_shown_at_the_output_of_its_module() -> None:
    recording = small()
    weight = recording.sites_of("weight")[1]
    found = finding("default-init", direction="forward", sites=("b.weight", "a.weight"), frontier=weight)
    assert sick_sites(found, recording, "activation") == {"a", "b"}
    (verdict,) = verdicts(found, recording, "activation")
    assert (verdict.site.name, verdict.label) == ("b", "b (default-init)")


def test_a_note_marks_nothing_and_an_unknown_site_is_passed_over() -> None:
    recording = small()
    assert not sick_sites(finding(severity="note", direction="forward", sites=("a",)), recording, "activation")
    assert not verdicts(finding(severity="note", direction="forward", sites=("a",)), recording, "activation")
    assert not verdicts(finding(direction="forward", sites=("c",)), recording, "activation")
    assert not verdicts(None, recording, "activation")


def test_a_sound_network_with_average_pooling_looks_sound(tmp_path: Path) -> None:
    """Its gradient leaves the healthy band at the poolings: no cross, no band, and no word of it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.AvgPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    batch, target = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    recording = probe(model, batch, target=target, loss_fn=nn.functional.cross_entropy)
    low, _ = recording.profile("activation_grad").healthy_band
    assert (recording.profile("activation_grad").values < low).any()
    found = diagnose(recording)
    assert list(found) == []
    report = write_run_report(recording, tmp_path, findings=found)
    words = {picture.file: picture.data["words"] for picture in report.pictures}
    assert words["profile__activation_grad.png"].startswith("No fault found here: −")
    (axes,) = profile(recording, "activation_grad", findings=found).axes
    assert not [patch for patch in axes.patches if patch.get_label() == "healthy band"]
    text = " ".join(said(found, recording).split())
    assert text.startswith("No fault found: the activation changes by ")
    assert "Poolings, norms and branches change sizes by design." in text


# -- in words -------------------------------------------------------------------------------------------------


def test_a_finding_says_what_where_why_and_what_to_do() -> None:
    site = Site("activation", "layers.3", "layers.3", "Linear", depth=7)
    one = Finding(
        "dead-units",
        "warning",
        "Units are zero.",
        "a lower rate",
        "A paper",
        sites=("layers.3", "layers.5"),
        steps=(12,),
        frontier=site,
        causes=("the bias is low", "Units are zero"),
        consequences=("no-gradient at layers.1",),
    )
    lines = [" ".join(line.split()) for line in said(Findings([one, one])).splitlines()]
    assert lines[:10] == [
        "2 warnings",
        "",
        "WARNING dead-units",
        "what Units are zero.",
        "where first at layers.3 (Linear, depth 7) and 1 more site, since step 12",
        "why the bias is low",  # the second cause is said already
        "what to do a lower rate",
        "also seen no-gradient at layers.1",
        "read A paper",
        "",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_findings_fit_the_terminal(width: int) -> None:
    recording = trained("naive_normal", layers=16)
    assert max(map(len, said(diagnose(recording), recording, width).splitlines())) <= width


def test_rules_that_could_not_judge_are_named_with_the_reason() -> None:
    found = Findings((), dict.fromkeys(("a", "b", "c", "d"), "update was not recorded") | {"e": "too few steps"})
    assert not_judged(found) == "Not judged: a, b and 2 more (update was not recorded); e (too few steps)."
    assert said(found) == f"No fault found.\n{not_judged(found)}\n"
    assert "Not judged" not in said(Findings(()))


def test_findings_are_coloured_on_a_terminal_and_never_under_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console().print(findings_text(finding()))
    assert "\x1b[1;31mERROR" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    console().print(findings_text(finding()))
    assert "31m" not in capsys.readouterr().out


# -- as data --------------------------------------------------------------------------------------------------


def test_a_value_that_is_not_finite_is_strict_json(tmp_path: Path) -> None:
    found = finding(value=float("inf"), limit=float("nan"), direction="forward", sites=("a",))
    assert json.loads(found.to_json())[0]["value"] == "inf"
    document = write_run_report(small(), tmp_path, findings=found).document
    assert (document["findings"][0]["value"], document["findings"][0]["limit"]) == ("inf", None)
    assert document["schema"] == 2


class Cells(HTMLParser):
    """The texts of a table's cells; every tag that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "p"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "p"} & set(self.open):
            self.cells[-1] += data


def test_a_notebook_shows_where_why_and_what_to_do_escaped() -> None:
    found = Findings(
        [Finding("r", "error", "a < b.", "do <this>", sites=("<input>", "x"), steps=(3,), causes=("c & d",))],
        {"q": "no data"},
    )
    cells = Cells(found._repr_html_()).cells
    assert cells == ["error", "r", "<input>, xsince step 3", "a < b.Because c & d", "do <this>", "Not judged: q"]
    assert Cells(Findings(())._repr_html_()).cells == ["No fault found."]
