"""Two runs side by side: what counts as a difference, how it is named, and where it is said to begin."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradscope import GradScope, probe
from gradscope.recording import Baseline, Recording, baseline_of, compare
from gradscope.testing import BaselineError, load_baseline, save_baseline

SGD: Callable[..., torch.optim.Optimizer] = torch.optim.SGD


def chain(*, std: float = 1.0, activation: type[nn.Module] = nn.ReLU, depth: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for _ in range(depth) for part in (nn.Linear(16, 16), activation())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    for parameter in model.parameters():
        parameter.data *= std
    return model


def probed(model: nn.Module) -> Baseline:
    return baseline_of(probe(model, torch.linspace(-1, 1, 8 * 16).reshape(8, 16)))


def trained(lr: float, steps: int = 3) -> Recording:
    model = chain()
    optimizer = SGD(model.parameters(), lr=lr)
    x = torch.linspace(-1, 1, 8 * 16).reshape(8, 16)
    with GradScope(model, optimizer, every=1) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = scope(x).square().mean()
            scope.note(loss=loss.item())
            loss.backward()
            optimizer.step()
    return scope.recording


def kinds(expected: Baseline, obtained: Baseline) -> dict[str, str]:
    return {change.site: change.kind for change in compare(expected, obtained).changes}


def test_the_same_model_is_the_same_and_a_comparison_is_true_then() -> None:
    found = compare(probed(chain()), probed(chain()))
    assert found
    assert found.same
    assert "the same" in str(found)
    # 8 sites with activations, 7 gradients, 8 weights and biases twice, norm and loss.
    assert found.compared == 8 + 7 + 8 + 8 + 2


@pytest.mark.parametrize(("factor", "same"), [(1 + 0.9e-3, True), (1 - 0.9e-3, True), (1 + 1.1e-3, False)])
def test_the_tolerance_is_relative_and_lies_at_one_in_a_thousand(factor: float, same: bool) -> None:
    a = probed(chain())
    b = probed(chain())
    b.sizes["activation"]["2"] += math.log10(factor)  # type: ignore[operator]
    assert compare(a, b).same == same
    assert compare(a, b, rtol=2e-3).same


def test_a_difference_begins_at_the_weight_that_was_changed() -> None:
    model = chain()
    with torch.no_grad():
        model[2].weight *= 1.5  # type: ignore[operator, union-attr]
    found = compare(probed(chain()), probed(model))
    assert found.first is not None
    assert (found.first.signal, found.first.site) == ("weight", "2.weight")
    assert found.first.ratio == pytest.approx(1.5, rel=1e-5)
    assert abs(found.worst[0].decades) == max(abs(one.decades) for one in found.differences)
    assert "2.weight" in found.headline


def test_a_larger_learning_rate_begins_at_the_update_of_the_first_step() -> None:
    found = compare(trained(0.1), trained(0.3))
    assert found.first is not None
    assert (found.first.signal, found.first.site, found.first.since) == ("update", "0.weight", 0)
    assert {one.signal for one in found.differences} >= {"update", "weight", "loss"}
    assert min(one.since for one in found.differences if one.signal == "weight") == 1


def test_each_number_that_is_off_is_counted_whatever_the_steps() -> None:
    a = baseline_of(trained(0.1))
    b = baseline_of(trained(0.1))
    b.sizes["update"]["2.weight"][1:] += 0.1  # type: ignore[index]
    found = compare(a, b)
    assert len(found.differences) == 1
    assert found.differences[0].steps == found.differing == 2
    assert f"2 of {found.compared} numbers differ" in found.headline
    assert found.as_dict()["differing"] == 2


def test_of_long_recordings_a_hundred_common_steps_are_compared_whatever_their_lengths() -> None:
    a, b = trained(0.1, 130), trained(0.1, 120)
    found = compare(a, b)
    assert found.same
    assert found.notes == (
        "of 130 and 120 steps both have 120 steps, and only there they are compared",
        "of 120 steps 100 are compared, evenly spread",
    )
    kept = baseline_of(b, [3, 4, 5, 400])
    assert kept.steps.tolist() == [3, 4, 5]
    assert compare(a, kept).compared == 3 * compare(a, baseline_of(b, [3])).compared


def test_runs_of_several_seeds_and_of_one_are_not_compared() -> None:
    a = probed(chain())
    several = Baseline(**{**a.__dict__, "facts": {**a.facts, "seeds": 4}})
    with pytest.raises(ValueError, match="one run is of one seed and the other of 4 seeds, so they cannot be compared"):
        compare(a, several)


def test_sites_added_removed_renamed_reordered_and_exchanged_are_named() -> None:
    base = probed(nn.Sequential(*chain()))
    assert kinds(base, probed(nn.Sequential(*chain(), nn.Tanh()))) == {"7": "added"}
    assert kinds(probed(nn.Sequential(*chain(), nn.Tanh())), base) == {"7": "removed"}
    assert set(kinds(base, probed(chain(activation=nn.GELU))).values()) == {"changed"}

    def ordered(*names: str) -> Baseline:
        torch.manual_seed(0)
        return probed(nn.Sequential(OrderedDict((name, nn.Linear(16, 16)) for name in names)))

    renamed = compare(ordered("a", "b", "c"), ordered("a", "x", "c"))
    assert renamed.changes[0].text == "b is now named x"
    assert len(renamed.changes) == 1  # its parameters went along
    moved = compare(ordered("a", "b", "c"), ordered("b", "c", "a"))
    assert [(change.kind, change.site) for change in moved.changes] == [("reordered", "a")]
    assert moved.changes[0].text == "a now runs after c"


def test_a_gradient_that_is_cut_or_frozen_is_named() -> None:
    model = chain()
    model[0].requires_grad_(False)
    found = compare(probed(chain()), probed(model))
    said = [change.text for change in found.changes if change.kind == "gradient"]
    assert said[0] == "the gradient of 0.weight was there, and now is not asked for (frozen)"


def test_zero_and_not_finite_differ_from_everything_but_themselves() -> None:
    zero, broken = chain(), chain()
    nn.init.zeros_(zero[2].weight)  # type: ignore[arg-type, union-attr]
    with torch.no_grad():
        broken[2].weight[0, 0] = math.nan  # type: ignore[index, operator, union-attr]
    assert compare(probed(zero), probed(zero)).same
    assert compare(probed(broken), probed(broken)).same
    found = compare(probed(chain()), probed(zero))
    assert math.isinf(found.worst[0].decades)
    lost = {one.site: one for one in compare(probed(chain()), probed(broken)).differences if one.signal == "weight"}
    assert math.isnan(lost["2.weight"].obtained)
    assert "not finite" in str(compare(probed(chain()), probed(broken)))


def test_a_bias_before_a_batch_norm_has_a_gradient_of_zero_on_every_machine() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    recording = probe(model, torch.randn(64, 16))
    noise = dict(
        zip([s.name for s in recording.sites_of("weight_grad")], recording.values("weight_grad", "rms")[0], strict=True)
    )
    kept = baseline_of(recording)
    assert noise["0.bias"] > 0  # rounding left something
    assert np.isneginf(kept.sizes["weight_grad"]["0.bias"]).all()
    assert kept.gradients["0.bias"] == "zero"
    assert kept.gradients["3.bias"] == "flows"
    assert np.isfinite(kept.sizes["weight_grad"]["3.bias"]).all()


def test_the_gradient_norm_is_that_of_all_parameters_together() -> None:
    model, x = chain(), torch.randn(8, 16)
    model(x).square().sum().backward()
    norm = torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None]).norm()
    kept = baseline_of(probe(model, x, loss_fn=lambda out: out.square().sum()))
    assert 10 ** kept.gradient_norm[0] == pytest.approx(float(norm), rel=1e-5)


def test_another_torch_version_is_said_and_widens_the_tolerance_ten_times() -> None:
    a, b = probed(chain()), probed(chain())
    b.sizes["activation"]["2"] += math.log10(1.005)  # type: ignore[operator]
    assert not compare(a, b).same
    foreign = Baseline(**{**b.__dict__, "facts": {**b.facts, "torch": "1.0"}})
    found = compare(a, foreign)
    assert found.same
    assert found.rtol == pytest.approx(1e-2)
    assert any(f"torch was {torch.__version__}, and is now 1.0" in note for note in found.notes)


def test_text_markdown_and_json_say_the_same() -> None:
    found = compare(probed(chain()), probed(chain(std=1.1)))
    worst = found.worst[0]
    assert len(found.worst) == 5
    document = json.loads(found.to_json())
    assert document["differences"][0]["site"] == worst.site
    assert document["same"] is False
    assert all(one.site in str(found) and f"| {one.site} |" in found.to_markdown() for one in found.worst)
    root = compare(probed(nn.Linear(16, 4)), probed(nn.Linear(16, 8)))
    assert "&lt;root>" in root.to_markdown()


def test_arguments_that_cannot_be_meant_are_refused_in_one_sentence() -> None:
    a = probed(chain())
    with pytest.raises(TypeError, match="expected is of type int"):
        compare(1, a)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rtol is 0"):
        compare(a, a, rtol=0)
    later = Baseline(**{**a.__dict__, "steps": a.steps + 7})
    with pytest.raises(ValueError, match="no step in common"):
        compare(a, later)


# -- the file -------------------------------------------------------------------------------------------------


def test_a_baseline_comes_back_from_its_file_and_the_same_one_gives_the_same_bytes(tmp_path: Path) -> None:
    kept = baseline_of(trained(0.1))
    path = tmp_path / "folder" / "a.json"
    save_baseline(kept, path, "test_a")
    back = load_baseline(path, "test_a")
    assert compare(kept, back, rtol=1e-5).same
    assert list(back.sizes["weight"]) == list(kept.sizes["weight"])
    assert back.facts["torch"] == torch.__version__
    save_baseline(back, tmp_path / "b.json", "test_a")
    assert (tmp_path / "b.json").read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_baseline_has_one_line_for_each_site(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save_baseline(probed(chain()), path)
    lines = path.read_text().splitlines()
    assert sum(line.startswith(' "2.weight":') for line in lines) == 3  # its state, its size, its gradient's
    assert max(map(len, lines)) < 120


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged: it is no JSON"),
        ("[]", "no baseline"),
        ('{"kind": "gradscope baseline", "schema": 99}', "has schema 99, and this version reads 1"),
        ('{"kind": "gradscope baseline", "schema": 1}', "damaged: a part is missing"),
        ('{"kind": "gradscope baseline", "schema": 1, "test": "other"}', "is for another test, 'other'"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=said) as caught:
        load_baseline(path, "mine" if "other" in text else "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"flows"', '"gone"', "a part is missing or is not what it should be"),
        ("[8, 16]", "[8, 1e400]", "a part is missing or is not what it should be"),
        ('"steps": [0]', '"steps": [0, 0]', "a part is missing or is not what it should be"),
        ('"torch"', '"seeds": "x",\n "torch"', "a part is missing or is not what it should be"),
        ('"torch"', '"seeds": 4,\n "torch"', "a part is missing or is not what it should be"),
        ('"kind"', '<<<<<<< HEAD\n"kind"', "it has git's marks of a conflict"),
    ],
)
def test_a_part_that_is_not_what_it_should_be_is_damage(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "a.json"
    save_baseline(probed(chain()), path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BaselineError, match=said):
        load_baseline(path)


def test_every_cut_of_a_baseline_is_refused_with_a_sentence_and_never_with_another_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save_baseline(probed(chain(depth=1)), path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BaselineError):
            load_baseline(path)
