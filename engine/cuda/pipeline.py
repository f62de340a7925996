"""Windows of sentences to vectors on a device: schedules are made ahead, and one window computes while another is read.

The host makes a window's schedule, queues all its work and goes on to the next one; it waits only where a caller takes
results that are not there yet. A window that does not fit the device's memory is halved.
"""

from __future__ import annotations

# Imported first: raises MissingExtraError.
from flashelmo.engine.cuda.requirements import check_precision, default_precision, find_device

# isort: split
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch

from flashelmo.engine.cuda import memory
from flashelmo.engine.cuda.executor import Executor, Queued
from flashelmo.engine.cuda.forests import build_native_forests
from flashelmo.engine.cuda.model import DeviceModel
from flashelmo.engine.cuda.transfer import Results, Transfers
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Plan, Planner, Statistics, Stream
from flashelmo.engine.settings import Settings
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.schedule import Schedule
from flashelmo.engine.text.windows import Window

IN_FLIGHT = 2  # windows queued on the device: one computes while the host prepares the next
FITS_BEFORE_GROWING = 64  # windows in a row, after one that did not fit, before larger ones are tried again

logger = logging.getLogger("flashelmo")


class CudaPipeline:
    """Embeds windows by the Triton kernels. Several threads may use one at once.

    Args:
        model: what to compute.
        device: a CUDA device, or the CPU where Triton interprets its kernels.
        precision: of the computation, a name of `PRECISIONS`.
        settings: boundaries, sharing, state, sizes and switches. Windows of more than `window_tokens` are halved; None
            takes what fits the device's free memory.

    Attributes:
        device, precision: as given.
        max_tokens: of a window; fewer for a while once one did not fit.
    """

    def __init__(self, model: ElmoModel, device: torch.device, precision: str, settings: Settings) -> None:
        self.device, self.precision = device, precision
        self._process = os.getpid()  # neither a card's context nor the threads of its driver come along into a fork
        self._settings = settings
        encoder = WordEncoder(model.config, model.lexicon)
        self._planner = Planner(encoder.boundary_words, settings, build_native_forests)
        self._transfers = Transfers(device)
        with self._transfers.computing():
            device_model = DeviceModel(model, device, precision, batch_invariant=settings.cuda.batch_invariant)
            self._executor = Executor(device_model, encoder, self._transfers, settings)
        self._lock = threading.Lock()  # what is kept from window to window is shared
        self._is_whole = True  # what the executor keeps: Ctrl-C may come at any moment of its work
        value_bytes = self._executor.model.dtype.itemsize
        self._most_tokens = settings.window_tokens or memory.window_tokens(model.config, value_bytes, device)
        self.max_tokens, self._n_fitted = self._most_tokens, 0
        self.ahead = self._planner.threads + IN_FLIGHT
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Let every row start at zero again."""
        with self._lock, self._transfers.computing():
            self._executor.reset_state()

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """See `engine.pipeline.WindowPipeline`; `on_progress` is called when a window's results are given."""
        if os.getpid() != self._process:
            raise FlashElmoError(
                f"device {self.device}: expected the process that loaded the embedder, found one forked from it; start "
                "processes by 'spawn', or load the embedder in each"
            )
        queued: deque[tuple[Window, list[Results]]] = deque()
        for plan in self._planner.plan_ahead(windows):
            if len(queued) == IN_FLIGHT:
                ready = queued[0][1][-1].ready
                yield self._oldest(queued, on_progress)
                ready.wait()  # where nobody waits for results, the host would otherwise run ahead without bound
            with self._lock, self._transfers.computing():
                queued.append((plan.window, self._queue(plan, output, as_numpy)))
        while queued:
            yield self._oldest(queued, on_progress)

    def _oldest(
        self, queued: deque[tuple[Window, list[Results]]], on_progress: OnProgress
    ) -> tuple[Window, Iterator[Any]]:
        """The results of the window that was queued first."""
        window, parts = queued.popleft()
        on_progress(1.0)
        return window, chain.from_iterable(parts)

    def _queue(self, plan: Plan, output: Output, as_numpy: bool, first_row: int = 0) -> list[Results]:
        """Queue a window's work, in halves where it does not fit the device's memory."""
        window, n_tokens = plan.window, len(plan.window.word_ids)
        if len(window) == 1 or n_tokens <= self.max_tokens:
            if not self._is_whole:
                self._executor.renew()
            self._is_whole = False
            try:
                found = self._executor.queue(plan.words, plan.schedule, output, first_row, lend=as_numpy)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
            else:
                self._is_whole = True
                self._grow()
                return [self._results(plan, found, output, as_numpy)]
            self._executor.make_room()
            self._is_whole = True
            if len(window) == 1:
                raise FlashElmoError(self._too_long(plan.schedule, output))
            self._shrink(n_tokens)
        first, second = (self._planner.plan(half) for half in window.halves())
        return [
            *self._queue(first, output, as_numpy, first_row),
            *self._queue(second, output, as_numpy, first_row + len(first.window)),
        ]

    def _shrink(self, n_tokens: int) -> None:
        """After a window of so many tokens found no memory."""
        if self.max_tokens == self._most_tokens:
            logger.warning("device %s: out of memory, windows of %d tokens are halved", self.device, n_tokens)
        self.max_tokens = max(1, n_tokens // 2)
        self._n_fitted = 0

    def _grow(self) -> None:
        """After a window that fitted: the shortage may have passed."""
        self._n_fitted += 1
        if self.max_tokens < self._most_tokens and self._n_fitted >= FITS_BEFORE_GROWING:
            self.max_tokens, self._n_fitted = min(2 * self.max_tokens, self._most_tokens), 0

    def _results(self, plan: Plan, found: Queued, output: Output, as_numpy: bool) -> Results:
        """Of a window that is queued. Should this fail, it is not run again: its rows' states have moved on."""
        schedule = plan.schedule
        self.statistics.count(plan.window, schedule, found.n_new, self._settings.keep_sentence_boundaries)
        return Results(
            found.values,
            np.arange(len(schedule.offsets)) if output.pool else schedule.offsets,
            single=output.single,
            pooled=output.pool is not None,
            transfers=self._transfers,
            ready=self._transfers.mark(),
            as_numpy=as_numpy,
            lent=found.lent,
        )

    def _too_long(self, schedule: Schedule, output: Output) -> str:
        """Why a single sentence is too long, with sizes."""
        model, device = self._executor.model, self._executor.model.device
        needed = memory.peak_bytes(model.config, model.dtype.itemsize, self._executor.sizes(schedule, output), output)
        return (
            f"sentence of {len(schedule.token_words):,} tokens: expected one that fits the memory of {device}, where "
            f"{memory.free_memory(device)} are free; found one that needs about {needed / 2**30:.2f} GiB"
        )


def make_cuda_pipeline(name: str, /, *, model: ElmoModel, precision: str, settings: Settings) -> CudaPipeline:
    """The pipeline of a device, by its name; precision "auto" is the one that it computes fastest in.

    Raises:
        FlashElmoError: the device is not there, or lacks the precision.
    """
    device = find_device(name)
    check_precision(device, precision)
    chosen = default_precision(device) if precision == "auto" else precision
    try:
        return CudaPipeline(model, device, chosen, settings)
    except RuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        size = 4 * model.weights.n_parameters / 2**30
        free = memory.free_memory(device)
        raise FlashElmoError(
            f"device {name!r}: expected memory for a model of {size:.2f} GiB in float32, found {free} free"
        ) from None
