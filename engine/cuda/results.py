"""The results of a window, sentence by sentence: arrays in host memory, or views of a tensor on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import sub
from typing import Any

import numpy as np
from torch import Tensor

from flashelmo.engine.arrays import Array, Int64
from flashelmo.engine.cuda.transfer import Download, Transfers
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.system.threads import in_order

# Results are downloaded in pieces of about this size: while one is read, the next one is copied. Pinned memory is
# allocated in powers of two, and a piece may be one sentence longer.
PIECE_BYTES = 60 << 20

TENSORS_AT_ONCE = 256  # of a window's thousands: with 700 more objects than before, Python's garbage collector runs

COPIERS = 4  # threads; on an H200's host 512 sentences of 22 tokens take 74 ms with one, 14 with 4, 12 with 8
COPIED_BYTES = 4 << 20  # per piece: with fewer, starting threads takes longer


@dataclass(frozen=True)
class Callbacks:
    """Callbacks with which a window's results query and inform the pipeline.

    Attributes:
        overflowed: whether any window so far had a result that is infinite or NaN; only then are values checked.
        refuse: makes the error for a sentence, by its index in the window; it is raised in place of that sentence.
        on_read: called with the number of sentences that have arrived on the host so far, piece by piece.
    """

    overflowed: Callable[[], bool]
    refuse: Callable[[int], FlashElmoError]
    on_read: Callable[[int], None] = lambda n: None


class Results:
    """The requested results of a window's sentences.

    Args:
        values: [O, rows, 2P] on the device, a row for each token, or pooled for each sentence; computed by work already
            queued on the computing stream.
        offsets: [B + 1]; sentence b's tokens are offsets[b]:offsets[b + 1].
        output: what was requested: whether results are pooled, and have a dimension for the layers.
        transfers: bring the values to the host.
        callbacks: see there.
        as_numpy: arrays in host memory, which the caller owns; otherwise views of `values`.
        lent: whatever is queued next overwrites the values, which may have more rows than there are tokens: they are
            copied to the host at once. Only with `as_numpy`.

    Attributes:
        ready: the mark on the computing stream after which the values may be read.
        as_numpy: as given.
    """

    def __init__(
        self,
        values: Tensor,
        offsets: Int64,
        output: Output,
        transfers: Transfers,
        callbacks: Callbacks,
        *,
        as_numpy: bool,
        lent: bool = False,
    ) -> None:
        self.ready, self.as_numpy = transfers.mark(), as_numpy
        self._values, self._transfers, self._callbacks = values, transfers, callbacks
        self._single, self._pooled = output.single, output.pool is not None
        self._offsets = np.arange(len(offsets)) if self._pooled else offsets
        self._cuts = [(0, len(offsets) - 1)]
        self._first: Download | None = None
        if lent:
            self._first = transfers.download_now(values)
            self.ready = self._first.done
        elif as_numpy:
            self._cuts = _cuts(self._offsets, values.shape[0] * values.shape[2] * values.element_size())
            self._first = self._download(0)

    def __iter__(self) -> Iterator[Any]:
        return self._arrays() if self.as_numpy else self._tensors()

    def confirm(self) -> None:
        """Wait until the values are computed; check tensors that stay on the device if that is needed.

        Raises:
            FlashElmoError: of the first sentence whose tensor is not finite.
        """
        self.ready.wait()
        if not self.as_numpy and self._callbacks.overflowed() and not bool(self._values.isfinite().all()):
            for b, tensor in enumerate(self._tensors()):
                if not bool(tensor.isfinite().all()):
                    raise self._callbacks.refuse(b)

    def _tensors(self) -> Iterator[Tensor]:
        values = self._transfers.hand_over(self._values, self.ready)
        values = values[0] if self._single else values
        dimension, offsets = values.ndim - 2, self._offsets.tolist()
        for first in range(0, len(offsets) - 1, TENSORS_AT_ONCE):
            part = offsets[first : first + TENSORS_AT_ONCE + 1]
            rows = values.narrow(dimension, part[0], part[-1] - part[0])
            if self._pooled:
                yield from rows.unbind(dimension)
            else:  # the unsafe variant skips autograd's bookkeeping of views; it takes half the time
                yield from rows.unsafe_split_with_sizes(list(map(sub, part[1:], part)), dimension)

    def _arrays(self) -> Iterator[Array]:
        download = self._first or self._download(0)
        self._first = None
        for piece, (first, last) in enumerate(self._cuts):
            values = download.wait()[:, : self._offsets[last] - self._offsets[first]]
            if piece + 1 < len(self._cuts):
                download = self._download(piece + 1)
            self._callbacks.on_read(last)
            results = self._cut(values[0] if self._single else values, first, last)
            yield from self._checked(results, first) if self._callbacks.overflowed() else results

    def _checked(self, results: Iterator[Array], first: int) -> Iterator[Array]:
        """Yield the results of the sentences from `first` on, checking each."""
        for b, result in enumerate(results, first):
            if not np.isfinite(result).all():
                raise self._callbacks.refuse(b)
            yield result

    def _cut(self, values: Array, first: int, last: int) -> Iterator[Array]:
        """Yield copies of some sentences' results, given exactly their rows; copies, as this memory is reused."""
        if self._pooled:
            return (rows.copy() for rows in values.swapaxes(0, -2))
        offsets = (self._offsets[first : last + 1] - self._offsets[first]).tolist()
        sentences = [values[..., start:stop, :] for start, stop in pairwise(offsets)]
        return copies(sentences) if values.nbytes >= COPIED_BYTES else (rows.copy() for rows in sentences)

    def _download(self, piece: int) -> Download:
        first, last = self._cuts[piece]
        return self._transfers.download(self._values[:, self._offsets[first] : self._offsets[last]], self.ready)


def copies(arrays: list[Array]) -> Iterator[Array]:
    """Yield copies in order, made by several threads: the system's search for memory pages takes most of the time."""
    size = max(1, len(arrays) // (2 * COPIERS))
    batches = (arrays[k : k + size] for k in range(0, len(arrays), size))
    for batch in in_order(lambda batch: [array.copy() for array in batch], batches, COPIERS):
        yield from batch


def _cuts(offsets: Int64, row_bytes: int) -> list[tuple[int, int]]:
    """Return runs of sentences of about `PIECE_BYTES`; one that is longer by itself stays whole."""
    if offsets[-1] * row_bytes < PIECE_BYTES:
        return [(0, len(offsets) - 1)]
    ends = offsets[1:] * row_bytes // PIECE_BYTES
    breaks = (np.flatnonzero(np.diff(ends)) + 1).tolist()
    firsts = [0, *breaks]
    return list(zip(firsts, [*breaks, len(offsets) - 1], strict=True))
