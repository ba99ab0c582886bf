"""A sweep that ranks share: as real processes, it is the one of a single process; no rank waits for one that ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscope.experiments import SettingsError, SweepConfig
from gradscope.experiments import _shared as shared_file
from gradscope.experiments._grid import parts, ranks_of
from gradscope.experiments._launch import Launch, launch

ROOT = Path(__file__).parents[1]
TINY = ["--init", "he_normal", "--init", "naive_normal", "--activation", "relu", "--activation", "softmax"]
TINY += ["--depth", "80", "--width", "32", "--seeds", "2"]
SECONDS = 120
"""No check waits for ever; each takes a few seconds."""


def environment(**more: str) -> dict[str, str]:
    # One thread everywhere, as torchrun has it: who adds what may depend on their number.
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def test_two_ranks_of_torchrun_write_what_one_process_writes(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for out, start in (("one", []), ("two", torchrun)):
        argv = [sys.executable, *start, "-m", "gradscope", *TINY, "--json", "--out", out]
        done = subprocess.run(
            argv, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1  # rank 0's alone
    documents = [json.loads((tmp_path / out / "index.json").read_text(encoding="utf-8")) for out in ("one", "two")]
    facts = [document.pop("facts") for document in documents]
    assert documents[0] == documents[1]
    assert '"inf"' in json.dumps(documents[0])  # an overflow comes through the sum
    assert facts[1].pop("ranks") == 2
    assert [{**fact, "seconds": 0} for fact in facts] == [{**facts[0], "seconds": 0}] * 2
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / out).glob("*.png")} for out in ("one", "two"))
    assert one == two
    assert len(one) == 7


@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [("raise ZeroDivisionError('a bug')", 3, "ZeroDivisionError: a bug"), ("os._exit(9)", 9, "")],
    ids=["fails", "is killed"],
)
def test_a_rank_that_ends_early_ends_the_others_with_one_sentence(
    trouble: str, code: int, said: str, tmp_path: Path
) -> None:
    script = (
        "import os, sys\nfrom gradscope.cli import main\nfrom gradscope.experiments import _shared\n"
        f"def ends(*arguments):\n    {trouble}\n"
        f"if os.environ['RANK'] == '1':\n    _shared.measured = ends\nsys.exit(main({TINY!r}))"
    )
    codes, (error, error_of_1) = two_ranks(script, tmp_path)
    assert codes == [2, code]
    assert error.startswith("gradscope-report: a rank ended before all had measured their share (")
    assert error.count("\n") == 1
    assert said in error_of_1
    assert list((tmp_path / "reports").iterdir()) == []


def test_ranks_of_other_settings_measure_nothing_together(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom gradscope.cli import main\n"
        f"sys.exit(main({TINY!r} + ['--seeds', '3'] * (os.environ['RANK'] == '1')))"
    )
    codes, errors = two_ranks(script, tmp_path)
    assert codes == [2, 2]
    sentence = "gradscope-report: every rank must have the same settings: seeds is 3 on rank 1 and 2 on rank 0\n"
    assert list(errors) == [sentence] * 2
    assert list((tmp_path / "reports").iterdir()) == []


def two_ranks(script: str, folder: Path) -> tuple[list[int], list[str]]:
    """Exit codes and stderr of two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in "01"
    ]
    try:
        errors = [rank.communicate(timeout=SECONDS)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], errors


@given(
    inits=st.integers(1, 10),
    activations=st.integers(1, 10),
    depth=st.lists(st.integers(2, 60), min_size=1, max_size=3, unique=True),
    width=st.lists(st.sampled_from([8, 64, 256, 1024]), min_size=1, max_size=2, unique=True),
    ranks=st.integers(1, 17),
)
def test_ranks_get_stretches_of_the_grid_and_none_more_than_its_share_and_one_part(
    inits: int, activations: int, depth: list[int], width: list[int], ranks: int
) -> None:
    default = SweepConfig()
    config = SweepConfig(
        init=default.init[:inits], activation=default.activation[:activations], depth=depth, width=width
    )
    grid = parts(config)
    owners = ranks_of(config, grid, ranks)
    assert owners == sorted(owners)
    assert all(0 <= owner < ranks for owner in owners)
    costs = [part.depth * part.width**2 * len(part.seeds) * len(part.activations) for part in grid]
    for rank in range(ranks):
        share = sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank)
        assert share <= sum(costs) / ranks + max(costs)


def test_a_process_is_alone_unless_it_knows_where_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launch() == Launch(rank=0, ranks=1, local_rank=0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch() == Launch(rank=3, ranks=8, local_rank=1)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("RANK", "2", "from 0 to 1"),
        ("RANK", "-1", "from 0 to 1"),
        ("RANK", "one", "from 0 to 1"),
        ("WORLD_SIZE", "0", "at least 1"),
        ("MASTER_PORT", "99999", "from 0 to 65535"),
        ("LOCAL_RANK", "", "at least 0"),
    ],
)
def test_a_variable_that_torchrun_would_not_set_is_named(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}
    for key, text in (fine | {name: value}).items():
        monkeypatch.setenv(key, text)
    with pytest.raises(SettingsError, match=f"variable {name} must be a whole number {allowed}, not '{value}'"):
        launch()


def test_each_rank_takes_a_device_of_its_machine_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def device(name: str, local_rank: int) -> str:
        return str(shared_file._device(SweepConfig(device=name), Launch(local_rank, 4, local_rank)))

    assert [device("cuda", local_rank) for local_rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [device("cuda:1", 0), device("cpu", 1)] == ["cuda:1", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match="it finds 0 CUDA devices"):
        device("cuda", 0)
