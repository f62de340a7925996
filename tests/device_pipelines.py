"""Pipelines for the tests of a pool of devices: a real one, and one that fails as it is told.

They are made in other processes, which import them from here.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flashelmo.engine.cpu.pipeline import CpuPipeline, make_runtime
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Statistics, Stream, WindowPipeline
from flashelmo.engine.settings import Settings
from flashelmo.engine.text.windows import Window

Array = npt.NDArray[np.float32]


def cpu_pipeline(model: ElmoModel, device: str) -> CpuPipeline:
    """ONNX Runtime on one thread."""
    return CpuPipeline(model, make_runtime(model, "ort", "fp32", 1), Settings())


def lengths(window: Window) -> Iterator[Array]:
    """What the made-up pipeline gives: each token's letters and its place, [1, T, 2]."""
    for b in range(len(window)):
        tokens = window.tokens(b)
        yield np.array([[(len(token), t) for t, token in enumerate(tokens)]], np.float32).reshape(1, -1, 2)


def meet(file: Path) -> None:
    """Wait until two processes have come here."""
    file.touch()
    end = time.monotonic() + 20
    while len(list(file.parent.iterdir())) < 2:
        assert time.monotonic() < end, "the other device never came"
        time.sleep(0.01)


class MadeUp:
    """Gives `lengths`, a window behind what it has taken, and fails.

    Its device's name says how: "kill:2" is killed when it takes its second window, "raise:2" raises there, "slow:0.1"
    takes 0.1 s for each, "meet:FILE" makes the file and waits until there is another beside it, "end" fails when it
    has given all, "in:bf16" says that it computes in bf16, others in fp32. A token "refuse" is an error of its window,
    found on taking it; "late" is one found when its results are made, which names its sentence's number in the stream;
    "kill" ends any process.
    """

    ahead = 1

    def __init__(self, device: str) -> None:
        self._fault, _, self._argument = device.partition(":")
        self._taken = 0
        self.precision = self._argument if self._fault == "in" else "fp32"
        self.statistics = Statistics()
        if self._fault == "absent":
            raise FlashElmoError("expected a device that is there, found none")
        if self._fault == "broken":
            raise RuntimeError("driver too old\nand more lines")

    def reset_state(self) -> None:
        pass

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        held: deque[Window] = deque()
        first = 0
        for window in windows:
            self._take(window)
            held.append(window)
            if len(held) > self.ahead:
                yield self._give(held[0], output, first)
                first += len(held.popleft())
        while held:
            yield self._give(held[0], output, first)
            first += len(held.popleft())
        if self._fault == "end":
            raise RuntimeError("driver shutting down")

    def _take(self, window: Window) -> None:
        self._taken += 1
        tokens = window.words.to_pylist()
        last = self._argument == str(self._taken)
        if "kill" in tokens or (self._fault == "kill" and last):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "raise" and last:
            raise RuntimeError("CUDA error: an illegal memory access\nand more lines")
        if "refuse" in tokens:
            raise FlashElmoError("token: expected another, found 'refuse'")
        if self._fault == "slow":
            time.sleep(float(self._argument))
        if self._fault == "meet":
            meet(Path(self._argument))

    def _give(self, window: Window, output: Output, first: int) -> tuple[Window, Iterator[Array]]:
        self.statistics.sentences += len(window)
        self.statistics.tokens += len(window.word_ids)

        def results() -> Iterator[Array]:
            for b, array in enumerate(lengths(window)):
                if "late" in window.tokens(b):
                    raise FlashElmoError(f"sentence {first + b}: expected another token, found 'late'")
                yield array.astype(output.dtype)

        return window, results()


def choosing(name: str, /, *, precision: str, **settings: Any) -> MadeUp:
    """Stands for `make_cuda_pipeline` where "auto" is fp32 on the second of several cards."""
    chosen = {"cuda:1": "fp32"}.get(name, "bf16")
    return MadeUp(f"in:{chosen if precision == 'auto' else precision}")


class NotReady:
    """A pipeline that is never made."""

    def __init__(self, device: str) -> None:
        print("waiting", flush=True)
        time.sleep(100)


def repaired(make: Callable[[str], WindowPipeline], device: str) -> WindowPipeline:
    """What is made, after Triton's interpreter was repaired if it is the device."""
    if device == "interpreter":
        from interpreter import repair

        repair()
    return make(device)
