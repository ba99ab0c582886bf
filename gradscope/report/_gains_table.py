"""docs/gains.md, made from the code: `python -m gradscope.report._gains_table [FILE]` writes or prints it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gradscope.theory import GainRow, gain_table

_HEAD = """\
# Gains

What an activation f passes on of pre-activations z ~ N(0, 1), by quadrature to twelve digits
(`gradscope.theory.gain_table()`). This page is the code's output:
`python -m gradscope.report._gains_table docs/gains.md` writes it.

| column | meaning |
| --- | --- |
| forward | 1/√E[f²]: weights of variance gain²/fan_in keep the mean square of the signal at 1 |
| backward | 1/√E[f′²]: weights of variance gain²/fan_out keep the mean square of the gradient |
| torch | `torch.nn.init.calculate_gain`; – where it knows no such activation |
| χ | (forward/backward)²: factor of a gradient's mean square per layer under the forward gain, or behind LayerNorm |
| V′ | slope of the length map under the forward gain: above 1 a length leaves 1, below it comes back |
| BatchNorm | E[f′²]/Var f: factor of a gradient's mean square per layer behind BatchNorm |

"""
_COLUMNS = ("activation", "forward", "backward", "torch", "χ", "V′", "BatchNorm", "E[f]", "E[f²]", "E[f′²]")


def gains_markdown() -> str:
    """The page, with one row for each elementwise activation, by increasing forward gain."""
    rows = [_cells(row) for row in gain_table().rows]
    rule = ["---", *["---:"] * (len(_COLUMNS) - 1)]
    return _HEAD + "\n".join(f"| {' | '.join(cells)} |" for cells in (_COLUMNS, rule, *rows)) + "\n"


def _cells(row: GainRow) -> list[str]:
    torch = "–" if row.torch_gain is None else f"{row.torch_gain:.4f}"
    return [
        f"`{row.name}`",
        f"{row.forward_gain:.6f}",
        f"{row.backward_gain:.6f}",
        torch,
        f"{row.chi:.5f}",
        f"{row.length_slope:.5f}",
        f"{row.batch_norm_rate:.5f}",
        *(f"{0.0 if abs(one) < 1e-12 else one:.6f}" for one in (row.mean, row.second_moment, row.slope_moment)),
    ]


def main(arguments: Sequence[str]) -> None:
    """Write the page to the file named, or print it."""
    if arguments:
        Path(arguments[0]).write_text(gains_markdown(), encoding="utf-8")
    else:
        print(gains_markdown(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
