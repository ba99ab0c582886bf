"""The file of a baseline: small JSON, one line for each site, that reads well in a review.

Sections are in the order of their names; within one, sites are in order of execution, so that a section is a profile.
Sizes are log10 of the rms with six digits behind the point, 2·10⁻⁶ relative; `"-inf"` is zero and null what is not
finite. With one step a size is a number, with several a list.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from gradscope.recording import SIGNALS, Baseline, Place
from gradscope.recording._baseline import Array, Compared, Spreads
from gradscope.recording._gradient_states import GradientState

SCHEMA = 1
KIND = "gradscope baseline"
_DIGITS = 6
_OF_THE_MODEL: tuple[Compared, ...] = ("gradient norm", "loss")
_CONFLICT = "<<<<<<< "


class BaselineError(Exception):
    """A baseline cannot be used: missing, damaged, of another schema or test. One sentence says which."""

    __module__ = "gradscope.testing"  # where it is imported from, for pytest's summary


def shown(path: Path) -> str:
    """A path as messages have it: relative where it lies below the current directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def save_baseline(baseline: Baseline, path: Path, test: str = "") -> None:
    """Write it; a reader of the path sees the old file or the new one, never half of one.

    Raises:
        BaselineError: the path cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(baseline_text(baseline, test), encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        raise BaselineError(f"baseline {shown(path)} cannot be written: {error.strerror}") from None
    finally:
        if partial.exists():
            partial.unlink()


def baseline_text(baseline: Baseline, test: str = "") -> str:
    """The file's text; the same baseline gives the same text."""
    document: dict[str, Any] = {
        "facts": dict(sorted(baseline.facts.items())),
        "gradient_norm": _numbers(baseline.gradient_norm),
        "gradients": dict(baseline.gradients),
        "kind": KIND,
        "loss": [_number(value, significant=True) for value in baseline.loss.tolist()],
        "places": [[p.name, p.module_type, p.dtype, list(p.shape)] for p in baseline.places],
        "schema": SCHEMA,
        "steps": baseline.steps.tolist(),
        "test": test,
    }
    for signal, sizes in baseline.sizes.items():
        document[f"sizes.{signal}"] = _sites(sizes)
    for what, spread in baseline.spread.items():
        document[f"spread.{what}"] = _sites(spread)
    body = ",\n".join(f'"{key}": {_section(document[key])}' for key in sorted(document))
    return f"{{\n{body}\n}}\n"


def load_baseline(path: Path, test: str = "") -> Baseline:
    """The baseline at a path.

    Args:
        path: of the file.
        test: for which it has to be; empty for any.

    Raises:
        BaselineError: it is missing, damaged, of another schema, or for another test.
    """
    __tracebackhide__ = True
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except FileNotFoundError:
        raise BaselineError(f"baseline {shown(path)} does not exist") from None
    except OSError as error:
        raise BaselineError(f"baseline {shown(path)} cannot be read: {error.strerror}") from None
    except ValueError:  # no JSON, or no UTF-8
        what = "it has git's marks of a conflict" if _CONFLICT in text else "it is no JSON"
        raise BaselineError(f"baseline {shown(path)} is damaged: {what}; restore it or rewrite it") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise BaselineError(f"{shown(path)} is no baseline: it has no kind {KIND!r}")
    if document.get("schema") != SCHEMA:
        raise BaselineError(
            f"baseline {shown(path)} has schema {document.get('schema')!r}, and this version reads {SCHEMA}: rewrite it"
        )
    if test and document.get("test") != test:
        raise BaselineError(
            f"baseline {shown(path)} is for another test, {document.get('test')!r}, and not for {test!r}"
        )
    try:
        return _baseline(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        said = "a part is missing or is not what it should be; restore it or rewrite it"
        raise BaselineError(f"baseline {shown(path)} is damaged: {said}") from None


def _baseline(document: Mapping[str, Any]) -> Baseline:
    steps = np.array(document["steps"], dtype=np.int64)
    count = len(steps)
    if steps.ndim != 1 or not count or (np.diff(steps) <= 0).any():
        raise ValueError("no steps, or not in order")
    facts, gradients = dict(document["facts"]), dict(document["gradients"])
    if any(state not in get_args(GradientState) for state in gradients.values()):
        raise ValueError("no such state of a gradient")
    if "seeds" in facts and (type(facts["seeds"]) is not int or facts["seeds"] < 2):
        raise ValueError("no number of seeds")
    return Baseline(
        facts=facts,
        places=tuple(Place(str(n), str(t), str(d), tuple(map(int, s))) for n, t, d, s in document["places"]),
        gradients=gradients,
        steps=steps,
        sizes={s: of for s in SIGNALS if (of := _read(document, f"sizes.{s}", count)) is not None},
        gradient_norm=_array(document["gradient_norm"], count),
        loss=_array(document["loss"], count),
        spread=_spreads(document, count) if "seeds" in facts else {},
    )


def _spreads(document: Mapping[str, Any], count: int) -> Spreads:
    """Of each size one."""
    found: dict[Compared, dict[str, Array]] = {}
    for what in (*SIGNALS, *_OF_THE_MODEL):
        of = _read(document, f"spread.{what}", count)
        sizes = document.get(f"sizes.{what}") if what in SIGNALS else {"": None}
        if (of or {}).keys() != (sizes or {}).keys():
            raise ValueError("not a spread of each size")
        if of is not None:
            found[what] = of
    return found


def _read(document: Mapping[str, Any], key: str, count: int) -> dict[str, Array] | None:
    of = document.get(key)
    return None if of is None else {site: _array(values, count) for site, values in of.items()}


def _array(values: Any, count: int) -> Array:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))  # None becomes NaN, "-inf" minus infinity
    if array.shape != (count,):
        raise ValueError("not one number a step")
    return array


def _sites(sizes: Mapping[str, Array]) -> dict[str, Any]:
    return {site: _entry(values) for site, values in sizes.items()}


def _entry(values: Array) -> Any:
    numbers = _numbers(values)
    return numbers[0] if len(numbers) == 1 else numbers


def _numbers(values: Array) -> list[Any]:
    return [_number(value) for value in values.tolist()]


def _number(value: float, *, significant: bool = False) -> Any:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return str(value)
    return float(f"{value:.9g}") if significant else round(value, _DIGITS) + 0.0  # and no −0.0


def _section(value: Any) -> str:
    """A value on one line, an object or a list of lists with one line an entry."""
    if isinstance(value, dict) and value:
        lines = [f" {_inline(key)}: {_inline(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f" {_inline(item)}" for item in value) + "\n]"
    return _inline(value)


def _inline(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
