"""Published claims, measured again at a reduced size: each within the tolerance that its row derives.

`benchmarks/papers` has the experiments and says where each tolerance comes from. Here also: the rows are sharp enough
to tell a paper's two sides from each other, and docs/papers.md holds what the rows say.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.papers import __main__ as command
from benchmarks.papers.gallery import PAPERS
from benchmarks.papers.page import rewrite, table, table_in
from benchmarks.papers.row import Row, row, shown
from gradscope import theory

PAGE = Path(__file__).parents[1] / "docs" / "papers.md"


@functools.cache
def rows_of(name: str) -> tuple[Row, ...]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tuple(PAPERS[name].reproduce(True))
    finally:
        torch.set_num_threads(threads)


def the_row(name: str, *words: str) -> Row:
    (found,) = [one for one in rows_of(name) if all(word in one.claim for word in words)]
    return found


def holds_with(one: Row, *expected: float) -> bool:
    return dataclasses.replace(one, theory=expected).holds


@pytest.mark.parametrize("name", PAPERS)
def test_every_claim_of_a_paper_is_measured_within_its_tolerance(name: str) -> None:
    assert rows_of(name)
    assert not [str(one) for one in rows_of(name) if not one.holds]


@pytest.mark.parametrize("name", PAPERS)
def test_the_page_has_every_claim_of_a_paper_and_none_that_failed(name: str) -> None:
    kept = table_in(PAGE, name)
    for one in rows_of(name):
        assert f"| {one.claim} | {one.published} |" in kept
    assert kept.count("\n") == len(rows_of(name)) + 1
    assert "✕" not in kept


@pytest.mark.parametrize("name", ["glorot2010", "le2015", "yang2019", "zhang2019"])
def test_a_picture_has_theory_beside_what_was_measured(name: str) -> None:
    rows_of(name)
    figure = PAPERS[name].figure(True)
    for axes in figure.axes:
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed
        assert len(axes.lines) > len(dashed)
        assert all(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).all() for line in axes.lines)


# --- the rows tell one side of a paper from the other ------------------------------------------------------


@pytest.mark.parametrize("what", ["back-propagated gradient", "singular value"])
def test_standard_and_normalized_weights_are_told_apart(what: str) -> None:
    standard, normalized = the_row("glorot2010", "standard weights", what), the_row("glorot2010", "normalized", what)
    assert not holds_with(standard, *normalized.theory)
    assert not holds_with(normalized, *standard.theory)


def test_the_weights_gradients_are_told_from_the_units_gradients_and_are_alike_in_all_layers() -> None:
    for kind in ("standard", "normalized"):
        weights, units = (
            the_row("glorot2010", f"{kind} weights:", "weights' gradients"),
            the_row("glorot2010", f"{kind} weights:", "propagated"),
        )
        assert not holds_with(weights, *units.theory)
        assert not holds_with(units, *weights.theory)
        assert max(weights.theory) < 1.2 * min(weights.theory)


def test_the_spread_of_singular_values_tells_orthogonal_from_gaussian_weights_and_tanh_from_relu() -> None:
    found = {
        (name, kind): the_row("pennington2017", name, kind)
        for name in ("linear", "tanh", "relu")
        for kind in ("orthogonal", "Gaussian")
    }
    for name in ("linear", "tanh", "relu"):
        assert not holds_with(found[name, "orthogonal"], *found[name, "Gaussian"].theory)
        assert not holds_with(found[name, "Gaussian"], *found[name, "orthogonal"].theory)
    assert not holds_with(found["tanh", "orthogonal"], *found["relu", "orthogonal"].theory)


def test_relu_s_spread_per_layer_is_5_over_width_and_not_the_3_of_orthogonal_weights() -> None:
    variance = the_row("hanin2018", "variance of the logarithm")
    assert not holds_with(variance, *(0.6 * x for x in variance.theory))
    assert not holds_with(the_row("hanin2018", "alternate"), 0.6 * variance.theory[0])


def test_batch_norm_s_rate_is_neither_1_nor_tanh_s_nor_that_of_a_layer_norm() -> None:
    relu = the_row("yang2019", "ReLU")
    for rate in (1.0, theory.card("tanh").batch_norm_rate, theory.card("relu").layer_norm_rate):
        assert not holds_with(relu, rate)


def test_the_critical_variance_is_told_from_1_and_from_relu_s_2() -> None:
    critical = the_row("schoenholz2017", "critical")
    assert not holds_with(critical, 1.0)
    assert critical.tolerance[0] < 0.3
    depth = the_row("schoenholz2017", "correlation depth")
    assert not holds_with(depth, *depth.theory[::-1])


def test_the_first_update_is_told_to_grow_with_the_branches_or_not() -> None:
    fixup, zero = the_row("zhang2019", "Fixup: change"), the_row("zhang2019", "end in 0")
    assert not holds_with(fixup, *zero.theory)
    assert not holds_with(zero, *fixup.theory)


def test_each_forget_bias_is_told_from_its_neighbours_and_from_the_gates_alone() -> None:
    biases = the_row("jozefowicz2015", "forget bias")
    alone = [-100.0 * math.log10(1.0 + math.exp(-bias)) for bias in (0.0, 1.0, 2.0)]
    assert not any(
        abs(seen - gates) <= allowed
        for seen, gates, allowed in zip(biases.measured, alone, biases.tolerance, strict=True)
    )
    assert not holds_with(biases, biases.theory[1], biases.theory[2], biases.theory[0])


def test_one_moment_map_less_steep_by_a_tenth_would_be_seen() -> None:
    largest = the_row("klambauer2017", "largest singular value")
    assert largest.theory[0] == pytest.approx(0.7877, abs=5e-5)  # as the paper prints it
    assert not holds_with(largest, 0.9 * largest.theory[0])


# --- rows and page -----------------------------------------------------------------------------------------


def a_row(theory: object, measured: object, tolerance: object, relation: str = "=") -> Row:
    return row(
        "a claim",
        published="1",
        theory=theory,  # type: ignore[arg-type]
        measured=measured,  # type: ignore[arg-type]
        tolerance=tolerance,  # type: ignore[arg-type]
        because="derived",
        scaled_down="a | b",
        relation=relation,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("theory", "measured", "tolerance", "relation", "holds"),
    [
        (1.0, 1.09, 0.1, "=", True),
        (1.0, 1.11, 0.1, "=", False),
        ([1.0, 2.0], [1.0, 2.2], [0.1, 0.1], "=", False),
        (1.0, 0.2, 0.0, "≤", True),
        (1.0, 1.2, 0.1, "≤", False),
        (1.0, 0.95, 0.1, "≥", True),
        (1.0, 0.85, 0.1, "≥", False),
        (1.0, math.nan, 9.0, "=", False),
        (1.0, math.nan, 9.0, "≤", False),
        (1.0, math.inf, 9.0, "≥", True),
    ],
)
def test_a_row_holds_where_each_number_is_within_its_tolerance(
    theory: object, measured: object, tolerance: object, relation: str, holds: bool
) -> None:
    one = a_row(theory, measured, tolerance, relation)
    assert one.holds is holds
    assert str(one).startswith("holds" if holds else "FAILS")
    assert ("✕" in table([one])) is not holds


def test_a_row_of_unequal_numbers_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="theory has 2 numbers and measured 1"):
        a_row([1.0, 2.0], 1.0, 0.1)


def test_numbers_are_shown_with_four_digits_or_a_power_of_ten() -> None:
    assert shown((0.0, 0.083214, 17022.5, -61.5444, 3.0518e-05, math.inf)) == "0, 0.08321, 1.70e4, −61.54, 3.05e−5, inf"


def test_a_table_takes_its_own_place_on_the_page_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head\n<!-- one -->\nold\n<!-- /one -->\nkept\n<!-- two -->\n<!-- /two -->\n")
    rewrite(page, {"one": table([a_row(1.0, 1.0, 0.1)])})
    rewrite(page, {"two": "| new |\n"})
    text = page.read_text()
    assert table_in(page, "one").splitlines()[-1] == r"| a claim | 1 | 1 | 1 | ± 0.1: derived | a \| b |"
    assert table_in(page, "two") == "| new |"
    assert text.startswith("# Head\n<!-- one -->\n")
    assert "old" not in text
    assert "\n<!-- /one -->\nkept\n<!-- two -->\n" in text
    with pytest.raises(ValueError, match="<!-- three -->"):
        rewrite(page, {"three": "x"})


def test_the_command_draws_one_paper_and_leaves_the_page_when_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, threads = PAGE.read_bytes(), torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["papers", "le2015", "--reduced", "--out", str(tmp_path)])
    try:
        assert command.main() == 0
    finally:
        torch.set_num_threads(threads)
    assert "every row holds" in capsys.readouterr().out
    assert (tmp_path / "papers_le2015.png").stat().st_size > 5_000
    assert PAGE.read_bytes() == before
    monkeypatch.setattr(sys, "argv", ["papers", "glorot1910"])
    with pytest.raises(SystemExit):
        command.main()
    assert "NAME has glorot1910" in capsys.readouterr().err
