"""Queues a window's work on one device: by a bucket's graph if it is small, launch by launch if it is large."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from flashelmo.engine.arrays import Int32
from flashelmo.engine.cuda.compute import DeviceOutput, compute
from flashelmo.engine.cuda.cuda_graphs import GraphCache, release_memory
from flashelmo.engine.cuda.layout import Layout, Sizes, fill, fill_words
from flashelmo.engine.cuda.memory import word_gates_bytes
from flashelmo.engine.cuda.model import DeviceModel, WordVectorTable
from flashelmo.engine.cuda.state import DeviceState
from flashelmo.engine.cuda.transfer import Transfers
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import Pack, Plan
from flashelmo.engine.settings import Settings
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.schedule import Schedule
from flashelmo.kernels.lstm.hoisted import pays_by_word, row_bytes
from flashelmo.kernels.lstm.run import LaunchOptions, Workspace

MAX_WORD_GRAPHS = 8  # one for each power of two
LENT_BYTES = 1 << 20  # of a graph's results; larger ones are copied, so that their download and the next window overlap


class Queued(NamedTuple):
    """A window whose work is queued.

    Attributes:
        values: [O, tokens, 2P], pooled ones [O, B, 2P].
        n_new: words that had to be computed.
        lent: the values belong to a graph, perhaps with rows beyond the last token, and its next replay overwrites
            them: queue whatever reads them before that, on the same stream.
    """

    values: Tensor
    n_new: int
    lent: bool = False


class Packed(NamedTuple):
    """What the planning thread prepares of a window: all that does not depend on earlier windows.

    Attributes:
        sizes: of the window.
        schedule: of a large window, in host memory, without the words' rows in the table; None for others.
        words: see `WordVectorTable.pack`.
    """

    sizes: Sizes
    schedule: Tensor | None = None
    words: Sequence[Tensor | None] = ()


class Executor:
    """A model on a device, with what is kept from window to window. All methods run on the computing stream.

    Args:
        model: on the device.
        encoder, transfers: words to ids, and ids to the device.
        settings: sharing, state, the size of the table of word vectors, and switches.
    """

    def __init__(self, model: DeviceModel, encoder: WordEncoder, transfers: Transfers, settings: Settings) -> None:
        self.model = model
        self._share, self._switches = settings.shares_prefixes, settings.cuda
        self._transfers = transfers
        self._word_graphs = GraphCache(model.device, MAX_WORD_GRAPHS)
        word_graphs = self._word_graphs if settings.cuda.graphs else None
        self._table = WordVectorTable(model, encoder, transfers, settings.cache_bytes, word_graphs)
        self._state = DeviceState(model) if settings.stateful else None
        self._workspace = Workspace.of(model.lstm[0].shape, model.device)
        self._options = LaunchOptions(model.products, settings.cuda.keep_weights, settings.cuda.batch_invariant)
        self._word_gates_bytes = word_gates_bytes(model.device)
        self._graphs = GraphCache(model.device, settings.cuda.max_graphs)
        self._captured_on: list[Tensor] = []
        self._outputs: dict[Output, DeviceOutput] = {}
        # In host memory that a card can write to: kernels set it, and the host reads it without a copy.
        self._overflow = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=model.device.type == "cuda")
        self._overflowed = self._overflow.numpy()

    @property
    def overflowed(self) -> bool:
        """Whether any window so far had a result that is infinite or NaN; never reset."""
        return bool(self._overflowed[0])

    def reset_state(self) -> None:
        """Reset every row's state to zero."""
        if self._state is not None:
            self._state.reset()

    def lose_state(self) -> None:
        """Make the state unusable until it is reset, as some rows have advanced and others have not."""
        if self._state is not None:
            self._state.lose()

    def renew(self) -> None:
        """Forget graphs and words after an interrupted call; the state checks by itself whether it is intact."""
        self.make_room()
        self._table.clear()

    def make_room(self) -> None:
        """Free memory that the queued work does not need."""
        self._graphs.clear()
        self._word_graphs.clear()
        self._transfers.wait()
        release_memory(self.model.device)

    def packing(self, output: Output) -> Pack:
        """Return the function with which the planning thread prepares a window's `Packed` from its schedule."""

        def pack(schedule: Schedule, words: pa.StringArray) -> Packed:
            """Return only the sizes if a graph is replayed or a state is carried on."""
            sizes = self._with_words(self.sizes(schedule, output), len(words))
            if self._state is not None or sizes.n_depths == 0 or self._is_small(sizes):
                return Packed(sizes)
            host = self._transfers.host(Layout.of(sizes).size)
            fill(host.numpy(), sizes, schedule)
            return Packed(sizes, host, self._table.pack(words))

        return pack

    def queue(self, plan: Plan, output: Output, first_row: int = 0, *, lend: bool = False) -> Queued:
        """Queue a window's work.

        Args:
            plan: possibly with what `packing` prepared for this output.
            first_row: where the window's rows begin in a batch; it matters to stateful runs.
            lend: whether the values may be lent.

        Raises:
            RuntimeError: the device is out of memory, among others; the state is then unchanged.
        """
        schedule, device_output = plan.schedule, self._device_output(output)
        sizes, host, words = plan.packed or self.packing(output)(schedule, plan.words)
        word_rows, n_new = self._table.lookup(plan.words, words)
        if self._state is not None:
            self._state.reserve(first_row + len(schedule.offsets) - 1)
        if sizes.n_depths == 0:  # no sentence has a token
            return Queued(self._new_results(device_output, sizes.n_sentences).zero_(), n_new)
        if self._is_small(sizes):
            values, lent = self._replay(schedule, sizes, word_rows, output, first_row, lend)
            return Queued(values, n_new, lent)
        if host is None:
            packed_schedule = self._transfers.upload(
                Layout.of(sizes).size, self._fill(sizes, schedule, word_rows, first_row)
            )
        else:
            fill_words(host.numpy(), sizes, schedule, word_rows)
            packed_schedule = self._transfers.send(host)
        return Queued(self._compute(sizes, device_output, first_row, packed_schedule), n_new)

    def sizes(self, schedule: Schedule, output: Output) -> Sizes:
        """Return the sizes of a window's tensors."""
        stateful = self._state is not None
        return Sizes.of(schedule, share=self._share, pooled=output.pool is not None, stateful=stateful)

    def _with_words(self, sizes: Sizes, n_words: int) -> Sizes:
        """Return sizes with the number of words, if the lowest layer's input part is better computed by word."""
        weights = self.model.lstm[0]
        if n_words >= sizes.n_nodes - sizes.n_roots or not pays_by_word(weights, self._options, sizes.rows, n_words):
            return sizes
        room = sizes.n_nodes if self._is_small(sizes) else n_words  # a bucket has graphs for all numbers up to it
        fits = room * row_bytes(weights) <= self._word_gates_bytes
        return sizes.with_words(n_words) if fits else sizes

    def _is_small(self, sizes: Sizes) -> bool:
        switches = self._switches
        return switches.graphs and sizes.max_rows <= switches.graph_rows and sizes.n_depths <= switches.graph_depths

    def _replay(
        self, schedule: Schedule, sizes: Sizes, word_rows: Int32, output: Output, first_row: int, lend: bool
    ) -> tuple[Tensor, bool]:
        """Compute a small window by its bucket's graph, or by launches if it has none; return values, whether lent."""
        bucket = sizes.bucket()
        if self._state is not None:
            self._state.reserve(first_row + bucket.n_roots)
        size, fill_bucket = Layout.of(bucket).size, self._fill(bucket, schedule, word_rows, first_row)
        device_output = self._device_output(output)
        run = partial(self._compute, bucket, device_output, first_row)
        self._forget_graphs_of_other_tensors()
        captured = self._graphs.get((bucket, output, 0 if self._state is None else first_row), size, run)
        n_results = sizes.n_sentences if output.pool else sizes.n_tokens
        if captured is None:
            return run(self._transfers.upload(size, fill_bucket))[:, :n_results], False
        if lend and captured.n_bytes <= LENT_BYTES:
            captured.staging.upload(fill_bucket)
            return captured.replay(), True
        results = self._new_results(device_output, n_results)  # before the state advances, as memory may be lacking
        captured.staging.upload(fill_bucket)
        return results.copy_(captured.replay()[:, :n_results]), False

    def _new_results(self, device_output: DeviceOutput, n: int) -> Tensor:
        """Return an unfilled tensor [O, n, 2P]."""
        size = (len(device_output.mix), n, 2 * self.model.config.projection_size)
        return torch.empty(size, dtype=device_output.dtype, device=self.model.device)

    def _forget_graphs_of_other_tensors(self) -> None:
        """Forget graphs if the table or the state has moved, since graphs hold their addresses."""
        tensors = [self._table.vectors, *([] if self._state is None else self._state.hidden)]
        if [id(tensor) for tensor in tensors] != [id(tensor) for tensor in self._captured_on]:
            self._graphs.clear()
            self._captured_on = tensors

    def _compute(
        self,
        sizes: Sizes,
        device_output: DeviceOutput,
        first_row: int,
        packed_schedule: Tensor,
    ) -> Tensor:
        return compute(
            self.model,
            self._table.vectors,
            packed_schedule,
            sizes,
            device_output,
            self._options,
            workspace=self._workspace,
            state=self._state,
            first_row=first_row,
        )

    def _fill(self, sizes: Sizes, schedule: Schedule, word_rows: Int32, first_row: int) -> partial[None]:
        padding_row = 0 if self._state is None else self._state.n_rows
        return partial(
            fill,
            sizes=sizes,
            schedule=schedule,
            word_rows=word_rows,
            first_row=first_row,
            padding_row=padding_row,
        )

    def _device_output(self, output: Output) -> DeviceOutput:
        """Return what is requested, on the device; its coefficients are kept, since graphs hold their address."""
        if output not in self._outputs:
            mix = torch.from_numpy(output.coefficients(self.model.config.n_layers + 1)).to(self.model.device)
            dtype = getattr(torch, output.dtype)
            self._outputs[output] = DeviceOutput(mix, dtype, self._overflow, output.pool or "mean")
        return self._outputs[output]
