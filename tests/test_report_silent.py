"""What pictures show where nothing is left of a signal: no gradient, exact zeros, NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope import GradScope, Recording, probe
from gradscope.diagnosis import diagnose
from gradscope.report import write_run_report
from gradscope.report._run_curves import update_ratio
from gradscope.report._run_terminal import run_text
from gradscope.report._terminal import console, pictures_text
from gradscope.report.figures import depth_step_heatmap, profile, update_to_weight

WIDTH, CLASSES = 16, 4


class Detached(nn.Module):
    """An encoder of three layers whose output is detached before the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.encoder.append(nn.Linear(WIDTH, WIDTH))
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).detach())


class NoGrad(Detached):
    """The same under `no_grad`: its outputs require no gradient, so that none has a site of its own."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.encoder(x)
        return self.head(h)


class Late(Detached):
    """Detached from the sixth call on."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.encoder(x)
        return self.head(h.detach() if self.calls > 6 else h)


def dead() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    nn.init.constant_(model[2].bias, -50.0)  # type: ignore[arg-type]
    return model


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, WIDTH, generator=generator), torch.randint(CLASSES, (32,), generator=generator)


def trained(model: nn.Module, steps: int = 12, nan_at: int | None = None) -> Recording:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with GradScope(model, every=1) as scope:
        for step in range(steps):
            x, y = batch(step)
            if step == nan_at:
                x[0, 0] = np.nan
            optimizer.zero_grad()
            loss = F.cross_entropy(scope(x), y)
            scope.note(loss=loss)
            loss.backward()
            optimizer.step()
            scope.step()
    return scope.recording


def probed(model: nn.Module) -> Recording:
    x, y = batch()
    return probe(model, x, target=y, loss_fn=F.cross_entropy)


def marks(figure: Figure, label: str) -> list[float]:
    """Depths of the marks whose label begins so."""
    found = [one for one in figure.axes[0].lines if str(one.get_label()).startswith(label)]
    return sorted(float(x) for one in found for x in np.asarray(one.get_xdata()))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def said(recording: Recording, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """The words of each picture, and what the terminal says of where to start."""
    report = write_run_report(recording, tmp_path, findings=diagnose(recording))
    return {one.file: one.data["words"] for one in report.pictures}, str(pictures_text(report))


ENCODER = [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("kind", [Detached, NoGrad])
@pytest.mark.parametrize("record", [trained, probed])
def test_the_picture_of_a_cut_gradient_shows_the_finding_and_every_site_without_one(
    kind: type[nn.Module], record: Any, tmp_path: Path
) -> None:
    recording = record(kind())
    figure = profile(recording, "activation_grad", findings=diagnose(recording))
    sites = ENCODER if kind is Detached else [1.0, 3.0, 5.0]  # under no_grad, those of the finding
    assert marks(figure, "no gradient") == sites
    assert marks(figure, "first sick site: encoder.4 (no-gradient)") == [5.0]
    low, high = figure.axes[0].get_xlim()
    assert low <= 1 < 8 <= high
    words, start = said(recording, tmp_path)
    count = f"{len(sites)} of {len(sites) + 3} sites"
    head = f"First sick site: encoder.4 (no-gradient), depth 5. No gradient comes to {count}."
    assert words["profile__activation_grad.png"] == head
    assert not [one for one in words.values() if one.startswith("No fault found here")]
    assert words["profile__activation.png"].endswith("Also found, not on this picture: no-gradient.")
    assert start.endswith(str(tmp_path / "profile__activation_grad.png"))


def test_the_pictures_of_weights_show_those_to_which_no_gradient_comes() -> None:
    recording = trained(Detached())
    found = diagnose(recording)
    figure = profile(recording, "weight_grad", findings=found)
    assert marks(figure, "no gradient: 3 weights") == [1.0, 3.0, 5.0]
    names = [text.get_text() for text in figure.axes[0].child_axes[0].get_xticklabels()]
    assert sorted(names) == sorted(f"{n}.weight" for n in ("encoder.0", "encoder.2", "encoder.4", "head.0", "head.2"))
    heat = depth_step_heatmap(recording, "weight_grad", findings=found)
    rows = [text.get_text() for text in heat.axes[0].get_yticklabels()]
    assert {"encoder.0.weight", "encoder.4.bias"} <= set(rows)
    assert "no gradient" in legend(heat)
    assert marks(profile(recording, "update", findings=found), "exactly 0: 3 weights") == [1.0, 3.0, 5.0]


def test_a_gradient_that_is_cut_within_the_run_is_missing_at_the_last_step() -> None:
    recording = trained(Late(), steps=40)
    found = diagnose(recording)
    assert any(one.rule == "no-gradient" for one in found)
    figure = profile(recording, "activation_grad", findings=found)
    assert {1.0, 3.0, 5.0} <= set(marks(figure, "no gradient"))


def test_exact_zeros_lie_at_the_floor_of_the_axis() -> None:
    recording = trained(dead())
    figure = profile(recording, "activation_grad", findings=diagnose(recording))
    zero = recording.values("activation_grad", "rms")[-1] == 0
    depths = [site.depth for site in np.array(recording.sites_of("activation_grad"), dtype=object)[zero]]
    assert depths
    assert marks(figure, "exactly 0") == depths
    (mark,) = [one for one in figure.axes[0].lines if str(one.get_label()).startswith("exactly 0")]
    assert set(np.asarray(mark.get_ydata()).tolist()) == {figure.axes[0].get_ylim()[0]}
    assert any(text.endswith("no slope") for text in legend(figure))


def test_sites_where_nothing_is_finite_are_marked_and_the_run_starts_at_the_map_over_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)]
    recording = trained(nn.Sequential(*layers), nan_at=7)
    figure = profile(recording, "activation", findings=diagnose(recording))
    assert marks(figure, "NaN or infinite") == [1.0, 2.0, 3.0, 4.0, 5.0]
    _, start = said(recording, tmp_path)
    assert start.endswith("heatmap__activation.png")


def test_a_sound_network_has_no_marks_and_starts_with_the_first_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
    recording = trained(model, 4)
    for signal in ("activation", "activation_grad", "weight_grad", "update"):
        figure = profile(recording, signal)  # type: ignore[arg-type]
        assert not [text for text in legend(figure) if text.startswith(("no gradient", "exactly 0", "NaN"))]
    report = write_run_report(recording, tmp_path, findings=type(diagnose(recording))(()))
    assert report.pictures[0].file == "profile__activation.png"


def test_a_frozen_backbone_is_not_said_to_lack_a_gradient() -> None:
    model = Detached()
    model.encoder.requires_grad_(False)
    recording = trained(model, 4)
    for signal in ("activation_grad", "weight_grad"):
        figure = profile(recording, signal, findings=diagnose(recording))  # type: ignore[arg-type]
        assert not marks(figure, "no gradient")
        assert figure.axes[0].get_xlim()[0] < 1  # the axis is that of the activations all the same


def test_the_update_ratio_names_every_weight_that_does_not_change() -> None:
    recording = trained(Detached())
    texts = [text.get_text() for text in update_to_weight(recording).axes[0].texts]
    assert "3 unchanged\nencoder.0.weight\nencoder.2.weight\nencoder.4.weight" in texts
    assert [text.split("\n")[0] for text in texts] == ["3 unchanged", "slowest", "fastest"]
    ratio = update_ratio(recording)
    assert [ratio.sites[i].name for i in ratio.extremes] == ["head.2.weight", "head.0.weight"]


def test_a_run_in_which_no_weight_changes_has_its_picture() -> None:
    recording = trained(dead().requires_grad_(True))
    model = nn.Sequential(nn.Linear(WIDTH, CLASSES))
    optimizer_free = probed(model)
    with pytest.raises(ValueError, match="no optimizer step was observed"):
        update_to_weight(optimizer_free)
    texts = [text.get_text() for text in update_to_weight(recording).axes[0].texts]
    assert any("unchanged" in text for text in texts)


def test_a_probe_has_no_last_step_in_its_legend() -> None:
    recording = probed(Detached())
    for signal in ("activation", "activation_grad", "weight"):
        labels = legend(profile(recording, signal, findings=diagnose(recording)))  # type: ignore[arg-type]
        assert any(text == "other sites" for text in labels) or signal == "weight"
        assert not [text for text in labels if "last step" in text]


def test_one_slope_is_told_in_one_way_by_picture_and_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4)]
    recording = probed(nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES)))
    found = type(diagnose(recording))(())
    console().print(run_text(recording, findings=found))
    text = " ".join(capsys.readouterr().out.split())
    for signal, name in (("activation", "the activation changes by "), ("activation_grad", "the gradient by ")):
        slope = f"{recording.profile(signal).decades_per_layer:+.3f}".replace("-", "−")  # type: ignore[arg-type]
        assert f"{name}{slope}" in text
        assert any(f"{slope} decades per layer" in one for one in legend(profile(recording, signal)))  # type: ignore[arg-type]


def test_steps_on_the_axis_are_whole() -> None:
    recording = trained(Detached(), steps=5)
    figure = depth_step_heatmap(recording, "activation")
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


@pytest.mark.parametrize("name", ["a" * 24, "W" * 24, "encoder.layers.11.attention"])
def test_the_head_of_a_picture_stays_on_it_whatever_the_letters(name: str) -> None:
    torch.manual_seed(0)
    parts = name.split(".")
    inner: nn.Module = nn.Sequential(*(m for _ in range(14) for m in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())))
    for part in reversed(parts):
        inner = _holder(part, inner)
    recording = trained(nn.Sequential(inner, nn.Linear(WIDTH, CLASSES)), 6)
    found = diagnose(recording)
    for draw in (profile, depth_step_heatmap):
        figure = draw(recording, "activation_grad", findings=found)  # type: ignore[operator]
        figure.canvas.draw()
        width = figure.get_window_extent().width
        assert all(text.get_window_extent().x1 <= width for text in figure.texts)


def _holder(name: str, inner: nn.Module) -> nn.Module:
    outer = nn.Sequential()
    outer.add_module(name, inner)
    return outer


def test_a_spike_is_marked_on_the_map_over_steps_with_which_the_run_starts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    with GradScope(model, every=1) as scope:
        for step in range(90):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(scope(x * (1000 if step == 70 else 1)), y)
            scope.note(loss=loss)
            loss.backward()
            optimizer.step()
            scope.step()
    found = diagnose(scope.recording)
    (one,) = [one for one in found if one.rule == "gradient-spike"]
    figure = depth_step_heatmap(scope.recording, "weight_grad", findings=found)
    assert marks(figure, "gradient-spike") == [float(one.steps[0])] == [70.0]
    assert "At step 70: gradient-spike." in [text.get_text() for text in figure.texts][1]
    assert "gradient-spike" in legend(figure)
    if found[0] is one:
        assert said(scope.recording, tmp_path)[1].endswith("heatmap__weight_grad.png")
