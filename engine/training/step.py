"""One training step: loss, gradients, update. On a card all of it is one captured CUDA graph.

The host finds a batch's distinct words and copies numbers; all else, even dropout and negatives, happens on the device,
and nothing waits for it: losses add up there until `read` asks for them. A graph needs the same addresses and shapes in
every step, so the distinct words are padded to a capacity that is enough for nearly every batch. Other batches are
computed without the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from flashelmo.engine.arrays import Int32
from flashelmo.engine.errors import first_line
from flashelmo.engine.system.captures import abandon
from flashelmo.engine.training.model import BiLM, State
from flashelmo.engine.training.optimizers import Adagrad, clip_scale, make_optimizer, row_gradients, scale_gradients
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.softmax import Picked, draw, log_uniform
from flashelmo.engine.training.spelling import Spelling
from flashelmo.engine.training.streams import Batch, Streams
from flashelmo.kernels.pytorch import is_out_of_memory

Result = TypeVar("Result")

WARM_UP_STEPS = 3  # before a capture, on their own stream
SLOTS = 4  # batches that the host may be ahead of the card
SAMPLED_BATCHES = 64  # from which the capacity is estimated
SPARE = 1.1  # extra factor of the capacity
ROUND = 128


class TrainingStep:
    """Takes steps of a model on its device.

    Args:
        model: on the device.
        settings: of the run.
        spelling: of all words of the corpus, W.
        rows: each of these words' row in the softmax [W].
        streams: from which the capacity for distinct words is estimated, on a card.
        wrapped: what computes the loss: the model, or DistributedDataParallel around it.

    Attributes:
        sums, steps: losses [2] by direction that have not been read yet, and their number of steps.
    """

    def __init__(
        self,
        model: BiLM,
        settings: TrainSettings,
        spelling: Spelling,
        rows: Int32,
        streams: Streams,
        wrapped: torch.nn.Module | None = None,
    ) -> None:
        self.model, self._settings = model, settings
        self._wrapped = model if wrapped is None else wrapped
        self._rows = rows
        first = next(iter(model.parameters()))
        self.device = first.device
        self.lr = torch.zeros((), device=self.device)
        self.optimizer = make_optimizer(settings.optimizer, model.parameters(), self.lr)
        self.state = State.zero(model.config, settings.batch, first.detach())
        self.sums = torch.zeros(2, device=self.device)
        self.steps = 0
        self._spelling = spelling
        n_words = len(model.tensors["softmax_bias"])
        sampled = 0 < settings.negatives < n_words
        self._probabilities = log_uniform(n_words, self.device) if sampled else None
        # Adagrad leaves rows without a gradient unchanged. Adam does not, and processes exchange whole gradients.
        may = sampled and wrapped is None
        self._by_rows = self.optimizer if isinstance(self.optimizer, Adagrad) and may else None
        self._softmax = model.tensors["softmax_weight"], model.tensors["softmax_bias"]
        table = torch.from_numpy(spelling.characters.astype(np.int16))
        self._characters = table.to(self.device) if self.device.type == "cuda" else None
        self._captured = _Captured(self, streams) if self.device.type == "cuda" else None
        self._updates = False  # whether parameters have begun to change in this step
        model.train()

    def __call__(self, batch: Batch, lr: float) -> None:
        """Take a step with a batch."""
        self.lr.fill_(lr)
        distinct, words = self._spelling.distinct(batch.inputs)
        targets = self._rows[batch.targets]
        self.steps += 1
        if self._captured is not None and len(distinct) <= self._captured.capacity:
            self._captured.run(distinct, words, targets)
            return
        given = [torch.from_numpy(array).to(self.device) for array in (distinct, words, targets)]
        self.with_room(partial(self.compute, *given), lambda: not self._updates)

    def compute(self, distinct: Tensor, words: Tensor, targets: Tensor) -> None:
        """Do the step on the device: words [2, T, B] index distinct [U]; targets [2, T, B] are rows of the softmax."""
        self._updates = False
        self.optimizer.zero_grad(set_to_none=True)
        negatives = None if self._probabilities is None else draw(self._probabilities, self._settings.negatives)
        targets, picked = targets.long(), None
        if negatives is not None and self._by_rows is not None:
            picked = Picked.leaves(*self._softmax, targets.flatten(), negatives)
        loss, each, after = self._wrapped(self._spelled(distinct), words, targets, self.state, negatives, picked)
        (loss * self._settings.unroll).backward()  # as published: summed over a row's time steps
        by_rows = [] if picked is None else row_gradients(self._softmax, picked.rows, picked.gradients)
        scale = clip_scale(self.model.parameters(), self._settings.clip, by_rows)
        self._updates = True
        if self.model.kernels and isinstance(self.optimizer, Adagrad):
            self.optimizer.step_by_kernels(scale)
        else:
            scale_gradients(self.model.parameters(), scale)
            self.optimizer.step()
        if self._by_rows is not None:
            self._by_rows.step_by_rows(by_rows, scale)
        for before, new in zip(self.state, after, strict=True):
            before.copy_(new)
        self.sums += each.detach()

    def _spelled(self, distinct: Tensor) -> list[Tensor]:
        """Return words' characters; on a card in one piece of all positions, whose shape stays the same."""
        if self._characters is None:
            return self._spelling.pieces(distinct.numpy())
        return [self._characters.index_select(0, distinct).int()]

    def with_room(self, run: Callable[[], Result], may: Callable[[], bool] = lambda: True) -> Result:
        """Return the result of `run`; if it finds no memory, once more without the captured graph's, where it `may`.

        It then draws the same dropout and negatives.
        """
        if self._captured is None:
            return run()
        random = torch.cuda.get_rng_state(self.device)
        try:
            return run()
        except RuntimeError as error:
            if not is_out_of_memory(error) or not may() or not self._captured.make_room():
                raise
        torch.cuda.set_rng_state(random, self.device)
        return run()  # here the error no longer holds on to tensors

    def follow_rate(self) -> None:
        """Make the optimizer read this object's learning rate again, after it has loaded a state with another."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def read(self) -> tuple[float, float]:
        """Return each direction's mean loss since the last call; waits for the device."""
        forward, backward = (self.sums / max(1, self.steps)).tolist()
        self.sums.zero_()
        self.steps = 0
        return forward, backward


class _Captured:
    """A step as a CUDA graph, after a few have been taken without.

    Attributes:
        capacity: the most distinct words of a batch.
    """

    def __init__(self, step: TrainingStep, streams: Streams) -> None:
        settings = step._settings
        self._step = step
        self.capacity = _capacity(streams, step._spelling)
        self._tokens = 2 * settings.unroll * settings.batch
        numbers = self.capacity + 2 * self._tokens
        self._slots = [torch.zeros(numbers, dtype=torch.int32, device="cpu").pin_memory() for _ in range(SLOTS)]
        self._copied: list[Any] = [torch.cuda.Event() for _ in range(SLOTS)]
        buffer = torch.zeros(numbers, dtype=torch.int32, device=step.device)
        shape = 2, settings.unroll, settings.batch
        self._buffer = buffer
        self._arguments = (
            buffer[: self.capacity],
            buffer[self.capacity : -self._tokens].view(shape),
            buffer[-self._tokens :].view(shape),
        )
        self._taken = 0
        self._graph: Any = None
        self._captures = settings.cuda_graph and step._wrapped is step.model

    def run(self, distinct: Int32, words: Int32, targets: Int32) -> None:
        """Take a step."""
        self._copy(distinct, words, targets)
        if self._captures and self._graph is None and self._taken >= WARM_UP_STEPS:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        elif self._captures:
            self._warm_up()
        else:
            self._step.compute(*self._arguments)
        self._taken += 1

    def make_room(self) -> bool:
        """Let go of the graph, which holds a step's memory; whether there was one. The next step is captured anew."""
        if self._graph is None:
            return False
        torch.cuda.synchronize()
        self._graph = None
        return True

    def _copy(self, distinct: Int32, words: Int32, targets: Int32) -> None:
        place = self._taken % SLOTS
        slot, copied = self._slots[place], self._copied[place]
        copied.synchronize()
        values = slot.numpy()
        values[: len(distinct)] = distinct
        values[len(distinct) : self.capacity] = 0
        values[self.capacity : -self._tokens] = words.reshape(-1)
        values[-self._tokens :] = targets.reshape(-1)
        self._buffer.copy_(slot, non_blocking=True)
        copied.record()

    def _warm_up(self) -> None:
        """Take a step on a separate stream, as initialisations on first use must not be in the graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step.compute(*self._arguments)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self) -> None:
        torch.cuda.synchronize()
        self._step.optimizer.zero_grad(set_to_none=True)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool):
                self._step.compute(*self._arguments)
        except RuntimeError as error:
            self._captures = False
            abandon(graph, pool)
            logging.getLogger("flashelmo").warning("the step cannot be captured as a CUDA graph: %s", first_line(error))
            torch.cuda.synchronize()
            return
        self._graph = graph


def _capacity(streams: Streams, spelling: Spelling) -> int:
    """Return more distinct words than nearly every batch has."""
    sampled = np.unique(np.linspace(0, streams.batches - 1, SAMPLED_BATCHES).astype(int))
    most = max(len(spelling.distinct(streams[int(place)].inputs)[0]) for place in sampled)
    return -(-int(most * SPARE) // ROUND) * ROUND
