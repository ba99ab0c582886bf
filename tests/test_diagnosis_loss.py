"""What the loss itself tells: where it is infinite, what divides it, over which axis it goes, how large it begins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradscope.recording import Recording
from tests.diagnosing import faults, found, trained, two_blobs


def network(*last: nn.Module, outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, outputs), *last)


def kinds(recording: Recording) -> list[str]:
    return [one.rule for one in faults(recording)]


def summed_in_half(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared errors of 64 × 4 scores, summed in float16, which ends at 65,504."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (scale * F.one_hot(target, 4).half() - output.half()).square().sum().float()

    return loss


def test_a_loss_that_is_infinite_while_every_output_is_finite_is_made_by_the_loss_function() -> None:
    # 64 one-hot targets of 40: 64 · 1,600 = 102,400 > 65,504.
    first, *rest = faults(trained(network(), two_blobs(), summed_in_half(40.0), steps=3, lr=1e-6))
    assert (first.rule, first.steps, rest) == ("non-finite", (0,), [])
    assert first.causes == ("made behind the model, by the loss function",)


def test_a_sum_in_half_precision_that_fits_is_no_finding() -> None:
    # 64 · 30² = 57,600, and the outputs add little.
    assert "non-finite" not in kinds(trained(network(), two_blobs(), summed_in_half(30.0), steps=3, lr=1e-6))


def test_a_model_of_half_precision_whose_loss_is_infinite_has_left_its_dtype() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).half()

    first = faults(trained(Half(), two_blobs(), summed_in_half(40.0), steps=3, lr=1e-6))[0]
    assert (first.rule, first.frontier and first.frontier.name) == ("dtype-overflow", "<root>")


@pytest.mark.parametrize(("axis", "said"), [(0, ["output-pairing"]), (1, [])])
def test_a_softmax_over_the_batch_is_one_over_another_axis_than_the_classes(axis: int, said: list[str]) -> None:
    recording = trained(
        network(nn.LogSoftmax(axis)), two_blobs(), F.nll_loss, steps=30, optimizer=torch.optim.Adam, lr=1e-2
    )
    assert [kind for kind in kinds(recording) if kind == "output-pairing"] == said
    if said:
        assert "over an axis of 64" in found(recording, "output-pairing")[0].explanation


def spread(scale: float) -> nn.Sequential:
    """Its first outputs have a standard deviation of `scale`."""
    model = network(outputs=1)
    with torch.no_grad():
        torch.manual_seed(1)
        out = model(torch.randn(4096, 16))
        model[2].weight.mul_(scale / out.std())
        model[2].bias.zero_()
    return model


def line(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(step))
    return x, x[:, :1].clamp(-2, 2)


@pytest.mark.parametrize(("scale", "said"), [(8.0, ["warning"]), (1.5, []), (0.1, [])])
def test_first_outputs_beyond_all_targets_are_told(scale: float, said: list[str]) -> None:
    recording = trained(spread(scale), line, F.mse_loss, steps=20, lr=1e-4)
    assert [one.severity for one in found(recording, "output-pairing")] == said
    if said:
        (one,) = found(recording, "output-pairing")
        size = float(torch.cat([line(0)[1]]).double().square().mean().sqrt())
        assert one.value == pytest.approx(scale, rel=0.2)
        assert one.limit == pytest.approx(2 * size, rel=1e-6)


def test_first_outputs_that_come_down_within_a_quarter_of_the_run_are_a_note() -> None:
    recording = trained(spread(8.0), line, F.mse_loss, steps=200, lr=0.01)
    assert [one.severity for one in found(recording, "output-pairing")] == ["note"]


def divided(by: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, target: F.cross_entropy(output, target) / by


def test_a_mean_that_is_divided_again_is_a_loss_too_small_for_plain_descent() -> None:
    (one,) = faults(trained(network(), two_blobs(), divided(256.0), steps=60, lr=0.05))
    assert (one.rule, one.severity) == ("loss-scale", "warning")
    assert one.expected == pytest.approx(math.log(4))
    assert one.value == pytest.approx(math.log(4) / 256, rel=0.2)


def test_adam_does_not_mind_a_loss_that_is_divided() -> None:
    recording = trained(network(), two_blobs(), divided(256.0), steps=60, lr=1e-2, optimizer=torch.optim.Adam)
    assert "loss-scale" not in kinds(recording)


def test_a_loss_divided_by_a_few_micro_steps_is_none() -> None:
    assert kinds(trained(network(), two_blobs(), divided(8.0), steps=60, lr=0.5)) == []


class Variance(nn.Module):
    """A mean, and a variance that is kept above zero by a function."""

    def __init__(self, kept_above: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.kept_above = network(outputs=2), kept_above

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.body(x).split(1, dim=1)
        return mean, self.kept_above(raw)


def gaussian(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return F.gaussian_nll_loss(output[0], target, output[1])


def test_a_variance_made_by_relu_is_a_pole_near_the_first_outputs() -> None:
    recording = trained(Variance(F.relu), line, gaussian, steps=40, lr=1e-2, optimizer=torch.optim.Adam)
    (one,) = (one for one in faults(recording) if one.rule == "gradient-spike")
    assert one.steps == ()
    assert one.frontier is not None
    assert one.frontier.name == "<root>[1]"


def test_a_variance_made_by_softplus_is_none() -> None:
    recording = trained(Variance(F.softplus), line, gaussian, steps=40, lr=1e-2, optimizer=torch.optim.Adam)
    assert "gradient-spike" not in kinds(recording)


class Cosines(nn.Module):
    """Logits are cosines, times a scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.classes, self.scale = network(outputs=16), nn.Parameter(torch.randn(8, 16)), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.normalize(self.body(x)) @ F.normalize(self.classes).T


@pytest.mark.parametrize(("scale", "said"), [(1.0, ["output-pairing"]), (10.0, [])])
def test_cosines_without_a_scale_are_logits_that_cannot_spread(scale: float, said: list[str]) -> None:
    blobs = two_blobs(classes=8)
    recording = trained(Cosines(scale), blobs, F.cross_entropy, steps=150, lr=1e-2, optimizer=torch.optim.Adam)
    assert kinds(recording) == said
    if said:  # all of them lie within [-1, 1], and the floor is that of the range that was measured
        (one,) = faults(recording)
        assert one.value is not None
        assert one.value <= 2.0
        loss = recording.notes("loss")[-1]
        assert math.log1p(7 * math.exp(-2.0)) <= loss <= 2 * math.log1p(7 * math.exp(-one.value))


def test_logits_that_still_spread_are_none() -> None:
    recording = trained(network(outputs=8), two_blobs(classes=8), F.cross_entropy, steps=40, lr=0.05)
    assert kinds(recording) == []


def test_as_many_classes_as_samples_are_pairs_whose_cosines_may_be_confined() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network(outputs=16)

        def forward(self, x: Tensor) -> Tensor:
            z = F.normalize(self.body(x))
            return z @ F.normalize(self.body(x + 0.1)).T / 0.5

    def own(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, torch.arange(len(output)))

    recording = trained(Pairs(), two_blobs(), own, steps=150, lr=1e-2, optimizer=torch.optim.Adam)
    assert "output-pairing" not in kinds(recording)


def test_an_output_that_is_broadcast_against_its_target_is_told() -> None:
    def flat(step: int) -> tuple[Tensor, Tensor]:
        inputs, target = line(step)
        return inputs[:64], target[:64, 0]

    def squared(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    (first, *_) = faults(trained(network(outputs=1), flat, squared, steps=5))
    assert (first.rule, first.severity) == ("output-pairing", "error")
    assert "64" not in first.remedy
    assert "squeeze" in first.remedy


@pytest.mark.parametrize("form", ["same", "pairs"])
def test_shapes_that_agree_and_pairs_that_are_meant_are_no_broadcast(form: str) -> None:
    def squared(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    def pairs(output: Tensor, target: Tensor) -> Tensor:
        differences = output - output.T - (target - target.T)  # of each pair, as a ranking compares them
        return differences.square().mean()

    recording = trained(network(outputs=1), line, squared if form == "same" else pairs, steps=5, lr=1e-3)
    assert kinds(recording) == []


def ignored(step: int) -> tuple[Tensor, Tensor]:
    inputs, target = two_blobs()(step)
    return inputs, target if step < 8 else torch.full_like(target, -100)


def test_a_mean_over_no_target_is_a_nan_that_the_loss_makes() -> None:
    (one, *_) = faults(trained(network(), ignored, F.cross_entropy, steps=12))
    assert (one.rule, one.steps) == ("non-finite", (8,))
    assert "NaN" in one.explanation


def test_a_loss_that_is_not_noted_is_no_nan() -> None:
    from tests.diagnosing import recorded

    recording = recorded(notes=lambda step: {"loss": 1.0 / (step + 1)} if step != 7 else {})
    assert "non-finite" not in kinds(recording)


@pytest.mark.parametrize(("scale", "said"), [(1e4, ["loss-scale"]), (1.0, [])])
def test_a_term_that_drowns_the_one_of_the_classes_is_told(scale: float, said: list[str]) -> None:
    model = network()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        penalty = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        return F.cross_entropy(output, target) + scale * penalty.clamp(min=1.0)

    recording = trained(model, two_blobs(), loss, steps=40, lr=1e-8 if said else 0.05)
    assert [kind for kind in kinds(recording) if kind == "loss-scale"] == said


class Factors(nn.Module):
    """Scores are products of two rows."""

    def __init__(self, std: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(50, 64), nn.Embedding(40, 64)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=std)

    def forward(self, pair: Tensor) -> Tensor:
        return (self.users(pair[:, 0]) * self.items(pair[:, 1])).sum(1)


@pytest.mark.parametrize(("std", "said"), [(1.0, ["default-init"]), (0.1, [])])
def test_tables_of_unit_normals_that_are_multiplied_are_told(std: float, said: list[str]) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        pair = torch.stack([torch.randint(n, (256,), generator=generator) for n in (50, 40)], dim=1)
        return pair, torch.randn(256, generator=generator).clamp(-2, 2)

    recording = trained(Factors(std), batch, F.mse_loss, steps=20, lr=1e-3, optimizer=torch.optim.Adam)
    assert kinds(recording) == said
    if said:  # a product of 64 pairs of unit normals has a standard deviation of 8
        (one,) = faults(recording)
        assert one.frontier is not None
        assert one.frontier.name == "users.weight"
        assert one.limit == pytest.approx(64**-0.5)


@pytest.mark.parametrize(("same", "said"), [(True, ["collapsed-batch"]), (False, [])])
def test_inputs_that_are_the_same_for_every_sample_are_told_where_the_loss_stays(same: bool, said: list[str]) -> None:
    blobs = two_blobs()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        inputs, target = blobs(step)
        return inputs[:1].expand_as(inputs) if same else inputs, target

    recording = trained(network(), batch, F.cross_entropy, steps=40, lr=0.1)
    assert kinds(recording) == said
    if said:
        assert faults(recording)[0].sites == ("<input>",)


class Attention(nn.Module):
    """One head over tokens, its scores multiplied."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.softmax, self.head, self.scale = nn.Softmax(-1), nn.Linear(16, 4), scale

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] * torch.linspace(0.5, 2.0, 8)[:, None]
        scores = self.query(x) @ self.key(x).mT
        return self.head((self.softmax(self.scale * scores) @ self.value(x)).mean(1))


@pytest.mark.parametrize(("scale", "said"), [(200.0, ["saturated-units"]), (0.25, [])])
def test_attention_that_picks_one_from_the_start_is_saturated(scale: float, said: list[str]) -> None:
    recording = trained(Attention(scale), two_blobs(), F.cross_entropy, steps=20, lr=0.01)
    assert kinds(recording) == said
    if said:
        (one,) = faults(recording)
        shares = recording.values("activation", "rms")[-1]
        at = [s.name for s in recording.sites_of("activation")].index("softmax")
        assert one.value == pytest.approx(8 * shares[at] ** 2)
