"""Fifteen questions that users ask: the code of docs/questions.md answers them, and what it answers is so.

Each answer is held to something that does not ask GradScope: the parameter's own `grad`, fresh samples, a training run.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradscope import GradScope, diagnose, init, probe
from gradscope.diagnosis import Finding, Findings
from gradscope.recording import Recording
from tests.questions import PAGE, answer, lacking, sections
from tests.test_readme import ROOT, assert_same_output

QUESTIONS = list(sections())
NAN, ZERO, NONE, VANISHING, EXPLOSION, GELU, DEFAULT, HUNDRED, HALF, TRAINER = QUESTIONS[:10]
CLIPPING, SPIKE, DEAD, RATE, NORMS = QUESTIONS[10:]


def only(findings: Findings, rule: str) -> Finding:
    """The one finding there is."""
    assert [one.rule for one in findings] == [rule]
    return findings[0]


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_code_prints_what_the_page_shows(question: str) -> None:
    printed = answer(question).printed
    assert printed
    assert_same_output(sections()[question][1], printed)


def test_the_readme_has_a_line_for_each_question_that_leads_to_its_answer() -> None:
    links = re.findall(
        r"^\| \[[^|]+\]\(docs/questions\.md#([^)]+)\) \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    anchors = [re.sub(r"[^\w\- ]", "", question.lower()).replace(" ", "-") for question in QUESTIONS]
    assert links == anchors
    assert len(links) == 15


def test_only_the_trainer_needs_more_than_gradscope_does() -> None:
    headers = [code.partition("\n")[0] for code, _ in sections().values()]
    assert [header for header in headers if header.startswith("# needs")] == ["# needs: transformers, accelerate"]
    assert lacking("# needs: no_such_package, torch\n") == ["no_such_package"]
    assert PAGE.is_file()


def test_which_layer_first_made_nan() -> None:
    asked = answer(NAN)
    found = only(asked.scope.diagnose(), "non-finite")
    assert (found.sites, found.steps, found.frontier.name) == (("pool",), (6,), "pool")
    words = asked.model.encoder(asked.model.embed(asked.tokens))
    assert words.isfinite().all()
    assert asked.model.pool(words, (asked.tokens != 0).unsqueeze(-1)).isnan().any()
    assert all(p.isfinite().all() for p in asked.model.parameters()), "it came before the optimizer's step"


def test_why_is_my_gradient_0() -> None:
    asked = answer(ZERO)
    states = asked.scope.recording.gradient_states()
    zero = {name for name, p in asked.model.named_parameters() if p.grad is not None and not p.grad.any()}
    assert {name for name, state in states.items() if state == "zero"} == zero != set()
    found = only(asked.scope.diagnose(), "no-gradient")
    assert (found.causes, found.frontier.name) == (("zero",), "encoder.2.weight")
    assert "round" in found.remedy


def test_a_gradient_that_passes_the_rounding_by_is_not_0() -> None:
    class Straight(answer(ZERO).Quantized):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor) -> Tensor:
            code = self.encoder(x)
            return self.decoder(code + (torch.round(code * 4) / 4 - code).detach())

    torch.manual_seed(0)
    model = Straight()
    with GradScope(model, every=1) as scope:
        for _ in range(3):
            x = torch.randn(32, 16)
            F.mse_loss(scope(x), x).backward()
    assert set(scope.recording.gradient_states().values()) == {"flows"}
    assert not scope.diagnose()


def test_why_is_p_grad_none() -> None:
    asked = answer(NONE)
    model = asked.Net()
    model(torch.randn(8, 16)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    states = asked.recording.gradient_states()
    assert {name for name, state in states.items() if state in ("unused", "frozen")} == without
    assert {name for name, state in states.items() if state == "frozen"} == {"backbone.weight", "backbone.bias"}
    found = {one.sites[0]: one.causes[0] for one in diagnose(asked.recording)}
    assert found == {"features.weight": "detached", "spare.weight": "unused", "backbone.weight": "frozen"}


def test_are_my_gradients_vanishing() -> None:
    asked = answer(VANISHING)
    found = only(diagnose(asked.before), "vanishing-gradient")
    # Each layer's weights are 6 times too small for ReLU; 5 of its standard deviations at this width.
    expected, spread = -20 * math.log10(6) / 2, math.sqrt(20 * 5 / 64) / 2 / math.log(10)
    assert found.value == pytest.approx(expected, abs=5 * spread)
    assert any("default" in cause for cause in found.causes)
    assert not diagnose(asked.after)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_whether_gradients_vanish_is_not_a_matter_of_the_loss_s_scale(scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 10))
    batch = torch.randn(64, 64), torch.randint(10, (64,))
    found = diagnose(probe(model, *batch, lambda output, target: scale * F.cross_entropy(output, target)))
    plain = diagnose(answer(VANISHING).before)
    assert [one.sites for one in found] == [one.sites for one in plain]
    assert found[0].value == pytest.approx(plain[0].value, abs=1e-3)


@pytest.mark.parametrize("first", [4, 12, 20])
def test_which_layer_starts_the_explosion(first: int) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(*(m for _ in range(16) for m in (nn.Linear(256, 256), nn.ReLU())), nn.Linear(256, 10))
    init.initialize(model)
    for i in range(first, first + 6, 2):
        nn.init.normal_(model[i].weight)
    findings = diagnose(probe(model, torch.randn(64, 256)))
    assert findings[0].rule == "exploding-activation"
    assert findings[0].frontier.name == str(first)
    assert not any(int(site.partition(".")[0]) < first for one in findings for site in one.sites)
    assert answer(EXPLOSION).findings[0].frontier.name == "12"


def test_which_init_for_gelu() -> None:
    asked = answer(GELU)
    z = torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = F.gelu(z).square()
    error = float(squares.std() / squares.mean()) / 1e3 / 2
    assert init.gain("gelu") == pytest.approx(float(squares.mean()) ** -0.5, rel=5 * error)
    recording = probe(asked.model, asked.batch)  # initialized as suggested
    for signal in ("activation", "activation_grad"):
        assert abs(recording.profile(signal).decades_per_layer) < 0.02
    assert abs(asked.found.before.measured_backward) > 10


def test_is_the_default_of_linear_wrong_here() -> None:
    asked = answer(DEFAULT)
    torch.manual_seed(0)
    models = {"note": [asked.chain(1), asked.chain(12, lambda: nn.BatchNorm1d(64))], "error": [asked.chain(12)]}
    for severity, some in models.items():
        for model in some:
            assert only(init.audit(model), "default-init").severity == severity
            gradient = probe(model, torch.randn(64, 64)).profile("activation_grad", role="pre-activation").values
            lost = math.log10(gradient[-1] / gradient[0])
            assert (lost > 2) == (severity == "error"), lost
    repaired = asked.chain(12)
    init.initialize(repaired)
    assert not init.audit(repaired)


def test_is_my_100_layer_net_trainable() -> None:
    expected = {name: float(n) for name, n in re.findall(r"(\w+): .*?([\d.]+) decades lost", answer(HUNDRED).printed)}
    assert set(expected) == {"torch_default"}
    last = {}
    for scheme in ("torch_default", "orthogonal"):
        torch.manual_seed(0)
        model = nn.Sequential(*(m for _ in range(99) for m in (nn.Linear(128, 128), nn.Tanh())), nn.Linear(128, 10))
        init.initialize(model, scheme)
        x = torch.randn(128, 128)
        if scheme in expected:
            measured = only(diagnose(probe(model, x)), "vanishing-gradient").value
            spread = math.sqrt(100 * 2 / 128) / 2 / math.log(10)  # tanh's signal is small: a linear network's
            assert -measured == pytest.approx(expected[scheme], abs=5 * spread)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(33):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), x[:, :10].argmax(dim=1))
            loss.backward()
            optimizer.step()
        last[scheme] = float(loss.detach())
    assert last["torch_default"] > 0.95 * math.log(10) > 2 * last["orthogonal"]


def test_why_is_my_fp16_loss_nan() -> None:
    asked = answer(HALF)
    found = only(asked.half.diagnose(), "dtype-overflow")
    assert found.sites == ("2.down",)
    assert "bfloat16" in found.remedy
    brain = asked.brain.recording
    assert np.isfinite(brain.notes("loss")).all()
    sites, largest = brain.sites_of("activation"), brain.values("activation", "abs_max")[0]
    beyond = [site.name for site, size in zip(sites, largest.tolist(), strict=True) if size >= 65520]
    told = [one.site.name for one in brain.precision("activation", "float16") if one.overflowed_at_most > 0]
    assert told == beyond
    assert told[0] == "2.down"


def test_loss_0_but_grad_norm_nan_in_the_hf_trainer() -> None:
    asked = answer(TRAINER)
    logged = asked.trainer.state.log_history
    assert [one["loss"] for one in logged[1:3]] == [0.0, 0.0]
    assert all(math.isnan(one["grad_norm"]) for one in logged[1:3])
    batch = {"input_ids": asked.tokens[:8], "labels": asked.tokens[:8]}
    assert asked.model(**batch).loss.isnan(), "what the log calls 0"
    first = asked.scope.first_nonfinite
    assert (first.step, first.signal, first.site, first.producer) == (0, "update", "transformer.wte.weight", True)
    assert asked.scope.diagnose()[0].rule == "non-finite"
    assert not halved(asked.trainer.args.adam_epsilon).isfinite().all()
    assert halved(1e-4).isfinite().all()


def halved(eps: float) -> Tensor:
    """A float16 weight after one step of AdamW, by a gradient whose square is 0 in float16."""
    weight = nn.Parameter(torch.ones(8, dtype=torch.float16))
    weight.grad = torch.full_like(weight, 1e-4)
    torch.optim.AdamW([weight], lr=1e-3, eps=eps).step()
    return weight.detach()


def test_what_max_norm() -> None:
    asked = answer(CLIPPING)
    only(asked.tight.diagnose(), "clipping-always")
    recording = asked.train(asked.sane).recording
    share = float((recording.notes("clip_coefficient") < 1 - 1e-6).mean())
    assert 0 < share <= 0.2
    assert not diagnose(recording)


def test_who_caused_the_spike_at_step_n() -> None:
    found = answer(SPIKE).found
    assert not found["nothing"]
    batch, weights, step = (found[event][0] for event in list(found)[1:])
    assert (batch.rule, batch.steps) == ("gradient-spike", (40,))
    assert "batch of step 40" in batch.causes[0]
    assert (weights.rule, weights.steps[0]) == ("gradient-spike", 40)
    assert "'2.weight' was changed by something other than the optimizer" in weights.causes[0]
    assert (step.rule, step.steps) == ("update-too-large", (39,))
    assert any("gradient-spike" in consequence for consequence in step.consequences)


def test_do_i_have_dead_relus() -> None:
    asked = answer(DEAD)
    found = only(asked.sick.diagnose(), "dead-units")
    assert found.sites == ("1", "3")
    x = torch.rand(4096, 16, generator=torch.Generator().manual_seed(0))
    for scope in (asked.sick, asked.healthy):
        dead = scope.recording.profile("activation", "dead_fraction", role="activation")
        with torch.no_grad():
            silent = [float((scope.model[:end](x) == 0).all(dim=0).float().mean()) for end in (2, 4)]
        # Ten batches of 64 are a sixth of these samples: units that fire once in a while may look dead there.
        assert dead.values == pytest.approx(silent, abs=0.1)
    assert not asked.healthy.diagnose()


def test_is_my_learning_rate_sane() -> None:
    asked = answer(RATE)
    small, sane, large = asked.found.values()
    assert not sane
    for findings, rule in ((small, "update-too-small"), (large, "update-too-large")):
        found = only(findings, rule)
        rate = float(found.remedy.rpartition(" ")[2])
        assert not asked.train(rate), f"{rate}, which it recommends"


def test_why_do_norms_differ_across_accumulation() -> None:
    asked = answer(NORMS)
    whole = asked.whole.notes("grad_norm")[0]
    summed = asked.train([16] * 4, 1)
    assert summed.notes("grad_norm")[0] == pytest.approx(4 * whole, rel=1e-5)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    F.cross_entropy(model(torch.randn(64, 16)), torch.randint(4, (64,))).backward()
    # float32 sums of the same terms in another order
    assert whole == pytest.approx(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])), rel=1e-5)


ON_RANKS = """
import sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from gradscope import GradScope

dist.init_process_group("gloo")
for log, *pieces in ((sys.argv[1], 32, 32), (sys.argv[2], 56, 8)):
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)))
    x, y = (whole.split(pieces)[dist.get_rank()] for whole in (torch.randn(64, 16), torch.randint(4, (64,))))
    with GradScope(model, log=log) as scope:
        nn.functional.cross_entropy(scope(x), y).backward()
        scope.step()
dist.destroy_process_group()
"""


def test_why_do_norms_differ_across_ddp(tmp_path: Path) -> None:
    script, equal, unequal = tmp_path / "train.py", tmp_path / "equal.gscope", tmp_path / "unequal.gscope"
    script.write_text(ON_RANKS, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, equal, unequal],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    asked = answer(NORMS)
    whole = asked.whole.notes("grad_norm")[0]
    # float32 sums of the same terms in another order
    assert Recording.load(equal).notes("grad_norm")[0] == pytest.approx(whole, rel=1e-5)
    # Ranks are averaged whatever the sizes of their batches, as pieces are whose means are averaged.
    averaged = asked.train([56, 8], 2).notes("grad_norm")[0]
    assert Recording.load(unequal).notes("grad_norm")[0] == pytest.approx(averaged, rel=1e-5)
    assert averaged != pytest.approx(whole, rel=1e-2)
