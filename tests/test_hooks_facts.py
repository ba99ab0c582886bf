"""What the recorder says of the run beside its moments: the optimizers, the learning rate, what the loss is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradscope import GradScope, probe
from gradscope.recording import Recording


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def train(scope: GradScope, *optimizers: torch.optim.Optimizer, steps: int = 1, after: Any = None) -> None:
    for _ in range(steps):
        scope(torch.randn(8, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if after is not None:
            after.step()


# -- optimizers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_an_optimizer_is_told_with_its_groups_and_which_parameters_they_hold(given: bool) -> None:
    net = small()
    groups = [{"params": net[0].parameters(), "lr": 0.5}, {"params": [net[2].weight], "weight_decay": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.25, momentum=0.9)
    with GradScope(net, optimizer if given else None, every=1) as scope:
        train(scope, optimizer, steps=3)
    (fact,) = scope.recording.facts["optimizers"]
    assert fact["class"] == "SGD"
    assert fact["groups"] == [
        {"lr": 0.5, "weight_decay": 0, "momentum": 0.9, "parameters": ["0.weight", "0.bias"]},
        {"lr": 0.25, "weight_decay": 0.1, "momentum": 0.9, "parameters": ["2.weight"]},
    ]
    held = {name for group in fact["groups"] for name in group["parameters"]}
    trained = {site.name for site in scope.recording.sites_of("weight") if site.trainable}
    assert trained - held == {"2.bias"}  # requires a gradient, and no optimizer has it


def test_adam_has_betas_and_eps_and_several_optimizers_are_told_in_the_order_in_which_they_step() -> None:
    net = small()
    first = torch.optim.Adam(net[2].parameters(), lr=0.1, betas=(0.5, 0.9), eps=1e-6)
    second = torch.optim.SGD(net[0].parameters(), lr=0.2)
    with GradScope(net, [second, first], every=1) as scope:
        train(scope, first, second, steps=2)
    facts = scope.recording.facts["optimizers"]
    assert [fact["class"] for fact in facts] == ["Adam", "SGD"]
    (group,) = facts[0]["groups"]
    assert (group["betas"], group["eps"], group["lr"]) == ([0.5, 0.9], 1e-6, 0.1)
    assert "momentum" not in group


def test_an_optimizer_that_holds_more_later_is_told_anew_and_a_schedule_is_not() -> None:
    net = small()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with GradScope(net, every=1) as scope:
        train(scope, optimizer, steps=3, after=schedule)
        told = scope.recording.facts["optimizers"]
        assert told[0]["groups"][0]["lr"] == 1.0
        optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.0})
        train(scope, optimizer, steps=2)
    assert [len(fact["groups"]) for fact in scope.recording.facts["optimizers"]] == [2]
    assert scope.recording.facts["optimizers"][0]["groups"][1]["parameters"] == ["2.weight", "2.bias"]


def test_another_model_s_optimizer_is_passed_by_and_parameters_elsewhere_have_no_name() -> None:
    net, other = small(), small()
    both = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)
    theirs = torch.optim.Adam(other.parameters())
    with GradScope(net, every=1) as scope:
        for _ in range(2):
            (scope(torch.randn(8, 4)) + other(torch.randn(8, 4))).square().mean().backward()
            theirs.step()
            both.step()
    (fact,) = scope.recording.facts["optimizers"]
    assert fact["class"] == "SGD"
    assert len(fact["groups"][0]["parameters"]) == 4


def test_optimizers_within_the_backward_that_are_alike_are_one_fact() -> None:
    net = small()
    each = {p: torch.optim.SGD([p], lr=0.1 if p.dim() > 1 else 0.2) for p in net.parameters()}
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: each[p].step())
    with GradScope(net, every=1) as scope:
        train(scope, steps=2)
    facts = scope.recording.facts["optimizers"]
    names = [sorted(fact["groups"][0]["parameters"]) for fact in facts]
    assert sorted(names) == [["0.bias", "2.bias"], ["0.weight", "2.weight"]]


def test_no_optimizer_no_fact() -> None:
    with GradScope(small(), every=1) as scope:
        train(scope, steps=2)
    assert "optimizers" not in scope.recording.facts
    assert "lr" not in scope.recording.note_names


# -- the learning rate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [False, True])
def test_the_learning_rate_of_the_largest_group_is_noted_each_step(tensor: bool) -> None:
    net = small()
    lr = torch.tensor(1.0) if tensor else 1.0
    groups = [{"params": [net[0].bias], "lr": 7.0}, {"params": [net[0].weight, *net[2].parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with GradScope(net, optimizer, every=1) as scope:
        train(scope, optimizer, steps=3, after=schedule)
    assert scope.recording.notes("lr").tolist() == [1.0, 0.5, 0.25]
    assert scope.recording.facts["optimizers"][0]["groups"][1]["lr"] == 1.0


def test_of_several_optimizers_that_of_the_largest_group_and_the_user_s_word_stands() -> None:
    net = small()
    large, little = torch.optim.SGD(net[0].parameters(), lr=0.5), torch.optim.SGD([net[2].bias], lr=0.25)
    with GradScope(net, every=1) as scope:
        scope(torch.randn(8, 4)).sum().backward()
        little.step()
        large.step()
        scope.step()
        scope(torch.randn(8, 4)).sum().backward()
        large.step()
        scope.note(lr=42.0)
        scope.step()
    assert scope.recording.notes("lr").tolist() == [0.5, 42.0]


# -- the loss --------------------------------------------------------------------------------------------------


def nodes(graph: list[dict[str, Any]], inside: bool = False) -> list[str]:
    found = [row for row in graph if row.get("inside", False) is inside]
    return [row["node"].removesuffix("0").removesuffix("Backward") for row in found]


LABELS, REAL = torch.arange(8) % 3, torch.linspace(-2, 5, 24).view(8, 3)


@pytest.mark.parametrize(
    ("head", "loss", "expected", "first_inside", "told"),
    [
        (None, lambda y: F.cross_entropy(y, LABELS), ["NllLoss", "LogSoftmax"], ("Addmm", "2"), {"classes": 3}),
        (
            nn.Softmax(-1),
            lambda y: F.cross_entropy(y, LABELS),
            ["NllLoss", "LogSoftmax"],
            ("Softmax", "1"),
            {"classes": 3},
        ),
        (
            nn.Sigmoid(),
            lambda y: F.binary_cross_entropy_with_logits(y, (REAL > 0).float()),
            ["BinaryCrossEntropyWithLogits"],
            ("Sigmoid", "1"),
            {"target_min": 0.0, "target_max": 1.0},
        ),
        (None, lambda y: F.mse_loss(y, REAL), ["MseLoss"], ("Addmm", "2"), {"target_min": -2.0, "target_max": 5.0}),
        (nn.ReLU(), lambda y: F.smooth_l1_loss(y, REAL), ["SmoothL1Loss"], ("Relu", "1"), {"target_max": 5.0}),
        (None, lambda y: (y - REAL).abs().mean(), ["Mean", "Abs", "Sub"], ("Addmm", "2"), {}),
    ],
)
def test_the_graph_under_the_loss_down_to_the_model_s_output(
    head: nn.Module | None, loss: Any, expected: list[str], first_inside: tuple[str, str], told: dict[str, float]
) -> None:
    net = small() if head is None else nn.Sequential(small(), head)
    x = torch.randn(8, 4)
    recording = probe(net, x, loss_fn=loss)
    graph = recording.facts["loss_graph"]
    assert nodes(graph) == expected
    assert told.items() <= graph[0].items()
    boundary = next(row for row in graph if row.get("inside"))
    expected_row = {"node": f"{first_inside[0]}Backward0", "site": first_inside[1], "inside": True, "output": True}
    if first_inside[0] == "Softmax":  # over so many it goes
        expected_row["classes"] = 3
    assert {key: value for key, value in boundary.items() if key != "under"} == expected_row
    assert "under" not in graph[0]
    assert all(0 <= row["under"] < place for place, row in enumerate(graph) if place)
    assert [row for row in graph if row.get("output")] == [boundary]
    assert boundary["site"] in {site.name for site in recording.sites_of("activation")}
    assert len(nodes(graph, inside=True)) <= 8
    assert recording.notes("loss")[0] == loss(net(x)).item()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["note", "step"])
def test_a_loss_that_training_notes_tells_it_before_and_after_its_backward(when: str, how: str) -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradScope(net, optimizer, every=1) as scope:
        for step in range(2):
            loss = F.cross_entropy(scope(torch.randn(8, 4)), LABELS)
            if when == "before":
                getattr(scope, how)(loss=loss)
            loss.backward()
            if when == "after":
                getattr(scope, how)(loss=loss)
            optimizer.step()
            if step == 0:
                first = scope.recording.facts["loss_graph"]
    assert nodes(first) == ["NllLoss", "LogSoftmax"]
    assert first[0]["classes"] == 3  # the shape stays, whatever the backward has freed
    assert first[2] == {"node": "AddmmBackward0", "site": "2", "inside": True, "output": True, "under": 1}
    assert scope.recording.facts["loss_graph"] == first  # of the first, once
    assert len(scope.recording.steps) == 2


def test_a_target_is_told_only_while_the_graph_has_it() -> None:
    for kept in (True, False):
        with GradScope(small(), every=1) as scope:
            loss = F.mse_loss(scope(torch.randn(8, 4)), REAL)
            if kept:
                scope.note(loss=loss)
            loss.backward()
            scope.step(loss=loss)
        (row,) = [row for row in scope.recording.facts["loss_graph"] if not row.get("inside")]
        size = float(REAL.double().square().mean().sqrt())
        told = {"target_min": -2.0, "target_max": 5.0, "target_rms": pytest.approx(size, rel=1e-12)}
        assert row == {"node": "MseLossBackward0"} | (told if kept else {})


def test_numbers_losses_without_a_graph_and_probe_s_own_tell_nothing() -> None:
    with GradScope(small(), every=1) as scope:
        for step in range(3):
            loss = scope(torch.randn(8, 4)).sum()
            loss.backward()
            scope.step(loss=loss.item() if step else loss.detach())
    assert "loss_graph" not in scope.recording.facts
    assert "loss_graph" not in probe(small(), torch.randn(8, 4)).facts


def test_a_loss_that_the_model_computes_is_inside_and_followed_for_eight_nodes() -> None:
    class Out(dict[str, Tensor]):
        @property
        def loss(self) -> Tensor:
            return self["loss"]

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*[m for _ in range(9) for m in (nn.Linear(4, 4), nn.Tanh())])

        def forward(self, x: Tensor) -> Out:
            logits = self.body(x)
            return Out(loss=F.cross_entropy(logits, torch.arange(8) % 4), logits=logits)

    graph = probe(WithLoss(), torch.randn(8, 4)).facts["loss_graph"]
    assert nodes(graph) == []
    assert nodes(graph, inside=True)[:4] == ["NllLoss", "LogSoftmax", "Tanh", "Addmm"]
    assert len(graph) == 8
    assert graph[2]["site"] == "body.17"


def test_a_long_way_from_the_loss_to_the_model_is_cut() -> None:
    def far(y: Tensor) -> Tensor:
        for _ in range(40):
            y = y.sin()
        return y.sum()

    graph = probe(small(), torch.randn(8, 4), loss_fn=far).facts["loss_graph"]
    assert nodes(graph) == ["Sum", *["Sin"] * 23]


def test_looking_at_the_loss_runs_no_checkpointed_segment_again_and_changes_no_gradient() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(4, 3), 0

        def part(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = F.mse_loss(self.layer(x), REAL)
            return out

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.part, x, use_reentrant=False)
            return out

    torch.manual_seed(0)
    net, x = Net(), torch.randn(8, 4)
    net(x).backward()
    expected = net.layer.weight.grad
    net.layer.weight.grad = None
    net.calls = 0
    with GradScope(net, every=1) as scope:
        loss = scope(x)
        scope.note(loss=loss)
        assert net.calls == 1
        loss.backward()
    assert net.calls == 2
    assert torch.equal(net.layer.weight.grad, expected)  # type: ignore[arg-type]
    assert nodes(scope.recording.facts["loss_graph"], inside=True)[0] == "MseLoss"


def test_the_facts_are_in_the_file(tmp_path: Any) -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradScope(net, optimizer, every=1, log=tmp_path / "r.gscope") as scope:
        loss = F.cross_entropy(scope(torch.randn(8, 4)), LABELS)
        scope.note(loss=loss)
        loss.backward()
        optimizer.step()

    facts = Recording.load(tmp_path / "r.gscope").facts
    assert facts["loss_graph"][0] == {"node": "NllLossBackward0", "classes": 3}
    assert facts["optimizers"][0]["groups"][0]["parameters"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda y, t: F.mse_loss(y, y.flip(0)), {"both"}),
        (lambda y, t: (y[:, :1] - t).square().mean(), {"broadcast"}),
        (lambda y, t: (y[:, :1] - t[:, None]).square().mean(), set()),
        (lambda y, t: F.mse_loss(y[:, 0], t), set()),
    ],
)
def test_what_a_loss_compares_is_told(loss: Any, told: set[str]) -> None:
    with GradScope(small(), every=1) as scope:
        value = loss(scope(torch.randn(8, 4)), torch.randn(8))
        scope.note(loss=value)
        value.backward()
    said = {key for row in scope.recording.facts["loss_graph"] for key in row}
    assert said & {"both", "broadcast"} == told
