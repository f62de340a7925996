"""Who does parts of a check in a process of its own, for tests: some hang, some end their process, some lose the device."""

import os
import time


class Hanging:
    def measure(self, part: str, seconds: float) -> bool:
        if part == "steps":
            time.sleep(60)
        if part == "bulk":
            os._exit(7)
        return part == "sentence"


def failing_record(part: str) -> None:
    raise RuntimeError(f"no {part}")
