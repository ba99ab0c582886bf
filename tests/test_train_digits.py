"""The example on real input: four starts of the same 20-layer network, and what the README says of them."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gradscope.recording import decades_per_layer, frontier

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import train_digits  # noqa: E402

ROW = re.compile(r"^(\w+) +([-+][\d.]+) +([-+][\d.]+) +(\S+) +(\S+) +([\d.]+)%$", re.MULTILINE)
SHOWN = {match[1]: [float(x) for x in match.groups()[1:]] for match in ROW.finditer((ROOT / "README.md").read_text())}


@pytest.mark.parametrize("start", train_digits.STARTS, ids=lambda start: start.name)
def test_what_the_readme_shows_of_the_digits_is_what_comes_out(start: train_digits.Start, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recording, accuracy = train_digits.train(start, tmp_path / "run.gscope")
    finally:
        torch.set_num_threads(threads)
    forward, backward, first, last, shown_accuracy = SHOWN[start.name]
    for signal, slope in (("activation", forward), ("activation_grad", backward)):
        profile = recording.profile(signal, "rms", 0, role="pre-activation")
        assert decades_per_layer(profile.values, profile.direction) == pytest.approx(slope, abs=0.002)
    loss = recording.notes("loss")
    assert loss[0] == pytest.approx(first, rel=1e-3)
    if math.isnan(last):
        assert math.isnan(loss[-1])
    elif last > 2:  # has not learned: ln 10, whatever the rounding
        assert loss[-1] == pytest.approx(math.log(10), abs=0.05)
        assert accuracy == pytest.approx(0.1, abs=0.03)
    else:  # it learns; ten roundings of the first weights ended between 96.3 and 98.6 % accuracy
        assert loss[-1] < 0.25 < math.log(10) < loss[0]
        assert accuracy == pytest.approx(shown_accuracy / 100, abs=0.04)


def test_the_start_that_explodes_has_its_first_sick_site_and_its_first_nan_named(tmp_path: Path) -> None:
    (start,) = [s for s in train_digits.STARTS if s.name == "relu_naive_normal"]
    recording, _ = train_digits.train(start, tmp_path / "run.gscope", steps=3)
    sick = frontier(recording.profile("activation", "rms", 0))
    assert sick is not None
    assert sick.depth <= 3
    nonfinite = recording.values("activation", "nonfinite_count")
    step, site = np.argwhere(nonfinite > 0)[0]
    assert recording.steps[step] == 1
    assert recording.sites_of("activation")[site].role == "pre-activation"
