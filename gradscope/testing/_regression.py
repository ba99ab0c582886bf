"""`GradientRegression`: the engine behind the fixture `gradient_regression`, for unittest and scripts as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from gradscope.diagnosis import Findings, Limits
from gradscope.recording import Comparison, Recording, Signal, Site
from gradscope.testing._baseline_file import BaselineError
from gradscope.testing._check import NotDeterministicError, check
from gradscope.testing._healthy import judged
from gradscope.testing._observe import MakesModel, MakesOptimizer, Subject, observed
from gradscope.testing._outcome import Outcome
from gradscope.testing._policy import Policy, in_ci
from gradscope.testing._propagates import judge_passage, judge_units
from gradscope.testing._scale import assert_scale

T = TypeVar("T")


class GradientRegression:
    """Keeps the gradients of a model as they were: checks against a baseline, and claims that need none.

    Everything is observed from a seed, on one thread and with deterministic algorithms; model, optimizer, random state,
    thread count and settings are as before afterwards.

    Args:
        path: of the baseline; of a further check of the same object `name-2`, `name-3`.
        test: a name that the baseline carries, so that no other test takes it for its own; the path's stem if empty.
        policy: what becomes of baselines; None writes a missing one and fails, except where `CI` is set.
        seed: from which everything starts.
        accept: the command that accepts what was obtained, for messages.
        told: called with each `Outcome`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        test: str = "",
        *,
        policy: Policy | None = None,
        seed: int = 0,
        accept: str = "",
        told: Callable[[Outcome], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.test = test or self.path.stem
        self.policy = Policy(may_write=not in_ci()) if policy is None else policy
        self.seed = seed
        self.accept = accept
        self.recording: Recording | None = None
        """What was observed last, by an assertion; `assert_scale` with a site looks there."""
        self._told = told
        self._names: list[str] = []

    def check(
        self,
        model: nn.Module | MakesModel,
        inputs: Any,
        target: Any = None,
        loss_fn: Callable[..., Tensor] | None = None,
        *,
        steps: int = 1,
        optimizer: Any | MakesOptimizer | None = None,
        rtol: float | None = None,
        seeds: int | None = None,
        name: str = "",
    ) -> Comparison | None:
        """Compare a model with its baseline: structure exactly, sizes within a tolerance.

        Args:
            model: a module, or a function without arguments that makes one (it is called from the seed).
            inputs, target, loss_fn: as `gradscope.probe` takes them.
            steps, optimizer: so many steps of training on the batch; without an optimizer one forward and one backward.
            rtol: relative tolerance of every size; None is the policy's, 1e-3.
            seeds: compare the medians of so many models, each from a seed of its own, within a band from theory: for
                changes that draw other random numbers. `model` is a function then.
            name: of a baseline of its own, for a test with several.

        Returns:
            The comparison; None where the baseline was written because it was asked for.

        Raises:
            AssertionError: something differs, two runs from one seed differ, or there is no baseline.
            BaselineError: the baseline cannot be used.
            TypeError, ValueError: an argument is not as above.
        """
        __tracebackhide__ = True
        path = self._path(name)
        subject = Subject(model, inputs, target, loss_fn, steps, optimizer)
        policy = self.policy if rtol is None else replace(self.policy, rtol=rtol)
        try:
            outcome = check(subject, path, self._test(path), policy, seed=self.seed, seeds=seeds, accept=self.accept)
        except Exception as error:
            self._tell(_unusable(error, self._test(path), path))
            raise
        self._tell(outcome)
        if not outcome.passed:
            raise AssertionError(outcome.message)
        return outcome.comparison

    def assert_healthy(
        self,
        model: nn.Module | MakesModel,
        inputs: Any,
        target: Any = None,
        loss_fn: Callable[..., Tensor] | None = None,
        *,
        steps: int = 1,
        optimizer: Any | MakesOptimizer | None = None,
        fail_on: str | None = None,
        limits: Limits | None = None,
    ) -> Findings:
        """As `gradscope.testing.assert_healthy`; `fail_on` None is the policy's."""
        __tracebackhide__ = True

        def claim() -> Findings:
            __tracebackhide__ = True
            recording = self._observe(Subject(model, inputs, target, loss_fn, steps, optimizer))
            return judged(recording, fail_on or self.policy.fail_on, limits)

        return self._claim(claim)

    def assert_signal_propagates(
        self,
        model: nn.Module | MakesModel,
        inputs: Any,
        max_decades: float = 2.0,
        *,
        target: Any = None,
        loss_fn: Callable[..., Tensor] | None = None,
    ) -> None:
        """As `gradscope.testing.assert_signal_propagates`."""
        __tracebackhide__ = True

        def claim() -> None:
            __tracebackhide__ = True
            judge_passage(self._observe(Subject(model, inputs, target, loss_fn)), max_decades)

        self._claim(claim)

    def assert_no_dead_units(
        self,
        model: nn.Module | MakesModel,
        inputs: Any,
        max_fraction: float = 0.0,
        *,
        target: Any = None,
        loss_fn: Callable[..., Tensor] | None = None,
    ) -> None:
        """As `gradscope.testing.assert_no_dead_units`."""
        __tracebackhide__ = True

        def claim() -> None:
            __tracebackhide__ = True
            judge_units(self._observe(Subject(model, inputs, target, loss_fn), functional=True), max_fraction)

        self._claim(claim)

    def assert_scale(
        self,
        module_or_site: nn.Module | str | Site,
        signal: Signal,
        expected: float,
        rtol: float = 0.1,
        *,
        inputs: Any = None,
        recording: Recording | None = None,
    ) -> None:
        """As `gradscope.testing.assert_scale`; a site without a recording is one of what was asserted last."""
        __tracebackhide__ = True
        where = self.recording if recording is None else recording
        self._claim(
            lambda: assert_scale(module_or_site, signal, expected, rtol, inputs=inputs, recording=where, seed=self.seed)
        )

    def _observe(self, subject: Subject, *, functional: bool = False) -> Recording:
        __tracebackhide__ = True
        self.recording = observed(subject, self.seed, functional=functional)
        return self.recording

    def _claim(self, claim: Callable[[], T]) -> T:
        __tracebackhide__ = True
        try:
            found = claim()
        except AssertionError as error:
            self._tell(Outcome("unhealthy", self.test, str(error), " ".join(str(error).split())))
            raise
        except Exception as error:
            self._tell(_unusable(error, self.test))
            raise
        self._tell(Outcome("healthy", self.test, "", "as asserted"))
        return found

    def _tell(self, outcome: Outcome) -> None:
        if self._told is not None:
            self._told(outcome)

    def _path(self, name: str) -> Path:
        """That of the next check; a name of its own may be used once."""
        if name and any(not (c.isalnum() or c in "-_.") for c in name):
            raise ValueError(f"name is {name!r}; letters, digits and -_. are allowed: it is part of a file's name")
        own = name or (str(len(self._names) + 1) if self._names else "")
        if own in self._names:
            raise ValueError(f"name is {name!r}, which another check of this test has: give each its own")
        self._names.append(own)
        return self.path.with_name(f"{self.path.stem}{f'-{own}' if own else ''}.json")

    def _test(self, path: Path) -> str:
        return f"{self.test}{path.stem.removeprefix(self.path.stem)}"


def _unusable(error: Exception, test: str, path: Path | None = None) -> Outcome:
    """A check that came to nothing: what it says itself, of an error from elsewhere its type and first line."""
    said = str(error).strip()
    if not isinstance(error, (NotDeterministicError, BaselineError, TypeError, ValueError)):
        said = f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__
    return Outcome("unusable", test, said, " ".join(said.split()), path)
