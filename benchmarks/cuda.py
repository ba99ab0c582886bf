"""What recording costs on a CUDA device: the kernel against the bandwidth of a copy, and a GPT-2-small training step.

    python -m benchmarks.cuda

The step is timed bare, with every step recorded, and with each tenth, in blocks that alternate on one model; a ratio
is the median of those of neighbouring blocks. Two series of bare blocks tell how far a ratio strays by itself.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gradscope import GradScope
from gradscope.hooks._device import reduce_on_device
from gradscope.hooks._histogram import BINS
from gradscope.hooks._rows import WIDTH

SIZES = [1 << power for power in range(16, 29, 2)]
REPEATS, INSIDE = 20, 10
BLOCKS, STEPS = 12, 20
BATCH, TOKENS = 8, 1024


def milliseconds(work: Callable[[], object]) -> float:
    """By events around `INSIDE` calls in a row, each: what the device took, or the launches where they take longer."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(INSIDE):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / INSIDE


def median_milliseconds(*works: Callable[[], object]) -> list[float]:
    """Of each, in turns."""
    for work in works:
        work()  # compiled, and its memory made
    rounds = [[milliseconds(work) for work in works] for _ in range(REPEATS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def bandwidth_table() -> Table:
    table = Table(title="One tensor: GB/s read; a copy's are read and written")
    for column in ("dtype", "entries", "copy", "moments", "of copy", "with histogram", "of copy"):
        table.add_column(column, justify="right")
    for dtype in (torch.float32, torch.bfloat16):
        for entries in SIZES:
            table.add_row(str(dtype).removeprefix("torch."), f"{entries:,}", *_bandwidths(entries, dtype))
    return table


def _bandwidths(entries: int, dtype: torch.dtype) -> list[str]:
    x = torch.randn(entries, device="cuda", dtype=dtype)
    copy = torch.empty_like(x)
    row = torch.zeros(WIDTH, dtype=torch.float64, device="cuda")
    counts = torch.zeros(BINS, dtype=torch.int64, device="cuda")
    if not reduce_on_device(x, None, None, row, None):
        raise SystemExit("benchmarks.cuda measures GradScope's Triton kernel, and Triton gives none here")
    times = median_milliseconds(
        lambda: copy.copy_(x),
        lambda: reduce_on_device(x, None, None, row, None),
        lambda: reduce_on_device(x, None, None, row, counts),
    )
    size = entries * x.element_size() / 1e6
    copied, plain, counted = 2 * size / times[0], size / times[1], size / times[2]
    return [f"{copied:,.0f}", f"{plain:,.0f}", f"{plain / copied:.0%}", f"{counted:,.0f}", f"{counted / copied:.0%}"]


class Training:
    """GPT-2-small with random weights on one batch of random tokens, in bfloat16 autocast."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(GPT2Config()).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.tokens = torch.randint(50_257, (BATCH, TOKENS), device="cuda")

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss: Tensor = self.model(self.tokens, labels=self.tokens, use_cache=False).loss
        loss.backward()
        self.optimizer.step()

    def block(self) -> float:
        """Milliseconds of a step, over `STEPS` of them."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(STEPS):
            self.step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / STEPS


@contextmanager
def recorded(training: Training, every: int | None, histograms: bool) -> Iterator[None]:
    if every is None:
        yield
    else:
        with GradScope(training.model, training.optimizer, every=every, histograms=histograms, slow=False):
            yield


MODES: dict[str, tuple[int | None, bool]] = {
    "bare, again": (None, False),
    "every step": (1, False),
    "every step, histograms": (1, True),
    "each tenth step": (10, False),
    "each tenth step, histograms": (10, True),
}


def training_table() -> Table:
    training = Training()
    title = f"A training step of GPT-2-small, {BATCH} × {TOKENS} tokens, bfloat16 autocast, fused AdamW"
    table = Table(title=title)
    for column in ("recorded", "ms a step", "bare ms", "ratio", "lowest", "highest"):
        table.add_column(column, justify="left" if column == "recorded" else "right")
    training.block()
    for name, (every, histograms) in MODES.items():
        with recorded(training, every, histograms):
            training.block()  # kernels compiled, buffers made
        pairs = [_pair(training, every, histograms, first=i % 2 == 0) for i in range(BLOCKS)]
        ratios = [with_it / bare for bare, with_it in pairs]
        bare, with_it = (statistics.median(column) for column in zip(*pairs, strict=True))
        spread = (statistics.median(ratios), min(ratios), max(ratios))
        table.add_row(name, f"{with_it:.2f}", f"{bare:.2f}", *(f"{ratio:.3f}" for ratio in spread))
    return table


def _pair(training: Training, every: int | None, histograms: bool, *, first: bool) -> tuple[float, float]:
    """Milliseconds of a step bare, and recorded; `first` says whether the bare block comes first."""
    bare = training.block() if first else 0.0
    with recorded(training, every, histograms):
        training.step()  # makes its buffers, and is a recorded one; of the twenty that follow, two are with every=10
        with_it = training.block()
    return (bare if first else training.block()), with_it


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks.cuda needs a CUDA device, and torch finds none here.")
    console = Console()
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    console.print(bandwidth_table())
    console.print(training_table())


if __name__ == "__main__":
    main()
