"""The tables of docs/schemes.md are made from the registry: `python -m tests.test_docs_schemes` writes them anew."""

from __future__ import annotations

from pathlib import Path

from gradscope import init
from gradscope.init._model_schemes import MODEL_ALIASES, MODEL_SCHEMES

PAGE = Path(__file__).parents[1] / "docs" / "schemes.md"


def tables() -> dict[str, str]:
    """Marker → table."""
    single = ["| name | source |", "| --- | --- |"]
    single += [f"| `{name}` | {init.get_scheme(name).paper} |" for name in init.scheme_names()]
    whole = ["| name | class | what it does | source |", "| --- | --- | --- | --- |"]
    for name, kind in MODEL_SCHEMES.items():
        first = (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        also = [f"`{alias}`" for alias, meant in MODEL_ALIASES.items() if meant == name]
        names = ", ".join([f"`{name}`", *also])
        whole.append(f"| {names} | `{kind.__name__}` | {' '.join(first.split())} | {kind.paper} |")
    return {"schemes": "\n".join(single), "model schemes": "\n".join(whole)}


def written(page: str) -> str:
    for marker, table in tables().items():
        start, end = page.index(f"<!-- {marker}: begin -->"), page.index(f"<!-- {marker}: end -->")
        page = page[: start + len(f"<!-- {marker}: begin -->")] + f"\n\n{table}\n\n" + page[end:]
    return page


def test_the_page_lists_every_scheme_with_its_source() -> None:
    page = PAGE.read_text()
    assert written(page) == page, "python -m tests.test_docs_schemes"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
