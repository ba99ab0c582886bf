"""The remedies: each a function that looks at a case and says what to change, registered under its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gradscope.diagnosis import Finding, Trial
from gradscope.experiments._patient import Batches, Course, Patient, seeded, train

Changes = Literal["model", "optimizer", "loop"]


@dataclass(frozen=True)
class Change:
    """What a remedy does.

    Attributes:
        code: the lines that do it, in terms of `model`, `optimizer`, `inputs`, `loss`.
        do: does it to a patient; the same to each.
        changes: which part.
        detail: of its settings, for its name.
    """

    code: tuple[str, ...]
    do: Callable[[Patient], None]
    changes: Changes = "model"
    detail: str = ""


@dataclass(frozen=True)
class Case:
    """What a remedy is chosen by.

    Attributes:
        patient: as it is; nothing of it may be changed.
        finding: for which a remedy is sought.
        course: how it trained, recorded.
        batches: of the training.
        seed: of all random numbers.
        best: the trial so far that is to be refined; None where a remedy of its own is sought.
    """

    patient: Patient
    finding: Finding
    course: Course
    batches: Batches
    seed: int
    best: Trial | None = None

    @property
    def inputs(self) -> object:
        """Of the first batch."""
        return self.batches[0][0]

    def generator(self) -> torch.Generator:
        """Draws the same numbers each time, on the model's device."""
        device = next((p.device for p in self.patient.model.parameters()), torch.device("cpu"))
        return torch.Generator(device).manual_seed(self.seed)

    def carried_out(self, do: Callable[[Patient], None]) -> Callable[[Patient], None]:
        """The same from the case's random state, so that it does the same each time: a model may drop out."""

        def again(patient: Patient) -> None:
            with seeded(patient.model, self.seed):
                do(patient)

        return again

    def tried(self, do: Callable[[Patient], None], steps: int | None = None) -> Course:
        """A copy so changed, trained without a recording."""
        copied = self.patient.copied()
        self.carried_out(do)(copied)
        return train(copied, self.batches[:steps], self.seed)


Function = Callable[[Case], Change | None]


@dataclass(frozen=True)
class Remedy:
    """A change that can be applied to a copy of the model, run, and shown to help or not.

    Attributes:
        name: of it.
        function: says what to change; None where the case is not one for it.
        rules: of the findings that it is for.
        causes: words in a finding's causes, explanation or consequences by which it is the likelier.
        invasive: how much of the model's own it takes away: 0 rates and data, 1 first weights, 2 modules.
        order: of registration.
    """

    name: str
    function: Function
    rules: tuple[str, ...]
    causes: tuple[str, ...]
    invasive: int
    order: int

    @property
    def about(self) -> str:
        """What it does: the first line of its function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]


REMEDIES: dict[str, Remedy] = {}
"""Name → remedy, in the order in which equally likely ones are tried."""


def remedy(
    name: str, *, rules: Sequence[str], causes: Sequence[str] = (), invasive: int = 0
) -> Callable[[Function], Function]:
    """Register the decorated function of a case."""

    def register(function: Function) -> Function:
        REMEDIES[name] = Remedy(name, function, tuple(rules), tuple(causes), invasive, len(REMEDIES))
        return function

    return register


def candidates(finding: Finding) -> list[Remedy]:
    """Those for a finding, those for its likeliest cause first; then those for what was folded into it."""
    folded = {one.partition(" at ")[0].partition(",")[0] for one in finding.consequences}
    said = [*finding.causes, finding.explanation, finding.remedy, *finding.consequences]

    def key(one: Remedy) -> tuple[float, ...]:
        places = [i for i, text in enumerate(said) for word in one.causes if word in text]
        return (0 if finding.rule in one.rules else 1, min(places, default=math.inf), one.order)

    return sorted((one for one in REMEDIES.values() if {finding.rule, *folded} & {*one.rules}), key=key)
