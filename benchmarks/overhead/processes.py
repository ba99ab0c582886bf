"""Each measurement in a process of its own, with one thread, tried again where the machine was not quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.overhead.endurance import Endurance
from benchmarks.overhead.result import Result, read_result
from benchmarks.overhead.tools import tool

ROOT = Path(__file__).parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""Has glibc keep what it has got. Else it gives pages back and takes them anew, in some blocks and not in others."""
LIMIT = 1800
"""Seconds after which a measurement is given up."""


def measured(name: str, workload: str, rounds: int, tries: int) -> Result:
    """A valid result where one of the tries gave it, else the last; whether it is valid says nothing of its ratio."""
    for _ in range(tries):
        result = once(name, workload, rounds)
        if result.valid or result.reason is not None:
            break
    return result


def once(name: str, workload: str, rounds: int) -> Result:
    """One measurement in a new process."""
    try:
        return read_result(_run("worker", name, workload, rounds))
    except NoAnswer as error:
        return Result.skipped(name, workload, str(error))


def endured(name: str, workload: str, steps: int) -> Endurance:
    """A long run in a new process.

    Raises:
        NoAnswer: it ended without a result.
    """
    return Endurance(**json.loads(_run("endurance", name, workload, steps)))


class NoAnswer(Exception):
    """A process that ended without a result, and why."""


def _run(module: str, name: str, workload: str, count: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"benchmarks.overhead.{module}", name, workload, str(count), str(path)]
        environment = {**os.environ, **ONE_THREAD, **KEEPS_MEMORY, **tool(name).environment}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NoAnswer(f"took more than {LIMIT // 60} minutes") from error
        if not path.exists():
            raise NoAnswer((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
        return path.read_text()
