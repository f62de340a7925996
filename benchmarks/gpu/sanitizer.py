"""The checks once more under NVIDIA's compute-sanitizer: reads and writes beyond a tensor, and races in shared memory.

They run in a process of their own, on few sentences, without CUDA graphs, and with every tensor in an allocation of its
own, so that a read beyond its end is seen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flashelmo.benchmarks.kernels.card import CARD
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.timing import Deadline

SECTION = "sanitizer"
PROGRAM = "compute-sanitizer"
SECONDS = 150.0  # of one tool
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")
# Tool, model and precisions.
JOBS = (("memcheck", "original", "bf16,int8"), ("memcheck", "small", "fp32"), ("racecheck", "small", "bf16"))


def sanitize(out: Path, deadline: Deadline) -> Iterator[Row]:
    """A row for each tool: errors found, or why there is no figure; the logs lie beside the results."""
    program = shutil.which(PROGRAM) or shutil.which(f"/usr/local/cuda/bin/{PROGRAM}")
    if program is None:
        yield Row(SECTION, CARD, PROGRAM, "errors", note=f"{FAILED}: {PROGRAM} is not installed")
        return
    for tool, model, precisions in JOBS:
        row, seconds = Row(SECTION, model, f"{tool} {precisions}", "errors"), min(SECONDS, deadline.left)
        if seconds <= 0:
            yield replace(row, note=deadline.over)
            continue
        ours = [
            sys.executable,
            "-m",
            "flashelmo.benchmarks",
            "gpu",
            "--out",
            str(out / SECTION),
            "--only",
            "correctness",
        ]
        ours += ["--models", model, "--precisions", precisions, "--off", "graphs", "--few"]
        found, note = _run([program, "--tool", tool, *ours], out / f"{PROGRAM}-{tool}-{model}.txt", seconds)
        yield replace(row, median=found, note=note)


def _run(arguments: Sequence[str], log: Path, seconds: float) -> tuple[float | None, str]:
    """Number of errors, and what is to be said of it."""
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(
                arguments, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, env=env, check=False
            )
    except subprocess.TimeoutExpired:
        return None, f"not measured: no end within {seconds:.0f} seconds"
    except OSError as error:
        return None, f"{FAILED}: {error}"
    return judge(log.read_text(encoding="utf-8", errors="replace"), done.returncode)


def judge(text: str, status: int) -> tuple[float | None, str]:
    """Number of errors that a log tells, and a note that fails the run where there are any."""
    summaries = SUMMARY.findall(text)
    if not summaries:
        return None, f"{FAILED}: no summary, exit status {status}"
    errors = sum(int(number) for pair in summaries for number in pair if number)
    if errors:
        return errors, f"{FAILED}: {errors} errors"
    return 0, f"{FAILED}: the checks ended with exit status {status}" if status else ""
