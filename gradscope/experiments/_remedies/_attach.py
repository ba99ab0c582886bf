"""Parameters that nothing trains: frozen by mistake, or not given to the optimizer; a last layer that is too sure."""

from __future__ import annotations

import torch

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._first_loss import first_loss
from gradscope.diagnosis._limits import Limits
from gradscope.experiments._patient import Patient
from gradscope.experiments._remedies._registry import Case, Change, remedy


@remedy("unfreeze", rules=("no-gradient",), causes=("frozen",))
def unfreeze(case: Case) -> Change | None:
    """Gradients on for the frozen parameters of the finding, and these given to the optimizer."""
    names = _named(case, lambda parameter: not parameter.requires_grad)
    if not names or not any("frozen" in cause for cause in case.finding.causes):
        return None

    def do(patient: Patient) -> None:
        for name in names:
            patient.model.get_parameter(name).requires_grad_(True)
        attach(patient, names)

    code = ("for name in " + repr(names) + ":", "    model.get_parameter(name).requires_grad_(True)")
    return Change((*code, *_attached(case.patient, names)), do, "optimizer")


@remedy("give to the optimizer", rules=("no-gradient", "update-too-small"), causes=("optimizer",))
def give(case: Case) -> Change | None:
    """All trained parameters that no group of the optimizer holds, given to it."""
    held = _held(case.patient)
    names = [n for n, p in case.patient.model.named_parameters() if p.requires_grad and id(p) not in held]
    if not names or case.patient.optimizer is None:
        return None
    return Change(_attached(case.patient, names), lambda patient: attach(patient, names), "optimizer")


def _named(case: Case, chosen: object) -> list[str]:
    wanted = set(case.finding.sites)
    parameters = case.patient.model.named_parameters()
    return [n for n, p in parameters if n in wanted and callable(chosen) and chosen(p)]


def _held(patient: Patient) -> set[int]:
    groups = patient.optimizer.param_groups if patient.optimizer is not None else []
    return {id(p) for group in groups for p in group["params"]}


def attach(patient: Patient, names: list[str]) -> None:
    """Add those that the optimizer does not hold, as a group with its first group's settings."""
    if patient.optimizer is None:
        return
    held = _held(patient)
    missing = [patient.model.get_parameter(n) for n in names if id(patient.model.get_parameter(n)) not in held]
    if missing:
        first = {k: v for k, v in patient.optimizer.param_groups[0].items() if k not in ("params", "param_names")}
        patient.optimizer.add_param_group({**first, "params": missing})


def _attached(patient: Patient, names: list[str]) -> tuple[str, ...]:
    held = _held(patient)
    missing = [n for n in names if id(patient.model.get_parameter(n)) not in held]
    if not missing:
        return ()
    return (
        "settings = {k: v for k, v in optimizer.param_groups[0].items() if k not in ('params', 'param_names')}",
        f"missing = [model.get_parameter(name) for name in {missing!r}]",
        "optimizer.add_param_group({**settings, 'params': missing})",
    )


@remedy("smaller last layer", rules=("output-pairing", "update-too-large", "exploding-activation"),
        causes=("logits", "begins"), invasive=1)  # fmt: skip
def smaller_last_layer(case: Case) -> Change | None:
    """The last layer's weights divided so that the first logits have an rms of a tenth."""
    if case.course.recording is None:
        return None
    found = first_loss(Evidence(case.course.recording, Limits()))
    if found is None or found.classes is None or not found.size > 0:
        return None
    module, size = found.last.module, found.size * 10
    layer = case.patient.model.get_submodule(module)
    names = [f"{module}.{n}".lstrip(".") for n, _ in layer.named_parameters(recurse=False)]
    if not names:
        return None

    def do(patient: Patient) -> None:
        with torch.no_grad():
            for name in names:
                patient.model.get_parameter(name).div_(size)

    lines = (
        "with torch.no_grad():",
        f"    for name in {names!r}:",
        f"        model.get_parameter(name).div_({size:.6g})",
    )
    return Change(lines, do)
