"""Who does parts of a check in a process of its own, for tests: it hangs, ends its process, or loses the device."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashelmo.benchmarks.gpu.ahead import Recorded


class Hanging:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "begun.jsonl"
        self._begun = self._path.read_text().splitlines() if self._path.exists() else []

    def measure(self, part: str, seconds: float) -> bool:
        for job in ("first", "second", "third"):
            line = json.dumps([part, "m", job])
            if line in self._begun:
                continue
            with self._path.open("a") as file:
                file.write(line + "\n")
            if (part, job) == ("steps", "second"):
                time.sleep(60)
            if (part, job) == ("bulk", "first"):
                os._exit(7)
            if (part, job) == ("sentence", "first"):
                return True
        return False


def failing_record(part: str) -> "Recorded":
    raise RuntimeError(f"no {part}")
