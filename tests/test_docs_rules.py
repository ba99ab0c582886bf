"""The tables of docs/rules.md are made from the registry: `python -m tests.test_docs_rules` writes them anew."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from gradscope.diagnosis import RULES, Limits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "rules.md"


def cell(text: str) -> str:
    """A text in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def meanings() -> dict[str, str]:
    """Name of a limit → what its docstring says."""
    section = inspect.cleandoc(Limits.__doc__ or "").partition("Attributes:\n")[2]
    parts = re.split(r"^    (\w+): ", section, flags=re.MULTILINE)[1:]
    return {name: cell(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def tables() -> dict[str, str]:
    """Marker → table."""
    rules = ["| rule | what it finds | limit | needs | reference |", "| --- | --- | --- | --- | --- |"]
    for one in RULES.values():
        needs = ", ".join(f"`{signal}`" for signal in one.needs)
        rules.append(f"| `{one.name}` | {cell(one.about)} | {cell(one.limit)} | {needs} | {cell(one.reference)} |")
    limits = ["| limit | default | meaning |", "| --- | --- | --- |"]
    limits += [f"| `{one.name}` | {one.default:g} | {meanings()[one.name]} |" for one in fields(Limits)]
    return {"rules": "\n".join(rules), "limits": "\n".join(limits)}


def written(page: str) -> str:
    for marker, table in tables().items():
        start, end = page.index(f"<!-- {marker}: begin -->"), page.index(f"<!-- {marker}: end -->")
        page = page[: start + len(f"<!-- {marker}: begin -->")] + f"\n\n{table}\n\n" + page[end:]
    return page


def test_the_page_lists_every_rule_and_every_limit() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "python -m tests.test_docs_rules"


def test_every_rule_says_what_it_finds_and_where_its_limit_comes_from() -> None:
    lacking = [one.name for one in RULES.values() if not (one.about.strip() and one.limit.strip())]
    assert lacking == []
    assert set(meanings()) == {one.name for one in fields(Limits)}


def test_the_readme_leads_to_the_page() -> None:
    assert "(docs/rules.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
