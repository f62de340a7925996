"""Stand-ins that benchmarks make in other processes: these import this file, and so no more than they need."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.contestant import Way
from flashelmo.benchmarks.results import Row


class Hanging:
    """Does jobs as `suite.Engine`: one hangs, one ends its process, and one loses the device."""

    def names(self, section: str) -> list[tuple[str, str, str]]:
        return [(section, "m", job) for job in ("first", "second")]

    def do(self, section: str, name: tuple[str, str, str]) -> tuple[list[Row], bool]:
        if name[::2] == ("steps", "second"):
            time.sleep(60)
        if name[::2] == ("bulk", "first"):
            os._exit(7)
        return [Row(*name, unit=str(os.getpid()))], name[::2] == ("sentence", "first")


def failing_share(k: int, n: int, *given: Any) -> list[str]:
    if k:
        raise RuntimeError(f"no share {k}")
    return ["bulk: no such kernel"]


def nan_in_fp16(folder: Path, precision: str) -> Way:
    """A contestant's way to embed whose vectors are no numbers in fp16; the others are all 2."""
    value = np.nan if precision == "fp16" else 2.0
    return Way(lambda batch: [np.full((3, len(sentence), 8), value, np.float32) for sentence in batch], len)
