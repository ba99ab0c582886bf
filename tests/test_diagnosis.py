"""A diagnosis depends on what is wrong alone: not on a unit, not on what was left out; and one cause is one finding."""

from __future__ import annotations

import gc
import itertools
import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradscope import GradScope, predict, probe
from gradscope.diagnosis import SEVERITIES, Finding, Findings, Limits, diagnose, rule_names
from gradscope.diagnosis._evidence import EDGE, MOST_STEPS, Evidence, lasting_since, median
from gradscope.recording import SIGNALS, Recording
from tests.cases import CASES, Case, call
from tests.diagnosing import HE, faults, found, recorded, sloped, trained, two_blobs

DATA = Path(__file__).parent / "data"
Batch = Callable[[int], tuple[Tensor, Tensor]]


def verdict(findings: Findings) -> list[tuple[Any, ...]]:
    """What a user acts on."""
    return [(one.rule, one.severity, one.sites, one.steps, one.direction) for one in findings]


# The programs whose verdicts must not move


def stack(hidden: int, activation: type[nn.Module] = nn.ReLU, width: int = 32, norm: bool = False) -> nn.Sequential:
    """He's weights, biases at zero, a small head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(hidden):
        layers.append(nn.Linear(16 if i == 0 else width, width))
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers.append(activation())
    model = nn.Sequential(*layers, nn.Linear(width, 4))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model[-1].weight, std=0.1)
    return model


def too_large(factor: float) -> nn.Sequential:
    model = stack(6)
    with torch.no_grad():
        for i in range(0, 12, 2):
            model[i].weight *= factor
    return model


class Cut(nn.Module):
    """The gradient ends behind the first layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(torch.relu(self.low(x)).detach())


PROGRAMS: dict[str, Callable[[], nn.Module]] = {
    "healthy": lambda: stack(3),
    "vanishing": lambda: stack(10, nn.Sigmoid),
    "exploding": lambda: too_large(8.0),
    "cut": Cut,
    "torch's default": lambda: nn.Sequential(*(m for _ in range(12) for m in (nn.Linear(16, 16), nn.ReLU()))),
}


def run(
    program: str,
    factor: float = 1.0,
    reduction: str = "mean",
    size: int = 64,
    scale: float | None = None,
    steps: int = 12,
) -> Findings:
    """Trained by SGD, whose updates are those of factor 1 whatever the loss is multiplied by."""
    torch.manual_seed(0)
    model, batch = PROGRAMS[program](), two_blobs(size)
    per_sample = 1 / size if reduction == "sum" else 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3 / factor * per_sample)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    with GradScope(model, optimizer, every=1, scaler=scaler) as scope:
        for step in range(steps):
            inputs, target = batch(step)
            loss = nn.functional.cross_entropy(model(inputs), target, reduction=reduction) * factor
            optimizer.zero_grad()
            scope.note(loss=loss)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
    return diagnose(scope.recording)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[tuple[Any, ...]]]:
    return {program: verdict(run(program)) for program in PROGRAMS}


def test_the_programs_have_the_verdicts_for_which_they_were_made(verdicts: dict[str, list[tuple[Any, ...]]]) -> None:
    first = {program: found[0][0] if found else None for program, found in verdicts.items()}
    assert first == {
        "healthy": None,
        "vanishing": "vanishing-gradient",
        "exploding": "exploding-activation",
        "cut": "no-gradient",
        "torch's default": "vanishing-gradient",
    }


@pytest.mark.parametrize("factor", [1e-6, 2.0**-20, 1e6])
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_verdict_depends_on_a_factor_of_the_loss(program: str, factor: float, verdicts: dict[str, Any]) -> None:
    assert verdict(run(program, factor)) == verdicts[program]


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_verdict_depends_on_mean_or_sum_over_the_batch(program: str, verdicts: dict[str, Any]) -> None:
    assert verdict(run(program, reduction="sum")) == verdicts[program]


@pytest.mark.parametrize("size", [32, 256])
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_verdict_depends_on_the_batch_size(program: str, size: int, verdicts: dict[str, Any]) -> None:
    assert [one[:2] for one in verdict(run(program, size=size))] == [one[:2] for one in verdicts[program]]


@pytest.mark.parametrize("scale", [1.0, 65_536.0])
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_verdict_depends_on_the_factor_of_a_grad_scaler(
    program: str, scale: float, verdicts: dict[str, Any]
) -> None:
    assert verdict(run(program, scale=scale)) == verdicts[program]


def test_a_summed_loss_is_not_compared_with_that_of_guessing() -> None:
    model = stack(2)
    with torch.no_grad():
        model[-1].weight *= 4  # logits a bit over 1
    batch = two_blobs()

    def summed(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="sum")

    recording = trained(model, batch, summed, lr=1e-5)
    assert recording.values("activation", "rms")[0, -1] > 1
    assert recording.notes("loss")[0] > 64
    assert list(found(recording, "output-pairing")) == []


@settings(max_examples=25, deadline=None)
@given(decades=st.floats(-6, 6), power=st.integers(-20, 20))
def test_only_ratios_of_gradients_count(decades: float, power: int) -> None:
    # Where decades is within rounding of a limit both sides may differ, so the factor is a power of two: it is exact.
    changes = sloped(decades, "activation_grad")
    bigger = {
        place: {name: value * (1.0 if place[0] == "update" else 2.0**power) for name, value in numbers.items()}
        for place, numbers in changes.items()
    }
    for i in range(0, 11, 2):
        bigger["weight_grad", f"{i}.bias"] = {"std": 0.01 * 2.0**power}
    assert verdict(diagnose(recorded(changes, steps=6))) == verdict(diagnose(recorded(bigger, steps=6)))


# One cause, one finding


def test_a_nan_at_step_17_is_one_finding_and_not_one_of_each_layer_behind_it() -> None:
    model = stack(20, nn.Tanh)

    def poison(step: int) -> None:
        if step == 17:
            with torch.no_grad():
                model[20].weight[0, 0] = math.nan

    recording = trained(model, two_blobs(), nn.functional.cross_entropy, 24, 1e-3, before=poison)
    (one,) = faults(recording)
    assert (one.rule, one.steps, one.severity) == ("non-finite", (17,), "error")
    assert one.frontier is not None
    assert one.frontier.name in ("20", "20.weight")


def test_default_weights_under_twenty_relus_are_one_finding_with_its_cause() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 4))
    for recording in (probe(model, torch.randn(64, 64)), predict(model, torch.randn(64, 64))):
        (one,) = faults(recording)
        assert one.rule in ("vanishing-gradient", "vanishing-activation")
        # By theory each layer before a ReLU divides the rms by √6: 20·log10(√6) = 7.8 decades.
        assert any("torch's default weights" in cause and "7.8 decades" in cause for cause in one.causes)
        assert one.remedy == "gradscope.init.initialize(model, inputs=batch)"


@pytest.mark.parametrize("every", [1, 10, 100])
def test_what_follows_within_three_recorded_steps_is_folded_however_far_apart_these_are(every: int) -> None:
    grown = {("activation", str(i)): {"std": lambda s: 1e4 if s >= 9 else 1.0} for i in range(4, 10)}
    jump = {("update", f"{i}.weight"): {"std": lambda s: 0.5 * HE if s >= 11 else 1e-3 * HE} for i in range(0, 11, 2)}
    recording = recorded(grown | jump, every=every, notes=lambda s: {"loss": 50.0 if s >= 12 else 1.0})
    (one,) = faults(recording)
    assert one.rule == "update-too-large"
    assert any("exploding-activation" in said for said in one.consequences)


# Where it begins


@pytest.mark.parametrize("place", [2, 5, 7])
def test_the_frontier_of_a_lost_signal_is_the_layer_that_loses_it(place: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    for layer in model:
        nn.init.normal_(layer.weight, std=64**-0.5)
    with torch.no_grad():
        model[place].weight *= 1e-5
    recording = probe(model, torch.randn(64, 64))
    (forward,) = found(recording, "vanishing-activation")
    assert forward.frontier is not None
    assert forward.frontier.name == str(place)
    # The gradient is at its old size at the layer's output, and lost at its input: the output of the one before.
    (backward,) = found(recording, "vanishing-gradient")
    assert backward.frontier is not None
    assert backward.frontier.name == str(place - 1)


def test_the_frontier_of_a_detached_part_is_its_last_module() -> None:
    (one,) = faults(trained(Cut(), two_blobs(), nn.functional.cross_entropy))
    assert one.frontier is not None
    assert (one.rule, one.frontier.module, one.causes) == ("no-gradient", "low", ("detached",))


# What is sound


class Branches(nn.Module):
    """Residual branches that begin at zero, before a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward = nn.Linear(16, 32)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)) for _ in range(6)
        )
        self.outward = nn.Linear(32, 4)
        for branch in self.branches:
            nn.init.zeros_(branch[3].weight)
            nn.init.zeros_(branch[3].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.outward(x)


class Adapter(nn.Module):
    """LoRA's: frozen weights, and two trained factors of which the second begins at zero."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class Tied(nn.Module):
    """The last layer's weights are the first's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(16, 16), nn.Linear(16, 16)
        self.high.weight = self.low.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.high(torch.tanh(self.low(x)))[:, :4]


def pretrained() -> nn.Sequential:
    model = stack(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(30):
        inputs, target = two_blobs()(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return model


def frozen_backbone() -> nn.Sequential:
    model = pretrained()
    model[:-1].requires_grad_(False)
    return nn.Sequential(*model[:-1], nn.Linear(32, 4))


def adapted() -> nn.Sequential:
    return nn.Sequential(*(Adapter(m) if isinstance(m, nn.Linear) else m for m in pretrained()))


def dropped_out() -> nn.Sequential:
    return nn.Sequential(*itertools.chain(*((m, nn.Dropout(0.3)) for m in list(stack(3))[:-1])), nn.Linear(32, 4))


SOUND: dict[str, Callable[[], nn.Module]] = {
    "frozen backbone": frozen_backbone,
    "LoRA": adapted,
    "branches that begin at zero": Branches,
    "tied weights": Tied,
    "dropout": dropped_out,
    "biases before norms": lambda: stack(4, norm=True),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_by_design_is_no_finding(name: str) -> None:
    torch.manual_seed(1)
    assert faults(trained(SOUND[name](), two_blobs(), nn.functional.cross_entropy, 30)) == []


@pytest.mark.parametrize("steps", [1, 4, 9, 10])
def test_no_alarm_over_steps_before_there_are_twice_the_hysteresis(steps: int) -> None:
    # The activation falls by four decades behind step 0, and the pattern over depth stays: it is a matter of steps.
    fallen = {("activation", str(i)): {"std": lambda s: 1.0 if s == 0 else 1e-4} for i in range(11)}
    assert bool(found(recorded(fallen, steps=steps), "vanishing-activation")) == (steps >= 10)


@pytest.mark.parametrize("lasting", [4, 5])
def test_a_state_over_steps_has_to_last(lasting: int) -> None:
    fallen = {("activation", str(i)): {"std": lambda s: 1e-4 if s >= 20 - lasting else 1.0} for i in range(11)}
    findings = found(recorded(fallen, steps=20), "vanishing-activation")
    assert [one.steps for one in findings] == ([(15,)] if lasting == 5 else [])


def test_a_state_began_when_it_came_to_stay_and_not_when_it_was_first_seen() -> None:
    dead = {("activation", "3"): {"dead": lambda s: 1.0 if s == 5 or s >= 15 else 0.1}}
    (one,) = found(recorded(dead, steps=26), "dead-units")
    assert one.steps == (15,)


# What cannot be judged


@pytest.mark.parametrize("signals", [c for n in range(1, 6) for c in itertools.combinations(SIGNALS, n)], ids="+".join)
def test_signals_left_out_make_rules_unknown_and_nothing_wrong(signals: tuple[Any, ...]) -> None:
    recording = trained(stack(3), two_blobs(), nn.functional.cross_entropy, signals=signals)
    findings = diagnose(recording)
    assert [one for one in findings if one.severity != "note"] == []
    for rule, why in findings.unknown.items():
        assert rule in rule_names()
        assert all(signal in SIGNALS and signal not in signals for signal in why.split(" was ")[0].split(", ")) or (
            "steps" in why or "step" in why
        )
    if len(signals) == len(SIGNALS):
        assert findings.unknown == {}


def test_a_part_that_gets_no_gradient_is_not_called_unused_where_calls_were_not_recorded() -> None:
    recording = trained(Cut(), two_blobs(), nn.functional.cross_entropy, signals=("weight_grad", "weight"))
    (one,) = found(recording, "no-gradient")
    assert "never called" not in one.explanation
    assert set(one.sites) == {"low.weight", "low.bias"}


def test_unknown_says_which_signal_how_many_steps_or_that_no_unit_moments_are_there() -> None:
    one_step = diagnose(probe(stack(2), torch.randn(64, 16))).unknown
    assert one_step["update-too-large"] == "only a training run tells"
    assert one_step["clipping-always"] == "only a training run tells"
    few = diagnose(recorded(steps=3)).unknown
    assert few["clipping-always"] == "3 of the recorded steps are finite and were not skipped, and it needs 10"
    assert {"saturated-units", "dead-units", "collapsed-batch"} == set(diagnose(recorded(units_every=0)).unknown)
    all_skipped = diagnose(recorded(skipped=range(20))).unknown
    assert set(all_skipped.values()) == {"no recorded step is finite and was not skipped"}
    assert set(rule_names()) - set(all_skipped) == {"non-finite", "dtype-overflow", "loss-scale"}


def test_an_empty_recording_is_all_unknown() -> None:
    findings = diagnose(Recording.create())
    assert len(findings) == 0
    assert set(findings.unknown) == set(rule_names())


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_older_versions_are_diagnosed(version: int) -> None:
    findings = diagnose(Recording.load(DATA / f"schema_{version}.sqlite"))
    assert [one.rule for one in findings] == ["non-finite"]  # there is a NaN in step 0


def test_a_prediction_and_a_validation_are_diagnosed() -> None:
    model, batch = stack(3), two_blobs()
    assert faults(predict(model, torch.randn(64, 16))) == []
    with GradScope(model, validation=True, every=1) as scope:
        for step in range(3):
            inputs, target = batch(step)
            nn.functional.cross_entropy(model(inputs), target).backward()
            scope.step()
            with torch.no_grad():
                model(inputs * 100)
    assert scope.validation is not None
    findings = diagnose(scope.validation)
    assert [one.rule for one in findings] == ["input-scale"]
    assert findings.unknown["vanishing-gradient"] == "activation_grad was not recorded"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_awkward_model_is_diagnosed_in_silence(case: Case) -> None:
    torch.manual_seed(0)
    model, inputs = case.model(), case.inputs()
    call(model, inputs)
    for one in diagnose(probe(model, inputs)):
        assert one.explanation
        assert str(one)


class Bare(nn.Module):
    """No layer: a parameter, and two outputs of which one is no tensor of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x * self.scale)[:, :4], x.argmax(1)


def test_a_model_without_layers_and_with_several_outputs_is_diagnosed() -> None:
    recording = trained(Bare(), two_blobs(), lambda out, target: nn.functional.cross_entropy(out[0], target))
    assert faults(recording) == []


def test_a_recording_without_an_optimizer_is_diagnosed() -> None:
    model, batch = stack(2), two_blobs()
    with GradScope(model, every=1) as scope:
        for step in range(6):
            inputs, target = batch(step)
            nn.functional.cross_entropy(model(inputs), target).backward()
            scope.step()
    assert faults(scope.recording) == []


def test_zeros_everywhere_and_numbers_near_the_end_of_float64_make_no_warning() -> None:
    nothing = {("activation", str(i)): {"std": 0.0} for i in range(11)} | {
        ("activation", "<input>"): {"std": 0.0},
        ("activation_grad", "0"): {"std": 0.0},
    }
    spiked = recorded(nothing, notes=lambda s: {"grad_norm": 100.0 if s == 15 else 1.0})
    assert [one.rule for one in diagnose(spiked)] == ["input-scale"]  # inputs that are zero: the rest follows
    assert "gradient-spike" in [one.rule for one in diagnose(spiked, rules=["gradient-spike"])]
    huge = {("weight_grad", f"{i}.weight"): {"std": 1e200} for i in range(0, 11, 2)}
    assert faults(recorded(huge)) == []
    unknown = {("update", f"{i}.weight"): {"std": lambda s: math.nan if s > 9 else 1e-4} for i in range(0, 11, 2)}
    assert faults(recorded(unknown)) == []  # what is not known has not come to rest


def test_a_layer_that_is_too_large_does_not_excuse_one_that_is_as_much_too_small() -> None:
    weights = {("weight", "2.weight"): {"std": HE * 100}, ("weight", "4.weight"): {"std": HE / 100}}
    between = {("activation", "2"): {"std": 100.0}, ("activation", "3"): {"std": 100.0}}
    (one,) = found(recorded(weights | between), "init-mismatch")
    assert one.sites == ("2.weight",)


# Long recordings


@pytest.fixture(scope="module")
def long_recording() -> Recording:
    """5,000 steps: a spike at 2,501, and the weights' updates come to rest in the last two hundred."""
    return recorded(
        {("update", f"{i}.weight"): {"std": 1e-3 * HE} for i in (0, 2)},
        5_000,
        depth=2,
        notes=lambda s: {"loss": 1 / (s + 1), "grad_norm": 100.0 if s == 2_501 else 1.0},
        signals=("weight", "weight_grad", "update"),
        units_every=0,
    )


def test_of_a_long_recording_the_start_the_end_and_each_spike_between_are_looked_at(long_recording: Recording) -> None:
    evidence = Evidence(long_recording, Limits())
    steps = evidence.steps.tolist()
    assert len(steps) <= MOST_STEPS
    assert steps[:EDGE] == list(range(EDGE))
    assert steps[-EDGE:] == list(range(5_000 - EDGE, 5_000))
    assert np.diff(steps).max() <= math.ceil((5_000 - 2 * EDGE) / (MOST_STEPS - 3 * EDGE))
    (one,) = faults(long_recording)
    assert (one.rule, one.steps) == ("gradient-spike", (2_501,))


def test_a_diagnosis_of_the_latest_steps_sees_only_these(long_recording: Recording) -> None:
    evidence = Evidence(long_recording, Limits(), last=50)
    assert evidence.steps.tolist() == list(range(4_950, 5_000))
    assert len(evidence.loss) == len(evidence.values("update")) == 50
    assert not evidence.from_the_start


def test_a_recording_is_free_when_its_diagnosis_is_done() -> None:
    recording = recorded(steps=2)
    alive = weakref.ref(recording)
    diagnose(recording)
    del recording
    gc.collect()
    assert alive() is None


# The findings as values


def test_findings_go_to_strict_json_and_come_back() -> None:
    findings = run("vanishing")
    told = json.loads(findings.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert told == findings.as_list()
    assert [one["rule"] for one in told] == [one.rule for one in findings]
    assert [tuple(one["sites"]) for one in told] == [one.sites for one in findings]
    assert [one["frontier"] for one in told] == [one.frontier.name if one.frontier else None for one in findings]
    odd = Findings([Finding("a", "note", "It is so.", value=math.nan, limit=math.inf, expected=-math.inf)])
    (back,) = json.loads(odd.to_json())
    assert (back["value"], back["limit"], back["expected"]) == (None, "inf", "-inf")


@given(st.lists(st.sampled_from(SEVERITIES), max_size=8))
def test_the_worst_come_first_and_the_order_is_kept_within_a_severity(severities: list[Any]) -> None:
    findings = Findings(Finding(str(i), severity, "It is so.") for i, severity in enumerate(severities))
    places = [(SEVERITIES.index(one.severity), int(one.rule)) for one in findings]
    assert places == sorted(places)
    assert findings.worst == (SEVERITIES[places[0][0]] if places else None)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, True, "2", None])
def test_a_limit_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match="gradient_decades"):
        Limits(gradient_decades=value)


@pytest.mark.parametrize("value", [2.5, math.inf])
def test_the_hysteresis_is_a_number_of_steps(value: Any) -> None:
    with pytest.raises(ValueError, match=f"limits: hysteresis is {value}; a number of steps is allowed"):
        Limits(hysteresis=value)


def test_a_limit_moves_its_rule() -> None:
    recording = recorded(sloped(3.0, "activation_grad"))
    assert found(recording, "vanishing-gradient")
    assert not diagnose(recording, Limits(gradient_decades=3.5), ["vanishing-gradient"])


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((torch.zeros(2),), TypeError, "recording is of type Tensor; a gradscope.Recording is allowed"),
        ((Recording.create(), 2.0), TypeError, "limits is of type float; a gradscope.diagnosis.Limits is allowed"),
        ((Recording.create(), None, ["vanishing"]), ValueError, "rules has 'vanishing'; .* did you mean 'vanishing-"),
        ((Recording.create(), None, [3]), ValueError, "rules has 3; non-finite, "),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    arguments: tuple[Any, ...], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        diagnose(*arguments)


@given(st.lists(st.lists(st.floats() | st.just(math.nan), min_size=2, max_size=2), max_size=9))
def test_the_median_is_numpy_s_of_what_is_there(rows: list[list[float]]) -> None:
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    for column, middle in zip(values.T, median(values).tolist(), strict=True):
        known = np.sort(column[~np.isnan(column)])
        if not known.size:
            assert math.isnan(middle)
            continue
        low, high = known[(len(known) - 1) // 2], known[len(known) // 2]
        expected = math.nan if {low, high} == {-math.inf, math.inf} else low / 2 + high / 2
        # Halves of subnormal numbers are rounded, each by at most half of the smallest.
        assert middle == pytest.approx(expected, rel=1e-15, abs=1e-323, nan_ok=True)


@given(st.lists(st.booleans(), max_size=12))
def test_lasting_since_is_the_place_behind_the_last_sound_one(states: list[bool]) -> None:
    bad = np.array([*states, True])
    place = lasting_since(bad[:, None])
    assert bad[place:].all()
    assert place == 0 or not bad[place - 1]


def test_a_scope_that_has_no_step_yet_says_that_nothing_could_be_judged() -> None:
    model = nn.Linear(4, 2)
    with GradScope(model) as scope:
        assert str(scope.diagnose()) == "nothing could be judged: no step is recorded yet"
        assert set(scope.diagnose().unknown) == set(rule_names())
        assert "No fault" not in scope.diagnose()._repr_html_()
        model(torch.randn(3, 4)).sum().backward()
        scope.step()
        model(torch.randn(3, 4))  # what has ended is written when the next forward pass begins
        assert "could be judged" not in str(scope.diagnose())
