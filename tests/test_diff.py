"""`gradscope-report diff`: two files or two revisions, the same comparison as the fixture's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gradscope import probe
from gradscope.cli import main
from gradscope.recording import baseline_of
from gradscope.testing import GradientRegression, Policy, save_baseline

Capture = pytest.CaptureFixture[str]
FACTORY = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 8)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("GRADSCOPE_DEBUG", raising=False)


def write(name: str, scale: float = 1.0) -> str:
    """A recording or a baseline, as the name ends."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].weight *= scale
    recording = probe(model, torch.ones(4, 8))
    if name.endswith(".json"):
        save_baseline(baseline_of(recording), Path(name))
    else:
        recording.save(name)
    return name


def refused(capsys: Capture, *argv: str) -> str:
    assert main(["diff", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("first", ["a.gscope", "a.json"])
@pytest.mark.parametrize("second", ["b.gscope", "b.json"])
def test_recordings_and_baselines_are_compared_in_any_pairing(capsys: Capture, first: str, second: str) -> None:
    assert main(["diff", write(first), write(second)]) == 0
    assert "the same" in capsys.readouterr().out
    assert main(["diff", write(f"x{first}"), write(f"x{second}", 2.0)]) == 1
    assert "first weight of 2.weight" in capsys.readouterr().out


def test_json_markdown_and_pictures(capsys: Capture) -> None:
    a, b = write("a.json"), write("b.json", 2.0)
    assert main(["diff", a, b, "--json", "--out", "pictures"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["first"]["site"] == "2.weight"
    index = json.loads(Path("pictures/index.json").read_text())
    assert index["kind"] == "comparison"
    assert all(Path("pictures", picture["file"]).exists() for picture in index["pictures"])
    assert {picture["data"]["signal"] for picture in index["pictures"]} >= {"weight", "activation"}
    assert main(["diff", a, b, "--markdown"]) == 1
    assert "| 2.weight | weight |" in capsys.readouterr().out
    assert main(["diff", a, b, "--rtol", "10"]) == 0


def test_what_cannot_be_compared_is_refused_in_one_sentence(capsys: Capture) -> None:
    a = write("a.json")
    assert "2 files" not in refused(capsys, a, "missing.json")
    assert "diff compares two files, and 1 are given" in refused(capsys, a)
    Path("text").write_text("text")
    assert "is damaged: it is no JSON" in refused(capsys, a, "text")
    Path("cut.gscope").write_bytes(Path(write("b.gscope")).read_bytes()[:5000])
    refused(capsys, a, "cut.gscope")
    assert "--json and --markdown exclude each other" in refused(capsys, a, a, "--json", "--markdown")
    assert "rtol is -1.0; a finite number above 0" in refused(capsys, a, a, "--rtol", "-1")
    assert "give it twice" in refused(capsys, a, "--rev", "HEAD")


def test_baselines_of_several_seeds_are_compared_within_their_band(capsys: Capture) -> None:
    def make(std: float = 1.0, shift: int = 0) -> nn.Module:
        torch.rand(shift)
        model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= std
        return model

    x = torch.linspace(-1, 1, 8 * 32).reshape(8, 32).sin()
    for name, function in (("a", make), ("b", lambda: make(shift=1)), ("c", lambda: make(std=1.5))):
        GradientRegression(f"{name}.json", policy=Policy(update=True)).check(function, x, seeds=6)
    assert main(["diff", "a.json", "b.json"]) == 0
    assert "within the band of the seeds" in capsys.readouterr().out
    assert main(["diff", "a.json", "c.json", "--out", "pictures"]) == 1
    assert "0.weight" in capsys.readouterr().out
    assert main(["diff", "a.json", "b.json", "--rtol", "1e-3"]) == 1
    capsys.readouterr()
    assert "one run is of 6 seeds and the other of one seed" in refused(capsys, "a.json", write("one.json"))


# -- revisions ------------------------------------------------------------------------------------------------


def git(*arguments: str) -> None:
    settings = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "init.defaultBranch=main",
    )
    subprocess.run(["git", *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits, the second with another activation, and a change that is not committed."""
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    file = folder / "package" / "nets.py"
    file.write_text(FACTORY)
    for text in (FACTORY, FACTORY.replace("ReLU", "GELU")):
        file.write_text(text)
        subprocess.run(["git", "init", "-q", str(folder)], check=True, capture_output=True)
        git("-C", str(folder), "add", ".")
        git("-C", str(folder), "commit", "-qm", "a commit")
    file.write_text("raise RuntimeError")
    return folder


def test_a_factory_at_two_revisions_is_compared_and_the_checkout_is_left_alone(
    capsys: Capture, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert main(["diff", "--rev", "HEAD~1", "--rev", "HEAD", "package.nets:make"]) == 1
    assert "1 was ReLU, and is now GELU" in capsys.readouterr().out
    assert main(["diff", "--rev", "HEAD", "--rev", "HEAD", "package.nets:make"]) == 0
    assert (repository / "package" / "nets.py").read_text() == "raise RuntimeError"
    listed = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert listed.count("\n") == 1


def test_a_factory_may_draw_from_any_generator(
    capsys: Capture, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    Path("package/nets.py").write_text(
        FACTORY.replace("import torch\n", "import random, numpy, torch\n").replace(
            "torch.randn(4, 8)", "torch.tensor(numpy.random.randn(4, 8) + random.random()).float()"
        )
    )
    git("commit", "-qam", "numpy's")
    assert main(["diff", "--rev", "HEAD", "--rev", "HEAD", "package.nets:make"]) == 0
    assert "the same" in capsys.readouterr().out


def test_in_a_hook_of_git_the_commit_in_progress_is_left_alone(
    capsys: Capture, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git tells a hook its index, into which a worktree would be checked out."""
    monkeypatch.chdir(repository)
    git("add", ".")
    index = Path(".git/index")
    before = index.read_bytes()
    monkeypatch.setenv("GIT_INDEX_FILE", str(index))
    assert main(["diff", "--rev", "HEAD", "--rev", "HEAD", "package.nets:make"]) == 0
    monkeypatch.setenv("GIT_INDEX_FILE", str(index.resolve()))
    assert main(["diff", "--rev", "HEAD", "--rev", "HEAD", "package.nets:make"]) == 0
    assert index.read_bytes() == before


def test_revisions_and_factories_that_are_not_there_are_refused(
    capsys: Capture, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "git rev-parse: not a git repository" in refused(capsys, "--rev", "a", "--rev", "b", "package.nets:make")
    monkeypatch.chdir(repository)
    assert "--rev nowhere is no revision" in refused(capsys, "--rev", "nowhere", "--rev", "HEAD", "package.nets:make")
    said = refused(capsys, "--rev", "HEAD", "--rev", "HEAD", "package.nets:other")
    assert "at revision HEAD: package.nets:other cannot be imported" in said
