"""Runs the code of docs/questions.md: `python -m tests.questions` writes what each block prints anew."""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "questions.md"
_SECTION = re.compile(
    r"^## (?P<question>.+?)\n.*?^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Answer:
    """What running the code of a question gave: its names, and what it printed."""

    names: dict[str, Any]
    printed: str

    def __getattr__(self, name: str) -> Any:
        return self.names[name]


def sections() -> dict[str, tuple[str, str]]:
    """Question → its code, and what the page shows below."""
    found = _SECTION.finditer(PAGE.read_text(encoding="utf-8"))
    return {one["question"]: (one["code"], one["shown"] or "") for one in found}


def lacking(code: str) -> list[str]:
    """Packages that the code says it needs and that are not installed."""
    needs = re.match(r"# needs: (.+)\n", code)
    names = needs[1].split(", ") if needs else []
    return [name for name in names if importlib.util.find_spec(name) is None]


@cache
def answer(question: str) -> Answer:
    """Run the code of a question, in names of its own; once in a process."""
    code, _ = sections()[question]
    if missing := lacking(code):
        pytest.skip(f"{', '.join(missing)} is not installed: pip install accelerate transformers")
    names: dict[str, Any] = {"__name__": "question"}
    out = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(out):
        warnings.simplefilter("ignore")  # a scope that is asked to warns, and other packages do unasked
        exec(compile(code, f"docs/questions.md, {question}", "exec"), names)
    return Answer(names, out.getvalue())


def written(page: str) -> str:
    """The page with what each block prints now; a block whose packages are missing stays as it is."""

    def one(section: re.Match[str]) -> str:
        if lacking(section["code"]):
            return section[0]
        before = section[0][: section.end("code") - section.start()]
        return f"{before}```\n\n```text\n{answer(section['question']).printed}```\n"

    return _SECTION.sub(one, page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
