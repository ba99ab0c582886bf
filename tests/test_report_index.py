"""A report as a directory: its pictures, its index, and what it prints."""

from __future__ import annotations

import io
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from gradscope import Recording, SweepConfig, sweep
from gradscope.diagnosis import Finding, Findings, diagnose
from gradscope.recording import Moments, Site, StepRecord, SweepResult
from gradscope.report import Report, write_activation_report, write_run_report, write_sweep_report
from gradscope.report._run_terminal import run_text
from gradscope.report._terminal import activation_text, console, pictures_text, sweep_text
from tests.reporting import cell, small_sweep, trained

SHAPES = Path(__file__).parent / "oracles" / "report_shapes.json"


def shape(value: Any) -> Any:
    """A document's shape: keys and kinds, a list by its first entry."""
    if isinstance(value, dict):
        return {key: shape(v) for key, v in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return {bool: "true or false", int: "number", float: "number", str: "text", type(None): "null"}[type(value)]


def shape_of(report: Report) -> dict[str, Any]:
    """The shape of `index.json`, one picture of each kind; settings and facts are those of their own rooms."""
    document = json.loads((report.directory / "index.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {key: shape(v) for key, v in document.items() if key not in ("pictures", "config", "facts")}
    return {**found, "pictures": {p["kind"]: shape(p) for p in document["pictures"]}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_sweep_report(small_sweep(), tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def run_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    recording = trained()
    one = Finding(
        "vanishing-gradient",
        "warning",
        "It shrinks.",
        direction="backward",
        sites=("0", "1"),
        steps=(2,),
        frontier=recording.sites_of("activation_grad")[1],
        value=-3.0,
        limit=-2.0,
        expected=0.0,
        causes=("why",),
        consequences=("what follows",),
    )
    found = Findings([one], {"dead-units": "no unit moments were recorded"})
    return write_run_report(recording, tmp_path_factory.mktemp("run"), findings=found)


def assert_whole(report: Report) -> None:
    """The directory holds what the index lists, and nothing else; the index is what the report says it is."""
    document = json.loads((report.directory / "index.json").read_text(encoding="utf-8"))
    assert document == report.document
    listed = [p["file"] for p in document["pictures"]]
    assert listed == [p.file for p in report.pictures]
    assert sorted([*listed, "index.json"]) == sorted(p.name for p in report.directory.iterdir())
    assert len(set(listed)) == len(listed)


def test_a_sweeps_report_has_a_picture_of_each_pair_and_activation_and_an_overview(report: Report) -> None:
    assert_whole(report)
    config = small_sweep().config
    pairs = [f"signal_vs_depth__{i}__{a}.png" for i in config["init"] for a in config["activation"]]
    activations = [f"activation__{a}.png" for a in config["activation"]]
    assert [p.file for p in report.pictures] == ["overview.png", *pairs, *activations]


def test_several_depths_and_widths_are_told_apart_by_the_file_name(tmp_path: Path) -> None:
    cells = (cell(0, 0, depth=5), cell(0, 0, depth=7))
    report = write_sweep_report(SweepResult({}, cells), tmp_path)
    assert [p.file for p in report.pictures] == [
        "overview__d5_w64.png",
        "overview__d7_w64.png",
        "signal_vs_depth__he_normal__relu__d5_w64.png",
        "signal_vs_depth__he_normal__relu__d7_w64.png",
        "activation__relu.png",
    ]


def test_a_parametrised_activation_has_a_plain_file_name(tmp_path: Path) -> None:
    report = write_activation_report(["leaky_relu(0.2)"], tmp_path)
    assert [p.file for p in report.pictures] == ["activation__leaky_relu_0.2.png"]
    assert_whole(report)


def test_an_unknown_activation_draws_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        write_activation_report(["tanh", "rleu"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_can_be_had_back_from_its_index(report: Report) -> None:
    again = SweepResult.from_json((report.directory / "index.json").read_text(encoding="utf-8"))
    for a, b in zip(again.cells, small_sweep().cells, strict=True):
        assert (a.init, a.activation, a.depth, a.width) == (b.init, b.activation, b.depth, b.width)
        np.testing.assert_array_equal(a.pre_grad, b.pre_grad)


def test_the_index_holds_the_numbers_on_the_axes(report: Report) -> None:
    by_file = {p["file"]: p["data"] for p in report.document["pictures"]}
    data = by_file["signal_vs_depth__glorot_normal__sigmoid.png"]
    found = small_sweep().cell("glorot_normal", "sigmoid")
    np.testing.assert_allclose(data["backward"]["log10_rms_median"], np.log10(np.median(found.pre_grad, axis=0)))
    assert data["backward"]["decades_per_layer"] == found.backward_decades
    assert data["backward"]["words"].startswith("The gradient shrinks ")
    assert by_file["activation__sigmoid.png"]["largest_slope"] == 0.25


def test_the_shapes_of_the_indexes_are_those_of_the_snapshot(
    report: Report, run_report: Report, tmp_path: Path
) -> None:
    """After a wanted change: delete tests/oracles/report_shapes.json, run this, and mend docs/report_json.md."""
    found = {
        "sweep": shape_of(report),
        "recording": shape_of(run_report),
        "activation": shape_of(write_activation_report(["tanh"], tmp_path)),
    }
    if not SHAPES.exists():
        SHAPES.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        pytest.fail(f"{SHAPES.name} was missing and has been written: read it, and run again")
    assert found == json.loads(SHAPES.read_text(encoding="utf-8"))


def test_every_key_of_the_indexes_is_documented() -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    text = (Path(__file__).parents[1] / "docs" / "report_json.md").read_text(encoding="utf-8")
    assert not {key for key in keys(json.loads(SHAPES.read_text(encoding="utf-8"))) if f"`{key}`" not in text}


def test_two_processes_draw_the_same_bytes_as_one(report: Report, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    again = write_sweep_report(
        small_sweep(), tmp_path, workers=2, progress=lambda done, total, label: seen.append((done, total))
    )
    assert_whole(again)
    for file in again.directory.iterdir():
        assert file.read_bytes() == (report.directory / file.name).read_bytes()
    assert seen == [(i, len(report.pictures)) for i in range(1, len(report.pictures) + 1)]


def test_where_no_process_can_start_one_draws_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(method: str) -> None:
        raise PermissionError("no semaphores here")

    monkeypatch.setattr(multiprocessing, "get_context", refuse)
    cells = tuple(cell(0, 0, depth=d, seeds=1) for d in range(2, 8))
    assert_whole(write_sweep_report(SweepResult({}, cells), tmp_path, workers=2))


def test_a_runs_report_has_profiles_and_heat_maps_of_each_signal_and_the_update_ratio(run_report: Report) -> None:
    assert_whole(run_report)
    signals = ("activation", "activation_grad", "weight", "weight_grad", "update")
    each = [f"{kind}__{signal}.png" for signal in signals for kind in ("profile", "heatmap")]
    first = ["heatmap__activation_grad.png", "profile__activation_grad.png"]  # of the finding, which begins at step 2
    assert [p.file for p in run_report.pictures] == [*first, *(f for f in each if f not in first), "update_ratio.png"]


def test_the_index_has_the_findings_and_what_could_not_be_judged(run_report: Report) -> None:
    document = run_report.document
    assert document["schema"] == 2
    assert [one["rule"] for one in document["findings"]] == ["vanishing-gradient"]
    assert document["unknown"] == {"dead-units": "no unit moments were recorded"}
    data = {p["file"]: p["data"] for p in document["pictures"]}
    sick = [(line["first_sick_site"], line["first_sick_by"]) for line in data["profile__activation_grad.png"]["lines"]]
    assert sick == [(None, None), ("1", "vanishing-gradient"), (None, None)]  # the middle step is the first that has it
    words = data["profile__activation_grad.png"]["words"]
    assert words == "First sick site: 1 (vanishing-gradient), depth 2, since step 2."
    words = data["profile__activation.png"]["words"]
    assert words.endswith("Also found, not on this picture: vanishing-gradient.")
    assert "No fault" not in words
    assert data["heatmap__activation_grad.png"]["first_sick_by"] == "vanishing-gradient"
    assert data["heatmap__activation.png"]["first_sick_by"] is None


def test_an_empty_recording_has_an_index_without_pictures(tmp_path: Path) -> None:
    recording = Recording.create()
    report = write_run_report(recording, tmp_path)
    assert report.document["pictures"] == []
    assert "No step of this recording is complete yet." in plain(run_text(recording))


def test_an_exploded_run_is_strict_json(tmp_path: Path) -> None:
    report = write_run_report(trained("naive_normal", layers=16), tmp_path)
    assert_whole(report)
    by_file = {p["file"]: p["data"] for p in report.document["pictures"]}
    assert by_file["heatmap__activation.png"]["first_nonfinite"]["step"] == 1
    assert None in by_file["profile__activation.png"]["lines"][-1]["log10_rms"]


# -- what is printed ------------------------------------------------------------------------------------------


def plain(*text: RenderableType, width: int = 100) -> str:
    out = io.StringIO()
    Console(width=width, file=out, highlight=False).print(*text)
    return out.getvalue()


def test_the_printed_table_holds_the_slopes_with_their_marks() -> None:
    said = plain(sweep_text(small_sweep()))
    forward, backward = [line.split() for line in said.splitlines() if line.startswith("he_normal ")][:2]
    for row, slopes in ((forward, "forward_decades"), (backward, "backward_decades")):
        for entry, name in zip(row[1:], small_sweep().config["activation"], strict=True):
            slope = getattr(small_sweep().cell("he_normal", name), slopes)
            assert float(entry.strip("*✕").replace("−", "-")) == pytest.approx(slope, abs=0.0051)
            assert entry.endswith("*") == (name in ("relu", "gelu"))  # whose recommended scheme this is
    assert max(map(len, said.splitlines())) <= 100


def test_the_worst_pairs_are_named_in_words() -> None:
    result = SweepResult({}, (cell(0.0, -0.5), cell(0.0, 0.0, depth=40)))
    said = " ".join(plain(sweep_text(result), width=200).split())
    assert "Worst pairs he_normal · relu signal keeps its size (×1 over 50 layers) gradient shrinks 3.2×10²⁴" in said


def test_a_healthy_sweep_has_no_worst_pairs() -> None:
    assert "Worst" not in plain(sweep_text(SweepResult({}, (cell(0, 0),))))


def test_the_printed_table_of_a_run_marks_the_sites_of_its_findings_and_tells_slopes() -> None:
    recording = trained()
    found = diagnose(recording)
    (gradient,) = found
    assert gradient.direction == "backward"
    text = plain(run_text(recording, findings=found))
    rows = {row[1]: row for row in map(str.split, text.splitlines()) if row[:1] and row[0].isdigit() and len(row) > 4}
    marked = {name for name, row in rows.items() if "✕" in row}
    assert marked == set(gradient.sites)
    assert all(row.index("✕") == 5 for row in rows.values() if "✕" in row)  # behind the gradient
    assert "✕" not in plain(run_text(recording))
    said = " ".join(text.split())
    slope = f"{recording.profile('activation').decades_per_layer:+.3f}".replace("-", "−")
    assert f"Activation: {slope} decades per layer over 6 layers. Gradient" in said
    assert "healthy band" not in said
    change = recording.values("update", "rms")[-1] / recording.values("weight", "rms")[-1]
    first = [s.name for s in recording.sites_of("update")].index("0.weight")
    assert f"{change[first]:.2e}".replace("-", "−") in said


def test_the_text_of_a_run_says_what_the_recorder_noted() -> None:
    recording = trained("he_normal", layers=3)
    assert "Not observed" not in plain(run_text(recording))
    recording = Recording.create(
        facts={
            "first_nonfinite": {"sentence": "step 1: 3 NaN of 8 entries in the activation of 'a'"},
            "unobserved": {f"m{i}": "never called in a forward pass" for i in range(10)},
        }
    )
    site = recording.add_site(Site("activation", "a", "a", "Linear", depth=1))
    for step in range(3):
        moments = {"activation": (np.array([site]), Moments.from_array([1.0]))}
        recording.append(StepRecord(step, skipped=step == 1, moments=moments))
    said = plain(run_text(recording))
    assert "The first NaN or infinity: step 1: 3 NaN of 8 entries in the activation of 'a'." in said
    assert "Skipped, as no optimizer used their gradients: 1 recorded steps, the first 1." in said
    assert "m0: never called in a forward pass" in said
    assert "and 2 more" in said


def test_a_long_table_of_a_run_loses_its_middle() -> None:
    said = plain(run_text(trained("naive_normal", layers=40)))
    assert "more sites" in said
    assert len(said.splitlines()) < 75


def test_colour_is_used_on_a_terminal_and_never_under_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stdout were a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    console().print(sweep_text(SweepResult({}, (cell(0.0, -0.5),))))
    assert "\x1b[1;34m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    console().print(sweep_text(SweepResult({}, (cell(0.0, -0.5),))))
    assert "\x1b[1;34m" not in capsys.readouterr().out


def test_an_activation_is_told_in_sentences_and_the_pictures_place_is_named(tmp_path: Path) -> None:
    said = " ".join(plain(activation_text(["relu"])).split())
    assert "for z below 0 it is 0, and no gradient passes" in said
    assert "50 % of them saturate it" in said
    place = pictures_text(write_activation_report(["relu"], tmp_path)).plain
    assert place.strip() == f"1 picture and index.json in {tmp_path}/; start with {tmp_path}/activation__relu.png"


def test_a_conv_sweep_is_reported_in_channels(tmp_path: Path) -> None:
    result = sweep(SweepConfig(family="conv", init="he_normal", activation="relu", depth=3, width=4, batch=2, seeds=1))
    assert_whole(write_sweep_report(result, tmp_path))
