"""The check of a model against its baseline: run it twice, compare, and say what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradscope.diagnosis import summary
from gradscope.recording import Baseline, Comparison, baseline_of, compare
from gradscope.recording._compare import seeds_of
from gradscope.recording._comparison import said
from gradscope.testing._baseline_file import BaselineError, load_baseline, save_baseline, shown
from gradscope.testing._observe import Subject, observed
from gradscope.testing._outcome import Outcome
from gradscope.testing._policy import Policy
from gradscope.testing._seeds import bands_of, observed_over_seeds

_REPEAT = 0.1
"""Two runs of one seed may differ by this part of the tolerance: then a test cannot fail for it."""


class NotDeterministicError(AssertionError):
    """Two runs from one seed differ, so that no baseline can be kept."""

    __module__ = "gradscope.testing"  # where it is imported from, for pytest's summary


def check(
    subject: Subject,
    path: Path,
    test: str,
    policy: Policy,
    *,
    seed: int = 0,
    seeds: int | None = None,
    accept: str = "",
) -> Outcome:
    """Observe a model and compare it with its baseline.

    Args:
        subject: what is observed.
        path: of the baseline.
        test: its name, which the baseline carries.
        policy: what becomes of baselines.
        seed: from which everything starts.
        seeds: so many models are made instead, from as many seeds, and their medians compared.
        accept: the command that accepts what was obtained.

    Raises:
        NotDeterministicError: two runs from the seed differ.
        BaselineError: the baseline cannot be used.
    """
    __tracebackhide__ = True
    recording = observed(subject, seed)
    once = baseline_of(recording)
    _same_again(once, baseline_of(observed(subject, seed)), policy.rtol, subject)
    bands = None
    if seeds is None:
        obtained = once
    else:
        obtained = observed_over_seeds(subject, seeds)
    kept = path.with_suffix(".obtained.json")
    finding = str(summary(recording))
    told: dict[str, Any] = {"test": test, "path": path, "obtained": obtained, "finding": finding}
    if policy.update or (not path.exists() and policy.update_new):
        save_baseline(obtained, path, test)
        kept.unlink(missing_ok=True)
        return Outcome(
            "updated", message=f"baseline {shown(path)} written", headline=f"baseline {shown(path)} written", **told
        )
    if not path.exists():
        return _missing(obtained, path, test, policy, accept, finding)
    expected = load_baseline(path, test)
    _usable(expected, obtained, path)
    if seeds is not None:
        bands = bands_of(expected, obtained, recording, policy.rtol)
    found = compare(expected, obtained, policy.rtol, bands=bands)
    told |= {"comparison": found, "expected": expected, "bands": bands}
    if found.same:
        kept.unlink(missing_ok=True)
        return Outcome("same", message=str(found), headline=found.headline, **told)
    where = ""
    if policy.keep_obtained:
        try:
            save_baseline(obtained, kept, test)
            where = f"obtained: {shown(kept)}"
        except BaselineError as error:
            where = f"obtained: not kept, {error}"
    lines = [
        f"{test} is not as its baseline {shown(path)} says",
        str(found),
        f"diagnosis now: {finding}",
        hint(found, subject),
    ]
    lines += [where, f"to accept: {accept}" if accept else ""]
    message = "\n".join(line for line in lines if line)
    return Outcome("different", message=message, headline=found.headline, **told)


def _missing(obtained: Baseline, path: Path, test: str, policy: Policy, accept: str, finding: str) -> Outcome:
    if policy.may_write:
        save_baseline(obtained, path, test)
        said = f"baseline {shown(path)} was missing and has been written: look at it, commit it, and run again"
    else:
        said = f"baseline {shown(path)} is missing" + (f": {accept} writes it" if accept else "")
    status = "written" if policy.may_write else "missing"
    return Outcome(status, test, said, said, path, obtained=obtained, finding=finding)  # type: ignore[arg-type]


def _same_again(once: Baseline, again: Baseline, rtol: float, subject: Subject) -> None:
    __tracebackhide__ = True
    found = compare(once, again, rtol * _REPEAT)
    if found.same:
        return
    what = (
        found.changes[0].text
        if found.first is None
        else (f"{found.first.place} is first {said(found.first.expected)}, then {said(found.first.obtained)}")
    )
    made = "makes the model" if subject.is_factory else "runs"
    raise NotDeterministicError(
        f"the model is not deterministic, so it can have no baseline: in two runs from one seed {what}; draw from"
        f" torch's, numpy's or Python's global generator, which are seeded before it {made}, or give a generator of"
        " your own a seed there"
    )


def _usable(expected: Baseline, obtained: Baseline, path: Path) -> None:
    __tracebackhide__ = True
    was, now = (str(one.facts.get("device", "cpu")) for one in (expected, obtained))
    if was.startswith("cuda") and not now.startswith("cuda"):
        raise BaselineError(
            f"baseline {shown(path)} was made on {was} and this run is on {now}: run it there, or keep another baseline"
            " for this device under a name of its own (name=...)"
        )
    a, b = (one.facts.get("seeds") for one in (expected, obtained))
    if a != b:
        raise BaselineError(
            f"baseline {shown(path)} is of {seeds_of(expected)} and this run is of {seeds_of(obtained)}: rewrite the"
            " baseline"
        )
    if not np.array_equal(expected.steps, obtained.steps):
        a, b = len(expected.steps), len(obtained.steps)
        what = f"{a} step{'s' if a > 1 else ''}, and this run has {b}" if a != b else "other steps than this run"
        raise BaselineError(f"baseline {shown(path)} has {what}: rewrite the baseline")


def hint(found: Comparison, subject: Subject) -> str:
    """What is likelier than a fault, where it looks like it."""
    if found.first is None or found.first.since > 0:
        return ""
    if found.first.site.startswith("<input>"):
        return "the inputs themselves differ: make them inside the test, or from a seed of their own"
    if found.first.signal == "weight" and not subject.is_factory and not found.changes:
        return (
            "the weights differ from the start: if the model was made before the fixture, or from another seed, make it"
            " inside the test or give the function that makes it"
        )
    return ""
