"""Every code block of the README runs, and what it prints is what stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradscope.cli import main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+−]?\d+)?")
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())


def _words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """The text without numbers and white space, and the numbers."""
    numbers = [float(n.replace("−", "-")) for n in NUMBER.findall(text)]
    return NUMBER.sub("#", text).split(), numbers


def _last_digit(number: str) -> float:
    """What one more in the last digit shown is: 0.01 for 1.23, 1e-7 for 2.09e-05."""
    digits, _, exponent = number.replace("−", "-").partition("e")
    return float(10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])))


def assert_same_output(shown: str, printed: str) -> None:
    """Words are equal; numbers within 2 %, or 2 in the last digit: kernels of another machine round otherwise."""
    shown_words, shown_numbers = _words_and_numbers(shown)
    words, numbers = _words_and_numbers(printed)
    assert words == shown_words
    digits = [_last_digit(number) for number in NUMBER.findall(shown)]
    for expected, found, digit in zip(shown_numbers, numbers, digits, strict=True):
        assert found == pytest.approx(expected, rel=0.02, abs=2 * digit), (expected, found)


@pytest.mark.parametrize(("shown", "printed"), [("2.09e-05", "2.30e-05"), ("−0.00", "0.03"), ("a 1", "b 1")])
def test_another_output_is_not_the_same(shown: str, printed: str) -> None:
    with pytest.raises(AssertionError):
        assert_same_output(shown, printed)


def _commands(block: str) -> list[tuple[str, str]]:
    """`$ command` lines, each with the output that follows it."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0].split("  #")[0].strip(), part.partition("\n")[2].strip("\n")) for part in parts]


def run_blocks(read_output: Callable[[], str]) -> Iterator[tuple[str, str, str]]:
    """Run the README from top to bottom: `(what ran, what the README shows, what it printed)`."""
    names: dict[str, object] = {"__name__": "readme"}
    for i, (language, code) in enumerate(BLOCKS):
        if language == "python":
            if match := re.match(r"# file: (\S+)\n", code):
                Path(match[1]).write_text(code)
            exec(compile(code, f"README.md, block {i}", "exec"), names)
            shown = BLOCKS[i + 1][1] if i + 1 < len(BLOCKS) and BLOCKS[i + 1][0] == "text" else ""
            yield code, shown, read_output()
        elif language == "console":
            for command, shown in _commands(code):
                if command.startswith("gradscope-report"):
                    assert main(shlex.split(command)[1:]) == 0, command
                    yield command, shown, read_output()


def test_every_block_runs_and_prints_what_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    compared = 0
    for _, shown, printed in run_blocks(lambda: capsys.readouterr().out):
        if shown:
            assert_same_output(shown, printed)
            compared += 1
    assert compared >= 5


COMMANDS = [pair for language, block in BLOCKS if language == "console" for pair in _commands(block)]


def test_the_two_scripts_of_the_readme_are_there_and_the_first_makes_pictures(tmp_path: Path) -> None:
    named = {command.split()[0] for command, _ in COMMANDS if command.startswith("scripts/")}
    assert {"scripts/report", "scripts/test"} <= named
    assert all(os.access(ROOT / name, os.X_OK) for name in named)
    small = ["sweep", "--init", "he_normal", "--activation", "relu", "--depth", "3", "--width", "8", "--seeds", "1"]
    done = subprocess.run([ROOT / "scripts" / "report", *small, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "overview.png").stat().st_size > 10_000


def test_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures
    assert all((ROOT / p).is_file() for p in pictures)
