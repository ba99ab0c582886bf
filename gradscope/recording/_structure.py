"""What two models differ in besides sizes: sites added, removed, renamed, reordered, of another type or shape."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gradscope.recording._baseline import Place

ChangeKind = Literal["added", "removed", "renamed", "reordered", "changed", "gradient"]


@dataclass(frozen=True)
class Change:
    """One difference of structure.

    Attributes:
        kind: what became of the site; `gradient` where a parameter's gradient came or went.
        site: its name, the old one of a renamed site.
        text: it in words.
    """

    kind: ChangeKind
    site: str
    text: str

    def __str__(self) -> str:
        return self.text


def structure_changes(before: Sequence[Place], after: Sequence[Place]) -> list[Change]:
    """Which sites of modules came, went, moved, or are something else, in order of execution."""
    old, new = {p.name: p for p in before}, {p.name: p for p in after}
    renamed = renamed_sites(before, after)
    changes: list[Change] = []
    for place in before:
        if place.name in renamed:
            changes.append(_change("renamed", place.name, f"{place.name} is now named {renamed[place.name]}"))
        elif place.name not in new:
            changes.append(_change("removed", place.name, f"{place.name} ({place.module_type}) was removed"))
    given = set(renamed.values())
    changes += [
        _change("added", place.name, f"{place.name} ({place.module_type}) was added")
        for place in after
        if place.name not in old and place.name not in given
    ]
    changes += _moved([p.name for p in before if p.name in new], [p.name for p in after if p.name in old])
    for name in (p.name for p in before if p.name in new):
        changes += _other(old[name], new[name])
    return changes


def gradient_changes(
    before: Mapping[str, str], after: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> list[Change]:
    """Which parameters came or went, and which gained or lost their gradient; `renamed` modules took theirs along."""
    changes = []
    before = {_moved_along(name, renamed or {}, after): state for name, state in before.items()}
    for name, state in before.items():
        now = after.get(name)
        if now is None:
            changes.append(_change("removed", name, f"parameter {name} was removed"))
        elif now != state:
            changes.append(_change("gradient", name, f"the gradient of {name} {_SAID[state]}, and now {_NOW[now]}"))
    changes += [
        _change("added", name, f"parameter {name} was added ({state})")
        for name, state in after.items()
        if name not in before
    ]
    return changes


_SAID = {"flows": "was there", "zero": "was zero", "unused": "did not arrive", "frozen": "was not asked for (frozen)"}
_NOW = {"flows": "is there", "zero": "is zero", "unused": "does not arrive", "frozen": "is not asked for (frozen)"}


def _change(kind: ChangeKind, site: str, text: str) -> Change:
    return Change(kind, site, text)


def _moved_along(parameter: str, renamed: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The name that a parameter has now, if its module has another and has the parameter still."""
    module, _, own = parameter.rpartition(".")
    now = f"{renamed[module]}.{own}" if module in renamed else parameter
    return now if now in after else parameter


def renamed_sites(before: Sequence[Place], after: Sequence[Place]) -> dict[str, str]:
    """Old name → new name of sites that stand at the same place between the same neighbours and are the same thing."""
    old, new = {p.name for p in before}, {p.name for p in after}
    left, right = ([_identity(p) for p in places] for places in (before, after))
    matcher = difflib.SequenceMatcher(a=left, b=right, autojunk=False)
    found = {}
    for i, j, size in matcher.get_matching_blocks():
        for k in range(size):
            a, b = before[i + k], after[j + k]
            if a.name != b.name and a.name not in new and b.name not in old:
                found[a.name] = b.name
    return found


def _identity(place: Place) -> tuple[str, str, tuple[int, ...]]:
    return place.module_type, place.dtype, place.shape


def _moved(before: list[str], after: list[str]) -> list[Change]:
    """The fewest common sites that have to move for one order to become the other."""
    if before == after:
        return []
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    stayed = {before[i + k] for i, _, size in matcher.get_matching_blocks() for k in range(size)}
    position = {name: i for i, name in enumerate(after)}
    return [
        _change("reordered", name, f"{name} now runs {_after(after, position[name])}")
        for name in before
        if name not in stayed
    ]


def _after(order: list[str], at: int) -> str:
    return f"after {order[at - 1]}" if at else "first"


def _other(old: Place, new: Place) -> list[Change]:
    pairs = [
        (old.module_type, new.module_type, ""),
        (old.dtype, new.dtype, ""),
        (str(old.shape), str(new.shape), "of shape "),
    ]
    said = [(f"{what}{a}", f"{what}{b}") for a, b, what in pairs if a != b]
    if not said:
        return []
    was, now = (", ".join(part) for part in zip(*said, strict=True))
    return [_change("changed", old.name, f"{old.name} was {was}, and is now {now}")]
