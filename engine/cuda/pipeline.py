"""Windows of sentences to vectors on a device: schedules are made ahead, and one window computes while another is read.

The host makes a window's schedule, queues all its work and goes on to the next one; it waits only when a caller takes
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
from typing import Any, NamedTuple

import torch

from flashelmo.engine.cuda import memory
from flashelmo.engine.cuda.executor import Executor, Queued
from flashelmo.engine.cuda.forests import build_native_forests
from flashelmo.engine.cuda.model import DeviceModel
from flashelmo.engine.cuda.results import Callbacks, Results
from flashelmo.engine.cuda.transfer import Mark, Transfers
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Plan, Planner, Statistics, Stream, not_finite, until_error
from flashelmo.engine.settings import Settings
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.schedule import MAX_WINDOW_SENTENCES, Schedule
from flashelmo.engine.text.windows import Window
from flashelmo.kernels.pytorch import is_out_of_memory

IN_FLIGHT = 2  # windows queued on the device: one computes while the host prepares the next
FITS_BEFORE_GROWING = 64  # windows in a row, after one that did not fit, before larger ones are tried again

logger = logging.getLogger("flashelmo")


class _Reader(NamedTuple):
    """What the caller of `stream` wants of a window's results.

    Attributes:
        first: index, in the stream, of the window's first sentence.
        n_sentences: of the window.
        on_progress: called with the fraction of the window that has arrived on the host.
    """

    output: Output
    as_numpy: bool
    first: int
    n_sentences: int
    on_progress: OnProgress


class CudaPipeline:
    """Embeds windows with the Triton kernels. Several threads may use one at once.

    Args:
        model: what to compute.
        device: a CUDA device, or the CPU where Triton interprets its kernels.
        precision: of the computation, a name in `PRECISIONS`.
        settings: boundaries, sharing, state, sizes and switches. Windows of more than `window_tokens` are halved; None
            chooses what fits the device's free memory.

    Attributes:
        device, precision: as given.
        max_tokens: of a window; lower for a while after one did not fit.
    """

    def __init__(self, model: ElmoModel, device: torch.device, precision: str, settings: Settings) -> None:
        self.device, self.precision = device, precision
        self._process = os.getpid()  # neither a card's context nor its driver's threads survive a fork
        self._settings = settings
        encoder = WordEncoder(model.config, model.lexicon)
        self._planner = Planner(encoder.boundary_words, settings, build_native_forests)
        self._transfers = Transfers(device)
        with self._transfers.computing():
            device_model = DeviceModel(model, device, precision, batch_invariant=settings.cuda.batch_invariant)
            self._executor = Executor(device_model, encoder, self._transfers, settings)
        self._lock = threading.Lock()  # what is kept from window to window is shared
        self._ahead: list[Window] = []  # of the last queued stateful stream: see `_take_turn`
        self._left: Mark | None = None  # end of the last stream's results on the device: see `_check_left`
        self._refused = False  # an overflow has been reported
        self._is_whole = True  # what the executor keeps: Ctrl-C may interrupt its work at any moment
        value_bytes = self._executor.model.dtype.itemsize
        self._most_tokens = settings.window_tokens or memory.window_tokens(model.config, value_bytes, device)
        self.max_tokens, self._n_fitted = self._most_tokens, 0
        self.ahead = self._planner.threads + IN_FLIGHT
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Reset every row's state to zero."""
        with self._lock, self._transfers.computing():
            self._ahead = []
            self._executor.reset_state()

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """See `engine.pipeline.WindowPipeline`; `on_progress` is called as a window's results arrive on the host.

        Sentences whose vectors overflow are refused. Vectors that stay on the device are not waited for: they are
        checked when a later window is given, and those of a stream's last windows by the next call.
        """
        if os.getpid() != self._process:
            raise FlashElmoError(
                f"device {self.device}: this process was forked from the one that loaded the embedder; start "
                "processes by 'spawn', or load the embedder in each"
            )
        self._check_left()
        queued: deque[tuple[Window, list[Results]]] = deque()
        ahead: list[Window] = []  # the same windows, as long as they may matter
        errors: list[Exception] = []
        first = 0  # the index of the next window's first sentence
        for plan in until_error(self._planner.plan_ahead(windows, self._executor.packing(output)), errors):
            if len(queued) == IN_FLIGHT:
                parts = queued[0][1]
                yield self._oldest(queued, ahead, on_progress)
                for part in parts:  # without this, the host would run ahead without limit if results are not waited for
                    part.confirm()
            try:
                with self._lock, self._transfers.computing():
                    self._take_turn(ahead)
                    results = self._queue(plan, _Reader(output, as_numpy, first, len(plan.window), on_progress))
                    ahead.append(plan.window)
                    queued.append((plan.window, results))
            except Exception as error:  # raised in its place, after the windows already queued
                errors.append(error)
                break
            first += len(plan.window)
        while queued:
            parts = queued[0][1]
            yield self._oldest(queued, ahead, on_progress)
            for part in parts if self._executor.overflowed else ():
                part.confirm()
        if errors:
            raise errors.pop()

    def _oldest(
        self, queued: deque[tuple[Window, list[Results]]], ahead: list[Window], on_progress: OnProgress
    ) -> tuple[Window, Iterator[Any]]:
        """Return the window that was queued first, and its results."""
        window, parts = queued.popleft()
        ahead.pop(0)
        if not parts[-1].as_numpy:
            self._left = parts[-1].ready
            on_progress(1.0)
        return window, chain.from_iterable(parts)

    def _take_turn(self, ahead: list[Window]) -> None:
        """Let a stateful stream continue from the rows' state, if the previous stream was read to its end.

        Windows are queued ahead of what the caller reads. An abandoned stream has advanced the state by windows whose
        results were never read.

        Args:
            ahead: windows of the caller's stream that are queued, and whose results are not given yet.

        Raises:
            FlashElmoError: another stream still has such windows.
        """
        if self._settings.stateful:
            if self._ahead and self._ahead is not ahead:
                raise FlashElmoError(
                    "stateful: another call was not read to its end, and the state is that of windows it had not "
                    "given; call reset_state()"
                )
            self._ahead = ahead

    def _check_left(self) -> None:
        """Check the tensors that the last call left on the device, if they have been computed by now.

        Raises:
            FlashElmoError: some were not finite, and no call has said so.
        """
        left = self._left  # which other threads replace
        if left is not None and left.is_past:
            self._left = None
            if self._executor.overflowed and not self._refused:
                self._refused = True
                raise FlashElmoError(
                    f"vectors of an earlier call that were left on {self.device}: expected finite values, found "
                    "infinity or NaN: an overflow in the model"
                )

    def _queue(self, plan: Plan, reader: _Reader, first_row: int = 0) -> list[Results]:
        """Queue a window's work, in halves if it does not fit the device's memory or has too many sentences."""
        window, n_tokens = plan.window, len(plan.window.word_ids)
        if len(window) == 1 or (n_tokens <= self.max_tokens and len(window) <= MAX_WINDOW_SENTENCES):
            if not self._is_whole:
                self._executor.renew()
            self._is_whole = False
            try:
                found = self._executor.queue(plan, reader.output, first_row, lend=reader.as_numpy)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                self._is_whole = True
                self._grow()
                return [self._results(plan, found, reader, first_row)]
            self._executor.make_room()
            self._is_whole = True
            if len(window) == 1:
                raise FlashElmoError(self._too_long(plan.schedule, reader.output))
            self._shrink(n_tokens)
        first, second = (self._planner.plan(half) for half in window.halves())
        results = self._queue(first, reader, first_row)
        try:
            return [*results, *self._queue(second, reader, first_row + len(first.window))]
        except BaseException:
            self._executor.lose_state()  # the first half's rows have advanced
            raise

    def _shrink(self, n_tokens: int) -> None:
        """Lower the limit, after a window of so many tokens found no memory."""
        if self.max_tokens == self._most_tokens:
            logger.warning("device %s: out of memory, windows of %d tokens are halved", self.device, n_tokens)
        self.max_tokens = max(1, n_tokens // 2)
        self._n_fitted = 0

    def _grow(self) -> None:
        """Raise the limit after enough windows that fitted: the shortage may have passed."""
        self._n_fitted += 1
        if self.max_tokens < self._most_tokens and self._n_fitted >= FITS_BEFORE_GROWING:
            self.max_tokens, self._n_fitted = min(2 * self.max_tokens, self._most_tokens), 0

    def _results(self, plan: Plan, found: Queued, reader: _Reader, first_row: int) -> Results:
        """Return a queued window's results. If this fails, it is not run again: its rows' states have advanced."""
        schedule, output = plan.schedule, reader.output
        self.statistics.count(plan.window, schedule, found.n_new, self._settings.keep_sentence_boundaries)

        def refuse(b: int) -> FlashElmoError:
            self._refused = True
            return not_finite(plan.window, b, reader.first + first_row, output.dtype)

        def on_read(n: int) -> None:
            reader.on_progress((first_row + n) / reader.n_sentences if reader.n_sentences else 1.0)

        callbacks = Callbacks(lambda: self._executor.overflowed, refuse, on_read)
        offsets, as_numpy = schedule.offsets, reader.as_numpy
        return Results(found.values, offsets, output, self._transfers, callbacks, as_numpy=as_numpy, lent=found.lent)

    def _too_long(self, schedule: Schedule, output: Output) -> str:
        """Return why a single sentence is too long, with sizes."""
        model, device = self._executor.model, self._executor.model.device
        needed = memory.peak_bytes(model.config, model.dtype.itemsize, self._executor.sizes(schedule, output), output)
        return (
            f"sentence of {len(schedule.token_words):,} tokens: needs about {needed / 2**30:.2f} GiB on {device}, "
            f"where {memory.free_memory(device)} are free"
        )


def make_cuda_pipeline(name: str, /, *, model: ElmoModel, precision: str, settings: Settings) -> CudaPipeline:
    """Return the pipeline of the named device; precision "auto" is the one in which it computes fastest.

    Raises:
        FlashElmoError: the device is not there, or lacks the precision.
    """
    device = find_device(name)
    check_precision(device, precision)
    chosen = default_precision(device) if precision == "auto" else precision
    try:
        return CudaPipeline(model, device, chosen, settings)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = 4 * model.weights.n_parameters / 2**30
        free = memory.free_memory(device)
        raise FlashElmoError(
            f"device {name!r}: expected memory for a model of {size:.2f} GiB in float32, found {free} free"
        ) from None
