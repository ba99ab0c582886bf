"""`prescribe` disturbs nothing, claims nothing it has not seen, and `apply` does what a trial did."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from gradscope import prescribe
from gradscope.diagnosis import Condition, Finding, Trial, Trials
from gradscope.diagnosis._verdict import has_helped, ranked
from gradscope.experiments import apply
from gradscope.experiments._remedies import REMEDIES, Case, Change
from gradscope.experiments._remedies._registry import Remedy
from tests.faults._data import mixture

BATCHES = mixture(0)


def deep(depth: int = 12, *, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        layers += [nn.Linear(64 if i == 0 else 32, 32), *([nn.BatchNorm1d(32)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(32, 10))


def sick(model: nn.Module, optimizer: Any = None, **settings: Any) -> Trials:
    inputs, target = BATCHES(0)
    settings = {"batches": BATCHES, "steps": 20, "most": 3} | settings
    return prescribe(model, inputs, target, F.cross_entropy, optimizer, **settings)


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Everything that training could have changed."""
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    states = copy.deepcopy(optimizer.state_dict())
    rest = [[m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return [tensors, grads, states, rest, hooks]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_model_optimizer_gradients_buffers_modes_and_random_states_stay_to_the_bit() -> None:
    model = deep(norm=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(3):  # so that there are states, gradients and running statistics
        inputs, target = BATCHES(step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    before = bits(model, optimizer)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    data = [tuple(t.clone() for t in BATCHES(step)) for step in range(3)]
    sick(model, optimizer, batches=lambda step: data[step % 3], max_norm=1.0)
    assert same(bits(model, optimizer), before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert same(data, [tuple(BATCHES(step)) for step in range(3)])


def test_the_same_seed_gives_the_same_table_and_another_seed_another() -> None:
    first, second = (sick(deep()), sick(deep()))
    assert first.to_json() == second.to_json()
    assert first.to_json() != sick(deep(), seed=1).to_json()


def test_states_settings_and_groups_of_the_optimizer_are_those_of_the_trials() -> None:
    """A step with the model's own optimizer, state and all, gives the loss that prescribe shows for it."""
    model = deep(4)
    model[-2].p = 0.0
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": list(model[2:].parameters())}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    inputs, target = BATCHES(0)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), target)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    step()
    shown = sick(model, optimizer, batches=None, steps=10).before.losses
    assert shown == tuple(step() for _ in range(10))


def test_a_healthy_model_gets_no_trials_and_is_told_so() -> None:
    found = sick(deep(3), torch.optim.Adam(deep(3).parameters()).__class__, steps=30)
    assert (len(found), found.healthy, found.best, found.none_helped) == (0, True, None, False)
    assert "healthy" in str(found)


class Random(nn.Module):
    """Detached in the middle, which no remedy can mend."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(F.relu(self.below(x)).detach())


def test_where_none_can_help_nothing_is_claimed_and_the_advice_is_not_applied() -> None:
    torch.manual_seed(0)
    found = sick(Random(), most=8)
    assert found.none_helped
    assert not any(one.helped for one in found)
    (advice,) = found.advice
    assert (advice.applied, advice.after) == (False, None)
    assert advice.advice == found.before.findings[0].remedy
    with pytest.raises(ValueError, match="was not applied"):
        apply(advice, Random())


def test_labels_without_any_relation_to_the_inputs_are_not_learned_by_a_remedy() -> None:
    """Initial weights mend the gradient, and the loss shows that there was nothing to be won."""

    def noise(step: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(step)
        return torch.randn(64, 64, generator=source), torch.randint(10, (64,), generator=source)

    found = sick(deep(), batches=noise, most=5)
    assert found.before.findings
    assert found.none_helped, str(found)


@pytest.mark.parametrize("remedy", ["LSUV", "initialize by activation"])
def test_apply_gives_the_weights_of_the_trial_and_its_losses(remedy: str) -> None:
    trial = next(one for one in sick(deep(), remedies=[remedy]) if one.applied)
    assert trial.after is not None
    model, state = deep(), torch.get_rng_state()
    apply(trial, model)
    assert torch.equal(torch.get_rng_state(), state)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    losses = []
    for step in range(20):
        inputs, target = BATCHES(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert tuple(losses) == trial.after.losses


def test_the_code_of_a_trial_does_what_apply_does() -> None:
    trial = next(one for one in sick(deep()) if one.remedy.startswith("initialize"))
    applied, written = deep(), deep()
    apply(trial, applied)
    exec("\n".join(trial.code), {"gradscope": gradscope, "torch": torch, "model": written, "inputs": BATCHES(0)[0]})
    assert same([*applied.parameters()], [*written.parameters()])


def test_apply_changes_the_rate_of_the_optimizer_that_it_is_given_and_asks_for_it() -> None:
    model = deep(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    trial = next(one for one in sick(model, optimizer) if one.remedy.startswith("learning rate"))
    assert optimizer.param_groups[0]["lr"] == 1e-8
    with pytest.raises(ValueError, match=r"apply\(trial, model, optimizer\)"):
        apply(trial, model)
    apply(trial, model, optimizer)
    shown = float(trial.code[-1].rpartition("= ")[2])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(shown, rel=1e-12)


def test_what_changes_the_loop_is_not_applied_to_a_model() -> None:
    model = deep(3)
    found = sick(model, torch.optim.SGD(model.parameters(), lr=0.05), max_norm=1e-4, most=4)
    trial = next(one for one in found if one.changes == "loop")
    with pytest.raises(ValueError, match="training loop"):
        apply(trial, model)


def test_normalized_inputs_are_applied_as_a_hook_and_give_the_losses_of_the_trial() -> None:
    x, y = BATCHES(0)
    model = deep(3)
    found = prescribe(model, 500 * x + 90, y, F.cross_entropy, steps=20, most=2)
    trial = next(one for one in found if one.remedy == "normalized inputs")
    apply(trial, model)
    model.eval()
    mean, std = (500 * x + 90).mean(), (500 * x + 90).std(correction=0)
    expected = nn.Sequential(*model)((500 * x + 90 - mean) / std)
    torch.testing.assert_close(model(500 * x + 90), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def broken() -> Iterator[None]:
    """Two remedies that raise: one while it chooses, one while it does."""

    def choosing(case: Case) -> Change | None:
        raise RuntimeError("cannot choose")

    def doing(case: Case) -> Change | None:
        def do(patient: Any) -> None:
            raise RuntimeError("cannot do")

        return Change((), do)

    for name, function in (("choosing", choosing), ("doing", doing)):
        REMEDIES[name] = Remedy(name, function, ("vanishing-gradient",), ("a",), 0, -1)
    yield
    del REMEDIES["choosing"], REMEDIES["doing"]


@pytest.mark.usefixtures("broken")
def test_a_remedy_that_raises_is_told_of_and_disturbs_no_other() -> None:
    found = sick(deep(), most=2)
    errors = {one.remedy: one.error for one in found if one.error}
    assert errors == {"choosing": "RuntimeError: cannot choose", "doing": "RuntimeError: cannot do"}
    assert sum(one.after is not None for one in found) == 2
    assert "cannot choose" in str(found)


def test_an_error_of_the_model_as_it_is_is_the_callers() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prescribe(deep(), torch.ones(4, 3), torch.zeros(4, dtype=torch.long), F.cross_entropy)


def test_no_more_than_most_are_tried() -> None:
    assert sum(one.after is not None for one in sick(deep(), most=1)) == 1


def test_findings_that_do_not_show_in_these_steps_are_never_said_to_be_cured() -> None:
    given = [Finding("exploding-gradient", "error", "Seen elsewhere.")]
    found = sick(deep(), findings=given)
    assert len(found) > 0
    assert all(one.rule == "exploding-gradient" and not one.helped for one in found)


def test_as_json_and_as_html_the_trials_are_all_there() -> None:
    found = sick(deep())
    told = json.loads(found.to_json())
    assert [one["remedy"] for one in told["trials"]] == [one.remedy for one in found]
    assert found.best is not None
    assert told["best"] == found.best.remedy
    assert json.loads(json.dumps(told["trials"][0]["before"])) == told["before"]
    page = found._repr_html_()
    assert all(one.remedy in page for one in found if one.after is not None)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"steps": 3}, ValueError, "steps is 3; a whole number of at least 10"),
    ({"steps": 20.0}, TypeError, "steps is 20.0"),
    ({"most": 0}, ValueError, "most is 0"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"batches": [1]}, TypeError, "batches is of type list"),
    ({"max_norm": 0.0}, ValueError, "max_norm is 0.0"),
    ({"findings": ["vanishing-gradient"]}, TypeError, "findings has a str"),
    ({"remedies": ["learning rat"]}, ValueError, "remedies has 'learning rat'; did you mean 'learning rate'"),
    ({"optimizer": "adam"}, TypeError, "optimizer is of type str"),
    ({"optimizer": lambda parameters: None}, TypeError, "optimizer returned NoneType"),
    ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)}, ValueError, "holds no parameter"),
    ({"loss_fn": 3}, TypeError, "loss_fn is of type int"),
    ({"loss_fn": lambda out, target: out}, ValueError, r"loss_fn returned a tensor of shape \(64, 10\)"),
    ({"model": nn.ReLU()}, ValueError, "model has no parameters"),
    ({"model": nn.LazyLinear(3)}, ValueError, "without a shape"),
    ({"model": 3}, TypeError, "model is of type int"),
]


@pytest.mark.parametrize(("wrong", "kind", "said"), WRONG, ids=[said for _, _, said in WRONG])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_wrong_argument_is_named_in_a_sentence(wrong: dict[str, Any], kind: type[Exception], said: str) -> None:
    inputs, target = BATCHES(0)
    given = {"model": deep(3), "inputs": inputs, "target": target, "loss_fn": F.cross_entropy} | wrong
    with pytest.raises(kind, match=said):
        prescribe(**given)


def condition(losses: list[float], *found: Finding) -> Condition:
    return Condition(found, 0.0, 0.0, 0.0, None, 0.0, tuple(losses))


SLOW = Finding("vanishing-gradient", "error", "", value=-8.0, limit=-2.0)
FALLING = [2.0 - 0.05 * i for i in range(20)]


BETTER = [2.0 - 0.08 * i for i in range(20)]
FOLDED = Finding("input-scale", "warning", "", consequences=("vanishing-gradient at 1",))
LESS = Finding("vanishing-gradient", "warning", "", value=-2.5, limit=-2.0)


@pytest.mark.parametrize(
    ("after", "helped"),
    [
        (condition(BETTER), True),
        (condition(FALLING), False),  # the finding is gone, and the loss as before
        (condition(BETTER, SLOW), False),  # better, and as sick
        (condition([*FALLING[:-1], float("nan")]), False),
        (condition(BETTER, Finding("non-finite", "error", ""), SLOW), False),
        (condition(BETTER, FOLDED), False),  # still there, as what follows from another
        (condition(BETTER, LESS), True),
        (condition([1.0] * 20), False),  # lower from the start, and nothing learned
    ],
)
def test_helped_is_a_finding_that_is_less_and_a_loss_that_is_lower(after: Condition, helped: bool) -> None:
    assert has_helped(SLOW, condition(FALLING, SLOW), after) is helped


@pytest.mark.parametrize(("end", "helped"), [(0.1, True), (0.2, False), (2.0, False)])
def test_a_trained_model_that_an_update_ruins_is_helped_by_what_keeps_it_as_good(end: float, helped: bool) -> None:
    ruined = condition([0.11, 3.0, *[2.6, 2.7] * 9], SLOW)
    assert has_helped(SLOW, ruined, condition([0.11] * 14 + [end] * 6)) is helped


def test_a_loss_lower_by_less_than_the_noise_is_no_help() -> None:
    source = np.random.default_rng(0)
    noisy = [2.0 + float(v) for v in source.normal(0, 0.3, 40)]
    before = condition(noisy, SLOW)
    assert before.noise > 0.1
    assert not has_helped(SLOW, before, condition([v - 0.05 for v in noisy]))


def test_of_equally_good_remedies_the_least_invasive_comes_first() -> None:
    before = condition(FALLING, SLOW)

    def trial(name: str, end: float, invasive: int, helped: bool = True) -> Trial:
        after = condition([2.0] * 14 + [end] * 6)
        return Trial(name, SLOW.rule, (), True, "", before, after, helped, invasive=invasive)

    found = ranked(
        [trial("modules", 0.50, 2), trial("weights", 0.52, 1), trial("worse", 1.0, 0), trial("not", 0.1, 0, False)]
    )
    assert [one.remedy for one in found] == ["weights", "modules", "worse", "not"]


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_an_optimizer_may_be_a_function_of_parameters(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    assert len(sick(deep(3), make).before.losses) == 20
