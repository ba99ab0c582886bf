"""Pictures of long and of sampled recordings: what they read, and that they say what they leave out."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from gradscope.diagnosis import diagnose
from gradscope.recording import Moments, Recording, Signal, Site, StepRecord, step_table
from gradscope.recording import _verifying as verifying
from gradscope.report import write_run_report
from gradscope.report._drawn import Drawn, drawn_steps, evenly
from gradscope.report._run_curves import first_nonfinite, step_map, update_ratio
from gradscope.report._run_terminal import run_text
from gradscope.report._words import map_sentence, update_sentence
from gradscope.report.figures import depth_step_heatmap, profile, update_to_weight
from tests.test_report_figures import assert_text_is_inside, words

SITES = 5
SHOWN: tuple[Signal, ...] = ("activation", "weight", "update")
SAMPLED = {"entries": 1024, "of": ["mean", "std", "zeros", "subnormals", "histogram"]}


def run(
    steps: int,
    sick: dict[int, Signal] | None = None,
    skipped: tuple[int, ...] = (),
    facts: dict[str, object] | None = None,
) -> Recording:
    """A run whose rms at each step and site says which it is; some steps have a NaN in the second site of a signal."""
    r = Recording.create(facts=facts)
    ids = {}
    for s in SHOWN:
        sites = (Site(s, f"{i}.w", str(i), "Linear", param=None if s == "activation" else "weight", depth=i + 1,
                      role="pre-activation", shape=(4, 4)) for i in range(SITES))  # fmt: skip
        ids[s] = np.array([r.add_site(site) for site in sites])
    none, mark = np.zeros(SITES, np.int64), np.arange(SITES) == 1
    for t in range(steps):
        moments = {}
        for s in SHOWN:
            rms = (1 + np.arange(SITES)) * (1 + t) * {"activation": 1.0, "weight": 2.0, "update": 1e-3}[s]
            nans = none + (mark if (sick or {}).get(t) == s else 0)
            moments[s] = (ids[s], Moments(none + 16, 0 * rms, rms, -rms, rms, none, nans, none))
        r.append(StepRecord(2 * t, t in skipped, {"loss": 1.0}, moments))
    return r


@functools.cache
def long_run() -> Recording:
    return run(3000, sick={701: "activation", 702: "activation", 1501: "update"}, skipped=(1999,))


# -- which steps ---------------------------------------------------------------------------------------------


def test_a_picture_shows_a_thousand_steps_evenly_spaced_and_every_one_with_a_finding() -> None:
    drawn = drawn_steps(long_run())
    found = [701, 702, 1501, 1999]
    assert np.isin([0, 2999, *found], drawn.at).all()
    even = np.setdiff1d(drawn.at, found)
    assert 996 <= len(even) <= 1000
    assert set(np.diff(even)) <= {2, 3, 4, 5, 6}  # a finding may stand where an even one was
    assert (drawn.recorded, drawn.findings, drawn.findings_drawn) == (3000, 4, 4)
    assert drawn.words == f"{len(drawn.at):,} of 3,000 steps: evenly spaced, and all 4 that were skipped or not finite"


def test_a_run_of_a_thousand_steps_is_shown_whole_and_says_nothing() -> None:
    r = run(1000)
    drawn = drawn_steps(r)
    np.testing.assert_array_equal(drawn.at, np.arange(1000))
    assert drawn.whole
    assert drawn.words == ""
    said = words(depth_step_heatmap(r, "weight")) + words(update_to_weight(r))
    assert "of 1,000" not in said
    assert "drawn" not in said


def test_where_findings_are_too_many_the_first_of_each_signal_is_shown_and_the_small_print_says_how_many() -> None:
    sick: dict[int, Signal] = dict.fromkeys(range(250, 2750), "weight") | {1234: "update", 1235: "update"}
    drawn = drawn_steps(run(3000, sick=sick))
    assert np.isin([0, 250, 1234, 2749, 2999], drawn.at).all()
    assert len(drawn.at) <= 2003
    assert drawn.findings == 2500
    assert 1000 <= drawn.findings_drawn < 2500
    assert f", and {drawn.findings_drawn:,} of 2,500 that were skipped or not finite" in drawn.words


@pytest.mark.parametrize(("count", "most"), [(0, 10), (1, 10), (10, 10), (11, 10), (100_000, 1000)])
def test_evenly_spaced_indices_begin_and_end_at_the_ends(count: int, most: int) -> None:
    at = evenly(count, most)
    assert len(at) == min(count, most)
    if count:
        assert (at[0], at[-1]) == (0, count - 1)
    if count > most:
        assert np.ptp(np.diff(at)) <= 1


def test_no_finding_is_not_spoken_of() -> None:
    assert Drawn(np.arange(1000), 2000, 0, 0).words == "1,000 of 2,000 steps: evenly spaced"


# -- what they show ------------------------------------------------------------------------------------------


def test_the_pictures_hold_the_values_of_the_steps_that_they_show() -> None:
    r, drawn = long_run(), drawn_steps(long_run())
    shown = step_map(r, "activation")
    np.testing.assert_array_equal(shown.steps, r.steps[drawn.at])
    np.testing.assert_array_equal(shown.skipped, r.skipped[drawn.at])
    np.testing.assert_array_equal(shown.log10_rms, np.log10(r.values("activation", "rms")[drawn.at]))
    np.testing.assert_array_equal(shown.nonfinite, r.values("activation", "nonfinite_count")[drawn.at] > 0)
    assert shown.nonfinite.sum() == 2
    ratio = update_ratio(r)
    expected = (r.values("update", "rms") / r.values("weight", "rms"))[drawn.at]
    expected[drawn.at == 1501, 1] = np.nan  # a tensor that is not finite is no measure
    np.testing.assert_allclose(ratio.ratio, expected, rtol=1e-14)


def test_the_first_nan_is_found_by_one_step_whatever_is_drawn() -> None:
    for signal, step in (("activation", 1402), ("update", 3002)):
        found = first_nonfinite(long_run(), signal)  # type: ignore[arg-type]
        assert found is not None
        assert (found[0], found[1].name) == (step, "1.w")
        assert step_map(long_run(), signal).first_nonfinite == found  # type: ignore[arg-type]
    assert first_nonfinite(long_run(), "weight") is None


def test_a_picture_and_its_words_say_that_steps_are_left_out() -> None:
    r = long_run()
    for figure in (depth_step_heatmap(r, "weight"), update_to_weight(r)):
        assert drawn_steps(r).words in words(figure)
        assert_text_is_inside(figure)
    assert "decades in the steps drawn, and is always finite." in map_sentence(step_map(r, "weight"))
    assert update_sentence(update_ratio(r)).startswith("In the median step drawn the fastest of 5 weights")


def test_the_index_says_which_steps_of_how_many(tmp_path: Path) -> None:
    report = write_run_report(long_run(), tmp_path)
    data = {p.file: p.data for p in report.pictures}
    for file in ("heatmap__activation.png", "update_ratio.png"):
        assert data[file]["recorded_steps"] == 3000
        assert data[file]["steps"] == (2 * drawn_steps(long_run()).at).tolist()


def test_a_report_reads_only_the_steps_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_run().save(tmp_path / "r")
    r, read = Recording.load(tmp_path / "r"), set()
    real = verifying.TABLES.checksum

    def spy(table: str, n: int, *rest: object) -> int:
        read.add((table, n))
        return real(table, n, *rest)  # type: ignore[arg-type]

    found = diagnose(Recording.load(tmp_path / "r"))  # which reads more, and once
    monkeypatch.setattr(verifying.TABLES, "checksum", spy)
    write_run_report(r, tmp_path / "report", findings=found)
    run_text(r, findings=found)
    # Beside the steps drawn, the middle one of a profile.
    assert read <= {("moments", int(at)) for at in (*drawn_steps(r).at, 1500)}
    assert len(read) >= 1000


# -- sampled -------------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[Recording], Figure]] = {
    "profile": lambda r: profile(r, "activation"),
    "heat map": lambda r: depth_step_heatmap(r, "weight"),
    "update ratio": update_to_weight,
}


def labels(figure: Figure) -> str:
    return " | ".join(text for axes in figure.axes for text in (axes.get_ylabel(), axes.get_title(loc="left")))


@pytest.mark.parametrize("name", FIGURES)
def test_a_sampled_statistic_is_labelled_so_on_the_axis_and_in_small_print(name: str) -> None:
    figure = FIGURES[name](run(30, facts={"sampled": SAMPLED}))
    assert "(sampled)" in labels(figure)
    assert "sampled: of tensors over 1,024 entries about that many" in words(figure)
    assert_text_is_inside(figure)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("facts", [None, {"sampled": {"entries": 1024, "of": ["histogram"]}}])
def test_a_statistic_that_is_not_sampled_is_not_labelled_so(name: str, facts: dict[str, object] | None) -> None:
    assert "sampled" not in words(FIGURES[name](run(30, facts=facts)))


def test_texts_say_what_is_sampled() -> None:
    sentence = (
        "mean, std, zeros, subnormals, histogram of tensors over 1,024 entries are estimates from about that many"
    )
    r, console = run(3, facts={"sampled": SAMPLED}), Console(width=200, file=io.StringIO())
    console.print(run_text(r))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Step 4: rms at each site (sampled)" in printed
    assert f"Sampled: {sentence}." in printed
    assert step_table(r).splitlines()[-1] == f"sampled: {sentence}"
    assert "ampled" not in step_table(run(3))


@pytest.mark.parametrize("name", FIGURES)
def test_small_print_overlaps_no_other_text(name: str) -> None:
    r = run(1100, sick={500: "update"}, skipped=(600,), facts={"sampled": SAMPLED})
    figure = FIGURES[name](r)
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text() and t.get_visible()]
    (note,) = [t for t in texts if "sampled: of" in t.get_text()]
    box = note.get_window_extent()
    for other in texts:
        if other is not note:
            assert not box.overlaps(other.get_window_extent()), other.get_text()
