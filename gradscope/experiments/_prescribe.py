"""`prescribe`: remedies for what is wrong with a model, each tried on a copy beside the original."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.diagnosis import Finding, Trial, Trials, diagnose
from gradscope.diagnosis._condition import Condition, condition_of
from gradscope.diagnosis._verdict import has_helped, ranked, room
from gradscope.experiments._patient import Batches, Course, Patient, train
from gradscope.experiments._prescribe_arguments import Given, check
from gradscope.experiments._probe import _gradients_set_aside
from gradscope.experiments._remedies import REMEDIES, WITH_A_RATE, Case, Remedy, candidates
from gradscope.init._untouched import untouched

Optimizer = torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer]

DEFAULT_RATE = 1e-3


def prescribe(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    optimizer: Optimizer | None = None,
    *,
    steps: int = 50,
    batches: Callable[[int], tuple[Any, Any]] | None = None,
    findings: Sequence[Finding] | None = None,
    remedies: Sequence[str] | None = None,
    seed: int = 0,
    most: int = 8,
    max_norm: float | None = None,
    scaler: Any = None,
    autocast: torch.dtype | None = None,
) -> Trials:
    """Diagnose a few steps of training, try the remedies for what is found, and show which of them help.

    A copy of the model is trained and recorded, and diagnosed. For each error and warning the remedies that are
    registered for it, the likeliest first, are applied each to a copy of its own, which is trained on the same batches
    from the same random state. Nothing of the model, its optimizer or the random state changes: `apply(trial, model)`
    of `gradscope.experiments` does what a trial did.

    The best of them that leaves the learning rate as it is is tried once more, with the rate that it asks for.

    A remedy has helped only if its finding is gone or clearly less, no new error came up, and the loss after the steps
    is lower by more than the noise of the steps. That none of them did is an answer too.

    Args:
        model: any module, in the mode that it is to train in.
        inputs: one batch: a tensor, a tuple (positional arguments) or a dict (keyword arguments).
        target: goes to the loss; None where there is none.
        loss_fn: the loss is `loss_fn(out, target)`, or `loss_fn(out)` without a target; None takes `out.loss`.
        optimizer: that of the model (a copy takes its settings, groups and states over), or a function that makes one
            of parameters; None is Adam with a rate of 0.001.
        steps: of training, in each trial.
        batches: step → (inputs, target), called once a step; None trains all steps on the one batch.
        findings: for which to prescribe; None takes the errors and warnings of those steps.
        remedies: names of those that may be tried; None takes all.
        seed: of the random state at the beginning of each training, and of the remedies' own numbers.
        most: trials, at most.
        max_norm: to which the training loop clips gradients; None does not.
        scaler: the `torch.amp.GradScaler` of the loop; copied.
        autocast: the type in which the loop runs the forward under `torch.autocast`.

    Returns:
        The trials, best first; empty where nothing was found.

    Raises:
        TypeError, ValueError: an argument is not as above; what the model or the loss raise on the model as it is.

    >>> layers = [layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    >>> x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    >>> trials = prescribe(nn.Sequential(*layers, nn.Linear(32, 1)), x, x[:, :1], nn.functional.mse_loss, steps=30)
    >>> trials.before.findings[0].rule, trials.best is not None
    ('vanishing-gradient', True)
    """
    given = Given(model, optimizer, steps, batches, findings, remedies, seed, most, loss_fn, max_norm)
    check(given)
    with untouched(model), _gradients_set_aside(model), torch.enable_grad():
        patient = _patient(given, scaler, autocast)
        data = [(inputs, target)] * steps if batches is None else [batches(step) for step in range(steps)]
        course, before = _run(patient.copied(), data, seed)
        wanted = before.findings if findings is None else tuple(findings)
        trials: list[Trial] = []
        for finding, remedy in _pairs(wanted, REMEDIES if remedies is None else remedies):
            if sum(one.after is not None for one in trials) >= most:
                break
            case = Case(patient, finding, course, data, seed)
            if (trial := _tried(remedy, case, before)) is not None:
                trials.append(trial)
        best = next((one for one in ranked(trials) if one.helped), None)
        if best is not None and (rates := REMEDIES[WITH_A_RATE]).name in (REMEDIES if remedies is None else remedies):
            case = Case(patient, next(one for one in wanted if one.rule == best.rule), course, data, seed, best)
            further = _tried(rates, case, before)
            if further is not None and further.helped and _is_better(further, best):
                trials.append(further)
        if course.recording is not None:
            course.recording.close()
    return Trials(before, steps, ranked([*trials, *_advice(wanted, trials, before)]))


def _patient(given: Given, scaler: Any, autocast: torch.dtype | None) -> Patient:
    """A copy of all, so that no remedy ever meets the model itself."""
    known = given.optimizer if isinstance(given.optimizer, torch.optim.Optimizer) else None
    patient = Patient(given.model, known, given.loss_fn, given.max_norm, scaler, autocast).copied()
    if known is None:
        trained = [p for p in patient.model.parameters() if p.requires_grad] or list(patient.model.parameters())
        make: Callable[[Any], Any] = given.optimizer or partial(torch.optim.Adam, lr=DEFAULT_RATE)
        patient.optimizer = make(trained)
        if not isinstance(patient.optimizer, torch.optim.Optimizer):
            kind = type(patient.optimizer).__name__
            raise TypeError(f"optimizer returned {kind}; a function that makes a torch.optim.Optimizer is allowed")
    return patient


def _run(patient: Patient, data: Batches, seed: int) -> tuple[Course, Condition]:
    course = train(patient, data, seed, record=True)
    assert course.recording is not None
    return course, condition_of(course.recording, diagnose(course.recording), course.losses)


def _pairs(findings: Sequence[Finding], allowed: Collection[str]) -> Iterator[tuple[Finding, Remedy]]:
    """Each remedy once: the likeliest of each finding, then the second of each, and so on."""
    met: set[str] = set()
    for row in zip_longest(*([(finding, one) for one in candidates(finding)] for finding in findings)):
        for pair in row:
            if pair is not None and pair[1].name in allowed and pair[1].name not in met:
                met.add(pair[1].name)
                yield pair


def _tried(remedy: Remedy, case: Case, before: Condition) -> Trial | None:
    """None where the remedy is none for this model; one that raises is told of, and disturbs no other."""
    try:
        change = remedy.function(case)
        if change is None:
            return None
        copied, do = case.patient.copied(), case.carried_out(change.do)
        do(copied)
        course, after = _run(copied, case.batches, case.seed)
        if course.recording is not None:
            course.recording.close()
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Trial(remedy.name, case.finding.rule, (), False, "", before, None, False, said)
    named = change.detail if remedy.name == WITH_A_RATE else f"{remedy.name}: {change.detail}"
    return Trial(
        named if change.detail else remedy.name,
        case.finding.rule,
        change.code,
        True,
        "",
        before,
        after,
        has_helped(case.finding, before, after),
        changes=change.changes,
        invasive=remedy.invasive,
        change=do,
    )


def _is_better(further: Trial, best: Trial) -> bool:
    """Whether its loss is lower by more than what counts as equally good."""
    if further.after is None or best.after is None:
        return False
    return further.after.last_loss < best.after.last_loss - room(best.after.first_loss, best.after.last_loss)


def _advice(findings: Sequence[Finding], trials: Sequence[Trial], before: Condition) -> Iterator[Trial]:
    """What a finding says itself, where nothing that was tried helped against it."""
    for finding in findings:
        if finding.remedy and not any(one.helped and one.rule == finding.rule for one in trials):
            yield Trial("advice", finding.rule, (), False, finding.remedy, before, None, False)
