"""What is so by design, or does no harm, is no alarm; what looks like it, and is none of it, is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradscope import diagnose, probe
from tests.diagnosing import HE, faults, found, recorded, trained, two_blobs


def kinds(recording: Any) -> list[str]:
    return [one.rule for one in faults(recording)]


class Gated(nn.Module):
    """Blocks of a skip and a residual output, as WaveNet has them; the last residual output, or a middle skip, is not
    used."""

    def __init__(self, without: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.without, self.head = nn.Linear(16, 16), without, nn.Linear(16, 4)
        block = {"residual": lambda: nn.Linear(16, 16), "skip": lambda: nn.Linear(16, 16)}
        self.blocks = nn.ModuleList(nn.ModuleDict({name: make() for name, make in block.items()}) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for i, block in enumerate(self.blocks):
            skip, x = block["skip"](torch.tanh(x)), x + block["residual"](torch.tanh(x))
            if not (self.without == "skip" and i == 1):
                skips.append(skip)
        return self.head(sum(skips, torch.zeros(())))


@pytest.mark.parametrize(("without", "severity"), [("the last residual", "note"), ("skip", "warning")])
def test_what_the_last_of_a_row_of_blocks_would_hand_on_is_a_note(without: str, severity: str) -> None:
    recording = trained(Gated(without), two_blobs(), F.cross_entropy, steps=12, lr=0.1)
    severities = {one.severity for one in found(recording, "no-gradient")}
    assert severity in severities
    assert ("warning" in severities) == (severity == "warning")


class SideBySide(nn.Module):
    """Queries, keys and values of one input; or the same three layers one behind the other."""

    def __init__(self, series: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.head, self.series = nn.Linear(16, 4), series
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=0.02)  # 16 · 0.02² = 0.0064: 1.1 decades each
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.series:
            return self.head(self.value(self.key(self.query(x))))
        weights = (self.query(x)[:, None] * self.key(x)[:, None]).softmax(-1)
        return self.head(x + (weights * self.value(x)[:, None]).sum(1))


@pytest.mark.parametrize(("series", "said"), [(True, True), (False, False)])
def test_layers_side_by_side_are_no_row(series: bool, said: bool) -> None:
    recording = probe(SideBySide(series), two_blobs()(0)[0])
    assert bool(found(recording, "init-mismatch")) == said


class Averaged(nn.Module):
    """A mean over many places before the head: the gradient of each is a thousandth, and all are alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(16, 16), nn.Tanh())))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, None] + torch.zeros(4096, 1)).mean(1))


def test_a_mean_over_places_that_is_a_function_is_no_loss_of_gradient() -> None:
    inputs, target = two_blobs(size=8)(0)
    recording = probe(Averaged(), inputs, target, F.cross_entropy)
    assert "vanishing-gradient" not in [one.rule for one in diagnose(recording)]


class Summed(nn.Module):
    """Tokens and places, as tables, summed up before a norm."""

    def __init__(self, places: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(20, 16), nn.Embedding(8, 16)
        nn.init.normal_(self.places.weight, std=places)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.tokens(x) + self.places(torch.arange(8))).mean(1))


@pytest.mark.parametrize(("places", "said"), [(200.0, ["input-scale"]), (5.0, [])])
def test_a_table_that_drowns_another_is_told_though_a_norm_follows(places: float, said: list[str]) -> None:
    tokens = torch.randint(20, (64, 8), generator=torch.Generator().manual_seed(0))
    assert [one.rule for one in found(probe(Summed(places), tokens), "input-scale")] == said


class Normalized(nn.Module):
    """Rows of a table that are normalized: their size does not matter forward, and divides the gradient."""

    def __init__(self, std: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)
        nn.init.normal_(self.table.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.normalize(self.table(x), dim=-1))


def words(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(50, (64,), generator=torch.Generator().manual_seed(step))
    return x, (x * 7) % 4


@pytest.mark.parametrize(("std", "said"), [(1e-6, True), (0.02, False)])
def test_a_table_that_begins_at_next_to_nothing_is_told(std: float, said: bool) -> None:
    recording = trained(Normalized(std), words, F.cross_entropy, steps=30, lr=0.03)
    assert bool(found(recording, "init-mismatch")) == said


def test_a_loss_that_fell_until_it_was_nan_was_not_thrown_by_its_steps() -> None:
    changes = {("update", f"{i}.weight"): {"std": 0.3 * HE} for i in range(0, 11, 2)}
    broken: dict[Any, Any] = {("weight_grad", "4.weight"): {"nans": lambda step: int(step >= 7)}}
    fell = recorded(changes | broken, notes=lambda step: {"loss": 1.0 / (step + 1)})
    rose = recorded(changes | broken, notes=lambda step: {"loss": 1.0 * 3.0**step})
    assert kinds(fell) == ["non-finite"]
    assert kinds(rose) == ["update-too-large"]


@pytest.mark.parametrize(("std", "said"), [(3.0, ["saturated-units"]), (0.1, [])])
def test_an_output_that_begins_saturated_is_told(std: float, said: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2), nn.Tanh())
    nn.init.normal_(model[2].weight, std=std)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(128, 16, generator=torch.Generator().manual_seed(step))
        return x, 0.8 * torch.tanh(x[:, :2])

    recording = trained(model, batch, F.mse_loss, steps=30, lr=1e-3)
    assert [kind for kind in kinds(recording) if kind == "saturated-units"] == said


@pytest.mark.parametrize(("lr", "severity"), [(0.5, "note"), (1e-4, "warning")])
def test_a_layer_that_is_frozen_at_random_is_a_note_where_the_run_thrives_all_the_same(
    lr: float, severity: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    model[2].requires_grad_(False)
    recording = trained(model, two_blobs(), F.cross_entropy, steps=60, lr=lr)
    (one,) = found(recording, "no-gradient")
    assert one.severity == severity
